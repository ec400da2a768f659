"""Memory beside a bare loop's, and over a million parts."""

from __future__ import annotations

import contextlib
import math
import shutil
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench_frame import say
from tools.bench_line.broker import Broker
from tools.bench_line.models import save_bundle, tiny_model
from tools.bench_line.peers import float_mobilenet
from tools.bench_line.rate import model_for
from tools.bench_line.workers import Worker, agent_worker, bare_worker, fresh, station_config
from tools.bench_quantize.figures import Figure, absent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["memory_checks", "memory_rows", "slope_of", "soak_checks", "soak_rows"]

PARTS = 400
BLOCKS = 10
WARM_UP = 0.3
"""Share of a soak that is left out: SQLite's caches, Python's free lists and the allocator's arenas fill in it: 0.5 MB
in 200,000 parts, then 0.1 MB in the next 500,000. The rows hold every sample."""

STUDENT_95 = 2.306
"""97.5 % point of Student's t with `BLOCKS` - 2 degrees of freedom."""

TINY_PX = (32, 32)


def memory_rows(work: Path, size_px: tuple[int, int]) -> list[dict[str, Any]]:
    """Resident memory of the agent and of a bare OpenCV + ONNX Runtime loop, each a process of its own."""
    rows = []
    _, mobilenet, its_bundle = float_mobilenet(work / "peers")
    detector, onnx_file, bundle_file = model_for("detect", "fp32", 5.0, work)
    models = (("MobileNetV2 fp32", mobilenet, its_bundle), (detector.name, onnx_file, bundle_file))
    for name, onnx, bundle in models:
        say(f"memory: {name}")
        folder = fresh(work / "memory" / onnx.stem)
        with contextlib.ExitStack() as stack:
            broker = stack.enter_context(Broker(folder / "broker"))
            line = stack.enter_context(agent_worker(station_config(folder, bundle, port=broker.port), size_px))
            bare = stack.enter_context(bare_worker(onnx, size_px, folder / "bare.log", with_frames=True))
            theirs, ours = bare.ask(parts=PARTS), line.ask(parts=PARTS)
        rows.append({
            "part": "memory",
            "model": name,
            "bare_rss_mb": round(theirs["rss_kb"] / 1024, 1),
            "line_rss_mb": round(ours["rss_kb"] / 1024, 1),
            "ratio": round(ours["rss_kb"] / theirs["rss_kb"], 3),
            "peak_ratio": round(ours["peak_kb"] / theirs["peak_kb"], 3),
            "line_threads": ours["threads"],
            "line_fds": ours["fds"],
        })  # fmt: skip
    return rows


def memory_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """The worse of both."""
    mine = [row for row in rows if row["part"] == "memory"]
    if not mine:
        return {"rss_ratio": absent("not asked for in this run")}
    worst = max(mine, key=lambda row: row["ratio"])
    why = f"{worst['model']}: {worst['line_rss_mb']} MB over {worst['bare_rss_mb']} MB; peaks {worst['peak_ratio']}"
    return {"rss_ratio": Figure(value=worst["ratio"], low=None, high=None, why=why)}


def soak_rows(work: Path, *, parts: int, longest_s: float) -> list[dict[str, Any]]:
    """Parts of a tiny model until there were enough or the time is over; memory after every chunk.

    The journal grows to about 1.3 GB for a million parts; it is deleted afterwards.
    """
    folder = fresh(work / "soak")
    bundle = save_bundle(tiny_model(), folder / "tiny.defect")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(folder / "broker"))
        # A soak is no burst on a line: the publisher's rate for a backlog is not what is measured.
        config = station_config(folder, bundle, port=broker.port, mqtt={"backlog_rate_hz": 100_000.0})
        line = stack.enter_context(agent_worker(config, TINY_PX))
        row = _soaked(line, parts=parts, longest_s=longest_s)
    shutil.rmtree(folder)
    return [row]


def _soaked(line: Worker, *, parts: int, longest_s: float) -> dict[str, Any]:
    chunk = max(200, parts // 100)
    samples: list[dict[str, Any]] = []
    started, done = time.monotonic(), 0
    while done < parts and time.monotonic() - started < longest_s:
        answer = line.ask(parts=chunk)
        done += chunk
        kept = {key: answer[key] for key in ("rss_kb", "fds", "threads", "seconds", "cpu_s")}
        samples.append({"parts": done, **kept})
        if done % (10 * chunk) == 0:
            rate = chunk / answer["seconds"]
            say(f"soak: {done:,} of {parts:,} parts, {rate:.0f}/s, {answer['rss_kb'] / 1024:.1f} MB")
    return {
        "part": "soak",
        "asked": parts,
        "parts": done,
        "per_s": round(statistics.median(chunk / sample["seconds"] for sample in samples), 1),
        "cpu_s_per_1000": round(1000 * sum(sample["cpu_s"] for sample in samples) / done, 3),
        "rss_kb": [sample["rss_kb"] for sample in samples],
        "fds": sorted({sample["fds"] for sample in samples}),
        "threads": sorted({sample["threads"] for sample in samples}),
        "slope_kb_per_1000": slope_of(samples).to_json(),
    }


def slope_of(samples: Sequence[Mapping[str, Any]]) -> Figure:
    """Growth in kB per 1,000 parts: a line through the means of ten blocks, whose spread gives the interval."""
    settled = samples[math.ceil(len(samples) * WARM_UP) :]
    if len(settled) < 2 * BLOCKS:
        return absent(f"only {len(samples)} samples")
    size = len(settled) // BLOCKS
    blocks = [settled[i * size : (i + 1) * size] for i in range(BLOCKS)]
    x = np.array([statistics.mean(s["parts"] for s in block) for block in blocks]) / 1000
    y = np.array([statistics.mean(s["rss_kb"] for s in block) for block in blocks])
    slope, offset = np.polyfit(x, y, 1)
    error = math.sqrt(float(((y - slope * x - offset) ** 2).sum()) / (BLOCKS - 2) / float(((x - x.mean()) ** 2).sum()))
    return Figure(value=float(slope), low=float(slope - STUDENT_95 * error), high=float(slope + STUDENT_95 * error))


def soak_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Growth of memory, and of file descriptors."""
    row = next((row for row in rows if row["part"] == "soak"), None)
    if row is None:
        return dict.fromkeys(("rss_slope_kb_per_1000", "fds_grown"), absent("not asked for in this run"))
    slope = row["slope_kb_per_1000"]
    first, last = (row["rss_kb"][i] / 1024 for i in (0, -1))
    why = f"{row['parts']:,} parts at {row['per_s']:g}/s, {first:.1f} to {last:.1f} MB"
    if slope["value"] is None:
        why = slope["why"]
    grown = row["fds"][-1] - row["fds"][0]
    return {
        "rss_slope_kb_per_1000": Figure(value=slope["value"], low=slope["low"], high=slope["high"], why=why),
        "fds_grown": Figure(value=grown, low=grown, high=grown, why=f"open at any time: {row['fds']}"),
    }
