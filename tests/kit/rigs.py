"""Live cameras whose cable the test holds: what the contract of live cameras asks of each kind."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from agent.cameras import Camera, open_camera
from agent.config import CameraConfig, FrameTriggerConfig, GStreamerCameraConfig, OpenCvCameraConfig, TriggerConfig
from tests.kit.live import noisy
from tests.kit.rtsp import RtspServer
from tests.kit.streams import MjpegServer

__all__ = ["HttpRig", "Rig", "RtspRig", "gstreamer", "opencv", "opened", "plugged_in"]

FRAME_S = 0.04

Size = tuple[int, int]
SMALL, SMALLER = (64, 48), (48, 32)

PATIENT: dict[str, Any] = {"read_timeout_ms": 600, "reopen_s": 0.1, "latency_ms": 0}
"""Lost soon, and tried again soon."""


class Rig(Protocol):
    """A live camera and what it hangs on.

    It delivers some 25 frames per second, no two alike, from `plug_in` to `unplug`.

    Attributes:
        size: width and height of its frames, in pixels.
        other_size: that it may have instead, when it is plugged in again.
    """

    size: Size
    other_size: Size

    @property
    def config(self) -> CameraConfig:
        """Of the camera; `latency_ms` is 0, where the kind has it."""

    def plug_in(self, size: Size) -> None:
        """Deliver, with frames of this size."""

    def unplug(self) -> None:
        """Nothing comes any more, as when the cable is pulled; may be called twice."""


def opened(config: CameraConfig, trigger: TriggerConfig | None = None) -> Camera:
    """The camera as the agent opens it; each frame is a part, unless another trigger is given."""
    trigger = trigger or FrameTriggerConfig(kind="frame")
    return open_camera(config, trigger=trigger, is_judged=lambda _part_id: False)


def opencv(url: str, **more: Any) -> OpenCvCameraConfig:
    """Through OpenCV."""
    return OpenCvCameraConfig(kind="opencv", source=url, **{**PATIENT, **more})


def gstreamer(pipeline: str, **more: Any) -> GStreamerCameraConfig:
    """Through GStreamer."""
    return GStreamerCameraConfig(kind="gstreamer", pipeline=pipeline, **{**PATIENT, **more})


class RtspRig:
    """A server of its own process, which is killed.

    Args:
        configured: makes the camera's configuration from its address.
    """

    size, other_size = SMALL, SMALLER

    def __init__(self, configured: Callable[[str], CameraConfig]) -> None:
        self._server = RtspServer()
        self.config = configured(self._server.url)

    def plug_in(self, size: Size) -> None:
        """Start it."""
        self._server.start(*size)

    def unplug(self) -> None:
        """Kill it."""
        self._server.kill()


class HttpRig:
    """An MJPEG server, whose connections are cut.

    Args:
        configured: makes the camera's configuration from its address.
    """

    size, other_size = SMALL, SMALLER

    def __init__(self, configured: Callable[[str], CameraConfig]) -> None:
        self._server = MjpegServer(kept=1)
        self._server.start()
        self._server.hang_up()
        self._unplugged = threading.Event()
        self._sensor: threading.Thread | None = None
        self.config = configured(self._server.url)

    def plug_in(self, size: Size) -> None:
        """Listen, and expose."""
        self._unplugged.clear()
        self._server.start()
        self._sensor = threading.Thread(target=self._expose, args=size)
        self._sensor.start()

    def unplug(self) -> None:
        """Cut every connection, and listen no more."""
        self._unplugged.set()
        if self._sensor is not None:
            self._sensor.join()
            self._sensor = None
            self._server.hang_up()

    def _expose(self, width: int, height: int) -> None:
        while not self._unplugged.wait(FRAME_S):
            self._server.push(noisy(width=width, height=height))


@contextlib.contextmanager
def plugged_in(rig: Rig) -> Iterator[Rig]:
    """A rig that delivers, and is quiet at the end."""
    rig.plug_in(rig.size)
    try:
        yield rig
    finally:
        rig.unplug()
