"""Putting layers back to float until the drop is allowed: by noise removed per millisecond lost, one at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimize.progress import Progress, SilentProgress
from optimize.quantize.graph import COMPUTE, Graph, shape_of
from optimize.quantize.sensitivity import LayerSensitivity, MakeGraph
from optimize.quantize.summary import macs_of

if TYPE_CHECKING:
    import onnx

__all__ = ["SearchResult", "Setting", "Step", "float_costs", "search", "sensitivity_json"]

MAX_TRIALS = 12
"""Layers tried at most; each costs one emission and one run over val."""

BORDER_MACS = 16
"""What converting one value between float and INT8 is counted as. A guess with a reason: such a value is loaded,
multiplied, rounded, clamped and stored, where a good convolution does several multiplications per cycle."""

FEW_PICTURES = 100
NO_KERNEL = frozenset({"HardSigmoid", "HardSwish", "Sigmoid", "Swish", "Silu", "Mish", "Erf", "Gelu"})
"""Activations that ONNX Runtime can't join to an integer convolution, and whose long tails cost range."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One layer that was tried in float.

    Attributes:
        layer: its name.
        kept: whether it stays float; False when the drop got worse with it.
        drop_points: the drop with it, in percentage points.
        ms: latency with it; None when it was not measured.
        reason: why it was tried and what came of it, in words; no times in it.
    """

    layer: str
    kept: bool
    drop_points: float
    ms: float | None
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What the search came to; truthy when the budget holds.

    Attributes:
        holds: whether the drop is within the budget.
        max_drop: the budget, in percentage points.
        drop_before: with no layer in float beyond those that always are.
        drop_points: with `in_float`.
        in_float: layers put back to float, sorted.
        graph: the graph's bytes with these in float.
        steps: what was tried, in order.
        holding_back: layers that cost most among those still in INT8, worst first; empty when the budget holds.
        advice: what would help, one sentence each; empty when the budget holds.
    """

    holds: bool
    max_drop: float
    drop_before: float
    drop_points: float
    in_float: tuple[str, ...]
    graph: bytes
    steps: tuple[Step, ...]
    holding_back: tuple[str, ...]
    advice: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.holds

    def to_json(self) -> dict[str, Any]:
        """Plain values for `sensitivity.json`: no times, so the same inputs give the same bytes."""
        return {
            "holds": self.holds,
            "max_drop_points": self.max_drop,
            "drop_before_points": _rounded(self.drop_before),
            "drop_points": _rounded(self.drop_points),
            "in_float": list(self.in_float),
            "steps": [
                {
                    "layer": step.layer,
                    "kept": step.kept,
                    "drop_points": _rounded(step.drop_points),
                    "reason": step.reason,
                }
                for step in self.steps
            ],
            "holding_back": list(self.holding_back),
            "advice": list(self.advice),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How far a search may go, and what its advice depends on.

    Attributes:
        calibration_pictures: how many ranges were read off.
        operators: the float graph's.
        weight_bits: of the INT8 weights.
        float_accuracy: of the float graph on val, 0 to 1; None when unknown.
        limit: at most so many layers are tried.
    """

    calibration_pictures: int
    operators: frozenset[str]
    weight_bits: int = 8
    float_accuracy: float | None = None
    limit: int = MAX_TRIALS


def search(
    make: MakeGraph,
    measure: Callable[[bytes], float],
    ranking: Sequence[LayerSensitivity],
    costs: Mapping[str, float],
    setting: Setting,
    *,
    max_drop: float,
    latency_ms: Callable[[bytes], float] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Put layers back to float until the drop is within the budget, or nothing that helps is left.

    Args:
        make: emits the graph with some layers in float.
        measure: a graph's drop against the float one, in percentage points.
        ranking: from `sensitivity`.
        costs: what each layer costs in float, in milliseconds or any unit proportional to them (`float_costs`). With
            measured times the choice, and so the bundle, may differ from run to run; with `float_costs` it does not.
        setting: how far to go, and what advice depends on.
        max_drop: the budget, in percentage points.
        latency_ms: measures a graph, for the report; it decides nothing.
        progress: hears where we are.

    Returns:
        The result, with the graph. Ties are broken by name. It ends after `setting.limit` trials at the latest.
    """
    progress = progress or SilentProgress()
    state = _State(make=make, measure=measure, latency_ms=latency_ms)
    graph, before = state.tried(frozenset())
    best, drop, in_float, steps = graph, before, frozenset[str](), list[Step]()
    order = _order(ranking, costs)
    for entry in order[: setting.limit]:
        if drop <= max_drop:
            break
        progress.step(f"{drop:.2f} points lost, allowed are {max_drop:g}: trying {entry.layer} in float")
        graph, found = state.tried(in_float | {entry.layer})
        kept = found <= drop
        steps.append(state.step(graph, entry, found=found, kept=kept, before=drop))
        if kept:
            best, drop, in_float = graph, found, in_float | {entry.layer}
    holds = drop <= max_drop
    if holds:
        best, drop, in_float = _without_idle(state, best, drop, in_float, max_drop)
    left = [entry for entry in order if entry.layer not in in_float]
    return SearchResult(
        holds=holds,
        max_drop=max_drop,
        drop_before=before,
        drop_points=drop,
        in_float=tuple(sorted(in_float)),
        graph=best,
        steps=tuple(steps),
        holding_back=() if holds else _holding_back(left),
        advice=() if holds else tuple(_advice(left, setting, before=before, after=drop)),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """The three functions of a search."""

    make: MakeGraph
    measure: Callable[[bytes], float]
    latency_ms: Callable[[bytes], float] | None

    def tried(self, in_float: frozenset[str]) -> tuple[bytes, float]:
        graph = self.make(in_float)
        return graph, self.measure(graph)

    def step(self, graph: bytes, entry: LayerSensitivity, *, found: float, kept: bool, before: float) -> Step:
        share = f"its INT8 makes {entry.noise_removed:.0%} of the noise"
        came = (
            f"drop {before:.2f} → {found:.2f} points" if kept else f"worse with it ({before:.2f} → {found:.2f} points)"
        )
        return Step(
            layer=entry.layer,
            kept=kept,
            drop_points=found,
            ms=None if self.latency_ms is None else self.latency_ms(graph),
            reason=f"{share}; {came}{'' if kept else ', left in INT8'}",
        )


def _without_idle(
    state: _State, graph: bytes, drop: float, in_float: frozenset[str], max_drop: float
) -> tuple[bytes, float, frozenset[str]]:
    """The result without layers that turned out not to be needed: a pair may have helped where neither did alone."""
    for layer in sorted(in_float):
        tried, found = state.tried(in_float - {layer})
        if found <= max(drop, max_drop):
            graph, drop, in_float = tried, found, in_float - {layer}
    return graph, drop, in_float


def _order(ranking: Sequence[LayerSensitivity], costs: Mapping[str, float]) -> list[LayerSensitivity]:
    """Layers by noise removed per cost; then those that remove none alone, best first; ties by name.

    A tensor between two layers is quantized as long as one of them is in integers: where it is to blame, neither layer
    helps alone, and both do.
    """
    known = [cost for cost in costs.values() if cost > 0]
    # A layer that measures as free, or as a gain, is cheap: a division by it must still give an order.
    least = min(known, default=1.0) / 10
    worth = [entry for entry in ranking if entry.gain_db > 0]
    unknown = max(known, default=1.0)
    first = sorted(worth, key=lambda e: (-e.noise_removed / max(costs.get(e.layer, unknown), least), e.layer))
    return [*first, *sorted((e for e in ranking if e.gain_db <= 0), key=lambda e: (-e.gain_db, e.layer))]


def _holding_back(left: Sequence[LayerSensitivity]) -> tuple[str, ...]:
    return tuple(entry.layer for entry in sorted(left, key=lambda e: (-e.gain_db, e.layer))[:5])


def _advice(left: Sequence[LayerSensitivity], setting: Setting, *, before: float, after: float) -> list[str]:
    """What would help, most promising first."""
    sentences = []
    if setting.calibration_pictures < FEW_PICTURES:
        sentences.append(
            f"calibrate with more pictures: {setting.calibration_pictures} were used, 100 to 500 from the line's own "
            "camera, good and bad parts, make ranges that hold"
        )
    bad = sorted(setting.operators & NO_KERNEL)
    if bad:
        sentences.append(
            f"train the network with ReLU or ReLU6 instead of {', '.join(bad)}: these have long tails, and no integer "
            "kernel on CPUs"
        )
    if setting.weight_bits < 8:
        sentences.append(
            "if the device has VNNI or is an ARM board, use weight_bits: 8, which halves the weights' step"
        )
    if left and sum(max(entry.noise_removed, 0) for entry in left) < 0.5:
        sentences.append(
            "the noise is spread over many layers, none of them stands out: distill the network into one with wider "
            "layers, or train it with quantization simulated (QAT)"
        )
    elif before - after <= 0:
        sentences.append("float layers do not help: check that val and calibration pictures come from the same camera")
    if setting.float_accuracy is not None and setting.float_accuracy < 0.9:
        sentences.append(
            f"the float network is unsure itself (accuracy {setting.float_accuracy:.1%}): many pictures lie at the "
            "border of two classes, where the smallest noise turns them; train it better first"
        )
    return [*sentences, "or allow a larger drop (--max-drop), or ship the float graph (quantize.cpu_graph: fp32)"]


def float_costs(model: onnx.ModelProto, layers: Sequence[str]) -> dict[str, float]:
    """What each layer would cost in float: its multiplications, and converting its input and output.

    Proportional to milliseconds as far as it goes, and the same on every machine. Exact times depend on what fuses
    with what.

    Args:
        model: the prepared float graph with inferred shapes.
        layers: nodes by name; those that are no layers, or of unknown shape, are left out.

    Returns:
        By layer, the share of the sum over all layers with weights.
    """
    graph = Graph(model)
    all_costs = {}
    for node in graph.nodes:
        constant = graph.constant(node.input[1]) if node.op_type in COMPUTE and len(node.input) > 1 else None
        macs = None if constant is None else macs_of(graph, node, constant.shape)
        if macs is not None:
            all_costs[node.name] = macs + BORDER_MACS * (_values(model, node.input[0]) + _values(model, node.output[0]))
    total = sum(all_costs.values()) or 1
    return {name: all_costs[name] / total for name in sorted(layers) if name in all_costs}


def _values(model: onnx.ModelProto, tensor: str) -> int:
    """How many numbers a tensor holds; 0 where its shape is unknown."""
    shape = shape_of(model, tensor)
    product = 1
    for side in shape or (0,):
        product *= side if isinstance(side, int) else 0
    return product


def sensitivity_json(targets: Mapping[str, tuple[Sequence[LayerSensitivity], SearchResult | None]]) -> bytes:
    """The bundle's `sensitivity.json`: by target (`cpu`, `tensorrt`) the ranking and what the search did.

    No times and no paths are in it, and numbers are rounded: the same inputs give the same bytes.
    """
    document = {
        target: {
            "layers": [
                {
                    "layer": entry.layer,
                    "gain_db": _rounded(entry.gain_db),
                    "snr_db": _rounded(entry.snr_db),
                    "gain_points": None if entry.gain_points is None else _rounded(entry.gain_points),
                }
                for entry in ranking
            ],
            "search": None if result is None else result.to_json(),
        }
        for target, (ranking, result) in targets.items()
    }
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _rounded(value: float) -> float:
    """Two digits; and no negative zero, which would be another text for the same number."""
    return round(value, 2) + 0.0
