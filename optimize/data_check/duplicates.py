"""Copies: pictures with the same pixels, and pictures that are nearly so (saved again, brighter, another exposure).

Exact copies have the same hash. Near copies are proposed by the correlation of their small surfaces, all pairs at once
as a matrix product, and decided by that of the full ones; classes and splits do not matter, so that one picture under
two labels is found as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from optimize.data_check.pairs import Pair
from optimize.data_check.pictures import Picture
from optimize.data_check.surfaces import Surface, correlation

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MIN_CORRELATION", "exact_copies", "near_copies"]

MIN_CORRELATION = 0.8
"""Of the whole surfaces, without a shift: exposures of one tile and JPEG copies have more."""
_PROPOSED = 0.6
_THUMB_EDGE = 32
_BLOCK = 512


def exact_copies(pictures: Sequence[Picture]) -> list[tuple[int, ...]]:
    """Sets of pictures with the same size and pixels, as indices; each at least two."""
    alike: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        alike[picture.pixels].append(index)
    return [tuple(indices) for indices in alike.values() if len(indices) > 1]


def near_copies(pictures: Sequence[Picture], surfaces: Mapping[int, Surface]) -> list[Pair]:
    """Pairs with nearly the same surface in the same place; without exact copies and without mates of one group."""
    found = []
    for first, second in _proposed(surfaces):
        a, b = pictures[first], pictures[second]
        if a.pixels == b.pixels or (_mates(a, b) and a.sample.label == b.sample.label):
            continue
        value = correlation(surfaces[first].fine, _fitted(surfaces[second].fine, surfaces[first].fine.shape), (0, 0))
        if value >= MIN_CORRELATION:
            found.append(Pair(first=first, second=second, correlation=value))
    return found


def _mates(first: Picture, second: Picture) -> bool:
    return first.sample.group is not None and first.sample.group == second.sample.group


def _proposed(surfaces: Mapping[int, Surface]) -> Iterator[tuple[int, int]]:
    if not surfaces:
        return
    indices = list(surfaces)
    thumbs = np.stack([_thumb(surfaces[i].coarse) for i in indices])
    for start in range(0, len(indices), _BLOCK):
        alike = thumbs[start : start + _BLOCK] @ thumbs[start:].T
        for row, column in np.argwhere(alike >= _PROPOSED):
            if column > row:
                yield indices[start + row], indices[start + column]


def _thumb(coarse: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1024,) float32 of length 1, or of zeros for a flat picture."""
    thumb = cv2.resize(coarse, (_THUMB_EDGE, _THUMB_EDGE), interpolation=cv2.INTER_AREA).ravel()
    length = float(np.linalg.norm(thumb))
    return np.asarray(thumb / length if length > 1e-3 else np.zeros_like(thumb), dtype=np.float32)


def _fitted(fine: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A surface stretched to another's size: a copy may have been saved smaller."""
    if fine.shape == shape:
        return fine.astype(np.float32)
    size = (shape[1], shape[0])
    return np.asarray(cv2.resize(fine.astype(np.float32), size, interpolation=cv2.INTER_AREA), dtype=np.float32)
