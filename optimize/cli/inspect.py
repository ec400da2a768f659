"""`defect-opt inspect`: what is in an ONNX file, or in the graphs of a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.console import DONE, print_json

if TYPE_CHECKING:
    from optimize.quantize.summary import GraphSummary, Port

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "inspect"
HELP = "Show what is in an ONNX file or a bundle: shapes, operators, weights, multiplications, INT8 share."
EPILOG = """examples:
  defect-opt inspect model.onnx
  defect-opt inspect neu-1.0.0.defect --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="MODEL.onnx|BUNDLE", help="an ONNX file, or a .defect file")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Describe the file."""
    summaries = dict(_summaries(args.file))
    if args.json:
        print_json({"file": str(args.file), "graphs": {kind: summary.to_json() for kind, summary in summaries.items()}})
        return DONE
    for kind, summary in summaries.items():
        print("\n".join(_lines(f"{args.file}" + (f": {kind}" if kind != "model" else ""), summary)))
    return DONE


def _summaries(path: Path) -> Iterator[tuple[str, GraphSummary]]:
    """Every graph with its kind; an ONNX file holds one, called `model`."""
    from optimize.quantize.model import load_onnx, model_from_bytes
    from optimize.quantize.summary import summarize

    if not _is_bundle(path):
        yield "model", summarize(load_onnx(path), path.stat().st_size)
        return
    from agent.bundle import open_bundle

    bundle = open_bundle(path)
    for kind in sorted(bundle.manifest.graphs):
        data = bundle.graph(kind)
        yield kind, summarize(model_from_bytes(f"{path}: {kind}", data), len(data))


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
