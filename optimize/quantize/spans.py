"""Which range each tensor gets: the candidate that disturbs the graph's outputs least, measured one tensor at a time.

A clipped value is wrong in the same direction wherever it stands, and its error adds up on the way to the outputs;
rounding errors cancel. So errors at the tensor, or at the next layer, say little: on a ResNet-18 (NEU) choosing by them
cost 5 dB against the plain minimum and maximum. What counts is measured where it counts, with all else in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.progress import Progress, SilentProgress
from optimize.quantize.graph import Graph
from optimize.quantize.grid import Affine, affine_of
from optimize.quantize.interpret import session_of
from optimize.quantize.ranges import METHODS, Method, Range, TensorStats, candidates

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from optimize.quantize.place import Target

__all__ = ["Span", "choose_spans", "noise", "outputs_of"]

BETTER = 0.8
"""A narrower range must bring the noise at the outputs below this share of that of minimum and maximum: what few
pictures say of less may be chance, and a value beyond a range is lost for good."""

LOUDEST = 3
"""Of the pictures on which a tensor's ranges are judged, so many are those with its largest values: they are the ones
that a narrower range costs something."""

NARROWER = 0.98
"""Candidates closer than this to another one are not tried."""

Span = tuple[Method, Range]


def choose_spans(
    graph: Graph,
    heads: Sequence[str],
    stats: Mapping[str, TensorStats],
    images: Sequence[NDArray[Any]],
    target: Target,
    *,
    percentile: float,
    judged: int = 6,
    progress: Progress | None = None,
) -> dict[str, Span]:
    """Choose every tensor's range.

    Args:
        graph: a float graph.
        heads: the outputs that count.
        stats: of each tensor whose range is wanted, over these pictures.
        images: the calibration pictures; read as needed.
        target: whose grids.
        percentile: share of values that the candidate `percentile` keeps, in percent.
        judged: pictures that each candidate is judged on; some are chosen by the tensor's largest values.
        progress: hears of each tensor.
    """
    wanted = session_of(graph.model.SerializeToString())
    references: dict[int, list[NDArray[Any]]] = {}
    chosen: dict[str, Span] = {}
    steps = (progress or SilentProgress()).track(sorted(stats), f"choosing ranges for {target}")
    for name in steps:
        tried = _distinct(candidates(stats[name], percentile=percentile, symmetric=target == "trt"))
        chosen[name] = tried[0]
        if len(tried) == 1:
            continue
        numbers = _judging(stats[name], judged)
        pictures = {number: images[number] for number in numbers}
        for number in numbers:
            if number not in references:
                references[number] = outputs_of(wanted, heads, [pictures[number]])[0]
        reference = [references[number] for number in numbers]
        probe = session_of(_probed(graph, name, target))
        lost = [
            noise(reference, outputs_of(probe, heads, list(pictures.values()), _fed(span, target))) for _, span in tried
        ]
        best = int(np.argmin(lost))
        if lost[best] < BETTER * lost[0]:
            chosen[name] = tried[best]
    return chosen


def _judging(stats: TensorStats, count: int) -> list[int]:
    """The pictures with a tensor's largest values, and some of the others, spread evenly; sorted."""
    loud = np.maximum(np.abs(stats.image_low), np.abs(stats.image_high))
    first = np.argsort(-loud, kind="stable")[: min(LOUDEST, max(count // 2, 1))]
    rest = np.setdiff1d(np.arange(loud.size), first)
    places = np.linspace(0, len(rest) - 1, min(count - len(first), len(rest))).round().astype(int)
    return sorted({int(i) for i in first} | {int(rest[i]) for i in places})


def outputs_of(
    session: Any, heads: Sequence[str], images: Sequence[NDArray[Any]], more: Mapping[str, NDArray[Any]] | None = None
) -> list[list[NDArray[Any]]]:
    """Run a graph over pictures: by picture, then by head."""
    source = session.get_inputs()[0].name
    return [session.run(list(heads), {source: image, **(more or {})}) for image in images]


def noise(reference: Sequence[Sequence[NDArray[Any]]], found: Sequence[Sequence[NDArray[Any]]]) -> float:
    """Noise over signal, summed over heads; logits count without their mean, which decides nothing.

    Args:
        reference: by picture, then by head: what the float graph gives.
        found: the same of another graph.

    Returns:
        0 for equal outputs; infinity when an output is not a number.
    """
    total = 0.0
    for wanted, got in zip(zip(*reference, strict=True), zip(*found, strict=True), strict=True):
        want, have = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
        if want[0].ndim == 2:
            want = want - want.mean(axis=-1, keepdims=True)
            have = have - have.mean(axis=-1, keepdims=True)
        total += float(np.square(want - have).sum()) / max(float(np.square(want).sum()), 1e-30)
    return total if np.isfinite(total) else float("inf")


def _distinct(spans: Mapping[Method, Range]) -> list[Span]:
    """The candidates, minimum and maximum first, without those that are nearly the same as one before."""
    kept: list[Span] = []
    for method in METHODS:
        span = spans[method]
        width = span.high - span.low
        if all(not NARROWER <= width / (other.high - other.low) <= 1 / NARROWER for _, other in kept):
            kept.append((method, span))
    return kept


def _fed(span: Range, target: Target) -> dict[str, NDArray[Any]]:
    grid: Affine = affine_of(span.low, span.high, target)
    kind = np.uint8 if target == "cpu" else np.int8
    return {"probe/scale": np.array(grid.scale, np.float32), "probe/zero_point": np.array(grid.zero_point, kind)}


def _probed(graph: Graph, tensor: str, target: Target) -> bytes:
    """The graph with one quantizer, whose grid is fed."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            if name == tensor:
                node.input[slot] = "probe/read"
    fed = ["probe/scale", "probe/zero_point"]
    pair = [
        helper.make_node("QuantizeLinear", [tensor, *fed], ["probe/quantized"]),
        helper.make_node("DequantizeLinear", ["probe/quantized", *fed], ["probe/read"]),
    ]
    place = _place_behind(model, tensor)
    nodes = list(model.graph.node)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend([*nodes[:place], *pair, *nodes[place:]])
    kind = TensorProto.UINT8 if target == "cpu" else TensorProto.INT8
    model.graph.input.append(helper.make_tensor_value_info("probe/scale", TensorProto.FLOAT, []))
    model.graph.input.append(helper.make_tensor_value_info("probe/zero_point", kind, []))
    return bytes(model.SerializeToString())


def _place_behind(model: onnx.ModelProto, tensor: str) -> int:
    return next((i + 1 for i, node in enumerate(model.graph.node) if tensor in node.output), 0)
