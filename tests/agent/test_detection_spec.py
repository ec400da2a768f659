"""The coding of boxes and scores in the manifest: strict, and the same after writing and reading."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import ClassSpec, DetectionSpec, Outputs, PriorLevel, Tiling
from agent.bundle.detection import detection_from_json, detection_to_json
from agent.bundle.manifest import PolicySpec, manifest_from_json, manifest_to_json
from agent.errors import BundleError
from tests.kit.bundles import kit_manifest

LEVEL = PriorLevel(rows=3, columns=4, step_x_px=8.0, step_y_px=8.0, sizes_px=((8.0, 8.0), (16.0, 4.0)))
SPEC = DetectionSpec(
    boxes="deltas",
    scores="softmax",
    levels=(LEVEL,),
    scale_xy=0.1,
    scale_wh=0.2,
    pixel_mm=0.05,
    tiling=Tiling(tile_px=640),
)


def detector(**changes: Any) -> Any:
    outputs = Outputs(boxes="boxes", scores="scores")
    return kit_manifest(**{"task": "detect", "outputs": outputs, "detection": SPEC, **changes})


# Bad input


def spoiled(path: str, value: Any) -> dict[str, Any]:
    """The JSON of `SPEC` with one value replaced; `levels.0.rows` is a path."""
    raw = detection_to_json(SPEC)
    place: Any = raw
    *names, last = path.split(".")
    for name in names:
        place = place[int(name)] if name.isdigit() else place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("boxes", ..., "boxes: missing"),
        ("boxes", "xyxy", "boxes: got 'xyxy', expected one of ['corners', 'centre', 'distances', 'deltas']"),
        ("boxes", None, "boxes: got None, expected text"),
        ("scores", ["sigmoid"], "scores: got ['sigmoid'], expected text"),
        ("nms", 0.5, "nms: unknown key (known here: boxes, scores"),
        ("levels", {}, "levels: got {}, expected a list"),
        ("levels", [], "levels: missing, boxes coded as deltas need their priors"),
        ("levels", [7], "levels: got 7, expected an object"),
        ("levels.0.rows", ..., "levels: rows: missing"),
        ("levels.0.rows", 2.0, "levels: rows: got 2.0, expected a whole number"),
        ("levels.0.rows", True, "levels: rows: got True, expected a whole number"),
        ("levels.0.rows", 0, "levels: rows: got 0, expected 1 to 4096"),
        ("levels.0.step_x_px", 0, "levels: step_x_px: got 0.0, expected 0.01 to 16384"),
        ("levels.0.offset", 1.5, "levels: offset: got 1.5, expected 0 to 1"),
        ("levels.0.sizes_px", [], "levels: sizes_px: how many: got 0, expected 1 to 64"),
        ("levels.0.sizes_px", [[8]], "levels: sizes_px: got (8.0,), expected width and height"),
        ("levels.0.sizes_px", [8, 8], "levels: sizes_px: got 8, expected a list"),
        ("levels.0.sizes_px", [[8, -8]], "levels: sizes_px: got -8.0, expected 0.01 to 16384"),
        ("levels.0.stride", 8, "levels: stride: unknown key"),
        ("scale_xy", 0, "scale_xy: got 0.0, expected 0.0001 to 10000"),
        ("scale_wh", "0.2", "scale_wh: got '0.2', expected a number"),
        ("scale_wh", 10**400, "scale_wh: got a number with too many digits"),
        ("score_above", 1.0, "score_above: got 1.0, expected 0 to 0.99"),
        ("score_above", math.nan, "score_above: got nan, expected 0 to 0.99"),
        ("nms_iou", math.inf, "nms_iou: got inf, expected 0 to 1"),
        ("vote_iou", 0.2, "vote_iou: got 0.2, expected 0.3 to 1"),
        ("vote_iou", math.nan, "vote_iou: got nan, expected 0.3 to 1"),
        ("max_findings", 0, "max_findings: got 0, expected 1 to 1000"),
        ("max_findings", None, "max_findings: got None, expected a whole number"),
        ("pixel_mm", 0, "pixel_mm: got 0.0, expected 1e-06 to 1000"),
        ("tiling", 640, "tiling: got 640, expected keys"),
        ("tiling", {}, "tiling: tile_px: missing"),
        ("tiling.overlap", 0.6, "tiling: overlap: got 0.6, expected 0 to 0.5"),
        ("tiling.tile_px", 16, "tiling: tile_px: got 16, expected 32 to 16384"),
        ("tiling.with_whole", 1, "tiling: with_whole: got 1, expected true or false"),
    ],
)
def test_a_spec_that_is_not_one_is_refused_with_its_key(path: str, value: Any, words: str) -> None:
    """What is read wrongly would be drawn, and judged, in the wrong place."""
    with pytest.raises(BundleError) as caught:
        detection_from_json(spoiled(path, value), "manifest.json: detection")

    assert caught.value.message.startswith(f"manifest.json: detection: {words}")


@pytest.mark.parametrize("raw", [None, 7, [], "corners", True])
def test_a_spec_that_is_no_object_is_refused(raw: Any) -> None:
    """With the place that it stands in."""
    with pytest.raises(BundleError, match=r"m\.onnx: detection: got .*, expected an object"):
        detection_from_json(raw, "m.onnx: detection")


@pytest.mark.parametrize("boxes", ["corners", "centre"])
def test_boxes_without_priors_have_none(boxes: Any) -> None:
    """Levels beside corners would be read by nobody: one of the two is wrong."""
    with pytest.raises(BundleError, match=f"boxes coded as {boxes} have no priors"):
        DetectionSpec(boxes=boxes, levels=(LEVEL,))


def test_only_deltas_are_scaled() -> None:
    """SSD's variances with FCOS's distances are a mistake of whoever wrote them."""
    with pytest.raises(BundleError, match="boxes coded as distances are not scaled"):
        DetectionSpec(boxes="distances", levels=(LEVEL,), scale_xy=0.1)


def test_a_spec_made_to_eat_the_memory_is_refused() -> None:
    """A bundle is a file that somebody sent."""
    level = PriorLevel(rows=4096, columns=4096, step_x_px=1, step_y_px=1, sizes_px=((8.0, 8.0),))

    with pytest.raises(BundleError, match="priors in all"):
        DetectionSpec(boxes="deltas", levels=(level,))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"detection": None}, "detection: missing, a detector's boxes and scores can't be read without it"),
        ({"task": "classify", "outputs": Outputs(logits="logits")}, "detection: a classifier has no boxes"),
        ({"outputs": Outputs(boxes="boxes")}, "outputs.boxes, outputs.scores: a detector needs both"),
        ({"policy": PolicySpec(defect_above=0.5, review_above=0.01)}, "policy.review_above: got 0.01, under detection"),
        ({"classes": ()}, "classes: got 0, expected at least 1"),
    ],
)
def test_a_manifest_whose_task_and_keys_contradict_is_refused(changes: dict[str, Any], words: str) -> None:
    """Before the graph is opened."""
    with pytest.raises(BundleError) as caught:
        detector(**changes)

    assert words in caught.value.message


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e9])
def test_a_smallest_size_is_a_length(value: float) -> None:
    """NaN would compare as never too small, or always."""
    with pytest.raises(BundleError, match="classes: pit: min_size_mm"):
        ClassSpec(name="pit", severity="minor", min_size_mm=value)


def test_a_classifier_has_no_smallest_sizes() -> None:
    """It would look as if they held."""
    classes = (ClassSpec(name="good", severity="ok"), ClassSpec(name="pit", severity="minor", min_size_mm=0.5))

    with pytest.raises(BundleError, match="min_size_mm: a classifier knows no sizes"):
        kit_manifest(classes=classes)


# Written and read again


pixels = st.floats(0.01, 16384)
levels = st.builds(
    PriorLevel,
    rows=st.integers(1, 100),
    columns=st.integers(1, 100),
    step_x_px=pixels,
    step_y_px=pixels,
    offset=st.floats(0, 1),
    sizes_px=st.lists(st.tuples(pixels, pixels), min_size=1, max_size=3).map(tuple),
)
tilings = st.builds(Tiling, tile_px=st.integers(32, 16384), overlap=st.floats(0, 0.5), with_whole=st.booleans())
specs = st.builds(
    DetectionSpec,
    boxes=st.sampled_from(["deltas"]),
    scores=st.sampled_from(["probability", "sigmoid", "softmax"]),
    levels=st.lists(levels, min_size=1, max_size=3).map(tuple),
    scale_xy=st.floats(1e-4, 1e4),
    scale_wh=st.floats(1e-4, 1e4),
    score_above=st.floats(0, 0.99),
    nms_iou=st.floats(0, 1),
    max_findings=st.integers(1, 1000),
    vote_iou=st.none() | st.floats(0.3, 1),
    pixel_mm=st.none() | st.floats(1e-6, 1000),
    tiling=st.none() | tilings,
)


@given(specs)
def test_a_spec_comes_back_as_it_was_written(spec: DetectionSpec) -> None:
    """Also from an ONNX file's metadata, where the same JSON stands."""
    assert detection_from_json(json.loads(json.dumps(detection_to_json(spec)))) == spec


def test_defaults_may_be_left_out() -> None:
    """Whole numbers do where numbers are meant."""
    spec = detection_from_json({"boxes": "corners", "nms_iou": 1})

    assert spec == DetectionSpec(boxes="corners", nms_iou=1.0)
    assert isinstance(spec.nms_iou, float)


def test_a_detectors_manifest_comes_back_as_it_was_written() -> None:
    """One kind of defect is enough for boxes, and it has its smallest size."""
    manifest = detector(classes=(ClassSpec(name="pit", severity="critical", min_size_mm=0.4),))

    assert manifest_from_json(manifest_to_json(manifest)) == manifest


def test_a_classifiers_manifest_says_nothing_of_boxes() -> None:
    """Agents from before detection read it, and its bytes stay what they were."""
    written = manifest_to_json(kit_manifest())

    assert b"detection" not in written
    assert b"min_size_mm" not in written


def test_priors_are_counted_over_all_levels() -> None:
    """What N must be."""
    assert DetectionSpec(boxes="deltas", levels=(LEVEL, LEVEL)).n_priors == 2 * 3 * 4 * 2
