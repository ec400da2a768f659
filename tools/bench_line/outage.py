"""The broker is killed for five seconds while parts come at 20 per second: what is lost, and does the line wait?"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from tools.bench_frame import say
from tools.bench_line.broker import Broker, Listener
from tools.bench_line.rate import model_for
from tools.bench_line.workers import STATION, agent_worker, fresh, station_config
from tools.bench_quantize.figures import Figure, absent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["outage_checks", "outage_rows"]

RATE_HZ = 20.0
PARTS = 200
BEFORE_S, OUTAGE_S = 2.0, 5.0
LATE_MS = 50.0
"""As ../shared/notes/peers.md counts it: a part begun this long after it was due."""

PATIENCE_S = 30.0


def outage_rows(work: Path) -> list[dict[str, Any]]:
    """200 parts at 20/s; after 2 s the broker is killed (`kill -9`), 5 s later it is started again."""
    say(f"outage: {PARTS} parts, the broker away for {OUTAGE_S:g} s")
    _, _, bundle = model_for("classify", "fp32", 5.0, work)
    folder = fresh(work / "outage")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(folder / "broker"))
        listener = stack.enter_context(Listener(broker.port, f"{STATION}/verdict"))
        line = stack.enter_context(agent_worker(station_config(folder, bundle, port=broker.port), (160, 160)))
        time.sleep(1.5)  # until the broker has saved the listener's session
        line.begin(parts=PARTS, rate_hz=RATE_HZ)
        time.sleep(BEFORE_S)
        broker.kill()
        time.sleep(OUTAGE_S)
        broker.start()
        answer = line.end()
        came = listener.wait_for(PARTS, PATIENCE_S)
    late = answer["late_ms"]
    return [{
        "part": "outage",
        "parts": PARTS,
        "outage_s": OUTAGE_S,
        "lost": PARTS - came,
        "repeats": listener.repeats,
        "late": sum(ms > LATE_MS for ms in late),
        "latest_ms": round(max(late), 2),
        "all_acknowledged_s": round(answer["seconds"], 2),
        "waited_for_a_core_s": round(sum(waited for _, waited in answer["threads_s"].values()), 2),
    }]  # fmt: skip


def outage_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Verdicts that never came, and parts that were begun late."""
    row = next((row for row in rows if row["part"] == "outage"), None)
    if row is None:
        return dict.fromkeys(("outage_lost", "outage_late"), absent("not asked for in this run"))
    lost = f"of {row['parts']}; {row['repeats']} came twice, to be told by their `rec`"
    late = f"of {row['parts']} begun over {LATE_MS:g} ms late; the latest by {row['latest_ms']} ms; all threads waited "
    late += f"{row['waited_for_a_core_s']} s for a core"
    return {
        "outage_lost": Figure(value=row["lost"], low=None, high=None, why=lost),
        "outage_late": Figure(value=row["late"], low=None, high=None, why=late),
    }
