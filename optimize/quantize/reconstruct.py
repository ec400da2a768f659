"""Layer by layer, from the picture to the last integer layer: integer weights and biases that fit each other.

Each layer is met on two sides: what it should give (the float graph's output) and what it will read (the integer
graph's input, with all errors of the layers before it). On these

- the weights are moved, within what a second half of the pictures confirms, to the ones that make the wanted outputs
  out of the disturbed inputs (least squares with a pull towards the trained weights),
- the weights are rounded so that later columns make up for earlier ones (`weights.py`),
- the bias takes what is left of the mean error (Nagel et al., arXiv 1906.04721, section 4.2, done on already quantized
  inputs: "full" bias correction).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from optimize.progress import Progress, SilentProgress
from optimize.quantize.graph import Graph
from optimize.quantize.grid import Affine, on_grid
from optimize.quantize.interpret import Interpreter
from optimize.quantize.layers import Layer, find_layers
from optimize.quantize.moments import Moments, patches
from optimize.quantize.place import Plan
from optimize.quantize.weights import IntWeights, column_order, paired_columns, round_weights

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["Correction", "Solution", "Tuning", "solve"]

Correction = Literal["none", "fast", "full", "weights"]

MIN_PLACES, MAX_PLACES = 4096, 8192
"""Output places per layer that moments are taken from."""

MAX_PRODUCTS = 4608
"""Products per output value (512 channels by 3x3) up to which the inputs' moments are kept; beyond, weights are rounded
to the nearest step and only the bias is corrected."""

PULLS = (0.01, 0.1)
"""How strongly weights are held to the trained ones, as parts of the inputs' mean second moment."""

MIN_WEIGHT_SCALE = 1e-6
"""FP16, in which TensorRT may hold it, ends at 6e-8; a channel whose largest weight is under 1e-4 carries nothing."""

MAX_BIAS_STEPS = 2**30
"""Half of what the 32-bit sum holds; the products take the other half."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How a graph is solved.

    Attributes:
        correction: `none`, `fast` (bias, by the layer's own weight error), `full` (bias, on already quantized inputs),
            or `weights` (the weights too).
        weight_bits: 8, or 7.
    """

    correction: Correction = "weights"
    weight_bits: Literal[7, 8] = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """All numbers of one target's integer graph.

    Attributes:
        grids: by the tensor whose range it is.
        weights: by layer name; columns as `Layer.rows()` has them.
        biases: by layer name, (out,) float32, corrected.
    """

    grids: Mapping[str, Affine]
    weights: Mapping[str, IntWeights]
    biases: Mapping[str, NDArray[np.float32]]


def solve(
    graph: Graph,
    plan: Plan,
    grids: Mapping[str, Affine],
    images: Sequence[NDArray[Any]],
    tuning: Tuning,
    *,
    progress: Progress | None = None,
) -> Solution:
    """Find every weight and bias.

    Args:
        graph: a prepared float graph.
        plan: where its quantizers stand.
        grids: of every tensor that is a range of the plan.
        images: what the graph's input takes, some dozens; they are all in memory, one layer's values at a time. None
            are needed with the correction `none`.
        tuning: how.
        progress: hears of each layer.
    """
    walk = _Walk(graph, plan, tuning, grids)
    if tuning.correction == "none":
        return walk.rounded()
    return walk.over(images, progress or SilentProgress())


@dataclasses.dataclass(slots=True, eq=False)
class _Values:
    """One tensor over all pictures.

    Attributes:
        wanted: of the float graph.
        raw: of the integer graph before its quantizer.
        read: of the integer graph behind its quantizer; the same as raw where there is none.
    """

    wanted: list[NDArray[Any]]
    raw: list[NDArray[Any]]
    read: list[NDArray[Any]]


class _Walk:
    """State of one walk through the graph."""

    def __init__(self, graph: Graph, plan: Plan, tuning: Tuning, grids: Mapping[str, Affine]) -> None:
        self._graph = graph
        self._plan = plan
        self._tuning = tuning
        self._grids = grids
        self._interpreter = Interpreter(graph)
        self._layers = find_layers(graph)
        self._values: dict[str, _Values] = {}
        self._weights: dict[str, IntWeights] = {}
        self._biases: dict[str, NDArray[np.float32]] = {}

    def rounded(self) -> Solution:
        """Every weight at its nearest step, every bias as it was."""
        for name in self._plan.layers:
            layer = self._layers[name]
            self._round(layer, None)
            self._biases[name] = _bias(layer)
        return self._solution()

    def _solution(self) -> Solution:
        return Solution(grids=self._grids, weights=self._weights, biases=self._biases)

    def over(self, images: Sequence[NDArray[Any]], progress: Progress) -> Solution:
        source = self._graph.inputs()[0].name
        pictures = list(images)
        self._values[source] = _Values(pictures, pictures, pictures)
        nodes = list(_needed(self._graph, self._plan))
        left = _reader_counts(nodes)
        for node in progress.track(nodes, f"fitting the {self._plan.target} graph, layer by layer"):
            self._step(node)
            self._interpreter.forget(node)
            for name in set(node.input):
                left[name] = left.get(name, 0) - 1
                if left[name] <= 0:
                    self._values.pop(name, None)
        return self._solution()

    def _step(self, node: onnx.NodeProto) -> None:
        wanted = self._run(node, lambda values, _: values.wanted)
        is_integer = node.name in self._plan.layers
        if not is_integer and all(self._is_untouched(name) for name in node.input):
            made = wanted
        elif is_integer:
            layer = self._layers[node.name]
            self._solve_layer(layer, wanted[0])
            made = [self._integer_outputs(layer)]
        else:
            made = self._run(node, self._as_read(node))
        for name, want, raw in zip(filter(None, node.output), wanted, made, strict=True):
            self._values[name] = _Values(want, raw, raw)
        for name in node.output:
            if name in self._plan.tensors:
                self._quantize(name)

    def _run(self, node: onnx.NodeProto, pick: Any) -> list[list[NDArray[Any]]]:
        """A node over all pictures: by output, then by picture."""
        count = len(next(iter(self._values.values())).wanted)
        by_picture = [
            self._interpreter.run(
                node,
                [pick(self._values[n], slot)[i] if n in self._values else None for slot, n in enumerate(node.input)],
            )
            for i in range(count)
        ]
        return [list(values) for values in zip(*by_picture, strict=True)]

    def _as_read(self, node: onnx.NodeProto) -> Any:
        reads = self._plan.reads
        return lambda values, slot: values.read if (node.name, slot) in reads else values.raw

    def _is_untouched(self, name: str) -> bool:
        values = self._values.get(name)
        return values is None or (values.wanted is values.raw and values.raw is values.read)

    def _quantize(self, name: str) -> None:
        grid = self._grids[self._plan.tensors[name]]
        values = self._values[name]
        values.read = [on_grid(value, grid) for value in values.raw]

    def _solve_layer(self, layer: Layer, wanted: list[NDArray[np.float32]]) -> None:
        is_fitted = self._tuning.correction == "weights" and not _is_too_wide(layer)
        self._round(layer, _moments(layer, self._values[layer.data].read, wanted) if is_fitted else None)
        self._biases[layer.name] = self._corrected_bias(layer, wanted)

    def _round(self, layer: Layer, moments: Moments | None) -> None:
        order = _order(layer)
        rows = layer.rows().astype(np.float64)[:, order].reshape(layer.groups, -1, len(order))
        floor = _scale_floor(layer, self._grids[self._plan.tensors[layer.data]]).reshape(layer.groups, -1)
        if moments is not None:
            rows = _adjusted(rows, moments)
        found = round_weights(
            rows,
            None if moments is None else moments.centred()[0],
            pairs=self._pairs(layer),
            floor=floor,
            limit=127 if self._tuning.weight_bits == 8 else 63,
        )
        steps = np.empty_like(found.steps)
        steps[:, order] = found.steps
        self._weights[layer.name] = IntWeights(steps=steps, scale=found.scale)

    def _pairs(self, layer: Layer) -> NDArray[np.bool_] | None:
        if self._plan.target != "cpu" or self._tuning.weight_bits == 7 or layer.is_depthwise:
            return None
        return paired_columns(_column_shape(layer))

    def _corrected_bias(self, layer: Layer, wanted: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        bias = _bias(layer)
        if layer.bias is None:
            return bias
        values = self._values[layer.data]
        inputs = values.wanted if self._tuning.correction == "fast" else values.read
        return bias - self._mean_error(layer, wanted, inputs, bias)

    def _mean_error(
        self,
        layer: Layer,
        wanted: list[NDArray[np.float32]],
        inputs: list[NDArray[np.float32]],
        bias: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """How much too large each output channel is on average, with the integer weights on given inputs."""
        weight = layer.from_rows(self._weights[layer.name].rows())
        axis = 1 if layer.op == "Conv" else -1
        sums = np.zeros(layer.channels)
        count = 0
        for want, value in zip(wanted, inputs, strict=True):
            made = self._interpreter.run(layer.node, _layer_inputs(layer, value, weight, bias))[0]
            error = np.moveaxis(made - want, axis, -1).reshape(-1, layer.channels)
            sums += error.sum(axis=0, dtype=np.float64)
            count += len(error)
        return (sums / count).astype(np.float32)

    def _integer_outputs(self, layer: Layer) -> list[NDArray[np.float32]]:
        weight, bias = layer.from_rows(self._weights[layer.name].rows()), self._biases[layer.name]
        return [
            self._interpreter.run(layer.node, _layer_inputs(layer, value, weight, bias))[0]
            for value in self._values[layer.data].read
        ]


def _needed(graph: Graph, plan: Plan) -> Iterator[onnx.NodeProto]:
    """The nodes up to the last integer layer and the last quantized tensor."""
    ends = [node.output[0] for node in graph.nodes if node.name in plan.layers]
    needed = graph.upstream([*ends, *plan.tensors])
    return (n for n in graph.nodes if n.op_type != "Constant" and any(name in needed for name in n.output))


def _reader_counts(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in nodes:
        for name in set(node.input):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _layer_inputs(
    layer: Layer, value: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32]
) -> list[NDArray[np.float32] | None]:
    return [value, weight] if len(layer.node.input) < 3 else [value, weight, bias]


def _bias(layer: Layer) -> NDArray[np.float32]:
    return np.zeros(layer.channels, np.float32) if layer.bias is None else layer.bias


def _is_too_wide(layer: Layer) -> bool:
    is_flat = layer.op == "Conv" and layer.weight.ndim != 4
    return is_flat or len(_order(layer)) > MAX_PRODUCTS


def _column_shape(layer: Layer) -> tuple[int, ...]:
    return tuple(n for i, n in enumerate(layer.weight.shape) if i != layer.axis)


def _order(layer: Layer) -> NDArray[np.intp]:
    return column_order(_column_shape(layer))


def _moments(layer: Layer, inputs: list[NDArray[np.float32]], wanted: list[NDArray[np.float32]]) -> Moments:
    products = len(_order(layer))
    moments = Moments.empty(layer.groups, layer.channels // layer.groups, products)
    per_picture = -(-min(max(4 * products, MIN_PLACES), MAX_PLACES) // len(inputs))
    for number, (value, want) in enumerate(zip(inputs, wanted, strict=True)):
        outputs = want[0].reshape(layer.channels, -1).T if layer.op == "Conv" else want.reshape(-1, layer.channels)
        rng = np.random.default_rng(number)
        places = np.sort(rng.permutation(len(outputs))[:per_picture])
        y = outputs[places].reshape(len(places), layer.groups, -1).transpose(1, 0, 2)
        moments.add(number % 2, patches(layer, value, places), np.ascontiguousarray(y))
    return moments


def _scale_floor(layer: Layer, grid: Affine) -> NDArray[np.float64]:
    """The smallest weight scales whose bias fits 32 bits; it counts in steps of input scale times weight scale."""
    return np.maximum(2 * np.abs(_bias(layer).astype(np.float64)) / (grid.scale * MAX_BIAS_STEPS), MIN_WEIGHT_SCALE)


def _adjusted(rows: NDArray[np.float64], moments: Moments) -> NDArray[np.float64]:
    """Weights that make the wanted outputs out of disturbed inputs, as far as the other half of the pictures agrees."""
    best = _misfit(rows, moments, 0) + _misfit(rows, moments, 1)
    pull = None
    for candidate in PULLS:
        lost = sum(_misfit(_pulled(rows, moments, candidate, (fold,)), moments, 1 - fold) for fold in (0, 1))
        if lost < 0.995 * best:
            best, pull = lost, candidate
    return rows if pull is None else _pulled(rows, moments, pull, (0, 1))


def _pulled(rows: NDArray[np.float64], moments: Moments, pull: float, folds: tuple[int, ...]) -> NDArray[np.float64]:
    xx, yx, _ = moments.centred(folds)
    mean = np.maximum(np.trace(xx, axis1=1, axis2=2) / xx.shape[1], 1e-12)
    held = pull * mean[:, None, None]
    turned = np.swapaxes(yx + held * rows, 1, 2)
    return np.swapaxes(np.linalg.solve(xx + held * np.eye(xx.shape[1]), turned), 1, 2)


def _misfit(rows: NDArray[np.float64], moments: Moments, fold: int) -> float:
    xx, yx, yy = moments.centred((fold,))
    return float((yy - 2 * (rows * yx).sum(axis=2) + ((rows @ xx) * rows).sum(axis=2)).sum())
