"""The camera's bytes as the first convolution's quantized input: no cast, no arithmetic, no rounding.

Where a graph's normalization is `(byte - z) * s` with one whole z from 0 to 255 and one s for all channels, as in
`(x - 128) / 128` or `x / 255`, a byte already *is* the quantized value with scale s and zero point z. The chain
Cast → Sub → Div → Transpose → QuantizeLinear then computes nothing but the byte it began with, and is replaced by one
Transpose of bytes, which ONNX Runtime folds into its channels-last convolution.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.quantize.graph import Graph

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["ByteInput", "find_byte_input", "join_byte_input"]

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
PASSES = frozenset({"Cast", "Identity", "Transpose"})
MAX_ERROR_STEPS = 1e-3
"""How far a normalized byte may lie from its quantized value, in quantization steps: float32 rounding, no more."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ByteInput:
    """A normalization that quantization can take over.

    Attributes:
        source: the graph's uint8 input.
        tensor: the normalized float tensor, which the first convolution reads.
        scale: what one step of a byte is worth.
        zero_point: the byte that stands for 0.0.
        perm: the axes' new order; empty when the chain moves none.
    """

    source: str
    tensor: str
    scale: float
    zero_point: int
    perm: tuple[int, ...]


def find_byte_input(graph: Graph, source: str) -> ByteInput | None:
    """Follow the input to the first convolution and see whether its normalization can be taken over.

    Args:
        graph: a float graph.
        source: the name of its uint8 input.

    Returns:
        None when the normalization differs by channel, has no whole zero point, or another operator comes first.
    """
    values = np.arange(256, dtype=np.uint8)
    perm: tuple[int, ...] = ()
    floats: NDArray[Any] = values
    tensor = source
    while True:
        readers = graph.readers(tensor)
        if tensor in graph.outputs or not readers:
            return None
        if all(node.op_type == "Conv" and node.input[0] == tensor for node in readers):
            break
        if len(readers) != 1 or readers[0].op_type not in ARITHMETIC | PASSES:
            return None
        node = readers[0]
        applied = _apply(graph, node, tensor, floats)
        if applied is None:
            return None
        if node.op_type == "Transpose":
            if perm:
                return None
            perm = tuple(next((a.ints for a in node.attribute if a.name == "perm"), ()))
        floats, tensor = applied, node.output[0]
    return _affine(source, tensor, floats, perm)


def join_byte_input(model: onnx.ModelProto, found: ByteInput) -> bool:
    """Let the convolution read the bytes, in a graph that `quantize_static` made; the graph is changed in place.

    Returns:
        False when the normalized tensor was not quantized with the byte's own scale and zero point: nothing changes.
    """
    from onnx import helper

    graph = Graph(model)
    quantize = [n for n in graph.readers(found.tensor) if n.op_type == "QuantizeLinear"]
    if len(quantize) != 1 or not _is_exact(graph, quantize[0], found):
        return False
    joined = quantize[0].output[0]
    nodes = [node for node in model.graph.node if node is not quantize[0]]
    if found.perm:
        first = helper.make_node("Transpose", [found.source], [joined], name="image_bytes", perm=list(found.perm))
        nodes.insert(0, first)
    else:
        for node in graph.readers(joined):
            node.input[0] = found.source
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unread(model)
    return True


def _apply(graph: Graph, node: onnx.NodeProto, tensor: str, values: NDArray[Any]) -> NDArray[Any] | None:
    """Compute one node of the chain for all 256 bytes, in its own dtype; None when it is not the same for all."""
    from onnx import helper

    if node.op_type == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        dtype = helper.tensor_dtype_to_np_dtype(to)
        return values.astype(dtype) if dtype.kind == "f" else None
    if node.op_type in PASSES:
        return values
    if values.dtype.kind != "f":
        return None
    other = [name for name in node.input if name != tensor]
    constant = graph.constant(other[0]) if len(other) == 1 else None
    if constant is None or constant.size == 0 or not (constant == constant.flat[0]).all():
        return None
    one = constant.flat[0]
    if node.op_type in ("Sub", "Div") and node.input[0] != tensor:
        return None
    operation = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[node.op_type]
    with np.errstate(all="ignore"):
        return np.asarray(operation(values, one), dtype=values.dtype)


def _affine(source: str, tensor: str, values: NDArray[Any], perm: tuple[int, ...]) -> ByteInput | None:
    if values.dtype != np.float32 or not np.isfinite(values).all():
        return None
    scale = np.float32((float(values[255]) - float(values[0])) / 255)
    if not scale > 0:
        return None
    zero_point = round(-float(values[0]) / float(scale))
    if not 0 <= zero_point <= 255:
        return None
    exact = (np.arange(256, dtype=np.float64) - zero_point) * float(scale)
    if np.abs(values - exact).max() > MAX_ERROR_STEPS * float(scale):
        return None
    return ByteInput(source=source, tensor=tensor, scale=float(scale), zero_point=zero_point, perm=perm)


def _is_exact(graph: Graph, quantize: onnx.NodeProto, found: ByteInput) -> bool:
    scale, zero_point = (graph.constant(name) for name in quantize.input[1:3])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype != np.uint8:
        return False
    return float(scale.flat[0]) == found.scale and int(zero_point.flat[0]) == found.zero_point


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove nodes and initializers that no output depends on any more."""
    graph = Graph(model)
    needed = graph.upstream(graph.outputs)
    nodes = [node for node in model.graph.node if any(name in needed for name in node.output)]
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)
