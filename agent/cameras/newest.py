"""Free run: a thread reads the camera all the time, and the line gets the newest frame only."""

from __future__ import annotations

import dataclasses
import logging
import threading

from agent.cameras import Camera
from agent.frame import Fault, Frame, Part, Stamp

__all__ = ["NewestFrame"]

READER_POLL_S = 0.2
"""Bounds how long the reader takes to notice `close` while nothing comes."""

CLOSE_S = 1.0
"""Longest time that `close` waits for the reader; one that hangs in a driver is left behind as a daemon."""

PAUSE_AFTER_BUG_S = 1.0

log = logging.getLogger("agent.cameras.newest")


class NewestFrame:
    """Any camera, with one slot between its reader thread and the line: the newest frame wins.

    The thread `camera` owns the wrapped camera: it alone polls, reads and at last closes it. It ends when the source
    ends or within a second of `close`; if a driver holds it longer, `close` returns all the same and the thread closes
    the camera when it gets back. The line never waits for the device, only for the slot.

    A frame is given once. One that came while the slot was full replaces the older one, which is then no part and is
    counted. A camera that is lost and goes on giving bad frames (frozen, black) gives one fault: nothing triggers the
    others. An exception out of the camera, which is a bug, becomes `lost` and one fault; the reader then tries on.

    Attributes:
        skipped: frames that were replaced before anyone took them.

    Args:
        camera: the camera to wrap; this object owns it from now on.
    """

    def __init__(self, camera: Camera) -> None:
        self.skipped = 0
        self._camera = camera
        self._name = camera.name
        self._slot: Frame | Fault | None = None
        self._lost = camera.lost
        self._bug: str | None = None
        self._is_told = False
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
        """None: a live picture has no name of its own."""
        return None

    @property
    def ended(self) -> bool:
        """The reader is done and its last frame was taken, or this camera is closed."""
        with self._changed:
            return self._stop.is_set() or (self._done and self._slot is None)

    @property
    def lost(self) -> str | None:
        """Why nothing comes: the reader's own trouble, or the wrapped camera's reason."""
        return self._bug or self._lost

    def poll(self, timeout_s: float) -> bool:
        """Wait for a frame that nobody has taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._slot is not None or self.ended, timeout_s)
            return self._slot is not None and not self._stop.is_set()

    def read(self, part: Part) -> Frame | Fault:
        """Take the newest frame; a fault when there is none that was not given before."""
        with self._changed:
            newest, self._slot = self._slot, None
        if newest is None or self._stop.is_set():
            return Fault(part=part, stage="capture", reason=self.lost or f"{self.name}: no new frame")
        return dataclasses.replace(newest, part=part)

    def close(self) -> None:
        """Stop the reader and wait up to `CLOSE_S` for it; it closes the wrapped camera."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set() and not self._done:
            number += 1
            try:
                self._take_one(Part(id=self._name, trigger="free", sequence=number, triggered=Stamp.now()))
            except Exception as error:  # a camera never raises for one exposure: our bug, shown as one
                log.exception("bug")
                self._report(f"{self._name}: unexpected {type(error).__name__}: {error}")
                self._stop.wait(PAUSE_AFTER_BUG_S)
        try:
            self._camera.close()
        except Exception:  # nobody is left to tell
            log.exception("bug")

    def _take_one(self, part: Part) -> None:
        there = self._camera.poll(READER_POLL_S)
        newest = self._camera.read(part) if there else None
        self._lost, self._bug = self._camera.lost, None
        if newest is not None:
            was_told, self._is_told = self._is_told, isinstance(newest, Fault) and self._lost is not None
            if not (was_told and self._is_told):
                self._put(newest)
        elif self._camera.ended:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _report(self, reason: str) -> None:
        first, self._bug = self._bug is None, reason
        if first:
            part = Part(id=self._name, trigger="free", sequence=0, triggered=Stamp.now())
            self._put(Fault(part=part, stage="capture", reason=reason))

    def _put(self, newest: Frame | Fault) -> None:
        with self._changed:
            self.skipped += self._slot is not None
            self._slot = newest
            self._changed.notify_all()
