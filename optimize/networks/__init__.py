"""Networks that become one clean ONNX and quantize well.

Every network is a `Classifier`: convolutions in named stages, then pooling, then one linear layer. That head is why a
class activation map comes for free and is exact: the linear layer's weights, applied at each place of the last feature
map, average to the logits.

`ARCHITECTURES` and `architecture` need no torch; `build_network` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimize.errors import OptimizeError
from optimize.networks.cards import ARCHITECTURES, Architecture, architecture, resolve_width

if TYPE_CHECKING:
    from torch import nn

    from optimize.networks.classifier import Classifier

__all__ = ["ARCHITECTURES", "Architecture", "architecture", "backbone_features", "build_network", "resolve_width"]

PROBE_PX = 32
"""The smallest picture that every network takes; shows how many channels come out of a cut one."""


def build_network(
    arch: str,
    n_classes: int,
    *,
    in_channels: int = 3,
    width: float | None = None,
    attention: str = "none",
    until: str | None = None,
) -> Classifier:
    """Make a network with fresh weights (from torch's random state; seed it first).

    Args:
        arch: a name from `ARCHITECTURES`.
        n_classes: how many classes, at least two.
        in_channels: 3 for colour, 1 for grey; the export makes a grey network take RGB.
        width: share of the published channels; None takes the card's.
        attention: `none`, `se` or `cbam`, for networks whose card allows it; see `optimize.networks.attention`.
        until: the last stage to keep, a name from `Classifier.stages`; the head then reads its channels. Fewer layers
            and a finer activation map.

    Returns:
        The network in training mode. It takes (N, in_channels, H, W) float32, normalized as `(value - 128) / 128`.

    Raises:
        OptimizeError: there is no such network, width, attention or stage.
        MissingExtra: the network needs torchvision.
        ImportError: torch is not installed.
    """
    card = architecture(arch)
    width = resolve_width(arch, width)
    if n_classes < 2:
        raise OptimizeError(f"n_classes: got {n_classes}, expected at least 2")
    if attention != "none" and not card.attention:
        able = ", ".join(other.name for other in ARCHITECTURES.values() if other.attention)
        raise OptimizeError(f"attention: {arch} takes none, expected --arch {able}", hint="leave --attention out")
    import torch

    from optimize.networks.classifier import Classifier

    features = _features(arch, in_channels, width, attention, until)
    with torch.no_grad():
        channels = features.eval()(torch.zeros(1, in_channels, PROBE_PX, PROBE_PX)).shape[1]
    return Classifier(features, int(channels), n_classes).train()


def backbone_features(arch: str, in_channels: int = 3) -> nn.Sequential:
    """The features of a network at its published width, in stages, as a detector takes them.

    Raises:
        OptimizeError: there is no such network.
        ImportError: torch, or torchvision where the network needs it, is not installed.
    """
    return _features(architecture(arch).name, in_channels, 1.0, "none", None)


def _features(arch: str, in_channels: int, width: float, attention: str, until: str | None) -> nn.Sequential:
    from optimize.networks.classifier import cut_after

    if arch.startswith("densenet"):
        from optimize.networks.densenet import densenet

        return densenet(arch, in_channels, attention, until)
    return cut_after(_whole_features(arch, in_channels, width, attention), until)


def _whole_features(arch: str, in_channels: int, width: float, attention: str) -> nn.Sequential:
    if arch.startswith("resnet"):
        from optimize.networks.resnet import resnet

        return resnet(arch, in_channels, width, attention)
    if arch == "mobilenetv2":
        from optimize.networks.mobilenet import mobilenetv2

        return mobilenetv2(in_channels, width, attention)
    if arch == "efficientnet-lite0":
        from optimize.networks.efficientnet_lite import efficientnet_lite0

        return efficientnet_lite0(in_channels)
    if arch == "vgg16-bn":
        from optimize.networks.vgg import vgg16_bn

        return vgg16_bn(in_channels)
    if arch.startswith("mobilenetv3"):
        from optimize.networks.mobilenetv3 import mobilenetv3

        return mobilenetv3(arch, in_channels)
    from optimize.networks.tiny import tiny

    return tiny(in_channels, attention)
