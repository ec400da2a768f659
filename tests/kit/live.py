"""A live camera that the test holds in its hand: its frames know when they were exposed, as a sensor's do."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agent.errors import CameraError
from agent.frame import Fault, Frame, Part, Stamp

__all__ = ["LiveCamera", "noisy"]

PATIENCE_S = 20.0


def noisy(level: int = 100, *, seed: int | None = None, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 BGR of one grey level with a sensor's noise: no two are alike."""
    noise = np.random.default_rng(seed).integers(-3, 4, (height, width, 3))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True, slots=True)
class _Shot:
    image: NDArray[np.uint8] | str | Exception
    exposed_ns: int
    sequence: int


class LiveCamera:
    """Delivers what `show`, `fail` and `crash` put into it, in order; passes the camera contract.

    Args:
        name: its name.

    Attributes:
        asked: how often it was asked for an exposure; `on_expose` is then called, to show one.
        closed: set once it was closed.
    """

    def __init__(self, name: str = "live") -> None:
        self._name = name
        self._shots: deque[_Shot] = deque()
        self._changed = threading.Condition()
        self._sequence = 0
        self._lost: str | None = None
        self._idle = False
        self.asked = 0
        self.refuses: str | None = None
        self.on_expose: Callable[[], None] = lambda: None
        self.closed = threading.Event()

    @property
    def sequence(self) -> int:
        """The number of the last picture."""
        return self._sequence

    def show(self, image: NDArray[np.uint8], *, exposed_ns: int | None = None, sequence: int | None = None) -> None:
        """Deliver a picture that was exposed now, or then, with the next number, or this one."""
        at = time.monotonic_ns() if exposed_ns is None else exposed_ns
        self._add(image, at, self._sequence + 1 if sequence is None else sequence)

    def fail(self, reason: str) -> None:
        """Let the next exposure fail."""
        self._add(reason, time.monotonic_ns(), self._sequence)

    def crash(self, error: Exception) -> None:
        """Make the next read raise, which no camera may."""
        self._add(error, time.monotonic_ns(), self._sequence)

    def lose(self, reason: str | None) -> None:
        """Be lost, or found again."""
        with self._changed:
            self._lost = reason
            self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Return once somebody waits in `poll` and everything before that was read."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._idle, PATIENCE_S), "nobody polls this camera"

    @property
    def name(self) -> str:
        return self._name

    @property
    def upcoming(self) -> str | None:
        return None

    @property
    def ended(self) -> bool:
        return self.closed.is_set()

    @property
    def lost(self) -> str | None:
        return self._lost

    def expose(self) -> None:
        self.asked += 1
        if self.refuses is not None:
            raise CameraError(self.refuses)
        self.on_expose()

    def poll(self, timeout_s: float) -> bool:
        with self._changed:
            if not self._shots and not self._idle:
                self._idle = True
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._shots or self.ended, timeout_s)
            return bool(self._shots) and not self.closed.is_set()

    def read(self, part: Part) -> Frame | Fault:
        with self._changed:
            shot = self._shots.popleft() if self._shots and not self.closed.is_set() else None
        if shot is None or isinstance(shot.image, str):
            reason = f"{self.name}: no exposure" if shot is None else str(shot.image)
            return Fault(part=part, stage="capture", reason=reason)
        if isinstance(shot.image, Exception):
            raise shot.image
        return Frame(
            part=part,
            image=shot.image,
            camera=self.name,
            source="the test",
            sequence=shot.sequence,
            captured=Stamp.now(),
            exposed_ns=shot.exposed_ns,
        )

    def close(self) -> None:
        self.closed.set()
        with self._changed:
            self._changed.notify_all()

    def _add(self, image: NDArray[np.uint8] | str | Exception, exposed_ns: int, sequence: int) -> None:
        with self._changed:
            self._idle = False
            self._sequence = sequence
            self._shots.append(_Shot(image, exposed_ns, sequence))
            self._changed.notify_all()
