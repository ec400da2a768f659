"""Health: systemd's notify protocol, the watchdog that only a working line feeds, log-once availability, clock, disk.

```text
Station.step ─▶ Heartbeat.beat ─▶ notify("WATCHDOG=1") ─▶ systemd
 no step         no beat           no datagram            SIGABRT, a new start
```

There is no thread here: one that feeds the watchdog from the side lives on while the line is stuck. Nothing here raises
into the line, and nothing waits for systemd but READY and STOPPING, which must arrive.

Protocol: sd_notify(3), sd_watchdog_enabled(3). No library: it is one datagram.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from agent.errors import AgentError

__all__ = ["Availability", "ClockState", "Heartbeat", "clock_synced", "disk_free_bytes", "notify", "watchdog_s"]

ClockState = Literal["synced", "unsynced", "unknown"]

PATIENCE_S = 2.0
"""How long READY and STOPPING wait for room in systemd's queue; everything else is dropped and comes again."""

WATCHDOG_MARGIN = 1.5
"""Watchdog time over `stuck_s`. A datagram is held back for up to a quarter of the watchdog time, so three quarters
are left to the part; 1.5 leaves 1.125 times `stuck_s`."""

BEATS_PER_WATCHDOG = 4
"""sd_watchdog_enabled(3) wants at least two; four outlives a lost datagram."""

log = logging.getLogger("agent.health")


def notify(*assignments: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell systemd: `notify("READY=1", "STATUS=judging parts")`.

    Args:
        assignments: `NAME=value`, one datagram for all; a line break in a value becomes a space.
        environ: where NOTIFY_SOCKET stands; an abstract socket begins with `@`.

    Returns:
        Whether the datagram was taken. False without systemd, and when its queue is full or gone. Never raises.
    """
    name = environ.get("NOTIFY_SOCKET", "")
    if name[:1] not in {"/", "@"}:  # absent, or a kind (vsock) that only a virtual machine's init speaks
        return False
    address = "\0" + name[1:] if name[0] == "@" else name
    message = "\n".join(" ".join(a.splitlines()) for a in assignments)
    must_arrive = any(a.startswith(("READY=", "STOPPING=")) for a in assignments)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.settimeout(PATIENCE_S if must_arrive else 0)
            out.sendto(message.encode(), address)
    except (OSError, ValueError) as error:
        log.debug("notify_failed", extra={"fields": {"socket": name, "error": str(error)}})
        return False
    return True


def watchdog_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds after which systemd kills us without a sign of life; None when it does not watch this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None


class Heartbeat:
    """The line's sign of life, passed on to systemd's watchdog.

    The unit says whether there is a watchdog; `stuck_s` says how patient it is: systemd is told `WATCHDOG_USEC` of 1.5
    times that, so one number in the configuration rules both. Only the line's own thread may call `beat`. The watchdog
    kills with SIGABRT, at which Python's faulthandler writes where every thread stands to standard error.

    Args:
        stuck_s: longest time that one step may take.
        environ: where systemd's variables stand.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, stuck_s: float, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._environ = environ
        self._clock = clock
        self._interval_s: float | None = None
        self._fed_at = float("-inf")
        asked_s = watchdog_s(environ)
        if asked_s is None:
            return
        if not faulthandler.is_enabled() and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        wanted_s = stuck_s * WATCHDOG_MARGIN
        told = notify(f"WATCHDOG_USEC={round(wanted_s * 1e6)}", environ=environ)
        self._interval_s = (wanted_s if told else min(asked_s, wanted_s)) / BEATS_PER_WATCHDOG

    def beat(self) -> None:
        """The line has done a step, if only that it waited for a part. Never raises, never waits."""
        if self._interval_s is None:
            return
        now = self._clock()
        if now - self._fed_at >= self._interval_s and notify("WATCHDOG=1", environ=self._environ):
            self._fed_at = now


class Availability:
    """Logs a loss once and the recovery once, with how long it took, however often it is told of either.

    Args:
        what: `camera`, `broker`, `disk`; events are `<what>_lost` and `<what>_found`.
        logger: where they go.
        clock: monotonic seconds.
        fields: stand in both events.
    """

    def __init__(
        self, what: str, *, logger: logging.Logger = log, clock: Callable[[], float] = time.monotonic, **fields: Any
    ) -> None:
        self._what = what
        self._log = logger
        self._clock = clock
        self._fields = fields
        self._lock = threading.Lock()
        self._lost_at: float | None = None

    @property
    def available(self) -> bool:
        """False from the first `lost` to the next `found`."""
        return self._lost_at is None

    def lost(self, reason: str) -> bool:
        """It is away. Logs the first reason and no other.

        Returns:
            Whether this was news.
        """
        with self._lock:
            if self._lost_at is not None:
                return False
            self._lost_at = self._clock()
        self._log.warning(f"{self._what}_lost", extra={"fields": {**self._fields, "reason": reason}})
        return True

    def found(self) -> float | None:
        """It is there.

        Returns:
            Seconds that it was away, or None when it was not.
        """
        with self._lock:
            if self._lost_at is None:
                return None
            away_s, self._lost_at = self._clock() - self._lost_at, None
        self._log.info(f"{self._what}_found", extra={"fields": {**self._fields, "away_s": round(away_s, 3)}})
        return away_s


class _Timex(ctypes.Structure):
    """The head of `struct timex` (adjtimex(2)); `rest` is more than any architecture's remainder."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


STA_UNSYNC = 0x0040
"""linux/timex.h: nobody keeps this clock. NTP, PTP (phc2sys) and systemd-timesyncd clear it; the kernel sets it again
when they have been silent for long."""

TIMESYNC_STAMP = Path("/run/systemd/timesync/synchronized")
"""systemd-timesyncd touches it at the first synchronization of a boot."""


def clock_synced() -> ClockState:
    """Whether something keeps the system clock right; costs a few microseconds.

    The kernel's word counts; where it may not be asked (a container's system call filter), systemd-timesyncd's stamp
    does, and without one nobody knows.
    """
    status = _kernel_clock_status()
    if status is not None:
        return "unsynced" if status & STA_UNSYNC else "synced"
    with contextlib.suppress(OSError):
        TIMESYNC_STAMP.stat()
        return "synced"
    return "unknown"


def _kernel_clock_status() -> int | None:
    adjtimex = _adjtimex()
    timex = _Timex()  # modes 0 reads and sets nothing
    if adjtimex is None or adjtimex(ctypes.byref(timex)) < 0:
        return None
    return int(timex.status)


@functools.cache
def _adjtimex() -> Any:
    return getattr(ctypes.CDLL(None), "adjtimex", None)


def disk_free_bytes(path: Path) -> int:
    """Bytes that we, not root, may still write where `path` is or will be.

    Args:
        path: a file or folder; when it is not made yet, its nearest existing folder counts.

    Raises:
        AgentError: the file system can't be asked.
    """
    place = path.absolute()
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        state = os.statvfs(place)
    except OSError as error:
        raise AgentError(f"{path}: free space can't be read ({error.strerror})", hint=f"df {place}") from error
    return state.f_bavail * state.f_frsize
