"""The grids of integers: what a range becomes on each target, and what a value becomes on a grid.

Activations: `q = clip(round(x / scale) + zero_point)`, rounding halves to even, as ONNX's QuantizeLinear says. A CPU
takes 0 to 255 with any whole zero point; TensorRT takes -127 to 127 around 0 (-128 exists but is not used, so that the
grid is symmetric, as its documentation of explicit quantization asks).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimize.quantize.place import Target

__all__ = ["MIN_SCALE", "Affine", "affine_of", "on_grid"]

MIN_SCALE = 1e-6
"""Smallest scale of an activation: FP16, in which TensorRT may hold it, ends at 6e-8, and inverse scales at 65,504."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """One tensor's grid.

    Attributes:
        scale: what one step is worth, float32.
        zero_point: the integer that stands for 0.0.
        low: smallest integer.
        high: largest integer.
    """

    scale: float
    zero_point: int
    low: int
    high: int


def affine_of(low: float, high: float, target: Target) -> Affine:
    """The grid that covers a range.

    Args:
        low: smallest value, at most 0.
        high: largest value, at least 0.
        target: whose grid.
    """
    if target == "trt":
        scale = np.float32(max(abs(low), abs(high), 127 * MIN_SCALE) / 127)
        return Affine(scale=float(scale), zero_point=0, low=-128, high=127)
    scale = np.float32(max(high - low, 255 * MIN_SCALE) / 255)
    zero_point = int(np.clip(np.rint(-low / float(scale)), 0, 255))
    while np.float32(255 - zero_point) * scale > np.float32(max(high, 0)) and zero_point == 0 and low == 0:
        # One rounding too much, and ONNX Runtime would keep a Clip that the grid makes needless.
        scale = np.nextafter(scale, np.float32(0))
        if scale < MIN_SCALE:
            break
    return Affine(scale=float(scale), zero_point=zero_point, low=0, high=255)


def on_grid(values: NDArray[np.float32], grid: Affine) -> NDArray[np.float32]:
    """What is left of values after quantizing and dequantizing them."""
    scale = np.float32(grid.scale)
    steps = np.rint(values / scale) + np.float32(grid.zero_point)
    steps = np.clip(steps, np.float32(grid.low), np.float32(grid.high)) - np.float32(grid.zero_point)
    return np.asarray(steps * scale, dtype=np.float32)
