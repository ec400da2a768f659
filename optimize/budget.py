"""One target's integer graph within the recipe's budget: which layers cost what, and which go back to float for it."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.judge import Judge, Loss
from optimize.progress import Progress, SilentProgress
from optimize.quantize.interpret import session_of
from optimize.quantize.model import bytes_from_model
from optimize.quantize.place import Target
from optimize.quantize.quantizer import IntegerGraph, Quantizer
from optimize.quantize.search import SearchResult, Setting, float_costs, search
from optimize.quantize.sensitivity import LayerSensitivity, Probe, sensitivity
from optimize.quantize.spans import outputs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Fitted", "fit_budget"]

RANKED_ON = 8
"""Pictures that every layer is ranked on for the report; a search that must decide takes four times as many."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """A target's graph, and how it came to be.

    Attributes:
        integer: the graph.
        loss: what it loses on val.
        ranking: what each layer's INT8 costs, most first.
        result: the search; None where the budget held at once, or there is none.
        reasons: why the gate does not hold, in words; empty when it does.
    """

    integer: IntegerGraph
    loss: Loss
    ranking: tuple[LayerSensitivity, ...]
    result: SearchResult | None
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the report."""
        result = self.result
        return self.loss.to_json() | {
            "size_bytes": len(self.integer.graph),
            "integer_layers": len(self.integer.plan.layers),
            "float_layers": [dataclasses.asdict(layer) for layer in self.integer.float_layers],
            "in_float_for_the_budget": [] if result is None else list(result.in_float),
            "holding_back": [] if result is None else list(result.holding_back),
            "advice": [] if result is None else list(result.advice),
        }


def fit_budget(
    quantizer: Quantizer,
    target: Target,
    judge: Judge,
    *,
    max_drop: float | None,
    max_float_layers: int,
    calibration: Sequence[NDArray[np.uint8]],
    progress: Progress | None = None,
) -> Fitted:
    """Quantize, and put layers back to float until the budget holds.

    Args:
        quantizer: the calibrated float graph.
        target: whose graph.
        judge: measures what is lost.
        max_drop: the budget in percentage points; None sets none.
        max_float_layers: at most so many layers are tried in float.
        calibration: pictures that layers are ranked on; val is kept for judging.
        progress: hears where we are.
    """
    progress = progress or SilentProgress()
    # A search begins where we stand, and comes back to what it has seen: each graph is made and judged once.
    made = functools.cache(lambda names: quantizer.quantize(target, names))
    lost = functools.cache(lambda graph: judge.loss(graph, target))
    integer = made(frozenset())
    loss = lost(integer.graph)
    over = max_drop is not None and loss.drop_points > max_drop
    ranking = _ranking(quantizer, integer, calibration, RANKED_ON * (4 if over else 1), progress)
    if max_drop is None or not over:
        return Fitted(integer=integer, loss=loss, ranking=ranking, result=None, reasons=())
    result = search(
        lambda names: made(names).graph,
        lambda graph: lost(graph).drop_points,
        ranking,
        float_costs(quantizer.graph.model, [entry.layer for entry in ranking]),
        _setting(quantizer, judge, len(calibration), max_float_layers),
        max_drop=max_drop,
        progress=progress,
    )
    integer = made(frozenset(result.in_float))
    loss = lost(integer.graph)
    reasons = () if result.holds else (_reason(target, loss, result, quantizer),)
    return Fitted(integer=integer, loss=loss, ranking=ranking, result=result, reasons=reasons)


def _ranking(
    quantizer: Quantizer, whole: IntegerGraph, pictures: Sequence[NDArray[np.uint8]], count: int, progress: Progress
) -> tuple[LayerSensitivity, ...]:
    """What each integer layer costs, judged on calibration pictures, which need no labels."""
    places = np.unique(np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int))
    picked = [pictures[int(i)] for i in places]
    roles = quantizer.model.outputs
    output = roles.logits or roles.scores
    assert output is not None
    float_graph = session_of(bytes_from_model(quantizer.model.proto))
    reference = np.stack([run[0] for run in outputs_of(float_graph, [output], picked)])
    probe = Probe(images=picked, reference=reference, output=output)
    layers = [name for name in quantizer.layers if name in whole.plan.layers]
    return sensitivity(
        lambda names: quantizer.quantize(whole.target, names, is_fitted=False).graph,
        layers,
        probe,
        limit=count,
        progress=progress,
    )


def _setting(quantizer: Quantizer, judge: Judge, pictures: int, limit: int) -> Setting:
    return Setting(
        calibration_pictures=pictures,
        operators=frozenset(node.op_type for node in quantizer.graph.nodes),
        weight_bits=quantizer.options.weight_bits,
        float_accuracy=judge.accuracy,
        limit=limit,
    )


def _reason(target: Target, loss: Loss, result: SearchResult, quantizer: Quantizer) -> str:
    what = "points of accuracy"
    if quantizer.model.task == "detect":
        what = "% of the detections" if loss.map50 is None else "points of mAP50"
    name = "INT8" if target == "cpu" else "INT8 for TensorRT"
    held = f"; held back most by {', '.join(result.holding_back[:3])}" if result.holding_back else ""
    return f"{name} loses {loss.drop_points:.2f} {what} on val, allowed are {result.max_drop:g}{held}"
