"""Float models as others export them: floats in, NCHW or NHWC, any opset, activations and decoding at the end.

Weights are random and nothing is trained: these models are for what goes into a graph and what comes out, not for
accuracy. `without_front` makes one that really classifies of the kit's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.kit.float_models import SIDE, conv_classifier

__all__ = ["DETECTOR_SHAPES", "IMAGENET", "foreign_classifier", "foreign_detector", "without_front"]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

DETECTOR_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "joined": {"out": (1, 7, 16)},
    "objectness": {"out": (1, 16, 8)},
    "rows": {"out": (1, 16, 7)},
    "final": {"out": (1, 5, 6)},
    "pair": {"locations": (1, 16, 4), "confidences": (1, 16, 3)},
    "levels": {"level0": (1, 8, 4, 4), "level1": (1, 8, 2, 2)},
}
"""What `foreign_detector` gives, by form; it knows three classes."""


def foreign_classifier(
    *,
    opset: int = 17,
    batch: int | str = 1,
    size: tuple[int | str, int | str] = (16, 16),
    channels: int = 3,
    layout: str = "nchw",
    end: str = "Softmax",
    classes: int = 4,
    pads: int = 1,
    first: str = "Conv",
    groups: int = 1,
    holds_batch: bool = False,
    output: str = "probabilities",
) -> onnx.ModelProto:
    """Two convolutions, pooling, a linear layer and an activation.

    Args:
        opset: of the standard operators.
        batch: a number, or a name where it is open.
        size: width and height, numbers or names.
        channels: of the picture.
        layout: `nchw`, or `nhwc` with a Transpose at the beginning.
        end: the operator at the end; empty leaves logits.
        classes: numbers that come out.
        pads: zeros around the picture, for the first convolution.
        first: `Conv`, or an operator such as `Relu` that stands before it.
        groups: of the first convolution's channels.
        holds_batch: flatten by a Reshape to [batch, -1].
        output: name of the output.
    """
    rng = np.random.default_rng(5)
    constants: dict[str, NDArray[Any]] = {
        "first": rng.normal(0, 0.5, (6, channels // groups, 3, 3)),
        "first.bias": rng.normal(0, 0.2, 6),
        "second": rng.normal(0, 0.3, (8, 6, 3, 3)),
        "kernel": rng.normal(0, 1, (classes, 8)),
        "bias": rng.normal(0, 0.2, classes),
    }
    width, height = size
    sides = [batch, channels, height, width] if layout == "nchw" else [batch, height, width, channels]
    last, nodes = "input.1", []
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [last], ["nchw"], name="to_nchw", perm=[0, 3, 1, 2]))
        last = "nchw"
    if first != "Conv":
        nodes.append(helper.make_node(first, [last], ["before"], name="before"))
        last = "before"
    sizes: dict[str, Any] = {"strides": [2, 2], "pads": [pads] * 4, "group": groups}
    nodes += [
        helper.make_node("Conv", [last, "first", "first.bias"], ["c1"], name="conv1", **sizes),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "second"], ["c2"], name="conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"], name="pool"),
    ]
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in constants.items()]
    if holds_batch:
        tensors.append(numpy_helper.from_array(np.array([batch, -1]), "flat.shape"))
        nodes.append(helper.make_node("Reshape", ["pooled", "flat.shape"], ["flat"], name="reshape"))
    else:
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", "kernel", "bias"], ["z" if end else output], transB=1))
    if end:
        nodes.append(helper.make_node(end, ["z"], [output], name="end"))
    return _model(nodes, sides, {output: [batch, classes]}, tensors, opset)


def foreign_detector(form: str, *, output_names: Sequence[str] = ()) -> onnx.ModelProto:
    """A detector of three classes whose outputs have a usual form.

    Args:
        form: a key of `DETECTOR_SHAPES`.
        output_names: other names for its outputs.
    """
    rng = np.random.default_rng(9)
    boxes, scores = 4, 4 if form == "objectness" else 3
    constants = {
        "first": rng.normal(0, 0.4, (8, 3, 3, 3)),
        "second": rng.normal(0, 0.3, (8, 8, 3, 3)),
        "box.weights": rng.normal(0, 0.4, (boxes, 8, 1, 1)),
        "score.weights": rng.normal(0, 0.4, (scores, 8, 1, 1)),
        "raw": rng.normal(0, 0.4, (8, 8, 1, 1)),
        "pixels": np.float32(40),
    }
    whole = {"box.shape": [1, 4, 16], "score.shape": [1, scores, 16], "k": [5], "axis": [2], "four": [1, 1, 4]}
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in constants.items()]
    tensors += [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in whole.items()]
    node = helper.make_node
    nodes = [
        node("Conv", ["input.1", "first"], ["c1"], name="conv1", strides=[2, 2], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], name="relu1"),
        node("Conv", ["r1", "second"], ["c2"], name="conv2", strides=[2, 2], pads=[1] * 4),
        node("Relu", ["c2"], ["r2"], name="relu2"),
    ]
    if form == "levels":
        nodes += [
            node("Conv", ["r2", "raw"], ["level0"], name="raw0"),
            node("MaxPool", ["r2"], ["r3"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", ["r3", "raw"], ["level1"], name="raw1"),
        ]
    else:
        nodes += [
            node("Conv", ["r2", "box.weights"], ["b"], name="box_conv"),
            node("Reshape", ["b", "box.shape"], ["b.flat"], name="box_flat"),
            node("Mul", ["b.flat", "pixels"], ["boxes.columns"], name="box_pixels"),
            node("Conv", ["r2", "score.weights"], ["s"], name="score_conv"),
            node("Reshape", ["s", "score.shape"], ["s.flat"], name="score_flat"),
            node("Sigmoid", ["s.flat"], ["scores.columns"], name="score_sigmoid"),
            *_ending(form),
        ]
    model = _model(nodes, [1, 3, 16, 16], {n: list(s) for n, s in DETECTOR_SHAPES[form].items()}, tensors, 17)
    for value, name in zip(model.graph.output, output_names, strict=False):
        for made in model.graph.node:
            made.output[:] = [name if out == value.name else out for out in made.output]
        value.name = name
    return model


def without_front(*, end: str = "Softmax") -> onnx.ModelProto:
    """The kit's classifier without its Cast, Transpose and `(x - 128) / 128`: one that others would export so."""
    model = onnx.load_model_from_string(conv_classifier())
    del model.graph.node[:4], model.graph.output[1:], model.metadata_props[:]
    value = helper.make_tensor_value_info("normalized", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    model.graph.input[0].CopyFrom(value)
    last = "logits"
    if end:
        model.graph.node.append(helper.make_node(end, ["logits"], ["out"], name="end"))
        last = "out"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", 3]))
    onnx.checker.check_model(model, full_check=True)
    return model


def _ending(form: str) -> list[onnx.NodeProto]:
    """From boxes (1, 4, 16) and scores (1, S, 16) to the form's outputs."""
    node = helper.make_node
    if form == "joined":
        return [node("Concat", ["boxes.columns", "scores.columns"], ["out"], name="join", axis=1)]
    upright = [
        node("Transpose", ["boxes.columns"], ["boxes.rows"], name="box_rows", perm=[0, 2, 1]),
        node("Transpose", ["scores.columns"], ["scores.rows"], name="score_rows", perm=[0, 2, 1]),
    ]
    if form == "pair":
        return [
            *upright,
            node("Identity", ["boxes.rows"], ["locations"], name="give_boxes"),
            node("Identity", ["scores.rows"], ["confidences"], name="give_scores"),
        ]
    if form in ("objectness", "rows"):
        return [*upright, node("Concat", ["boxes.rows", "scores.rows"], ["out"], name="join", axis=2)]
    return [
        *upright,
        node("ReduceMax", ["scores.rows"], ["best"], name="best", axes=[2], keepdims=0),
        node("ArgMax", ["scores.rows"], ["kind"], name="kind", axis=2, keepdims=1),
        node("Cast", ["kind"], ["kind.float"], name="kind_float", to=TensorProto.FLOAT),
        node("TopK", ["best", "k"], ["top", "index"], name="top", axis=1),
        node("Unsqueeze", ["index", "axis"], ["index3"], name="index3"),
        node("Unsqueeze", ["top", "axis"], ["top3"], name="top3"),
        node("Tile", ["index3", "four"], ["index4"], name="index4"),
        node("GatherElements", ["boxes.rows", "index4"], ["top.boxes"], name="top_boxes", axis=1),
        node("GatherElements", ["kind.float", "index3"], ["top.kind"], name="top_kind", axis=1),
        node("Concat", ["top.boxes", "top3", "top.kind"], ["out"], name="join", axis=2),
    ]


def _model(
    nodes: Sequence[onnx.NodeProto],
    sides: Sequence[int | str],
    outputs: dict[str, list[int | str]],
    tensors: Sequence[onnx.TensorProto],
    opset: int,
) -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [tensor for tensor in tensors if tensor.name in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = min(model.ir_version, 10)  # what ONNX Runtime opens besides
    onnx.checker.check_model(model, full_check=True)
    return model
