"""Acceptance: a device proves that its engine does what the build promised, before it goes live.

`measure` replays the goldens and times the engine while the board is watched; `judge` holds the result to the limits.
`agent.acceptance.file` keeps what came out.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agent.acceptance.replay import Answer, GoldenReplay, in_words
from agent.binomial import upper_bound
from agent.board import Board, Memory, Sample, throttled_between
from agent.config import AcceptanceConfig
from agent.engines import FALL_BACK, OpenedEngine, Unproven
from agent.errors import BundleError

__all__ = ["Latency", "Measured", "board_to_json", "judge", "measure", "measured_to_json", "unmeasured"]

WARM_UPS = 5
COLD_PAUSE_S = 0.2
"""Rest before each cold inference: clocks go down and caches are taken by others, as between parts on a slow line."""

COLD_SHARE, MIN_COLD = 0.1, 5
SAMPLE_S = 0.5
"""Seconds between two looks at the board."""

Heard = Callable[[str, int, int], None]
"""Told as it goes: what is done, how many are done, how many in all."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds of one inference, without preprocessing."""

    n: int
    p50: float
    p95: float
    p99: float
    worst: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an engine does on this device.

    Attributes:
        engine: its name, in words.
        kind: its runtime.
        identity: exactly which one, as `OpenedEngine.identity` has it.
        fell_back: whether it stands in for TensorRT.
        graph: whose outputs at the build were the reference.
        answers: one for each golden.
        warm: inferences in a row.
        cold: inferences after a rest each.
        samples: the board before, during and after.
        memory: after the run.
        power_mode: of a Jetson, else None.
        board: which board, in words.
        failed: why an inference failed while it was timed, in words; times are then of those before. None: none did.
    """

    engine: str
    kind: str
    identity: Mapping[str, str]
    fell_back: bool
    graph: str
    answers: tuple[Answer, ...]
    warm: Latency
    cold: Latency
    samples: tuple[Sample, ...]
    memory: Memory
    power_mode: str | None
    board: str
    failed: str | None = None

    @property
    def unanswered(self) -> tuple[Answer, ...]:
        """The goldens that got no answer, and had one at the build."""
        return tuple(a for a in self.answers if a.verdict.startswith("error: ") and a.verdict != a.expected)

    @property
    def changed(self) -> tuple[Answer, ...]:
        """The goldens that would be treated differently than at the build."""
        return tuple(answer for answer in self.answers if answer.changed)

    @property
    def changed_bound(self) -> float:
        """The largest rate of changed verdicts that these goldens leave plausible (95 %, one-sided)."""
        return upper_bound(len(self.changed), len(self.answers)) if self.answers else 1.0

    @property
    def throttled(self) -> tuple[str, ...]:
        """What held the board back meanwhile, in words."""
        return throttled_between(list(self.samples))


def measure(
    replay: GoldenReplay, engine: OpenedEngine, *, runs: int, board: Board | None = None, heard: Heard = lambda *_: None
) -> Measured:
    """Replay the goldens, then time the engine, warm and cold; an inference that fails ends the timing, and is told.

    Args:
        replay: of this engine.
        engine: the open engine.
        runs: inferences in a row; a tenth as many more after a rest each.
        board: what is watched meanwhile.
        heard: told as it goes.

    Raises:
        BundleError: there are no goldens to replay.
    """
    if not len(replay):
        raise BundleError(
            "the bundle holds no golden pictures for this engine: nothing can be accepted",
            hint="rebuild it with `defect-opt build`, which records them",
        )
    watched = _Watched(board or Board())
    answers = []
    for index in range(len(replay)):
        answers.append(replay.play(index))
        heard("golden pictures", index + 1, len(replay))
        watched.look()
    failed = next((a for a in answers if a.verdict.startswith("error: ")), None)
    if failed is not None and not replay.can_infer():
        runs = 0  # it is judged by its answers; there is nothing to time
    cold: list[float] = []
    warm: list[float] = []
    failure: str | None = None
    try:
        n_cold = max(MIN_COLD, round(COLD_SHARE * runs)) if runs else 0
        _time(replay, n_cold, cold, watched, heard, pause_s=COLD_PAUSE_S)
        for index in range(WARM_UPS if runs else 0):
            replay.time(index)
        _time(replay, runs, warm, watched, heard)
    except Exception as error:  # whatever it is: an engine that fails is refused, and what was found is written down
        failure = in_words(error)
    watched.look(force=True)
    return _measured(engine, replay.graph, tuple(answers), watched, warm=warm, cold=cold, failed=failure)


def unmeasured(engine: OpenedEngine | Unproven, graph: str, failed: str, *, board: Board | None = None) -> Measured:
    """An engine that failed before a golden was replayed: it is known which one, and nothing else.

    Args:
        engine: it, or the error that says which one it is.
        graph: whose outputs at the build would have been the reference.
        failed: why, in words.
        board: that it failed on.
    """
    return _measured(engine, graph, (), _Watched(board or Board()), warm=[], cold=[], failed=failed)


def _measured(
    engine: OpenedEngine | Unproven,
    graph: str,
    answers: tuple[Answer, ...],
    watched: _Watched,
    *,
    warm: Sequence[float],
    cold: Sequence[float],
    failed: str | None,
) -> Measured:
    return Measured(
        engine=engine.name,
        kind=engine.kind,
        identity=dict(engine.identity),
        fell_back=FALL_BACK in engine.name,
        graph=graph,
        answers=answers,
        warm=_latency_of(warm),
        cold=_latency_of(cold),
        samples=tuple(watched.samples),
        memory=watched.board.memory(),
        power_mode=watched.board.power_mode(),
        board=watched.board.words(),
        failed=failed,
    )


def judge(measured: Measured, limits: AcceptanceConfig) -> tuple[str, ...]:
    """What speaks against this engine, in words; empty when it may go live."""
    problems = []
    changed, n = measured.changed, len(measured.answers)
    if measured.fell_back:
        problems.append(f"it is not the engine that was asked for: {measured.engine}")
    if len(changed) > limits.max_changed:
        shown = "; ".join(f"{a.file}: {a.verdict}, at the build {a.expected}" for a in changed[:3])
        more = f"; {len(changed) - 3} more" if len(changed) > 3 else ""
        problems.append(
            f"{len(changed)} of {n} golden verdicts changed, allowed are {limits.max_changed}: {shown}{more}"
        )
    if measured.unanswered:
        lost, first = len(measured.unanswered), measured.unanswered[0]
        problems.append(f"{lost} of {n} golden pictures got no answer: {first.file}: {first.verdict}")
    if measured.failed is not None:
        problems.append(f"an inference failed: {measured.failed}")
    if n and limits.max_changed_bound is not None and measured.changed_bound > limits.max_changed_bound:
        problems.append(
            f"up to {measured.changed_bound:.1%} of the verdicts may change (95 % bound from {n} golden pictures), "
            f"allowed are {limits.max_changed_bound:.1%}"
        )
    if limits.max_p99_ms is not None and not measured.warm.n:
        problems.append("p99 is not known: no inference in a row was timed")
    elif limits.max_p99_ms is not None and not measured.warm.p99 <= limits.max_p99_ms:
        problems.append(f"p99 is {measured.warm.p99:.2f} ms, allowed are {limits.max_p99_ms:g} ms")
    return tuple(problems)


def measured_to_json(measured: Measured) -> dict[str, Any]:
    """Plain values: what `accept` and `bench` print, and what the file holds."""
    return {
        "engine": measured.engine,
        "kind": measured.kind,
        "identity": dict(measured.identity),
        "fell_back": measured.fell_back,
        "graph": measured.graph,
        "failed": measured.failed,
        "goldens": {
            "n": len(measured.answers),
            "changed": len(measured.changed),
            "changed_upper_95": round(measured.changed_bound, 6),
            "answers": [
                {
                    "file": answer.file,
                    "verdict": answer.verdict,
                    "expected": answer.expected,
                    "changed": answer.changed,
                    "difference": {role: _finite(value) for role, value in answer.difference.items()},
                }
                for answer in measured.answers
            ],
        },
        "difference": {role: _finite(value) for role, value in _largest(measured.answers).items()},
        "latency_ms": {"warm": _latency(measured.warm), "cold": _latency(measured.cold)},
        "board": board_to_json(measured.board, measured.power_mode, measured.samples),
        "memory": dataclasses.asdict(measured.memory),
    }


def board_to_json(board: str, power_mode: str | None, samples: Sequence[Sample]) -> dict[str, Any]:
    """The board during a run as plain values: the least and the most of each temperature and clock, what held it back.

    Args:
        board: which one, in words.
        power_mode: of a Jetson, else None.
        samples: from begin to end, at least one.
    """
    return {
        "model": board,
        "power_mode": power_mode,
        "throttled": list(throttled_between(list(samples))),
        "temperatures_c": _ranges([sample.temperatures_c for sample in samples]),
        "clocks_mhz": _ranges([sample.clocks_mhz for sample in samples]),
    }


class _Watched:
    """The board, looked at now and then between two inferences."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.samples = [board.sample()]
        self._next = time.monotonic() + SAMPLE_S

    def look(self, *, force: bool = False) -> None:
        """Take a sample when it is time."""
        if force or time.monotonic() >= self._next:
            self.samples.append(self.board.sample())
            self._next = time.monotonic() + SAMPLE_S


def _time(
    replay: GoldenReplay, n: int, taken: list[float], watched: _Watched, heard: Heard, *, pause_s: float = 0.0
) -> None:
    """Add the milliseconds of n inferences to `taken`, each as it is known."""
    for index in range(n):
        if pause_s:
            time.sleep(pause_s)
        taken.append(replay.time(index))
        watched.look()
        heard("cold" if pause_s else "warm", index + 1, n)


def _latency_of(taken: Sequence[float]) -> Latency:
    if not taken:
        return Latency(n=0, p50=math.nan, p95=math.nan, p99=math.nan, worst=math.nan)
    p50, p95, p99 = (float(np.percentile(taken, q)) for q in (50, 95, 99))
    return Latency(n=len(taken), p50=p50, p95=p95, p99=p99, worst=max(taken))


def _latency(latency: Latency) -> dict[str, float | int | None]:
    return {name: _finite(value) for name, value in dataclasses.asdict(latency).items()}


def _finite(value: float) -> float | int | None:
    """JSON has no infinity."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _largest(answers: Sequence[Answer]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for answer in answers:
        for role, value in answer.difference.items():
            largest[role] = max(value, largest.get(role, 0.0))
    return largest


def _ranges(samples: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The least and the most that was seen of each."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    found = {name: [sample[name] for sample in samples if name in sample] for name in names}
    return {name: {"least": min(values), "most": max(values)} for name, values in found.items()}
