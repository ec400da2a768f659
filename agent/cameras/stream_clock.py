"""When the frames of an RTSP stream were sent, on our clock.

RTP stamps each frame with the camera's time of sampling, by the camera's clock. `CameraClock` maps that on ours, so a
frame that has waited in a buffer is known to be old, which its arrival does not show.
"""

from __future__ import annotations

from collections import deque

from agent.cameras.sensor_time import CameraClock

__all__ = ["StreamClock"]

CAUGHT_UP_FRAMES, CAUGHT_UP_RATE = 6, 0.9
"""A backlog is over when six frames came no faster than 1 / 0.9 of the rate at which they were taken."""


class StreamClock:
    """Times of one connection; a new one needs a new clock.

    While a stream is opened FFMPEG analyses its first second, and then hands that out at once (31 frames at 25 per
    second, seen with OpenCV 5.0). Until such a backlog has been read nobody knows how old a frame is.

    Attributes:
        caught_up: the backlog has been read; from here on the times are good.
    """

    def __init__(self) -> None:
        self.caught_up = False
        self._clock = CameraClock()
        self._last: deque[tuple[int, int]] = deque(maxlen=CAUGHT_UP_FRAMES)

    def sent_ns(self, position_ns: int, arrived_ns: int) -> int:
        """When a frame was sent, in nanoseconds of CLOCK_MONOTONIC, never after its arrival; see `CameraClock`.

        Args:
            position_ns: the frame's time in the stream.
            arrived_ns: when it came.
        """
        self._last.append((position_ns, arrived_ns))
        self.caught_up = self.caught_up or self._keeps_pace()
        return self._clock.mono_ns(position_ns, arrived_ns)

    def _keeps_pace(self) -> bool:
        if len(self._last) < CAUGHT_UP_FRAMES:
            return False
        (first_position, first_arrival), (position, arrival) = self._last[0], self._last[-1]
        return position > first_position and arrival - first_arrival >= CAUGHT_UP_RATE * (position - first_position)
