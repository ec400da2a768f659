"""What is in an ONNX file: shapes, operators, weights, multiplications, and how much of it is INT8."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from optimize.quantize.graph import COMPUTE, Graph, metadata_of, opset_of, shape_of

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphSummary", "Port", "macs_of", "summarize"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output.

    Attributes:
        name: its name.
        dtype: its element type, as numpy calls it.
        shape: sizes; a name or `?` where a side is not fixed.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GraphSummary:
    """What is in an ONNX file.

    Attributes:
        inputs: what it takes.
        outputs: what it gives.
        opset: version of the standard operators.
        ir_version: version of the file format.
        nodes: how many of each operator.
        layers: layers with weights.
        int8_layers: those of them that read quantized values and quantized weights.
        parameters: weights and biases of these layers, in numbers.
        macs: multiplications of one inference; layers of unknown shape are left out.
        int8_macs: those of them in INT8 layers.
        unknown_layers: layers whose shapes are unknown.
        size_bytes: of the file.
        metadata: the file's own.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int
    ir_version: int
    nodes: Mapping[str, int]
    layers: int
    int8_layers: int
    parameters: int
    macs: int
    int8_macs: int
    unknown_layers: int
    size_bytes: int
    metadata: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        values = dataclasses.asdict(self)
        values["inputs"] = [_port_json(port) for port in self.inputs]
        values["outputs"] = [_port_json(port) for port in self.outputs]
        values["int8_share"] = self.int8_share
        return values

    @property
    def int8_share(self) -> float | None:
        """Share of the multiplications that is INT8, 0 to 1; None when there are none."""
        return self.int8_macs / self.macs if self.macs else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    parameters: int
    macs: int | None
    is_int8: bool


def summarize(model: onnx.ModelProto, size_bytes: int) -> GraphSummary:
    """Describe a graph.

    Args:
        model: any ONNX model.
        size_bytes: of its file.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = Graph(inferred)
    layers = list(_layers(graph))
    known = [layer for layer in layers if layer.macs is not None]
    return GraphSummary(
        inputs=tuple(_port(value) for value in graph.inputs()),
        outputs=tuple(_port(value) for value in inferred.graph.output),
        opset=opset_of(model),
        ir_version=model.ir_version,
        nodes=dict(sorted(Counter(node.op_type for node in graph.nodes).items())),
        layers=len(layers),
        int8_layers=sum(layer.is_int8 for layer in layers),
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs or 0 for layer in known),
        int8_macs=sum(layer.macs or 0 for layer in known if layer.is_int8),
        unknown_layers=len(layers) - len(known),
        size_bytes=size_bytes,
        metadata=metadata_of(model),
    )


def _layers(graph: Graph) -> Iterator[_Layer]:
    """Layers with constant weights; products of two activations are no layers."""
    for node in graph.nodes:
        shapes = [_constant_shape(graph, name) for name in node.input[1:3]]
        if node.op_type not in COMPUTE or not shapes or shapes[0] is None:
            continue
        yield _Layer(
            parameters=sum(math.prod(shape) for shape in shapes if shape is not None),
            macs=macs_of(graph, node, shapes[0]),
            is_int8=all(_is_dequantized(graph, name) for name in node.input[:2]),
        )


def macs_of(graph: Graph, node: onnx.NodeProto, weights: tuple[int, ...]) -> int | None:
    """Multiplications of one layer: for each output value, one per weight that it is a sum over.

    Args:
        graph: an index over a graph with inferred shapes.
        node: one of its layers.
        weights: the shape of the layer's weights.

    Returns:
        None where a shape is unknown or not fixed.
    """
    # A transposed convolution multiplies each input value with all weights of its channel; others count by output.
    by_input = node.op_type == "ConvTranspose"
    shape = shape_of(graph.model, node.input[0] if by_input else node.output[0])
    if shape is None or not all(isinstance(side, int) for side in shape):
        return None
    values = math.prod(int(side) for side in shape)
    if node.op_type in ("Conv", "FusedConv", "ConvTranspose"):
        return values * math.prod(weights[1:])
    is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return values * (weights[-1] if is_transposed else weights[-2] if len(weights) > 1 else 1)


def _constant_shape(graph: Graph, tensor: str) -> tuple[int, ...] | None:
    """The shape of a constant, also through the DequantizeLinear before it."""
    node = graph.maker(tensor)
    if node is not None and node.op_type == "DequantizeLinear":
        tensor = node.input[0]
    value = graph.constant(tensor)
    return None if value is None else value.shape


def _is_dequantized(graph: Graph, tensor: str) -> bool:
    node = graph.maker(tensor)
    return node is not None and node.op_type == "DequantizeLinear"


def _port(value: onnx.ValueInfoProto) -> Port:
    from onnx import helper

    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    return Port(
        name=value.name,
        dtype=str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)),
        shape=tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims),
    )


def _port_json(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}
