"""MobileNetV3, small and large: torchvision's features, with pooling and one linear layer behind them.

Howard et al., "Searching for MobileNetV3", ICCV 2019, tables 1 and 2. Its squeeze-and-excitation has a hard sigmoid
behind a convolution, which the export folds; its hard swish, `x * hard_sigmoid(x)`, is what costs in integers.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from optimize.networks.library import first_convolution_for, torchvision_models

__all__ = ["mobilenetv3", "our_name"]

LAST = {"mobilenetv3-small": 12, "mobilenetv3-large": 16}
"""Torchvision's number of the last stage."""

MOMENTUM = 0.1  # of the batch norms, as in our other networks


def mobilenetv3(name: str, in_channels: int) -> nn.Sequential:
    """The features, in the stages stem, block0 and so on, and last.

    Args:
        name: `mobilenetv3-small` or `mobilenetv3-large`.
        in_channels: of the picture.
    """
    models = torchvision_models(name)
    make = models.mobilenet_v3_small if name == "mobilenetv3-small" else models.mobilenet_v3_large
    layers = make().features
    if in_channels != 3:
        layers[0][0] = first_convolution_for(layers[0][0], in_channels)
    for module in layers.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Torchvision's 0.01 is for a million pictures: after a hundred steps the statistics would still be 0 and 1.
            module.momentum = MOMENTUM
    return nn.Sequential(OrderedDict((_stage(name, number), layer) for number, layer in enumerate(layers)))


def our_name(name: str, published: str) -> str | None:
    """Where a tensor of torchvision's file belongs, as `features.3.block.0.1.bias`; None for a foreign one."""
    match published.split("."):
        case ["features", number, *rest] if number.isdecimal():
            return ".".join(["features", _stage(name, int(number)), *rest])
        case ["classifier", "0" | "3" as number, tensor]:
            return f"head.{number}.{tensor}"
    return None


def _stage(name: str, number: int) -> str:
    """Torchvision's number as a name."""
    return {0: "stem", LAST[name]: "last"}.get(number, f"block{number - 1}")
