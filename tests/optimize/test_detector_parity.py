"""A wrong guess about a detector is caught on calibration pictures: by outlined defects, or by the mirrored picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from optimize.box_readers import read_boxes
from optimize.errors import ModelError
from optimize.quantize.detector_parity import ReadingCheck, check_reading
from optimize.quantize.model import read_model
from optimize.recipe import DetectorRecipe, PreprocessRecipe
from tests.kit.planted_detectors import COLOURS, SIDE, planted, write_squares

UNIT = PreprocessRecipe()
BYTES_BGR = PreprocessRecipe(scale=1.0, colour="bgr")


def check(
    tmp_path: Path,
    export: str,
    preprocess: PreprocessRecipe = UNIT,
    *,
    size: tuple[int, int] = (SIDE, SIDE),
    outlined: bool = True,
    **reads: Any,
) -> ReadingCheck:
    """What the check says of an export that is read and fed so."""
    (tmp_path / "m.onnx").write_bytes(planted(export).SerializeToString())
    how = DetectorRecipe(**reads)
    model = read_model(tmp_path / "m.onnx", preprocess, classes=3, detector=how)
    samples = read_boxes(write_squares(tmp_path / "squares", {"calib": 16}, size=size)).samples
    if not outlined:
        samples = tuple(dataclasses.replace(sample, boxes=None) for sample in samples)
    found = check_reading(model, samples, COLOURS, how)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("export", "preprocess", "reads", "remedy"),
    [
        ("yolov8", UNIT, {"form": "corners"}, "detector: {form: centre}"),
        ("yolov10", UNIT, {"form": "centre"}, "detector: {form: corners}"),
        ("yolox", BYTES_BGR, {"form": "centre"}, "detector: {form: yolox}"),
        ("yolov8", PreprocessRecipe(colour="bgr"), {}, "preprocess: {colour: rgb}"),
        ("yolox", PreprocessRecipe(scale=1.0), {}, "preprocess: {colour: bgr}"),
        ("yolov8", PreprocessRecipe(scale=1.0), {}, "preprocess: {scale: 1/255}"),
        ("yolox", PreprocessRecipe(colour="bgr"), {}, "preprocess: {scale: 1}"),
    ],
)
def test_a_reading_that_misses_what_another_one_finds_is_refused(
    tmp_path: Path, export: str, preprocess: PreprocessRecipe, reads: dict[str, Any], remedy: str
) -> None:
    """By the outlined defects on the calibration pictures; the hint is what to write."""
    with pytest.raises(ModelError) as caught:
        check(tmp_path, export, preprocess, **reads)

    assert "outlined defects on calibration pictures" in caught.value.message
    assert f"`{remedy}`" in caught.value.message
    assert remedy in (caught.value.hint or "")


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_a_picture_that_is_fitted_otherwise_than_trained_is_refused(tmp_path: Path, resize: Any) -> None:
    """Squares on a picture of 8 : 3 that is stretched are no squares any more."""
    preprocess = PreprocessRecipe(resize=resize, pad_value=0)
    if resize == "letterbox":
        found = check(tmp_path, "yolov8", preprocess, size=(2 * SIDE, 48))
        assert (found.share, found.warnings) == (1.0, ())
        assert dict(found.tried)["preprocess: {resize: stretch}"] != 1.0
        return

    with pytest.raises(ModelError, match=r"preprocess: \{resize: letterbox\}"):
        check(tmp_path, "yolov8", preprocess, size=(2 * SIDE, 48))


def test_the_recipe_may_insist(tmp_path: Path) -> None:
    """The check can be wrong, and the user can be right: it is a warning then, with both figures."""
    found = check(tmp_path, "yolov8", form="corners", check="warn")

    assert len(found.warnings) == 1
    assert "`detector: {form: centre}` in defect-opt.yaml would be right" in found.warnings[0]


@pytest.mark.parametrize(("export", "preprocess"), [("yolov8", UNIT), ("yolov5", UNIT), ("yolov10", UNIT)])
@pytest.mark.parametrize("outlined", [True, False])
def test_the_right_reading_passes(tmp_path: Path, export: str, preprocess: PreprocessRecipe, outlined: bool) -> None:
    """No alternative is preferred for nothing."""
    found = check(tmp_path, export, preprocess, outlined=outlined)

    assert (found.n, found.share, found.warnings) == (16, 1.0, ())
    assert (found.boxes > 0) == outlined
    assert found.tried


def test_boxes_that_do_not_follow_the_mirrored_picture_are_refused_without_any_outline(tmp_path: Path) -> None:
    """A centre that is taken for a corner moves the wrong way."""
    with pytest.raises(ModelError) as caught:
        check(tmp_path, "yolov8", outlined=False, form="corners")

    assert "come again in the mirrored one, with `detector: {form: centre}` 100%" in caught.value.message


def test_a_wrong_feed_without_outlines_is_a_warning(tmp_path: Path) -> None:
    """A net that is fed wrongly may be consistent all the same: it is said, and not decided."""
    found = check(tmp_path, "yolox", PreprocessRecipe(colour="bgr"), outlined=False)

    assert found.share is None
    assert any("preprocess: {scale: 1}" in warning for warning in found.warnings)


def test_a_net_that_finds_nothing_in_any_way_is_refused(tmp_path: Path) -> None:
    """Mean and deviation of another net; nothing that is tried helps, and a bundle of it would pass every part."""
    with pytest.raises(ModelError, match="finds none of 48 outlined defects") as caught:
        check(tmp_path, "yolov8", PreprocessRecipe(mean=(0.9,), std=(100.0,)))

    assert "check: warn" in (caught.value.hint or "")


def test_logits_that_are_taken_for_probabilities_are_refused(tmp_path: Path) -> None:
    """Every score would be out of range on the line: an error for every part."""
    (tmp_path / "m.onnx").write_bytes(planted("own").SerializeToString())
    how = DetectorRecipe(form="corners", scores="probability")
    model = read_model(tmp_path / "m.onnx", classes=3, detector=how)
    samples = read_boxes(write_squares(tmp_path / "squares", {"calib": 8})).samples

    with pytest.raises(ModelError) as caught:
        check_reading(model, samples, COLOURS, how)

    assert "expected probabilities from 0 to 1" in caught.value.message
    assert "detector: {scores: sigmoid}" in (caught.value.hint or "")
