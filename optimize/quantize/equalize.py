"""Channels made equally loud, so that one scale per tensor serves them all; the graph computes the same.

Where a convolution makes channel c of a tensor and other layers read it, its row can be multiplied by any f_c > 0 and
their columns divided by it: ReLU, pooling, additions and gates between them do not notice (Nagel et al., "Data-free
quantization through weight equalization and bias correction", arXiv 1906.04721, section 4.1). There, pairs of layers
are balanced by their weights. Here, all tensors that must be scaled together form one group (a whole residual stream
is one), rows are free (they have a scale each), and what is balanced is the loudness seen in calibration against the
columns: f_c = (R / r_c) ** strength. A depthwise reader has a scale per channel, so its columns are free too.

ReLU6 is not scale-free: it cuts at 6 whatever the channel's scale. A channel may only be made louder, and only as far
as what was seen of it stays below 6; one that reached 6 is left alone.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from optimize.quantize.graph import Graph, shape_of
from optimize.quantize.layers import Layer, find_layers
from optimize.quantize.prepare import with_constants

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from optimize.quantize.ranges import TensorStats

__all__ = ["ChannelGroup", "equalize", "find_groups"]

SCALE_FREE = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "PRelu",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "Dropout",
    }
)
"""Operators f with f(c x) = c f(x) for c > 0, channel by channel."""

MAX_FACTOR = 1e4
"""Loudest that a channel is made; what is quieter than one part in ten thousand carries nothing."""

FAR = 10.0
"""How many times as large or small as the usual row an unseen channel's must be to be touched."""

HEADROOM = 1.1
"""How far beyond what was seen a channel may go before it meets ReLU6's limit earlier than it used to."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Tensors whose channels must be scaled together.

    Attributes:
        tensors: their names, sorted.
        makers: names of the layers whose rows make them.
        readers: names of the layers whose columns read them.
        limit: the smallest ReLU6-like limit in it; infinite when there is none.
    """

    tensors: tuple[str, ...]
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    limit: float


def equalize(model: onnx.ModelProto, stats: Mapping[str, TensorStats], *, strength: float) -> onnx.ModelProto:
    """Scale the channels of every group that can be scaled.

    Args:
        model: a prepared float graph with inferred shapes.
        stats: what was seen of (at least some of) its tensors.
        strength: 0 changes nothing, 1 makes all channels of a tensor equally loud.

    Returns:
        A graph that computes the same up to float rounding, and up to values beyond what was seen at a ReLU6.
    """
    graph = Graph(model)
    layers = find_layers(graph)
    weights = {name: layer.weight.astype(np.float64) for name, layer in layers.items()}
    biases = {name: None if layer.bias is None else layer.bias.astype(np.float64) for name, layer in layers.items()}
    for group in find_groups(graph):
        factor = _factors(group, stats, strength, _row_sizes(layers[group.makers[0]], weights))
        if factor is None:
            continue
        for name in group.makers:
            layer = layers[name]
            weights[name] *= _along(factor, weights[name].ndim, layer.axis)
            bias = biases[name]
            if bias is not None:
                biases[name] = bias * factor
        for name in group.readers:
            weights[name] = weights[name] / _columns(factor, layers[name])
    values = {layers[name].node.input[1]: value.astype(np.float32) for name, value in weights.items()}
    values |= {layers[name].node.input[2]: b.astype(np.float32) for name, b in biases.items() if b is not None}
    return with_constants(model, values)


def find_groups(graph: Graph) -> tuple[ChannelGroup, ...]:
    """Every group of tensors that is made and read by layers alone, in graph order."""
    groups = _Groups(graph)
    return tuple(groups.found())


class _Groups:
    """Union-find over tensors; a frozen one freezes its group."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._layers = find_layers(graph)
        self._parent: dict[str, str] = {}
        self._frozen: set[str] = {value.name for value in graph.inputs()} | set(graph.outputs)
        self._limits: dict[str, float] = {}
        for node in graph.nodes:
            if node.op_type != "Constant":
                self._take(node)

    def found(self) -> Iterator[ChannelGroup]:
        members: dict[str, list[str]] = defaultdict(list)
        for tensor in self._parent:
            members[self._root(tensor)].append(tensor)
        frozen = {self._root(tensor) for tensor in self._frozen if tensor in self._parent}
        for root, tensors in members.items():
            makers = tuple(name for name, layer in self._layers.items() if self._root(layer.output) == root)
            readers = tuple(name for name, layer in self._layers.items() if self._root(layer.data) == root)
            if root in frozen or not makers or not readers:
                continue
            limit = min((self._limits[t] for t in tensors if t in self._limits), default=np.inf)
            yield ChannelGroup(tensors=tuple(sorted(tensors)), makers=makers, readers=readers, limit=limit)

    def _take(self, node: onnx.NodeProto) -> None:
        data = [name for name in node.input if name and self._graph.constant(name) is None]
        if node.name in self._layers and self._has_channels_second(node):
            for name in (self._layers[node.name].data, node.output[0]):
                self._root(name)
        elif node.op_type in SCALE_FREE or (node.op_type == "Flatten" and self._is_one_pixel(data[0])):
            self._join([data[0], node.output[0]])
            self._frozen.update(node.output[1:])
        elif node.op_type == "Clip" and (limit := self._limit(node)) is not None:
            self._join([data[0], node.output[0]])
            self._limits[node.output[0]] = limit
        elif node.op_type == "Add" and len(data) == 2 and self._same_shape([*data, node.output[0]]):
            self._join([*data, node.output[0]])
        elif node.op_type == "Mul" and len(data) == 2 and (gate := self._gate(data)) is not None:
            self._join([data[1 - gate], node.output[0]])
            self._freeze(data[gate])
        else:
            for name in (*data, *node.output):
                self._freeze(name)

    def _has_channels_second(self, node: onnx.NodeProto) -> bool:
        """Whether a layer's channels are axis 1, as what was seen has them; over rows of tokens they are the last."""
        shape = shape_of(self._graph.model, node.output[0])
        return node.op_type == "Conv" or (shape is not None and len(shape) == 2)

    def _root(self, tensor: str) -> str:
        parent = self._parent.setdefault(tensor, tensor)
        while parent != self._parent[parent]:
            parent = self._parent[parent]
        self._parent[tensor] = parent
        return parent

    def _join(self, tensors: list[str]) -> None:
        roots = [self._root(tensor) for tensor in tensors]
        for root in roots[1:]:
            self._parent[self._root(root)] = self._root(roots[0])

    def _freeze(self, tensor: str) -> None:
        self._root(tensor)
        self._frozen.add(tensor)

    def _limit(self, node: onnx.NodeProto) -> float | None:
        """The upper limit of a Clip from 0 upwards, else None."""
        ends = [self._graph.constant(name) for name in node.input[1:3]]
        if len(ends) != 2 or ends[0] is None or ends[1] is None or float(ends[0].flat[0]) != 0:
            return None
        return float(ends[1].flat[0])

    def _is_one_pixel(self, tensor: str) -> bool:
        shape = shape_of(self._graph.model, tensor)
        return shape is not None and len(shape) == 4 and shape[2:] == (1, 1)

    def _same_shape(self, tensors: list[str]) -> bool:
        shapes = {shape_of(self._graph.model, tensor) for tensor in tensors}
        return len(shapes) == 1 and None not in shapes

    def _gate(self, data: list[str]) -> int | None:
        """Which input of a Mul is a number per channel; None when neither is, or both are."""
        ones = [slot for slot, name in enumerate(data) if self._is_one_pixel(name)]
        return ones[0] if len(ones) == 1 else None


def _row_sizes(maker: Layer, weights: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Per channel the largest weight that makes it."""
    weight = np.abs(weights[maker.name])
    return np.asarray(weight.max(axis=tuple(i for i in range(weight.ndim) if i != maker.axis)))


def _factors(
    group: ChannelGroup, stats: Mapping[str, TensorStats], strength: float, rows: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """What each channel is multiplied by; None when nothing is known of the group.

    A channel that was never seen alive has no loudness. Where its row is far from the others', it is brought to them:
    the first part that wakes it must not find it a hundred times too quiet for the grid.
    """
    seen = [stats[name] for name in group.tensors if name in stats]
    if not seen or strength <= 0:
        return None
    loud = np.max([np.maximum(np.abs(s.channel_low), np.abs(s.channel_high)) for s in seen], axis=0).astype(np.float64)
    alive = loud > 0
    if not alive.any():
        return None
    reference = min(float(loud.max()), group.limit)
    factor = np.ones_like(loud)
    factor[alive] = np.clip((reference / loud[alive]) ** strength, 1 / MAX_FACTOR, MAX_FACTOR)
    unseen = ~alive & (rows > 0)
    usual = float(np.median(rows[alive] * factor[alive]))
    if usual > 0:
        away = usual / np.maximum(rows, 1e-30)
        unseen &= (away > FAR) | (away < 1 / FAR)
        factor[unseen] = np.clip(away[unseen], 1 / MAX_FACTOR, MAX_FACTOR)
    if np.isfinite(group.limit):
        room = np.maximum(group.limit / (HEADROOM * np.maximum(loud, 1e-30)), 1.0)
        factor = np.clip(factor, 1.0, room)
    return np.asarray(factor)


def _along(factor: NDArray[np.float64], ndim: int, axis: int) -> NDArray[np.float64]:
    return factor.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _columns(factor: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    """The factor of each weight's input channel, in a shape that broadcasts over the weights."""
    if layer.op != "Conv":
        return _along(factor, layer.weight.ndim, 1 - layer.axis)
    out, per_group = layer.weight.shape[:2]
    by_row = np.repeat(factor.reshape(layer.groups, per_group), out // layer.groups, axis=0)
    return by_row.reshape(out, per_group, *(1 for _ in layer.weight.shape[2:]))
