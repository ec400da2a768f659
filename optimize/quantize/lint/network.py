"""What the rules ask of a graph: its layers with weights, their widths, and walks along its tensors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from optimize.quantize.graph import COMPUTE, FUSES_BACKWARDS, Graph, zones
from optimize.quantize.layers import attribute

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["CONVOLUTIONS", "PASSES", "Layer", "Network", "name_of"]

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
LINEAR = frozenset({"Gemm", "MatMul"})

PASSES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Split", "Slice", "Dropout"})
"""Operators that move values and change none."""

MEASURES = frozenset({"Shape", "Size", "NonZero", "ArgMax", "ArgMin"})
"""Operators whose results are sizes and places, not values."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """A convolution or linear layer with constant weights.

    Attributes:
        node: its node.
        weights: as the node reads them, without Q/DQ; float graphs only.
        axis: which axis of the weights counts output channels (of one group, for a transposed convolution).
        inputs: channels or features it reads.
        outputs: channels or features it makes.
        group: the `group` attribute; 1 for linear layers.
    """

    node: onnx.NodeProto
    weights: NDArray[Any]
    axis: int
    inputs: int
    outputs: int
    group: int

    @property
    def name(self) -> str:
        """The node's name."""
        return name_of(self.node)

    @property
    def is_convolution(self) -> bool:
        """Whether it slides over a picture."""
        return self.node.op_type in CONVOLUTIONS

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel has a filter of its own."""
        return self.is_convolution and self.group > 1 and self.group == self.inputs

    @property
    def kernel(self) -> tuple[int, ...]:
        """The filter's sides; empty for linear layers."""
        return tuple(self.weights.shape[2:]) if self.is_convolution else ()


class Network:
    """A graph with shapes, as the rules look at it; the model must not change while it is in use."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = Graph(_with_shapes(model))
        self.model = self.graph.model

    @functools.cached_property
    def is_quantized(self) -> bool:
        """Whether it has Q/DQ nodes."""
        return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in self.graph.nodes)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers with constant float weights, in graph order."""
        return tuple(_layers(self.graph))

    @functools.cached_property
    def preamble(self) -> frozenset[str]:
        """First outputs of the nodes before the first multiplication with weights."""
        return zones(self.graph, self.graph.outputs[0]).preamble

    @functools.cached_property
    def head(self) -> frozenset[str]:
        """First outputs of the nodes behind the last convolutions; they stay float on both targets.

        A convolution over one pixel is a linear layer, and one that reads a Softmax decodes box sides (DFL): both
        belong to the head. What is joined to a convolution in one kernel does not.
        """
        wanted = ("logits",) if "logits" in self.graph.outputs else self.graph.outputs
        way = self.graph.upstream(wanted)
        body = {n.output[0] for n in self.graph.nodes if n.op_type in CONVOLUTIONS and n.output[0] in way}
        body = {name for name in body if not (self.is_one_pixel(name) or self._is_decoder(name))}
        if not body:
            return frozenset()
        makers = [self.graph.maker(name) for name in body]
        ahead = self.graph.upstream(name for node in makers if node is not None for name in node.input)
        head: set[str] = set()
        for node in self.graph.nodes:
            first = node.output[0]
            if first in body | ahead | self.preamble or node.op_type == "Constant":
                continue
            if node.op_type not in FUSES_BACKWARDS or any(name in head for name in self._makers_of(node)):
                head.add(first)
        return frozenset(head)

    def _makers_of(self, node: onnx.NodeProto) -> Iterator[str]:
        """First outputs of the nodes that it reads from."""
        return (maker.output[0] for name in node.input if (maker := self.graph.maker(name)) is not None)

    def _is_decoder(self, tensor: str) -> bool:
        node = self.graph.maker(tensor)
        before = self.graph.maker(self.source(node.input[0])) if node is not None else None
        return before is not None and before.op_type == "Softmax"

    @functools.cached_property
    def body(self) -> tuple[onnx.NodeProto, ...]:
        """The nodes that compute with pictures, between preamble and head; sizes that are computed are left out."""
        reached: set[str] = set()
        waiting = [name for layer in self.layers for name in layer.node.output]
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting.extend(o for n in self.graph.readers(name) if n.op_type not in MEASURES for o in n.output)
        outside = self.head | self.preamble
        return tuple(n for n in self.graph.nodes if n.output[0] in reached and n.output[0] not in outside)

    def is_one_pixel(self, tensor: str) -> bool:
        """Whether a tensor holds one value per channel."""
        shape = self.shape(tensor)
        return shape is not None and len(shape) == 4 and shape[2:] == (1, 1)

    def shape(self, tensor: str) -> tuple[int | str, ...] | None:
        """A tensor's shape; names or `?` where it is dynamic, None where unknown."""
        return self._shapes.get(tensor)

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int | str, ...]]:
        values = (*self.model.graph.value_info, *self.model.graph.output, *self.model.graph.input)
        shapes = {value.name: _dims(value) for value in values}
        return {name: shape for name, shape in shapes.items() if shape is not None}

    def readers_through(self, tensor: str) -> Iterator[onnx.NodeProto]:
        """The nodes that read it, also behind nodes that only move values."""
        waiting = [tensor]
        while waiting:
            for node in self.graph.readers(waiting.pop()):
                if node.op_type in PASSES:
                    waiting.extend(node.output)
                else:
                    yield node

    def source(self, tensor: str, also: frozenset[str] = frozenset()) -> str:
        """Where its values come from: back through nodes that only move them, and through `also`."""
        while (node := self.graph.maker(tensor)) is not None and node.op_type in PASSES | also:
            tensor = node.input[0]
        return tensor


def name_of(node: onnx.NodeProto) -> str:
    """What a node is called in findings."""
    return node.name or node.output[0]


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inferred shapes where inference can; a graph that it can't follow is looked at without."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # onnx's own, which have no common root but this
        return model


def _layers(graph: Graph) -> Iterator[Layer]:
    for node in graph.nodes:
        weights = graph.constant(node.input[1]) if node.op_type in COMPUTE and len(node.input) > 1 else None
        if weights is None or weights.dtype.kind != "f" or weights.ndim < 2:
            continue
        group = int(attribute(node, "group", 1))
        if node.op_type == "Conv":
            axis, inputs, outputs = 0, weights.shape[1] * group, weights.shape[0]
        elif node.op_type == "ConvTranspose":
            axis, inputs, outputs = 1, weights.shape[0], weights.shape[1] * group
        elif node.op_type == "Gemm" and attribute(node, "transB", 0):
            axis, inputs, outputs = 0, weights.shape[1], weights.shape[0]
        elif node.op_type in LINEAR:
            axis, inputs, outputs = weights.ndim - 1, weights.shape[-2], weights.shape[-1]
        else:
            continue
        yield Layer(node=node, weights=weights, axis=axis, inputs=inputs, outputs=outputs, group=group)


def _dims(value: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
