"""`defect-opt build`: from a float ONNX and calibration images to a bundle."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, FAILED, print_json
from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from optimize.build import BuildReport
    from optimize.quantize.place import Target
    from optimize.recipe import Recipe

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "build"
HELP = "Quantize a float ONNX with calibration images, measure what it costs, and pack a bundle for the device."
EPILOG = """examples:
  defect-opt build --int8 --calib calib/
  defect-opt build --int8 --model model.onnx --data NEU --calib NEU --out neu.defect --json
  defect-opt build --int8 --model model.onnx --data parts/ --calib line3/ --max-drop 0.5 --name line3 --version 1.2.0
  defect-opt build --int8 --model bought.onnx --data parts/ --calib line3/     # `preprocess:` in defect-opt.yaml
  defect-opt build --int8 --model yolo.onnx --data NEU --calib NEU             # a detector, judged by NEU's boxes
  defect-opt build --int8 --calib calib/ --target tensorrt   # also an engine for the GPU of this machine
  defect-opt build --int8 --calib calib/ --target trtexec    # also scripts for JetPack 5, which can't run the agent

What is not given comes from defect-opt.yaml in the working directory, then from defaults. Where a folder has splits,
--calib takes its calib split and --data its val split; the test split is never opened but to see that no calibration
image is in it. Exit code 1: the bundle was written, but INT8 loses more than --max-drop allows.
"""

NAMES = {"cpu": "INT8 for CPUs", "trt": "INT8 for TensorRT"}
TARGETS = {"cpu": "cpu", "jetson": "trt", "tensorrt": "trt", "trtexec": "trt", "trt": "trt"}
SHOWN = ("cpu", "jetson", "tensorrt", "trtexec")
"""Those that the help describes; `trt` is the recipe's own name for the graph."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--int8", action="store_true", help="make the INT8 graph (the one precision of this release)")
    add("--calib", type=Path, metavar="DIR", help="calibration images: a labelled set, or a flat folder")
    add("--model", type=Path, metavar="M.onnx", help="the float ONNX file")
    add("--data", type=Path, metavar="DIR", help="labelled images, for measuring on their val split")
    add("--val", type=Path, metavar="DIR", help="labelled images for measuring, in place of those in --data")
    add("--max-drop", type=float, metavar="POINTS", help="largest loss of accuracy (a detector: mAP50), in points")
    add("--name", metavar="N", help="the bundle's name")
    add("--version", metavar="V", help="the bundle's version")
    add("--out", type=Path, metavar="FILE", help="the bundle to write (NAME-VERSION.defect)")
    add("--seed", type=int, metavar="N", help="for every choice that chance makes (0)")
    add("--threads", type=int, metavar="N", help="CPU threads of one inference while measuring (1)")
    add(
        "--target",
        metavar="T,…",
        help="cpu, jetson: whose INT8 graphs, both unless told otherwise; tensorrt: also an engine for this machine's "
        "GPU; trtexec: also graphs and a script per TensorRT, for devices without the agent",
    )
    add("--ledger", type=Path, metavar="FILE", help="where the run is noted (defect-opt.ledger.jsonl)")
    add("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Build, print the report, and say whether the gate holds."""
    targets = _targets(args.target)
    if not args.int8:
        raise OptimizeError("build: nothing to do without --int8", hint="defect-opt build --int8 --calib DIR")
    from optimize.build import build
    from optimize.devices import serve_devices
    from optimize.inputs import gather
    from optimize.ledger import build_entry, record
    from optimize.progress import open_progress
    from optimize.recipe import read_recipe, with_flags

    recipe = with_flags(read_recipe(Path.cwd()), _flags(args))
    if targets is not None:
        recipe = dataclasses.replace(recipe, targets=targets)
    with open_progress() as progress:
        inputs = gather(recipe, progress=progress)
        report = build(inputs, progress=progress)
        served = serve_devices(report.bundle, _named(args.target), progress)
    record(build_entry(inputs, report), args.ledger)
    if args.json:
        print_json(report.to_json() | ({"devices": served.report} if served.report else {}))
    else:
        print("\n".join(_lines(report, recipe, served.lines)))
    return DONE if report and served else FAILED


def _targets(text: str | None) -> tuple[Target, ...] | None:
    """The recipe's names of what --target names; a CPU's graph is always made, as every device can fall back to it."""
    if text is None:
        return None
    named = _named(text)
    strange = sorted(set(named) - set(TARGETS))
    if strange:
        raise OptimizeError(
            f"--target: got {', '.join(strange)!r}, expected some of {', '.join(SHOWN)}",
            hint="--target jetson, or several: --target cpu,tensorrt",
        )
    both: tuple[Target, ...] = ("cpu", "trt")
    return both if any(TARGETS[name] == "trt" for name in named) else both[:1]


def _named(text: str | None) -> list[str]:
    return [] if text is None else [target.strip().lower() for target in text.split(",")]


def _flags(args: argparse.Namespace) -> dict[str, tuple[str, Any]]:
    """Key of the recipe to the flag that goes before it, and its value."""
    return {
        "model": ("--model", args.model),
        "data": ("--data", args.data),
        "calib": ("--calib", args.calib),
        "val": ("--val", args.val),
        "out": ("--out", args.out),
        "name": ("--name", args.name),
        "version": ("--version", args.version),
        "max_drop_points": ("--max-drop", args.max_drop),
        "seed": ("--seed", args.seed),
        "threads": ("--threads", args.threads),
    }


def _lines(report: BuildReport, recipe: Recipe, devices: Sequence[str] = ()) -> Iterator[str]:
    manifest = report.bundle.manifest
    yield f"{report.bundle.path}  ({manifest.name} {manifest.version}, {len(report.bundle.entries)} files)"
    yield ""
    yield from _table(report)
    yield f"measured on {report.machine}"
    if report.tempered is not None and report.tempered.ece_after is not None:
        tempered = report.tempered
        yield (
            f"calibration error (ECE) on {tempered.n} val: {tempered.ece_before:.4f}, at temperature "
            f"{tempered.value:g} {tempered.ece_after:.4f}"
        )
    for target, found in report.fitted.items():
        layers = found.integer.plan.layers
        back = [] if found.result is None else found.result.in_float
        moved = f", {', '.join(back)} put back to float for the budget" if back else ""
        yield f"{NAMES[target]}: {len(layers)} layers in INT8, {found.loss.snr_db:.1f} dB against float{moved}"
    yield f"left in float: {', '.join(layer.name for layer in report.fitted['cpu'].integer.float_layers) or 'nothing'}"
    if report.growing:
        more = ", …" if len(report.growing) > 3 else ""
        yield (
            f"{len(report.growing)} ranges still grow with more calibration pictures "
            f"({', '.join(report.growing[:3])}{more}): more of them, and more different ones, would help"
        )
    yield f"a CPU runs: {'INT8' if manifest.cpu_graph == 'cpu' else 'FP32'} ({report.cpu_graph_why})"
    if report.halved is not None and report.halved.graph is not None:
        single = len(report.halved.in_float32)
        left = f", {single} operators left in float32 for their numbers" if single else ""
        yield f"INT8 + FP16 for TensorRT 10 and 11: {report.halved.snr_db:.1f} dB against INT8 + float32{left}"
    if devices:
        yield from devices
    elif "trt" in report.fitted:
        yield "a Jetson compiles its graph on the device; no engine is in the bundle"
    yield f"gate: {'passed' if manifest.gate_passed else 'FAILED: ' + '; '.join(manifest.gate_reasons)}"
    for warning in report.warnings:
        yield f"warning: {warning}"
    if report.bundle.manifest.task == "detect" and not report.detections:
        return  # no boxes of known classes: nothing to evaluate on
    yield ""
    data = recipe.data or recipe.val
    has_splits = recipe.data is not None and (recipe.data / "splits.csv").exists()
    yield f"Next: defect-opt evaluate {report.bundle.path} --data {data}{' --split test' if has_splits else ''}"


def _table(report: BuildReport) -> Iterator[str]:
    names = report.bundle.manifest.class_names
    width = 2 + max([22, *(len(f"recall {name}") + 2 for name in names)])
    yield f"{'':{width}}{'FP32':>12}{'INT8':>12}{'TensorRT' if 'trt' in report.fitted else '':>12}"
    if report.cards:
        yield from _accuracy_rows(report, width)
    if report.detections:
        yield from _detection_rows(report, width)
    if report.bundle.manifest.task == "detect":
        kept = [found.loss.kept.share_given for found in report.fitted.values() if found.loss.kept is not None]
        yield f"{'detections kept':{width}}{1:>12.2%}" + "".join(f"{share:>12.2%}" for share in kept)
    yield from _cost_rows(report, width)


def _accuracy_rows(report: BuildReport, width: int) -> Iterator[str]:
    fp32, int8, trt = report.cards["fp32"], report.cards["cpu"], report.fitted.get("trt")
    third = _rate(trt.loss.accuracy) if trt else ""
    yield (
        f"{f'accuracy on {fp32.n} val':{width}}{fp32.accuracy:>12.2%}{int8.accuracy:>12.2%}{third}   "
        f"{_drop(report.drop_points)}"
    )
    for name in fp32.classes:
        rates = _rate(fp32.per_class[name].recall) + _rate(int8.per_class[name].recall)
        yield f"  {f'recall {name}':{width - 2}}{rates}"


def _detection_rows(report: BuildReport, width: int) -> Iterator[str]:
    fp32, int8, trt = report.detections["fp32"], report.detections["cpu"], report.fitted.get("trt")
    third = _rate(trt.loss.map50) if trt else ""
    yield (
        f"{f'mAP50 on {fp32.n} val':{width}}{_rate(fp32.map50)}{_rate(int8.map50)}{third}   {_drop(report.drop_points)}"
    )
    for name in fp32.classes:
        rates = _rate(fp32.per_class[name].ap50) + _rate(int8.per_class[name].ap50)
        yield f"  {f'AP50 {name}':{width - 2}}{rates}"
    yield f"{'mAP50-95':{width}}{_rate(fp32.map50_95)}{_rate(int8.map50_95)}"
    yield f"{'defective parts passed':{width}}{_rate(fp32.escape_rate)}{_rate(int8.escape_rate)}"


def _cost_rows(report: BuildReport, width: int) -> Iterator[str]:
    sizes, latency, has_trt = report.size_bytes, report.latency_ms, "trt" in report.fitted
    on_device = f"{'on device':>12}" if has_trt else ""
    yield (
        f"{'latency, median':{width}}{latency['fp32']:>9.2f} ms{latency['int8']:>9.2f} ms{on_device}   "
        f"{report.speedup:.2f} times as fast"
    )
    third = f"{sizes['trt'] / 1e6:>9.2f} MB" if has_trt else ""
    yield (
        f"{'size':{width}}{sizes['fp32'] / 1e6:>9.2f} MB{sizes['int8'] / 1e6:>9.2f} MB{third}   "
        f"{sizes['fp32'] / sizes['int8']:.1f} times smaller"
    )


def _drop(points: float) -> str:
    return f"{-points:+.2f} points" if points else "no loss"


def _rate(value: float | None) -> str:
    return f"{'-':>12}" if value is None else f"{value:>12.2%}"
