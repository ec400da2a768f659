"""YOLO exports of every maker: recognized, fed as their makers feed them, and decoded as their makers describe it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from agent.bundle import InputSpec, fit
from agent.bundle.boxes import BoxDecoder, Detections
from agent.bundle.detection import DetectionSpec, PriorLevel, detection_to_json
from optimize.errors import ModelError
from optimize.quantize.model import FloatModel, bytes_from_model, read_model
from optimize.quantize.parity import check_adoption
from optimize.recipe import DetectorRecipe, PreprocessRecipe
from tests.kit.planted_detectors import COLOURS, FORMS, SIDE, planted, squares, with_metadata

NAMES = "{0: 'red', 1: 'green', 2: 'blue'}"
ULTRALYTICS = {"names": NAMES, "stride": "32", "task": "detect", "imgsz": f"[{SIDE}, {SIDE}]"}
UNIT = PreprocessRecipe()
BYTES_BGR = PreprocessRecipe(scale=1.0, colour="bgr")
OWN = DetectionSpec(
    boxes="distances",
    scores="sigmoid",
    levels=tuple(
        PriorLevel(rows=SIDE // s, columns=SIDE // s, step_x_px=s, step_y_px=s, sizes_px=((s, s),)) for s in (8, 16, 32)
    ),
    score_above=0.3,
    max_findings=50,
)


def written(path: Path, model: Any) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def own(**changes: Any) -> Any:
    """Our own export, with the metadata that it carries."""
    found = {"task": "detect", "classes": json.dumps(COLOURS), "detection": json.dumps(detection_to_json(OWN))}
    return with_metadata(planted("own"), **{**found, **changes})


def detections(model: FloatModel, picture: NDArray[np.uint8], **limits: Any) -> Detections:
    """Of a picture (H, W, 3) BGR, by the adopted graph and the agent's decoder."""
    assert model.detection is not None
    session = onnxruntime.InferenceSession(bytes_from_model(model.proto), providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["boxes", "scores"], {model.input.name: fit(picture, model.input)[None]})
    return BoxDecoder(dataclasses.replace(model.detection, **limits), model.count)(boxes, scores)


def adopted(tmp_path: Path, export: str, **reads: Any) -> FloatModel:
    given = None if export.startswith("own") else BYTES_BGR if export.startswith("yolox") else UNIT
    model = own() if export == "own" else planted(export.removesuffix(" without metadata"))
    return read_model(written(tmp_path / "m.onnx", model), given, classes=3, detector=DetectorRecipe(**reads))


@pytest.mark.parametrize(
    ("export", "reads", "expected"),
    [
        ("yolov8", {"form": "yolov5"}, "no form of a yolov5 (detector.form in defect-opt.yaml) for 3 classes"),
        ("yolov5", {"form": "yolov8"}, "no form of a yolov8"),
        ("yolov5", {"form": "ssd"}, "no form of a ssd"),
        ("yolov5", {"form": "auto", "score_above": 0.99, "tile_px": 31}, "tile_px"),
        ("own", {"form": "ssd"}, "says itself how its boxes and scores are read"),
        ("own", {"scores": "softmax"}, "says itself how its boxes and scores are read"),
        ("own without metadata", {"form": "ssdlite"}, "gives 84 boxes, a ssdlite of 64 x 64 px has 144"),
        ("own without metadata", {"form": "ssd"}, "priors of ssd are known at 300 x 300 px, it takes 64 x 64"),
        ("own without metadata", {"form": "retinanet"}, "gives 84 boxes, a retinanet of 64 x 64 px has 774"),
    ],
)
def test_a_form_that_the_outputs_contradict_is_refused(
    tmp_path: Path, export: str, reads: dict[str, Any], expected: str
) -> None:
    """A recipe of another model, left in the folder."""
    with pytest.raises(ModelError) as caught:
        adopted(tmp_path, export, **reads)

    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"detection": "{"}, "metadata detection: is no JSON"),
        ({"detection": '{"boxes": "polar"}'}, "metadata detection: boxes: got 'polar'"),
        ({"detection": json.dumps(detection_to_json(dataclasses.replace(OWN, levels=OWN.levels[:1])))}, "64 priors"),
        ({"classes": '["red", "green"]', "detection": json.dumps(detection_to_json(OWN))}, "hold 3 classes"),
    ],
)
def test_metadata_of_our_own_that_contradict_the_graph_are_refused(
    tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    """A file that was edited, or made of two exports."""
    with pytest.raises(ModelError) as caught:
        read_model(written(tmp_path / "m.onnx", own(**changes)))

    assert expected in caught.value.message


def test_a_detector_of_a_maker_that_nobody_names_is_not_guessed_at(tmp_path: Path) -> None:
    """Without metadata, scale and colour order are open, and the hint says how to name it."""
    with pytest.raises(ModelError) as caught:
        read_model(written(tmp_path / "m.onnx", planted("yolox")), classes=3)

    assert "does not say under preprocess" in caught.value.message
    assert "detector: {form: …}" in (caught.value.hint or "")


def test_our_own_export_is_taken_as_it_says(tmp_path: Path) -> None:
    """Nothing is guessed and nothing is changed; the recipe's limits go before the model's."""
    model = read_model(written(tmp_path / "m.onnx", own()), detector=DetectorRecipe(score_above=0.5, pixel_mm=0.2))

    assert (model.task, model.count, model.classes, model.adoption) == ("detect", 3, COLOURS, None)
    assert model.detection == dataclasses.replace(OWN, score_above=0.5, pixel_mm=0.2)
    assert model.heads == ("boxes", "scores")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", FORMS)
def test_every_export_finds_the_squares(tmp_path: Path, form: str, seed: int) -> None:
    """Whole way: shapes to reading, bytes to boxes; class, place and size of each."""
    picture, truth = squares(np.random.default_rng(seed))
    model = adopted(tmp_path, form)

    found = detections(model, picture, score_above=0.5)

    wanted = sorted((kind, *box) for kind, *box in truth)
    got = sorted((int(c), *map(float, b)) for c, b in zip(found.classes, found.boxes, strict=True))
    assert [row[0] for row in got] == [row[0] for row in wanted]
    assert np.array(got) == pytest.approx(np.array(wanted), abs=1e-2)


def reference(form: str, output: NDArray[np.float32]) -> list[tuple[float, ...]]:
    """Score, class and corners of every box, one at a time, as each format is described by its maker."""
    found: list[tuple[float, ...]] = []
    if form == "yolov10":  # x0, y0, x1, y1, score, class
        return [(row[4], row[5], *row[:4]) for row in output[0].tolist()]
    rows = output[0].T.tolist() if form == "yolov8" else output[0].tolist()
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(SIDE // s) for x in range(SIDE // s)]
    for at, row in enumerate(rows):
        cx, cy, w, h = row[:4]
        if form == "yolox":  # x = (dx + column) * stride, w = exp(dw) * stride
            column, line, stride = cells[at]
            cx, cy, w, h = (cx + column) * stride, (cy + line) * stride, math.exp(w) * stride, math.exp(h) * stride
        sure = 1.0 if form == "yolov8" else row[4]
        for kind, score in enumerate(row[4:] if form == "yolov8" else row[5:]):
            found.append((sure * score, kind, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    return found


@pytest.mark.parametrize("form", [form for form in FORMS if form != "own"])
def test_every_box_is_decoded_as_its_format_is_described(tmp_path: Path, form: str) -> None:
    """All of them, on noise, against a decoder that is written from the description."""
    model = adopted(tmp_path, form)
    noise = np.random.default_rng(4).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    floats = noise.astype(np.float32) if form.startswith("yolox") else noise[..., ::-1].astype(np.float32) / 255
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": np.ascontiguousarray(floats.transpose(2, 0, 1)[None])})

    found = detections(model, noise, score_above=0.0, nms_iou=1.0, max_findings=1000)

    wanted = sorted(reference(form, output))
    got = sorted((float(s), int(c), *map(float, b)) for s, c, b in zip(*vars_of(found), strict=True) if s > 0)
    wanted = [row for row in wanted if row[0] > 0]
    by_box = [sorted(rows, key=lambda row: (row[1], *np.round(row[2:], 2))) for rows in (got, wanted)]
    assert len(got) == len(wanted)
    assert np.abs(np.array(by_box[0]) - np.array(by_box[1])).max() < 1e-3


def vars_of(found: Detections) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return found.scores, found.classes, found.boxes


@pytest.mark.parametrize(
    ("form", "told", "boxes"),
    [
        ("yolov5", "yolov5", "centre"),
        ("yolov8", "yolov8", "centre"),
        ("yolov10", "yolov10", "corners"),
        ("yolox", "yolox", "deltas"),
        ("yolox decoded", "yolox", "centre"),
    ],
)
def test_the_maker_is_told_by_shapes_and_by_what_the_graph_computes(
    tmp_path: Path, form: str, told: str, boxes: str
) -> None:
    """YOLOX has one place per cell where YOLOv5 has three, and is decoded where an exponential stands in the graph."""
    model = adopted(tmp_path, form)

    assert model.adoption is not None
    assert model.detection is not None
    assert (model.adoption.form, model.detection.boxes) == (told, boxes)
    assert any(note.startswith(f"read as {told}: boxes are {boxes}") for note in model.notes)
    check = check_adoption(model, [np.random.default_rng(1).integers(0, 256, (1, SIDE, SIDE, 3)).astype(np.uint8)])
    assert check is not None
    assert check.max_relative < 1e-4


@pytest.mark.parametrize("form", ["yolov5", "yolov8", "yolov10"])
def test_ultralytics_metadata_say_what_it_is_fed(tmp_path: Path, form: str) -> None:
    """Names, stride and task in the file: 0 to 1, RGB, a letterbox with 114 and the picture in the middle."""
    path = written(tmp_path / "m.onnx", with_metadata(planted(form), **ULTRALYTICS))

    model = read_model(path)

    assert model.classes == COLOURS
    assert model.input == InputSpec(width_px=SIDE, height_px=SIDE, resize="letterbox", pad_value=114)
    assert any("write it in defect-opt.yaml if it was trained otherwise" in note for note in model.notes)
    picture, truth = squares(np.random.default_rng(2))
    assert sorted(detections(model, picture, score_above=0.5).classes) == sorted(kind for kind, *_ in truth)


def test_an_open_size_is_read_from_the_metadata(tmp_path: Path) -> None:
    """A dynamic export still says what it was trained at, height first."""
    model = with_metadata(planted("yolov8"), **ULTRALYTICS)
    for at in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[at].dim_param = f"side{at}"

    assert read_model(written(tmp_path / "m.onnx", model)).input.width_px == SIDE


def test_yolox_is_fed_as_it_was_trained_when_the_recipe_names_it(tmp_path: Path) -> None:
    """BGR from 0 to 255, in the upper left corner of a letterbox."""
    path = written(tmp_path / "m.onnx", planted("yolox"))

    model = read_model(path, classes=3, detector=DetectorRecipe(form="yolox"))

    assert model.input.anchor == "corner"
    assert (model.input.resize, model.input.pad_value) == ("letterbox", 114)
    picture, truth = squares(np.random.default_rng(2), size=(2 * SIDE, SIDE), anchor="corner")
    found = detections(model, picture, score_above=0.5)
    got = sorted((int(c), *(2 * b).tolist()) for c, b in zip(found.classes, found.boxes, strict=True))
    assert np.array(got) == pytest.approx(np.array(sorted(truth)), abs=1e-2)


def test_the_recipe_goes_before_the_makers_convention(tmp_path: Path) -> None:
    """Somebody trained it on stretched pictures, and says so."""
    path = written(tmp_path / "m.onnx", with_metadata(planted("yolov8"), **ULTRALYTICS))

    model = read_model(path, PreprocessRecipe(resize="stretch"), detector=DetectorRecipe(form="yolov8"))

    assert model.input.resize == "stretch"


def test_end_to_end_exports_are_not_suppressed_again(tmp_path: Path) -> None:
    """They choose among neighbours themselves, and two defects may lie close."""
    model = adopted(tmp_path, "yolov10")

    assert model.detection is not None
    assert model.detection.nms_iou == 1.0
    named = adopted(tmp_path, "yolov10", nms_iou=0.6)
    assert named.detection is not None
    assert named.detection.nms_iou == 0.6


def test_a_picture_in_the_corner_is_mapped_back_from_the_corner() -> None:
    """YOLOX pads below and to the right; half the padding would move every box."""
    from agent.bundle.preprocess import Preprocessor

    spec = InputSpec(width_px=64, height_px=64, resize="letterbox", pad_value=114, anchor="corner")
    picture = np.full((64, 128, 3), 200, np.uint8)

    tensor, placement = Preprocessor(spec)(picture)

    assert (placement.left_px, placement.top_px, placement.height_px) == (0, 0, 32)
    assert np.unique(tensor[0, :32]).tolist() == [200]
    assert np.unique(tensor[0, 32:]).tolist() == [114]
    assert placement.to_image((8, 8, 16, 16)) == (16, 16, 32, 32)
    assert cv2.resize(picture, (64, 32)).shape == (32, 64, 3)


def test_onnx_checks_every_planted_export() -> None:
    """The kit's graphs follow the standard, so that what is tested is ours."""
    for form in FORMS:
        onnx.checker.check_model(planted(form), full_check=True)


@pytest.mark.parametrize(
    ("shape", "classes", "said", "remedy"),
    [
        ((1, 64, 3), None, "(yolov8) would be 3 boxes of 60 classes", "detector: {form: yolov8}"),
        ((1, 3, 64), None, "(centre) would be 3 boxes of 60 classes", "detector: {form: centre}"),
        ((1, 64, 3), 60, "(yolov8) would be 3 boxes of 60 classes", "detector: {form: yolov8}"),
        ((1, 40, 48), None, "(yolov8) would be 48 boxes of 36 classes", "detector: {form: yolov8}"),
    ],
)
def test_a_layout_that_no_detector_has_is_refused(
    tmp_path: Path, shape: tuple[int, ...], classes: int | None, said: str, remedy: str
) -> None:
    """Any output of three sides fits some form; what it would mean is told, and the key that insists on it."""
    path = written(tmp_path / "m.onnx", shaped(shape))

    with pytest.raises(ModelError) as caught:
        read_model(path, UNIT, classes=classes)

    assert said in caught.value.message
    assert remedy in (caught.value.hint or "")


@pytest.mark.parametrize(("shape", "classes"), [((1, 60, 7), None), ((1, 7, 60), None), ((1, 30, 24), 20)])
def test_a_small_detector_is_still_recognized(tmp_path: Path, shape: tuple[int, ...], classes: int | None) -> None:
    """Few boxes are no fault by themselves, and whoever says how many classes there are is believed sooner."""
    assert read_model(written(tmp_path / "m.onnx", shaped(shape)), UNIT, classes=classes).task == "detect"


def test_the_recipe_may_insist_on_an_odd_layout(tmp_path: Path) -> None:
    """Three boxes of sixty classes: somebody knows it better."""
    path = written(tmp_path / "m.onnx", shaped((1, 64, 3)))

    assert read_model(path, UNIT, classes=60, detector=DetectorRecipe(form="yolov8")).count == 60


def shaped(shape: tuple[int, ...]) -> Any:
    """A convolution whose output is brought to a shape: what it computes is no detector's."""
    channels = math.prod(shape) // 4 + 1
    weights = np.random.default_rng(0).normal(0, 0.01, (channels, 3, 32, 32)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Conv", ["images", "weights"], ["conv"], kernel_shape=[32, 32], strides=[32, 32]),
        onnx.helper.make_node("Flatten", ["conv"], ["flat"]),
        onnx.helper.make_node("Slice", ["flat", "from", "to", "axis"], ["cut"]),
        onnx.helper.make_node("Reshape", ["cut", "shape"], ["out"]),
    ]
    constants = {"from": [0], "to": [math.prod(shape)], "axis": [1], "shape": list(shape)}
    made = onnx.helper.make_graph(
        nodes,
        "shaped",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, list(shape))],
        [
            onnx.numpy_helper.from_array(weights, "weights"),
            *(onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants.items()),
        ],
    )
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
