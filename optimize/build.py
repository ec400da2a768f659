"""From a float ONNX to a bundle: quantize, measure through the agent's own code, choose, pack.

```text
read model, calibration images, val images       refuse before any work is done
  → quantize_cpu                                 the INT8 graph
  → a draft bundle, opened as a device opens it
  → fit the temperature on val                   with the INT8 outputs that will run
  → evaluate fp32 and int8 on val                the drop, through Inspector and Policy
  → time both in turn                            one thread, alternating, the median
  → choose the CPU's graph, apply the gate
  → golden inputs with each graph's outputs
  → pack                                         the same inputs, recipe and seed give the same bytes
```

Latency is measured but never written into the bundle: it would differ at every build. It stands in the report beside
it. What latency decides is `cpu_graph: auto`: on a machine where both graphs are about equally fast, the choice may
fall either way, and with it the bytes; `cpu_graph: int8` or `fp32` settles it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agent import __version__
from agent.bundle import Bundle, Golden, Manifest, fit, golden_files, golden_name
from agent.config import EngineConfig
from agent.engines import Engine, open_engine
from agent.errors import ImageError
from optimize.calibration import FittedImages, pick_evenly
from optimize.dataset import Dataset, Sample, data_digest, read_image
from optimize.errors import DataError, OptimizeError
from optimize.evaluate import Scorecard, evaluate
from optimize.inputs import GRAPH_FILES, Inputs, draft_manifest
from optimize.machine import describe, int8_flags
from optimize.pack import pack_bundle
from optimize.progress import Progress, SilentProgress
from optimize.quantize import FloatLayer, Quantized, QuantizeOptions, quantize_cpu
from optimize.quantize.model import bytes_from_model
from optimize.recipe import Recipe
from optimize.temperature import fit_temperature

__all__ = ["BuildReport", "build", "drop_points"]

GOLDENS = 24
"""Golden inputs of a bundle: enough to show a kernel that computes differently, few enough to ship."""

MIN_GOLDENS = 10

MIN_SPEEDUP = 1.1
"""INT8 must be faster than FP32 by this factor to be worth its loss; timings of one machine vary by some percent."""

WARM_UPS = 5
MIN_ROUNDS, MAX_ROUNDS, ROUNDS_S = 15, 100, 6.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did; truthy when its gate holds.

    Attributes:
        bundle: the bundle as it was read back.
        report_path: where this report lies as JSON.
        fp32: the float graph on val.
        int8: the INT8 graph on val.
        size_bytes: by graph (`fp32`, `int8`).
        latency_ms: by graph, the median of inference alone over one interleaved run.
        float_layers: layers with weights that stay float.
        reads_bytes: whether the first integer layer reads the camera's bytes.
        cpu_graph_why: why a CPU runs the graph it runs.
        machine: the CPU that the latencies are of, in words.
        seconds: how long it took.
        warnings: what the user should know, one sentence each.
    """

    bundle: Bundle
    report_path: Path
    fp32: Scorecard
    int8: Scorecard
    size_bytes: Mapping[str, int]
    latency_ms: Mapping[str, float]
    float_layers: tuple[FloatLayer, ...]
    reads_bytes: bool
    cpu_graph_why: str
    machine: str
    seconds: float
    warnings: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.bundle.manifest.gate_passed

    @property
    def drop_points(self) -> float:
        """Accuracy lost from FP32 to INT8, in percentage points; negative when INT8 is better."""
        return drop_points(self.fp32, self.int8)

    @property
    def speedup(self) -> float:
        """How many times as fast INT8 is."""
        return self.latency_ms["fp32"] / self.latency_ms["int8"]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and for the file beside the bundle."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "sha256": hashlib.sha256(self.bundle.path.read_bytes()).hexdigest(),
            "digest": self.bundle.digest,
            "metrics": {"fp32": _metrics(self.fp32), "int8": _metrics(self.int8)},
            "drop_points": self.drop_points,
            "temperature": manifest.temperature,
            "size_bytes": dict(self.size_bytes),
            "latency_ms": {kind: round(value, 3) for kind, value in self.latency_ms.items()},
            "speedup": round(self.speedup, 2),
            "float_layers": [dataclasses.asdict(layer) for layer in self.float_layers],
            "reads_bytes": self.reads_bytes,
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
    quantized = _quantize(inputs, progress)
    graphs = {"fp32": bytes_from_model(inputs.model.proto), "cpu": quantized.graph}
    files = {GRAPH_FILES[kind]: data for kind, data in graphs.items()}
    with tempfile.TemporaryDirectory(prefix="defect-opt-") as folder:
        untempered = pack_bundle(Path(folder) / "untempered.defect", draft_manifest(inputs), files)
        progress.step("fitting the temperature on val")
        draft_plan = dataclasses.replace(draft_manifest(inputs), temperature=_temperature(untempered, inputs))
        draft = pack_bundle(Path(folder) / "draft.defect", draft_plan, files)
        measured = _measure(draft, inputs, progress)
        choice = _choose(inputs.recipe, measured)
        progress.step("recording golden inputs")
        goldens = _goldens(draft, pick_evenly(measured.sound, GOLDENS, inputs.recipe.seed))
    progress.step(f"writing {inputs.out}")
    manifest = _manifest(draft_plan, inputs, measured, choice)
    bundle = pack_bundle(inputs.out, manifest, {**files, **golden_files(goldens)})
    report = BuildReport(
        bundle=bundle,
        report_path=inputs.out.with_suffix(".build.json"),
        fp32=measured.fp32,
        int8=measured.int8,
        size_bytes={"fp32": len(graphs["fp32"]), "int8": len(graphs["cpu"])},
        latency_ms={"fp32": measured.fp32_ms, "int8": measured.int8_ms},
        float_layers=quantized.float_layers,
        reads_bytes=quantized.fusion.reads_bytes,
        cpu_graph_why=choice.why,
        machine=describe(inputs.recipe.threads),
        seconds=time.monotonic() - started,
        warnings=(*inputs.warnings, *quantized.warnings, *choice.warnings, *_late_warnings(measured, goldens)),
    )
    _write_report(report)
    return report


def drop_points(fp32: Scorecard, int8: Scorecard) -> float:
    """Accuracy lost from one to the other in percentage points, free of the last digits of float arithmetic."""
    return round(100 * (fp32.accuracy - int8.accuracy), 6)


def _quantize(inputs: Inputs, progress: Progress) -> Quantized:
    how, calibration = inputs.recipe.quantize, inputs.calibration.dataset
    progress.step(f"quantizing with {len(calibration)} pictures ({how.method}, {how.weight_bits}-bit weights)")
    options = QuantizeOptions(method=how.method, percentile=how.percentile, weight_bits=how.weight_bits)
    return quantize_cpu(inputs.model, FittedImages(calibration.samples, inputs.model.input), options)


def _temperature(draft: Bundle, inputs: Inputs) -> float:
    """Fitted on the INT8 outputs over val; pictures that can't be read are reported by the evaluation."""
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
        return 1.0
    return fit_temperature(np.array(logits, dtype=np.float64), np.array(labels))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Both graphs on val, and the pictures that both could judge."""

    fp32: Scorecard
    int8: Scorecard
    fp32_ms: float
    int8_ms: float
    sound: tuple[Sample, ...]

    @property
    def drop_points(self) -> float:
        return drop_points(self.fp32, self.int8)

    @property
    def speedup(self) -> float:
        return self.fp32_ms / self.int8_ms


def _measure(draft: Bundle, inputs: Inputs, progress: Progress) -> _Measured:
    threads = inputs.recipe.threads
    cards = {}
    for kind in GRAPH_FILES:
        progress.step(f"evaluating {'int8' if kind == 'cpu' else kind} on val")
        cards[kind], _ = evaluate(draft, inputs.val, _engine_config(kind, threads), progress=progress)
    sound = _sound(inputs.val, (cards["fp32"], cards["cpu"]))
    progress.step("timing fp32 and int8 in turn")
    latency = _latency(draft, FittedImages(sound[:16], inputs.model.input), threads)
    return _Measured(
        fp32=cards["fp32"], int8=cards["cpu"], fp32_ms=latency["fp32"], int8_ms=latency["cpu"], sound=sound
    )


def _sound(val: Dataset, cards: Sequence[Scorecard]) -> tuple[Sample, ...]:
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


def _latency(draft: Bundle, pictures: FittedImages, threads: int) -> dict[str, float]:
    """The median of inference alone, both graphs in turn, so that a busy machine slows both alike; milliseconds."""
    tensors = list(pictures)
    engines = {kind: open_engine(draft, _engine_config(kind, threads)) for kind in GRAPH_FILES}
    taken: dict[str, list[float]] = {kind: [] for kind in engines}
    try:
        for engine in engines.values():
            for _ in range(WARM_UPS):
                engine.infer(tensors[0])
        deadline = time.monotonic() + ROUNDS_S
        for turn in range(MAX_ROUNDS):
            if turn >= MIN_ROUNDS and time.monotonic() > deadline:
                break
            for kind, engine in engines.items():
                start = time.perf_counter_ns()
                engine.infer(tensors[turn % len(tensors)])
                taken[kind].append((time.perf_counter_ns() - start) / 1e6)
    finally:
        for engine in engines.values():
            engine.close()
    return {kind: statistics.median(values) for kind, values in taken.items()}


def _engine_config(kind: str, threads: int) -> EngineConfig:
    return EngineConfig(graph="cpu" if kind == "cpu" else "fp32", threads=threads)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Which graph a CPU runs and why, and what the gate says."""

    graph: str
    why: str
    gate_reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def _choose(recipe: Recipe, measured: _Measured) -> _Choice:
    wanted, allowed = recipe.quantize.cpu_graph, recipe.max_drop_points
    speed = f"INT8 is {measured.speedup:.2f} times as fast as FP32 here"
    flags = int8_flags()
    warnings, reasons = [], []
    if recipe.quantize.weight_bits == 8 and flags is not None and not flags:
        warnings.append("weight_bits: 8 saturates on this CPU, which has no VNNI; 7 gives the same answers everywhere")
    if allowed is not None and measured.drop_points > allowed:
        reasons.append(f"INT8 loses {measured.drop_points:.2f} points of accuracy on val, allowed are {allowed:g}")
    if wanted != "auto":
        graph, why = ("cpu" if wanted == "int8" else "fp32"), f"the recipe says so; {speed}"
    elif reasons:
        graph, why = "fp32", "INT8 is not good enough"
    elif measured.speedup < MIN_SPEEDUP:
        graph, why = "fp32", f"{speed}, it must be {MIN_SPEEDUP:g} times as fast to be worth its loss"
        warnings.append(f"{speed}: a CPU will run the FP32 graph{_advice(flags)}")
    else:
        graph, why = "cpu", speed
    return _Choice(graph=graph, why=why, gate_reasons=tuple(reasons), warnings=tuple(warnings))


def _advice(flags: frozenset[str] | None) -> str:
    if flags is None or flags:
        return ""
    return (
        "; this CPU has no instructions for INT8 (VNNI), a device that has them gains more: "
        "set quantize.cpu_graph: int8 for it"
    )


def _goldens(draft: Bundle, samples: Sequence[Sample]) -> list[Golden]:
    """Golden inputs with the outputs of every graph, computed with one thread."""
    engines: dict[str, Engine] = {kind: open_engine(draft, _engine_config(kind, 1)) for kind in GRAPH_FILES}
    pictures = FittedImages(samples, draft.manifest.input)
    try:
        return [
            Golden(
                file=golden_name(i),
                label=sample.label,
                image=pictures[i][0],
                outputs={kind: dict(engine.infer(pictures[i])) for kind, engine in engines.items()},
            )
            for i, sample in enumerate(samples)
        ]
    finally:
        for engine in engines.values():
            engine.close()


def _metrics(card: Scorecard) -> dict[str, Any]:
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


def _manifest(draft_plan: Manifest, inputs: Inputs, measured: _Measured, choice: _Choice) -> Manifest:
    return dataclasses.replace(
        draft_plan,
        cpu_graph=choice.graph,
        gate_passed=not choice.gate_reasons,
        gate_reasons=choice.gate_reasons,
        metrics={
            "split": "val",
            "fp32": _metrics(measured.fp32),
            "int8": _metrics(measured.int8),
            "drop_points": measured.drop_points,
        },
        provenance=_provenance(inputs),
    )


def _provenance(inputs: Inputs) -> dict[str, Any]:
    """What went in, by hash; no paths and no times, so that the same inputs give the same bytes anywhere."""
    recipe, calibration = inputs.recipe, inputs.calibration.dataset
    return {
        "model": {"sha256": inputs.model.sha256, "arch": inputs.model.arch},
        "data": {
            "calib": {"images": len(calibration), "sha256": data_digest(calibration)},
            "val": {"images": len(inputs.val), "sha256": data_digest(inputs.val)},
        },
        "recipe": {
            "quantize": dataclasses.asdict(recipe.quantize),
            "max_drop_points": recipe.max_drop_points,
            "seed": recipe.seed,
        },
        "tools": {
            "defect-opt": __version__,
            **{name: importlib.metadata.version(name) for name in ("numpy", "onnx", "onnxruntime")},
            "opencv": cv2.__version__,  # asked of the library: the headless build has another distribution name
        },
    }


def _late_warnings(measured: _Measured, goldens: Sequence[Golden]) -> Iterator[str]:
    failed = sorted({entry.file for card in (measured.fp32, measured.int8) for entry in card.unjudged})
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
