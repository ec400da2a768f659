"""Tiny real ONNX graphs, made here with onnx.helper; nothing is trained and nothing is downloaded.

The classifier is one that a test can reason about: it looks at mean colours. A white picture is `good`, a black one is
a `scratch`, a red one is a `stain`, and middle grey leaves it without an opinion.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CLASSES", "classifier", "constant_classifier", "slow_classifier"]

CLASSES = ("good", "scratch", "stain")
_OPSET = 17
_IR_VERSION = 8  # what onnxruntime 1.17 reads

# Logits from mean red, green, blue in -1..1: brightness for good, darkness for scratch, redness for stain.
_WEIGHTS = np.array([[2, 2, 2], [-2, -2, -2], [8, -4, -4]], dtype=np.float32)


@functools.cache
def classifier(
    *,
    width: int = 32,
    height: int = 32,
    input_name: str = "image",
    input_type: int = TensorProto.UINT8,
    cell: int = 4,
    with_cam: bool = True,
) -> bytes:
    """A classifier of `CLASSES`: uint8 (1, height, width, 3) RGB in; logits (1, 3), embedding (1, 6), cam out.

    Args:
        width: input width in pixels, a multiple of `cell`.
        height: input height in pixels, a multiple of `cell`.
        input_name: name of the input.
        input_type: a TensorProto type, to make a wrong one.
        cell: pixels of one map cell; the cam is (1, 3, height / cell, width / cell).
        with_cam: leave the map out when False.
    """
    colours = np.zeros((6, 3, cell, cell), dtype=np.float32)
    for channel in range(3):
        # A colour's positive and negative part as two channels, as ReLU lets only positive values through.
        colours[2 * channel, channel] = 1 / cell**2
        colours[2 * channel + 1, channel] = -1 / cell**2
    head = np.stack([_WEIGHTS, -_WEIGHTS], axis=2).reshape(3, 6)
    constants = {"half": np.float32(128), "colours": colours, "head": head, "head_cam": head[:, :, None, None]}
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "half"], ["centred"]),
        helper.make_node("Div", ["centred", "half"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "colours"], ["signed"], strides=[cell, cell]),
        helper.make_node("Relu", ["signed"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "head"], ["logits"], transB=1),
    ]
    outputs: dict[str, list[int]] = {"logits": [1, 3], "embedding": [1, 6]}
    if with_cam:
        nodes.append(helper.make_node("Conv", ["features", "head_cam"], ["cam"]))
        outputs["cam"] = [1, 3, height // cell, width // cell]
    return _model(nodes, input_name, input_type, [1, height, width, 3], outputs, constants)


@functools.cache
def constant_classifier(logits: Sequence[float], *, width: int = 32, height: int = 32) -> bytes:
    """A classifier that gives these logits whatever it sees; NaN and infinity too. Hashable logits: give a tuple."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["float"], ["darkest"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["darkest", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "answer"], ["logits"]),
    ]
    constants = {"zero": np.float32(0), "answer": np.array([logits], dtype=np.float32)}
    outputs = {"logits": [1, len(logits)]}
    return _model(nodes, "image", TensorProto.UINT8, [1, height, width, 3], outputs, constants)


@functools.cache
def slow_classifier(*, width: int = 128, height: int = 128, channels: int = 64, layers: int = 1) -> bytes:
    """A classifier of `CLASSES` with random weights that costs a millisecond or so per layer: for benches."""
    rng = np.random.default_rng(7)
    constants: dict[str, Any] = {"half": np.float32(128)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "half"], ["centred"]),
        helper.make_node("Div", ["centred", "half"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["layer0"], perm=[0, 3, 1, 2]),
    ]
    before = 3
    for i in range(layers + 1):
        shape = (channels, before, 4, 4) if i == 0 else (channels, before, 3, 3)
        constants[f"weights{i}"] = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        strides: dict[str, Any] = {"strides": [4, 4]} if i == 0 else {"pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [f"layer{i}", f"weights{i}"], [f"conv{i}"], **strides))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [f"layer{i + 1}"]))
        before = channels
    constants["head"] = rng.standard_normal((3, channels)).astype(np.float32)
    constants["head_cam"] = constants["head"][:, :, None, None]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"layer{layers + 1}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "head"], ["logits"], transB=1),
        helper.make_node("Conv", [f"layer{layers + 1}", "head_cam"], ["cam"]),
    ]
    outputs = {"logits": [1, 3], "embedding": [1, channels], "cam": [1, 3, height // 4, width // 4]}
    return _model(nodes, "image", TensorProto.UINT8, [1, height, width, 3], outputs, constants)


def _model(
    nodes: Sequence[onnx.NodeProto],
    input_name: str,
    input_type: int,
    input_shape: Sequence[int],
    outputs: dict[str, list[int]],
    constants: dict[str, Any],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "kit",
        [helper.make_tensor_value_info(input_name, input_type, input_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value, dtype=np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    assert isinstance(data, bytes)
    return data
