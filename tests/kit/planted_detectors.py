"""Detectors that really detect, without training: red, green and blue squares on black, in every maker's export.

A convolution over a window of the square's size looks for one colour per class; it answers fully only where the window
lies on a square, so squares stand where windows do: centred at 8 i + 4 pixels of the input. Levels of strides 16 and 32
are there, as exports have them, and find nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.kit.detectors import GraphBuilder

__all__ = ["BOX", "COLOURS", "FORMS", "SIDE", "planted", "squares", "write_squares"]

SIDE, BOX = 64, 16
STRIDES = (8, 16, 32)
COLOURS = ("red", "green", "blue")
FORMS = ("yolov5", "yolov8", "yolov10", "yolox", "yolox decoded", "own")
COUNT = sum((SIDE // stride) ** 2 for stride in STRIDES)


def planted(form: str) -> Any:
    """One of `FORMS`: YOLOX is fed BGR from 0 to 255, `own` bytes, the others RGB from 0 to 1."""
    build = GraphBuilder()
    window = np.full((3, 3, BOX, BOX), -1.0) + 2 * np.eye(3)[:, :, None, None]
    window /= BOX * BOX * (1 if not form.startswith("yolox") else 255)
    if form.startswith("yolox"):
        window = window[:, ::-1]
    source = _from_bytes(build) if form == "own" else "images"
    weights = [build.constant("window", window), build.constant("window.bias", np.zeros(3))]
    seen = build.add("Conv", [source, *weights], "seen", strides=[8, 8], pads=[4] * 4)
    level = build.add("Relu", seen, "level8")
    boxes: list[str] = []
    scores: list[str] = []
    for stride in STRIDES:
        if stride > 8:
            level = build.add("AveragePool", level, f"level{stride}", kernel_shape=[2, 2], strides=[2, 2])
        side, bias = SIDE // stride, -14.0 if stride == 8 else -40.0
        for kind, width, rows in (("box", 4, boxes), ("score", 3, scores)):
            values = np.zeros((4, 3, 1, 1)) if kind == "box" else 20 * np.eye(3)[:, :, None, None]
            names = [build.constant(f"{kind}{stride}.w", values)]
            names.append(build.constant(f"{kind}{stride}.b", _code(form, stride) if kind == "box" else [bias] * 3))
            raw = build.add("Conv", [level, *names], f"out_{kind}{stride}")
            rows.append(build.reshape(raw, f"flat_{kind}{stride}", [1, width, side * side]))
    box = build.add("Concat", boxes, "raw_boxes", axis=2)
    score = build.add("Concat", scores, "raw_scores", axis=2)
    return _ending(build, form, box, score)


def _code(form: str, stride: int) -> list[float]:
    """The box of every place on a level: centred in its cell, as large as a square."""
    if form == "own":
        return [8 / stride] * 4
    return [0.5, 0.5, float(np.log(BOX / stride)), float(np.log(BOX / stride))]


def _from_bytes(build: GraphBuilder) -> str:
    turned = build.add("Cast", "image", "float", to=TensorProto.FLOAT)
    turned = build.add("Transpose", turned, "nchw", perm=[0, 3, 1, 2])
    return build.add("Mul", [turned, build.constant("unit", 1 / 255)], "unit_picture")


def _ending(build: GraphBuilder, form: str, box: str, score: str) -> Any:
    if form == "own":
        outputs = {"boxes": [1, COUNT, 4], "scores": [1, COUNT, 3]}
        for name, source in (("boxes", box), ("scores", score)):
            build.add("Transpose", source, name, perm=[0, 2, 1])
        return build.model(outputs, {"image": [1, SIDE, SIDE, 3]}, TensorProto.UINT8)
    score = build.add("Sigmoid", score, "sure")
    if form != "yolox":
        box = _decoded(build, box)
    if form == "yolov8":
        build.add("Concat", [box, score], "output0", axis=1)
        return build.model({"output0": [1, 7, COUNT]}, {"images": [1, 3, SIDE, SIDE]})
    if form == "yolov10":
        return _final(build, box, score)
    best = build.add("ReduceMax", score, "best", axes=[1], keepdims=1)
    joined = build.add("Concat", [box, best, score], "joined", axis=1)
    rows, count = build.add("Transpose", joined, "rows" if form == "yolov5" else "output", perm=[0, 2, 1]), COUNT
    if form == "yolov5":  # three anchors at every place
        rows, count = build.add("Concat", [rows] * 3, "output", axis=1), 3 * COUNT
    return build.model({rows: [1, count, 8]}, {"images": [1, 3, SIDE, SIDE]})


def _decoded(build: GraphBuilder, box: str) -> str:
    """Centre and size in pixels from offsets and logarithms."""
    grid, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: SIDE // stride, : SIDE // stride]
        grid.append(np.stack([x.ravel(), y.ravel()]))
        strides.append(np.full(x.size, stride))
    build.add("Split", [box, build.constant("halves", [2, 2], np.int64)], ["offset", "size"], axis=1)
    centre = build.add("Add", ["offset", build.constant("grid", np.concatenate(grid, 1)[None])], "place")
    joined = build.add("Concat", [centre, build.add("Exp", "size", "power")], "cells", axis=1)
    return build.add("Mul", [joined, build.constant("strides", np.concatenate(strides)[None, None])], "pixels")


def _final(build: GraphBuilder, box: str, score: str) -> Any:
    """Corners, score and class of the best twenty."""
    matrix = np.array([[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]])
    corners = build.add("MatMul", [build.constant("corners", matrix[None]), box], "corner_columns")
    rows = build.add("Transpose", corners, "corner_rows", perm=[0, 2, 1])
    best = build.add("ReduceMax", score, "best", axes=[1], keepdims=0)
    kind = build.add("Cast", build.add("ArgMax", score, "kind", axis=1, keepdims=0), "kinds", to=TensorProto.FLOAT)
    build.add("TopK", [best, build.constant("k", [20], np.int64)], ["top", "index"], axis=1)
    axis = build.constant("last", [2], np.int64)
    column = build.add("Unsqueeze", ["index", axis], "index3")
    columns = build.add("Tile", [column, build.constant("four", [1, 1, 4], np.int64)], "index4")
    parts = [
        build.add("GatherElements", [rows, columns], "top_boxes", axis=1),
        build.add("Unsqueeze", ["top", axis], "top_scores"),
        build.add("GatherElements", [build.add("Unsqueeze", [kind, axis], "kind3"), column], "top_kinds", axis=1),
    ]
    build.add("Concat", parts, "output0", axis=2)
    return build.model({"output0": [1, 20, 6]}, {"images": [1, 3, SIDE, SIDE]})


def squares(
    rng: np.random.Generator, *, size: tuple[int, int] = (SIDE, SIDE), anchor: str = "centre"
) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int, int]]]:
    """A picture (height, width, 3) BGR with three squares at most that do not touch, and of each class, x0, y0, x1, y1.

    Args:
        rng: where they are, and of which colour.
        size: width and height; squares stand where a letterbox to SIDE puts them onto windows.
        anchor: of that letterbox.
    """
    width, height = size
    scale = max(width, height) // SIDE
    inner = width // scale, height // scale
    first = [(SIDE - side) // 2 if anchor == "centre" else 0 for side in inner]
    shift = int(rng.integers(0, 2))
    rows, columns = (
        [at for at in range(4, SIDE, 8) if first[axis] + 8 <= at <= first[axis] + inner[axis] - 8][shift::3]
        for axis in (1, 0)
    )
    places = [(x - 8 - first[0], y - 8 - first[1]) for y in rows for x in columns]
    picture = np.zeros((height, width, 3), np.uint8)
    found = []
    for at in rng.permutation(len(places))[:3]:
        kind = int(rng.integers(0, 3))
        x0, y0 = places[at][0] * scale, places[at][1] * scale
        x1, y1 = x0 + BOX * scale, y0 + BOX * scale
        picture[y0:y1, x0:x1, 2 - kind] = 255
        found.append((kind, x0, y0, x1, y1))
    return picture, found


def write_squares(
    root: Path, counts: dict[str, int], *, size: tuple[int, int] = (SIDE, SIDE), anchor: str = "centre", seed: int = 0
) -> Path:
    """Write such pictures with `splits.csv` and `boxes.csv`; no good parts among them."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    splits: list[str] = ["file,class,split"]
    boxes: list[str] = ["file,class,xmin,ymin,xmax,ymax"]
    for split, count in counts.items():
        for i in range(count):
            file = f"images/{split}_{i:03d}.png"
            picture, found = squares(rng, size=size, anchor=anchor)
            assert cv2.imwrite(str(root / file), picture)
            splits.append(f"{file},{COLOURS[found[0][0]]},{split}")
            boxes += [_row(file, row) for row in found]
    for name, rows in (("splits.csv", splits), ("boxes.csv", boxes)):
        (root / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def _row(file: str, found: Sequence[int]) -> str:
    kind, x0, y0, x1, y1 = found
    return f"{file},{COLOURS[kind]},{x0},{y0},{x1},{y1}"


def with_metadata(model: Any, **values: str) -> Any:
    """The model with its metadata set."""
    helper.set_model_props(model, values)
    return model
