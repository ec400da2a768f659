"""From a detector's two outputs to its detections: score filter, decoding of what is left, suppression of repeats.

```text
scores (1, N, C) ─ at or above the limit? ─ best 1,000 ─┐
boxes  (1, N, 4) ──────── only theirs ─────── decoded ──┴─ suppressed per class ─ best max_findings ─ voted
```

Pure numpy, in float64 between float32 outputs, and the same code on the workstation and on the device. A number that is
not finite anywhere in the outputs is an error, never a part without findings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from agent.bundle.detection import DetectionSpec
from agent.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_CANDIDATES", "BoxDecoder", "Detections", "box_iou", "cut_score", "suppress", "vote"]

Floats: TypeAlias = "NDArray[np.float32]"
Indices: TypeAlias = "NDArray[np.int64]"

MAX_CANDIDATES = 1000
"""Boxes of one picture that the suppression looks at, best first: it bounds the time of a net that fires everywhere."""

MAX_LOG_SIZE = math.log(1000 / 16)
"""Where the logarithm of a size in `deltas` is cut off, so that none overflows (torchvision, Detectron)."""

FARTHEST_PX = 1e7
"""Where coordinates are cut off, so that they stay finite in float32."""

PROBABILITY_SLACK = 0.01
"""How far a probability may lie outside 0 to 1: INT8 rounds. Farther out it is none, and the spec is wrong."""

_REBUILD = "rebuild the bundle: its graph and its manifest do not belong together"
_BLOCK = 48
FEW = 24
"""Candidates up to which the suppression goes box by box: most parts are good and have none or a few."""

_NOTHING = (np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """What was found in one picture, best score first; of equal scores the lower box index, then class, first.

    Attributes:
        boxes: (n, 4) float32, x0, y0, x1, y1 in pixels of the graph's input; x0 <= x1 and y0 <= y1.
        scores: (n,) float32, 0 to 1.
        classes: (n,) int64, in the manifest's order.
        cut_at: where more was found than is kept, the highest score that something left out may have; else 0.
    """

    boxes: Floats
    scores: Floats
    classes: Indices
    cut_at: float = 0.0

    def __len__(self) -> int:
        return len(self.scores)


class BoxDecoder:
    """Reads the outputs of one detector. Holds its priors, nothing else: any thread may call it.

    Args:
        spec: how the outputs are coded.
        n_classes: how many classes the manifest has; the background is none of them.
    """

    def __init__(self, spec: DetectionSpec, n_classes: int) -> None:
        self.spec = spec
        self._n_classes = n_classes
        self._columns = n_classes + (spec.scores == "softmax")
        self._priors = _priors(spec)
        self._least_logit = _logit(spec.score_above)

    def __call__(self, boxes: NDArray[Any], scores: NDArray[Any]) -> Detections:
        """Find the detections of one picture.

        Args:
            boxes: (1, N, 4) or (N, 4), any float type, N as there are priors (`corners`, `centre`: at least one).
            scores: (1, N, C) or (N, C), C one per class of the manifest; with `softmax` the background before them.

        Raises:
            EngineError: another shape, a value that is not finite, or a probability that is none.
        """
        boxes, scores = self._checked(boxes, scores)
        at, values = self._candidates(scores)
        n_candidates = len(at)
        if not n_candidates:
            found, values, classes = (array.copy() for array in _NOTHING)
            return Detections(boxes=found, scores=values, classes=classes)
        few = n_candidates <= FEW and self.spec.boxes != "deltas"  # an exponential is not the same to the last bit
        found, values, classes = self._few(boxes, at, values) if few else self._many(boxes, at, values)
        kept = suppress(found, values, classes, self.spec.nms_iou, limit=self.spec.max_findings)
        cut_at = cut_score(values, kept, n_candidates, self.spec.max_findings)
        if self.spec.vote_iou is None:
            if len(kept) < len(values):
                found, values, classes = found[kept], values[kept], classes[kept]
            return Detections(boxes=found, scores=values, classes=classes, cut_at=cut_at)
        voted = vote(found, values, classes, kept, self.spec.vote_iou)
        return Detections(boxes=voted, scores=values[kept], classes=classes[kept], cut_at=cut_at)

    def _checked(self, boxes: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both without their batch of one."""
        count = self.spec.n_priors or (boxes.shape[-2] if boxes.ndim in (2, 3) else 0) or 1
        for role, array, side in (("boxes", boxes, 4), ("scores", scores, self._columns)):
            if array.shape not in ((1, count, side), (count, side)):
                raise EngineError(f"{role}: got shape {array.shape}, expected (1, {count}, {side})", hint=_REBUILD)
            if not np.isfinite(array).all():
                raise EngineError(f"{role}: the model gave values that are not numbers (NaN or infinity)")
        return boxes.reshape(count, 4), scores.reshape(count, self._columns)

    def _candidates(self, scores: NDArray[Any]) -> tuple[Indices, Floats]:
        """Places in (N, classes) whose score reaches the limit, in their order, and the scores."""
        limit = self.spec.score_above
        if self.spec.scores == "softmax":
            return self._softmax_candidates(scores, limit)
        flat = scores.ravel()
        if self.spec.scores == "sigmoid":
            at = np.flatnonzero(flat >= self._least_logit)
            return at, _sigmoid(flat[at].astype(np.float64)).astype(np.float32)
        low, high = float(flat.min()), float(flat.max())
        if low < -PROBABILITY_SLACK or high > 1 + PROBABILITY_SLACK:
            raise EngineError(
                f"scores: got values from {low:.4g} to {high:.4g}, expected probabilities from 0 to 1",
                hint="logits need `sigmoid` or `softmax` as the bundle's coding of scores: rebuild it",
            )
        at = np.flatnonzero(flat >= limit)
        return at, flat[at].clip(0, 1).astype(np.float32)

    def _softmax_candidates(self, scores: NDArray[Any], limit: float) -> tuple[Indices, Floats]:
        # p >= limit needs p / (p + background) >= limit, which is a comparison of two logits: most places end here.
        ahead = scores[:, 1].copy()
        for at in range(2, self._columns):  # by columns: five times faster than along the short axis
            np.maximum(ahead, scores[:, at], out=ahead)
        rows = np.flatnonzero(ahead - scores[:, 0] >= _logit(limit) - 1e-3)
        logits = scores[rows].astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        values = (powers[:, 1:] / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        row, column = np.nonzero(values >= limit)
        return rows[row] * self._n_classes + column, values[row, column]

    def _many(self, boxes: NDArray[Any], at: Indices, values: Floats) -> tuple[Floats, Floats, Indices]:
        """The best candidates, best first: their boxes, scores and classes."""
        at, values = _best(at, values)
        index, classes = np.divmod(at, self._n_classes)
        return self._decode(boxes[index].astype(np.float64), index), values, classes

    def _few(self, boxes: NDArray[Any], at: Indices, values: Floats) -> tuple[Floats, Floats, Indices]:
        """`_many` in Python's floats, which are float64 too: the same numbers without twenty array calls."""
        scores, places = values.tolist(), at.tolist()
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        if order != sorted(order):
            values = values[order]
        corners, classes = [], []
        for index, kind in (divmod(places[i], self._n_classes) for i in order):
            x0, y0, x1, y1 = self._corners_of(boxes[index].tolist(), index)
            corners.append([_near(min(x0, x1)), _near(min(y0, y1)), _near(max(x0, x1)), _near(max(y0, y1))])
            classes.append(kind)
        return np.array(corners, dtype=np.float32), values, np.array(classes, dtype=np.int64)

    def _corners_of(self, coded: list[float], index: int) -> tuple[float, float, float, float]:
        """`_decode` of one box that is not coded as deltas."""
        a, b, c, d = coded
        if self.spec.boxes == "corners":
            return a, b, c, d
        if self.spec.boxes == "centre":
            return a - c / 2, b - d / 2, a + c / 2, b + d / 2
        x, y, width, height = self._priors[index].tolist()
        return x - a * width, y - b * height, x + c * width, y + d * height

    def _decode(self, coded: NDArray[np.float64], index: Indices) -> Floats:
        """Boxes as (n, 4) x0, y0, x1, y1 in input pixels; see `agent.bundle.detection` for the codings."""
        spec = self.spec
        if spec.boxes == "corners":
            first, second = coded[:, :2], coded[:, 2:]
        elif spec.boxes == "centre":
            first, second = _from_centre(coded[:, :2], coded[:, 2:])
        elif spec.boxes == "distances":
            prior = self._priors[index]
            first = prior[:, :2] - coded[:, :2] * prior[:, 2:]
            second = prior[:, :2] + coded[:, 2:] * prior[:, 2:]
        else:
            prior = self._priors[index]
            size = prior[:, 2:] * np.exp(np.minimum(coded[:, 2:] * spec.scale_wh, MAX_LOG_SIZE))
            first, second = _from_centre(prior[:, :2] + coded[:, :2] * spec.scale_xy * prior[:, 2:], size)
        # A box turned inside out is still a finding: its corners are swapped, it is not lost.
        corners = np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
        return corners.clip(-FARTHEST_PX, FARTHEST_PX).astype(np.float32)


def suppress(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    classes: NDArray[Any],
    iou: float,
    *,
    limit: int | None = None,
) -> Indices:
    """Keep the best box of each defect: greedy non-maximum suppression within each class.

    Args:
        boxes: (n, 4) x0, y0, x1, y1.
        scores: (n,).
        classes: (n,) whole numbers.
        iou: a box that overlaps a better one of its class by more (intersection over union) goes.
        limit: enough; None keeps all that are left.

    Returns:
        (k,) indices of those kept, best first; of equal scores the lower index.
    """
    if len(scores) <= FEW:
        return _suppress_few(boxes, scores, classes, iou, limit=limit)
    # Sorted columns, made once; in blocks, as the best of a picture take nearly all others with them.
    order = np.argsort(-np.asarray(scores), kind="stable")
    corners = np.asarray(boxes, dtype=np.float64)[order]
    columns = np.concatenate([corners.T, areas(corners)[None], np.asarray(classes)[None, order]])
    kept: list[int] = []
    while len(order) and (limit is None or len(kept) < limit):
        different = _different(columns[:, :_BLOCK], columns, iou)
        stays = np.ones(len(order), dtype=bool)
        # Only rows that are the same defect as another; each is the same as itself.
        for at in np.flatnonzero(np.count_nonzero(different, axis=1) < len(order) - 1).tolist():
            if stays[at]:
                stays[at + 1 :] &= different[at, at + 1 :]
        kept += order[:_BLOCK][stays[:_BLOCK]].tolist()
        stays[:_BLOCK] = False
        columns, order = columns[:, stays], order[stays]
    return np.array(kept[:limit], dtype=np.int64)


def _suppress_few(boxes: Any, scores: Any, classes: Any, iou: float, *, limit: int | None) -> Indices:
    """`suppress` box by box in Python's floats, which are float64 too: the same numbers without forty array calls."""
    corners = np.asarray(boxes, dtype=np.float64).tolist()
    kinds, values = np.asarray(classes).tolist(), np.asarray(scores).tolist()
    kept: list[int] = []
    for at in sorted(range(len(values)), key=lambda i: -values[i]):
        if limit is not None and len(kept) >= limit:
            break
        if not any(kinds[at] == kinds[other] and _is_same(corners[other], corners[at], iou) for other in kept):
            kept.append(at)
    return np.array(kept, dtype=np.int64)


def _is_same(left: Sequence[float], right: Sequence[float], iou: float) -> bool:
    """Whether two boxes overlap by more; two without an area do not."""
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = _area(left) + _area(right) - shared
    return union > 0 and shared / union > iou


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def cut_score(scores: Floats, kept: Indices, n_candidates: int, limit: int) -> float:
    """The highest score that a detection left out for want of room may have; 0 when there was room for all.

    Args:
        scores: (n,) of the candidates that were looked at, best first.
        kept: (k,) indices of those that suppression kept, best first.
        n_candidates: how many there were before the best were taken.
        limit: most that are kept.
    """
    cut = 0.0
    if n_candidates > len(scores) > 0:
        cut = float(scores[-1])
    if len(kept) == limit < len(scores):
        cut = max(cut, float(scores[kept[-1]]))
    return cut


def vote(boxes: Floats, scores: Floats, classes: Indices, kept: Indices, iou: float) -> Floats:
    """What all boxes around a defect say of where it is, not the best one alone.

    Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN model", ICCV 2015,
    section 5 (box voting); weighted by the overlap too, so that a box counts less the less it is the same.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 of all candidates.
        scores: (n,).
        classes: (n,) whole numbers.
        kept: (k,) indices of those that suppression kept.
        iou: a candidate of the same class votes when it overlaps the kept box by at least so much.

    Returns:
        (k, 4) float32. A box without an area stays as it is.
    """
    weights = box_iou(boxes[kept], boxes)
    weights[(weights < iou) | (classes[kept][:, None] != classes)] = 0
    weights *= scores
    total = weights.sum(axis=1, keepdims=True)
    means: NDArray[np.float64] = boxes[kept].astype(np.float64)
    np.divide(weights @ boxes.astype(np.float64), total, out=means, where=total > 0)
    return means.astype(np.float32)


def _different(left: NDArray[np.float64], right: NDArray[np.float64], iou: float) -> NDArray[np.bool_]:
    """(n, m): False where the pair is the same defect. Columns are x0, y0, x1, y1, area and class."""
    x0, y0, x1, y1, area, classes = left[:, :, None]
    width = np.minimum(x1, right[2])
    width -= np.maximum(x0, right[0])
    height = np.minimum(y1, right[3])
    height -= np.maximum(y0, right[1])
    shared = np.multiply(np.maximum(width, 0, out=width), np.maximum(height, 0, out=height), out=width)
    union = np.add(area, right[4], out=height)
    union -= shared
    with np.errstate(invalid="ignore"):  # two boxes without area are not the same defect
        different: NDArray[np.bool_] = ~(np.divide(shared, union, out=shared) > iou)
    different |= classes != right[5]
    return different


def box_iou(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of every pair; 0 where a pair has no area.

    Args:
        left: (n, 4) x0, y0, x1, y1.
        right: (m, 4).

    Returns:
        (n, m), 0 to 1.
    """
    shared = _intersections(left, right)
    union = areas(left)[:, None] + areas(right) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _intersections(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Area that each pair has in common, (n, m); arguments as of `box_iou`."""
    a = np.asarray(left, dtype=np.float64).T[:, :, None]
    b = np.ascontiguousarray(np.asarray(right, dtype=np.float64).T)
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    shared: NDArray[np.float64] = np.multiply(width, height, out=width)
    return shared


def areas(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Area of each box, (n,); 0 where a side is not positive."""
    corners = np.asarray(boxes, dtype=np.float64)
    sides: NDArray[np.float64] = (corners[:, 2:] - corners[:, :2]).clip(0)
    return sides[:, 0] * sides[:, 1]


def _best(at: Indices, values: Floats) -> tuple[Indices, Floats]:
    """The best `MAX_CANDIDATES`, best first; of equal scores the one that came first."""
    if len(values) > MAX_CANDIDATES:
        least = np.partition(values, len(values) - MAX_CANDIDATES)[len(values) - MAX_CANDIDATES]
        enough = values >= least  # ties included: the stable sort takes the first of them
        at, values = at[enough], values[enough]
    order = np.argsort(-values, kind="stable")[:MAX_CANDIDATES]
    return at[order], values[order]


def _priors(spec: DetectionSpec) -> NDArray[np.float64]:
    """(N, 4) centre x, centre y, width and height in pixels of the input; row by row, place by place, size by size."""
    parts = []
    for level in spec.levels:
        sizes = np.array(level.sizes_px, dtype=np.float64)
        y, x, size = np.meshgrid(
            (np.arange(level.rows) + level.offset) * level.step_y_px,
            (np.arange(level.columns) + level.offset) * level.step_x_px,
            np.arange(len(sizes)),
            indexing="ij",
        )
        parts.append(np.stack([x, y, sizes[size, 0], sizes[size, 1]], axis=-1).reshape(-1, 4))
    return np.concatenate(parts) if parts else np.empty((0, 4))


def _near(place: float) -> float:
    return min(max(place, -FARTHEST_PX), FARTHEST_PX)


def _from_centre(centre: NDArray[np.float64], size: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    return centre - size / 2, centre + size / 2


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability)) if probability > 0 else -math.inf


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 1 / (1 + np.exp(-x.clip(-700, 700)))
    return result
