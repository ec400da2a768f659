"""An index over one ONNX graph: who makes a tensor, who reads it, what is constant, and what stays float."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

__all__ = ["COMPUTE", "HEAD_REASON", "Graph", "Zones", "is_float", "metadata_of", "opset_of", "shape_of", "zones"]

COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"})
"""Operators whose cost is multiplications with weights; `Fused…` are ONNX Runtime's own after optimization."""

FUSES_BACKWARDS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Add", "Mul"})
"""What ONNX Runtime joins, in INT8, to the convolution before it: it belongs to the body where features follow."""


LAYOUT = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Cast"})
"""Operators that move values and change none."""

POOLINGS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "ReduceMean"})
"""What makes few values of a picture of features; no detector decodes with it. MaxPool is missing: CenterNet does."""

CHOICES = frozenset({"NonMaxSuppression", "TopK", "RoiAlign"})
"""Operators that choose among boxes; what follows works on boxes that were decoded already."""

MIN_BINS = 4
"""Fewer weights may be evenly spaced by chance."""

HEAD_REASON = "head: behind the last convolution it costs next to nothing, and it decides the scores"
OUTPUT_LAYER_REASON = "head: the last convolution of a branch; it costs next to nothing, and gives raw boxes or scores"

DECODING_REASONS = (
    (
        frozenset({"Concat"}),
        "head: joins what belongs to different units; with one INT8 scale for boxes in pixels every score would be 0",
    ),
    (
        frozenset({"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Exp", "Relu", "Softplus", "Tanh", "Sqrt"}),
        "head: makes scores or lengths of raw values, and INT8 has only 256 of them",
    ),
    (CHOICES | {"ArgMax", "ReduceMax", "MaxPool", "Greater"}, "head: compares scores, and INT8 makes ties"),
    (
        frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Clip", "MatMul"}),
        "head: computes boxes in pixels or scores, and one step of INT8 would be several pixels",
    ),
    (LAYOUT | {"Gather", "GatherElements", "GatherND", "Shape"}, "head: moves raw boxes and scores, which stay float"),
)


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
        head: stays float: what makes the outputs of the last features. Of a classifier pooling, linear layer and
            activation maps; of a detector the output layers and all of the decoding behind them.
        output_layers: those of the head that are the last convolutions of a branch: raw boxes, raw scores, masks.
        reasons: why each node of the head stays float, in words.
    """

    preamble: frozenset[str]
    head: frozenset[str]
    output_layers: frozenset[str] = frozenset()
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)


def zones(graph: Graph, outputs: str | Sequence[str]) -> Zones:
    """Find the preamble and the head.

    Features are what convolutions make for other layers with learned weights, or for pooling. The head is what lies
    behind the last of them: a convolution whose output is only reshaped, decoded and joined from there on is an output
    layer and part of it. So is a convolution over a single pixel (a linear layer in disguise, after pooling), the
    fixed weighted mean of a distribution (DFL), and whatever comes after a choice among boxes. An activation, or the
    residual addition, behind the last features is not, nor is a squeeze-and-excite block: its product is features. A
    graph without convolutions has no head: all of it is body.

    Args:
        graph: a float graph with inferred shapes.
        outputs: what is read: the logits of a classifier, every output of a detector.
    """
    before = {name for node in _before_compute(graph) for name in node.output[:1]}
    way = graph.upstream([outputs] if isinstance(outputs, str) else outputs)
    chosen = graph.downstream(out for node in graph.nodes if node.op_type in CHOICES for out in node.output)
    features = {n.output[0] for n in graph.nodes if n.output[0] in way - chosen and _makes_features(graph, n)}
    if not features:
        return Zones(preamble=frozenset(before), head=frozenset())
    ahead = graph.upstream(name for first in features if (n := graph.maker(first)) for name in n.input)
    output_layers = {first for first in features - ahead if _is_output_layer(graph, first, chosen)}
    decoding = graph.downstream(output_layers)
    reasons: dict[str, str] = {}
    in_front = before | ahead
    for node in graph.nodes:
        first = node.output[0]
        if first in in_front or node.op_type == "Constant":
            continue
        if first in output_layers:
            reasons[first] = OUTPUT_LAYER_REASON
        elif first not in features and not _is_tail(graph, node, reasons):
            reasons[first] = _reason(graph, node) if first in decoding else HEAD_REASON
    return Zones(
        preamble=frozenset(before),
        head=frozenset(reasons),
        output_layers=frozenset(output_layers),
        reasons=reasons,
    )


def _makes_features(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether it is a convolution over a picture, or the product that ends a squeeze-and-excite block."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return not (_is_one_pixel(graph.model, node.output[0]) or _is_fixed_mean(graph, node))
    if node.op_type != "Mul" or any(graph.constant(name) is not None for name in node.input):
        return False
    gates = [name for name in node.input if _is_one_pixel(graph.model, name)]
    return len(gates) == 1 and not _is_one_pixel(graph.model, node.output[0])


def _is_fixed_mean(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether it only takes the mean of distributions: fixed, evenly spaced weights, or probabilities as its input."""
    import numpy as np

    weights = graph.constant(node.input[1])
    if weights is not None and weights.size >= MIN_BINS and weights.size == max(weights.shape):
        steps = np.diff(weights.reshape(-1).astype(np.float64))
        if steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-3):
            return True
    maker = graph.maker(node.input[0])
    while maker is not None and maker.op_type in LAYOUT:
        maker = graph.maker(maker.input[0])
    return maker is not None and maker.op_type == "Softmax"


def _is_output_layer(graph: Graph, last: str, chosen: Container[str]) -> bool:
    """Whether nothing behind a last convolution pools it or multiplies it with learned weights, up to a choice."""
    behind = [node for name in graph.downstream([last]) for node in graph.readers(name)]
    behind = [node for node in behind if node.output[0] not in chosen]
    return not any(node.op_type in POOLINGS or _is_learned(graph, node) for node in behind)


def _is_learned(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether it multiplies with learned weights; the 4 x 4 matrix that turns one form of box into another is none."""
    if node.op_type not in COMPUTE or _is_fixed_mean(graph, node):
        return False
    weights = graph.constant(node.input[1])
    return weights is not None and weights.shape[-2:] != (4, 4)


def _is_tail(graph: Graph, node: onnx.NodeProto, head: Container[str]) -> bool:
    """Whether a node behind the last features fuses with the convolution that made them."""
    makers = [maker for name in node.input if (maker := graph.maker(name)) is not None]
    return node.op_type in FUSES_BACKWARDS and not any(maker.output[0] in head for maker in makers)


def _reason(graph: Graph, node: onnx.NodeProto) -> str:
    if node.op_type in COMPUTE and _is_fixed_mean(graph, node):
        return "head: the mean of a distribution over fixed distances (DFL), not learned; INT8 would move boxes"
    return next((why for kinds, why in DECODING_REASONS if node.op_type in kinds), HEAD_REASON)


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


def is_float(model: onnx.ModelProto, tensor: str) -> bool:
    """Whether a tensor is known to hold float32."""
    from onnx import TensorProto

    groups = (model.graph.value_info, model.graph.output, model.graph.input)
    found = (value for group in groups for value in group if value.name == tensor)
    return any(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in found)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operator set; 0 where the model names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's own metadata, key to text."""
    return {entry.key: entry.value for entry in model.metadata_props}
