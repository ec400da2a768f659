"""MobileNetV2 with ReLU6, of any width; ours is half as wide unless told otherwise.

Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018, table 2. ReLU6 stays because its
fixed range quantizes without calibration trouble and runs as fast as none in INT8.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from optimize.networks.attention import attention_layer
from optimize.networks.classifier import conv_norm

__all__ = ["InvertedResidual", "mobilenetv2", "our_name"]

# expansion, channels, repeats, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, LAST, LAST_OF_NARROW = 32, 1280, 1024
"""Channels; the last layer of a narrower network is narrower yet, because few classes need few features."""


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by 3x3, narrow by a 1x1 without activation.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the 3x3 convolution.
        expansion: how many times wider the middle is.
        attention: what gates the filtered channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, attention: str = "none"
    ) -> None:
        super().__init__()
        middle = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*conv_norm(in_channels, middle, 1), nn.ReLU6(inplace=True)]
        layers += [*conv_norm(middle, middle, 3, stride, groups=middle), nn.ReLU6(inplace=True)]
        project = conv_norm(middle, out_channels, 1)
        first = len(layers)
        named = OrderedDict((str(i), layer) for i, layer in enumerate(layers))
        named["attention"] = attention_layer(attention, middle)
        named |= {str(first + i): layer for i, layer in enumerate(project)}
        self.layers = nn.Sequential(named)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs if self.is_residual else outputs


def mobilenetv2(in_channels: int, width: float, attention: str) -> nn.Sequential:
    """The features, in the stages stem, block0 to block16, and last.

    Args:
        in_channels: of the picture.
        width: share of the paper's channels, which stay multiples of 8.
        attention: in every block, behind the 3x3 filters.
    """
    channels = _scaled(STEM, width)
    stem = nn.Sequential(*conv_norm(in_channels, channels, 3, 2), nn.ReLU6(inplace=True))
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    for expansion, full, repeats, stride in STAGES:
        for i in range(repeats):
            block = InvertedResidual(channels, _scaled(full, width), stride if i == 0 else 1, expansion, attention)
            stages[f"block{len(stages) - 1}"] = block
            channels = _scaled(full, width)
    last = _scaled(LAST if width >= 1 else LAST_OF_NARROW, width)
    stages["last"] = nn.Sequential(*conv_norm(channels, last, 1), nn.ReLU6(inplace=True))
    return nn.Sequential(stages)


def our_name(published: str) -> str | None:
    """Where a tensor of torchvision's file belongs, as `features.3.conv.1.0.weight`; None for a foreign one."""
    match published.split("."):
        case ["features", "0", layer, tensor]:
            return f"features.stem.{layer}.{tensor}"
        case ["features", "18", layer, tensor]:
            return f"features.last.{layer}.{tensor}"
        case ["features", number, "conv", *rest] if number.isdecimal():
            return _in_block(int(number) - 1, rest)
        case ["classifier", "1", tensor]:
            return f"head.{tensor}"
    return None


def _in_block(number: int, layer: list[str]) -> str | None:
    """Torchvision counts (convolution, norm, activation) as one, and the last two layers alone."""
    block = f"features.block{number}.layers"
    n_groups = 1 if number == 0 else 2
    match layer:
        case [group, "0" | "1" as inner, tensor] if group.isdecimal() and int(group) < n_groups:
            return f"{block}.{3 * int(group) + int(inner)}.{tensor}"
        case [alone, tensor] if alone.isdecimal() and n_groups <= int(alone) <= n_groups + 1:
            return f"{block}.{3 * n_groups + int(alone) - n_groups}.{tensor}"
    return None


def _scaled(channels: int, width: float) -> int:
    """To the next multiple of 8, but at least nine tenths (Howard et al.'s code, which the paper's widths follow)."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * width else scaled
