"""Suppression of repeats, held against the plain loop that everybody writes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import BoxDecoder, DetectionSpec
from agent.bundle.boxes import box_iou, suppress

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box = tuple[float, float, float, float]


def iou_by_loop(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in plain numbers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def kept_by_loop(boxes: list[Box], scores: list[float], classes: list[int], iou: float) -> list[int]:
    """Greedy: the best one left, then away with all of its class that overlap it by more."""
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if classes[i] != classes[best] or iou_by_loop(boxes[i], boxes[best]) <= iou]
    return kept


# Few values, so that ties of score, equal boxes and an IoU exactly at the limit come often.
sides = st.integers(0, 12)
boxes_ = st.tuples(sides, sides, sides, sides).map(
    lambda c: (float(c[0]), float(c[1]), float(c[0] + c[2]), float(c[1] + c[3]))
)
entries = st.tuples(boxes_, st.sampled_from([0.1, 0.5, 0.9]) | st.floats(0, 1, width=32), st.integers(0, 2))


@given(entries=st.lists(entries, max_size=70), iou=st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.6, 1.0]))
def test_what_is_kept_is_what_the_plain_loop_keeps(entries: list[tuple[Box, float, int]], iou: float) -> None:
    """Ties, boxes without area and several classes included; in the same order."""
    boxes, scores, classes = [list(column) for column in zip(*entries, strict=True)] if entries else ([], [], [])

    kept = suppress(np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(scores), np.array(classes), iou)

    assert kept.tolist() == kept_by_loop(boxes, scores, classes, iou)


def crowd(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Boxes around a few places, of three classes."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, 300, (12, 2))[rng.integers(0, 12, count)] + rng.normal(0, 6, (count, 2))
    size = rng.uniform(20, 60, (count, 2))
    boxes = np.concatenate([at - size / 2, at + size / 2], axis=1).astype(np.float32)
    return boxes, rng.random(count).astype(np.float32), rng.integers(0, 3, count)


@pytest.mark.parametrize("count", [1, 47, 48, 49, 96, 400])
def test_many_boxes_are_suppressed_as_few_are(count: int) -> None:
    """The work is done in blocks; their borders must not show."""
    boxes, scores, classes = crowd(count)

    kept = suppress(boxes, scores, classes, 0.5)

    expected = kept_by_loop([tuple(box) for box in boxes.tolist()], scores.tolist(), classes.tolist(), 0.5)
    assert kept.tolist() == expected


@pytest.mark.parametrize("limit", [1, 5, 48, 60, 1000])
def test_a_limit_takes_the_best(limit: int) -> None:
    """And stops there."""
    boxes, scores, classes = crowd(300)

    everything = suppress(boxes, scores, classes, 0.5)

    assert suppress(boxes, scores, classes, 0.5, limit=limit).tolist() == everything[:limit].tolist()


def test_boxes_of_other_classes_stay() -> None:
    """A pit in a stain is both."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])

    assert suppress(boxes, np.array([0.5, 0.9, 0.7]), np.array([0, 1, 0]), 0.5).tolist() == [1, 2]


def test_a_box_at_the_limit_of_overlap_stays() -> None:
    """More is the same defect; as much is not."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]])

    assert suppress(boxes, np.array([0.9, 0.8]), np.zeros(2), 0.5).tolist() == [0, 1]
    assert suppress(boxes, np.array([0.9, 0.8]), np.zeros(2), 0.499).tolist() == [0]


@given(left=st.lists(boxes_, max_size=6), right=st.lists(boxes_, max_size=6))
def test_overlaps_are_those_of_the_plain_formula(left: list[Box], right: list[Box]) -> None:
    """Of every pair."""
    found = box_iou(np.array(left).reshape(-1, 4), np.array(right).reshape(-1, 4))

    assert found.shape == (len(left), len(right))
    assert found.tolist() == [[iou_by_loop(a, b) for b in right] for a in left]


def test_a_box_may_be_several_classes_and_each_is_suppressed_by_itself() -> None:
    """Through the decoder: two boxes of one place, two classes."""
    boxes = np.array([[[0, 0, 10, 10], [1, 0, 11, 10]]], dtype=np.float32)
    scores = np.array([[[0.9, 0.4], [0.8, 0.6]]], dtype=np.float32)

    found = BoxDecoder(DetectionSpec(boxes="corners"), 2)(boxes, scores)

    assert [(round(float(s), 1), int(c)) for s, c in zip(found.scores, found.classes, strict=True)] == [
        (0.9, 0),
        (0.6, 1),
    ]


def test_only_the_best_findings_are_kept() -> None:
    """`max_findings` counts after suppression."""
    left = np.arange(30, dtype=np.float32) * 20
    boxes = np.stack([left, left, left + 10, left + 10], axis=1)[None]
    scores = np.linspace(0.1, 0.9, 30, dtype=np.float32)[None, :, None]

    found = BoxDecoder(DetectionSpec(boxes="corners", max_findings=4), 1)(boxes, scores)

    assert found.scores.tolist() == scores[0, -4:, 0][::-1].tolist()


def test_where_there_was_no_room_it_is_said_how_high_what_was_left_out_may_score() -> None:
    """Of three defects two are kept: the third may score as much as the second."""
    boxes = np.array([[[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [40, 0, 49, 9]]], np.float32)
    scores = np.array([[[0.9], [0.7], [0.6], [0.5]]], np.float32)

    def cut_at(limit: int, rows: int = 4) -> float:
        spec = DetectionSpec(boxes="corners", max_findings=limit, score_above=0.1)
        return BoxDecoder(spec, 1)(boxes[:, :rows], scores[:, :rows]).cut_at

    assert cut_at(2) == pytest.approx(0.7)
    assert cut_at(2, rows=2) == 0
    assert cut_at(100) == 0
