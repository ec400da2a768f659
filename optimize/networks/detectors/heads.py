"""From a pyramid's levels to raw boxes and scores, one head per level.

```text
yolo   level ┬ separable x2 ─ 1x1 ─ (4 bins, h, w)     left, top, right, bottom: each the mean of a distribution
             └ separable x2 ─ 1x1 ─ (C, h, w)          a logit per class
ssd    level ┬ separable ─ 1x1 ─ (4 A, h, w)           deltas to A anchors
             └ separable ─ 1x1 ─ ((1 + C) A, h, w)     logits; column 0 is the background
```

Distributions over distances: Li et al., "Generalized focal loss", NeurIPS 2020. Two separate branches: Ge et al.,
"YOLOX", arXiv 2107.08430, section 2.1. SSD: Liu et al., ECCV 2016; separable heads as in SSDLite (Sandler et al., CVPR
2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from optimize.networks.detectors.pyramid import separable

__all__ = ["ANCHOR_RATIOS", "ANCHOR_SCALES", "BINS", "FIRST_SCORE", "SsdHead", "YoloHead", "anchor_sizes_px"]

BINS = 16
"""Distances of 0 to 15 strides, as in the generalized focal loss paper (section 4: n = 16)."""

FIRST_SCORE = 0.01
"""What every score begins with, so that thousands of empty places do not drown the few that hold something (Lin et al.,
"Focal loss", ICCV 2017, section 4.1)."""

FIRST_SLOPE = 0.5
"""By how much each further bin begins less probable: boxes begin at 1.5 strides to each side, not at the 7.5 that
even bins mean, so that small defects overlap something from the first step on."""

ANCHOR_SCALES = (3.0, 3.0 * math.sqrt(2))
"""Sides of a level's square anchors in strides; the next level goes on in the same steps."""

ANCHOR_RATIOS = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0, 0.125)
"""Width over height of the anchors of equal area. Scratches are long: on NEU steel 98 % of the training boxes overlap
an anchor by half; with ratios up to 4 and one scale, as SSD has them, 91 % (measured at 224 px)."""

N_ANCHORS = len(ANCHOR_SCALES) * len(ANCHOR_RATIOS)


def anchor_sizes_px(stride: int) -> tuple[tuple[float, float], ...]:
    """Width and height of the anchors at each place of a level, in pixels of the input."""
    sides = [scale * stride for scale in ANCHOR_SCALES]
    return tuple((side * math.sqrt(ratio), side / math.sqrt(ratio)) for side in sides for ratio in ANCHOR_RATIOS)


class YoloHead(nn.Module):
    """Raw maps of an anchor-free detector.

    Args:
        channels: of each level.
        n_levels: how many there are.
        n_classes: how many classes.
    """

    columns = 4 * BINS

    def __init__(self, channels: int, n_levels: int, n_classes: int) -> None:
        super().__init__()
        self.box_branch = nn.ModuleList(
            nn.Sequential(separable(channels), separable(channels)) for _ in range(n_levels)
        )
        self.score_branch = nn.ModuleList(
            nn.Sequential(separable(channels), separable(channels)) for _ in range(n_levels)
        )
        self.boxes = nn.ModuleList(nn.Conv2d(channels, 4 * BINS, 1) for _ in range(n_levels))
        self.scores = nn.ModuleList(nn.Conv2d(channels, n_classes, 1) for _ in range(n_levels))

    def forward(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per level (N, 4 bins, h, w) and (N, C, h, w)."""
        return [
            (self.boxes[i](self.box_branch[i](level)), self.scores[i](self.score_branch[i](level)))
            for i, level in enumerate(levels)
        ]

    def start(self) -> None:
        """Begin with small weights, small boxes, and every score at `FIRST_SCORE`."""
        _start(self.boxes, 0.0)
        _start(self.scores, math.log(FIRST_SCORE / (1 - FIRST_SCORE)))
        for conv in self.boxes:
            with torch.no_grad():
                conv.get_parameter("bias").copy_(-FIRST_SLOPE * torch.arange(BINS, dtype=torch.float32).repeat(4))


class SsdHead(nn.Module):
    """Raw maps of a detector with anchors.

    Args:
        channels: of each level.
        n_levels: how many there are.
        n_classes: how many classes, the background not counted.
    """

    columns = 4

    def __init__(self, channels: int, n_levels: int, n_classes: int) -> None:
        super().__init__()
        self.box_branch = nn.ModuleList(separable(channels) for _ in range(n_levels))
        self.score_branch = nn.ModuleList(separable(channels) for _ in range(n_levels))
        self.boxes = nn.ModuleList(nn.Conv2d(channels, N_ANCHORS * 4, 1) for _ in range(n_levels))
        self.scores = nn.ModuleList(nn.Conv2d(channels, N_ANCHORS * (1 + n_classes), 1) for _ in range(n_levels))

    def forward(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per level (N, 4 A, h, w) and (N, (1 + C) A, h, w)."""
        return [
            (self.boxes[i](self.box_branch[i](level)), self.scores[i](self.score_branch[i](level)))
            for i, level in enumerate(levels)
        ]

    def start(self) -> None:
        """Begin with small weights."""
        _start(self.boxes, 0.0)
        _start(self.scores, 0.0)


def _start(convolutions: nn.ModuleList, bias: float) -> None:
    for conv in convolutions:
        nn.init.normal_(conv.weight, std=0.01)  # type: ignore[arg-type]
        nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
