"""What TensorRT's parser says of an ONNX graph, as far as the stand-in knows: its refusals, layers and tensors.

The refusals are those of TensorRT-RTX 1.7.1 (`../shared/notes/feasibility.md`, section 1; `tests/kit/qdq_models.py` has
each with its words). Per-channel scales of activations are taken without a word, as TensorRT takes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

__all__ = ["Fault", "Node", "Tensor", "faults_of", "halves", "has_pairs", "inputs_of", "nodes_of", "outputs_of"]

PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})
KINDS: Mapping[str, str] = {
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "Relu": "ACTIVATION",
    "Clip": "ACTIVATION",
    "Sigmoid": "ACTIVATION",
    "LeakyRelu": "ACTIVATION",
    "HardSigmoid": "ACTIVATION",
    "Add": "ELEMENTWISE",
    "Sub": "ELEMENTWISE",
    "Mul": "ELEMENTWISE",
    "Div": "ELEMENTWISE",
    "MaxPool": "POOLING",
    "AveragePool": "POOLING",
    "GlobalAveragePool": "REDUCE",
    "ReduceMean": "REDUCE",
    "Concat": "CONCATENATION",
    "Resize": "RESIZE",
    "Gemm": "MATRIX_MULTIPLY",
    "MatMul": "MATRIX_MULTIPLY",
    "Softmax": "SOFTMAX",
    "Slice": "SLICE",
    "Cast": "CAST",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Transpose": "SHUFFLE",
    "Reshape": "SHUFFLE",
    "Flatten": "SHUFFLE",
}
TYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What the parser says: `is_error` False is a line in the log."""

    node: str
    operator: str
    index: int
    text: str
    is_error: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A layer: its name, the name in `LayerType`, its outputs."""

    name: str
    kind: str
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output of the network: the name in `DataType`; -1 for a dimension that is not known."""

    name: str
    kind: str
    shape: tuple[int, ...]


def inputs_of(model: onnx.ModelProto) -> list[Tensor]:
    """The graph's inputs, initializers left out."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [_tensor(value) for value in model.graph.input if value.name not in constants]


def outputs_of(model: onnx.ModelProto) -> list[Tensor]:
    """The graph's outputs."""
    return [_tensor(value) for value in model.graph.output]


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim)
    return Tensor(name=value.name, kind=TYPES[kind.elem_type], shape=shape)


def nodes_of(model: onnx.ModelProto) -> list[Node]:
    """One layer for each ONNX node; TensorRT makes several of some."""
    return [
        Node(
            name=node.name or f"node_of_{node.output[0]}",
            kind=KINDS.get(node.op_type, "IDENTITY"),
            outputs=tuple(node.output),
        )
        for node in model.graph.node
    ]


def has_pairs(model: onnx.ModelProto) -> bool:
    """Whether the graph quantizes explicitly."""
    return any(node.op_type in PAIRS for node in model.graph.node)


def halves(model: onnx.ModelProto) -> bool:
    """Whether the graph computes in FP16 somewhere."""
    constants = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return constants or any(
        attribute.name == "to" and attribute.i == TensorProto.FLOAT16
        for node in model.graph.node
        for attribute in node.attribute
    )


def faults_of(model: onnx.ModelProto) -> Iterator[Fault]:
    """What the parser refuses or warns of, in the graph's order."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for index, node in enumerate(model.graph.node):
        for text, is_error in _node_faults(node, constants, types):
            name = node.name or f"node_of_{node.output[0]}"
            yield Fault(node=name, operator=node.op_type, index=index, text=text, is_error=is_error)


def _node_faults(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], types: Mapping[str, int]
) -> Iterator[tuple[str, bool]]:
    if any(types.get(name) == TensorProto.UINT8 for name in node.input) and node.op_type not in ("Cast", *PAIRS):
        yield (
            f"Assertion failed: inputs.at(0).getType() != DataType::kUINT8: {node.op_type} does not take UINT8 here",
            True,
        )
    if node.op_type not in PAIRS:
        return
    scale = _constant(constants, node, 1)
    if scale is not None and (scale <= 0).any():
        yield f"Assertion failed: Scale coefficients must all be positive ({node.name})", True
    zero = _constant(constants, node, 2)
    if zero is not None and zero.dtype == np.int32:
        yield "input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8", True
    elif zero is not None and (zero != 0).any():
        yield "Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported", True
    elif zero is not None and zero.dtype == np.uint8:
        yield "TensorRT currently uses half-range INT8 only. Defaulting to INT8 for UINT8 quantization", False


def _constant(constants: Mapping[str, onnx.TensorProto], node: onnx.NodeProto, slot: int) -> NDArray[Any] | None:
    name = node.input[slot] if len(node.input) > slot else ""
    found: NDArray[Any] | None = numpy_helper.to_array(constants[name]) if name in constants else None
    return found
