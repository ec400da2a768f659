"""An index over one ONNX graph: who makes a tensor, who reads it, what is constant, and what stays float."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx
    from numpy.typing import NDArray

__all__ = ["COMPUTE", "Graph", "Zones", "metadata_of", "opset_of", "shape_of", "zones"]

COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"})
"""Operators whose cost is multiplications with weights; `Fused…` are ONNX Runtime's own after optimization."""

FUSES_BACKWARDS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Add", "Mul"})
"""What ONNX Runtime joins, in INT8, to the convolution before it: it belongs to the body, not to the head."""


class Graph:
    """Read-only index over a graph; the model must not be changed while it is in use.

    Args:
        model: any ONNX model; sub-graphs are not looked into.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: tuple[onnx.NodeProto, ...] = tuple(model.graph.node)
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self._readers[name].append(node)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = tuple(value.name for value in model.graph.output)

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """The node whose output it is; None for inputs and initializers."""
        return self._makers.get(tensor)

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that take it as an input, in graph order."""
        return self._readers.get(tensor, [])

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """Its value when it is an initializer or a Constant node's output, else None."""
        from onnx import numpy_helper

        if tensor in self._initializers:
            return numpy_helper.to_array(self._initializers[tensor])
        node = self.maker(tensor)
        if node is not None and node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            return None if value is None else numpy_helper.to_array(value)
        return None

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """What must be fed: graph inputs that are no initializers."""
        return [value for value in self.model.graph.input if value.name not in self._initializers]

    def upstream(self, tensors: Iterable[str]) -> set[str]:
        """Every tensor that the given ones are computed from, themselves included."""
        return self._walk(tensors, lambda name: node.input if (node := self.maker(name)) else ())

    def downstream(self, tensors: Iterable[str]) -> set[str]:
        """Every tensor that is computed from the given ones, themselves included."""
        return self._walk(tensors, lambda name: (out for node in self.readers(name) for out in node.output))

    @staticmethod
    def _walk(tensors: Iterable[str], step: Any) -> set[str]:
        seen: set[str] = set()
        waiting = list(tensors)
        while waiting:
            name = waiting.pop()
            if name and name not in seen:
                seen.add(name)
                waiting.extend(step(name))
        return seen


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Zones:
    """Which nodes lie before the first and behind the last multiplication, by the name of their first output.

    Attributes:
        preamble: before it: casts, normalization, layout.
        head: behind the last convolution on the way to the logits: pooling, linear layer, activation maps.
    """

    preamble: frozenset[str]
    head: frozenset[str]


def zones(graph: Graph, logits: str) -> Zones:
    """Find the preamble and the head of a classifier.

    A convolution over a single pixel (a linear layer in disguise, after pooling) counts as head. A graph without
    convolutions has no head: all of it is body.

    Args:
        graph: a float graph with inferred shapes.
        logits: the output that the classes are read from.
    """
    before = {name for node in _before_compute(graph) for name in node.output[:1]}
    way = graph.upstream([logits])
    body = [n for n in graph.nodes if n.op_type in ("Conv", "ConvTranspose") and n.output[0] in way]
    body = [n for n in body if not _is_one_pixel(graph.model, n.output[0])]
    if not body:
        return Zones(preamble=frozenset(before), head=frozenset())
    ahead_of_body = {name for node in body for name in graph.upstream(node.input)}
    head: set[str] = set()
    for node in graph.nodes:
        first = node.output[0]
        if first in before or first in ahead_of_body or node.op_type == "Constant":
            continue
        is_last_convolution = node in body
        follows_head = any((m := graph.maker(name)) and m.output[0] in head for name in node.input)
        if follows_head or not (is_last_convolution or node.op_type in FUSES_BACKWARDS):
            head.add(first)
    return Zones(preamble=frozenset(before), head=frozenset(head))


def _before_compute(graph: Graph) -> Iterator[onnx.NodeProto]:
    """Nodes that depend on the input and on no multiplication with weights."""
    fed = graph.downstream(value.name for value in graph.inputs())
    computed = graph.downstream(out for node in graph.nodes if node.op_type in COMPUTE for out in node.output)
    return (node for node in graph.nodes if node.output[0] in fed - computed)


def _is_one_pixel(model: onnx.ModelProto, tensor: str) -> bool:
    shape = shape_of(model, tensor)
    return shape is not None and len(shape) == 4 and shape[2:] == (1, 1)


def shape_of(model: onnx.ModelProto, tensor: str) -> tuple[int | str, ...] | None:
    """A tensor's shape from the graph's value infos; names or `?` where it is dynamic, None where unknown."""
    for group in (model.graph.value_info, model.graph.output, model.graph.input):
        for value in group:
            if value.name == tensor and value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
    return None


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operator set; 0 where the model names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's own metadata, key to text."""
    return {entry.key: entry.value for entry in model.metadata_props}
