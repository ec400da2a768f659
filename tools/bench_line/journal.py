"""The journal alone: durable verdicts per second in groups, and that a lone one is durable before it is on the wire."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench_frame import say
from tools.bench_line.broker import Broker, Wire
from tools.bench_line.rate import model_for
from tools.bench_line.workers import Worker, agent_worker, fresh, station_config
from tools.bench_quantize.figures import Figure, absent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["journal_checks", "journal_rows"]

LONE_HZ = 10.0
REC = re.compile(rb'"rec":(\d+),')
SEED = 9


def journal_rows(work: Path, *, rounds: int, parts: int, lone: int) -> list[dict[str, Any]]:
    """Group commit, then lone verdicts.

    Args:
        work: on the disk that is measured.
        rounds: of group commit.
        parts: verdicts of each.
        lone: verdicts that come one by one.
    """
    return [_grouped(work / "journal", rounds=rounds, parts=parts), _lone(work, parts=lone)]


def _grouped(folder: Path, *, rounds: int, parts: int) -> dict[str, Any]:
    say(f"journal: {rounds} rounds of {parts:,} verdicts")
    fresh(folder)
    command = [sys.executable, "-m", "tools.bench_line.journal_worker", str(folder / "state")]
    with Worker(command, folder / "journal.log") as worker:
        answers = [worker.ask(parts=parts) for _ in range(rounds + 1)][1:]
    assert answers[-1]["last_rec"] == parts * (rounds + 1)
    shutil.rmtree(folder)
    rates = [parts / answer["seconds"] for answer in answers]
    return {
        "part": "journal",
        "what": "group commit",
        "verdicts": parts * rounds,
        "per_s": [round(rate, 1) for rate in rates],
        "commit_ms": round(answers[-1]["commit_ms"], 3),
        "cpu_us_per_verdict": round(1e6 * sum(answer["cpu_s"] for answer in answers) / parts / rounds, 1),
    }


def _lone(work: Path, *, parts: int) -> dict[str, Any]:
    """Whoever watches the wire looks into the journal, over a connection of its own, before he lets a verdict pass."""
    say(f"journal: {parts} lone verdicts")
    _, _, bundle = model_for("classify", "fp32", 1.0, work)
    folder = fresh(work / "lone")
    found: dict[int, bool] = {}

    def look(data: bytes) -> None:
        for match in REC.finditer(data):
            rec = int(match.group(1))
            with contextlib.closing(sqlite3.connect(f"file:{folder}/state/journal.db?mode=ro", uri=True)) as db:
                row = db.execute("SELECT count(*) FROM verdicts WHERE rec = ?", (rec,)).fetchone()
            found.setdefault(rec, row[0] == 1)

    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(folder / "broker"))
        wire = stack.enter_context(Wire(broker.port, look))
        line = stack.enter_context(agent_worker(station_config(folder, bundle, port=wire.port), (160, 160)))
        line.ask(parts=parts, rate_hz=LONE_HZ)
    return {
        "part": "journal",
        "what": "lone verdicts",
        "verdicts": parts,
        "seen_on_the_wire": len(found),
        "durable_before": sum(found.values()),
    }


def journal_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """The rate, and the share of lone verdicts that were durable when they reached the wire."""
    mine = {row["what"]: row for row in rows if row["part"] == "journal"}
    if not mine:
        return dict.fromkeys(("journal_rate", "lone_durable_first"), absent("not asked for in this run"))
    rates, lone = np.asarray(mine["group commit"]["per_s"]), mine["lone verdicts"]
    drawn = np.random.default_rng(SEED).integers(0, len(rates), (1000, len(rates)))
    low, high = np.percentile(np.median(rates[drawn], axis=1), (2.5, 97.5))
    why = f"median of {len(rates)} rounds; a commit takes {mine['group commit']['commit_ms']} ms here"
    share = lone["durable_before"] / lone["verdicts"]
    told = f"{lone['durable_before']} of {lone['verdicts']} stood in the journal when their first byte was on the wire"
    return {
        "journal_rate": Figure(value=float(np.median(rates)), low=float(low), high=float(high), why=why),
        "lone_durable_first": Figure(value=share, low=None, high=None, why=told),
    }
