"""FrameGuard: whether what a live camera gave is a new, whole picture. One that is not is never judged.

| seen | what it means |
| --- | --- |
| the camera's number stands still | a driver hands out its buffer twice |
| the same bytes as the frame before | frozen: a real sensor has noise |
| the same rows as one of the last frames | a ring of old buffers that a driver hands out again and again |
| another size than the first frame | a camera that came back with its factory settings |
| all black, or one value everywhere | the light is off, the cap is on, the signal is gone |
| the lower rows are those of the frame before, or zero | torn: the frame was not filled before it was handed out |

A number that jumps ahead means frames that were lost on the way: that is told, and is no fault of this frame.
"""

from __future__ import annotations

import collections
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.cameras import Camera
from agent.frame import BgrImage, Fault, Frame, Part
from agent.log import log_event

__all__ = ["FrameGuard", "GuardedCamera", "is_same"]

SAMPLE_ROWS, SAMPLE_COLUMNS = 48, 64
"""A grid of pixels is looked at first; the whole picture only when the grid gives reason to (20 µs instead of 2 ms)."""

RING = 32
"""Frames back to which an old picture is known again: more buffers than drivers have."""

BLACK_LEVEL = 8
"""Of 255. A covered sensor gives its black level and noise, a few counts; hot pixels are left out of the decision."""

HOT_PIXELS = 1 / 1_000
"""Values of a black picture that may be brighter: defect pixels of a warm sensor."""

TELL_AGAIN_NS = 60_000_000_000
"""How often missed frames are logged, with their number so far."""

log = logging.getLogger("agent.cameras.guard")


class FrameGuard:
    """Looks at every frame of one camera, in their order.

    Keeps the frame before, whose pixels nobody may write to (`Camera.read`), and copies nothing but a small grid.

    Args:
        still_s: how long the same picture may come in a row. 0 for pictures that stand alone (raw, MJPEG). Where the
            codec repeats what did not change (H.264, H.265), a still scene gives equal pictures, and equal rows.

    Attributes:
        missed: frames that the camera has counted and we have not got.
    """

    def __init__(self, *, still_s: float = 0.0) -> None:
        self.missed = 0
        self._still_ns = int(still_s * 1e9)
        self._same_since_ns = 0
        self._prints: collections.deque[int] = collections.deque(maxlen=RING)
        self._size: tuple[int, ...] | None = None
        self._sequence: int | None = None
        self._before: BgrImage | None = None
        self._grid: NDArray[np.uint8] | None = None
        self._zero_rows = 0
        self._told_ns: int | None = None

    def check(self, frame: Frame) -> str | None:
        """Why this frame must not be judged, in words; None for a good one.

        Args:
            frame: the next one of this camera.
        """
        image, grid = frame.image, _grid(frame.image)
        reason = (
            self._number(frame)
            or self._other_size(image)
            or self._frozen(frame, grid)
            or _blank(image, grid)
            or self._torn(image)
        )
        self._before, self._grid = image, grid
        return reason

    def _number(self, frame: Frame) -> str | None:
        before, self._sequence = self._sequence, frame.sequence
        if before is not None and frame.sequence == before:
            return f"the camera gave its frame {frame.sequence} again"
        if before is not None and frame.sequence > before + 1:
            self.missed += frame.sequence - before - 1
            self._tell_missed(frame)
        return None

    def _tell_missed(self, frame: Frame) -> None:
        """Once, and then now and then: a line that is slower than its camera misses frames all the time."""
        if self._told_ns is None or frame.captured.mono_ns - self._told_ns >= TELL_AGAIN_NS:
            self._told_ns = frame.captured.mono_ns
            log_event(log, "frames_missed", logging.WARNING, camera=frame.camera, missed=self.missed)

    def _other_size(self, image: BgrImage) -> str | None:
        height, width = image.shape[:2]
        if self._size is None:
            self._size = (width, height)
        if self._size == (width, height):
            return None
        return f"a picture of {width} x {height} px, expected {self._size[0]} x {self._size[1]} as before"

    def _frozen(self, frame: Frame, grid: NDArray[np.uint8]) -> str | None:
        before, seen = self._before, self._grid
        if (
            before is not None
            and seen is not None
            and np.array_equal(grid, seen)
            and np.array_equal(frame.image, before)
        ):
            is_long = frame.captured.mono_ns - self._same_since_ns >= self._still_ns
            return "frozen: the same picture as before, byte for byte" if is_long else None
        self._same_since_ns = frame.captured.mono_ns
        if self._still_ns:
            return None
        known = _print_of(frame.image)
        is_old = known in self._prints
        self._prints.append(known)
        return "stale: a picture of a moment ago came again" if is_old else None

    def _torn(self, image: BgrImage) -> str | None:
        """Rows at the bottom that are not of this exposure."""
        tolerance = max(2, len(image) // 100)
        zero, before = 0 if image[-1].any() else _trailing(np.logical_not(image.any(axis=(1, 2)))), self._zero_rows
        self._zero_rows = zero
        # A scene that ends in black ends there in every frame; a frame that lost its end does so anywhere.
        if abs(zero - before) > tolerance and zero:
            return f"torn: the lower {zero} of {len(image)} rows are empty"
        if self._still_ns or self._before is None or self._before.shape != image.shape:
            return None
        if np.array_equal(image[-1], self._before[-1]) and _is_noisy(image[-tolerance:]):
            same = _trailing((image == self._before).all(axis=(1, 2)))
            if same >= tolerance:
                return f"torn: the lower {same} of {len(image)} rows are those of the frame before"
        return None


class GuardedCamera:
    """A live camera whose frames were looked at: a bad one is a fault, and the camera is `lost` until a good one comes.

    Args:
        camera: the camera; this object owns it from now on.
        guard: looks at each frame.
    """

    def __init__(self, camera: Camera, guard: FrameGuard) -> None:
        self._camera = camera
        self._guard = guard
        self._bad: str | None = None

    @property
    def name(self) -> str:
        """The camera's name."""
        return self._camera.name

    @property
    def upcoming(self) -> str | None:
        """What the camera says."""
        return self._camera.upcoming

    @property
    def ended(self) -> bool:
        """What the camera says."""
        return self._camera.ended

    @property
    def lost(self) -> str | None:
        """Why nothing comes, or why nothing that comes may be judged."""
        return self._camera.lost or self._bad

    def poll(self, timeout_s: float) -> bool:
        """Wait for an exposure, as the camera does."""
        return self._camera.poll(timeout_s)

    def read(self, part: Part) -> Frame | Fault:
        """Take the exposure; a fault when it is no new and whole picture."""
        frame = self._camera.read(part)
        if isinstance(frame, Fault):
            return frame
        reason = self._guard.check(frame)
        self._bad = None if reason is None else f"{frame.source}: {reason}"
        return frame if self._bad is None else Fault(part=part, stage="capture", reason=self._bad)

    def expose(self) -> None:
        """Ask for one exposure; only of a camera that can be asked (`agent.cameras.triggered.Exposing`)."""
        self._camera.expose()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the camera."""
        self._camera.close()


def is_same(left: BgrImage, right: BgrImage) -> bool:
    """Whether two pictures are equal to the byte; the whole is looked at only where the grids are."""
    return np.array_equal(_grid(left), _grid(right)) and np.array_equal(left, right)


def _grid(image: BgrImage) -> NDArray[np.uint8]:
    """Some pixels of all over the picture, copied."""
    height, width = image.shape[:2]
    return np.array(image[:: max(1, height // SAMPLE_ROWS), :: max(1, width // SAMPLE_COLUMNS)])


def _print_of(image: BgrImage) -> int:
    """A number of every few rows, whole: with a sensor's noise no two exposures have the same."""
    return hash(image[:: max(1, len(image) // SAMPLE_ROWS)].tobytes())


def _blank(image: BgrImage, grid: NDArray[np.uint8]) -> str | None:
    darkest, brightest = int(grid.min()), int(grid.max())
    if darkest == brightest and int(image.min()) == int(image.max()):
        return f"every pixel has the value {darkest}: no picture"
    dark = np.count_nonzero(grid > BLACK_LEVEL) <= grid.size * HOT_PIXELS
    if dark and np.count_nonzero(image > BLACK_LEVEL) <= image.size * HOT_PIXELS:
        return f"black: hardly a pixel above {BLACK_LEVEL} of 255; is the light on, and the cap off?"
    return None


def _trailing(rows: Any) -> int:
    """How many of these truths are true without a gap, from the end."""
    gaps = np.flatnonzero(np.logical_not(rows))
    return len(rows) - (int(gaps[-1]) + 1 if len(gaps) else 0)


def _is_noisy(rows: BgrImage) -> bool:
    """Whether neighbours differ, as a sensor's do: clipped and painted areas are equal in every frame."""
    return bool(np.mean(rows[:, 1:] != rows[:, :-1]) > 0.3)
