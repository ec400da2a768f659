"""GigE Vision and USB3 Vision cameras, through Aravis.

| module | hides |
| --- | --- |
| `genicam_device` | Aravis: finding, control, the stream, torn buffers |
| `genicam_features` | what is set, and read back |
| `pixels` | pixel formats to BGR |
| `sensor_time` | the camera's clock and count |
| `reopening` | a lost camera, opened again |
"""

from __future__ import annotations

import logging
import threading
import time

from agent.cameras.genicam_device import Arrival, GenicamDevice
from agent.cameras.pixels import bgr_from_bytes
from agent.cameras.reopening import Reopener, close_within
from agent.cameras.sensor_time import CameraClock, FrameCounter
from agent.config import GenicamCameraConfig
from agent.errors import CameraError, ImageError
from agent.frame import Fault, Frame, Part, Stamp
from agent.log import log_event

__all__ = ["GenicamCamera"]

SLICE_S = 0.2
"""Bounds how long `poll` takes to notice that control is lost, or `close`."""

CLOSE_S = 2.0
"""Longest time that `close` waits for a camera that no longer answers, which takes Aravis ten seconds and more."""

TELL_S = 60.0
"""Shortest time between two log lines about frames that were lost or torn: a bad cable would fill the log."""

log = logging.getLogger("agent.cameras.genicam")


class GenicamCamera:
    """One camera that runs freely, is triggered by us, or by one of its lines.

    Every frame is given, in the order in which they arrive. One with missing packets is a fault, never a picture:
    Aravis asks the camera to send lost packets again, and what then still lacks is torn. Frames that never came at all
    are counted by the camera's own numbers, in `Frame.sequence` and in `counters`.

    The camera is lost when it no longer obeys (unplugged, switched off; Aravis takes up to eight seconds to see that),
    and, when it runs freely, after `read_timeout_ms` without a frame. Where frames come by triggers, silence is none.
    It is then closed and opened again by the thread `reopen`, as both take seconds on a camera that is away, after
    `reopen_s`, then twice that, up to eight times that. The settings are set again with it. `poll` never takes longer
    than it was asked to.

    `Frame.exposed_ns` is the camera's timestamp on CLOCK_MONOTONIC (`CameraClock`) less `latency_ms`. What a timestamp
    marks (the start of the exposure, its end, or the start of the readout) differs from camera to camera, and the
    shortest way from there to here can't be measured from this end; `latency_ms` covers both, so that the exposure
    surely did not begin before. It is the arrival less `latency_ms` for a camera without timestamps. With
    `trigger: software` it is the moment in which the exposure was asked for.

    With `trigger: software` a frame is given only if it was asked for, and only after it was asked for: one that comes
    unasked is dropped and counted. When an exposure was asked for and its frame has not come, the next one first stops
    and starts the camera, so that a late frame is never taken for the next part's.

    Attributes:
        is_software_triggered: it exposes when asked (`expose`), and not otherwise.

    Args:
        config: which camera, its settings and its time limits.

    Raises:
        CameraError: Aravis is not installed; there is no such camera; it does not take a setting.
    """

    def __init__(self, config: GenicamCameraConfig) -> None:
        if config.fps and config.trigger != "off":
            raise CameraError(
                f"{config.name}: fps is for a camera that runs freely, but trigger is {config.trigger}",
                hint="remove camera.fps, or set camera.trigger to off",
            )
        self.is_software_triggered = config.trigger == "software"
        self._config = config
        self._closed = threading.Event()
        self._lost: str | None = None
        self._waiting: Arrival | None = None
        self._asked_ns: int | None = None
        self._clock = CameraClock()
        self._counter = FrameCounter()
        self._torn = self._torn_since = self._unasked = self._told = 0
        self._tell_at = 0.0
        self._before: dict[str, int] = {}
        self._reopener = Reopener(lambda: GenicamDevice(config), first_s=config.reopen_s)
        self._device: GenicamDevice | None = GenicamDevice(config)
        self._shown = self._device.shown
        self._heard_at = time.monotonic()

    @property
    def name(self) -> str:
        """The configured name."""
        return self._config.name

    @property
    def upcoming(self) -> str | None:
        """None: a live picture has no name of its own."""
        return None

    @property
    def ended(self) -> bool:
        """It was closed; a live source never ends, it is lost."""
        return self._closed.is_set()

    @property
    def lost(self) -> str | None:
        """Why it does not deliver, until it does again."""
        return self._lost

    @property
    def counters(self) -> dict[str, int]:
        """What was lost since the start, also over reopenings.

        `lost_frames` (counted by the camera, never here), `torn_frames`, `unasked_frames`, and Aravis's counts by their
        names: `n_resent_packets`, `n_missing_packets`, `n_underruns` (a frame that found no free buffer), and others.
        """
        device = self._device
        ours = {"lost_frames": self._counter.missed, "torn_frames": self._torn, "unasked_frames": self._unasked}
        return ours | _added(self._before, device.counters() if device is not None else {})

    def expose(self) -> None:
        """Ask for one exposure, which `poll` and `read` then give.

        Raises:
            CameraError: it can't be asked: it is lost, or does not obey (that takes up to five seconds to be seen).
        """
        device = self._adopt(0.0)
        if device is None:
            raise CameraError(self._lost or f"{self._shown}: closed")
        is_unanswered, self._asked_ns, self._waiting = self._asked_ns is not None, None, None
        try:
            if is_unanswered:
                self._unasked += device.restart()
            self._unasked += device.drop_waiting()
            self._asked_ns = time.monotonic_ns()
            device.expose()
        except CameraError as error:
            self._lose(device, error.message.removeprefix(f"{self._shown}: "))
            raise

    def poll(self, timeout_s: float) -> bool:
        """Wait for a frame, or for one that failed; takes a camera back that was found again."""
        until = time.monotonic() + timeout_s
        while not self._closed.is_set() and self._waiting is None:
            left_s = max(0.0, until - time.monotonic())
            device = self._adopt(left_s)
            if device is None:
                break
            self._take(device, min(SLICE_S, left_s))
            if left_s <= 0 or self._device is None:
                break
        return self._waiting is not None and not self._closed.is_set()

    def read(self, part: Part) -> Frame | Fault:
        """Take the frame that waits; without one, wait as long as `read_timeout_ms`."""
        started_ns = time.monotonic_ns()
        there = self.poll(self._config.read_timeout_ms / 1000)
        arrival, self._waiting = self._waiting, None
        if not there or arrival is None:
            return Fault(part=part, stage="capture", reason=self._lost or f"{self._shown}: there is no frame")
        asked_ns, self._asked_ns = self._asked_ns, None
        if arrival.problem is not None:
            reason = f"{self._shown}: {arrival.problem} ({self._link_in_words()})"
            return Fault(part=part, stage="capture", reason=reason)
        number = self._counter.count(arrival.number, damaged=self._torn_since)
        self._torn_since = 0
        exposed_ns = self._exposed_ns(arrival)
        if self.is_software_triggered and asked_ns is not None:
            exposed_ns = max(exposed_ns, asked_ns)
        self._tell_losses()
        return self._frame(part, arrival, number, exposed_ns, started_ns)

    def close(self) -> None:
        """Give the camera back; returns within `CLOSE_S`, and a second, also when it no longer answers."""
        self._closed.set()
        self._reopener.stop()
        device, self._device = self._device, None
        if device is not None:
            close_within(CLOSE_S, device.close, name="genicam-close")

    def _adopt(self, timeout_s: float) -> GenicamDevice | None:
        """The device; when it is lost, the one that was opened again, once it is there."""
        if self._closed.is_set():
            return None
        if self._device is None:
            self._device = self._reopener.take(timeout_s)
            if self._device is not None:
                self._counter.begin_anew()
                self._clock = CameraClock()
                self._shown = self._device.shown
                self._heard_at = time.monotonic()
                if self._config.trigger != "off":  # one that runs freely is found by its first frame
                    self._lost = None
            elif self._reopener.reason is not None:
                self._lost = self._reopener.reason
        return self._device

    def _take(self, device: GenicamDevice, timeout_s: float) -> None:
        """Wait for one buffer, and keep it if it is to be given."""
        arrival = device.wait(timeout_s)
        now = time.monotonic()
        if arrival is not None:
            self._heard_at, self._lost = now, None
            self._reopener.begin_with_first_pause()
            if self._is_wanted(arrival):
                self._waiting = arrival
            if arrival.problem is not None:
                self._torn, self._torn_since = self._torn + 1, self._torn_since + 1
        elif device.control_lost:
            self._lose(device, "it no longer answers: unplugged, switched off, or taken by another program")
        elif self._config.trigger == "off" and now - self._heard_at >= self._config.read_timeout_ms / 1000:
            self._lose(device, f"no frame for {(now - self._heard_at) * 1000:,.0f} ms")

    def _is_wanted(self, arrival: Arrival) -> bool:
        """Whether it is to be given: with a software trigger, only what was asked for, and after that."""
        if not self.is_software_triggered:
            return True
        asked_ns = self._asked_ns
        is_stale = asked_ns is None or (
            arrival.camera_ns > 0 and self._clock.is_before(arrival.camera_ns, asked_ns, arrival.arrived_ns)
        )
        self._unasked += is_stale
        return not is_stale

    def _lose(self, device: GenicamDevice, reason: str) -> None:
        self._lost = f"{self._shown}: {reason}"
        self._before = _added(self._before, device.counters())
        self._device, self._asked_ns = None, None
        self._reopener.begin(device)

    def _exposed_ns(self, arrival: Arrival) -> int:
        at_ns = arrival.arrived_ns
        if arrival.camera_ns > 0:
            at_ns = self._clock.mono_ns(arrival.camera_ns, arrival.arrived_ns)
        return at_ns - int(self._config.latency_ms * 1e6)

    def _frame(self, part: Part, arrival: Arrival, number: int, exposed_ns: int, started_ns: int) -> Frame | Fault:
        try:
            image = bgr_from_bytes(
                arrival.data, arrival.pixel_format, arrival.width, arrival.height, row_padding=arrival.row_padding
            )
        except ImageError as error:
            return Fault(part=part, stage="capture", reason=f"{self._shown}: {error.message}")
        now = Stamp.now()
        age_ms = (now.mono_ns - arrival.arrived_ns) // 1_000_000
        return Frame(
            part=part,
            image=image,
            camera=self.name,
            source=self._shown,
            sequence=number,
            captured=Stamp(now.utc_ms - age_ms, arrival.arrived_ns),
            capture_ms=(now.mono_ns - max(started_ns, arrival.arrived_ns)) / 1e6,
            exposed_ns=exposed_ns,
        )

    def _tell_losses(self) -> None:
        total, now = self._counter.missed + self._torn, time.monotonic()
        if total > self._told and now >= self._tell_at:
            fields = {"lost": self._counter.missed, "torn": self._torn, "link": self._link_in_words()}
            log_event(log, "camera_loses_frames", logging.WARNING, camera=self.name, **fields)
            self._told, self._tell_at = total, now + TELL_S

    def _link_in_words(self) -> str:
        """The stream's statistics, for people."""
        counters = self.counters
        missing, resent = counters.get("n_missing_packets", 0), counters.get("n_resent_packets", 0)
        late = counters.get("n_underruns", 0)
        return f"so far {missing:,} packets missing, {resent:,} sent again, {late:,} frames without a free buffer"


def _added(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    return {name: before.get(name, 0) + now.get(name, 0) for name in before | now}
