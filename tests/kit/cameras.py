"""A camera that the test holds in its hand: an honest stand-in that passes the camera contract."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.pictures import flat

__all__ = ["HandCamera"]

PATIENCE_S = 20.0


class HandCamera:
    """Delivers what `show`, `fail` and `crash` put into it, in order.

    Attributes:
        upcoming: the part id that it has for its next exposure, if any.
        closed: set once it was closed.
        hung: set once a poll is stuck.

    Args:
        name: its name.
    """

    def __init__(self, name: str = "hand") -> None:
        self._name = name
        self.upcoming: str | None = None
        self._queue: deque[NDArray[np.uint8] | str | Exception] = deque()
        self._changed = threading.Condition()
        self._idle = False
        self._stuck = False
        self._over = False
        self._lost: str | None = None
        self._sequence = 0
        self.closed = threading.Event()
        self.hung = threading.Event()

    def show(self, *levels: int) -> None:
        """Expose flat pictures of these grey levels."""
        self._add(*(flat(level) for level in levels))

    def fail(self, reason: str) -> None:
        """Make the next exposure a failure."""
        self._add(reason)

    def crash(self, error: Exception) -> None:
        """Make the next read raise, which no camera may."""
        self._add(error)

    def lose(self, reason: str | None) -> None:
        """Be lost, or found again."""
        self._lost = reason

    def hang(self, *, stuck: bool) -> None:
        """Block every poll, as a driver that does not come back does, until it is called again."""
        with self._changed:
            self._stuck = stuck
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Return once somebody waits in `poll` and everything before that was read."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._idle, PATIENCE_S), "nobody polls this camera"

    @property
    def name(self) -> str:
        return self._name

    @property
    def ended(self) -> bool:
        with self._changed:
            return self.closed.is_set() or (self._over and not self._queue)

    @property
    def lost(self) -> str | None:
        return self._lost

    def poll(self, timeout_s: float) -> bool:
        with self._changed:
            self._idle = not self._queue
            self._changed.notify_all()
            if self._stuck:
                self.hung.set()
                self._changed.wait_for(lambda: not self._stuck)
            self._changed.wait_for(lambda: self._queue or self.ended, timeout_s)
            return bool(self._queue) and not self.closed.is_set()

    def read(self, part: Part) -> Frame | Fault:
        with self._changed:
            shown = self._queue.popleft() if self._queue and not self.closed.is_set() else f"{self.name}: no exposure"
        if isinstance(shown, Exception):
            raise shown
        if isinstance(shown, str):
            return Fault(part=part, stage="capture", reason=shown)
        self._sequence += 1
        return Frame(
            part=part,
            image=shown,
            camera=self.name,
            source="the test",
            sequence=self._sequence,
            captured=Stamp.now(),
        )

    def close(self) -> None:
        self.closed.set()
        with self._changed:
            self._changed.notify_all()

    def _add(self, *items: NDArray[np.uint8] | str | Exception) -> None:
        with self._changed:
            self._idle = False
            self._queue.extend(items)
            self._changed.notify_all()
