"""Average precision by the COCO protocol, and its weighted form for the bootstrap.

Precision is made to fall with recall (each value becomes the largest at that recall or more) and read at 101 recalls
from 0 to 1; where a recall is not reached it counts 0 (cocodataset.org, "Detection evaluation"). A class that nothing
was outlined of says nothing and is left out of every mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optimize.detection_metrics.matching import AREAS, IOUS, ClassMatches, ImageBoxes, match_class

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ClassPrecision", "MeanPrecision", "average_precision", "map50_statistic", "mean_precision"]

RECALLS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrecision:
    """One class.

    Attributes:
        ap50: average precision at an overlap of 0.5; None when nothing of it is outlined.
        ap50_95: the mean over COCO's ten thresholds; None likewise.
        support: outlined boxes that count.
    """

    ap50: float | None
    ap50_95: float | None
    support: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeanPrecision:
    """The means over the classes that have outlined boxes; None when none has.

    Attributes:
        map50: at an overlap of 0.5.
        map50_95: over COCO's ten thresholds.
        map_by_area: `map50_95` of the boxes that are `small`, `medium` and `large`, see `AREAS`; empty when not asked.
        per_class: in the order of the class numbers.
    """

    map50: float | None
    map50_95: float | None
    map_by_area: Mapping[str, float | None]
    per_class: tuple[ClassPrecision, ...]


def mean_precision(images: Sequence[ImageBoxes], n_classes: int, *, by_area: bool = True) -> MeanPrecision:
    """COCO's figures.

    Args:
        images: all of them, also those without boxes: what is found on them is wrong.
        n_classes: class numbers are under it.
        by_area: also by the size of the boxes, which takes four times as long.
    """
    tables = {
        name: np.array([average_precision(match_class(images, k, area=area)) for k in range(n_classes)])
        for name, area in AREAS.items()
        if by_area or name == "all"
    }
    support = [sum(int(((i.truth_classes == k) & ~i.is_ignored).sum()) for i in images) for k in range(n_classes)]
    whole = tables["all"].reshape(n_classes, len(IOUS))
    return MeanPrecision(
        map50=_mean(whole[:, 0]),
        map50_95=_mean(whole),
        map_by_area={name: _mean(table) for name, table in tables.items() if name != "all"},
        per_class=tuple(
            ClassPrecision(ap50=_mean(row[:1]), ap50_95=_mean(row), support=n)
            for row, n in zip(whole, support, strict=True)
        ),
    )


def average_precision(matches: ClassMatches) -> NDArray[np.float64]:
    """Average precision of one class at each threshold.

    Args:
        matches: of all images.

    Returns:
        (T,) 0 to 1; not a number where no outlined box counts.
    """
    once = np.ones((1, len(matches.support)))
    return np.array([_weighted(matches, t, once)[0] for t in range(matches.is_right.shape[1])])


def _weighted(matches: ClassMatches, t: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) average precision at one threshold, where images count as often as each of (R, N) weights says."""
    total = weights @ matches.support
    each = weights[:, matches.images]
    right = np.cumsum(each * matches.is_right[:, t], axis=1)
    wrong = np.cumsum(each * matches.is_wrong[:, t], axis=1)
    precision = right / np.maximum(right + wrong, np.spacing(1))
    envelope = np.pad(np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
    recalls = right / np.maximum(total, 1)[:, None]
    at = np.stack([np.searchsorted(recall, RECALLS, side="left") for recall in recalls])
    found = np.take_along_axis(envelope, at, axis=1).mean(axis=1)
    return np.asarray(np.where(total > 0, found, np.nan))


def map50_statistic(
    images: Sequence[ImageBoxes], n_classes: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """map50 as a function of how often each image counts, for `optimize.intervals.weighted_interval`.

    Matched once; a resample costs a pass over the detections.

    Returns:
        From (R, N) weights to (R,) figures; not a number where no outlined box was drawn.
    """
    matches = [_lean(match_class(images, k, ious=IOUS[:1])) for k in range(n_classes)]
    matches = [entry for entry in matches if entry.support.any()]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        table = np.array([_weighted(entry, 0, weights) for entry in matches]).reshape(len(matches), len(weights)).T
        known = np.isfinite(table)
        n = known.sum(axis=1)
        return np.asarray(np.where(n > 0, np.where(known, table, 0.0).sum(axis=1) / np.maximum(n, 1), np.nan))

    return statistic


def _lean(matches: ClassMatches) -> ClassMatches:
    """Without what decides nothing: detections that do not count, and the wrong ones after the last right one."""
    right = np.flatnonzero(matches.is_right[:, 0])
    end = right[-1] + 1 if len(right) else 0
    kept = np.flatnonzero((matches.is_right | matches.is_wrong)[:end, 0])
    return dataclasses.replace(
        matches,
        images=matches.images[kept],
        scores=matches.scores[kept],
        is_right=matches.is_right[kept],
        is_wrong=matches.is_wrong[kept],
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
