"""From a float ONNX to a bundle: quantize, measure through the agent's own code, choose, pack.

```text
read model, calibration images, val images       refuse before any work is done
  → Quantizer                                    calibrated once
  → fit_budget, for each target                  the INT8 graph, layers put back to float where the budget asks for it
  → halved                                       TensorRT's graph with FP16 where it has float32
  → a draft bundle, opened as a device opens it
  → fit the temperature on val                   with the INT8 outputs that will run
  → evaluate fp32 and int8 on val                the drop of accuracy or mAP50, through Inspector and Policy
  → time both in turn                            one thread, alternating, the median
  → choose the CPU's graph, apply the gate
  → golden inputs with each graph's outputs
  → pack                                         the same inputs, recipe and seed give the same bytes
```

Latency is measured but never written into the bundle: it would differ at every build. It stands in the report beside
it. What latency decides is `cpu_graph: auto`: on a machine where both graphs are about equally fast, the choice may
fall either way, and with it the bytes; `cpu_graph: int8` or `fp32` settles it.

How a detector from elsewhere is read was claimed by shapes, metadata or the recipe: calibration pictures must bear it
out before anything is quantized. INT8 is judged by mAP50 where val's defects are outlined, and always by the float
graph's detections that it keeps, which needs no labels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from agent import __version__
from agent.bundle import Bundle, Golden, Manifest, golden_files
from optimize.artifacts import sidecar_files
from optimize.budget import Fitted, fit_budget
from optimize.calibration import FittedImages, pick_evenly
from optimize.dataset import Sample, data_digest
from optimize.detection_card import DetectionScorecard
from optimize.ensemble import cross_validation_of, is_out_of_fold
from optimize.errors import OptimizeError
from optimize.evaluate import Scorecard
from optimize.halved import Halved, halved
from optimize.inputs import GRAPH_FILES, Inputs, draft_manifest
from optimize.judge import Judge
from optimize.machine import describe
from optimize.measured import (
    CPU_KINDS,
    Choice,
    Measured,
    Tempered,
    choose,
    drop_points,
    measure,
    record_goldens,
    temperature,
)
from optimize.pack import pack_bundle
from optimize.progress import Progress, SilentProgress
from optimize.quantize.detector_parity import ReadingCheck, check_reading
from optimize.quantize.model import bytes_from_model
from optimize.quantize.parity import AdoptionCheck, check_adoption
from optimize.quantize.place import Target
from optimize.quantize.quantizer import QuantizeOptions, Quantizer

__all__ = ["BuildReport", "build", "drop_points"]

GOLDENS = 24
"""Golden inputs of a bundle: enough to show a kernel that computes differently, few enough to ship."""

LOW_SNR_DB = 15
"""Below it decisions near a limit change: the noise is over a sixth of the signal. NEU's networks reach 20 to 38 dB."""

MIN_GOLDENS = 10
PARITY_PICTURES = 8

READING_PICTURES = 24
"""Enough outlined defects to tell readings apart, and a few seconds for a large detector."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did; truthy when its gate holds.

    Attributes:
        bundle: the bundle as it was read back.
        report_path: where this report lies as JSON.
        cards: a classifier's graphs for a CPU (`fp32`, `cpu`) on val, through the agent's code; empty for a detector.
        detections: the same of a detector; empty for a classifier, and where val has no boxes of known classes.
        fitted: each target's graph and what it loses.
        halved: TensorRT's graph in FP16, or why there is none; None where no graph for TensorRT was asked for.
        size_bytes: by graph (`fp32`, `int8`, `trt`, `trt16`).
        latency_ms: by graph (`fp32`, `int8`), the median of inference alone over one interleaved run.
        equalization: how strongly channels were made equally loud, 0 to 1.
        growing: tensors whose range would go on growing with more calibration pictures.
        adoption: how far a model from elsewhere lies from what it was; None for our own.
        reading: what other readings of a detector find; None for a classifier, and for our own.
        tempered: the temperature and the calibration error before and after it; None for a detector.
        cpu_graph_why: why a CPU runs the graph it runs.
        machine: the CPU that the latencies are of, in words.
        seconds: how long it took.
        warnings: what the user should know, one sentence each.
    """

    bundle: Bundle
    report_path: Path
    cards: Mapping[str, Scorecard]
    detections: Mapping[str, DetectionScorecard]
    fitted: Mapping[Target, Fitted]
    halved: Halved | None
    size_bytes: Mapping[str, int]
    latency_ms: Mapping[str, float]
    equalization: float
    growing: tuple[str, ...]
    adoption: AdoptionCheck | None
    reading: ReadingCheck | None
    tempered: Tempered | None
    cpu_graph_why: str
    machine: str
    seconds: float
    warnings: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.bundle.manifest.gate_passed

    @property
    def drop_points(self) -> float:
        """Lost from FP32 to INT8, negative for a gain: accuracy or mAP50 in points; without boxes detections in %."""
        return _drop(self.cards or self.detections, self.fitted)

    @property
    def speedup(self) -> float:
        """How many times as fast INT8 is."""
        return self.latency_ms["fp32"] / self.latency_ms["int8"]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and for the file beside the bundle."""
        manifest, cpu = self.bundle.manifest, self.fitted["cpu"]
        fusion = cpu.integer.fusion
        return {
            "bundle": str(self.bundle.path),
            "sha256": hashlib.sha256(self.bundle.path.read_bytes()).hexdigest(),
            "digest": self.bundle.digest,
            "metrics": _metrics(self.cards, self.detections, self.fitted),
            "drop_points": self.drop_points,
            "targets": {target: found.to_json() for target, found in self.fitted.items()},
            "trt16": None if self.halved is None else self.halved.to_json(),
            "temperature": manifest.temperature,
            "ece": None if self.tempered is None else self.tempered.to_json(),
            "size_bytes": dict(self.size_bytes),
            "latency_ms": {kind: round(value, 3) for kind, value in self.latency_ms.items()},
            "speedup": round(self.speedup, 2),
            "float_layers": [dataclasses.asdict(layer) for layer in cpu.integer.float_layers],
            "reads_bytes": fusion is not None and fusion.reads_bytes,
            "equalization": self.equalization,
            "growing_ranges": list(self.growing),
            "adoption": None if self.adoption is None else dataclasses.asdict(self.adoption),
            "reading": None if self.reading is None else dataclasses.asdict(self.reading),
            "escape_bound": None,
            "notes": ["escape_bound: thresholds with a bound on escapes come with a later release"],
            "cpu_graph": manifest.cpu_graph,
            "cpu_graph_why": self.cpu_graph_why,
            "gate": {"passed": manifest.gate_passed, "reasons": list(manifest.gate_reasons)},
            "machine": self.machine,
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 1),
        }


def build(inputs: Inputs, *, progress: Progress | None = None) -> BuildReport:
    """Quantize, measure, choose and pack.

    Args:
        inputs: what `gather` checked.
        progress: hears where we are.

    Returns:
        The report; the bundle is written even when its gate does not hold, and says so.

    Raises:
        OptimizeError: the graph can't be quantized, or the bundle can't be written.
    """
    started = time.monotonic()
    progress = progress or SilentProgress()
    pictures = FittedImages(inputs.calibration.dataset.samples, inputs.model.input)
    adoption = check_adoption(inputs.model, pictures[:PARITY_PICTURES])
    reading = check_reading(
        inputs.model, _reading_samples(inputs), [c.name for c in inputs.classes], inputs.recipe.detector
    )
    judge = Judge(inputs.model, [c.name for c in inputs.classes], inputs.val, progress)
    quantizer = Quantizer(inputs.model, pictures, _options(inputs), progress)
    fitted = _fitted(quantizer, judge, inputs, pictures, progress)
    graphs = {"fp32": bytes_from_model(inputs.model.proto)} | {t: found.integer.graph for t, found in fitted.items()}
    half = halved(graphs["trt"], pictures, progress) if "trt" in graphs else None
    if half is not None and half.graph is not None:
        graphs["trt16"] = half.graph
    files = {GRAPH_FILES[kind]: data for kind, data in graphs.items()}
    tempered: Tempered | None = None
    with tempfile.TemporaryDirectory(prefix="defect-opt-") as folder:
        plan = dataclasses.replace(draft_manifest(inputs), graphs={kind: GRAPH_FILES[kind] for kind in graphs})
        draft = pack_bundle(Path(folder) / "untempered.defect", plan, files)
        if inputs.model.task == "classify":
            progress.step("fitting the temperature on val")
            tempered = temperature(draft, inputs)
            plan = dataclasses.replace(plan, temperature=tempered.value)
            draft = pack_bundle(Path(folder) / "draft.defect", plan, files)
        measured = measure(draft, inputs, progress)
        choice = choose(inputs.recipe, measured, fitted)
        progress.step("recording golden inputs")
        goldens = record_goldens(draft, pick_evenly(measured.sound, GOLDENS, inputs.recipe.seed))
    progress.step(f"writing {inputs.out}")
    manifest = _manifest(plan, inputs, measured, fitted, choice)
    if tempered is not None:
        more: dict[str, Any] = {"calibration": tempered.to_json()}
        if (folds := cross_validation_of(inputs.model.proto)) is not None:
            more["cross_validation"] = folds
        manifest = dataclasses.replace(manifest, metrics={**manifest.metrics, **more})
    beside = sidecar_files(quantizer, fitted, inputs.recipe.seed, progress)
    bundle = pack_bundle(inputs.out, manifest, {**files, **golden_files(goldens), **beside.files})
    report = BuildReport(
        bundle=bundle,
        report_path=inputs.out.with_suffix(".build.json"),
        cards=measured.cards,
        detections=measured.detections,
        fitted=fitted,
        halved=half,
        size_bytes={"int8" if kind == "cpu" else kind: len(data) for kind, data in graphs.items()},
        latency_ms={"int8" if kind == "cpu" else kind: measured.latency_ms[kind] for kind in CPU_KINDS},
        equalization=quantizer.strength,
        growing=beside.growing,
        adoption=adoption,
        reading=reading,
        tempered=tempered,
        cpu_graph_why=choice.why,
        machine=describe(inputs.recipe.threads),
        seconds=time.monotonic() - started,
        warnings=(
            *_warnings(inputs, fitted, measured, choice, goldens),
            *(() if reading is None else reading.warnings),
            *beside.warnings,
            *(() if half is None else half.warnings),
        ),
    )
    _write_report(report)
    return report


def _reading_samples(inputs: Inputs) -> list[Sample]:
    """Calibration pictures that a detector's reading is held to; val's where only that has outlined defects."""
    calibration, val = inputs.calibration.dataset.samples, inputs.val.samples
    outlined = [[sample for sample in side if sample.boxes] for side in (calibration, val)]
    return pick_evenly(outlined[0] or outlined[1] or calibration, READING_PICTURES, inputs.recipe.seed)


def _options(inputs: Inputs) -> QuantizeOptions:
    how = inputs.recipe.quantize
    return QuantizeOptions(
        method=how.method,
        percentile=how.percentile,
        equalize=how.equalize,
        correction=how.correction,
        weight_bits=how.weight_bits,
    )


def _fitted(
    quantizer: Quantizer, judge: Judge, inputs: Inputs, pictures: FittedImages, progress: Progress
) -> dict[Target, Fitted]:
    return {
        target: fit_budget(
            quantizer,
            target,
            judge,
            max_drop=inputs.recipe.max_drop_points,
            max_float_layers=inputs.recipe.quantize.max_float_layers,
            calibration=pictures,
            progress=progress,
        )
        for target in inputs.recipe.all_targets
    }


def _drop(cards: Mapping[str, Scorecard | DetectionScorecard], fitted: Mapping[Target, Fitted]) -> float:
    return drop_points(cards["fp32"], cards["cpu"]) if cards else fitted["cpu"].loss.drop_points


def _metrics(
    cards: Mapping[str, Scorecard], detections: Mapping[str, DetectionScorecard], fitted: Mapping[Target, Fitted]
) -> dict[str, Any]:
    """By graph: what it does on val."""
    found: dict[str, Any] = {kind: _card_json(card) for kind, card in cards.items()}
    found |= {kind: _detection_json(card) for kind, card in detections.items()}
    found = {"int8" if kind == "cpu" else kind: entry for kind, entry in found.items()}
    if not cards:
        loss = fitted["cpu"].loss.to_json()
        found.setdefault("fp32", {})
        # What the agent's code measured goes before the search's own, quicker figures.
        found["int8"] = {**found["int8"], **{key: loss[key] for key in ("snr_db", "kept")}} if detections else loss
    if "trt" in fitted:
        found["trt"] = fitted["trt"].loss.to_json()
    return found


def _detection_json(card: DetectionScorecard) -> dict[str, Any]:
    return {
        "n": card.n,
        "map50": card.map50,
        "map50_95": card.map50_95,
        "ap50": {name: entry.ap50 for name, entry in card.per_class.items()},
        "image_escape_rate": card.escape_rate,
        "escape_upper_95": card.escape_upper_95,
        "box_escape_rate": card.box_escape_rate,
        "overkill_rate": card.overkill_rate,
        "review_rate": card.review_rate,
        "errors": len(card.unjudged),
    }


def _card_json(card: Scorecard) -> dict[str, Any]:
    return {
        "n": card.n,
        "accuracy": card.accuracy,
        "recall": {name: entry.recall for name, entry in card.per_class.items()},
        "escape_rate": card.escape_rate,
        "escape_upper_95": card.escape_upper_95,
        "overkill_rate": card.overkill_rate,
        "review_rate": card.review_rate,
        "errors": len(card.unjudged),
    }


def _manifest(
    plan: Manifest, inputs: Inputs, measured: Measured, fitted: Mapping[Target, Fitted], choice: Choice
) -> Manifest:
    cards = measured.cards or measured.detections
    metrics = _metrics(measured.cards, measured.detections, fitted)
    return dataclasses.replace(
        plan,
        cpu_graph=choice.graph,
        gate_passed=not choice.gate_reasons,
        gate_reasons=choice.gate_reasons,
        metrics={"split": "val", **metrics, "drop_points": _drop(cards, fitted)},
        provenance=_provenance(inputs),
    )


def _provenance(inputs: Inputs) -> dict[str, Any]:
    """What went in, by hash; no paths and no times, so that the same inputs give the same bytes anywhere."""
    recipe, calibration = inputs.recipe, inputs.calibration.dataset
    return {
        "model": {"sha256": inputs.model.sha256, "arch": inputs.model.arch, "notes": list(inputs.model.notes)},
        "data": {
            "calib": {"images": len(calibration), "sha256": data_digest(calibration)},
            "val": {"images": len(inputs.val), "sha256": data_digest(inputs.val)},
        },
        "recipe": {
            "quantize": dataclasses.asdict(recipe.quantize),
            "max_drop_points": recipe.max_drop_points,
            "targets": list(recipe.all_targets),
            "preprocess": None if recipe.preprocess is None else dataclasses.asdict(recipe.preprocess),
            **({"detector": dataclasses.asdict(recipe.detector)} if inputs.model.task == "detect" else {}),
            "seed": recipe.seed,
        },
        "tools": {
            "defect-opt": __version__,
            **{name: importlib.metadata.version(name) for name in ("numpy", "onnx", "onnxruntime")},
            "opencv": cv2.__version__,  # asked of the library: the headless build has another distribution name
        },
    }


def _warnings(
    inputs: Inputs, fitted: Mapping[Target, Fitted], measured: Measured, choice: Choice, goldens: Sequence[Golden]
) -> Iterator[str]:
    yield from inputs.warnings
    yield from inputs.model.notes
    if is_out_of_fold(inputs.model.proto):
        yield (
            "an ensemble of folds: its members were trained on val, so its figures on val flatter; judge it on test, "
            "once; its temperatures are from images that each member never saw, and are kept"
        )
    yield from (warning for found in fitted.values() for warning in found.integer.warnings)
    yield from choice.warnings
    for target, found in fitted.items():
        if found.loss.snr_db < LOW_SNR_DB:
            yield (
                f"{target}: INT8's scores are only {found.loss.snr_db:.1f} dB from the float graph's, {LOW_SNR_DB:g} "
                "and more are usual: look at the calibration pictures before you ship it, whatever the drop says"
            )
    for target, found in fitted.items():
        if found.result is not None and found.reasons:
            yield from (f"{target}: {sentence}" for sentence in found.result.advice)
    cards: list[Scorecard | DetectionScorecard] = [*measured.cards.values(), *measured.detections.values()]
    failed = sorted({entry.file for card in cards for entry in card.unjudged})
    if failed:
        more = ", …" if len(failed) > 5 else ""
        yield f"{len(failed)} val images could not be judged and count as wrong: {', '.join(failed[:5])}{more}"
    if len(goldens) < MIN_GOLDENS:
        yield f"only {len(goldens)} golden inputs: with {MIN_GOLDENS} or more val images a device is checked better"


def _write_report(report: BuildReport) -> None:
    try:
        report.report_path.write_text(
            json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise OptimizeError(f"{report.report_path}: can't be written ({error.strerror})") from error
