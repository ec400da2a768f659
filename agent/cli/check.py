"""`defect-agent check`: what would go wrong, before it does."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from agent.console import DONE, FAILED, print_json

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "check"
HELP = "Check configuration, disk, clock, bundle, engine, camera and broker: a line each, with the remedy."
EPILOG = """examples:
  defect-agent check --config /etc/defect-agent/line3.yaml
  defect-agent check --config line3.yaml --no-camera        while the agent is running on it
  defect-agent check --config line3.yaml --json

exit: 0 when nothing failed (warnings allowed), 1 when something did
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the station's YAML file")
    parser.add_argument("--no-camera", action="store_true", help="leave the camera alone")
    parser.add_argument("--no-broker", action="store_true", help="leave the broker alone")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")


def run(args: argparse.Namespace) -> int:
    """Print each finding as it is made; exit 1 when one failed."""
    from agent.checks import check_station

    findings = []
    for finding in check_station(args.config, with_camera=not args.no_camera, with_broker=not args.no_broker):
        findings.append(finding)
        if not args.json:
            print(f"{_mark(finding.level)} {finding.subject:7} {finding.text}")
            if finding.remedy:
                print(f"     {'':7} → {finding.remedy}")
            sys.stdout.flush()
    if args.json:
        print_json([dataclasses.asdict(f) for f in findings])
    return FAILED if any(f.level == "fail" for f in findings) else DONE


def _mark(level: str) -> str:
    colours = {"ok": "32", "warn": "33", "fail": "31"}
    word = f"{level:4}"
    return f"\x1b[{colours[level]}m{word}\x1b[0m" if sys.stdout.isatty() else word
