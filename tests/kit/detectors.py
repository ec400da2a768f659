"""Detectors in the forms that exporters write, small and untrained: their structure is what matters.

All take `images` (1, 3, SIDE, SIDE) float32. Every node is called by its first output; `backbone_…`, `neck_…` and
`stem_…` are features, `out_…` the output layers, and `decode_…` what follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CLASSES", "SIDE", "GraphBuilder", "retina_like", "ssd_like", "v5_like", "v8_like", "yolox_like"]

SIDE = 32
CLASSES = 3
STRIDES = (4, 8)
WIDTH = 8


class GraphBuilder:
    """Collects nodes and constants; every method gives the name of the tensor it made."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._rng = np.random.default_rng(seed)

    def add(self, op: str, inputs: str | Sequence[str], name: str | Sequence[str], **attributes: Any) -> str:
        """One node."""
        ins = [inputs] if isinstance(inputs, str) else list(inputs)
        outs = [name] if isinstance(name, str) else list(name)
        self.nodes.append(helper.make_node(op, ins, outs, name=outs[0], **attributes))
        return outs[0]

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """One initializer."""
        self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype=dtype), name)
        return name

    def conv(
        self, source: str, name: str, shape: tuple[int, int], *, kernel: int = 3, stride: int = 1, group: int = 1
    ) -> str:
        """A convolution with random weights; `shape` is input and output channels."""
        weights = self._rng.normal(0, 0.3, (shape[1], shape[0] // group, kernel, kernel))
        ins = [source, self.constant(f"{name}.weight", weights), self.constant(f"{name}.bias", np.zeros(shape[1]))]
        return self.add("Conv", ins, name, strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)

    def feature(self, source: str, name: str, shape: tuple[int, int], *, stride: int = 1) -> str:
        """A convolution with ReLU."""
        return self.add("Relu", self.conv(source, name, shape, stride=stride), f"{name}_relu")

    def reshape(self, source: str, name: str, shape: Sequence[int]) -> str:
        """To a fixed shape."""
        return self.add("Reshape", [source, self.constant(f"{name}.shape", shape, np.int64)], name)

    def model(
        self,
        outputs: Mapping[str, Sequence[int | str]],
        inputs: Mapping[str, Sequence[int | str]] | None = None,
        kind: int = TensorProto.FLOAT,
    ) -> Any:
        """The graph, checked, with inferred shapes."""
        given = inputs or {"images": [1, 3, SIDE, SIDE]}
        graph = helper.make_graph(
            self.nodes,
            "detector",
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in given.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            list(self.constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _levels(build: GraphBuilder) -> list[tuple[str, int]]:
    """Two levels of features with an upsampling neck, and how many cells each side has."""
    stem = build.feature("images", "stem", (3, WIDTH), stride=2)
    fine = build.feature(stem, "backbone_fine", (WIDTH, WIDTH), stride=2)
    coarse = build.feature(fine, "backbone_coarse", (WIDTH, WIDTH), stride=2)
    up = build.add(
        "Resize",
        [coarse, "", build.constant("neck_scales", [1, 1, 2, 2])],
        "neck_up",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    fine = build.feature(build.add("Concat", [fine, up], "neck_join", axis=1), "neck_fine", (2 * WIDTH, WIDTH))
    return [(fine, SIDE // STRIDES[0]), (coarse, SIDE // STRIDES[1])]


def v8_like(*, mean: str = "Conv", bins: int = 8) -> Any:
    """YOLOv8's export: boxes as distributions, levels joined raw, one Concat of pixels and scores at the end.

    Args:
        mean: how the distribution's mean is written: `Conv` with fixed weights, or `MatMul`.
        bins: of a distribution.
    """
    build = GraphBuilder()
    flat = []
    for i, (level, side) in enumerate(_levels(build)):
        box = build.conv(
            build.feature(level, f"neck_box{i}", (WIDTH, WIDTH)), f"out_box{i}", (WIDTH, 4 * bins), kernel=1
        )
        score = build.conv(
            build.feature(level, f"neck_cls{i}", (WIDTH, WIDTH)), f"out_cls{i}", (WIDTH, CLASSES), kernel=1
        )
        joined = build.add("Concat", [box, score], f"decode_join{i}", axis=1)
        flat.append(build.reshape(joined, f"decode_flat{i}", [1, 4 * bins + CLASSES, side * side]))
    count = sum((SIDE // stride) ** 2 for stride in STRIDES)
    rows = build.add("Concat", flat, "decode_rows", axis=2)
    sizes = build.constant("sizes", [4 * bins, CLASSES], np.int64)
    build.add("Split", [rows, sizes], ["decode_raw", "decode_scores"], axis=1)
    shares = build.reshape("decode_raw", "decode_bins", [1, 4, bins, count])
    if mean == "Conv":
        shares = build.add("Transpose", shares, "decode_turned", perm=[0, 2, 1, 3])
        shares = build.add("Softmax", shares, "decode_shares", axis=1)
        fixed = build.constant("bins", np.arange(bins).reshape(1, bins, 1, 1))
        length = build.add("Conv", [shares, fixed], "decode_mean")
    else:
        shares = build.add("Transpose", shares, "decode_turned", perm=[0, 1, 3, 2])
        shares = build.add("Softmax", shares, "decode_shares", axis=3)
        length = build.add("MatMul", [shares, build.constant("bins", np.arange(bins)[:, None])], "decode_mean")
    length = build.reshape(length, "decode_length", [1, 4, count])
    box = build.add("Mul", [length, build.constant("strides", np.full((1, 1, count), 4))], "decode_pixels")
    score = build.add("Sigmoid", "decode_scores", "decode_sigmoid")
    build.add("Concat", [box, score], "output0", axis=1)
    return build.model({"output0": [1, 4 + CLASSES, count]})


def v5_like() -> Any:
    """YOLOv5's export: anchors, one output layer per level, sigmoid before the boxes are computed."""
    build = GraphBuilder()
    flat = []
    rows = 5 + CLASSES
    for i, (level, side) in enumerate(_levels(build)):
        raw = build.conv(level, f"out_level{i}", (WIDTH, 3 * rows), kernel=1)
        raw = build.reshape(raw, f"decode_anchors{i}", [1, 3, rows, side, side])
        raw = build.add("Transpose", raw, f"decode_turned{i}", perm=[0, 1, 3, 4, 2])
        raw = build.add("Sigmoid", raw, f"decode_sigmoid{i}")
        sizes = build.constant(f"sizes{i}", [2, 2, 1 + CLASSES], np.int64)
        build.add("Split", [raw, sizes], [f"decode_xy{i}", f"decode_wh{i}", f"decode_conf{i}"], axis=4)
        xy = build.add("Mul", [f"decode_xy{i}", build.constant(f"stride{i}", 4.0)], f"decode_centre{i}")
        wh = build.add("Pow", [f"decode_wh{i}", build.constant(f"two{i}", 2.0)], f"decode_size{i}")
        joined = build.add("Concat", [xy, wh, f"decode_conf{i}"], f"decode_join{i}", axis=4)
        flat.append(build.reshape(joined, f"decode_flat{i}", [1, 3 * side * side, rows]))
    build.add("Concat", flat, "output", axis=1)
    return build.model({"output": [1, 3 * sum((SIDE // s) ** 2 for s in STRIDES), rows]})


def yolox_like() -> Any:
    """YOLOX's export: the sigmoid directly behind the output layer, and exp for sizes."""
    build = GraphBuilder()
    flat = []
    for i, (level, side) in enumerate(_levels(build)):
        box = build.conv(level, f"out_box{i}", (WIDTH, 4), kernel=1)
        score = build.add("Sigmoid", build.conv(level, f"out_cls{i}", (WIDTH, CLASSES), kernel=1), f"decode_sigmoid{i}")
        size = build.add("Exp", box, f"decode_exp{i}")
        joined = build.add("Concat", [size, score], f"decode_join{i}", axis=1)
        flat.append(build.reshape(joined, f"decode_flat{i}", [1, 4 + CLASSES, side * side]))
    build.add("Concat", flat, "output0", axis=2)
    return build.model({"output0": [1, 4 + CLASSES, sum((SIDE // s) ** 2 for s in STRIDES)]})


def ssd_like() -> Any:
    """SSD's export: two outputs, softmax over the classes, boxes decoded against fixed priors."""
    build = GraphBuilder()
    boxes: list[str] = []
    scores: list[str] = []
    for i, (level, side) in enumerate(_levels(build)):
        for kind, width, parts in (("box", 4, boxes), ("cls", CLASSES + 1, scores)):
            raw = build.conv(level, f"out_{kind}{i}", (WIDTH, 2 * width))
            raw = build.add("Transpose", raw, f"decode_{kind}_turned{i}", perm=[0, 2, 3, 1])
            parts.append(build.reshape(raw, f"decode_{kind}_flat{i}", [1, 2 * side * side, width]))
    count = 2 * sum((SIDE // stride) ** 2 for stride in STRIDES)
    build.add("Softmax", build.add("Concat", scores, "decode_raw_scores", axis=1), "scores", axis=2)
    offsets = build.add("Concat", boxes, "decode_raw_boxes", axis=1)
    sizes = build.add(
        "Exp", build.add("Mul", [offsets, build.constant("variance", 0.2)], "decode_scaled"), "decode_exp"
    )
    build.add("Mul", [sizes, build.constant("priors", np.full((1, count, 4), 0.2))], "boxes")
    return build.model({"boxes": [1, count, 4], "scores": [1, count, CLASSES + 1]})


def retina_like() -> Any:
    """RetinaNet's export: towers on every level; raw levels are outputs beside the scores after the sigmoid."""
    build = GraphBuilder()
    outputs: dict[str, Sequence[int | str]] = {}
    for i, (level, side) in enumerate(_levels(build)):
        tower = build.feature(
            build.feature(level, f"neck_tower{i}a", (WIDTH, WIDTH)), f"neck_tower{i}b", (WIDTH, WIDTH)
        )
        build.conv(tower, f"out_box{i}", (WIDTH, 4 * 2))
        raw = build.conv(tower, f"out_cls{i}", (WIDTH, CLASSES * 2))
        build.add("Sigmoid", raw, f"decode_scores{i}")
        outputs |= {f"out_box{i}": [1, 8, side, side], f"decode_scores{i}": [1, 2 * CLASSES, side, side]}
    return build.model(outputs)
