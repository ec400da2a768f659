"""`defect-agent bundle`: what is in a bundle, and whether it can be trusted."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.console import DONE, print_json

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
    for name, value in rows:
        print(f"{name:9} {value}")
    return DONE
