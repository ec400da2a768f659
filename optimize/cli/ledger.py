"""`defect-opt ledger`: what was done here, to which data, and how often each test split was judged."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, print_json

if TYPE_CHECKING:
    from optimize.ledger import Ledger

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "ledger"
HELP = "Show what was trained, built and judged here, on which images, and what came out."
EPILOG = """examples:
  defect-opt ledger
  defect-opt ledger --last 20
  defect-opt ledger --ledger /srv/line3/defect-opt.ledger.jsonl --json

`train`, `train --cv`, `build` and `evaluate` add a line each to defect-opt.ledger.jsonl in the working directory, or
where --ledger or DEFECT_OPT_LEDGER says. Lines are never changed. A line that can't be read is counted and passed over.
"""

DATA_CHARACTERS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--ledger", type=Path, metavar="FILE", help="the ledger (defect-opt.ledger.jsonl)")
    add("--last", type=int, metavar="N", help="only the last lines")
    add("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Read the ledger and show it."""
    from optimize.errors import OptimizeError
    from optimize.ledger import read_ledger

    if args.last is not None and args.last < 1:
        raise OptimizeError(f"--last: got {args.last}, expected 1 or more")
    found = read_ledger(args.ledger)
    shown = found.lines[-args.last :] if args.last else found.lines
    if args.json:
        entries = [dict(line) for line in shown]
        print_json({"ledger": str(found.path), "entries": entries, "damaged_lines": list(found.damaged)})
    else:
        print("\n".join(_lines(found, shown)))
    return DONE


def _lines(found: Ledger, shown: tuple[Mapping[str, Any], ...]) -> Iterator[str]:
    if not found.lines and not found.damaged:
        yield f"{found.path}: nothing was noted yet"
        return
    yield f"{'time (UTC)':20}  {'command':10}  {'images read':28}  data      what came out"
    for line in shown:
        uses = [use for use in _list(line.get("data")) if isinstance(use, dict)]
        splits = ", ".join(f"{name} {n}" for use in uses for name, n in _dict(use.get("splits")).items())
        digest = str(uses[-1].get("sha256", ""))[:DATA_CHARACTERS] if uses else ""
        yield (
            f"{line['time']!s:20.20}  {line['command']!s:10.10}  {splits:28.28}  {digest:8}  "
            f"{', '.join(_results(line))}"
        )
    for number in found.damaged:
        yield f"warning: line {number} of {found.path} can't be read"


def _results(line: Mapping[str, Any]) -> Iterator[str]:
    if line.get("model"):
        yield str(line["model"])
    for name, value in _dict(line.get("figures")).items():
        if isinstance(value, float):
            yield f"{name} {value:.4g}"
        elif isinstance(value, (int, str)) and not isinstance(value, bool):
            yield f"{name} {value}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
