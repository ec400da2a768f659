"""An edge of an electrical line is a part: a light barrier, a proximity switch, a PLC's output."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Any

from agent.config import GpioTriggerConfig
from agent.errors import AgentError
from agent.frame import Fault, Part
from agent.log import log_event
from agent.triggers.chip import Lines, gpiod, request_lines
from agent.triggers.ids import stamp_of
from agent.triggers.queue import TriggerQueue, TriggerWatcher

__all__ = ["GpioTrigger"]

KERNEL_EVENTS = 1_024
"""Edges that the kernel keeps until we read them: the most that it allows."""

POLL_S = 0.2
"""Bounds how long the thread takes to notice `close`."""

REOPEN_S = 1.0

log = logging.getLogger("agent.triggers")


class GpioTrigger:
    """Edges, debounced by the kernel, with the kernel's time.

    The thread `trigger` owns the lines. A pulse shorter than `debounce_us` is no edge; the time of a debounced one is
    that at which its level had stood for so long. Edges that the kernel had to throw away, because more came than its
    buffer holds, are missing in its numbers: each becomes an `error` verdict. A chip that goes away is `lost`, and is
    opened again each second; what passes meanwhile nobody can count.

    Raises:
        ConfigError: the chip or the line is not there, not allowed or in use.
        MissingExtra: gpiod is not installed.
    """

    def __init__(self, config: GpioTriggerConfig) -> None:
        self._config = config
        self._queue = TriggerQueue(kind=config.kind, prefix=config.part_prefix, waiting=config.waiting)
        self._lost: str | None = None
        self._number = 0
        self._stop = threading.Event()
        self._lines: Lines | None = self._request()
        self._thread = threading.Thread(target=self._run, name="trigger", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Closed, and all that came was given."""
        return self._queue.ended

    @property
    def lost(self) -> str | None:
        """Why the line can't be read."""
        return self._lost

    def watch(self, watcher: TriggerWatcher) -> None:
        """Tell the fast outputs."""
        self._queue.watch(watcher)

    def next(self, timeout_s: float) -> Part | Fault | None:
        """The next edge's part, or one that was refused."""
        return self._queue.next(timeout_s)

    def close(self) -> None:
        """Give the line back."""
        self._stop.set()
        self._queue.close()
        self._thread.join()

    def _request(self) -> Lines:
        config, package = self._config, gpiod()
        line = package.line
        settings = package.LineSettings(
            direction=line.Direction.INPUT,
            edge_detection=line.Edge.RISING if config.edge == "rising" else line.Edge.FALLING,
            bias=line.Bias[config.bias.replace("-", "_").upper()],
            debounce_period=timedelta(microseconds=config.debounce_us),
            event_clock=line.Clock.MONOTONIC,
        )
        self._number = 0
        return request_lines("trigger", config.chip, {config.line: settings}, events=KERNEL_EVENTS)

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._lines is None:
                self._reopen()
                continue
            try:
                if self._lines.wait_edge_events(POLL_S):
                    self._take(self._lines.read_edge_events(KERNEL_EVENTS))
            except OSError as error:
                self._give_up(f"{self._config.chip} line {self._config.line}: {error.strerror}")
            except Exception as error:  # our bug: without this thread parts would pass in silence
                log.exception("bug")
                self._give_up(f"unexpected {type(error).__name__}: {error}")
        if self._lines is not None:
            self._lines.release()

    def _take(self, events: list[Any]) -> None:
        for event in events:
            at = stamp_of(event.timestamp_ns)
            if missing := event.line_seqno - self._number - 1:
                log_event(log, "edges_lost", logging.ERROR, edges=missing, line=self._config.line)
                self._queue.lose(missing, at, f"edge lost: more came than the kernel's {KERNEL_EVENTS} could wait")
            self._number = event.line_seqno
            self._queue.offer(None, at)

    def _give_up(self, reason: str) -> None:
        log_event(log, "trigger_lost", logging.ERROR, reason=reason)
        self._lost = reason
        assert self._lines is not None
        self._lines.release()
        self._lines = None

    def _reopen(self) -> None:
        try:
            self._lines, self._lost = self._request(), None
            log_event(log, "trigger_found", line=self._config.line)
        except AgentError:  # `lost` says why since it was told; it stays so until this works
            self._stop.wait(REOPEN_S)
