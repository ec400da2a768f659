"""A camera's own clock and count, made ours: when a frame was exposed on CLOCK_MONOTONIC, and which number it has."""

from __future__ import annotations

import collections
import time

__all__ = ["CameraClock", "FrameCounter", "mono_from_sensor"]

WINDOW_NS = 10_000_000_000
"""Differences older than this are forgotten."""

DRIFT = 10_000
"""Quartzes drift apart by up to one part in this (100 ppm): by 1 ms within the window."""

LARGEST_GAP = 30_000
"""A count that leaps farther was begun anew."""

LAST_OF_16_BITS, LAST_OF_64_BITS = 0xFFFF, 2**64 - 1

SURE_NS = 1_000_000_000
"""A frame is here within this time: after a longer suspension the two clocks can be told apart by it."""


class CameraClock:
    """Maps timestamps of a camera on CLOCK_MONOTONIC, by the smallest difference between arrival and timestamp.

    Every frame arrives later than its timestamp says, by what the way takes: at least `d`, and sometimes more, when a
    network or a computer is busy. The smallest difference of the last `WINDOW_NS` is the clocks' offset plus `d`. So

    - a mapped time is never later than the frame's arrival, and a frame that was delayed on the way keeps its age;
    - a mapped time is later than the true one by `d` (less 1 ms for drift), never by more. `d` itself can't be known
      from timestamps alone: the caller takes its upper bound, `latency_ms`, off.

    A camera whose clock is set back gives times that are too early for `WINDOW_NS`, which is the safe direction.
    """

    def __init__(self) -> None:
        self._seen: collections.deque[tuple[int, int]] = collections.deque()  # arrival, difference; both rising
        self._last: tuple[int, int] | None = None

    def is_before(self, camera_ns: int, moment_ns: int, arrived_ns: int) -> bool:
        """Whether a timestamp is surely of before a moment of CLOCK_MONOTONIC, by what the frame before it took.

        Args:
            camera_ns: the timestamp, which is not taken in.
            moment_ns: the moment.
            arrived_ns: CLOCK_MONOTONIC when the frame was here.

        Returns:
            False where nothing is known yet.
        """
        if self._last is None:
            return False
        at, difference = self._last
        return camera_ns + difference + (arrived_ns - at) // DRIFT < moment_ns

    def mono_ns(self, camera_ns: int, arrived_ns: int) -> int:
        """Take in one frame.

        Args:
            camera_ns: its timestamp in nanoseconds of the camera's clock.
            arrived_ns: CLOCK_MONOTONIC when it was here.

        Returns:
            The timestamp on CLOCK_MONOTONIC; see above for what is sure.
        """
        difference = arrived_ns - camera_ns
        self._last = (arrived_ns, difference)
        while self._seen and self._seen[-1][1] >= difference:
            self._seen.pop()
        self._seen.append((arrived_ns, difference))
        while self._seen[0][0] < arrived_ns - WINDOW_NS:
            self._seen.popleft()
        return camera_ns + self._seen[0][1]


class FrameCounter:
    """Numbers that only rise, from those of a camera, which wrap and begin anew.

    GigE Vision 1 counts 1 to 65535 and then 1 again (0 is no frame's number); GigE Vision 2 and USB3 Vision have 64
    bits. A camera that numbers every frame 0 does not count: then we do, and a gap can't be seen.

    Attributes:
        missed: frames that the camera has counted and we were not given.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._sequence = 0
        self._last: int | None = None

    def count(self, number: int, *, damaged: int = 0) -> int:
        """The number of this frame on our count, from 1; the same as before when the camera says the same.

        Args:
            number: the camera's.
            damaged: frames that came since the last one, but not whole, and whose numbers are not to be trusted.
        """
        step = self._step(number)
        self.missed += max(0, step - 1 - damaged)
        self._sequence += step
        self._last = number
        return self._sequence

    def begin_anew(self) -> None:
        """The camera was opened again: its next number says nothing about the last one."""
        self._last = None

    def _step(self, number: int) -> int:
        last = self._last
        if last is None or number == last == 0:
            return 1
        if number >= last:
            step = number - last
        elif last <= LAST_OF_16_BITS:
            step = (number - last) % LAST_OF_16_BITS
        else:
            step = (number - last) % LAST_OF_64_BITS
        return step if step <= LARGEST_GAP else 1


def mono_from_sensor(sensor_ns: int, *, mono_ns: int | None = None, boot_ns: int | None = None) -> int:
    """A timestamp that is CLOCK_MONOTONIC or CLOCK_BOOTTIME, on CLOCK_MONOTONIC.

    libcamera's documentation of `SensorTimestamp` says CLOCK_BOOTTIME; what it gives on a Raspberry Pi is the kernel's
    CLOCK_MONOTONIC (libcamera bug 254, measured on a Pi 5 in christianrauch/camera_ros#127; picamera2's own `flush`
    compares it with `time.monotonic_ns()`). Both are the same until the computer is suspended. After that a timestamp
    that lies in the future of CLOCK_MONOTONIC can only be of CLOCK_BOOTTIME.

    Args:
        sensor_ns: the timestamp, of a frame that is here.
        mono_ns: CLOCK_MONOTONIC now, if not the present moment.
        boot_ns: CLOCK_BOOTTIME now, if not the present moment.

    Returns:
        Never later than now: earlier is the safe direction.
    """
    boot = (
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) if boot_ns is None else boot_ns
    )  # read first: never suspended is 0
    mono = time.monotonic_ns() if mono_ns is None else mono_ns
    suspended = max(0, boot - mono)
    if sensor_ns > mono or suspended < SURE_NS:
        sensor_ns -= suspended
    return min(sensor_ns, mono)
