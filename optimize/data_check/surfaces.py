"""Surfaces: texture with light and exposure taken out, and how alike two of them are where they overlap.

From each pixel the mean of its neighbourhood is subtracted, and the rest is divided by the neighbourhood's deviation.
Two exposures of one piece of steel have nearly the same surface; two pieces do not, however alike they look.

What every picture of a set shows at the same place (a fixture, a vignette, dust on the sensor) is no evidence that two
pictures show one part: it is the mean of many surfaces, and is subtracted too.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from optimize.data_check.pictures import GREY_EDGE, Picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COARSE_EDGE", "FINE_EDGE", "MAX_EDGE", "Shift", "Surface", "correlation", "overlap_share", "surfaces_of"]

FINE_EDGE = 224
"""Longest edge in pixels of the median picture's surface that decides; one scale for a whole set keeps shifts alike."""
COARSE_EDGE = 64
"""The same for the surface that proposes."""
MAX_EDGE = 1.5
"""A picture more than so many times as long as the median is searched for exact copies only."""
MIN_SIDE_PX = 16
NEIGHBOURHOOD = 1 / 28
"""Standard deviation of the neighbourhood, as a share of `FINE_EDGE`."""
COARSE_NEIGHBOURHOOD = 1 / 16
FLOOR_GREY = 1.0
"""Grey levels added to the deviation: what varies less is the JPEG coder's work."""
FLAT = 0.1
"""Deviation of a whole surface below which it shows nothing (a black frame, a closed shutter): what would be left of it
without the fixture is the fixture's negative, the same in every such picture."""
FIXTURE_MINIMUM = 20
"""With fewer pictures of one size each makes up too much of their mean, and subtracting it would hide a pair."""
SIGMA = 32.0

Shift: TypeAlias = tuple[int, int]
"""Down and right: pixel (y, x) of the second surface lies on pixel (y + down, x + right) of the first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Texture of one picture, at two scales.

    Attributes:
        index: which picture.
        scale: pixels of the stored picture to one of `fine`.
        fine: (h, w) int8, `SIGMA` to one standard deviation, clipped.
        coarse: (h, w) float32.
    """

    index: int
    scale: float
    fine: NDArray[np.int8]
    coarse: NDArray[np.float32]


def surfaces_of(pictures: Sequence[Picture]) -> dict[int, Surface]:
    """Make the surfaces of all pictures that can be compared; the others (tiny, flat or far larger) are left out.

    Args:
        pictures: with their grey copies.

    Returns:
        Index of a picture to its surface.
    """
    if not pictures:
        return {}
    median = float(np.median([p.edge_px for p in pictures]))
    scale = max(1.0, median / FINE_EDGE)
    made = [_surface(i, p, scale) for i, p in enumerate(pictures) if p.edge_px <= MAX_EDGE * median]
    textured = [s for s in made if min(s.fine.shape) >= MIN_SIDE_PX and float(s.fine.std()) >= FLAT * SIGMA]
    cleaned = _without_fixture(textured)
    return {s.index: s for s in sorted(cleaned, key=lambda s: s.index)}


def _surface(index: int, picture: Picture, scale: float) -> Surface:
    fine = _resized(picture.grey, picture, scale)
    coarse = _resized(picture.grey, picture, scale * FINE_EDGE / COARSE_EDGE)
    return Surface(
        index=index,
        scale=scale,
        fine=_packed(_locally_normalised(fine, FINE_EDGE * NEIGHBOURHOOD)),
        coarse=_locally_normalised(coarse, COARSE_EDGE * COARSE_NEIGHBOURHOOD),
    )


def _resized(grey: NDArray[np.uint8], picture: Picture, scale: float) -> NDArray[np.float32]:
    """The grey copy (never enlarged: `GREY_EDGE` is `MAX_EDGE` times `FINE_EDGE`) at so many stored pixels to one."""
    assert GREY_EDGE >= MAX_EDGE * FINE_EDGE
    size = (max(1, round(picture.width_px / scale)), max(1, round(picture.height_px / scale)))
    if size == (grey.shape[1], grey.shape[0]):
        return grey.astype(np.float32)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.float32)


def _locally_normalised(grey: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    detail = grey - cv2.GaussianBlur(grey, (0, 0), sigma_px)
    deviation = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), sigma_px))
    return np.asarray(detail / (deviation + FLOOR_GREY), dtype=np.float32)


def _packed(surface: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.asarray(np.clip(np.rint(surface * SIGMA), -127, 127), dtype=np.int8)


def _without_fixture(surfaces: list[Surface]) -> list[Surface]:
    """Subtract, size by size, what is at the same place in all pictures."""
    by_size: dict[tuple[int, ...], list[Surface]] = defaultdict(list)
    for surface in surfaces:
        by_size[surface.fine.shape].append(surface)
    cleaned: list[Surface] = []
    for alike in by_size.values():
        if len(alike) < FIXTURE_MINIMUM:
            cleaned += alike
            continue
        fine = np.mean([s.fine for s in alike], axis=0, dtype=np.float32)
        coarse = np.mean([s.coarse for s in alike], axis=0, dtype=np.float32)
        cleaned += [
            dataclasses.replace(s, fine=_packed((s.fine - fine) / SIGMA), coarse=s.coarse - coarse) for s in alike
        ]
    return cleaned


def overlap_share(first: tuple[int, ...], second: tuple[int, ...], shift: Shift) -> float:
    """How much of the smaller of two (h, w) rectangles the other covers, 0 to 1."""
    rows, columns = _span(first[0], second[0], shift[0]), _span(first[1], second[1], shift[1])
    area = max(0, rows[1] - rows[0]) * max(0, columns[1] - columns[0])
    return area / min(first[0] * first[1], second[0] * second[1])


def correlation(
    first: NDArray[np.float32] | NDArray[np.int8], second: NDArray[np.float32] | NDArray[np.int8], shift: Shift
) -> float:
    """How alike two surfaces are where they overlap, -1 to 1; 0 where they do not overlap, or where one is flat.

    Pearson's correlation, but for the means: surfaces have none, and looking for them would double the time.
    """
    top, bottom = _span(first.shape[0], second.shape[0], shift[0])
    left, right = _span(first.shape[1], second.shape[1], shift[1])
    if bottom <= top or right <= left:
        return 0.0
    a = first[top:bottom, left:right].astype(np.float32).ravel()
    b = second[top - shift[0] : bottom - shift[0], left - shift[1] : right - shift[1]].astype(np.float32).ravel()
    power = float(a @ a) * float(b @ b)
    return float(a @ b) / power**0.5 if power > 0 else 0.0


def _span(first: int, second: int, shift: int) -> tuple[int, int]:
    """Where a stretch of `second` pixels that begins at `shift` lies on one of `first` pixels."""
    return max(0, shift), min(first, second + shift)
