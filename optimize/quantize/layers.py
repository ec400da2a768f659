"""The layers of a graph whose weights can be integers: convolutions and linear layers with constant weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.quantize.graph import Graph

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["Layer", "attribute", "find_layers"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One convolution or linear layer.

    Attributes:
        name: the node's name.
        node: the node.
        data: the tensor that it reads.
        output: the tensor that it makes.
        weight: its weights, float32: (out, in / groups, kh, kw) of a Conv, (out, in) or (in, out) of a Gemm or MatMul.
        bias: (out,) float32, or None.
        axis: the weights' output channel axis.
        groups: of a convolution, else 1.
    """

    name: str
    node: onnx.NodeProto
    data: str
    output: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    axis: int
    groups: int

    @property
    def op(self) -> str:
        """The operator: Conv, Gemm or MatMul."""
        return str(self.node.op_type)

    @property
    def channels(self) -> int:
        """How many output channels."""
        return int(self.weight.shape[self.axis])

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is filtered by itself, and once: with more filters per channel other kernels run."""
        return self.groups > 1 and self.weight.shape[1] == 1 and self.channels == self.groups

    def rows(self) -> NDArray[np.float32]:
        """The weights as (out, products per output value); of a Conv the products run over (in, kh, kw)."""
        return np.moveaxis(self.weight, self.axis, 0).reshape(self.channels, -1)

    def from_rows(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The weights' own shape from (out, products per output value)."""
        moved = [self.channels, *(n for i, n in enumerate(self.weight.shape) if i != self.axis)]
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, self.axis))


def find_layers(graph: Graph) -> dict[str, Layer]:
    """Every layer with constant float weights, by node name, in graph order."""
    found = {}
    for node in graph.nodes:
        layer = _layer(graph, node)
        if layer is not None:
            found[layer.name] = layer
    return found


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """A node's attribute as a Python value, or the default when it is not there."""
    from onnx import helper

    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _layer(graph: Graph, node: onnx.NodeProto) -> Layer | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = graph.constant(node.input[1])
    has_bias = len(node.input) > 2 and bool(node.input[2])
    bias = graph.constant(node.input[2]) if has_bias else None
    if weight is None or weight.dtype != np.float32 or (has_bias and bias is None):
        return None
    if node.op_type == "Conv":
        axis = 0
    elif weight.ndim != 2 or not _is_plain(node):
        return None
    else:
        axis = 0 if attribute(node, "transB", 0) else 1
    if bias is not None and bias.size != weight.shape[axis]:
        return None
    return Layer(
        name=node.name,
        node=node,
        data=node.input[0],
        output=node.output[0],
        weight=weight,
        bias=None if bias is None else bias.reshape(-1).astype(np.float32),
        axis=axis,
        groups=int(attribute(node, "group", 1)),
    )


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm is y = x W + b, with no factors and no turned input; a MatMul always is."""
    factors = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0))
    return factors == (1.0, 1.0) and not attribute(node, "transA", 0)
