"""A part at fixed times."""

from __future__ import annotations

import threading
import time

from agent.config import IntervalTriggerConfig
from agent.frame import Fault, Part
from agent.triggers.ids import stamp_of
from agent.triggers.queue import TriggerQueue, TriggerWatcher

__all__ = ["IntervalTrigger"]


class IntervalTrigger:
    """Ticks at fixed times, whatever the line does: tick n comes n periods after the first, which is the first `next`.

    The thread `trigger` waits for each. Ticks beyond what the line takes are refused, each with its verdict, and not
    made up for later.
    """

    def __init__(self, config: IntervalTriggerConfig) -> None:
        self._queue = TriggerQueue(kind=config.kind, prefix=config.part_prefix, waiting=config.waiting)
        self._period_ns = int(config.period_ms * 1e6)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def ended(self) -> bool:
        """Closed, and all that came was given."""
        return self._queue.ended

    @property
    def lost(self) -> str | None:
        """None: a clock is always there."""
        return None

    def watch(self, watcher: TriggerWatcher) -> None:
        """Tell the fast outputs."""
        self._queue.watch(watcher)

    def next(self, timeout_s: float) -> Part | Fault | None:
        """The next tick's part, or one that was refused."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trigger", daemon=True)
            self._thread.start()
        return self._queue.next(timeout_s)

    def close(self) -> None:
        """Tick no more."""
        self._stop.set()
        self._queue.close()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        due_ns = time.monotonic_ns()
        while True:
            while (left_ns := due_ns - time.monotonic_ns()) > 0:
                if self._stop.wait(left_ns / 1e9):
                    return
            if self._stop.is_set():
                return
            self._queue.offer(None, stamp_of(due_ns))
            due_ns += self._period_ns
