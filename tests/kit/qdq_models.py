"""A small Q/DQ network as TensorRT wants it, made by hand, and the mistakes that can be planted in it.

x -> conv1 -> relu -> conv2 -> add (skip: relu) -> relu -> depthwise -> relu -> pointwise -> pool -> linear (float)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["MISTAKES", "Mistake", "attach", "initializer", "node", "qdq_net", "set_initializer"]

STEP = 0.02


class _Sketch:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.rng = np.random.default_rng(5)

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def pair(self, tensor: str, name: str) -> str:
        """Q and DQ on an activation; constants `NAME.scale` and `NAME.zero`."""
        self.constants |= {f"{name}.scale": np.float32(STEP), f"{name}.zero": np.int8(0)}
        self.add("QuantizeLinear", [tensor, f"{name}.scale", f"{name}.zero"], f"{name}.q")
        return self.add("DequantizeLinear", [f"{name}.q", f"{name}.scale", f"{name}.zero"], f"{name}.dq")

    def conv(self, tensor: str, name: str, shape: tuple[int, int, int, int], group: int = 1) -> str:
        """A convolution with S8 weights per channel and a float bias."""
        weights = self.rng.normal(0, 0.2, shape)
        scale = np.abs(weights).max(axis=(1, 2, 3)) / 127
        values = np.rint(weights / scale[:, None, None, None]).astype(np.int8)
        constants = {"int8": values, "scale": scale.astype(np.float32), "zero": np.zeros(len(scale), np.int8)}
        self.constants |= {f"{name}.weight.{key}": value for key, value in constants.items()}
        self.constants[f"{name}.bias"] = self.rng.normal(0, 0.1, shape[0]).astype(np.float32)
        inputs = [f"{name}.weight.{key}" for key in constants]
        self.add("DequantizeLinear", inputs, f"{name}.weight", axis=0)
        pad = shape[2] // 2
        return self.add("Conv", [tensor, f"{name}.weight", f"{name}.bias"], name, pads=[pad] * 4, group=group)


def qdq_net(*, opset: int = 17, batch: int | str = 1) -> onnx.ModelProto:
    """The network without a mistake: four INT8 convolutions, one float linear layer."""
    net = _Sketch()
    net.conv(net.pair("x", "x"), "conv1", (16, 8, 3, 3))
    net.add("Relu", ["conv1"], "relu1")
    net.conv(net.pair("relu1", "relu1"), "conv2", (16, 16, 3, 3))
    net.add("Add", ["conv2", net.pair("relu1", "skip")], "add")
    net.add("Relu", ["add"], "relu2")
    net.conv(net.pair("relu2", "relu2"), "depthwise", (16, 1, 3, 3), group=16)
    net.add("Relu", ["depthwise"], "relu3")
    net.conv(net.pair("relu3", "relu3"), "pointwise", (32, 16, 1, 1))
    net.add("GlobalAveragePool", ["pointwise"], "pool")
    net.add("Flatten", ["pool"], "flat")
    net.constants["linear.weight"] = net.rng.normal(0, 0.2, (4, 32)).astype(np.float32)
    net.add("Gemm", ["flat", "linear.weight"], "logits", transB=1)
    graph = helper.make_graph(
        net.nodes,
        "qdq_net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in net.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """A node by its name."""
    found: onnx.NodeProto = next(n for n in model.graph.node if n.name == name)
    return found


def initializer(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """A constant's value."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def set_initializer(model: onnx.ModelProto, name: str, value: NDArray[Any] | np.generic) -> None:
    """Put another constant in its place, or a new one."""
    tensor = numpy_helper.from_array(np.asarray(value), name)
    for existing in model.graph.initializer:
        if existing.name == name:
            existing.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def attach(model: onnx.ModelProto, before: str, *nodes: onnx.NodeProto) -> None:
    """Put nodes in front of the named one."""
    at = next(i for i, n in enumerate(model.graph.node) if n.name == before)
    for offset, new in enumerate(nodes):
        model.graph.node.insert(at + offset, new)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A planted mistake.

    Attributes:
        rule: the lint rule that must find it.
        severity: how the rule calls it.
        plant: makes it.
        tensorrt: what TensorRT-RTX 1.7.1 does: a part of its refusal, or one of `float` (it builds, and a convolution
            that should be INT8 is float) and `taken` (it builds, all INT8).
    """

    rule: str
    severity: str
    plant: Callable[[onnx.ModelProto], None]
    tensorrt: str


def _set(name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    return lambda model: set_initializer(model, name, value)


def _without_axis(layer: str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: node(model, f"{layer}.weight").ClearField("attribute")


def _per_channel_activation(model: onnx.ModelProto) -> None:
    set_initializer(model, "x.scale", np.full(8, STEP, np.float32))
    set_initializer(model, "x.zero", np.zeros(8, np.int8))
    for name in ("x.q", "x.dq"):
        node(model, name).attribute.append(helper.make_attribute("axis", 1))


def _per_tensor(layer: str) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        set_initializer(model, f"{layer}.weight.scale", np.float32(0.01))
        set_initializer(model, f"{layer}.weight.zero", np.int8(0))
        node(model, f"{layer}.weight").ClearField("attribute")

    return plant


def _int32_bias(model: onnx.ModelProto) -> None:
    scale = (initializer(model, "conv2.weight.scale") * STEP).astype(np.float32)
    bias = np.rint(initializer(model, "conv2.bias") / scale).astype(np.int32)
    set_initializer(model, "bias.int32", bias)
    set_initializer(model, "bias.scale", scale)
    set_initializer(model, "bias.zero", np.zeros(16, np.int32))
    inputs = ["bias.int32", "bias.scale", "bias.zero"]
    attach(model, "conv2", helper.make_node("DequantizeLinear", inputs, ["bias.dq"], name="bias.dq", axis=0))
    node(model, "conv2").input[2] = "bias.dq"


def _q_without_dq(model: onnx.ModelProto) -> None:
    cast = helper.make_node("Cast", ["relu1.q"], ["relu1.cast"], name="relu1.cast", to=TensorProto.FLOAT)
    attach(model, "conv2", cast)
    node(model, "conv2").input[0] = "relu1.cast"
    model.graph.node.remove(node(model, "relu1.dq"))


def _dq_without_q(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    node(model, "x.dq").input[0] = "x"
    model.graph.node.remove(node(model, "x.q"))


def _both_residual_inputs(model: onnx.ModelProto) -> None:
    constants = ["skip.scale", "skip.zero"]
    attach(
        model,
        "add",
        helper.make_node("QuantizeLinear", ["conv2", *constants], ["main.q"], name="main.q"),
        helper.make_node("DequantizeLinear", ["main.q", *constants], ["main.dq"], name="main.dq"),
    )
    node(model, "add").input[0] = "main.dq"


def _other_scale(model: onnx.ModelProto) -> None:
    set_initializer(model, "other.scale", np.float32(2 * STEP))
    node(model, "relu1.dq").input[1] = "other.scale"


def _float_weights(model: onnx.ModelProto) -> None:
    values = initializer(model, "conv2.weight.int8") * initializer(model, "conv2.weight.scale")[:, None, None, None]
    set_initializer(model, "conv2.float", values.astype(np.float32))
    node(model, "conv2").input[1] = "conv2.float"
    model.graph.node.remove(node(model, "conv2.weight"))


NO_ZERO_POINT = "Non-zero zero point is not supported"
NOT_POSITIVE = "Scale coefficients must all be positive"
MISTAKES: Mapping[str, Mistake] = {
    "zero point of an activation": Mistake(
        rule="zero-point", severity="error", plant=_set("relu1.zero", np.int8(3)), tensorrt=NO_ZERO_POINT
    ),
    "zero points of weights": Mistake(
        rule="zero-point",
        severity="error",
        plant=_set("conv2.weight.zero", np.ones(16, np.int8)),
        tensorrt=NO_ZERO_POINT,
    ),
    "U8 around 128": Mistake(
        rule="uint8", severity="error", plant=_set("relu1.zero", np.uint8(128)), tensorrt=NO_ZERO_POINT
    ),
    "U8 from 0": Mistake(rule="uint8", severity="error", plant=_set("relu1.zero", np.uint8(0)), tensorrt="taken"),
    "no axis": Mistake(
        rule="weight-axis", severity="error", plant=_without_axis("conv1"), tensorrt="number of scales is not equal"
    ),
    "no axis, square weights": Mistake(
        rule="weight-axis", severity="error", plant=_without_axis("conv2"), tensorrt="float"
    ),
    "too few scales": Mistake(
        rule="weight-axis",
        severity="error",
        plant=_set("conv2.weight.scale", np.full(8, 0.01, np.float32)),
        tensorrt="must have the same volume",
    ),
    "depthwise per tensor": Mistake(
        rule="per-tensor-weights", severity="error", plant=_per_tensor("depthwise"), tensorrt="taken"
    ),
    "per-channel activation": Mistake(
        rule="per-channel-activation", severity="error", plant=_per_channel_activation, tensorrt="float"
    ),
    "negative scale": Mistake(
        rule="bad-scale", severity="error", plant=_set("relu1.scale", np.float32(-1)), tensorrt=NOT_POSITIVE
    ),
    "scale 0": Mistake(
        rule="bad-scale", severity="error", plant=_set("relu1.scale", np.float32(0)), tensorrt=NOT_POSITIVE
    ),
    "scale NaN": Mistake(
        rule="bad-scale", severity="error", plant=_set("relu1.scale", np.float32("nan")), tensorrt=NOT_POSITIVE
    ),
    "tiny scale": Mistake(
        rule="small-scale", severity="error", plant=_set("relu1.scale", np.float32(1e-8)), tensorrt="taken"
    ),
    "int32 bias": Mistake(rule="int32-bias", severity="error", plant=_int32_bias, tensorrt="has type Int32"),
    "Q without DQ": Mistake(rule="q-without-dq", severity="error", plant=_q_without_dq, tensorrt="float"),
    "DQ without Q": Mistake(rule="dq-without-q", severity="warning", plant=_dq_without_q, tensorrt="taken"),
    "DQ with another scale": Mistake(rule="scale-mismatch", severity="error", plant=_other_scale, tensorrt="taken"),
    "both inputs of a residual": Mistake(
        rule="residual-both-quantized", severity="warning", plant=_both_residual_inputs, tensorrt="taken"
    ),
    "one convolution per tensor": Mistake(
        rule="per-tensor-weights", severity="warning", plant=_per_tensor("conv2"), tensorrt="taken"
    ),
    "float weights": Mistake(rule="half-quantized-layer", severity="warning", plant=_float_weights, tensorrt="float"),
}
"""By what they are."""
