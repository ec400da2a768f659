"""The sensor behind the stand-in: what it advertises, what it sees, and what is wrong with it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONTROLS", "Sensor"]

CONTROLS: dict[str, tuple[Any, Any, Any]] = {
    "AeEnable": (False, True, True),
    "AfMode": (0, 2, 0),
    "AnalogueGain": (1.0, 16.0, 1.0),
    "ExposureTime": (100, 10_000_000, 20_000),
    "FrameDurationLimits": (10_000, 11_000_000, 33_333),
    "LensPosition": (0.0, 15.0, 1.0),
    "NoiseReductionMode": (0, 4, 0),
}
"""Smallest, largest and default value of each control, as an autofocus module has them."""


class Sensor:
    """One camera module.

    Args:
        models: names of the cameras that are there.
        without: controls that they do not have.
        largest: (width, height) beyond which a configuration is adjusted.
        closing_hangs: stopping the camera hangs, as it does with a cable that came loose.

    Attributes:
        opened: how often a camera was opened.
        settings: values of the controls that were set, by name.
        dropped: frames that found no free buffer.
        exposure_us: of the next frames, whatever was asked; None is as asked.
    """

    def __init__(
        self,
        *,
        models: tuple[str, ...] = ("imx708",),
        without: tuple[str, ...] = (),
        largest: tuple[int, int] = (4608, 2592),
        closing_hangs: bool = False,
    ) -> None:
        self.models = models
        self.controls = {name: value for name, value in CONTROLS.items() if name not in without}
        self.largest = largest
        self.opened = 0
        self.settings: dict[str, Any] = {}
        self.dropped = 0
        self.exposure_us: int | None = None
        self.hung = threading.Event()
        self._let_go = threading.Event()
        if not closing_hangs:
            self._let_go.set()
        self._changed = threading.Condition()
        self._deliver: Callable[[NDArray[np.uint8], dict[str, Any]], bool] | None = None
        self._wanted: Callable[[], bool] = lambda: False
        self._fed: deque[NDArray[np.uint8]] = deque()

    def expose(self, image: NDArray[np.uint8], *, ended_ns: int | None = None, **metadata: Any) -> bool:
        """Take one picture, (H, W, 3) uint8 BGR; False when there was no free buffer.

        Args:
            image: what it sees.
            ended_ns: CLOCK_MONOTONIC when the exposure of its first row ended; now, if not given.
            **metadata: in place of what the sensor says; None leaves a key out.
        """
        said = {
            "SensorTimestamp": time.monotonic_ns() if ended_ns is None else ended_ns,
            "ExposureTime": self.exposure_us or int(self.settings.get("ExposureTime", 20_000)),
            "AnalogueGain": float(self.settings.get("AnalogueGain", 1.0)),
            "FrameDuration": 33_333,
        } | metadata
        said = {name: value for name, value in said.items() if value is not None}
        with self._changed:
            assert self._changed.wait_for(lambda: self._deliver is not None, 20), "the camera does not run"
            deliver = self._deliver
        assert deliver is not None
        taken = deliver(image, said)
        self.dropped += not taken
        return taken

    @property
    def runs(self) -> bool:
        """A camera was started on it."""
        return self._deliver is not None

    @property
    def is_waited_for(self) -> bool:
        """Somebody waits for a frame."""
        return self._wanted()

    def feed(self, *images: NDArray[np.uint8]) -> None:
        """Take these one by one, each when somebody waits for a frame."""
        with self._changed:
            self._fed.extend(images)
        self.look()

    def look(self) -> None:
        """Called whenever somebody may have begun to wait."""
        with self._changed:
            if not self._fed or self._deliver is None or not self._wanted():
                return
            image = self._fed.popleft()
        self.expose(image)

    def started(self, deliver: Callable[[NDArray[np.uint8], dict[str, Any]], bool], wanted: Callable[[], bool]) -> None:
        """The camera runs, and takes frames by this."""
        with self._changed:
            self._deliver, self._wanted = deliver, wanted
            self._changed.notify_all()

    def stopped(self) -> None:
        """The camera was stopped; hangs if that is its fault."""
        with self._changed:
            self._deliver = None
        self.hung.set()
        self._let_go.wait()

    def release_hung(self) -> None:
        """Let a stop that hangs come back."""
        self._let_go.set()
