"""What the bench of the line measures, part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.files import write_atomically
from tools.bench_line.broker import find_mosquitto
from tools.bench_line.journal import journal_checks, journal_rows
from tools.bench_line.latency import latency_checks, latency_rows
from tools.bench_line.memory import memory_checks, memory_rows, soak_checks, soak_rows
from tools.bench_line.outage import outage_checks, outage_rows
from tools.bench_line.peers import peer_checks, peer_rows
from tools.bench_line.plot import draw_line
from tools.bench_line.rate import rate_checks, rate_rows
from tools.bench_line.start import start_checks, start_rows

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from tools.bench_quantize.figures import Figure

    Rows = list[dict[str, Any]]

__all__ = ["measured"]


def measured(args: argparse.Namespace) -> tuple[dict[str, Figure], Rows]:
    """Everything that was asked for.

    Raises:
        OptimizeError: mosquitto is not there, or a process of the bench failed.
    """
    find_mosquitto()
    rows: Rows = []
    for name, measure in _parts(args).items():
        if name in args.parts:
            rows += measure()
    checks: dict[str, Figure] = {}
    for check in (rate_checks, latency_checks, memory_checks, soak_checks):
        checks |= check(rows)
    for check in (journal_checks, start_checks, outage_checks, peer_checks):
        checks |= check(rows)
    if (picture := draw_line(rows)) is not None:
        write_atomically(args.work / "pace.png", picture)
    return checks, rows


def _parts(args: argparse.Namespace) -> dict[str, Callable[[], Rows]]:
    work, size_px, quick = args.work, args.size_px, args.quick
    rounds = 3 if quick else args.rounds
    return {
        "rate": lambda: rate_rows(work, size_px, rounds=rounds, quick=quick, one_camera=args.one_camera),
        "latency": lambda: latency_rows(work, size_px, parts=100 if quick else 1500),
        "memory": lambda: memory_rows(work, size_px),
        "soak": lambda: soak_rows(work, parts=min(args.soak, 20_000) if quick else args.soak, longest_s=args.soak_s),
        "journal": lambda: journal_rows(work, rounds=rounds, parts=5_000, lone=10 if quick else 40),
        "start": lambda: start_rows(work, rounds=2 if quick else rounds),
        "outage": lambda: outage_rows(work),
        "peers": lambda: [] if quick else peer_rows(work, rounds=rounds, parts=400),
    }
