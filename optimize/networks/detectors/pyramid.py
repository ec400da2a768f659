"""Features of several scales, each with what the others know: top down, then bottom up again.

Lin et al., "Feature pyramid networks for object detection", CVPR 2017 (down); Liu et al., "Path aggregation network for
instance segmentation", CVPR 2018 (up again). Levels are added, not joined, and the convolutions behind are separable,
as in EfficientDet (Tan et al., CVPR 2020): a tenth of the multiplications, and no Concat whose inputs would have to
share one INT8 scale.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["Pyramid", "separable"]


def separable(channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 filter per channel, then a 1x1 across channels, each with norm and ReLU."""
    return nn.Sequential(
        OrderedDict(
            depthwise=nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            depthwise_norm=nn.BatchNorm2d(channels),
            depthwise_relu=nn.ReLU(inplace=True),
            pointwise=nn.Conv2d(channels, channels, 1, bias=False),
            pointwise_norm=nn.BatchNorm2d(channels),
            pointwise_relu=nn.ReLU(inplace=True),
        )
    )


class Pyramid(nn.Module):
    """From a backbone's features to as many of equal width, and coarser ones beyond.

    Args:
        in_channels: of each of the backbone's features, finest first; each has half the side of the one before.
        channels: of every level that comes out.
        extra: how many coarser levels are made of the coarsest.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, extra: int = 0) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_lateral(n, channels) for n in in_channels)
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.down_path = nn.ModuleList(separable(channels) for _ in in_channels[1:])
        self.halve = nn.ModuleList(separable(channels, 2) for _ in in_channels[1:])
        self.up_path = nn.ModuleList(separable(channels) for _ in in_channels[1:])
        self.beyond = nn.ModuleList(separable(channels, 2) for _ in range(extra))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Each (N, in_channels, h, w), finest first, to each (N, channels, h, w) and the coarser ones."""
        levels = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = self.down_path[i](levels[i] + self.up(levels[i + 1]))
        for i in range(1, len(levels)):
            levels[i] = self.up_path[i - 1](levels[i] + self.halve[i - 1](levels[i - 1]))
        for beyond in self.beyond:
            levels.append(beyond(levels[-1]))
        return levels


def _lateral(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(in_channels, channels, 1, bias=False), norm=nn.BatchNorm2d(channels))
    )
