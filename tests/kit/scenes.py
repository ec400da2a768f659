"""Frames with a part in them that can be found: soft backgrounds, a part with marks, moved and turned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PART_AT", "PART_SIZE", "moved_scene", "scene", "template_of"]

PART_AT, PART_SIZE = (150, 110), (80, 60)
"""Where the part lies in `scene()`: x and y of its top left corner; its width and height."""


def scene(width: int = 400, height: int = 300, *, seed: int = 1) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 BGR: a soft background, and a part with detail of its own."""
    rng = np.random.default_rng(seed)
    image = _soft(rng, width, height, cells=20)
    (x, y), (wide, high) = PART_AT, PART_SIZE
    image[y : y + high, x : x + wide] = _soft(np.random.default_rng(99), wide, high, cells=12)
    return image


def template_of(image: NDArray[np.uint8]) -> bytes:
    """The part cut out of `scene()`, as a PNG."""
    (x, y), (wide, high) = PART_AT, PART_SIZE
    return bytes(cv2.imencode(".png", image[y : y + high, x : x + wide])[1].tobytes())


def moved_scene(shift: tuple[float, float] = (0, 0), turn_deg: float = 0.0, *, seed: int = 7) -> NDArray[np.uint8]:
    """The reference scene moved and turned clockwise about the part's middle, in other light, with a sensor's noise."""
    reference = scene()
    middle = PART_AT[0] + PART_SIZE[0] / 2 - 0.5, PART_AT[1] + PART_SIZE[1] / 2 - 0.5
    matrix = cv2.getRotationMatrix2D(middle, -turn_deg, 1.0)
    matrix[:, 2] += np.array(shift)
    size = reference.shape[1], reference.shape[0]
    moved = cv2.warpAffine(reference, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    noise = np.random.default_rng(seed).normal(0, 4, moved.shape)
    return np.asarray(np.clip(moved * 0.8 + 15 + noise, 0, 255), dtype=np.uint8)


def _soft(rng: np.random.Generator, width: int, height: int, *, cells: int) -> NDArray[np.uint8]:
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
