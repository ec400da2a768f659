"""How many float detections INT8 keeps: the decoding, the suppression and the matching behind the figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.bundle.detection import DetectionSpec
from optimize.errors import ModelError
from optimize.quantize.kept import KeptShare, box_iou, decode_v8, detect, kept_share

BOX = (10.0, 20.0, 50.0, 60.0)
FAR = (100.0, 100.0, 150.0, 150.0)


def pair(*rows: tuple[tuple[float, ...], int, float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes (N, 4) and scores (N, 3) from (box, class, score)."""
    scores = np.zeros((len(rows), 3), np.float32)
    for row, (_, label, score) in enumerate(rows):
        scores[row, label] = score
    return np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4), scores


def shifted(box: tuple[float, ...], by: float) -> tuple[float, ...]:
    return (box[0] + by, box[1], box[2] + by, box[3])


@pytest.mark.parametrize("shape", [(1, 4, 10), (2, 10, 10), (10, 8), (1, 1, 10, 8)])
def test_an_output_of_another_form_is_refused(shape: tuple[int, ...]) -> None:
    """A wrong axis would give figures that look like figures."""
    with pytest.raises(ModelError, match=r"got shape .*expected \[1, 4 \+ classes, boxes\]"):
        decode_v8(np.zeros(shape, np.float32))


def test_one_output_is_taken_apart_into_corners_and_scores() -> None:
    """The export gives centre and size, in pixels."""
    output = np.array([[[30], [40], [40], [20], [0.1], [0.7]]], np.float32)

    boxes, scores = decode_v8(output)

    assert boxes.tolist() == [[10, 30, 50, 50]]
    assert scores == pytest.approx(np.array([[0.1, 0.7]]))


def test_a_defect_is_found_once_and_two_defects_twice() -> None:
    """Cells beside each other find the same defect."""
    boxes, scores = pair((shifted(BOX, 2), 0, 0.6), (BOX, 0, 0.9), (FAR, 0, 0.5), (FAR, 1, 0.1))

    found = detect(boxes, scores)

    assert found.boxes.tolist() == [list(BOX), list(FAR)]
    assert found.scores == pytest.approx([0.9, 0.5])


def test_classes_do_not_suppress_each_other() -> None:
    """A scratch in a stain is two defects."""
    boxes, scores = pair((BOX, 0, 0.9), (BOX, 2, 0.8))

    assert detect(boxes, scores).classes.tolist() == [0, 2]


def test_a_suppressed_box_suppresses_nothing() -> None:
    """Greedy: of three in a row the outer two stay when they do not overlap."""
    boxes, scores = pair((BOX, 0, 0.9), (shifted(BOX, 12), 0, 0.8), (shifted(BOX, 24), 0, 0.7))

    assert detect(boxes, scores, nms_iou=0.5).scores == pytest.approx([0.9, 0.7])


def reference_suppression(boxes: Any, scores: Any, nms_iou: float) -> list[tuple[int, int]]:
    """The textbook loop, one box at a time."""
    rows = sorted(
        (
            (float(scores[i, c]), i, c)
            for i in range(len(boxes))
            for c in range(scores.shape[1])
            if scores[i, c] >= 0.25
        ),
        key=lambda row: (-row[0], row[1], row[2]),
    )
    kept: list[tuple[int, int]] = []
    for _, i, c in rows:
        if all(c != d or box_iou(boxes[[i]], boxes[[j]])[0, 0] <= nms_iou for j, d in kept):
            kept.append((i, c))
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_the_suppression_is_the_textbook_one(seed: int) -> None:
    """It is vectorized for thousands of boxes, and must not differ for that."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (120, 2)), rng.uniform(5, 40, (120, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    scores = rng.uniform(0, 1, (120, 3)).astype(np.float32)
    expected = reference_suppression(boxes, scores, 0.4)

    found = detect(boxes, scores, nms_iou=0.4)

    assert found.classes.tolist() == [c for _, c in expected]
    assert found.boxes.tolist() == boxes[[i for i, _ in expected]].tolist()


@pytest.mark.parametrize(
    ("int8", "kept", "invented"),
    [
        pytest.param([(BOX, 0, 0.9)], 1, 0, id="same"),
        pytest.param([(shifted(BOX, 1), 0, 0.5)], 1, 0, id="shifted by a pixel"),
        pytest.param([(shifted(BOX, 3), 0, 0.9)], 0, 1, id="shifted by three"),
        pytest.param([(BOX, 1, 0.9)], 0, 1, id="another class"),
        pytest.param([(BOX, 0, 0.21)], 1, 0, id="just below the threshold"),
        pytest.param([(BOX, 0, 0.15)], 0, 0, id="far below the threshold"),
        pytest.param([(BOX, 0, 0.9), (FAR, 0, 0.9)], 1, 1, id="one more"),
        pytest.param([], 0, 0, id="nothing"),
    ],
)
def test_a_detection_is_kept_when_class_and_box_are_the_same(int8: Any, kept: int, invented: int) -> None:
    """IoU 0.9 of a box 40 pixels wide is a shift by two pixels."""
    found = kept_share([pair((BOX, 0, 0.8))], [pair(*int8)])

    assert found == KeptShare(total=1, kept=kept, swapped=0, invented=invented)


def test_a_score_that_rises_over_the_threshold_is_not_invented() -> None:
    """The slack holds both ways; what the float model does not see at all is invented."""
    found = kept_share([pair((BOX, 0, 0.22), (FAR, 0, 0.9))], [pair((BOX, 0, 0.26), (FAR, 0, 0.9))])

    assert found == KeptShare(total=1, kept=1, swapped=0, invented=0)


def test_a_neighbour_that_suppression_prefers_is_a_swap_and_no_loss() -> None:
    """Two cells see one defect and INT8 turns their order round; the strict figure counts it, the other one not."""
    near = shifted(BOX, 5)
    floats = [pair((BOX, 0, 0.61), (near, 0, 0.60))]

    found = kept_share(floats, [pair((BOX, 0, 0.60), (near, 0, 0.61))])

    assert found == KeptShare(total=1, kept=0, swapped=1, invented=0)
    assert (found.share, found.share_given) == (0.0, 1.0)


def test_a_neighbour_is_no_swap_when_the_box_itself_is_gone() -> None:
    """INT8 that moves a box, or gives it no score, lost it, whatever lies beside it."""
    floats = [pair((BOX, 0, 0.61))]
    near = shifted(BOX, 5)

    moved = kept_share(floats, [pair((near, 0, 0.61))])
    faded = kept_share(floats, [pair((BOX, 0, 0.1), (near, 0, 0.61))])

    assert moved == faded == KeptShare(total=1, kept=0, swapped=0, invented=1)


def test_each_detection_is_matched_once() -> None:
    """Two float detections that became one are one kept and one lost."""
    near = shifted(BOX, 1)

    found = kept_share([pair((BOX, 0, 0.8), (near, 0, 0.7))], [pair((near, 0, 0.9))], nms_iou=0.99)

    assert found == KeptShare(total=2, kept=1, swapped=0, invented=0)


def test_all_scores_zero_keep_nothing() -> None:
    """What naive INT8 of a YOLO export gives."""
    floats = [pair((BOX, 0, 0.8)), pair((FAR, 1, 0.9), (BOX, 2, 0.3))]

    found = kept_share(floats, [(boxes, scores * 0) for boxes, scores in floats])

    assert (found.total, found.kept, found.share) == (3, 0, 0.0)


def test_no_float_detection_is_no_proof() -> None:
    """0 of 0 is not 100 %."""
    found = kept_share([pair((BOX, 0, 0.1))], [pair((BOX, 0, 0.1))])

    with pytest.raises(ModelError, match="found nothing"):
        _ = found.share


def test_pictures_must_be_the_same_on_both_sides() -> None:
    """A picture that is missing must not shift the comparison."""
    with pytest.raises(ValueError, match="shorter"):
        kept_share([pair((BOX, 0, 0.8)), pair()], [pair((BOX, 0, 0.8))])


def test_a_box_without_area_overlaps_nothing() -> None:
    """A decoder gives width 0, or corners the wrong way round, where nothing is."""
    boxes = np.array([[5, 5, 5, 9], [9, 9, 3, 3], [0, 0, 10, 10]], np.float32)

    assert box_iou(boxes, boxes).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_a_graph_keeps_all_of_its_own_detections_where_boxes_vote() -> None:
    """A box below the threshold moves the box of a defect above it; it must move it on both sides, or neither."""
    outputs = [pair((BOX, 0, 0.9), (shifted(BOX, 8), 0, 0.23), (FAR, 1, 0.3), (shifted(FAR, 11), 1, 0.22))]
    spec = DetectionSpec(boxes="corners", scores="probability", score_above=0.01, vote_iou=0.6)

    found = kept_share(outputs, outputs, iou=0.98, spec=spec)

    assert (found.total, found.kept, found.invented) == (2, 2, 0)
