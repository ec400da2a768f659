"""`defect-agent journal`: what was decided, as it is on the disk."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from agent.console import DONE, FAILED, number, print_json
from agent.errors import ConfigError

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "journal"
HELP = "Read the durable record of verdicts; safe while the agent is writing it."
EPILOG = """examples:
  defect-agent journal tail --config line3.yaml
  defect-agent journal tail --state /var/lib/defect-agent/line3 --follow
  defect-agent journal stats --config line3.yaml --json
  defect-agent journal verify --config line3.yaml
  defect-agent journal export --config line3.yaml --format csv --out shift.csv --from 1200 --to 1800
"""

COLUMNS = (
    "rec", "time", "part", "decision", "code", "class", "score", "threshold", "uncertainty", "reason",
    "bundle", "bundle_digest", "engine", "id", "boot", "image_sha256", "late_ms",
    "images", "located_score", "shift_x_px", "shift_y_px", "turn_deg",
)  # fmt: skip
LOCATED = {"located_score": "score", "shift_x_px": "shift_x_px", "shift_y_px": "shift_y_px", "turn_deg": "turn_deg"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    tail = actions.add_parser("tail", help="the last verdicts, a line each")
    tail.add_argument("-n", type=number(int, 1, 1e9), default=20, metavar="N", help="how many (20)")
    tail.add_argument("--follow", action="store_true", help="and each new one, until interrupted")
    stats = actions.add_parser("stats", help="counts, backlog, disk")
    verify = actions.add_parser("verify", help="whether every trigger is accounted for; exit 1 when one is not")
    export = actions.add_parser("export", help="all verdicts as CSV or JSON lines")
    export.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="csv")
    export.add_argument("--out", type=Path, metavar="FILE", help="a file; else standard output")
    export.add_argument("--from", type=number(int, 1, 1e18), dest="first", metavar="REC", help="first record number")
    export.add_argument("--to", type=number(int, 1, 1e18), dest="last", metavar="REC", help="last record number")
    for action in (tail, stats, verify, export):
        action.epilog = EPILOG
        place = action.add_mutually_exclusive_group(required=True)
        place.add_argument("--config", type=Path, metavar="FILE", help="the station's YAML file")
        place.add_argument("--state", type=Path, metavar="DIR", help="the station's state directory")
    tail.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    for action in (stats, verify):
        action.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Open the journal for reading and do what was asked."""
    from agent.config import read_config
    from agent.journal import Journal

    state_dir = args.state if args.state is not None else read_config(args.config).state_dir
    with Journal.open_readonly(state_dir) as reader:
        if args.action == "tail":
            _tail(reader, args)
        elif args.action == "stats":
            _stats(reader, as_json=args.json)
        elif args.action == "verify":
            return _verify(reader, as_json=args.json)
        else:
            _export(reader, args, state_dir)
    return DONE


def _tail(reader: Any, args: argparse.Namespace) -> None:
    rows = list(_first(reader.read(newest_first=True), args.n))[::-1]
    last = 0
    while True:
        for row in rows:
            last = row.rec
            print(row.body.decode() if args.json else _line(json.loads(row.body)), flush=True)
        if not args.follow:
            return
        time.sleep(0.5)
        rows = list(reader.read(first=last + 1))


def _first(rows: Iterator[Any], n: int) -> Iterator[Any]:
    for _, row in zip(range(n), rows, strict=False):
        yield row


def _line(m: dict[str, Any]) -> str:
    replayed = " (replayed)" if m.get("replayed") else ""
    late_ms = m.get("late_ms")
    late = "" if late_ms is None else f" (late by {late_ms:.1f} ms: the line was told error)"
    return f"{m['rec']:>8}  {m['time']}  {m['decision']:7} {m['part']}  {m['reason']}{late}{replayed}"


def _stats(reader: Any, *, as_json: bool) -> None:
    stats = dataclasses.asdict(reader.stats())
    if as_json:
        print_json(stats)
        return
    for name, value in stats.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:22} {shown}")


def _verify(reader: Any, *, as_json: bool) -> int:
    """The ledger, and from the rows themselves whether it is true."""
    in_memory, ledger, faults = reader.in_memory(), reader.ledger(), reader.ledger_faults()
    counts = ledger.counts()
    if as_json:
        print_json({"ledger": counts, "in_memory": in_memory, "faults": faults})
    else:
        parts = [f"{counts[name]} {name}" for name in ("ok", "defect", "review", "error", "pending")]
        print(f"{ledger.triggers} triggers = {' + '.join(parts)}; {ledger.refused} of the errors were refused")
        if in_memory:
            print(f"{in_memory} more have no row yet: they came just now, or the next start answers them with error")
        for fault in faults:
            print(f"fault: {fault}")
        print(f"every trigger is accounted for: {'no' if faults else 'yes'}")
    return FAILED if faults else DONE


def _export(reader: Any, args: argparse.Namespace, state_dir: Path) -> None:
    if args.out is None:
        _write(reader, args, sys.stdout)
        return
    if args.out.resolve().is_relative_to(state_dir.resolve()):
        raise ConfigError(f"--out: {args.out} lies in the station's own state directory", hint="write it elsewhere")
    try:
        with args.out.open("w", encoding="utf-8", newline="") as file:
            count = _write(reader, args, file)
    except OSError as error:
        raise ConfigError(f"--out: {args.out}: can't be written ({error.strerror})") from error
    print(f"{count} verdicts in {args.out}", file=sys.stderr)


def _write(reader: Any, args: argparse.Namespace, file: TextIO | io.TextIOBase) -> int:
    count = 0
    writer = csv.writer(file) if args.format == "csv" else None
    if writer is not None:
        writer.writerow(COLUMNS)
    for count, row in enumerate(reader.read(first=args.first or 1, last=args.last), start=1):  # noqa: B007
        if writer is None:
            file.write(row.body.decode() + "\n")
        else:
            cells = _cells(json.loads(row.body), reader.images(row.rec))
            writer.writerow([_safe(cells.get(column)) for column in COLUMNS])
    return count


def _cells(m: dict[str, Any], images: Iterable[Any]) -> dict[str, Any]:
    """A message as one row. `images` are all pictures that are kept, as paths in the state directory."""
    located = m.get("located") or {}
    return {
        **m,
        **{column: located.get(name) for column, name in LOCATED.items()},
        "image_sha256": (m.get("image") or {}).get("sha256"),
        "images": " ".join("/".join(image.path.parts[-3:]) for image in images),
    }


def _safe(value: Any) -> Any:
    """A cell that a spreadsheet will not take for a formula (CSV injection: OWASP)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
