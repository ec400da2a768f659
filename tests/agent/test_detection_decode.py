"""Boxes and scores read against plain loops, each written from its format's published description."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import BoxDecoder, DetectionSpec, PriorLevel
from agent.bundle.boxes import MAX_CANDIDATES, box_iou, suppress
from agent.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CORNERS = DetectionSpec(boxes="corners")
LEVEL = PriorLevel(rows=2, columns=3, step_x_px=16, step_y_px=8, sizes_px=((16, 8), (40, 10)))
N = LEVEL.count


def keep_all(spec: DetectionSpec, n_classes: int = 1) -> Any:
    """A decoder that suppresses nothing and lets every score pass."""
    changes: dict[str, Any] = {"score_above": 0.0, "nms_iou": 1.0, "max_findings": 1000}
    fields = {name: getattr(spec, name) for name in ("boxes", "scores", "levels", "scale_xy", "scale_wh")}
    return BoxDecoder(DetectionSpec(**{**fields, **changes}), n_classes)


def decoded(spec: DetectionSpec, boxes: NDArray[np.float32]) -> list[list[float]]:
    """The boxes in the order of the outputs: falling scores keep it."""
    scores = np.linspace(0.9, 0.1, len(boxes), dtype=np.float32)[None, :, None]
    found = keep_all(spec)(boxes[None], scores)
    assert len(found) == len(boxes)
    rows: list[list[float]] = found.boxes.tolist()
    return rows


def coded(seed: int, scale: float, count: int = N) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, scale, (count, 4)).astype(np.float32)


# Bad input


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["boxes", "scores"])
@pytest.mark.parametrize("coding", ["probability", "sigmoid", "softmax"])
def test_a_value_that_is_no_number_is_an_error_wherever_it_stands(value: float, where: str, coding: Any) -> None:
    """Also at a place whose score is too low: NaN is under every limit, and the part would pass."""
    spec = DetectionSpec(boxes="corners", scores=coding, score_above=0.5)
    outputs = {
        "boxes": np.ones((1, 50, 4), dtype=np.float32),
        "scores": np.zeros((1, 50, 2 + (coding == "softmax")), dtype=np.float32),
    }
    outputs[where][0, 31, 1] = value

    with pytest.raises(EngineError, match=f"{where}: the model gave values that are not numbers"):
        BoxDecoder(spec, 2)(**outputs)


@pytest.mark.parametrize(
    ("boxes", "scores", "words"),
    [
        ((1, N, 4), (1, N, 3), "scores: got shape (1, 12, 3), expected (1, 12, 2)"),
        ((1, N, 5), (1, N, 2), "boxes: got shape (1, 12, 5), expected (1, 12, 4)"),
        ((1, N - 1, 4), (1, N - 1, 2), "boxes: got shape (1, 11, 4), expected (1, 12, 4)"),
        ((1, N, 4), (1, N - 1, 2), "scores: got shape (1, 11, 2), expected (1, 12, 2)"),
        ((2, N, 4), (2, N, 2), "boxes: got shape (2, 12, 4), expected (1, 12, 4)"),
        ((1, 4, N), (1, N, 2), "boxes: got shape (1, 4, 12), expected (1, 12, 4)"),
        ((4,), (1, N, 2), "boxes: got shape (4,), expected (1, 12, 4)"),
        ((1, 1, N, 4), (1, N, 2), "boxes: got shape (1, 1, 12, 4), expected (1, 12, 4)"),
    ],
)
def test_outputs_of_another_shape_are_an_error(boxes: tuple[int, ...], scores: tuple[int, ...], words: str) -> None:
    """The graph and the manifest do not belong together."""
    decode = BoxDecoder(DetectionSpec(boxes="deltas", levels=(LEVEL,)), 2)

    with pytest.raises(EngineError) as caught:
        decode(np.zeros(boxes, dtype=np.float32), np.zeros(scores, dtype=np.float32))

    assert caught.value.message == words


def test_no_boxes_at_all_are_an_error() -> None:
    """A graph gives all its places; none is a graph that did not run, and no good part."""
    with pytest.raises(EngineError, match=r"boxes: got shape \(1, 0, 4\)"):
        BoxDecoder(CORNERS, 2)(np.zeros((1, 0, 4)), np.zeros((1, 0, 2)))


@pytest.mark.parametrize("value", [-0.1, 1.1, 37.0, -4.0])
def test_logits_are_no_probabilities(value: float) -> None:
    """A wrong guess about an export is said, and does not pass parts or reject all of them."""
    scores = np.full((1, 5, 2), 0.5, dtype=np.float32)
    scores[0, 3, 1] = value

    with pytest.raises(EngineError, match="expected probabilities from 0 to 1"):
        BoxDecoder(CORNERS, 2)(np.ones((1, 5, 4)), scores)


# Boxes


def test_corners_are_taken_as_they_are() -> None:
    """x0, y0, x1, y1."""
    boxes = np.array([[1, 2, 30, 40], [-5, 0, 4, 900]], dtype=np.float32)

    assert decoded(CORNERS, boxes) == boxes.tolist()


def test_a_box_turned_inside_out_is_kept() -> None:
    """A head may give a negative width; what it saw is a finding all the same."""
    assert decoded(CORNERS, np.array([[30, 2, 1, 40]], dtype=np.float32)) == [[1, 2, 30, 40]]


def test_centres_are_those_of_yolo() -> None:
    """cx, cy, w, h in pixels, as YOLOv5, v8 and 11 are exported."""
    boxes = np.abs(coded(1, 50))

    expected = [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] for cx, cy, w, h in boxes.tolist()]

    np.testing.assert_allclose(decoded(DetectionSpec(boxes="centre"), boxes), expected, rtol=1e-5, atol=1e-4)


def centres(level: PriorLevel) -> list[tuple[float, float, float, float]]:
    """Every prior: rows outside, then places, then sizes."""
    return [
        ((column + level.offset) * level.step_x_px, (row + level.offset) * level.step_y_px, width, height)
        for row in range(level.rows)
        for column in range(level.columns)
        for width, height in level.sizes_px
    ]


def test_distances_are_those_of_fcos() -> None:
    """Left, top, right, bottom from the middle of the cell in parts of its stride (Tian et al., section 3.1)."""
    level = PriorLevel(rows=3, columns=4, step_x_px=8, step_y_px=8, sizes_px=((8, 8),))
    boxes = np.abs(coded(2, 3, level.count))
    expected = []
    for (left, top, right, bottom), (x, y, stride, _) in zip(boxes.tolist(), centres(level), strict=True):
        expected.append([x - left * stride, y - top * stride, x + right * stride, y + bottom * stride])

    spec = DetectionSpec(boxes="distances", levels=(level,))

    np.testing.assert_allclose(decoded(spec, boxes), expected, rtol=1e-5, atol=1e-4)


def test_distances_know_the_width_from_the_height() -> None:
    """A prior that is not square scales each side by its own."""
    level = PriorLevel(rows=1, columns=1, step_x_px=20, step_y_px=10, sizes_px=((20, 10),))

    spec = DetectionSpec(boxes="distances", levels=(level,))

    assert decoded(spec, np.array([[0.5, 1, 2, 3]], dtype=np.float32)) == [[0, -5, 50, 35]]


def test_deltas_are_those_of_ssd() -> None:
    """Offsets in parts of the prior times 0.1, logarithms of sizes times 0.2 (Liu et al., section 2.2, its code)."""
    boxes = coded(3, 1)
    expected = []
    for (dx, dy, dw, dh), (x, y, width, height) in zip(boxes.tolist(), centres(LEVEL), strict=True):
        cx, cy = x + dx * 0.1 * width, y + dy * 0.1 * height
        w, h = width * math.exp(dw * 0.2), height * math.exp(dh * 0.2)
        expected.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])

    spec = DetectionSpec(boxes="deltas", levels=(LEVEL,), scale_xy=0.1, scale_wh=0.2)

    np.testing.assert_allclose(decoded(spec, boxes), expected, rtol=1e-5, atol=1e-4)


def test_deltas_are_those_of_yolox() -> None:
    """(grid + offset) * stride and exp(size) * stride (Ge et al., section 2.1): from a cell's upper left corner."""
    level = PriorLevel(rows=3, columns=5, step_x_px=16, step_y_px=16, offset=0, sizes_px=((16, 16),))
    boxes = coded(4, 1, level.count)
    expected = []
    for at, (dx, dy, dw, dh) in enumerate(boxes.tolist()):
        cx, cy = (at % 5 + dx) * 16, (at // 5 + dy) * 16
        w, h = math.exp(dw) * 16, math.exp(dh) * 16
        expected.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])

    np.testing.assert_allclose(
        decoded(DetectionSpec(boxes="deltas", levels=(level,)), boxes), expected, rtol=1e-5, atol=1e-4
    )


def test_a_logarithm_of_a_size_is_cut_off() -> None:
    """As Detectron does, at 1000 / 16 times the prior: 1e30 would be no number in float32 any more."""
    boxes = np.array([[0, 0, 1e30, -1e30]], dtype=np.float32)
    level = PriorLevel(rows=1, columns=1, step_x_px=16, step_y_px=16, sizes_px=((16, 16),))

    ((x0, y0, x1, y1),) = decoded(DetectionSpec(boxes="deltas", levels=(level,)), boxes)

    assert (x1 - x0, y1 - y0) == pytest.approx((1000, 0))


@pytest.mark.parametrize("boxes", ["corners", "centre", "distances", "deltas"])
def test_no_number_of_a_box_overflows(boxes: Any) -> None:
    """Finite in, finite out."""
    spec = DetectionSpec(boxes=boxes, levels=(LEVEL,) if boxes in ("distances", "deltas") else ())
    huge = np.full((N, 4), np.finfo(np.float32).max, dtype=np.float32)

    assert np.isfinite(decoded(spec, huge)).all()


def test_levels_lie_one_after_the_other() -> None:
    """In the order of N."""
    fine = PriorLevel(rows=2, columns=2, step_x_px=8, step_y_px=8, sizes_px=((8, 8),))
    coarse = PriorLevel(rows=1, columns=1, step_x_px=16, step_y_px=16, sizes_px=((16, 16),))
    spec = DetectionSpec(boxes="distances", levels=(fine, coarse))

    boxes = decoded(spec, np.full((5, 4), 0.5, dtype=np.float32))

    assert boxes == [[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16], [0, 0, 16, 16]]


# Scores


def one_hot_boxes(count: int) -> NDArray[np.float32]:
    """Boxes that do not overlap."""
    left = np.arange(count, dtype=np.float32) * 10
    return np.stack([left, left, left + 5, left + 5], axis=1)[None]


def found_by_loop(scores: NDArray[np.float32], coding: str, limit: float) -> list[tuple[int, int, float]]:
    """Box, class and score of everything from the limit up, best first, by the book."""
    found = []
    for row, logits in enumerate(scores[0].tolist()):
        if coding == "softmax":
            powers = [math.exp(x - max(logits)) for x in logits]
            values = [power / sum(powers) for power in powers][1:]
        else:
            values = [1 / (1 + math.exp(-x)) for x in logits] if coding == "sigmoid" else logits
        found += [(row, at, value) for at, value in enumerate(values) if value >= limit]
    return sorted(found, key=lambda one: (-one[2], one[0], one[1]))


@pytest.mark.parametrize("coding", ["probability", "sigmoid", "softmax"])
@pytest.mark.parametrize("limit", [0.0, 0.05, 0.3, 0.6, 0.9])
def test_scores_from_the_limit_up_are_found(coding: Any, limit: float) -> None:
    """Several classes of one box included; the background of a softmax is no class."""
    rng = np.random.default_rng(7)
    shape = (1, 60, 3 + (coding == "softmax"))
    drawn = rng.normal(0, 3, shape) if coding != "probability" else rng.random(shape)
    scores = drawn.astype(np.float32)
    spec = DetectionSpec(boxes="corners", scores=coding, score_above=limit, max_findings=1000, nms_iou=1.0)

    found = BoxDecoder(spec, 3)(one_hot_boxes(60), scores)

    expected = found_by_loop(scores, coding, limit)
    assert [(round(x0 / 10), at) for (x0, *_), at in zip(found.boxes, found.classes, strict=True)] == [
        (row, at) for row, at, _ in expected
    ]
    np.testing.assert_allclose(found.scores, [value for *_, value in expected], rtol=1e-5)


@given(
    logits=st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32)), min_size=1, max_size=9)
)
def test_no_logit_is_too_large(logits: list[tuple[float, float]]) -> None:
    """Sigmoids and softmaxes at their ends stay numbers from 0 to 1."""
    scores = np.array([logits], dtype=np.float32)
    for coding, count in (("sigmoid", 2), ("softmax", 1)):
        spec = DetectionSpec(boxes="corners", scores=coding, score_above=0.0)  # type: ignore[arg-type]
        found = BoxDecoder(spec, count)(one_hot_boxes(len(logits)), scores)

        assert len(found) == len(logits) * count
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_at_most_a_thousand_candidates_are_looked_at() -> None:
    """A net that fires everywhere costs bounded time, and its best boxes are still found, ties in their order."""
    count = MAX_CANDIDATES + 500
    scores = np.full((1, count, 1), 0.5, dtype=np.float32)
    scores[0, -3:, 0] = 0.9
    spec = DetectionSpec(boxes="corners", max_findings=1000, nms_iou=1.0)

    found = BoxDecoder(spec, 1)(one_hot_boxes(count), scores)

    assert len(found) == MAX_CANDIDATES
    expected = [*range(count - 3, count), *range(MAX_CANDIDATES - 3)]
    assert [round(x0 / 10) for x0 in found.boxes[:, 0].tolist()] == expected


def test_a_probability_may_be_rounded_over_one() -> None:
    """INT8 does that; the score is one."""
    found = BoxDecoder(CORNERS, 1)(np.ones((1, 1, 4)), np.array([[[1.0005]]]))

    assert found.scores.tolist() == [1.0]


def test_nothing_found_is_an_empty_answer_of_the_same_form() -> None:
    """Good parts are the majority on a line."""
    found = BoxDecoder(CORNERS, 2)(np.ones((1, 9, 4)), np.zeros((1, 9, 2)))

    assert len(found) == 0
    assert (found.boxes.shape, found.scores.shape, found.classes.shape) == ((0, 4), (0,), (0,))
    assert [str(array.dtype) for array in (found.boxes, found.scores, found.classes)] == ["float32", "float32", "int64"]


def test_a_voted_box_is_the_weighted_mean_of_those_around_it() -> None:
    """By score and overlap, of its own class only; scores, classes and order stay (Gidaris and Komodakis, 2015)."""
    random = np.random.default_rng(8)
    centres, sizes = random.uniform(40, 60, (60, 2)), random.uniform(20, 60, (60, 2))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).astype(np.float32)[None]
    scores = random.uniform(0.1, 1, (1, 60, 2)).astype(np.float32)

    plain = BoxDecoder(CORNERS, 2)(boxes, scores)
    voted = BoxDecoder(dataclasses.replace(CORNERS, vote_iou=0.6), 2)(boxes, scores)

    assert len(plain) > 4
    assert voted.scores.tolist() == plain.scores.tolist()
    assert voted.classes.tolist() == plain.classes.tolist()
    for row in range(len(plain)):
        total, sums = 0.0, np.zeros(4)
        for at in range(60):
            overlap = float(box_iou(plain.boxes[row : row + 1], boxes[0, at : at + 1])[0, 0])
            if overlap >= 0.6:
                weight = overlap * float(scores[0, at, plain.classes[row]])
                total, sums = total + weight, sums + weight * boxes[0, at]
        assert voted.boxes[row] == pytest.approx(sums / total, abs=1e-3)
    assert np.abs(voted.boxes - plain.boxes).max() > 1


def test_a_box_without_an_area_is_voted_on_by_nobody() -> None:
    """It overlaps not even itself, and must not be lost for that."""
    boxes = np.array([[[5, 5, 5, 9], [20, 20, 40, 40]]], dtype=np.float32)
    scores = np.full((1, 2, 1), 0.5, dtype=np.float32)

    found = BoxDecoder(dataclasses.replace(CORNERS, vote_iou=0.6), 1)(boxes, scores)

    assert found.boxes.tolist() == boxes[0].tolist()


@pytest.mark.parametrize("seed", range(40))
def test_few_boxes_are_suppressed_as_many_are(seed: int) -> None:
    """The short way for a part with a few boxes and the one in blocks: the same kept, in the same order."""
    random = np.random.default_rng(seed)
    n = int(random.integers(0, 25))
    corners = random.integers(0, 12, (n, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + random.integers(0, 8, (n, 2))], axis=1).astype(np.float32)
    scores = random.choice([0.2, 0.5, 0.5, 0.9], n).astype(np.float32)
    classes = random.integers(0, 2, n)
    far = np.arange(100, 100 + 60, dtype=np.float32)[:, None] * np.float32(20) + np.array(
        [0, 0, 5, 5], dtype=np.float32
    )
    more = (
        np.concatenate([boxes, far]),
        np.concatenate([scores, np.full(60, 0.01, dtype=np.float32)]),
        np.concatenate([classes, np.zeros(60, dtype=np.int64)]),
    )

    few, many = suppress(boxes, scores, classes, 0.4), suppress(*more, 0.4)

    assert few.tolist() == [i for i in many.tolist() if i < n]
    assert suppress(boxes, scores, classes, 0.4, limit=3).tolist() == few.tolist()[:3]


@pytest.mark.parametrize("coding", ["distances", "corners", "centre"])
def test_few_boxes_are_decoded_as_many_are(coding: Any) -> None:
    """A part with a few findings takes a shorter way to the same numbers, to the last bit."""
    rng = np.random.default_rng(3)
    levels: tuple[PriorLevel, ...] = (
        PriorLevel(rows=8, columns=8, step_x_px=4.0, step_y_px=4.0, offset=0.5, sizes_px=((4.0, 4.0),)),
    )
    spec = DetectionSpec(
        boxes=coding, scores="sigmoid", levels=levels if coding == "distances" else (), score_above=0.3
    )
    decoder = BoxDecoder(spec, 3)
    for _ in range(200):
        boxes = (rng.normal(0, 9, (64, 4)) * rng.choice([1, 1e8], p=[0.95, 0.05])).astype(np.float32)
        at = np.sort(rng.choice(64 * 3, size=int(rng.integers(1, 24)), replace=False)).astype(np.int64)
        values = (rng.integers(3, 9, len(at)) / 9).astype(np.float32)
        few, many = decoder._few(boxes, at, values), decoder._many(boxes, at, values)

        for i in range(3):
            assert few[i].dtype == many[i].dtype
            assert np.array_equal(few[i], many[i])
