"""How fast graphs are: one thread, in turn, so that a busy machine slows all alike."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tools.bench_quantize.sessions import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["latencies_ms"]

WARM_UPS = 3
PER_ROUND = 5


def latencies_ms(
    graphs: Mapping[str, bytes], tensors: Sequence[NDArray[np.uint8]], *, rounds: int
) -> dict[str, list[float]]:
    """The fastest of a few inferences in each round, milliseconds.

    Within a round each graph runs `PER_ROUND` times, graph after graph. The fastest of them is what the graph costs
    when nobody else was on the core; ratios are then taken round by round.

    Args:
        graphs: by name.
        tensors: pictures, taken in turn.
        rounds: how many.
    """
    sessions = {name: open_session(graph, "here") for name, graph in graphs.items()}
    sources = {name: session.get_inputs()[0].name for name, session in sessions.items()}
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(-WARM_UPS, rounds):
        for name, session in sessions.items():
            best = min(_once(session, sources[name], tensors[(turn + i) % len(tensors)]) for i in range(PER_ROUND))
            if turn >= 0:
                found[name].append(best)
    return found


def _once(session: object, source: str, tensor: NDArray[np.uint8]) -> float:
    started = time.perf_counter_ns()
    session.run(None, {source: tensor})  # type: ignore[attr-defined]
    return (time.perf_counter_ns() - started) / 1e6
