"""What INT8 costs a detector, in points of mAP50 where defects are outlined, else in detections."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from agent.bundle.detection import DetectionSpec, detection_to_json
from optimize.box_readers import read_boxes
from optimize.dataset import read_dataset
from optimize.judge import Judge
from optimize.quantize.model import FloatModel, bytes_from_model, read_model
from optimize.quantize.priors import yolox_levels
from tests.kit.planted_detectors import COLOURS, SIDE, planted, with_metadata, write_squares


def model(tmp_path: Path) -> FloatModel:
    """Our own export, whose distances are counted from the cells' middles."""
    levels = tuple(dataclasses.replace(level, offset=0.5) for level in yolox_levels(SIDE, SIDE))
    spec = DetectionSpec(boxes="distances", scores="sigmoid", levels=levels)
    proto = with_metadata(
        planted("own"), classes=json.dumps(COLOURS), detection=json.dumps(detection_to_json(spec)), task="detect"
    )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return read_model(tmp_path / "m.onnx")


def blind_to(kind: int, found: FloatModel) -> bytes:
    """The graph with one class's scores far below any limit."""
    proto = onnx.load_model_from_string(bytes_from_model(found.proto))
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("score") and tensor.name.endswith(".b"):
            values = numpy_helper.to_array(tensor).copy()
            values[kind] = -60
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return bytes(proto.SerializeToString())


def test_a_class_that_is_lost_costs_its_share_of_the_mean_precision(tmp_path: Path) -> None:
    """A third of three classes, whatever share of the boxes it is."""
    found = model(tmp_path)
    val = read_boxes(write_squares(tmp_path / "squares", {"val": 12}, size=(2 * SIDE, 48))).take("val")
    judge = Judge(letterboxed(found), COLOURS, val)

    loss = judge.loss(blind_to(0, found), "cpu")

    assert judge.map50 == pytest.approx(1.0)
    assert loss.map50 == pytest.approx(2 / 3)
    assert loss.drop_points == pytest.approx(100 / 3, abs=1e-4)
    assert loss.kept is not None
    red = sum(box.class_name == "red" for sample in val for box in sample.boxes or ())
    assert loss.kept.total - loss.kept.kept == red > 0
    assert loss.to_json()["map50"] == loss.map50


def letterboxed(found: FloatModel) -> FloatModel:
    """The same on letterboxed pictures, so that outlines have to be moved with them."""
    return dataclasses.replace(found, input=dataclasses.replace(found.input, resize="letterbox", pad_value=0))


def test_without_outlines_it_is_the_detections_that_are_lost(tmp_path: Path) -> None:
    """No labels are needed to see what INT8 changes."""
    found = model(tmp_path)
    val = read_dataset(write_squares(tmp_path / "squares", {"val": 8})).take("val")
    judge = Judge(found, COLOURS, val)

    loss = judge.loss(blind_to(1, found), "cpu")

    assert (judge.map50, loss.map50) == (None, None)
    assert loss.kept is not None
    assert loss.drop_points == pytest.approx(100 * (1 - loss.kept.share_given))
    assert 0 < loss.drop_points < 100
    same = judge.loss(bytes_from_model(found.proto), "cpu")
    assert same.drop_points == 0
    assert np.isfinite(loss.snr_db)
