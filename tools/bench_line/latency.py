"""What the line adds to an inference, part by part, at a pace that leaves it time: from the messages themselves."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench_frame import say
from tools.bench_line.broker import Broker, Listener
from tools.bench_line.rate import ASKED_MS, model_for
from tools.bench_line.workers import STATION, agent_worker, fresh, station_config
from tools.bench_quantize.figures import Figure, absent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["latency_checks", "latency_rows"]

LOAD = 0.4
"""Share of the time that inference takes at the faster of the two paces."""

SLOW_HZ = 20.0
PERCENTILES = (50, 90, 95, 99)
SEED = 9


def latency_rows(work: Path, size_px: tuple[int, int], *, parts: int) -> list[dict[str, Any]]:
    """Each model at 20 parts/s and at a pace that keeps inference busy for `LOAD` of the time.

    Args:
        work: where models are kept.
        size_px: of the frames.
        parts: at the faster pace; a fifth of them at the slower.
    """
    rows = []
    for asked_ms in ASKED_MS:
        for task in ("classify", "detect"):
            model, _, bundle = model_for(task, "fp32", asked_ms, work)
            folder = fresh(work / "latency" / bundle.stem)
            with contextlib.ExitStack() as stack:
                broker = stack.enter_context(Broker(folder / "broker"))
                listener = stack.enter_context(Listener(broker.port, f"{STATION}/verdict"))
                config = station_config(folder, bundle, port=broker.port)
                line = stack.enter_context(agent_worker(config, size_px, stamps=True))
                line.ask(parts=50)
                for hz, count in ((SLOW_HZ, max(20, parts // 5)), (1000 * LOAD / asked_ms, parts)):
                    say(f"latency: {model.name} at {hz:g}/s")
                    answer = line.ask(parts=count, rate_hz=hz)
                    listener.wait_for(answer["last_rec"], 10)
                    rows.append({"part": "latency", "model": model.name, "per_s": hz, **_stages(answer, listener)})
    return rows


def _stages(answer: Mapping[str, Any], listener: Listener) -> dict[str, Any]:
    """Percentiles in ms of each stage, and of what follows the decision."""
    stages: dict[str, list[float]] = {name: [] for name in ("preprocess", "infer", "decide", "added", "decided")}
    stages |= {"disk": [], "broker": [], "received": []}
    for rec, durable_at in answer["durable_at"].items():
        if int(rec) not in listener.came:
            continue
        came_at, verdict = listener.came[int(rec)]
        ms, exposed_at = verdict["ms"], verdict["mono_ns"] / 1e9
        for name in ("preprocess", "infer", "decide"):
            stages[name].append(ms[name])
        stages["added"].append(ms["total"] - ms["infer"])
        stages["decided"].append(ms["total"])
        stages["disk"].append(1e3 * (durable_at - exposed_at) - ms["total"])
        stages["broker"].append(1e3 * (came_at - durable_at))
        stages["received"].append(1e3 * (came_at - exposed_at))
    found = {name: [round(float(p), 3) for p in np.percentile(v, PERCENTILES)] for name, v in stages.items()}
    late = np.asarray(answer["late_ms"])
    return {
        "parts": len(stages["added"]),
        **{f"{name}_ms": values for name, values in found.items()},
        "added_p99": _p99(stages["added"]).to_json(),
        "begun_late_p99_ms": round(float(np.percentile(late, 99)), 3),
        "rss_mb": round(answer["rss_kb"] / 1024, 1),
    }


def _p99(values: Sequence[float], why: str | None = None) -> Figure:
    """The 99th percentile, with an interval by resampling the parts."""
    known = np.asarray(values)
    drawn = np.random.default_rng(SEED).integers(0, len(known), (1000, len(known)))
    low, high = np.percentile(np.percentile(known[drawn], 99, axis=1), (2.5, 97.5))
    return Figure(value=float(np.percentile(known, 99)), low=float(low), high=float(high), why=why)


def latency_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """The worst model and pace; what the disk and the machine's other work add is said beside it."""
    mine = [row for row in rows if row["part"] == "latency"]
    if not mine:
        return {"added_ms_p99": absent("not asked for in this run")}
    worst = max(mine, key=lambda row: row["added_p99"]["value"])
    disk, infer = worst["disk_ms"], worst["infer_ms"]
    why = (
        f"{worst['model']} at {worst['per_s']:g}/s, percentiles {', '.join(map(str, PERCENTILES))}: added "
        f"{worst['added_ms']}, then until the disk had it {disk}; inference itself {infer}"
    )
    return {"added_ms_p99": Figure(**{k: worst["added_p99"][k] for k in ("value", "low", "high")}, why=why)}
