"""Which detections of a float detector its INT8 graph still gives, decoded and suppressed by the agent's own code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.bundle.boxes import MAX_CANDIDATES, BoxDecoder, Detections, box_iou
from agent.bundle.detection import DetectionSpec
from optimize.errors import ModelError

__all__ = ["FINDING", "Detections", "KeptShare", "box_iou", "decode_v8", "detect", "kept_share", "n_findings"]

Floats: TypeAlias = NDArray[np.float32]

FINDING = 0.25
"""Score from which a float detection counts, as YOLO's tools draw them."""

SLACK = 0.8
"""A detection may be matched down to this share of the threshold: a score that wavers about it is not a lost defect."""

SAME = 1 - 1e-6
"""Overlap of a box with itself: where boxes are voted on, sums of another order differ in their last bits."""

CORNERS = DetectionSpec(boxes="corners")

EMPTY = Detections(boxes=np.empty((0, 4), np.float32), scores=np.empty(0, np.float32), classes=np.empty(0, np.int64))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptShare:
    """The outcome of a comparison.

    Attributes:
        total: detections of the float model.
        kept: those that are detections of INT8 too.
        swapped: those whose box INT8 gives as well, with its class and a sufficient score, but where suppression chose
            another of the boxes around the same defect: neighbouring cells often differ by less than 0.01 in score,
            and which of them is ahead is chance, not loss.
        invented: detections of INT8 whose box the float model does not give at all.
    """

    total: int
    kept: int
    swapped: int
    invented: int

    @property
    def share(self) -> float:
        """Kept in parts of all, 0 to 1, after suppression on both sides: the strict figure.

        Raises:
            ModelError: the float model found nothing, so that nothing could be lost.
        """
        return self._part(self.kept)

    @property
    def share_given(self) -> float:
        """Kept or swapped in parts of all: float detections whose box, class and score INT8 still gives.

        Raises:
            ModelError: as `share`.
        """
        return self._part(self.kept + self.swapped)

    def _part(self, count: int) -> float:
        if self.total == 0:
            raise ModelError(
                "detections kept: the float model found nothing in these pictures, so there is nothing to compare",
                hint="give pictures with defects, or a lower score threshold",
            )
        return count / self.total


def decode_v8(output: NDArray[Any]) -> tuple[Floats, Floats]:
    """Take the usual one-output export of YOLO detectors apart.

    Args:
        output: (1, 4 + C, N) float; per column the centre x, centre y, width and height in pixels of the model's input,
            then one score from 0 to 1 per class.

    Returns:
        boxes: (N, 4) float32, x0, y0, x1, y1 in pixels.
        scores: (N, C) float32.

    Raises:
        ModelError: the array has another shape.
    """
    if output.ndim != 3 or output.shape[0] != 1 or output.shape[1] < 5:
        raise ModelError(
            f"detector output: got shape {list(output.shape)}, expected [1, 4 + classes, boxes]",
            hint="export one picture per batch, with boxes first and one row per class behind them",
        )
    rows = output[0].astype(np.float32)
    centre, half = rows[:2], rows[2:4] / 2
    return np.concatenate([centre - half, centre + half]).T.copy(), rows[4:].T.copy()


def detect(boxes: Floats, scores: Floats, *, score: float = 0.25, nms_iou: float = 0.5) -> Detections:
    """The agent's own suppression on boxes that are corners already.

    Args:
        boxes: (N, 4) x0, y0, x1, y1.
        scores: (N, C) from 0 to 1; a box may be a detection of several classes.
        score: lower ones are no detections.
        nms_iou: a box that overlaps a better one of its class by more is the same defect.

    Returns:
        The detections, best first; of equal scores the one of the lower box index, then class.
    """
    return _Reader(CORNERS)((boxes, scores), score, nms_iou)


class _Reader:
    """Decodes with the agent's code, with another suppression than the bundle's; decoders are prepared once.

    Boxes vote from the bundle's own lowest score up, whatever score is asked for: a box must not move because of that.
    """

    def __init__(self, spec: DetectionSpec) -> None:
        self._spec = spec
        self._decoders: dict[tuple[float, float, int], BoxDecoder] = {}

    def __call__(self, outputs: tuple[Floats, Floats], score: float, nms_iou: float) -> Detections:
        boxes, scores = outputs
        if scores.size == 0:
            return _only(EMPTY, [])
        floor = score if self._spec.vote_iou is None else min(score, self._spec.score_above)
        n_classes = scores.shape[-1] - (self._spec.scores == "softmax")
        key = (floor, nms_iou, n_classes)
        if key not in self._decoders:
            spec = dataclasses.replace(
                self._spec, score_above=floor, nms_iou=nms_iou, max_findings=MAX_CANDIDATES, tiling=None
            )
            self._decoders[key] = BoxDecoder(spec, n_classes)
        found = self._decoders[key](boxes, scores)
        return _only(found, np.flatnonzero(found.scores >= score).tolist())


def kept_share(
    float_outputs: Iterable[tuple[Floats, Floats]],
    int8_outputs: Iterable[tuple[Floats, Floats]],
    *,
    score: float = FINDING,
    iou: float = 0.9,
    nms_iou: float = 0.5,
    spec: DetectionSpec | None = None,
) -> KeptShare:
    """Count the float detections that INT8 keeps: same class and nearly the same box, each matched once.

    Pairs with the largest overlap are matched first. A float detection is one from `score` up; INT8 may give it with a
    score of `SLACK * score`, because a score that falls from just above the threshold to just below it says nothing
    about quantization. The same slack holds the other way: an INT8 detection from `score` up is invented when the float
    model gives no such box from `SLACK * score` up, suppressed or not.

    Args:
        float_outputs: boxes (N, 4) and scores (N, C) of each picture, or (1, N, 4) and (1, N, C).
        int8_outputs: the same of the INT8 graph, in the same order.
        score: the threshold.
        iou: how much a kept box must overlap, intersection over union.
        nms_iou: for the suppression, both sides.
        spec: how the outputs are coded; None: corners in pixels and scores from 0 to 1.

    Raises:
        ValueError: one side has more pictures.
    """
    counts, read = np.zeros(4, dtype=np.int64), _Reader(spec or CORNERS)
    for ours, theirs in zip(float_outputs, int8_outputs, strict=True):
        counts += _compared(read, ours, theirs, score, iou, nms_iou)
    total, kept, swapped, invented = (int(count) for count in counts)
    return KeptShare(total=total, kept=kept, swapped=swapped, invented=invented)


def n_findings(outputs: Iterable[Sequence[Floats]], spec: DetectionSpec) -> int:
    """How many detections from `FINDING` up a graph gives, by the bundle's own suppression.

    Args:
        outputs: boxes and scores of each picture, as of `kept_share`.
        spec: how they are coded.
    """
    read = _Reader(spec)
    return sum(len(read((boxes, scores), FINDING, spec.nms_iou)) for boxes, scores in outputs)


def _compared(
    read: _Reader,
    ours: tuple[Floats, Floats],
    theirs: tuple[Floats, Floats],
    score: float,
    iou: float,
    nms_iou: float,
) -> tuple[int, int, int, int]:
    """Total, kept, swapped and invented of one picture."""
    low = score * SLACK
    floats, ints = (read(pair, score, nms_iou) for pair in (ours, theirs))
    answers = read(theirs, low, nms_iou)
    matched = _matches(floats, answers, iou)
    lost = sorted(set(range(len(floats))) - {row for row, _ in matched})
    # An IoU of 1 suppresses nothing: every box of a sufficient score, less those that are an answer already.
    given, used = read(theirs, low, 1.0), _only(answers, [column for _, column in matched])
    taken = ((box_iou(given.boxes, used.boxes) > SAME) & (given.classes[:, None] == used.classes)).any(axis=1)
    swapped = _matches(_only(floats, lost), _only(given, np.flatnonzero(~taken).tolist()), iou)
    known = _matches(ints, read(ours, low, 1.0), iou)
    return len(floats), len(matched), len(swapped), len(ints) - len(known)


def _only(found: Detections, rows: list[int]) -> Detections:
    return Detections(boxes=found.boxes[rows], scores=found.scores[rows], classes=found.classes[rows])


def _matches(left: Detections, right: Detections, iou: float) -> list[tuple[int, int]]:
    """Pairs of the same class that overlap enough, the closest first, none used twice."""
    overlap = box_iou(left.boxes, right.boxes)
    overlap[left.classes[:, None] != right.classes[None, :]] = 0
    rows, columns = np.nonzero(overlap >= iou)
    pairs: list[tuple[int, int]] = []
    free_rows, free_columns = set(rows.tolist()), set(columns.tolist())
    for at in np.argsort(-overlap[rows, columns], kind="stable").tolist():
        row, column = int(rows[at]), int(columns[at])
        if row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            pairs.append((row, column))
    return pairs
