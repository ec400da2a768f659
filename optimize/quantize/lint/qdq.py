"""A Q/DQ graph as its rules look at it: every scale with the tensor, the layer and the role it belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from optimize.quantize.graph import COMPUTE
from optimize.quantize.layers import attribute
from optimize.quantize.lint.network import Network, name_of

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["Point", "Role", "dequantizer", "points", "quantized_weights", "weight_axis"]

Role = Literal["weights", "bias", "activation"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Point:
    """One QuantizeLinear, or one DequantizeLinear with a constant or a graph input behind it.

    Attributes:
        node: the Q or DQ node.
        tensor: what it quantizes.
        layer: the layer that reads it; the node's own name when none does.
        reader: that layer's node, or None.
        role: what it quantizes.
        scale: one value, or one per channel; None when it is computed.
        zero: zero points, in the shape of the scale.
        dtype: element type of the quantized values.
        axis: the channels' axis; means nothing for one scale.
    """

    node: onnx.NodeProto
    tensor: str
    layer: str
    reader: onnx.NodeProto | None
    role: Role
    scale: NDArray[Any] | None
    zero: NDArray[Any]
    dtype: np.dtype[Any]
    axis: int

    @property
    def is_per_channel(self) -> bool:
        """Whether there is a scale for each channel; a list of one is one scale."""
        return self.scale is not None and self.scale.size > 1


def points(network: Network) -> Iterator[Point]:
    """Every scale of a graph once, in graph order; a DQ behind a Q belongs to the Q."""
    for node in network.graph.nodes:
        is_q, is_dq = node.op_type == "QuantizeLinear", node.op_type == "DequantizeLinear"
        if is_q or (is_dq and not _follows_q(network, node)):
            yield _point(network, node, _kind(network, node))


def dequantizer(network: Network, tensor: str) -> onnx.NodeProto | None:
    """The DequantizeLinear that makes a tensor, or None."""
    node = network.graph.maker(tensor)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def quantized_weights(network: Network, point: Point) -> NDArray[np.int32] | None:
    """The 8-bit weights behind a point, int32 so that sums of them fit; None when they can't be known here."""
    value = network.graph.constant(point.tensor)
    if value is None or point.scale is None:
        return None
    if value.dtype.kind != "f":
        return np.asarray(value, dtype=np.int32)
    shape = [1] * value.ndim
    if point.is_per_channel:
        if not -value.ndim <= point.axis < value.ndim or value.shape[point.axis] != point.scale.size:
            return None
        shape[point.axis] = point.scale.size
    steps = np.rint(value / point.scale.reshape(shape))
    return np.asarray(np.clip(steps, -128, 127), dtype=np.int32)


def weight_axis(node: onnx.NodeProto, rank: int) -> int:
    """Which axis of a layer's weights counts its output channels, as TensorRT and ONNX Runtime want it."""
    if node.op_type in ("Conv", "FusedConv"):
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type in ("Gemm", "FusedGemm") and attribute(node, "transB", 0):
        return 0
    return rank - 1


def _kind(network: Network, node: onnx.NodeProto) -> Role:
    value = network.graph.constant(node.input[0])
    if value is None:
        return "activation"
    return "bias" if value.dtype == np.int32 or value.ndim < 2 else "weights"


def _point(network: Network, node: onnx.NodeProto, role: Role) -> Point:
    constant = network.graph.constant
    scale = constant(node.input[1])
    zero = constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    reader = _reader(network, node)
    return Point(
        node=node,
        tensor=node.input[0],
        layer=name_of(node if reader is None else reader),
        reader=reader,
        role=role,
        scale=None if scale is None else scale.reshape(-1).astype(np.float64),
        zero=np.zeros(1, np.int64) if zero is None else zero.reshape(-1).astype(np.int64),
        dtype=_dtype(network, node, zero),
        axis=int(attribute(node, "axis", 1)),
    )


def _dtype(network: Network, node: onnx.NodeProto, zero: NDArray[Any] | None) -> np.dtype[Any]:
    if zero is not None:
        return zero.dtype
    value = network.graph.constant(node.input[0])
    if value is not None and value.dtype.kind != "f":
        return value.dtype
    return np.dtype(np.uint8)  # what QuantizeLinear makes when nothing says otherwise


def _follows_q(network: Network, node: onnx.NodeProto) -> bool:
    maker = network.graph.maker(network.source(node.input[0]))
    return maker is not None and maker.op_type == "QuantizeLinear"


def _reader(network: Network, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The first layer with weights that reads it, else whatever does, past the Q/DQ nodes."""
    waiting, readers = [node.output[0]], []
    while waiting:
        for reader in network.graph.readers(waiting.pop(0)):
            if reader.op_type in ("QuantizeLinear", "DequantizeLinear"):
                waiting.extend(reader.output)
            else:
                readers.append(reader)
    return next((r for r in readers if r.op_type in COMPUTE), readers[0] if readers else None)
