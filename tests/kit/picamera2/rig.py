"""The Raspberry Pi's camera as a rig: its cable is pulled by taking it off libcamera's list."""

from __future__ import annotations

import threading

from agent.config import PiCameraConfig
from tests.kit.live import noisy
from tests.kit.picamera2.sensor import Sensor
from tests.kit.rigs import FRAME_S, SMALL, SMALLER, Size

__all__ = ["PiRig"]


class PiRig:
    """A sensor that exposes all the time, while it is plugged in.

    Args:
        sensor: of the stand-in that is installed.
    """

    size, other_size = SMALL, SMALLER

    def __init__(self, sensor: Sensor) -> None:
        width, height = self.size
        self._sensor = sensor
        self._unplugged = threading.Event()
        self._exposing: threading.Thread | None = None
        self.config = PiCameraConfig(
            kind="picamera", width_px=width, height_px=height, read_timeout_ms=600, reopen_s=0.1
        )

    def plug_in(self, size: Size) -> None:
        """Be there, and expose."""
        self._sensor.models, self._sensor.largest = ("imx708",), size
        self._unplugged.clear()
        self._exposing = threading.Thread(target=self._expose, args=size)
        self._exposing.start()

    def unplug(self) -> None:
        """Be on libcamera's list no more."""
        self._sensor.models = ()
        self._unplugged.set()
        if self._exposing is not None:
            self._exposing.join()
            self._exposing = None

    def _expose(self, width: int, height: int) -> None:
        while not self._unplugged.wait(FRAME_S):
            if self._sensor.runs:
                self._sensor.expose(noisy(width=width, height=height))
