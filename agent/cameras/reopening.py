"""A lost device is closed and opened again by a thread of its own, for both can hang for seconds in a driver."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from agent.errors import CameraError

__all__ = ["Reopener", "close_within"]

STOP_S = 1.0
"""Longest time that `stop` waits for the thread; one that hangs in a driver is left behind as a daemon."""

log = logging.getLogger("agent.cameras.reopening")


class _Closable(Protocol):
    def close(self) -> None: ...


Device = TypeVar("Device", bound=_Closable)


def close_within(seconds: float, close: Callable[[], None], *, name: str) -> threading.Thread:
    """Close something that may hang, and wait so long for it.

    Args:
        seconds: the longest wait; a close that hangs goes on in its daemon thread.
        close: does it, and raises nothing.
        name: of the thread.

    Returns:
        The thread, which is alive while it hangs.
    """
    thread = threading.Thread(target=close, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    return thread


class Reopener(Generic[Device]):
    """Opens a device again and again, with growing pauses, until it is there.

    The thread `reopen` runs from `begin` until the device is open or `stop`. A device that is opened after `stop` is
    closed at once.

    Args:
        open_device: opens it; raises CameraError when that can't be done yet.
        first_s: the first pause; it doubles with each try, up to eight times that.

    Attributes:
        reason: why the last try failed, in words; None before the first.
    """

    def __init__(self, open_device: Callable[[], Device], *, first_s: float) -> None:
        self.reason: str | None = None
        self._open = open_device
        self._first_s = self._pause_s = first_s
        self._found: Device | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, lost: Device) -> None:
        """Close what was lost, then try."""
        self.reason = None
        self._thread = threading.Thread(target=self._run, args=([lost],), name="reopen", daemon=True)
        self._thread.start()

    def take(self, timeout_s: float) -> Device | None:
        """Wait for the device, and take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._found is not None or self._stop.is_set(), timeout_s)
            found, self._found = self._found, None
            return found

    def begin_with_first_pause(self) -> None:
        """It delivers again: the next loss begins with the first pause."""
        self._pause_s = self._first_s

    def stop(self) -> None:
        """End the thread, and close a device that nobody took."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(STOP_S)
        unclaimed = self.take(0)
        if unclaimed is not None:
            unclaimed.close()

    def _run(self, lost: list[Device]) -> None:
        try:
            lost.pop().close()
            while not self._stop.wait(self._pause_s):
                self._pause_s = min(2 * self._pause_s, 8 * self._first_s)
                if self._try():
                    return
        except Exception:  # a bug, not a camera that is away; the watchdog's restart is what is left
            log.exception("bug")
            self.reason = "it could not be opened again, by a bug of ours: see the log"

    def _try(self) -> bool:
        try:
            device = self._open()
        except CameraError as error:
            self.reason = error.message
            return False
        with self._changed:
            if not self._stop.is_set():
                self._found = device
                self._changed.notify_all()
                return True
        device.close()
        return True
