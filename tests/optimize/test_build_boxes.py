"""A detector judged by outlined defects, from the command line to verdicts of the agent on its bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.bundle import Bundle, golden_outputs, is_as_recorded, open_bundle
from agent.bundle.detection import DetectionSpec, PriorLevel, detection_to_json
from agent.config import EngineConfig
from agent.engines import open_engine
from agent.frame import Frame, Part, Stamp
from agent.inspection import Inspection, Inspector
from tests.kit.commands import Ran, run_command
from tests.kit.planted_detectors import COLOURS, SIDE, planted, squares, with_metadata, write_squares

NAMES = "{0: 'red', 1: 'green', 2: 'blue'}"
INT8 = "quantize: {cpu_graph: int8}\n"
OWN = DetectionSpec(
    boxes="distances",
    scores="sigmoid",
    levels=tuple(
        PriorLevel(rows=SIDE // s, columns=SIDE // s, step_x_px=s, step_y_px=s, sizes_px=((s, s),)) for s in (8, 16, 32)
    ),
)


def build(tmp_path: Path, model: Any, recipe: str = INT8, *more: str, **pictures: Any) -> Ran:
    """The command in an empty folder, on squares that are outlined."""
    data = write_squares(tmp_path / "squares", {"calib": 12, "val": 12}, **pictures)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "defect-opt.yaml").write_text(recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        return run_command("optimize.cli.build", "--int8", "--model", "m.onnx", "--data", data, "--calib", data, *more)


def own() -> Any:
    metadata = {"task": "detect", "classes": json.dumps(COLOURS), "detection": json.dumps(detection_to_json(OWN))}
    return with_metadata(planted("own"), **metadata)


def ultralytics() -> Any:
    return with_metadata(planted("yolov8"), names=NAMES, stride="32", task="detect")


def judged(bundle: Bundle, picture: Any) -> Inspection:
    """One picture, by the agent."""
    engine = open_engine(bundle, EngineConfig())
    try:
        part = Part(id="p", trigger="test", sequence=1, triggered=Stamp.now())
        frame = Frame(part=part, image=picture, camera="c", source="s", sequence=1, captured=Stamp.now())
        return Inspector(bundle, engine).inspect(frame)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("detector: {form: corners}\n", "write `detector: {form: centre}` in defect-opt.yaml"),
        ("preprocess: {colour: bgr}\n", "write `preprocess: {colour: rgb}` in defect-opt.yaml"),
        ("classes: [{name: red, severity: major, min_size_mm: 1}]\n", "write detector: {pixel_mm: …}"),
        ("detector: {pixel_mm: 0}\n", "detector.pixel_mm: got 0"),
        ("detector: {tile_overlap: 0.6}\n", "detector.tile_overlap: got 0.6"),
        ("detector: {shape: yolo}\n", "detector.shape: unknown key"),
        (
            "detector: {score_above: 0.3}\n",
            "defect-opt.yaml: policy.review_above: got 0.2, under detection.score_above",
        ),
        ("detector: {form: yolov9}\n", "detector.form: got 'yolov9', expected one of auto, yolov5"),
    ],
)
def test_a_detector_that_would_be_read_wrongly_is_refused(tmp_path: Path, recipe: str, expected: str) -> None:
    """Before anything is quantized, and the sentence says what to write."""
    ran = build(tmp_path, ultralytics(), recipe)

    assert ran.code == 2
    assert expected in ran.err
    assert not list(tmp_path.glob("*.defect"))


def test_boxes_of_classes_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    """Some of them, that is: a set of other classes altogether gives no figures, and a warning."""
    names = '["red", "green", "purple"]'
    model = with_metadata(own(), classes=names, detection=json.dumps(detection_to_json(OWN)))

    ran = build(tmp_path, model)

    assert ran.code == 2
    assert "got boxes of blue, the model knows green, purple, red" in ran.err


def test_a_set_of_other_classes_altogether_gives_no_figures(tmp_path: Path) -> None:
    """A bought detector and parts of one's own: INT8 is still judged by what it keeps."""
    names = '["cat", "dog", "cow"]'
    model = with_metadata(own(), classes=names, detection=json.dumps(detection_to_json(OWN)))

    ran = build(tmp_path, model, INT8, "--json")

    assert ran.code == 0, ran.err
    assert ran.json["metrics"]["fp32"] == {}
    assert ran.json["metrics"]["int8"]["kept"]["share"] == 1.0
    assert any("which the model does not know: there will be no mAP" in text for text in ran.json["warnings"])


@pytest.mark.parametrize(("make", "boxes"), [(own, "distances"), (ultralytics, "centre")])
def test_both_graphs_are_judged_by_the_outlined_defects(tmp_path: Path, make: Any, boxes: str) -> None:
    """Through the agent's own code; the drop is in points of mAP50, and the bundle opens on the device."""
    ran = build(tmp_path, make(), INT8, "--json")

    assert ran.code == 0, ran.err
    fp32, int8 = ran.json["metrics"]["fp32"], ran.json["metrics"]["int8"]
    assert fp32["map50"] == pytest.approx(1.0)
    assert fp32["map50_95"] > 0.9
    assert (fp32["image_escape_rate"], fp32["errors"]) == (0.0, 0)
    assert int8["map50"] > 0.95
    assert int8["kept"]["share"] >= 0.9
    assert ran.json["drop_points"] == pytest.approx(100 * (fp32["map50"] - int8["map50"]), abs=1e-4)
    bundle = open_bundle(tmp_path / "m-1.0.0.defect")
    assert bundle.manifest.detection is not None
    assert bundle.manifest.detection.boxes == boxes
    assert bundle.manifest.metrics["int8"]["map50"] == int8["map50"]
    picture, truth = squares(np.random.default_rng(9))
    seen = judged(bundle, picture)
    assert seen.fault is None
    found = sorted((f.class_name, *np.round(f.box_px or ()).tolist()) for f in seen.findings if f.score > 0.5)
    assert found == sorted((COLOURS[kind], x0, y0, x1 - x0, y1 - y0) for kind, x0, y0, x1, y1 in truth)


def test_goldens_record_what_is_read_and_an_engine_finds_it_again(tmp_path: Path) -> None:
    """A device checks itself by them; raw outputs would be a megabyte per picture."""
    assert build(tmp_path, own()).code == 0
    bundle = open_bundle(tmp_path / "m-1.0.0.defect")
    goldens = bundle.goldens()

    assert len(goldens) == 12
    assert set(goldens[0].outputs) == {"fp32", "cpu", "trt"}
    assert set(goldens[0].outputs["cpu"]) == {"detections"}
    for kind in ("fp32", "cpu"):
        engine = open_engine(bundle, EngineConfig(graph=kind))
        try:
            for golden in goldens:
                outputs = dict(engine.infer(golden.image[None]))
                assert is_as_recorded(golden, kind, outputs, bundle.manifest)
                assert len(golden_outputs(outputs, bundle.manifest)["detections"]) > 0
        finally:
            engine.close()


def test_the_recipes_words_about_findings_stand_in_the_bundle(tmp_path: Path) -> None:
    """Limits, the pitch of a pixel, tiles and smallest sizes are the line's, not the model's."""
    recipe = (
        "detector: {score_above: 0.1, nms_iou: 0.4, max_findings: 7, pixel_mm: 0.05, tile_px: 512, tile_overlap: 0.1}\n"
        "classes: [{name: red, severity: critical, min_size_mm: 0.3}]\n"
    )

    ran = build(tmp_path, ultralytics(), INT8 + recipe)

    assert ran.code == 0, ran.err
    manifest = open_bundle(tmp_path / "m-1.0.0.defect").manifest
    spec = manifest.detection
    assert spec is not None
    assert spec.tiling is not None
    assert (spec.score_above, spec.nms_iou, spec.max_findings, spec.pixel_mm) == (0.1, 0.4, 7, 0.05)
    assert (spec.tiling.tile_px, spec.tiling.overlap, spec.tiling.with_whole) == (512, 0.1, True)
    assert next((c.name, c.severity, c.min_size_mm) for c in manifest.classes) == ("red", "critical", 0.3)
    assert manifest.provenance["recipe"]["detector"]["pixel_mm"] == 0.05


def test_pictures_of_another_shape_are_letterboxed_as_the_maker_does(tmp_path: Path) -> None:
    """Boxes come back in pixels of the camera's picture."""
    ran = build(tmp_path, ultralytics(), INT8, "--json", size=(2 * SIDE, 48))

    assert ran.code == 0, ran.err
    assert ran.json["metrics"]["fp32"]["map50"] == pytest.approx(1.0)
    bundle = open_bundle(tmp_path / "m-1.0.0.defect")
    assert (bundle.manifest.input.resize, bundle.manifest.input.pad_value) == ("letterbox", 114)
    picture, truth = squares(np.random.default_rng(4), size=(2 * SIDE, 48))
    assert picture.shape == (48, 2 * SIDE, 3)
    seen = judged(bundle, picture)
    found = sorted(np.round(f.box_px or ()).tolist() for f in seen.findings if f.score > 0.5)
    assert found == sorted([x0, y0, x1 - x0, y1 - y0] for _, x0, y0, x1, y1 in truth)


def test_the_report_shows_precision_misses_and_what_is_kept(tmp_path: Path) -> None:
    """And the next step, now that boxes can be judged."""
    ran = build(tmp_path, ultralytics())

    assert ran.code == 0, ran.err
    for words in ("mAP50 on 12 val", "AP50 red", "mAP50-95", "defective parts passed", "detections kept"):
        assert words in ran.out
    assert "Next: defect-opt evaluate m-1.0.0.defect" in ran.out
    assert "read as yolov8: boxes are centre, scores probability" in ran.out


def test_a_budget_is_one_of_map_points(tmp_path: Path) -> None:
    """Not of detections kept, of which a good INT8 loses more: scores near a limit waver."""
    ran = build(tmp_path, own(), INT8 + "max_drop_points: 0.5\n", "--json")

    assert ran.code == 0, ran.err
    assert ran.json["gate"]["passed"]
    assert ran.json["drop_points"] <= 0.5
    assert ran.json["targets"]["trt"]["map50"] > 0.95


def test_an_unreadable_val_picture_is_counted_and_named(tmp_path: Path) -> None:
    """It is stopped on the line, and must not make the figures better."""
    data = write_squares(tmp_path / "squares", {"calib": 12, "val": 12})
    broken = data / "images" / "val_003.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "m.onnx").write_bytes(own().SerializeToString())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        arguments = ("--int8", "--model", "m.onnx", "--data", data, "--calib", data, "--json")
        ran = run_command("optimize.cli.build", *arguments)

    assert ran.code == 0, ran.err
    assert ran.json["metrics"]["fp32"]["errors"] == 1
    assert any("val_003.png" in text for text in ran.json["warnings"])
