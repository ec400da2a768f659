"""Part, Frame, Fault: what was triggered, what was seen, and what went wrong instead.

Time comes in pairs: UTC for people and other systems, monotonic for durations. A clock that is set back changes the
first and never the second.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BgrImage", "Fault", "Frame", "Part", "Stage", "Stamp"]

BgrImage: TypeAlias = "NDArray[np.uint8]"
"""(H, W, 3) uint8, blue-green-red as OpenCV gives it, C-contiguous, row 0 at the top."""

Stage = Literal["trigger", "capture", "preprocess", "infer", "decode", "decide", "record"]
"""Where on its way a part was when something failed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stamp:
    """One moment on both clocks.

    Attributes:
        utc_ms: milliseconds since 1970-01-01 UTC; may jump when the clock is set.
        mono_ns: nanoseconds of CLOCK_MONOTONIC; never goes back within one boot.
    """

    utc_ms: int
    mono_ns: int

    @classmethod
    def now(cls) -> Stamp:
        """The present moment on both clocks."""
        return cls(time.time_ns() // 1_000_000, time.monotonic_ns())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One triggered part: from here on it will get exactly one verdict.

    Attributes:
        id: the plant's name for the part; from the trigger, the file name, or generated.
        trigger: what asked for it ("frame", "free", …).
        sequence: counts the triggers of this run from 1.
        triggered: when.
    """

    id: str
    trigger: str
    sequence: int
    triggered: Stamp


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One exposure of one part.

    Attributes:
        part: whose picture this is.
        image: (H, W, 3) uint8 BGR.
        camera: the configured camera name.
        source: file or device that it came from, in words.
        sequence: the camera's own frame counter.
        captured: when the exposure ended.
        capture_ms: what taking it cost, in milliseconds.
        exposed_ns: CLOCK_MONOTONIC before which its exposure did not begin: the sensor's time where the driver gives
            it, else its arrival less the camera's `latency_ms`; None where time means nothing (files).
    """

    part: Part
    image: NDArray[np.uint8]
    camera: str
    source: str
    sequence: int
    captured: Stamp
    capture_ms: float = 0.0
    exposed_ns: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The reason why a part has no result; it becomes an `error` verdict, never silence.

    Attributes:
        part: whose result is missing.
        stage: where it failed.
        reason: in words, for the person at the line.
        is_refusal: the trigger came while too many waited.
    """

    part: Part
    stage: Stage
    reason: str
    is_refusal: bool = False
