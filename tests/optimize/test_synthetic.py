"""Synthetic parts: the same seed gives the same parts, each shows what its label says, and bad wishes are refused."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from agent.bundle.manifest import InputSpec
from agent.bundle.preprocess import Preprocessor
from optimize.dataset import read_dataset, read_image
from optimize.errors import DataError
from optimize.synthetic import BALANCED, CLASSES, LINE, generate, write_image, write_parts

MODEL = Path(__file__).resolve().parents[2] / "configs" / "demo" / "demo_parts.onnx"


@pytest.mark.parametrize("size_px", [0, 63, 5000, -200])
def test_a_size_out_of_range_is_refused(size_px: int) -> None:
    """Under 64 pixels a pit is no pixel any more."""
    with pytest.raises(DataError, match="expected 64 to 2048"):
        list(generate(1, seed=0, size_px=size_px))


@pytest.mark.parametrize("mix", [{}, {"ok": 0.5}, {"ok": 1.5, "pit": -0.5}, {"ok": 0.5, "rust": 0.5}])
def test_shares_that_are_none_are_refused(mix: dict[str, float]) -> None:
    """A mix that does not add up would silently give other shares than asked for."""
    with pytest.raises(DataError, match="add up to 1"):
        list(generate(1, seed=0, mix=mix))


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    """A set with a split that nobody reads looks smaller than it is."""
    with pytest.raises(DataError, match="training"):
        write_parts(tmp_path, {"training": 3}, seed=0)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """In one sentence, with the path."""
    (tmp_path / "parts").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        write_parts(tmp_path / "parts", {"train": 1}, seed=0)


def test_the_same_seed_gives_the_same_parts_however_many_are_asked_for() -> None:
    """The demo's truth is made anew from the seed; part 3 must not depend on how many follow."""
    few = list(generate(4, seed=11, size_px=96))
    many = list(generate(9, seed=11, size_px=96))

    assert [p.label for p in few] == [p.label for p in many[:4]]
    assert all(np.array_equal(a.image, b.image) and a.box_px == b.box_px for a, b in zip(few, many, strict=False))


def test_another_seed_gives_other_parts() -> None:
    """A model is judged on parts that it has not seen."""
    pairs = zip(generate(5, seed=1, size_px=64), generate(5, seed=2, size_px=64), strict=True)

    assert not any(np.array_equal(a.image, b.image) for a, b in pairs)


def test_classes_come_in_the_shares_that_were_asked_for() -> None:
    """Forty parts of a line are mostly good, and each defect is among them."""
    balanced = Counter(p.label for p in generate(100, seed=5, size_px=64, mix=BALANCED))
    line = Counter(p.label for p in generate(40, seed=5, size_px=64, mix=LINE))

    assert balanced == dict.fromkeys(CLASSES, 20)
    assert line == {"ok": 24, "scratch": 4, "pit": 4, "dent": 4, "stain": 4}


@pytest.mark.parametrize("size_px", [64, 200, 333])
def test_a_box_surrounds_what_is_wrong_and_a_good_part_has_none(size_px: int) -> None:
    """Whoever draws the boxes, or trains on them, needs them inside the picture."""
    for part in generate(20, seed=4, size_px=size_px):
        assert part.image.shape == (size_px, size_px, 3)
        assert part.image.dtype == np.uint8
        assert (part.box_px is None) == (part.label == "ok")
        if part.box_px is not None:
            x, y, width, height = part.box_px
            assert min(x, y) >= 0
            assert min(width, height) >= 1
            assert max(x + width, y + height) <= size_px


def test_a_defect_differs_from_its_surroundings_more_than_the_metal_does() -> None:
    """A label that nobody could see would be noise in the training."""
    visible = []
    for part in generate(60, seed=6, mix={"stain": 0.5, "dent": 0.5}):
        assert part.box_px is not None
        x, y, width, height = part.box_px
        grey = part.image.astype(float).mean(axis=2)
        inside = grey[y : y + height, x : x + width]
        rows = np.concatenate([grey[: max(y, 1)].mean(axis=0), grey[min(y + height, 199) :].mean(axis=0)])
        visible.append(float(np.percentile(np.abs(inside - np.median(rows)), 95)) / float(grey.std()))

    assert float(np.median(visible)) > 1.2


def test_a_written_set_reads_back_with_its_splits_classes_and_boxes(tmp_path: Path) -> None:
    """It is an ordinary data set: every command takes it."""
    write_parts(tmp_path, {"train": 20, "calib": 5, "val": 5, "test": 10}, seed=7, size_px=64)

    dataset = read_dataset(tmp_path)
    with (tmp_path / "boxes.csv").open(newline="") as file:
        boxes = list(csv.DictReader(file))

    assert dict(dataset.splits) == {"train": 20, "calib": 5, "val": 5, "test": 10}
    assert dataset.classes == tuple(sorted(CLASSES))
    assert {row["file"] for row in boxes} == {s.file for s in dataset if s.label != "ok"}
    assert read_image(dataset.samples[0].path).shape == (64, 64, 3)


def test_a_written_picture_is_nearly_the_one_that_was_made(tmp_path: Path) -> None:
    """JPEG at 95 changes a pixel by a few levels at most on average, or defects would vanish."""
    (part,) = generate(1, seed=8)
    write_image(tmp_path / "new" / "a.jpg", part.image)

    difference = read_image(tmp_path / "new" / "a.jpg").astype(int) - part.image.astype(int)
    assert float(np.abs(difference).mean()) < 3


def test_the_committed_model_is_small_and_knows_parts_that_it_has_not_seen() -> None:
    """A generator that was changed without a new model would make the demo look foolish: tools/demo_model.py."""
    session = onnxruntime.InferenceSession(MODEL.read_bytes(), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    preprocess = Preprocessor(InputSpec(width_px=taken.shape[2], height_px=taken.shape[1]))
    classes = sorted(CLASSES)

    right = 0
    for part in generate(100, seed=4321):
        logits = session.run(["logits"], {taken.name: preprocess(part.image)[0]})[0]
        right += classes[int(np.argmax(logits))] == part.label

    assert MODEL.stat().st_size <= 1_000_000
    assert taken.type == "tensor(uint8)"
    assert right >= 90
