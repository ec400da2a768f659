"""The line's rate beside the bare loop's, in turn; and what a part costs, by thread."""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING, Any

from optimize.errors import OptimizeError
from tools.bench_frame import say
from tools.bench_line.broker import Broker
from tools.bench_line.frames import frames_of
from tools.bench_line.models import Model, fitted_model, save_bundle
from tools.bench_line.workers import STATION, Worker, agent_worker, bare_worker, fresh, station_config
from tools.bench_quantize.figures import Figure, absent, median_ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["ASKED_MS", "CAMERAS", "model_for", "rate_checks", "rate_rows"]

ASKED_MS = (5.0, 1.0)
CAMERAS = (1, 4)
ROUND_S = 4.0
"""How long the bare loop of one camera takes in a round, about."""

Answers = list[dict[str, Any]]


def model_for(task: Any, precision: Any, asked_ms: float, work: Path) -> tuple[Model, Path, Path]:
    """A model, its ONNX file and its bundle, kept in the work folder."""
    folder = work / "models"
    folder.mkdir(parents=True, exist_ok=True)
    model = fitted_model(task, precision, asked_ms, frames_of(160, 160), folder)
    name = model.name.replace(" ", "-")
    onnx, bundle = folder / f"{name}.onnx", folder / f"{name}.defect"
    onnx.write_bytes(model.graph)
    return model, onnx, save_bundle(model, bundle)


def rate_rows(
    work: Path, size_px: tuple[int, int], *, rounds: int, quick: bool, one_camera: bool = False
) -> list[dict[str, Any]]:
    """Every model with one camera and with four: rounds of the bare loop and of the line, in turn.

    Args:
        work: where models are kept, and journals written.
        size_px: of the frames.
        rounds: of each pair.
        quick: float models with one camera only, in short rounds.
        one_camera: leave the four cameras out.
    """
    round_s = 0.3 if quick else ROUND_S
    rows = []
    for asked_ms in ASKED_MS:
        for task in ("classify", "detect"):
            for precision in ("fp32",) if quick else ("fp32", "int8"):
                model, onnx, bundle = model_for(task, precision, asked_ms, work)
                for cameras in CAMERAS[:1] if quick or one_camera else CAMERAS:
                    say(f"rate: {model.name}, {cameras} camera{'s' * (cameras > 1)}")
                    with _lines(work / "rate", onnx, bundle, cameras, size_px) as (bare, line):
                        rows.append(_measured(model, cameras, bare, line, rounds=rounds, round_s=round_s))
    return rows


@contextlib.contextmanager
def _lines(
    work: Path, onnx: Path, bundle: Path, cameras: int, size_px: tuple[int, int]
) -> Iterator[tuple[list[Worker], list[Worker]]]:
    """Bare loops and stations, as many as there are cameras, all on one broker; idle until they are asked."""
    folder = fresh(work / f"{onnx.stem}-{cameras}")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(folder / "broker"))
        bare, line = [], []
        for i in range(cameras):
            place = folder / f"cam{i}"
            config = station_config(place, bundle, port=broker.port, station=f"{STATION}/cam{i}")
            line.append(stack.enter_context(agent_worker(config, size_px)))
            bare.append(stack.enter_context(bare_worker(onnx, size_px, place / "bare.log")))
        yield bare, line


def _measured(
    model: Model, cameras: int, bare: list[Worker], line: list[Worker], *, rounds: int, round_s: float
) -> dict[str, Any]:
    parts = max(20, round(1000 * round_s / model.asked_ms))
    _all(bare, parts // 4)
    _all(line, parts // 4)
    pairs = []
    for _ in range(rounds):
        limit = _all(bare, parts)
        pairs.append((limit, _all(line, parts)))
    _check_all_judged(line, pairs[-1][1], parts // 4 + rounds * parts)
    ratio = median_ratio([_seconds(limit) for limit, _ in pairs], [_seconds(ours) for _, ours in pairs])
    one_bare, one_line = pairs[rounds // 2]
    count = parts * cameras
    return {
        "part": "rate",
        "model": model.name,
        "convolutions": model.layers,
        "cameras": cameras,
        "ratio": ratio.to_json(),
        "ratio_median": round(ratio.value or 0, 3),
        "bare_per_s": round(statistics.median(count / _seconds(limit) for limit, _ in pairs), 1),
        "line_per_s": round(statistics.median(count / _seconds(ours) for _, ours in pairs), 1),
        "bare_p50_ms": round(statistics.median(took for answer in one_bare for took in answer["ms"]), 3),
        "bare_cpu_s_per_1000": _cpu(pairs, 0, count),
        "line_cpu_s_per_1000": _cpu(pairs, 1, count),
        "on_core_ratio": _on_core(pairs),
        "rss_mb": round(statistics.mean(answer["rss_kb"] for answer in one_line) / 1024, 1),
        "threads_us_per_part": _by_thread([ours for _, ours in pairs], count),
        "waited_for_a_core": _waited([ours for _, ours in pairs]),
    }


def _all(workers: Sequence[Worker], parts: int) -> Answers:
    for worker in workers:
        worker.begin(parts=parts)
    return [worker.end() for worker in workers]


def _seconds(answers: Answers) -> float:
    return float(max(answer["seconds"] for answer in answers))


def _cpu(pairs: Sequence[tuple[Answers, Answers]], which: int, count: int) -> float:
    """CPU seconds per 1,000 parts."""
    return _median(1000 * sum(a["cpu_s"] for a in pair[which]) / count for pair in pairs)


def _on_core(pairs: Sequence[tuple[Answers, Answers]]) -> float:
    """What inference takes of the CPU time of the line's main thread: the ratio's limit, whatever else runs here."""
    return _median(sum(a["cpu_s"] for a in limit) / _of_main(ours, 0) for limit, ours in pairs)


def _waited(rounds: Sequence[Answers]) -> float:
    """Share of the line's time in which its main thread was ready and had no core: near 0 on a machine of its own."""
    return _median(_of_main(answers, 1) / sum(a["seconds"] for a in answers) for answers in rounds)


def _of_main(answers: Answers, which: int) -> float:
    """Seconds of the main threads: on a core, or waiting for one."""
    return float(sum(answer["threads_s"]["MainThread"][which] for answer in answers))


def _by_thread(rounds: Sequence[Answers], count: int) -> dict[str, int]:
    """Microseconds on a core per part."""
    names = sorted({name for answers in rounds for answer in answers for name in answer["threads_s"]})
    spent = {
        name: _median(sum(a["threads_s"].get(name, (0.0,))[0] for a in answers) / count for answers in rounds)
        for name in names
    }
    return {name: round(1e6 * seconds) for name, seconds in spent.items()}


def _median(values: Iterable[float]) -> float:
    return round(float(statistics.median(values)), 6)


def _check_all_judged(line: Sequence[Worker], answers: Answers, parts: int) -> None:
    """A rate of verdicts that are not there would be none."""
    for worker, answer in zip(line, answers, strict=True):
        if answer["last_rec"] != parts:
            raise OptimizeError(f"process {worker.process.pid}: {parts} parts, but {answer['last_rec']} verdicts")


def rate_checks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """The worst model's ratio with one camera; what four gave stands beside it."""
    found = {}
    for asked_ms in ASKED_MS:
        mine = [row for row in rows if row["part"] == "rate" and row["model"].endswith(f" {asked_ms:g} ms")]
        singles = [row for row in mine if row["cameras"] == 1]
        if not singles:
            found[f"line_ratio_{asked_ms:g}ms"] = absent("not asked for in this run")
            continue
        worst = min(singles, key=lambda row: row["ratio_median"])
        four = ", ".join(f"{row['ratio_median']:.2f}" for row in mine if row["cameras"] > 1)
        busy = max(row["waited_for_a_core"] for row in singles)
        why = f"worst of {len(singles)}: {worst['model']}; four cameras: {four or 'not measured'}"
        why += f"; ready and without a core for {busy:.0%} of the time"
        value, low, high = (worst["ratio"][key] for key in ("value", "low", "high"))
        found[f"line_ratio_{asked_ms:g}ms"] = Figure(value=value, low=low, high=high, why=why)
    return found
