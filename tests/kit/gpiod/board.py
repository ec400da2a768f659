"""The electrical side of the stand-in: chips with lines, what the kernel does with them, and what can go wrong.

What is modelled is the kernel's `gpiolib-cdev`: lines belong to one request; each edge that is looked for gets the next
number of its line; a full event buffer throws away its oldest event; a debounced edge counts when the level has stood
for the whole period, and bears that time. Levels are electrical: True is 3.3 V.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

__all__ = ["Board", "Edge", "SimChip", "SimRequest", "Wanted"]

KERNEL_EVENTS_PER_LINE = 16
"""Size of an event buffer whose size nobody asked for (`linereq_set_config`, GPIO_V2_LINES_MAX * 16 at most)."""


class Edge(NamedTuple):
    """One event as the kernel keeps it."""

    is_rising: bool
    timestamp_ns: int
    offset: int
    global_seqno: int
    line_seqno: int


class Wanted(NamedTuple):
    """What a request wants of one line; levels and edges are logical."""

    is_output: bool
    edges: frozenset[bool]
    is_active_low: bool
    debounce_ns: int
    output: bool


class Board:
    """All chips of a machine, and its power.

    Attributes:
        chips: by path.
        has_power: without it every line reads 0 V.
        after_death: what a driver does with the lines of a process that is gone: some leave the level as it was
            (`keep`), others make inputs of them (`input`). The kernel promises neither.
        forbidden: paths that this user must not open.
        shuffled: lines that one call sets change in the reverse of the order given: the kernel promises no order.
    """

    def __init__(self, *, after_death: Literal["keep", "input"] = "keep", shuffled: bool = False) -> None:
        self.chips: dict[str, SimChip] = {}
        self.has_power = True
        self.after_death = after_death
        self.forbidden: set[str] = set()
        self.shuffled = shuffled
        self.lock = threading.RLock()
        self._watchers: list[Callable[[], None]] = []

    def add_chip(self, path: str = "/dev/gpiochip0", *, lines: int = 32, label: str = "pinctrl-stand-in") -> SimChip:
        """Plug a chip in."""
        self.chips[path] = chip = SimChip(self, path, lines, label)
        return chip

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call it after each single change of a level, on the thread that changes it."""
        self._watchers.append(watcher)

    def power_off(self) -> None:
        """Pull the plug."""
        with self.lock:
            self.has_power = False
            self.changed()

    def kill_processes(self) -> None:
        """As SIGKILL: the kernel closes the requests, and nothing else happens."""
        with self.lock:
            for chip in self.chips.values():
                for request in list(chip.requests):
                    request.release()

    def changed(self) -> None:
        """A level is another one now."""
        for watcher in self._watchers:
            watcher()


class SimRequest:
    """Lines that one process holds: what an open file of the kernel is."""

    def __init__(self, chip: SimChip, wanted: Mapping[int, Wanted], consumer: str, events: int) -> None:
        self.chip, self.wanted, self.consumer = chip, dict(wanted), consumer
        self.capacity = min(events or KERNEL_EVENTS_PER_LINE * len(wanted), KERNEL_EVENTS_PER_LINE * 64)
        self.events: collections.deque[Edge] = collections.deque()
        self.is_released = False
        self._numbers = collections.Counter[int]()
        self._global = 0
        self.fd, self._bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def put(self, offset: int, *, is_rising: bool, at_ns: int) -> None:
        """An edge that was looked for."""
        self._global += 1
        self._numbers[offset] += 1
        if len(self.events) == self.capacity:
            self.events.popleft()
        self.events.append(Edge(is_rising, at_ns, offset, self._global, self._numbers[offset]))
        self.ring()

    def ring(self) -> None:
        """The file can be read."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._bell, b"!")

    def take(self, most: int) -> list[Edge]:
        """Events that are there now.

        Raises:
            OSError: ENODEV, the chip is gone.
        """
        with self.chip.board.lock:
            self.chip.check()
            taken = [self.events.popleft() for _ in range(min(most, len(self.events)))]
            if not self.events:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.fd, 65_536)
            return taken

    def release(self) -> None:
        """Give the lines back."""
        with self.chip.board.lock:
            if self.is_released:
                return
            self.is_released = True
            self.chip.requests.remove(self)
            for offset, wanted in self.wanted.items():
                if wanted.is_output and self.chip.board.after_death == "input":
                    self.chip.driven[offset] = None
                    self.chip.board.changed()
        os.close(self.fd)
        os.close(self._bell)


class SimChip:
    """One chip.

    Attributes:
        driven: level that an output drives, by offset; None is an input.
        outside: level that the wiring gives a line that nobody drives.
        requests: that are open.
        refuse_sets: errno that every setting of a level fails with; 0 is none.
        is_gone: unplugged: whatever is asked fails with ENODEV.
        sets: how often levels were set.
    """

    def __init__(self, board: Board, path: str, lines: int, label: str) -> None:
        self.board, self.path, self.lines, self.label = board, path, lines, label
        self.driven: list[bool | None] = [None] * lines
        self.outside = [False] * lines
        self.requests: list[SimRequest] = []
        self.refuse_sets = 0
        self.is_gone = False
        self.sets = 0
        self._stable = [False] * lines

    def level(self, offset: int) -> bool:
        """What a voltmeter shows."""
        if not self.board.has_power:
            return False
        driven = self.driven[offset]
        return self.outside[offset] if driven is None else driven

    def request(self, wanted: Mapping[int, Wanted], consumer: str, events: int) -> SimRequest:
        """Take lines.

        Raises:
            OSError: EBUSY, somebody has one of them; ENODEV.
        """
        with self.board.lock:
            self.check()
            if any(offset in request.wanted for request in self.requests for offset in wanted):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            request = SimRequest(self, wanted, consumer, events)
            self.requests.append(request)
            for offset, line in wanted.items():
                if line.is_output:
                    self._drive(offset, line.output != line.is_active_low)
            return request

    def set(self, request: SimRequest, values: Mapping[int, bool]) -> None:
        """Set logical levels, one after the other.

        Raises:
            OSError: EPERM, not an output; what `refuse_sets` says; ENODEV.
        """
        with self.board.lock:
            self.check()
            self.sets += 1
            if self.refuse_sets:
                raise OSError(self.refuse_sets, os.strerror(self.refuse_sets))
            if not all(request.wanted[offset].is_output for offset in values):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            pairs = list(values.items())
            for offset, value in reversed(pairs) if self.board.shuffled else pairs:
                self._drive(offset, value != request.wanted[offset].is_active_low)

    def drive(self, offset: int, level: bool, *, at_ns: int | None = None) -> None:
        """What is wired to the line changes its level, and leaves it."""
        self.play(offset, [(0.0, level)], at_ns=at_ns)

    def pulse(self, offset: int, count: int = 1) -> None:
        """So many pulses, far enough apart for any debouncing."""
        for _ in range(count):
            self.drive(offset, level=True)
            self.drive(offset, level=False)

    def play(self, offset: int, levels: Iterable[tuple[float, bool]], *, at_ns: int | None = None) -> None:
        """Levels of the wiring over time, in microseconds from the first; after the last the level stays."""
        with self.board.lock:
            start = time.monotonic_ns() if at_ns is None else at_ns
            steps = [(start + int(us * 1_000), level) for us, level in levels]
            for number, (at, level) in enumerate(steps):
                self.outside[offset] = level
                for request, wanted in self._listeners(offset):
                    is_last = number + 1 == len(steps)
                    if is_last or steps[number + 1][0] - at >= wanted.debounce_ns:
                        self._settle(request, wanted, offset, level, at + wanted.debounce_ns)
                self.board.changed()

    def unplug(self) -> None:
        """The chip goes, as one on USB does."""
        with self.board.lock:
            self.is_gone = True
            self.driven = [None] * self.lines
            for request in self.requests:
                request.ring()
            self.board.changed()

    def check(self) -> None:
        """Is the chip there?

        Raises:
            OSError: ENODEV.
        """
        if self.is_gone:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    def _listeners(self, offset: int) -> Iterator[tuple[SimRequest, Wanted]]:
        for request in self.requests:
            if offset in request.wanted and not request.wanted[offset].is_output:
                yield request, request.wanted[offset]

    def _settle(self, request: SimRequest, wanted: Wanted, offset: int, level: bool, at_ns: int) -> None:
        if level == self._stable[offset]:
            return
        self._stable[offset] = level
        is_rising = level != wanted.is_active_low
        if is_rising in wanted.edges:
            request.put(offset, is_rising=is_rising, at_ns=at_ns)

    def _drive(self, offset: int, level: bool) -> None:
        if self.driven[offset] is not level:
            self.driven[offset] = level
            self.board.changed()

    def described(self) -> dict[str, Any]:
        """What `gpiodetect` shows."""
        return {"name": self.path.rpartition("/")[2], "label": self.label, "num_lines": self.lines}
