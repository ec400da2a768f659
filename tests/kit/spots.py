"""A real detector that a test can reason about: bright spots on a dark picture, one finding per colour.

What is red is a `scratch` (major), green a `stain` (minor), blue a `mark` (ok). A colour's box holds all its pixels
from `ON` up; its score is its brightest pixel over 255. Two spots of one colour are therefore one box.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.bundle import Bundle, ClassSpec, DetectionSpec, InputSpec, Outputs
from agent.config import EngineConfig
from agent.engines import open_engine
from agent.inspection import Inspector
from tests.kit.bundles import make_bundle

__all__ = ["CLASSES", "ON", "RGB", "SPEC", "dark_picture", "make_detector", "plant", "spot_detector", "spot_inspector"]

CLASSES = (
    ClassSpec(name="scratch", severity="major"),
    ClassSpec(name="stain", severity="minor"),
    ClassSpec(name="mark", severity="ok"),
)
RGB = {"scratch": 0, "stain": 1, "mark": 2}
SIZES = ("boxes", 4), ("scores", 3)
ON = 60
"""Pixels from here up are a spot; the background is darker."""
SPEC = DetectionSpec(boxes="corners", score_above=0.05)


@functools.cache
def spot_detector(*, side: int = 64) -> bytes:
    """uint8 (1, side, side, 3) RGB in; boxes (1, 3, 4) in pixels and scores (1, 3, 3) out."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["float"], ["brightest"], axes=[1, 2], keepdims=0),
        helper.make_node("Less", ["float", "limit"], ["is_dark"]),
        helper.make_node("GreaterOrEqual", ["brightest", "limit"], ["is_there"]),
        helper.make_node("Cast", ["is_there"], ["there"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["brightest", "white"], ["share"]),
        helper.make_node("Mul", ["share", "there"], ["score"]),
        helper.make_node("Unsqueeze", ["score", "last"], ["column"]),
        helper.make_node("Mul", ["column", "diagonal"], ["scores"]),
    ]
    for axis, places in (("x", "columns"), ("y", "rows")):
        nodes += [
            helper.make_node("Where", ["is_dark", "far", places], [f"{axis}_from"]),
            helper.make_node("Where", ["is_dark", "near", f"{places}_end"], [f"{axis}_to"]),
            helper.make_node("ReduceMin", [f"{axis}_from"], [f"{axis}0"], axes=[1, 2], keepdims=0),
            helper.make_node("ReduceMax", [f"{axis}_to"], [f"{axis}1"], axes=[1, 2], keepdims=0),
        ]
    nodes += [
        helper.make_node("Unsqueeze", [corner, "last"], [f"{corner}_column"]) for corner in ("x0", "y0", "x1", "y1")
    ]
    corners = [f"{corner}_column" for corner in ("x0", "y0", "x1", "y1")]
    nodes.append(helper.make_node("Concat", corners, ["boxes"], axis=2))
    place = np.arange(side, dtype=np.float32)
    constants: dict[str, Any] = {
        "limit": np.float32(ON),
        "white": np.float32(255),
        "diagonal": np.eye(3, dtype=np.float32)[None],
        "far": np.float32(side),
        "near": np.float32(0),
        "columns": place.reshape(1, 1, side, 1),
        "columns_end": place.reshape(1, 1, side, 1) + 1,
        "rows": place.reshape(1, side, 1, 1),
        "rows_end": place.reshape(1, side, 1, 1) + 1,
        "last": np.array([2], dtype=np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "spots",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, side, side, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, n])
            for name, n in (("boxes", 4), ("scores", 3))
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    assert isinstance(data, bytes)
    return data


def make_detector(path: Path, *, side: int = 64, resize: Any = "stretch", **changes: Any) -> Bundle:
    """A bundle of the spot detector; `changes` are fields of `Manifest`."""
    fields = {
        "task": "detect",
        "input": InputSpec(width_px=side, height_px=side, resize=resize, pad_value=0),
        "classes": CLASSES,
        "outputs": Outputs(boxes="boxes", scores="scores"),
        "detection": SPEC,
    }
    return make_bundle(path, graph=spot_detector(side=side), **{**fields, **changes})


def spot_inspector(bundle: Bundle, **keys: Any) -> Inspector:
    """Through the real runtime."""
    return Inspector(bundle, open_engine(bundle, EngineConfig()), **keys)


def dark_picture(width: int, height: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(height, width, 3) uint8 BGR noise darker than any spot."""
    return np.random.default_rng(5).integers(0, 20, (height, width, 3), dtype=np.uint8)


def plant(
    image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], kind: str, box: tuple[int, int, int, int], score: float
) -> None:
    """Put a spot into a picture (BGR): x, y, width, height in its pixels."""
    x, y, width, height = box
    image[y : y + height, x : x + width] = 0
    image[y : y + height, x : x + width, 2 - RGB[kind]] = round(score * 255)
