"""Results on electrical lines: `Handshake`'s rules on the lines of a chip."""

from __future__ import annotations

import collections
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from agent.config import GpioOutputConfig
from agent.errors import AgentError, ConfigError
from agent.frame import Part
from agent.log import log_event
from agent.outputs.handshake import Handshake
from agent.triggers.chip import Lines, gpiod, request_lines

__all__ = ["GpioOutput", "set_inactive"]

ACK_DEBOUNCE = timedelta(milliseconds=1)

CLOSE_S = 1.5
"""Longest time that `close` goes on showing results that wait."""

RETRY_S = 0.2
"""Between two tries to set lines that could not be set."""

OUTPUTS = ("valid", "ok", "not_ok", "ready", "busy", "alive", "strobe")
"""In the order in which they are given up: without `valid` nothing is ok."""

log = logging.getLogger("agent.outputs")


def set_inactive(config: GpioOutputConfig) -> None:
    """Set the lines inactive and let go of them, after the process that held them has died.

    A driver may have left them as they were, with a result on them (Linux 6.1's PL061 does); what a restart would do
    minutes later, when the engine is loaded, this does at once.

    Raises:
        ConfigError: the chip or a line is not there, not allowed, or in use: by one who is alive.
        MissingExtra: gpiod is not installed.
    """
    numbers = _numbers(config)
    if numbers:
        request_lines("outputs.gpio", config.chip, dict.fromkeys(numbers.values(), _output(config))).release()


def _numbers(config: GpioOutputConfig) -> dict[str, int]:
    """The configured outputs, by name."""
    lines = {name: getattr(config, name) for name in OUTPUTS}
    return {name: number for name, number in lines.items() if number is not None}


def _output(config: GpioOutputConfig) -> Any:
    """Settings of an output that begins inactive."""
    package = gpiod()
    line = package.line
    return package.LineSettings(
        direction=line.Direction.OUTPUT, active_low=config.active_low, output_value=line.Value.INACTIVE
    )


class GpioOutput:
    """The result lines. All are inactive from their opening on, and again after `close`.

    The thread `gpio` owns them: it alone sets levels and reads `ack`; the methods only leave it a note. It sets what
    `Handshake` says, one call of the kernel for each step. Lines that can't be set are told as `trouble`, and tried
    again until all could be set to inactive; no result is shown before.

    What the lines do when the process dies is up to the kernel's driver: they may stay as they were. So may those of
    a process that stands still. `valid` stands for `hold_ms` only, and `heartbeat_ms` makes `alive` tell.

    Raises:
        ConfigError: the chip or a line is not there, not allowed or in use.
        MissingExtra: gpiod is not installed.
    """

    def __init__(self, config: GpioOutputConfig) -> None:
        self._config = config
        self._numbers = _numbers(config)
        if not self._numbers:
            raise ConfigError(
                "outputs.gpio: got no line, expected at least one", hint="give ok and valid, or leave outputs.gpio out"
            )
        self._rules = Handshake(config)
        self._notes: collections.deque[Callable[[], None]] = collections.deque()
        self._trouble: str | None = None
        self._stop_at = 0
        self._lines: Lines | None = self._request()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_failing = False
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="gpio", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str | None:
        """Why results may not reach the PLC."""
        return self._trouble

    def ready(self, *, is_ready: bool) -> None:
        """Set `ready`."""
        self._note(lambda: self._rules.ready(is_ready=is_ready))

    def expect(self, part: Part) -> None:
        """Results are shown in the order of these calls; `busy` is active from here on."""
        self._note(lambda: self._rules.expect(part.sequence))

    def busy(self, part: Part) -> None:
        """Nothing: `busy` has been active since the part's trigger."""

    def exposing(self, *, is_exposing: bool) -> None:
        """Set `strobe`."""
        self._note(lambda: self._rules.exposing(is_exposing=is_exposing))

    def result(self, part: Part, decision: str, reason: str) -> None:
        """Show the result when it is its turn."""
        del reason
        self._note(lambda: self._rules.result(part.sequence, decision))

    def fault(self, reason: str | None) -> None:
        """Take `alive` back, or set it again."""
        self._note(lambda: self._rules.fault(reason))

    def close(self) -> None:
        """Take `alive` and `ready` back, show what waits for `CLOSE_S` at most, set all inactive and release them."""
        with self._lock:
            if self._stop_at:
                return
            self._stop_at = time.monotonic_ns() + int(CLOSE_S * 1e9)
        self._note(self._rules.close)
        self._thread.join(CLOSE_S + 1)

    def _note(self, note: Callable[[], None]) -> None:
        with self._lock:
            if not self._is_closed:
                self._notes.append(note)
                os.eventfd_write(self._bell, 1)

    def _request(self) -> Lines:
        config, package = self._config, gpiod()
        line = package.line
        settings: dict[int, Any] = dict.fromkeys(self._numbers.values(), _output(config))
        if config.ack is not None:
            settings[config.ack] = package.LineSettings(
                direction=line.Direction.INPUT,
                edge_detection=line.Edge.BOTH,
                active_low=config.active_low,
                debounce_period=ACK_DEBOUNCE,
            )
        self._on, self._off = line.Value.ACTIVE, line.Value.INACTIVE
        return request_lines("outputs.gpio", config.chip, settings)

    def _run(self) -> None:
        try:
            self._turn()
            while not self._is_done():
                self._wait()
                self._turn()
        except Exception as error:
            log.exception("bug")
            self._trouble = f"outputs.gpio: unexpected {type(error).__name__}: {error}"
        finally:
            self._leave()

    def _turn(self) -> None:
        try:
            self._work()
            self._is_failing = False
        except OSError as error:
            self._fail(f"outputs.gpio: {self._config.chip}: {error.strerror}")
        except AgentError as error:
            self._fail(error.message)
        self._trouble = self._rules.trouble

    def _is_done(self) -> bool:
        if not self._stop_at or self._notes:
            return False
        return self._lines is None or self._rules.is_idle or time.monotonic_ns() >= self._stop_at

    def _work(self) -> None:
        """Read `ack`, hear what was told, and set what is due."""
        if self._lines is None:
            self._lines = self._request()  # which makes all inactive
        self._hear(self._lines)
        while (change := self._rules.step(time.monotonic_ns())) is not None:
            values = {
                self._numbers[name]: self._on if level else self._off
                for name, level in change.items()
                if name in self._numbers
            }
            if values:
                self._lines.set_values(values)

    def _hear(self, lines: Lines) -> None:
        ack = self._config.ack
        if ack is not None:
            while lines.wait_edge_events(0):
                for event in lines.read_edge_events():
                    self._rules.ack(is_active=event.event_type.name == "RISING_EDGE")
            self._rules.ack(is_active=bool(lines.get_values([ack])[0]))
        self._take_notes()

    def _take_notes(self) -> None:
        while self._notes:
            self._notes.popleft()()

    def _clear(self, lines: Lines) -> None:
        """All inactive, `valid` first."""
        for number in self._numbers.values():
            lines.set_values({number: self._off})

    def _fail(self, reason: str) -> None:
        if not self._is_failing:
            log_event(log, "gpio_lost", logging.ERROR, reason=reason)
        self._is_failing = True
        self._take_notes()
        self._rules.failed(time.monotonic_ns(), reason)
        if self._lines is not None:
            try:
                self._clear(self._lines)
            except OSError:  # this is what failed: the lines are requested anew, which makes them inactive
                self._lines.release()
                self._lines = None

    def _wait(self) -> None:
        now = time.monotonic_ns()
        wait_s = RETRY_S if self._lines is None else max(0.0, (self._rules.due_ns(now) - now) / 1e9)
        if self._stop_at:
            wait_s = min(wait_s, max(0.0, (self._stop_at - now) / 1e9))
        watched = [self._bell, *([self._lines.fd] if self._lines is not None and self._config.ack is not None else [])]
        ready, _, _ = select.select(watched, [], [], None if wait_s == float("inf") else wait_s)
        if self._bell in ready:
            os.eventfd_read(self._bell)

    def _leave(self) -> None:
        with self._lock:
            self._is_closed = True
            os.close(self._bell)
        if self._lines is None:
            return
        try:
            self._clear(self._lines)
        except OSError as error:
            log_event(log, "gpio_lost", logging.ERROR, reason=error.strerror)
        self._lines.release()
