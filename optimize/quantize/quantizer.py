"""The whole way from a float graph and calibration pictures to integer graphs, one per target, from one calibration.

```text
prepare      constants and batch norms folded
  → equalize   channels equally loud, as far as it is measured to help
  → collect    every tensor's values, streaming over all pictures
  → spans      each tensor's range, by what it does to the outputs        ┐
  → solve      layer by layer: weights, rounding, biases                  ├ per target
  → emit       QuantizeLinear and DequantizeLinear where the target wants ┘
```
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from optimize.progress import Progress, SilentProgress
from optimize.quantize.byte_input import ByteInput, find_byte_input, join_byte_input
from optimize.quantize.emit import emit
from optimize.quantize.equalize import equalize
from optimize.quantize.fusion import FloatLayer, Fusion, fuse
from optimize.quantize.graph import Graph, is_float, zones
from optimize.quantize.grid import Affine, affine_of
from optimize.quantize.interpret import session_of
from optimize.quantize.layers import find_layers
from optimize.quantize.model import FloatModel, bytes_from_model
from optimize.quantize.place import Plan, Target, place
from optimize.quantize.prepare import prepare
from optimize.quantize.ranges import Range, TensorStats, candidates, collect
from optimize.quantize.reconstruct import Correction, Solution, Tuning, solve
from optimize.quantize.spans import Span, choose_spans, noise, outputs_of
from optimize.quantize.summary import macs_of

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["IntegerGraph", "QuantizeOptions", "Quantizer"]

STRENGTHS = (0.0, 0.5, 0.8)
"""Equalizations that are tried; above 0.8 a channel keeps no room for values that calibration has not shown."""

EQUALIZE_PICTURES = 64
STRENGTH_PICTURES = 16
"""Pictures that equalization reads the loudness off, and that its strengths are compared on."""

JUDGED_MACS = 3e9
"""Multiplications spent on one range candidate: at most 6 pictures, fewer of a big graph."""

WALK_BYTES = 192e6
"""Values of the largest tensor over all pictures of the walk, which holds a few such at a time."""

WALK_PICTURES = (16, 64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How integer graphs are made.

    Attributes:
        method: how ranges are found; `auto` measures, per tensor, which candidate disturbs the outputs least.
        percentile: share of values that `percentile` keeps, in percent.
        equalize: `auto` measures whether making channels equally loud helps; `none` leaves them.
        correction: `weights` fits weights and biases layer by layer; `full` biases only, on quantized inputs; `fast`
            biases by the layer's own error; `none` rounds and leaves it there.
        weight_bits: 8; on CPUs pairs of weights are kept from saturating, so it is right on all of them. 7 is coarser
            and needs no such care.
    """

    method: Literal["auto", "minmax", "percentile", "mse", "kl"] = "auto"
    percentile: float = 99.99
    equalize: Literal["auto", "none"] = "auto"
    correction: Correction = "weights"
    weight_bits: Literal[7, 8] = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegerGraph:
    """One target's graph.

    Attributes:
        target: whose.
        graph: its ONNX bytes; inputs and outputs as the float graph has them.
        plan: where its quantizers stand.
        float_layers: layers with weights that stay float, with the reason.
        fusion: what ONNX Runtime makes of it; None for TensorRT's.
        warnings: what the user should know, one sentence each.
    """

    target: Target
    graph: bytes
    plan: Plan
    float_layers: tuple[FloatLayer, ...]
    fusion: Fusion | None
    warnings: tuple[str, ...] = ()


class Quantizer:
    """One float graph, calibrated once; gives a graph for each target, with any layers left in float.

    Args:
        model: a checked float model.
        images: calibration pictures, each (1, height_px, width_px, 3) uint8 RGB, fitted as the device fits them. They
            are read when needed, some dozens are in memory at a time.
        options: how; None takes the defaults.
        progress: hears where we are.

    Raises:
        ModelError: the graph can't be opened, or gives values that are no numbers.
    """

    def __init__(
        self,
        model: FloatModel,
        images: Sequence[NDArray[np.uint8]],
        options: QuantizeOptions | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.options = options or QuantizeOptions()
        self._images = images
        self._progress = progress or SilentProgress()
        self._heads = model.heads or (model.logits,)
        self._spans: dict[Target, dict[str, Span]] = {}
        self._solutions: dict[Target, Solution] = {}
        self._progress.step("preparing the float graph")
        prepared = prepare(model.proto, str(model.path))
        self._bytes_in = find_byte_input(Graph(prepared), model.input.name)
        self.strength, prepared = self._equalized(prepared)
        self.graph = Graph(prepared)
        self.zones = zones(self.graph, self._heads)
        self.stats = self._collected(self.graph, images, [*_tensors(self._plan("cpu")), *_tensors(self._plan("trt"))])

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that is in integers on a CPU when none is asked to be in float, in graph order."""
        plan = self._plan("cpu")
        return tuple(node.name for node in self.graph.nodes if node.name in plan.layers)

    def quantize(
        self, target: Target, in_float: frozenset[str] = frozenset(), *, is_fitted: bool = True
    ) -> IntegerGraph:
        """Make a target's graph.

        Args:
            target: `cpu` or `trt`.
            in_float: layers that must stay float.
            is_fitted: weights and biases make up for the errors of the layers before them, so they are fitted anew for
                each `in_float`. False rounds each layer by itself: quick, for comparing layers.
        """
        plan = self._plan(target, in_float)
        emitted = emit(self.graph, plan, self._solution(plan, is_fitted=is_fitted))
        joined = target == "cpu" and self._bytes_in is not None and join_byte_input(emitted, self._bytes_in)
        del emitted.metadata_props[:]
        emitted.metadata_props.extend(self.model.proto.metadata_props)
        data = bytes_from_model(emitted)
        fusion = fuse(data, source=self.model.input.name, head=self.zones.head) if target == "cpu" else None
        return IntegerGraph(
            target=target,
            graph=data,
            plan=plan,
            float_layers=_float_layers(self.graph, plan, fusion),
            fusion=fusion,
            warnings=tuple(_warnings(plan, fusion, joined=joined)) if target == "cpu" else (),
        )

    def spans(self, target: Target) -> Mapping[str, Span]:
        """Method and range of every tensor that a target quantizes, but for the camera's bytes, which need none."""
        if target not in self._spans:
            wanted = {
                name: self.stats[name] for name in _tensors(self._plan(target)) if name not in self._fixed(target)
            }
            self._spans[target] = self._chosen(wanted, target)
        return self._spans[target]

    def float_ranges(self, progress: Progress | None = None) -> Mapping[str, float]:
        """The largest magnitude of every float tensor of the model as it came, for a calibration cache."""
        graph = Graph(self.model.proto)
        names = [name for node in graph.nodes if node.op_type != "Constant" for name in node.output if name]
        floats = [name for name in names if is_float(graph.model, name)]
        pictures = self._picked(EQUALIZE_PICTURES)
        found = collect(graph.model, self.model.input.name, pictures, sorted(floats), progress=progress)
        return {name: max(abs(stats.low), abs(stats.high)) for name, stats in found.items()}

    def _plan(self, target: Target, in_float: frozenset[str] = frozenset()) -> Plan:
        return place(self.graph, self.zones, target, in_float)

    def _solution(self, plan: Plan, *, is_fitted: bool) -> Solution:
        """The numbers of a plan; those with every layer in integers are kept, as most of what is asked for."""
        target = plan.target
        if not is_fitted or plan.layers != self._plan(target).layers:
            return self._solved(plan, is_fitted=is_fitted)
        if target not in self._solutions:
            self._solutions[target] = self._solved(plan, is_fitted=True)
        return self._solutions[target]

    def _solved(self, plan: Plan, *, is_fitted: bool) -> Solution:
        correction = self.options.correction if is_fitted else "none"
        tuning = Tuning(correction=correction, weight_bits=self.options.weight_bits)
        pictures = self._picked(self._walk_length()) if correction != "none" else []
        return solve(self.graph, plan, self._grids(plan), pictures, tuning, progress=self._progress)

    def _grids(self, plan: Plan) -> dict[str, Affine]:
        """Of every tensor that a plan quantizes: with layers in float some that the whole graph does not."""
        spans = {name: span for name, (_, span) in self.spans(plan.target).items()}
        fixed = self._fixed(plan.target)
        missing = [name for name in _tensors(plan) if name not in spans and name not in fixed]
        if missing:
            found = self._collected(self.graph, self._picked(EQUALIZE_PICTURES), missing)
            spans |= {name: _minmax(stats, plan.target) for name, stats in found.items()}
        return {name: _grid(span, plan.target) for name, span in spans.items()} | fixed

    def _chosen(self, stats: Mapping[str, TensorStats], target: Target) -> dict[str, Span]:
        method = self.options.method
        if method == "auto":
            macs = max(_macs(self.graph), 1)
            return choose_spans(
                self.graph,
                self._heads,
                stats,
                self._images,
                target,
                percentile=self.options.percentile,
                judged=int(np.clip(JUDGED_MACS / macs, 2, 6)),
                progress=self._progress,
            )
        asked = {
            name: candidates(found, percentile=self.options.percentile, symmetric=target == "trt")
            for name, found in stats.items()
        }
        return {name: (method, spans[method]) for name, spans in asked.items()}

    def _equalized(self, prepared: onnx.ModelProto) -> tuple[float, onnx.ModelProto]:
        """The strength whose plainly rounded graph is nearest to the float one, and the graph with it."""
        import onnx

        if self.options.equalize == "none":
            return 0.0, prepared
        graph = Graph(prepared)
        plan = place(graph, zones(graph, self._heads), "cpu")
        pictures = self._picked(EQUALIZE_PICTURES)
        stats = self._collected(graph, pictures, _tensors(plan))
        judged = self._picked(STRENGTH_PICTURES)
        reference = outputs_of(session_of(prepared.SerializeToString()), self._heads, judged)
        best, chosen, least = 0.0, prepared, np.inf
        for strength in self._progress.track(STRENGTHS, "comparing equalizations"):
            scaled = onnx.shape_inference.infer_shapes(equalize(prepared, stats, strength=strength))
            if strength and scaled == chosen:
                continue
            found = stats if not strength else self._collected(Graph(scaled), judged, _tensors(plan))
            lost = noise(
                reference, outputs_of(session_of(self._rounded(Graph(scaled), plan, found)), self._heads, judged)
            )
            if lost < (1.0 if not strength else 0.9) * least:
                best, chosen, least = strength, scaled, lost
        return best, chosen

    def _rounded(self, graph: Graph, plan: Plan, stats: Mapping[str, TensorStats]) -> bytes:
        """The graph with every weight at its nearest step and every range at its minimum and maximum."""
        grids = {name: _grid(_minmax(found, plan.target), plan.target) for name, found in stats.items()}
        tuning = Tuning(correction="none", weight_bits=self.options.weight_bits)
        solution = solve(graph, plan, {**grids, **self._fixed(plan.target)}, (), tuning)
        return bytes_from_model(emit(graph, plan, solution))

    def _fixed(self, target: Target) -> dict[str, Affine]:
        """The grid of the camera's bytes, where normalization is one."""
        found: ByteInput | None = self._bytes_in
        if found is None:
            return {}
        if target == "cpu":
            return {found.tensor: Affine(scale=found.scale, zero_point=found.zero_point, low=0, high=255)}
        if found.zero_point == 128:
            return {found.tensor: Affine(scale=found.scale, zero_point=0, low=-128, high=127)}
        return {}

    def _collected(
        self, graph: Graph, images: Sequence[NDArray[np.uint8]], names: Sequence[str]
    ) -> Mapping[str, TensorStats]:
        wanted = sorted(set(names))
        return collect(graph.model, self.model.input.name, images, wanted, progress=self._progress)

    def _picked(self, count: int) -> Sequence[NDArray[np.uint8]]:
        """Some of the pictures, spread evenly over all."""
        places = np.unique(np.linspace(0, len(self._images) - 1, min(count, len(self._images))).round().astype(int))
        return [self._images[int(i)] for i in places]

    def _walk_length(self) -> int:
        largest = max((found.counts.sum() / found.image_low.size for found in self.stats.values()), default=1)
        return int(np.clip(WALK_BYTES / (4 * largest), *WALK_PICTURES))


def _tensors(plan: Plan) -> list[str]:
    return sorted(set(plan.tensors.values()))


def _minmax(stats: TensorStats, target: Target) -> Range:
    return candidates(stats, symmetric=target == "trt")["minmax"]


def _grid(span: Range, target: Target) -> Affine:
    return affine_of(span.low, span.high, target)


def _macs(graph: Graph) -> int:
    return sum(macs_of(graph, layer.node, layer.weight.shape) or 0 for layer in find_layers(graph).values())


def _float_layers(graph: Graph, plan: Plan, fusion: Fusion | None) -> tuple[FloatLayer, ...]:
    """Layers left in float on purpose, and those that ONNX Runtime could not fuse."""
    meant = [
        FloatLayer(name=node.name, op=node.op_type, why=plan.float_layers[node.name])
        for node in graph.nodes
        if node.name in plan.float_layers
    ]
    unfused = [] if fusion is None else [f for f in fusion.float_layers if f.name in plan.layers]
    return (*meant, *unfused)


def _warnings(plan: Plan, fusion: Fusion | None, *, joined: bool) -> list[str]:
    found = []
    left = [] if fusion is None else [layer.name for layer in fusion.float_layers if layer.name in plan.layers]
    if left:
        more = ", …" if len(left) > 5 else ""
        found.append(f"ONNX Runtime runs {len(left)} integer layers in float: {', '.join(left[:5])}{more}")
    if not joined:
        found.append(
            "the normalization is not (byte - z) * s with one whole z and one s for all channels, so the picture is "
            "converted to float and quantized again before the first layer; (x - 128) / 128 costs nothing"
        )
    elif fusion is not None and not fusion.reads_bytes:
        found.append("ONNX Runtime does not run the first layer on the camera's bytes")
    return found
