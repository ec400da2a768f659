"""`defect-opt inspect`: what is in an ONNX file or in the graphs of a bundle, and what would make it slow or wrong."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agent.console import DONE, FAILED, print_json

if TYPE_CHECKING:
    import onnx

    from optimize.quantize.lint import Finding
    from optimize.quantize.summary import GraphSummary, Port

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

Target = Literal["cpu", "trt"]

OWN_TARGET: Mapping[str, tuple[Target, ...]] = {"cpu": ("cpu",), "trt": ("trt",), "trt16": ("trt",)}
"""Kinds of graphs in a bundle that are made for one target; the float graph is for both."""

NAME = "inspect"
HELP = "Show what is in an ONNX file or a bundle; with --lint, what would make it slow or wrong in INT8."
EPILOG = """examples:
  defect-opt inspect model.onnx
  defect-opt inspect neu-1.0.0.defect --json
  defect-opt inspect yolo.onnx --lint
  defect-opt inspect yolo.onnx --lint --target trt --json

--lint takes any ONNX model, from any exporter, before or after quantization; nothing is run. `cpu` is ONNX Runtime's
CPU kernels (x86, ARM), `trt` is TensorRT. A bundle's INT8 graphs are each judged for the target they were made for.
Each finding has the layer's name and a remedy.

exit code: with --lint, 1 when there is an error (a target refuses the graph, or it computes nonsense), else 0.

--lint --json: file, findings[] (graph, rule, severity, target, layer, message, remedy), errors, warnings.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("file", type=Path, metavar="MODEL.onnx|BUNDLE", help="an ONNX file, or a .defect file")
    add("--lint", action="store_true", help="say what would make it slow or wrong, and what to do")
    add(
        "--target",
        type=_targets,
        default=("cpu", "trt"),
        metavar="cpu,trt",
        help="which targets --lint speaks about (default: both)",
    )
    add("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Describe the file, or lint it."""
    if args.lint:
        return _lint(args)
    from optimize.quantize.summary import summarize

    summaries = {kind: summarize(model, size) for kind, model, size in _graphs(args.file)}
    if args.json:
        print_json({"file": str(args.file), "graphs": {kind: summary.to_json() for kind, summary in summaries.items()}})
        return DONE
    for kind, summary in summaries.items():
        print("\n".join(_lines(_title(args.file, kind), summary)))
    return DONE


def _lint(args: argparse.Namespace) -> int:
    from optimize.quantize.lint import lint

    found = {kind: lint(model, targets=OWN_TARGET.get(kind, args.target)) for kind, model, _size in _graphs(args.file)}
    everything = [finding for findings in found.values() for finding in findings]
    errors = sum(finding.severity == "error" for finding in everything)
    if args.json:
        print_json(
            {
                "file": str(args.file),
                "findings": [
                    {"graph": kind, **dataclasses.asdict(finding)} for kind, group in found.items() for finding in group
                ],
                "errors": errors,
                "warnings": sum(finding.severity == "warning" for finding in everything),
            }
        )
    else:
        print("\n".join(_lint_lines(args.file, found)))
    return FAILED if errors else DONE


def _lint_lines(path: Path, found: Mapping[str, Sequence[Finding]]) -> Iterator[str]:
    from optimize.quantize.lint import SEVERITIES
    from optimize.quantize.lint.report import report_lines

    for kind, findings in found.items():
        counts = [(sum(f.severity == severity for f in findings), severity) for severity in SEVERITIES]
        told = ", ".join(f"{count} {severity}{'s' if count != 1 else ''}" for count, severity in counts)
        yield f"{_title(path, kind)}: {told}"
        if any(finding.rule == "uint8" for finding in findings):
            yield "  (it looks like a graph for CPUs: --target cpu leaves TensorRT out)"
        yield from report_lines(findings)


def _targets(text: str) -> tuple[Target, ...]:
    names = text.split(",")
    if not set(names) <= {"cpu", "trt"}:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected cpu, trt or cpu,trt")
    return tuple(target for target in ("cpu", "trt") if target in names)


def _graphs(path: Path) -> Iterator[tuple[str, onnx.ModelProto, int]]:
    """Every graph with its kind and its file's size in bytes; an ONNX file holds one, called `model`."""
    from optimize.quantize.onnx_file import load_onnx, model_from_bytes

    if not _is_bundle(path):
        yield "model", load_onnx(path), path.stat().st_size
        return
    from agent.bundle import open_bundle

    bundle = open_bundle(path)
    for kind in sorted(bundle.manifest.graphs):
        data = bundle.graph(kind)
        yield kind, model_from_bytes(f"{path}: {kind}", data), len(data)


def _title(path: Path, kind: str) -> str:
    return f"{path}" + (f": {kind}" if kind != "model" else "")


def _is_bundle(path: Path) -> bool:
    """By its name, or by its first bytes: a bundle is a ZIP, which no ONNX file looks like."""
    if path.suffix == ".defect":
        return True
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return False  # load_onnx says what is wrong with it


def _lines(title: str, summary: GraphSummary) -> Iterator[str]:
    share = summary.int8_share
    yield title
    yield f"  inputs      {'; '.join(map(_port, summary.inputs))}"
    yield f"  outputs     {'; '.join(map(_port, summary.outputs))}"
    yield f"  format      opset {summary.opset}, IR {summary.ir_version}, {summary.size_bytes:,} bytes"
    yield f"  nodes       {', '.join(f'{kind} {count}' for kind, count in summary.nodes.items())}"
    yield f"  weights     {summary.parameters:,} in {summary.layers} layers, {summary.int8_layers} of them INT8"
    unknown = f" ({summary.unknown_layers} layers of unknown shape left out)" if summary.unknown_layers else ""
    yield f"  multiplies  {summary.macs / 1e6:,.1f} million per picture{unknown}"
    if share is not None:
        yield f"  INT8 share  {share:.1%} of the multiplications"
    for key, value in sorted(summary.metadata.items()):
        yield f"  {key:10}  {value if len(value) <= 100 else value[:97] + '...'}"


def _port(port: Port) -> str:
    return f"{port.name} {list(port.shape)} {port.dtype}"
