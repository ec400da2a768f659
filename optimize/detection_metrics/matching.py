"""Which detection found which outlined defect, by the rules of the COCO evaluation.

From its published description (cocodataset.org, "Detection evaluation"; Lin et al., ECCV 2014). In each image and
class, the best 100 detections take their turn by falling score, and each takes the free outlined box that it overlaps
most, if by the threshold or more. Ignored boxes (crowds, and those outside the range of areas) are taken only when no
other can be, a crowd by any number of detections; with a crowd, the overlap is the share of the detection that lies in
it. What took an ignored box is neither right nor wrong, and so is what found nothing and lies outside the range of
areas.

The result is kept image by image, so that a bootstrap weighs images and never matches again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AREAS", "IOUS", "ClassMatches", "ImageBoxes", "match_class", "overlaps"]

IOUS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds; the first is that of map50."""

AREAS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
)
"""COCO's ranges of area in square pixels, both ends included."""

MAX_DETECTIONS = 100
"""For each image and class."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageBoxes:
    """One image: what was outlined, and what was found.

    Attributes:
        truth: (G, 4) float64, left, top, right, bottom in pixels of the image.
        truth_classes: (G,) class numbers.
        is_ignored: (G,) bool, crowds and difficult ones.
        found: (D, 4) float64, as `truth`.
        scores: (D,) float64.
        found_classes: (D,) class numbers.
    """

    truth: NDArray[np.float64]
    truth_classes: NDArray[np.int64]
    is_ignored: NDArray[np.bool_]
    found: NDArray[np.float64]
    scores: NDArray[np.float64]
    found_classes: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassMatches:
    """The detections of one class in all images, by falling score; equal scores in the order of the images.

    Attributes:
        images: (D,) the image's number.
        scores: (D,) float64.
        is_right: (D, T) bool, found a box that counts, at each threshold.
        is_wrong: (D, T) bool, found nothing; neither for what does not count.
        support: (N,) boxes that count in each image.
    """

    images: NDArray[np.int64]
    scores: NDArray[np.float64]
    is_right: NDArray[np.bool_]
    is_wrong: NDArray[np.bool_]
    support: NDArray[np.int64]


def overlaps(
    found: NDArray[np.float64], truth: NDArray[np.float64], is_crowd: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Intersection over union; with a crowd, over the detection's own area.

    Args:
        found: (D, 4) left, top, right, bottom.
        truth: (G, 4) the same.
        is_crowd: (G,); None for no crowds.

    Returns:
        (D, G), 0 to 1.
    """
    corner = np.maximum(found[:, None, :2], truth[None, :, :2])
    opposite = np.minimum(found[:, None, 2:], truth[None, :, 2:])
    sides = np.maximum(opposite - corner, 0.0)
    common = sides[..., 0] * sides[..., 1]
    own = areas(found)[:, None]
    union = own + areas(truth)[None, :] - common
    if is_crowd is not None:
        union = np.where(is_crowd[None, :], own, union)
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))


def areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) square pixels."""
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def match_class(
    images: Sequence[ImageBoxes],
    number: int,
    *,
    area: tuple[float, float] = AREAS["all"],
    ious: NDArray[np.float64] = IOUS,
) -> ClassMatches:
    """Match one class in all images.

    Args:
        images: in any fixed order; it decides between equal scores.
        number: the class.
        area: smallest and largest area that count, in square pixels.
        ious: (T,) thresholds of overlap.
    """
    matched = [_match(image, number, area, ious) for image in images]
    numbers = np.repeat(np.arange(len(images)), [len(scores) for scores, *_ in matched])
    scores = np.concatenate([entry[0] for entry in matched]) if matched else np.empty(0)
    order = np.argsort(-scores, kind="stable")
    none = np.empty((0, len(ious)), dtype=np.bool_)
    return ClassMatches(
        images=numbers[order],
        scores=scores[order],
        is_right=np.concatenate([none, *(entry[1] for entry in matched)])[order],
        is_wrong=np.concatenate([none, *(entry[2] for entry in matched)])[order],
        support=np.array([entry[3] for entry in matched], dtype=np.int64),
    )


def _match(
    image: ImageBoxes, number: int, area: tuple[float, float], ious: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], int]:
    """Scores, right and wrong of one image's detections by falling score, and how many boxes count."""
    own = np.flatnonzero(image.truth_classes == number)
    mine = np.flatnonzero(image.found_classes == number)
    mine = mine[np.argsort(-image.scores[mine], kind="stable")][:MAX_DETECTIONS]
    truth, found, is_crowd = image.truth[own], image.found[mine], image.is_ignored[own]
    is_out = is_crowd | _is_outside(truth, area)
    support = int((~is_out).sum())
    if not len(mine):
        none = np.empty((0, len(ious)), dtype=np.bool_)
        return image.scores[mine], none, none, support
    is_wrong = np.repeat(~_is_outside(found, area)[:, None], len(ious), axis=1)
    if not len(own):
        return image.scores[mine], np.zeros_like(is_wrong), is_wrong, support
    took = _taken(overlaps(found, truth, is_crowd), is_crowd, is_out, ious)
    is_right = (took >= 0) & ~is_out[took]
    return image.scores[mine], is_right, is_wrong & (took < 0), support


def _is_outside(boxes: NDArray[np.float64], area: tuple[float, float]) -> NDArray[np.bool_]:
    size = areas(boxes)
    return np.asarray((size < area[0]) | (size > area[1]))


def _taken(
    table: NDArray[np.float64], is_crowd: NDArray[Any], is_out: NDArray[Any], ious: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(D, T) the box that each detection takes at each threshold, -1 for none."""
    taken = np.full((len(table), len(ious)), -1, dtype=np.int64)
    if not table.size:
        return taken
    limits, free = np.minimum(ious, 1 - 1e-10)[:, None], np.ones((len(ious), len(is_out)), dtype=np.bool_)
    for i in np.flatnonzero(table.max(axis=1) >= limits.min()):
        row = table[i]
        open_to = free & (row >= limits)
        for part in (open_to & ~is_out, open_to & is_out):  # boxes that count go before those that do not
            # Of boxes overlapped alike the last one, as the reference implementation does.
            best = part.shape[1] - 1 - np.argmax(np.where(part, row, -1.0)[:, ::-1], axis=1)
            new = np.flatnonzero(part.any(axis=1) & (taken[i] < 0))
            taken[i, new] = best[new]
            free[new, best[new]] = is_crowd[best[new]]
    return taken
