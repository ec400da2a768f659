"""What other threads ask of the publisher's thread, and the bell that wakes it."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

__all__ = ["Orders"]


class Orders:
    """Flags that any thread may set; setting one rings. Only the publisher's thread waits on it.

    Attributes:
        stop_at: leave by then (monotonic seconds), or None.
        status_due: publish the status.
    """

    def __init__(self) -> None:
        self.stop_at: float | None = None
        self.status_due = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        """Readable after `ring`, until `hear`."""
        return self._reader

    def ring(self) -> None:
        """Wake the thread; a pipe that is full has already woken it."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._writer, b"!")

    def hear(self) -> None:
        """Make the bell silent; look at the flags after it, or one set in between is missed."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._reader, 512)) == 512:
                pass

    def rest(self, pause_s: float, turned: Callable[[], None]) -> None:
        """Wait that long, or until a stop is asked for.

        Args:
            pause_s: how long.
            turned: called now and then, as a sign of life.
        """
        until = time.monotonic() + pause_s
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        while self.stop_at is None and (left_s := until - time.monotonic()) > 0:
            if poll.poll(left_s * 1000):
                self.hear()
            turned()

    def close(self) -> None:
        """Close the pipe; the thread must have ended. Ringing is harmless after it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._reader)
                os.close(self._writer)
