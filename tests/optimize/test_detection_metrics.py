"""Average precision, held to the reference implementation and to cases that can be counted by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import pytest

from optimize.detection_metrics import AREAS, ImageBoxes, MeanPrecision, map50_statistic, mean_precision

CLASSES = 4


def image(truth: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> ImageBoxes:
    """Truth as class, left, top, right, bottom, ignored; found as class, left, top, right, bottom, score."""
    t, f = np.array(truth, dtype=np.float64).reshape(-1, 6), np.array(found, dtype=np.float64).reshape(-1, 6)
    return ImageBoxes(
        truth=t[:, 1:5],
        truth_classes=t[:, 0].astype(np.int64),
        is_ignored=t[:, 5].astype(np.bool_),
        found=f[:, 1:5],
        scores=f[:, 5],
        found_classes=f[:, 0].astype(np.int64),
    )


def random_images(seed: int) -> list[ImageBoxes]:
    """Crowds, empty images, equal scores, many detections, and classes that are nowhere outlined or nowhere found."""
    rng = np.random.default_rng(seed)
    absent, unfound = rng.integers(0, CLASSES, 2)
    levels = rng.choice([3, 20, 1000])
    images = []
    for _ in range(int(rng.integers(1, 15))):
        truth, found = [], []
        for _ in range(int(rng.integers(0, 9))):
            corner, side = rng.integers(0, 200, 2), rng.integers(4, 180, 2)
            cls = int(rng.integers(0, CLASSES))
            if cls != absent:
                truth.append([cls, *corner, *(corner + side), rng.random() < 0.2])
        for cls, x0, y0, x1, y1, _ in truth * int(rng.choice([1, 1, 1, 40])):
            if cls != unfound and rng.random() < 0.8:
                moved = np.array([x0, y0, x1, y1]) + rng.integers(-12, 13, 4)
                if moved[2] > moved[0] and moved[3] > moved[1]:
                    found.append([cls, *moved, rng.integers(1, levels + 1) / levels])
        for _ in range(int(rng.integers(0, 8))):
            corner, side = rng.integers(0, 200, 2), rng.integers(4, 180, 2)
            found.append([rng.integers(0, CLASSES), *corner, *(corner + side), rng.integers(1, levels + 1) / levels])
        images.append(image(truth, found))
    return images


def reference(images: Sequence[ImageBoxes]) -> dict[str, list[float]]:
    """The same by pycocotools: the mean of each range of areas, and each class; -1 for nothing outlined."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    notes: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    for i, entry in enumerate(images, start=1):
        for cls, (x0, y0, x1, y1), crowd in zip(entry.truth_classes, entry.truth, entry.is_ignored, strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": int(crowd)}
            notes.append({"id": len(notes) + 1, "image_id": i, "category_id": int(cls) + 1, **box})
        for cls, (x0, y0, x1, y1), score in zip(entry.found_classes, entry.found, entry.scores, strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}
            results.append({"image_id": i, "category_id": int(cls) + 1, **box})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1} for i in range(len(images))],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(CLASSES)],
            "annotations": notes,
        }
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(results) if results else _nothing(truth.dataset), "bbox")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"]  # (thresholds, recalls, classes, areas, detections at most)

    def mean(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
        known = values[values > -1]
        return float(known.mean()) if known.size else -1.0

    return {
        "map50": [mean(precision[0, :, :, 0, -1])],
        "map": [mean(precision[:, :, :, i, -1]) for i in range(len(AREAS))],
        "ap50": [mean(precision[0, :, k, 0, -1]) for k in range(CLASSES)],
        "ap": [mean(precision[:, :, k, 0, -1]) for k in range(CLASSES)],
    }


def _nothing(dataset: dict[str, object]) -> object:
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {**dataset, "annotations": []}
    empty.createIndex()
    return empty


def ours(found: MeanPrecision) -> dict[str, list[float]]:
    def plain(value: float | None) -> float:
        return -1.0 if value is None else value

    return {
        "map50": [plain(found.map50)],
        "map": [plain(found.map50_95), *(plain(found.map_by_area[name]) for name in AREAS if name != "all")],
        "ap50": [plain(entry.ap50) for entry in found.per_class],
        "ap": [plain(entry.ap50_95) for entry in found.per_class],
    }


@pytest.mark.parametrize("seed", range(50))
def test_every_figure_equals_the_reference_implementation(seed: int) -> None:
    """A figure called map50 is compared with other people's; it must be theirs."""
    pytest.importorskip("pycocotools", reason="needs pycocotools (pip install defect-agent[dev])")
    images = random_images(seed)

    found, expected = ours(mean_precision(images, CLASSES)), reference(images)

    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-6), name


def test_nothing_outlined_gives_no_figure() -> None:
    """A zero would read as a bad model, where nothing is known."""
    found = mean_precision([image([], [[0, 1, 1, 5, 5, 0.9]])], 2)

    assert (found.map50, found.map50_95) == (None, None)
    assert [entry.ap50 for entry in found.per_class] == [None, None]


def test_nothing_found_is_zero() -> None:
    """Here something is known: all was missed."""
    found = mean_precision([image([[0, 1, 1, 5, 5, 0]], []), image([], [])], 2)

    assert (found.map50, found.map50_95) == (0.0, 0.0)
    assert [entry.support for entry in found.per_class] == [1, 0]


def test_a_false_box_on_a_good_part_costs_precision() -> None:
    """Good parts are most of a line; leaving them out would hide every false alarm."""
    right, good = image([[0, 0, 0, 10, 10, 0]], [[0, 0, 0, 10, 10, 0.5]]), image([], [[0, 0, 0, 10, 10, 0.9]])

    assert mean_precision([right], 1).map50 == pytest.approx(1.0)
    assert mean_precision([right, good], 1).map50 == pytest.approx(0.5)


def test_weighing_images_equals_showing_them_as_often() -> None:
    """The bootstrap weighs what was matched once; it must give what matching again would give."""
    rng = np.random.default_rng(0)
    images = random_images(3) + random_images(5)
    # Between equal scores of different boxes the order decides, and copies would come in another one.
    images = [dataclasses.replace(entry, scores=rng.random(len(entry.scores))) for entry in images]
    weights = rng.integers(0, 4, (6, len(images))).astype(np.float64)

    found = map50_statistic(images, CLASSES)(weights)

    expected = [
        mean_precision([entry for entry, n in zip(images, row, strict=True) for _ in range(int(n))], CLASSES).map50
        for row in weights
    ]
    assert found == pytest.approx([np.nan if value is None else value for value in expected], abs=1e-9)
