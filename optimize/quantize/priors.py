"""The priors of well-known detectors, from what was published about them; each as the levels of a `DetectionSpec`.

```text
YOLOX       one place per cell, at its upper left corner, of the stride's size   (Ge et al., arXiv 2107.08430)
SSD300      six maps, 4 to 6 sizes per place, 8,732 in all                       (Liu et al., ECCV 2016; torchvision)
SSDlite320  six maps, 6 sizes per place, 3,234 in all                           (Sandler et al., CVPR 2018; torchvision)
RetinaNet   five maps, 9 sizes per place, at the cells' upper left corners       (Lin et al., ICCV 2017; torchvision)
```

The numbers are torchvision's documented defaults, which its weights were trained with; a test holds them to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agent.bundle.detection import PriorLevel

__all__ = ["count_of", "retinanet_levels", "ssd300_levels", "ssdlite_levels", "yolox_levels"]

YOLOX_STRIDES = (8, 16, 32)

SSD300_MAPS = (38, 19, 10, 5, 3, 1)
SSD300_STEPS = (8, 16, 32, 64, 100, 300)
SSD300_SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
SSD300_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))

SSDLITE_SCALES = (*(0.2 + 0.15 * k for k in range(6)), 1.0)
"""Evenly from 0.2 to 0.95 of the picture, and the whole of it."""

RETINANET_STRIDES = (8, 16, 32, 64, 128)
RETINANET_RATIOS = (0.5, 1.0, 2.0)


def count_of(levels: Sequence[PriorLevel]) -> int:
    """How many priors there are on all levels."""
    return sum(level.count for level in levels)


def yolox_levels(width: int, height: int, strides: Sequence[int] = YOLOX_STRIDES) -> tuple[PriorLevel, ...]:
    """One prior per cell; offsets are counted from the cell's corner, sizes in strides.

    Args:
        width: of the input in pixels; cells that are cut off at the edge do not exist.
        height: the same.
        strides: of the levels, in the order of the output.
    """
    return tuple(
        PriorLevel(
            rows=height // stride,
            columns=width // stride,
            step_x_px=stride,
            step_y_px=stride,
            offset=0.0,
            sizes_px=((stride, stride),),
        )
        for stride in strides
    )


def ssd300_levels() -> tuple[PriorLevel, ...]:
    """For an input of 300 x 300 px; sizes beyond the picture are cut to it."""
    return tuple(
        PriorLevel(
            rows=side,
            columns=side,
            step_x_px=step,
            step_y_px=step,
            sizes_px=_ssd_sizes(SSD300_SCALES[k], SSD300_SCALES[k + 1], SSD300_RATIOS[k], 300, 300),
        )
        for k, (side, step) in enumerate(zip(SSD300_MAPS, SSD300_STEPS, strict=True))
    )


def ssdlite_levels(width: int, height: int) -> tuple[PriorLevel, ...]:
    """Maps of a 16th of the input, and halved five times; places are spread evenly, whatever the rounding.

    Args:
        width: of the input in pixels.
        height: the same.
    """
    levels = []
    columns, rows = math.ceil(width / 16), math.ceil(height / 16)
    for k in range(6):
        levels.append(
            PriorLevel(
                rows=rows,
                columns=columns,
                step_x_px=width / columns,
                step_y_px=height / rows,
                sizes_px=_ssd_sizes(SSDLITE_SCALES[k], SSDLITE_SCALES[k + 1], (2, 3), width, height),
            )
        )
        columns, rows = math.ceil(columns / 2), math.ceil(rows / 2)
    return tuple(levels)


def _ssd_sizes(
    scale: float, following: float, ratios: Sequence[int], width: int, height: int
) -> tuple[tuple[float, float], ...]:
    """A square of the level's scale, one half way to the next level's, and each ratio lying and standing."""
    middle = math.sqrt(scale * following)
    shares = [(scale, scale), (middle, middle)]
    for ratio in ratios:
        wide, high = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        shares += [(wide, high), (high, wide)]
    return tuple((min(w, 1.0) * width, min(h, 1.0) * height) for w, h in shares)


def retinanet_levels(width: int, height: int) -> tuple[PriorLevel, ...]:
    """Three scales in each of three ratios; half sides are rounded to whole pixels, steps down to whole pixels.

    Args:
        width: of the input in pixels.
        height: the same.
    """
    levels = []
    for stride in RETINANET_STRIDES:
        columns, rows = math.ceil(width / stride), math.ceil(height / stride)
        base = 4 * stride
        scales = [float(base), float(int(base * 2 ** (1 / 3))), float(int(base * 2 ** (2 / 3)))]
        levels.append(
            PriorLevel(
                rows=rows,
                columns=columns,
                step_x_px=width // columns,
                step_y_px=height // rows,
                offset=0.0,
                sizes_px=tuple(_rounded(scale, ratio) for ratio in RETINANET_RATIOS for scale in scales),
            )
        )
    return tuple(levels)


def _rounded(scale: float, ratio: float) -> tuple[float, float]:
    """Width and height whose halves are whole, ties to even, in float32 as the original computes them."""
    high = np.sqrt(np.float32(ratio))
    width, height = (np.float32(scale) / high, np.float32(scale) * high)
    return 2 * float(np.rint(width / 2)), 2 * float(np.rint(height / 2))
