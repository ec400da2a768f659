"""How long graphs of a bundle take on this machine's CPU, in turn; of one thread its own time (see `agent.profile`)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from agent.bundle import Bundle
from agent.config import EngineConfig
from agent.engines import open_engine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["median_latency", "median_of"]

WARM_UPS = 5
MIN_ROUNDS, MAX_ROUNDS, ROUNDS_S = 15, 100, 6.0


def median_latency(
    bundle: Bundle, configs: Mapping[str, EngineConfig], tensors: Sequence[NDArray[np.uint8]]
) -> dict[str, float]:
    """The median of inference alone, in milliseconds, by the configs' names.

    Args:
        bundle: whose graphs.
        configs: which graph with how many threads, by any name.
        tensors: pictures to run on, at least one.
    """
    engines = {name: open_engine(bundle, config) for name, config in configs.items()}
    try:
        calls = {name: engine.infer for name, engine in engines.items()}
        return median_of(calls, tensors, own_time=all(config.threads == 1 for config in configs.values()))
    finally:
        for engine in engines.values():
            engine.close()


def median_of(
    calls: Mapping[str, Callable[[NDArray[np.uint8]], object]],
    tensors: Sequence[NDArray[np.uint8]],
    *,
    own_time: bool,
) -> dict[str, float]:
    """The median time of each call, in milliseconds, by its name.

    Args:
        calls: each runs one inference.
        tensors: pictures to run on, at least one.
        own_time: they work on this thread alone: its CPU time is taken, in which no waiting for a core counts.
    """
    clock = time.thread_time_ns if own_time else time.perf_counter_ns
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARM_UPS):
            call(tensors[0])
    deadline = time.monotonic() + ROUNDS_S
    for turn in range(MAX_ROUNDS):
        if turn >= MIN_ROUNDS and time.monotonic() > deadline:
            break
        for name, call in calls.items():
            start = clock()
            call(tensors[turn % len(tensors)])
            taken[name].append((clock() - start) / 1e6)
    return {name: statistics.median(values) for name, values in taken.items()}
