"""DenseNets: torchvision's, cut into stages, with attention behind each dense block.

Huang, Liu, van der Maaten and Weinberger, "Densely connected convolutional networks", CVPR 2017: every layer reads all
the ones before it. The batch norms stand in front of convolutions there, behind a concatenation, so they can't be
folded; the export makes each a convolution that filters every channel by one weight, which integers compute as well.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from torch import nn

from optimize.networks.attention import attention_layer
from optimize.networks.classifier import cut_after
from optimize.networks.library import first_convolution_for, torchvision_models

__all__ = ["densenet", "our_name"]

# growth, layers per block, channels of the stem
SHAPES = {
    "densenet121": (32, (6, 12, 24, 16), 64),
    "densenet-small": (16, (4, 5, 8, 6), 32),
}

# of torchvision to ours
STEM = {"conv0": "conv", "norm0": "norm"}
OLD_NAME = re.compile(r"(denselayer\d+)\.(norm|conv)\.([12])\.")
"""The published file is older than torchvision's rule that a name holds no dot."""


def densenet(name: str, in_channels: int, attention: str, until: str | None) -> nn.Sequential:
    """The features, in the stages stem, block1, transition1 and so on to block4, and last (norm and ReLU).

    Args:
        name: `densenet121` or `densenet-small`.
        in_channels: of the picture.
        attention: behind each dense block.
        until: the last stage to keep; behind a block `last` stays too, because a block's output is not normalized.

    Raises:
        OptimizeError: there is no such stage.
    """
    growth, layers, stem_channels = SHAPES[name]
    made = torchvision_models(name).DenseNet(growth, layers, stem_channels, num_classes=1).features
    conv = made.conv0 if in_channels == 3 else first_convolution_for(made.conv0, in_channels)
    stem = OrderedDict(conv=conv, norm=made.norm0, relu=made.relu0, pool=made.pool0)
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(stem))
    channels, out_channels = stem_channels, {}
    for i, count in enumerate(layers, start=1):
        channels += count * growth
        out_channels[f"block{i}"] = channels
        block = OrderedDict(dense=getattr(made, f"denseblock{i}"), attention=attention_layer(attention, channels))
        stages[f"block{i}"] = nn.Sequential(block)
        if i < len(layers):
            stages[f"transition{i}"] = getattr(made, f"transition{i}")
            channels //= 2
    stages["last"] = _norm_relu(channels)
    features = cut_after(nn.Sequential(stages), until)
    if until in out_channels:
        features.add_module("last", _norm_relu(out_channels[until]))
    return features


def our_name(published: str) -> str | None:
    """Where a tensor of torchvision's file belongs, as `features.norm5.bias`; None for a foreign one."""
    match OLD_NAME.sub(r"\1.\2\3.", published).split("."):
        case ["features", "conv0" | "norm0" as layer, tensor]:
            return f"features.stem.{STEM[layer]}.{tensor}"
        case ["features", "norm5", tensor]:
            return f"features.last.norm.{tensor}"
        case ["features", block, *rest] if block.startswith("denseblock"):
            return ".".join(["features", block.replace("dense", ""), "dense", *rest])
        case ["features", transition, *rest] if transition.startswith("transition"):
            return ".".join(["features", transition, *rest])
        case ["classifier", tensor]:
            return f"head.{tensor}"
    return None


def _norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True)))
