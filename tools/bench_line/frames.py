"""Frames in memory, made once: a plate with grain, so that no two are alike and none is blank."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BgrImage", "frames_of"]

BgrImage: TypeAlias = "NDArray[np.uint8]"
"""(H, W, 3) uint8 BGR."""


def frames_of(width_px: int, height_px: int, count: int = 16) -> list[BgrImage]:
    """So many different frames, the same ones every time."""
    rng = np.random.default_rng(4)
    grain = rng.integers(-12, 13, (count, height_px, width_px, 1), dtype=np.int16)
    light = np.linspace(90, 170, width_px, dtype=np.int16)[None, None, :, None]
    return [np.ascontiguousarray(frame) for frame in np.repeat((grain + light).astype(np.uint8), 3, axis=3)]
