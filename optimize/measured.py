"""A draft bundle measured through the agent's own code, and what follows: temperature, the CPU's graph, goldens."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agent.bundle import Bundle, Golden, fit, golden_name, golden_outputs
from agent.config import EngineConfig
from agent.engines import Engine, open_engine
from agent.errors import ImageError
from optimize.budget import Fitted
from optimize.calibration import FittedImages
from optimize.dataset import Dataset, Sample, read_image
from optimize.detection_card import DetectionScorecard
from optimize.detection_score import evaluate_detector
from optimize.ensemble import is_out_of_fold
from optimize.errors import DataError
from optimize.evaluate import Scorecard, evaluate
from optimize.inputs import Inputs, known_boxes
from optimize.latency import median_latency
from optimize.machine import int8_flags
from optimize.progress import Progress
from optimize.quantize.interpret import session_of
from optimize.quantize.place import Target
from optimize.recipe import Recipe
from optimize.temperature import expected_calibration_error, fit_temperature, probabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CPU_KINDS",
    "Choice",
    "Measured",
    "Tempered",
    "choose",
    "drop_points",
    "measure",
    "record_goldens",
    "temperature",
]

CPU_KINDS = ("fp32", "cpu")
"""Graphs that a CPU can run."""

MIN_SPEEDUP = 1.1
"""INT8 must be faster than FP32 by this factor to be worth its loss; timings of one machine vary by some percent."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A bundle on val.

    Attributes:
        cards: a classifier's graphs for a CPU, by kind, on val; empty for a detector.
        detections: the same of a detector; empty for a classifier, and where val has no boxes of known classes.
        latency_ms: by kind, the median of inference alone over one interleaved run.
        sound: val pictures that every graph could judge.
    """

    cards: Mapping[str, Scorecard]
    latency_ms: Mapping[str, float]
    sound: tuple[Sample, ...]
    detections: Mapping[str, DetectionScorecard] = dataclasses.field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """How many times as fast INT8 is."""
        return self.latency_ms["fp32"] / self.latency_ms["cpu"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tempered:
    """A temperature, and what it does to the expected calibration error on val.

    Attributes:
        value: logits are divided by it.
        ece_before: error of the raw INT8 probabilities; None when no val picture could be run.
        ece_after: the same at the temperature, on the pictures that it was fitted on.
        n: pictures.
    """

    value: float
    ece_before: float | None
    ece_after: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Plain values, for the bundle's manifest and the report."""
        return {"temperature": self.value, "ece_before": self.ece_before, "ece_after": self.ece_after, "n": self.n}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which graph a CPU runs and why, and what the gate says.

    Attributes:
        graph: `cpu` (INT8) or `fp32`.
        why: in words.
        gate_reasons: why the gate does not hold; empty when it does.
        warnings: what the user should know, one sentence each.
    """

    graph: str
    why: str
    gate_reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def drop_points(fp32: Scorecard | DetectionScorecard, int8: Scorecard | DetectionScorecard) -> float:
    """Accuracy (or mAP50) lost from one to the other in points, free of the last digits of float arithmetic."""
    return round(100 * (_figure(fp32) - _figure(int8)), 6)


def _figure(card: Scorecard | DetectionScorecard) -> float:
    return card.accuracy if isinstance(card, Scorecard) else card.map50 or 0.0


def temperature(draft: Bundle, inputs: Inputs) -> Tempered:
    """Fitted on the INT8 outputs over val; pictures that can't be read are reported by the evaluation.

    An ensemble of folds carries temperatures from images that its members never saw. Val would teach it to be too sure:
    most of its members were trained on it.
    """
    index = {name: i for i, name in enumerate(draft.manifest.class_names)}
    engine = open_engine(draft, _engine_config("cpu", inputs.recipe.threads))
    logits, labels = [], []
    try:
        for sample in inputs.val:
            with contextlib.suppress(ImageError):
                picture = fit(read_image(sample.path), inputs.model.input)[None]
                found = engine.infer(picture)["logits"].reshape(-1)
                if np.isfinite(found).all():  # else the evaluation reports it as an image that can't be judged
                    logits.append(found)
                    labels.append(index[str(sample.label)])
    finally:
        engine.close()
    if not logits:
        return Tempered(value=1.0, ece_before=None, ece_after=None, n=0)
    values, targets = np.array(logits, dtype=np.float64), np.array(labels)
    is_calibrated = is_out_of_fold(inputs.model.proto)
    value = 1.0 if is_calibrated else fit_temperature(values, targets)
    errors = []
    for t in (1.0, value):
        chances = probabilities(values, t)
        error = expected_calibration_error(chances.max(axis=1), chances.argmax(axis=1) == targets)
        errors.append(round(error, 4))
    return Tempered(value=value, ece_before=errors[0], ece_after=errors[1], n=len(targets))


def measure(draft: Bundle, inputs: Inputs, progress: Progress) -> Measured:
    """Judge val with each of the CPU's graphs, and time them in turn.

    Raises:
        DataError: no val picture could be judged.
    """
    threads = inputs.recipe.threads
    cards, detections, sound = {}, {}, _readable(inputs.val) if inputs.model.task == "detect" else ()
    has_boxes = inputs.model.task == "detect" and known_boxes(inputs.val, inputs.classes)
    for kind in CPU_KINDS:
        if inputs.model.task == "classify" or has_boxes:
            progress.step(f"evaluating {'int8' if kind == 'cpu' else kind} on val")
        if inputs.model.task == "classify":
            cards[kind], _ = evaluate(draft, inputs.val, _engine_config(kind, threads), progress=progress)
        elif has_boxes:
            config = _engine_config(kind, threads)
            detections[kind], _, _ = evaluate_detector(draft, inputs.val, config, progress=progress)
    if cards or detections:
        sound = _sound(inputs.val, (*cards.values(), *detections.values()))
    progress.step("timing fp32 and int8 in turn")
    configs = {kind: _engine_config(kind, threads) for kind in CPU_KINDS}
    latency = median_latency(draft, configs, list(FittedImages(sound[:16], inputs.model.input)))
    return Measured(cards=cards, detections=detections, latency_ms=latency, sound=sound)


def choose(recipe: Recipe, measured: Measured, fitted: Mapping[Target, Fitted]) -> Choice:
    """Decide which graph a CPU runs, and whether the gate holds."""
    wanted, flags = recipe.quantize.cpu_graph, int8_flags()
    speed = f"INT8 is {measured.speedup:.2f} times as fast as FP32 here"
    warnings = []
    reasons = _gate(recipe, measured, fitted)
    if wanted != "auto":
        graph, why = ("cpu" if wanted == "int8" else "fp32"), f"the recipe says so; {speed}"
    elif any(reasons["cpu"]):
        graph, why = "fp32", "INT8 is not good enough"
    elif measured.speedup < MIN_SPEEDUP:
        graph, why = "fp32", f"{speed}, it must be {MIN_SPEEDUP:g} times as fast to be worth its loss"
        warnings.append(f"{speed}: a CPU will run the FP32 graph{_advice(flags)}")
    else:
        graph, why = "cpu", speed
    everything = tuple(reason for found in reasons.values() for reason in found)
    return Choice(graph=graph, why=why, gate_reasons=everything, warnings=tuple(warnings))


def _gate(recipe: Recipe, measured: Measured, fitted: Mapping[Target, Fitted]) -> dict[Target, tuple[str, ...]]:
    """By target why the budget does not hold; for CPUs also by what the agent's own code measured."""
    reasons = {target: found.reasons for target, found in fitted.items()}
    allowed = recipe.max_drop_points
    cards = measured.cards or measured.detections
    if allowed is not None and cards and not reasons["cpu"]:
        lost = drop_points(cards["fp32"], cards["cpu"])
        if lost > allowed:
            what = "accuracy" if measured.cards else "mAP50"
            reasons["cpu"] = (f"INT8 loses {lost:.2f} points of {what} on val, allowed are {allowed:g}",)
    return reasons


def record_goldens(draft: Bundle, samples: Sequence[Sample]) -> list[Golden]:
    """Golden inputs with the outputs of every graph, computed with one thread.

    TensorRT's graph is computed as the standard defines it: what an engine that was compiled from it must come near.
    """
    kinds = [kind for kind in CPU_KINDS if kind in draft.manifest.graphs]
    engines: dict[str, Engine] = {kind: open_engine(draft, _engine_config(kind, 1)) for kind in kinds}
    reference = _TensorRtReference(draft) if "trt" in draft.manifest.graphs else None
    pictures = FittedImages(samples, draft.manifest.input)
    goldens = []
    try:
        for i, sample in enumerate(samples):
            seen = {kind: engine.infer(pictures[i]) for kind, engine in engines.items()}
            if reference is not None:
                seen["trt"] = reference.infer(pictures[i])
            outputs = {kind: golden_outputs(found, draft.manifest) for kind, found in seen.items()}
            goldens.append(Golden(file=golden_name(i), label=sample.label, image=pictures[i][0], outputs=outputs))
    finally:
        for engine in engines.values():
            engine.close()
    return goldens


class _TensorRtReference:
    """The explicitly quantized graph, operator by operator."""

    def __init__(self, draft: Bundle) -> None:
        manifest = draft.manifest
        self._session = session_of(draft.graph("trt"))
        self._source = manifest.input.name
        self._roles = {role: name for role, name in dataclasses.asdict(manifest.outputs).items() if name is not None}

    def infer(self, picture: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        values = self._session.run(list(self._roles.values()), {self._source: picture})
        return dict(zip(self._roles, values, strict=True))


def _readable(val: Dataset) -> tuple[Sample, ...]:
    """Val pictures that can be read."""
    sound = []
    for sample in val:
        with contextlib.suppress(ImageError):
            read_image(sample.path)
            sound.append(sample)
    if not sound:
        raise DataError(f"{val.root}: no val image can be read", hint="`defect-opt data check DIR` names them")
    return tuple(sound)


def _sound(val: Dataset, cards: Sequence[Scorecard | DetectionScorecard]) -> tuple[Sample, ...]:
    """The val pictures that every graph could judge."""
    failed = {entry.file: entry.reason for card in cards for entry in card.unjudged}
    sound = tuple(sample for sample in val if sample.file not in failed)
    if not sound:
        file, reason = next(iter(failed.items()))
        raise DataError(
            f"{val.root}: no val image could be judged; {file}: {reason}",
            hint="`defect-opt data check DIR` names the files that can't be read",
        )
    return sound


def _engine_config(kind: str, threads: int) -> EngineConfig:
    return EngineConfig(graph="cpu" if kind == "cpu" else "fp32", threads=threads)


def _advice(flags: frozenset[str] | None) -> str:
    if flags is None or flags:
        return ""
    return (
        "; this CPU has no instructions for INT8 (VNNI), a device that has them gains more: "
        "set quantize.cpu_graph: int8 for it"
    )
