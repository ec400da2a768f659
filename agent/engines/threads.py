"""How many CPU threads one inference gets, where the configuration leaves that to a test at the start.

One thread is opened first and is what runs unless more pay: twice as many are tried beside it, in turn, and so on up to
the cores that this process may use. More threads take cores from the camera, the journal and the publisher, so they
must be much faster (`WORTH`), at about the same CPU time (`MAX_CPU`), and as steady. Where a deadline is
known, the fewest that meet it are enough. What was found is kept beside the compiled engines: the next start takes it
from there, so that the engine stays the one that was accepted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agent.errors import EngineError
from agent.log import log_event

if TYPE_CHECKING:
    from agent.bundle import Tensor
    from agent.engines.onnxrt import OnnxRuntimeEngine
    from agent.engines.trt_cache import EngineCache

__all__ = ["ThreadTest", "ThreadTiming", "choose_threads", "counts_up_to"]

WORTH = 1.6
"""More threads must be this many times as fast: twice as many, perfectly shared, are 2. Two cores of a server gave 1.5
for a float network of 5 ms at 1.2 times the CPU time, 1.0 to 1.4 for smaller and INT8 ones at up to 1.5."""

MAX_CPU = 1.25
"""More threads may take this many times the CPU time of fewer: what is beyond is lost in handing work over."""

START_S, ACCEPT_S = 0.2, 3.0
"""How long the test may take, opening sessions included: at a start, and where the engine is accepted."""

ROUNDS = 15
MIN_ROUNDS = 3

log = logging.getLogger("agent.engines")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ThreadTiming:
    """What one inference takes on so many threads.

    Attributes:
        threads: how many.
        ms: median, in milliseconds.
        slow_ms: the 90th percentile.
        cpu_ms: median of the CPU time of all threads.
    """

    threads: int
    ms: float
    slow_ms: float
    cpu_ms: float


def counts_up_to(cores: int) -> tuple[int, ...]:
    """The numbers of threads that are tried: 1, 2, 4 and so on, and all cores."""
    doubled = [1 << i for i in range(cores.bit_length())]
    return tuple(sorted({*doubled, max(1, cores)}))


def choose_threads(measured: Sequence[ThreadTiming], within_ms: float | None = None) -> tuple[int, str]:
    """Choose the fewest threads that are fast enough, or that more do not beat by enough.

    Args:
        measured: one thread or more, by rising number of threads.
        within_ms: what the deadline leaves to one inference; None where there is no deadline.

    Returns:
        How many, and why, in words.
    """
    best, why = measured[0], "more were not tried"
    for more in measured:
        if within_ms is not None and best.slow_ms <= within_ms:
            return best.threads, f"{best.slow_ms:.1f} ms is within the {within_ms:.1f} ms that the deadline leaves"
        if more.threads == best.threads:
            continue
        against = _against(best, more, is_late=within_ms is not None)
        compared = f"{_words(more)} after {_words(best)}"
        if against:
            return best.threads, f"{compared}: {against}"
        best, why = more, compared
    return best.threads, why


def _against(few: ThreadTiming, more: ThreadTiming, *, is_late: bool) -> str:
    """What speaks against more threads; a deadline that few do not meet asks only whether more are faster."""
    if is_late:
        return "" if more.slow_ms < few.slow_ms else "no faster"
    if more.ms * WORTH > few.ms:
        return f"not {WORTH:g} times as fast"
    if more.cpu_ms > MAX_CPU * few.cpu_ms:
        return f"{more.cpu_ms / few.cpu_ms:.1f} times the CPU time"
    return "" if more.slow_ms <= few.slow_ms else "less steady"


def _words(timing: ThreadTiming) -> str:
    return f"{timing.threads} thread{'s' * (timing.threads > 1)} {timing.ms:.2f} ms (CPU {timing.cpu_ms:.2f})"


class ThreadTest:
    """Chooses the threads of one graph on this device, once.

    Args:
        graph: the ONNX model's bytes.
        facts: all else that the choice depends on: runtime, processor.
        cache: where the choice is kept.
        within_ms: what the deadline leaves to one inference; None where there is none.
        budget_s: how long the test may take.
    """

    def __init__(
        self, graph: bytes, facts: Mapping[str, str], *, cache: EngineCache, within_ms: float | None, budget_s: float
    ) -> None:
        self._cores = len(os.sched_getaffinity(0))
        words = json.dumps([hashlib.sha256(graph).hexdigest(), sorted(facts.items()), self._cores, within_ms])
        self._name = hashlib.sha256(words.encode()).hexdigest()[:16]
        self._cache, self._within_ms, self._budget_s = cache, within_ms, budget_s

    def kept(self) -> int | None:
        """What an earlier start found; None when it has to be tested."""
        found = self._cache.threads(self._name)
        return found if found is not None and 1 <= found <= self._cores else None

    def run(self, open_with: Callable[[int], OnnxRuntimeEngine], tensor: Tensor) -> OnnxRuntimeEngine:
        """Open the engine with the threads that suit it; those that lose are closed.

        Two sessions at most are there at a time.

        Args:
            open_with: opens the graph with so many threads, and proves it by one inference.
            tensor: a picture to time.

        Raises:
            EngineError: of `open_with`, or an inference failed.
        """
        began = time.perf_counter()
        engine = open_with(1)
        until, opening_s = began + self._budget_s, time.perf_counter() - began
        try:
            (best,) = _timed([engine], [1], tensor, began + self._budget_s / 4, least=1)
            threads, why = choose_threads([best], self._within_ms)
            for more in self._further(best):
                if until - time.perf_counter() < opening_s + 2 * MIN_ROUNDS * best.ms / 1e3:
                    why = f"{why}: no time for {more} at a start, `defect-agent accept` takes it"
                    return _told(engine, threads, why)
                rival = open_with(more)
                pair = _timed([engine, rival], [threads, more], tensor, until, least=MIN_ROUNDS)
                threads, why = choose_threads(pair, self._within_ms)
                engine, loser = (rival, engine) if threads == more else (engine, rival)
                loser.close()
                if threads != more:
                    break
                best = pair[1]
        except BaseException:
            engine.close()
            raise
        self._keep(threads)
        return _told(engine, threads, why)

    def _further(self, one: ThreadTiming) -> Sequence[int]:
        """The numbers of threads that are worth a try beside one."""
        is_enough = self._within_ms is not None and one.slow_ms <= self._within_ms
        return () if is_enough else counts_up_to(self._cores)[1:]

    def _keep(self, threads: int) -> None:
        """A choice that can't be kept is made again at the next start."""
        try:
            self._cache.note_threads(self._name, threads)
        except EngineError as error:
            log_event(log, "engine_threads_not_kept", logging.WARNING, reason=error.message, hint=error.hint)


def _told(engine: OnnxRuntimeEngine, threads: int, why: str) -> OnnxRuntimeEngine:
    log_event(log, "engine_threads", threads=threads, why=why)
    return engine


def _timed(
    engines: Sequence[OnnxRuntimeEngine], counts: Sequence[int], tensor: Tensor, until: float, *, least: int
) -> list[ThreadTiming]:
    """Each in turn, `least` times or until the time is up; the first inference of each was its proof."""
    taken: dict[int, list[tuple[float, float]]] = {threads: [] for threads in counts}
    rounds = 0
    while rounds < least or (rounds < ROUNDS and time.perf_counter() < until):
        for threads, engine in zip(counts, engines, strict=True):
            began, cpu = time.perf_counter(), time.process_time()
            engine.infer(tensor)
            taken[threads].append((time.perf_counter() - began, time.process_time() - cpu))
        rounds += 1
    return [_timing(threads, rows) for threads, rows in taken.items()]


def _timing(threads: int, taken: Sequence[tuple[float, float]]) -> ThreadTiming:
    walls, cpus = ([1e3 * row[i] for row in taken] for i in (0, 1))
    slow = float(np.percentile(walls, 90))
    return ThreadTiming(threads=threads, ms=statistics.median(walls), slow_ms=slow, cpu_ms=statistics.median(cpus))
