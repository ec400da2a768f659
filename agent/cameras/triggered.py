"""Triggered stations: the picture of a part is the first one exposed after its trigger, never an older one.

Two ways, by what the camera can do:

- It runs freely (`TriggeredCamera`): a thread reads it all the time and keeps the last few frames, so that nothing old
  waits in the buffers of network and driver, and a part that had to wait for the line still gets its own picture.
- It exposes when asked (`ExposedOnDemand`): it is asked once per part, by the line.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from agent.cameras import Camera
from agent.cameras.guard import is_same
from agent.frame import Fault, Frame, Part, Stamp

__all__ = ["ExposedOnDemand", "Exposing", "Moment", "TriggeredCamera"]

READER_POLL_S = 0.2
"""Bounds how long the reader takes to notice `close` while nothing comes."""

CLOSE_S = 1.0
"""Longest time that `close` waits for the reader; one that hangs in a driver is left behind as a daemon."""

PAUSE_AFTER_BUG_S = 1.0

KEPT_FRAMES, KEPT_BYTES = 16, 64 << 20
"""Frames that wait for a part that was triggered before them; at least the newest one is kept."""

log = logging.getLogger("agent.cameras.triggered")


@runtime_checkable
class Exposing(Protocol):
    """A camera that exposes when it is asked (GenICam with `trigger: software`)."""

    def expose(self) -> None:
        """Ask for one exposure, which `poll` and `read` then give.

        Raises:
            CameraError: it can't be asked now.
        """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When the picture of a part is taken.

    Attributes:
        delay_ms: from the trigger to the exposure: the way from the light barrier to the camera.
        settle_ms: from the strobe's start to the exposure; it lies within the delay where that is long enough.
        timeout_ms: from then until the frame must be here.
        strobe: told True before the exposure, and False after the frame came.
    """

    delay_ms: float = 0.0
    settle_ms: float = 0.0
    timeout_ms: float = 2_000.0
    strobe: Callable[[bool], None] = lambda _is_exposing: None

    def light(self, part: Part, stop: threading.Event) -> int:
        """Wait for the strobe's moment, switch it on, and give the time before which no exposure may have begun.

        Returns:
            Nanoseconds of CLOCK_MONOTONIC: the trigger and the delay, or later where the strobe was lit later.
        """
        exposure_ns = part.triggered.mono_ns + int(self.delay_ms * 1e6)
        early_s = (exposure_ns - time.monotonic_ns()) / 1e9 - self.settle_ms / 1e3
        if early_s > 0:
            stop.wait(early_s)
        self.strobe(True)
        if not self.settle_ms:  # whatever was exposed in time is lit: a part that waited has its picture already
            return exposure_ns
        return max(exposure_ns, time.monotonic_ns() + int(self.settle_ms * 1e6))


@dataclasses.dataclass(frozen=True, slots=True)
class _Taken:
    """What the reader got. A fault has no exposure: its arrival counts, which is never before it."""

    item: Frame | Fault
    exposed_ns: int


class TriggeredCamera:
    """A camera that runs freely, read all the time by the thread `camera`; a part gets the first frame of its own.

    The thread owns the camera: it alone polls, reads and at last closes it. It keeps the last `KEPT_FRAMES` frames (at
    most `KEPT_BYTES`, and the newest in any case). `read` takes the first whose exposure began at the trigger plus the
    delay, or later; it waits for it up to the timeout. It gives a fault instead, in words, when

    - that exposure failed, or is no new and whole picture (`agent.cameras.guard`);
    - the camera is lost: every part until it is found, at once;
    - that picture is gone, as too many came while the part waited;
    - another part was given that picture: both were triggered within one exposure, or the camera gave it twice;
    - none comes in time.

    Args:
        camera: the camera to wrap, whose frames know when they were exposed; this object owns it from now on.
        moment: when the picture of a part is taken.
    """

    def __init__(self, camera: Camera, moment: Moment) -> None:
        self._camera = camera
        self._name = camera.name
        self._moment = moment
        self._kept: collections.deque[_Taken] = collections.deque()
        self._kept_bytes = 0
        self._dropped_ns = self._given_ns = -1
        self._given_to = ""
        self._given: Frame | None = None
        self._lost = camera.lost
        self._bug: str | None = None
        self._done = False
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """The wrapped camera's name."""
        return self._name

    @property
    def upcoming(self) -> str | None:
        """None: the trigger names the part."""
        return None

    @property
    def ended(self) -> bool:
        """The source is at its end, or this camera is closed."""
        return self._stop.is_set() or self._done

    @property
    def lost(self) -> str | None:
        """Why nothing good comes: the reader's own trouble, or the wrapped camera's reason."""
        return self._bug or self._lost

    def poll(self, timeout_s: float) -> bool:  # noqa: ARG002 - the port's
        """True: the trigger decides when there is a part, and `read` waits for its picture."""
        return not self.ended

    def read(self, part: Part) -> Frame | Fault:
        """Wait for the picture of this part, and give it."""
        started_ns = time.monotonic_ns()
        since_ns = self._moment.light(part, self._stop)
        try:
            taken = self._first_since(since_ns, part)
        finally:
            self._moment.strobe(False)
        if isinstance(taken, str):
            return Fault(part=part, stage="capture", reason=taken)
        if isinstance(taken.item, Fault):
            return dataclasses.replace(taken.item, part=part)
        return dataclasses.replace(taken.item, part=part, capture_ms=(time.monotonic_ns() - started_ns) / 1e6)

    def close(self) -> None:
        """Stop the reader and wait up to `CLOSE_S` for it; it closes the wrapped camera."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(CLOSE_S)

    def _first_since(self, since_ns: int, part: Part) -> _Taken | str:
        """The first frame exposed at that time or later, or why there is none."""
        with self._changed:
            late_s = (since_ns - time.monotonic_ns()) / 1e9 + self._moment.timeout_ms / 1e3
            self._changed.wait_for(lambda: self.ended or self.lost or self._find(since_ns), max(0.0, late_s))
            found = self._find(since_ns)
            if self.lost or self.ended or found is None:
                return self.lost or f"{self.name}: {self._why_none()}"
            if self._dropped_ns >= since_ns:
                return f"{self.name}: the picture of this part is gone: too many came while it waited for the line"
            if found.exposed_ns == self._given_ns and isinstance(found.item, Frame):
                return f"{self.name}: this picture was that of part {self._given_to}: triggered within one exposure"
            before = self._given
            if isinstance(found.item, Frame):
                if before is not None and is_same(before.image, found.item.image):
                    return f"{self.name}: the same picture as that of part {self._given_to}, byte for byte"
                self._given = found.item
            self._given_ns, self._given_to = found.exposed_ns, part.id
            return found

    def _find(self, since_ns: int) -> _Taken | None:
        return next((taken for taken in self._kept if taken.exposed_ns >= since_ns), None)

    def _why_none(self) -> str:
        if self.ended:
            return "closed, or at its end"
        return f"no frame within {self._moment.timeout_ms:,.0f} ms that was exposed after the trigger"

    def _run(self) -> None:
        number = 0
        while not self.ended:
            number += 1
            try:
                self._take_one(Part(id=self._name, trigger="free", sequence=number, triggered=Stamp.now()))
            except Exception as error:  # a camera never raises for one exposure: our bug, shown as one
                log.exception("bug")
                self._tell(f"{self._name}: unexpected {type(error).__name__}: {error}")
                self._stop.wait(PAUSE_AFTER_BUG_S)
        try:
            self._camera.close()
        except Exception:  # nobody is left to tell
            log.exception("bug")

    def _take_one(self, part: Part) -> None:
        there = self._camera.poll(READER_POLL_S)
        item = self._camera.read(part) if there else None
        exposed_ns = (item.exposed_ns if isinstance(item, Frame) else None) or time.monotonic_ns()
        with self._changed:
            self._lost, self._bug = self._camera.lost, None
            self._done = item is None and self._camera.ended
            if item is not None:
                self._keep(_Taken(item, exposed_ns))
            self._changed.notify_all()

    def _keep(self, taken: _Taken) -> None:
        self._kept.append(taken)
        self._kept_bytes += _bytes_of(taken)
        while len(self._kept) > 1 and (len(self._kept) > KEPT_FRAMES or self._kept_bytes > KEPT_BYTES):
            oldest = self._kept.popleft()
            self._kept_bytes -= _bytes_of(oldest)
            self._dropped_ns = oldest.exposed_ns

    def _tell(self, bug: str) -> None:
        with self._changed:
            self._bug = bug
            self._changed.notify_all()


class ExposedOnDemand:
    """A camera that exposes when it is asked, once per part, by the line; the line waits for its frame.

    What was exposed before it was asked (a buffer that a driver still held) is passed over, never given.

    Args:
        camera: the camera, which has `expose`; this object owns it from now on.
        moment: when the picture of a part is taken.
    """

    def __init__(self, camera: Camera, moment: Moment) -> None:
        if not isinstance(camera, Exposing):
            raise TypeError(f"{camera.name} can't be asked for an exposure")
        self._camera, self._ask = camera, camera.expose
        self._moment = moment
        self._closed = threading.Event()

    @property
    def name(self) -> str:
        """The wrapped camera's name."""
        return self._camera.name

    @property
    def upcoming(self) -> str | None:
        """None: the trigger names the part."""
        return None

    @property
    def ended(self) -> bool:
        """The camera is closed."""
        return self._closed.is_set() or self._camera.ended

    @property
    def lost(self) -> str | None:
        """What the camera says; it is found again by the next part that it answers."""
        return self._camera.lost

    def poll(self, timeout_s: float) -> bool:  # noqa: ARG002 - the port's
        """True: the trigger decides when there is a part."""
        return not self.ended

    def read(self, part: Part) -> Frame | Fault:
        """Ask for one exposure and wait for it."""
        since_ns = self._moment.light(part, self._closed)
        self._closed.wait(max(0.0, (since_ns - time.monotonic_ns()) / 1e9))
        started_ns = time.monotonic_ns()
        try:
            if self._camera.lost is not None:
                self._camera.poll(0.0)  # which opens it again when that is due: nobody else asks it anything
            self._ask()
            taken = self._wait_for(part, max(since_ns, started_ns))
        except Exception as error:  # of the driver, in the middle of a part
            taken = Fault(part=part, stage="capture", reason=f"{self.name}: {error}")
        finally:
            self._moment.strobe(False)
        if isinstance(taken, Fault):
            return taken
        return dataclasses.replace(taken, capture_ms=(time.monotonic_ns() - started_ns) / 1e6)

    def close(self) -> None:
        """Close the camera."""
        self._closed.set()
        self._camera.close()

    def _wait_for(self, part: Part, since_ns: int) -> Frame | Fault:
        until_ns = since_ns + int(self._moment.timeout_ms * 1e6)
        while (left_ns := until_ns - time.monotonic_ns()) > 0 and not self.ended:
            if not self._camera.poll(left_ns / 1e9):
                break
            taken = self._camera.read(part)
            if isinstance(taken, Fault) or (taken.exposed_ns is not None and taken.exposed_ns >= since_ns):
                return taken
        reason = self.lost or f"{self.name}: no frame within {self._moment.timeout_ms:,.0f} ms of the trigger"
        return Fault(part=part, stage="capture", reason=reason)


def _bytes_of(taken: _Taken) -> int:
    return taken.item.image.nbytes if isinstance(taken.item, Frame) else 0
