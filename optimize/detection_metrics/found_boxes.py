"""Which outlined defects the line would have stopped a part for, and which findings are false: box by box.

Two rules, because two things are asked:

- *stopped for*: a finding of whatever class overlaps the outlined box by an IoU of 0.1 or more, or has its centre
  within it. Who looks at the part there sees the defect, and neither the exact box nor the name of the class matters.
  The centre is what free-response studies of radiologists ask for; the small overlap is for findings larger than the
  defect.
- *found*: a finding of the same class overlaps it by 0.5 or more, as map50 has it.

FROC, free-response receiver operating characteristic: the share of defects that a part is stopped for over the false
findings per picture, as the limit falls (Bunch, Hamilton, Sanderson and Simmons, "A free response approach to the
measurement and characterization of radiographic-observer performance", J. Appl. Photographic Eng. 4, 1978; Chakraborty
and Winter, Radiology 174, 1990). Read at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false boxes per picture, as LUNA16 does (Setio et
al., Medical Image Analysis 42, 2017). A finding on an ignored box is neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from optimize.detection_metrics.matching import ImageBoxes, overlaps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FALSE_PER_PICTURE", "FOUND_IOU", "STOPPED_IOU", "BoxRecords", "box_records", "froc_curve", "sensitivities"]

STOPPED_IOU = 0.1
FOUND_IOU = 0.5
FALSE_PER_PICTURE = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoxRecords:
    """All outlined boxes that count, and all false findings, each with the score that decides about it.

    Attributes:
        n_images: pictures, also those without boxes.
        images: (B,) the picture of each box.
        places: (B,) its number among the picture's outlined boxes.
        stopped: (B,) the highest score of a finding that stops the part for it; -inf without one.
        found: (B,) the highest score of a finding that finds it; -inf without one.
        false_images: (F,) the picture of each false finding.
        false_scores: (F,) its score.
    """

    n_images: int
    images: NDArray[np.int64]
    places: NDArray[np.int64]
    stopped: NDArray[np.float64]
    found: NDArray[np.float64]
    false_images: NDArray[np.int64]
    false_scores: NDArray[np.float64]


def box_records(images: Sequence[ImageBoxes]) -> BoxRecords:
    """Look at every box and every finding once.

    Args:
        images: with the findings that count, of whatever score.
    """
    owners, places, stopped, found, false_images, false_scores = [], [], [], [], [], []
    for i, image in enumerate(images):
        iou = overlaps(image.found, image.truth)
        stops = (iou >= STOPPED_IOU) | _has_centre(image.found, image.truth)
        finds = (iou >= FOUND_IOU) & (image.found_classes[:, None] == image.truth_classes[None, :])
        counted = np.flatnonzero(~image.is_ignored)
        is_false = ~stops.any(axis=1)
        owners.append(np.full(len(counted), i))
        places.append(counted)
        stopped.append(_best(stops, image.scores)[counted])
        found.append(_best(finds, image.scores)[counted])
        false_images.append(np.full(int(is_false.sum()), i))
        false_scores.append(image.scores[is_false])
    none, nobody = np.empty(0), np.empty(0, dtype=np.int64)
    return BoxRecords(
        n_images=len(images),
        images=np.concatenate([nobody, *owners]),
        places=np.concatenate([nobody, *places]),
        stopped=np.concatenate([none, *stopped]),
        found=np.concatenate([none, *found]),
        false_images=np.concatenate([nobody, *false_images]),
        false_scores=np.concatenate([none, *false_scores]),
    )


def sensitivities(
    records: BoxRecords, weights: NDArray[np.float64], at: Sequence[float] = FALSE_PER_PICTURE
) -> NDArray[np.float64]:
    """The share of defects that parts are stopped for, at so many false boxes per picture.

    The limit is the lowest that gives no more false boxes than asked for; where the detector never gives as many, it is
    the one from which it gives findings at all.

    Args:
        records: of all pictures.
        weights: (R, N) how often each picture counts.
        at: false boxes per picture.

    Returns:
        (R, len(at)); not a number where no defect is outlined.
    """
    hits, falses = np.argsort(-records.stopped, kind="stable"), np.argsort(-records.false_scores, kind="stable")
    scores, false_scores = records.stopped[hits], np.append(records.false_scores[falses], -np.inf)
    # How many boxes score higher than each false finding: these are found when it is the first that is left out.
    higher = np.searchsorted(-scores, -false_scores, side="left")
    hit = np.cumsum(np.pad(weights[:, records.images[hits]], ((0, 0), (1, 0))), axis=1)
    false = np.cumsum(weights[:, records.false_images[falses]], axis=1)
    total = weights.sum(axis=1)
    found = np.empty((len(weights), len(at)))
    for r in range(len(weights)):
        allowed = np.asarray(at) * total[r] + 1e-9
        admitted = np.searchsorted(false[r], allowed, side="right")
        found[r] = hit[r, higher[admitted]] / hit[r, -1] if hit[r, -1] > 0 else np.nan
    return found


def froc_curve(records: BoxRecords) -> tuple[tuple[float, float], ...]:
    """False boxes per picture and share of defects at every limit, from the highest to the lowest."""
    if not len(records.stopped):
        return ()
    limits = np.unique(np.concatenate([records.stopped, records.false_scores]))
    limits = limits[np.isfinite(limits)][::-1]
    hits, falses = np.sort(records.stopped), np.sort(records.false_scores)
    caught = len(hits) - np.searchsorted(hits, limits, side="left")
    wrong = len(falses) - np.searchsorted(falses, limits, side="left")
    return tuple(zip((wrong / records.n_images).tolist(), (caught / len(hits)).tolist(), strict=True))


def _has_centre(found: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(D, G) whether the centre of the finding lies within the box."""
    centre = (found[:, None, :2] + found[:, None, 2:]) / 2
    inside = (centre >= truth[None, :, :2]) & (centre <= truth[None, :, 2:])
    return np.asarray(inside.all(axis=2))


def _best(is_of: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G,) the highest score of what is of each box."""
    return np.asarray(np.where(is_of, scores[:, None], -np.inf).max(axis=0, initial=-np.inf))
