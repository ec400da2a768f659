"""VGG-16 with batch norm: torchvision's layers, with pooling and one linear layer in place of its three.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1,
configuration D. The three linear layers hold 124 of its 138 million weights, tie it to one input size, and have no
activation map; pooling and one layer do without (Lin et al., "Network in network", ICLR 2014, 3.2).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from optimize.networks.library import first_convolution_for, torchvision_models

__all__ = ["our_name", "vgg16_bn"]

BLOCKS = 5


def vgg16_bn(in_channels: int) -> nn.Sequential:
    """The features, in the stages block1 to block5; each ends with its pooling."""
    vgg = torchvision_models("vgg16-bn").vgg
    layers = list(vgg.make_layers(vgg.cfgs["D"], batch_norm=True))
    if in_channels != 3:
        layers[0] = first_convolution_for(layers[0], in_channels)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    block: OrderedDict[str, nn.Module] = OrderedDict()
    for number, layer in enumerate(layers):
        block[str(number)] = layer
        if isinstance(layer, nn.MaxPool2d):
            stages[f"block{len(stages) + 1}"] = nn.Sequential(block)
            block = OrderedDict()
    for conv in (layer for layer in layers if isinstance(layer, nn.Conv2d)):
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
    return nn.Sequential(stages)


def our_name(published: str) -> str | None:
    """Where a tensor of torchvision's file belongs, as `features.41.bias`; None for a foreign one."""
    match published.split("."):
        case ["features", number, tensor] if number.isdecimal():
            return f"features.block{_block_of(int(number))}.{number}.{tensor}"
        case ["classifier", "0" | "3" | "6" as number, tensor]:
            return f"head.{number}.{tensor}"
    return None


def _block_of(number: int) -> int:
    """A layer's block by its place: the poolings are layers 6, 13, 23, 33 and 43."""
    return next((i for i, last in enumerate((6, 13, 23, 33), start=1) if number <= last), BLOCKS)
