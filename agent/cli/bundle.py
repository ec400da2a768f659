"""`defect-agent bundle`: what is in a bundle, and whether it can be trusted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from agent.console import DONE, print_json

if TYPE_CHECKING:
    from agent.bundle import DetectionSpec

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "bundle"
HELP = "Verify a bundle and show what it says of itself."
EPILOG = """examples:
  defect-agent bundle show neu-1.0.0.defect
  defect-agent bundle show neu-1.0.0.defect --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="verify every file, then print the manifest")
    show.epilog = EPILOG
    show.add_argument("bundle", type=Path, metavar="BUNDLE", help="the .defect file")
    show.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Open the bundle (which verifies it) and describe it."""
    from agent.bundle import open_bundle

    bundle = open_bundle(args.bundle)
    if args.json:
        print_json(bundle.describe())
        return DONE
    manifest = bundle.manifest
    rows = [
        ("bundle", f"{manifest.name}-{manifest.version}"),
        ("digest", bundle.digest),
        ("task", manifest.task),
        ("input", f"{manifest.input.width_px} x {manifest.input.height_px} px, {manifest.input.resize}"),
        ("classes", ", ".join(f"{c.name} ({c.severity})" for c in manifest.classes)),
        ("graphs", ", ".join(f"{kind}: {len(bundle.graph(kind)):,} bytes" for kind in sorted(manifest.graphs))),
        ("CPU runs", manifest.cpu_graph),
        ("limits", f"defect from {manifest.policy.defect_above:g}, review from {manifest.policy.review_above:g}"),
        ("gate", "passed" if manifest.gate_passed else "FAILED: " + "; ".join(manifest.gate_reasons)),
        ("files", f"{len(manifest.files)}, all verified"),
    ]
    if manifest.detection is not None:
        rows.insert(5, ("boxes", _boxes(manifest.detection)))
    for name, value in rows:
        print(f"{name:9} {value}")
    return DONE


def _boxes(spec: DetectionSpec) -> str:
    """How a detector's outputs are read, in a line."""
    parts = [f"{spec.boxes}, scores as {spec.scores}, from {spec.score_above:g} up"]
    if spec.vote_iou is not None:
        parts.append(f"each the mean of those that overlap it by {spec.vote_iou:g}")
    if spec.pixel_mm is not None:
        parts.append(f"{spec.pixel_mm:g} mm per pixel")
    if spec.tiling is not None:
        whole = " and the whole" if spec.tiling.with_whole else ""
        parts.append(f"larger pictures in tiles of {spec.tiling.tile_px} px{whole}")
    return ", ".join(parts)
