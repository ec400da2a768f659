"""CSI cameras of a Raspberry Pi: the one door to picamera2, which is not imported before a camera is opened."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from agent.cameras.reopening import Reopener, close_within
from agent.cameras.sensor_time import LARGEST_GAP, mono_from_sensor
from agent.config import PiCameraConfig
from agent.errors import CameraError
from agent.frame import BgrImage, Fault, Frame, Part, Stamp
from agent.log import log_event

__all__ = ["PiCamera"]

PIXELS = "RGB888"
"""What is B, G, R in memory. libcamera names formats as the kernel's DRM does, by the bits of a little-endian number
from the highest down, so that "RGB888" has blue in its first byte, and "BGR888" red (raspberrypi/picamera2#191;
picamera2's own `request.py` gives PIL the mode "BGR" for it)."""

VIDEO_FRAME_US = 33_333
"""Length of a frame in picamera2's video configuration, which also limits its exposure."""

TOLERATED, ROW_US = 0.05, 20.0
"""Exposures come in steps of a row (tens of microseconds), gains in those of the amplifier."""

CLOSE_S = 5.0
"""Longest time that `close` waits for picamera2; a close that hangs is left behind in a daemon thread."""

SYSTEM_HINT = (
    "apt install python3-picamera2, and make the environment with `python3 -m venv --system-site-packages`, with the "
    "distribution's numpy in it: picamera2's compiled parts fit that one only"
)

log = logging.getLogger("agent.cameras.picamera")


class PiCamera:
    """One camera, in picamera2's video or still configuration, with manual controls where they are configured.

    Each request is mapped where the camera has put its pixels, copied once, as the picture that is judged, and given
    back. A sensor delivers whether somebody asks or not: of the frames that come while nobody reads, picamera2 keeps
    the last one only, and hands that out first, however old. Its age is in `exposed_ns`, by which triggered stations
    pass it over; numbers that jump show what was not read. (picamera2's own `flush` does the same comparison.)

    `exposed_ns` is when the exposure of the first row began: `SensorTimestamp`, which marks its end, less
    `ExposureTime` (raspberrypi/picamera2#821; `wait_for_timestamp_` in picamera2's own source), on CLOCK_MONOTONIC
    (`mono_from_sensor`). Later rows of a rolling shutter are exposed later. A frame without these is a fault, and so is
    one with another exposure or gain than configured.

    `Frame.sequence` counts by `SensorTimestamp` and `FrameDuration`: a gap of n frame lengths is n numbers.

    picamera2 waits for ever by default. Here no wait is longer than it was asked to be: without a frame for
    `read_timeout_ms` the camera is lost, is closed, and opened again by the thread `reopen`, after `reopen_s`, then
    twice that, up to eight times that. A close that hangs, as it can when a cable came loose (picamera2#1264), is left
    behind after `CLOSE_S`; the camera can then not be opened again before the agent is restarted, and says so.

    Args:
        config: which camera, its settings and its time limits.

    Raises:
        CameraError: picamera2 is not installed or too old; there is no such camera; it does not take a setting.
    """

    def __init__(self, config: PiCameraConfig) -> None:
        _check(config)
        self._config = config
        self._closed = threading.Event()
        self._lost: str | None = None
        self._waiting: Any = None
        self._sequence = 0
        self._last_ns: int | None = None
        self._reopener = Reopener(lambda: _Session(config), first_s=config.reopen_s)
        self._session: _Session | None = _Session(config)
        self._shown = self._session.shown
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

    def poll(self, timeout_s: float) -> bool:
        """Wait for a frame; takes a camera back that was found again."""
        if self._closed.is_set():
            return False
        until = time.monotonic() + timeout_s
        if self._waiting is None and self._session is None:
            self._adopt(timeout_s)
        if self._waiting is None and self._session is not None:
            silent_s = self._config.read_timeout_ms / 1000 - (time.monotonic() - self._heard_at)
            self._take(self._session, max(0.0, min(until - time.monotonic(), silent_s)))
        return self._waiting is not None and not self._closed.is_set()

    def read(self, part: Part) -> Frame | Fault:
        """Copy the frame that waits; without one, wait as long as `read_timeout_ms`."""
        there = self.poll(self._config.read_timeout_ms / 1000)
        request, self._waiting = self._waiting, None
        if not there or request is None:
            return Fault(part=part, stage="capture", reason=self._lost or f"{self._shown}: there is no frame")
        started_ns = time.monotonic_ns()
        try:
            metadata = request.get_metadata()
            image = _copied(request)
        except Exception as error:  # picamera2's errors have no common root; one frame must not end the line
            return Fault(part=part, stage="capture", reason=f"{self._shown}: {type(error).__name__}: {error}")
        finally:
            request.release()
        problem = self._problem(metadata)
        if problem is not None:
            return Fault(part=part, stage="capture", reason=f"{self._shown}: {problem}")
        return self._frame(part, image, metadata, started_ns)

    def close(self) -> None:
        """Give the camera back; returns within `CLOSE_S`, and a second, whatever the driver does."""
        self._closed.set()
        self._reopener.stop()
        session, self._session = self._session, None
        if session is not None:
            self._let_go()
            session.close()

    def _frame(self, part: Part, image: BgrImage, metadata: dict[str, Any], started_ns: int) -> Frame:
        self._count(metadata)
        ended_ns = mono_from_sensor(metadata["SensorTimestamp"])
        now = Stamp.now()
        return Frame(
            part=part,
            image=image,
            camera=self.name,
            source=self._shown,
            sequence=self._sequence,
            captured=Stamp(now.utc_ms - (now.mono_ns - ended_ns) // 1_000_000, ended_ns),
            capture_ms=(now.mono_ns - started_ns) / 1e6,
            exposed_ns=ended_ns - 1000 * int(metadata["ExposureTime"]),
        )

    def _problem(self, metadata: dict[str, Any]) -> str | None:
        """Why this frame is not to be judged."""
        missing = [name for name in ("SensorTimestamp", "ExposureTime") if name not in metadata]
        if missing:
            return f"the frame does not say when it was exposed (no {' and no '.join(missing)})"
        asked = (
            ("ExposureTime", self._config.exposure_us, ROW_US, "us"),
            ("AnalogueGain", self._config.gain, 0.1, ""),
        )
        for name, wanted, step, unit in asked:
            got = metadata.get(name)
            if wanted is not None and (got is None or abs(got - wanted) > max(TOLERATED * wanted, step)):
                return f"{name} of this frame was {got} {unit}".rstrip() + f", expected {wanted:g}"
        return None

    def _count(self, metadata: dict[str, Any]) -> None:
        at_ns, last_ns = int(metadata["SensorTimestamp"]), self._last_ns
        step = 1
        if last_ns is not None and at_ns <= last_ns:
            step = 0  # the same frame again
        elif last_ns is not None and metadata.get("FrameDuration"):
            step = max(1, round((at_ns - last_ns) / (1000 * metadata["FrameDuration"])))
        self._sequence += step if step <= LARGEST_GAP else 1
        self._last_ns = at_ns

    def _adopt(self, timeout_s: float) -> None:
        self._session = self._reopener.take(timeout_s)
        if self._session is not None:
            self._last_ns, self._heard_at = None, time.monotonic()
        elif self._reopener.reason is not None:
            self._lost = self._reopener.reason

    def _take(self, session: _Session, timeout_s: float) -> None:
        try:
            self._waiting = session.wait(timeout_s)
        except CameraError as error:
            if not self._closed.is_set():
                self._lose(session, error.message)
            return
        now = time.monotonic()
        if self._waiting is not None:
            self._heard_at, self._lost = now, None
            self._reopener.begin_with_first_pause()
        elif now - self._heard_at >= self._config.read_timeout_ms / 1000:
            self._lose(session, f"{self._shown}: no frame for {(now - self._heard_at) * 1000:,.0f} ms")

    def _lose(self, session: _Session, reason: str) -> None:
        self._lost = reason
        self._let_go()
        self._session = None
        self._reopener.begin(session)

    def _let_go(self) -> None:
        """Give back the request that nobody has read."""
        request, self._waiting = self._waiting, None
        if request is not None:
            with contextlib.suppress(Exception):  # the camera is being closed: nothing is left to be saved
                request.release()


_closing: dict[int, threading.Thread] = {}
"""By number of camera, the thread that closed it last, or still tries to."""


class _Session:
    """One camera that was opened, configured and started, until `close`."""

    def __init__(self, config: PiCameraConfig) -> None:
        self.shown = f"picamera {config.number}"
        self._number = config.number
        library = _picamera2()
        self._job: Any = None
        self._camera: Any = None
        with contextlib.ExitStack() as on_refusal, self._door("can't be opened"):
            on_refusal.callback(self.close)
            self._camera = self._opened(library, config.number)
            self.shown = f"{self._camera.camera_properties.get('Model', 'camera')} at CSI {config.number}"
            self._configure(config)
            self._camera.start()
            on_refusal.pop_all()

    def wait(self, timeout_s: float) -> Any:
        """The next request, or None when none came in time.

        Raises:
            CameraError: picamera2 gave up.
        """
        with self._door("gives no frames"):
            if self._job is None:
                self._job = self._camera.capture_request(wait=False)
            try:
                request = self._camera.wait(self._job, timeout_s)
            except concurrent.futures.TimeoutError:
                return None
            self._job = None
            return request

    def close(self) -> None:
        """Close it, and wait for that up to `CLOSE_S`."""
        camera, self._camera = self._camera, None
        if camera is None:
            return
        _closing[self._number] = close_within(CLOSE_S, lambda: _close(camera, self.shown), name="picamera-close")
        if _closing[self._number].is_alive():
            log_event(log, "camera_close_hangs", logging.ERROR, device=self.shown)

    def _opened(self, library: Any, number: int) -> Any:
        present = library.Picamera2.global_camera_info()
        if number >= len(present):
            listed = ", ".join(f"{i} ({camera.get('Model', '?')})" for i, camera in enumerate(present)) or "none"
            raise CameraError(
                f"{self.shown}: no such camera; present: {listed}",
                hint="check the ribbon cable; `rpicam-hello --list-cameras` must show it",
            )
        if not hasattr(library.Picamera2, "cancel_all_and_flush"):
            raise CameraError(
                "picamera2 is too old: it can't break off a wait for a camera that stopped, expected 0.3.22 or newer",
                hint="apt update && apt install python3-picamera2",
            )
        if number in _closing and _closing[number].is_alive():
            raise CameraError(
                f"{self.shown}: can't be closed, and so not be opened again: picamera2 hangs",
                hint="check the ribbon cable, then restart the agent",
            )
        return library.Picamera2(number)

    def _configure(self, config: PiCameraConfig) -> None:
        camera = self._camera
        make = camera.create_video_configuration if config.mode == "video" else camera.create_still_configuration
        controls = _controls(config)
        self._require_known(controls)
        size = (config.width_px, config.height_px)
        camera.configure(
            make(
                main={"size": size, "format": PIXELS},
                raw=None,
                buffer_count=config.buffers,
                controls=controls,
                display=None,
                encode=None,
            )
        )
        got = camera.camera_configuration()["main"]
        if tuple(got["size"]) != size or got["format"] != PIXELS:
            width, height = got["size"]
            raise CameraError(
                f"{self.shown}: gives {width}x{height} {got['format']}, expected {size[0]}x{size[1]} {PIXELS}",
                hint="set camera.width_px and camera.height_px to what it gives",
            )
        self._require_within(controls)

    def _require_known(self, controls: dict[str, Any]) -> None:
        for name, key in _KEYS.items():
            if name in controls and name not in self._camera.camera_controls:
                raise CameraError(f"{self.shown}: has no {name}", hint=f"remove camera.{key}")

    def _require_within(self, controls: dict[str, Any]) -> None:
        """Limits are those of the mode that was configured just now: shorter frames, shorter exposures."""
        for name in ("ExposureTime", "AnalogueGain", "LensPosition"):
            low, high = self._camera.camera_controls.get(name, (0, 0))[:2]
            if name in controls and not low <= controls[name] <= high:
                raise CameraError(
                    f"{self.shown}: {_KEYS[name]} can't be {controls[name]:g}: it takes {low:g} to {high:g}",
                    hint=f"change camera.{_KEYS[name]}, or the size, which chooses the sensor's mode",
                )

    @contextlib.contextmanager
    def _door(self, what: str) -> Iterator[None]:
        try:
            yield
        except CameraError:
            raise
        except Exception as error:  # picamera2 and libcamera have no errors of their own: RuntimeError, OSError, …
            causes = f"{error}" + (f" ({error.__cause__})" if error.__cause__ is not None else "")
            raise CameraError(
                f"{self.shown}: {what}: {causes or type(error).__name__}",
                hint="end other programs that use the camera; `rpicam-hello -t 2000` must show its picture",
            ) from error


_KEYS = {
    "ExposureTime": "exposure_us",
    "AnalogueGain": "gain",
    "LensPosition": "focus_dioptres",
    "FrameDurationLimits": "fps",
}
"""libcamera's control to our key."""


def _check(config: PiCameraConfig) -> None:
    """Refuse what contradicts itself.

    Raises:
        CameraError: in words.
    """
    exposure_us = config.exposure_us or 0.0
    if config.fps and exposure_us > 1e6 / config.fps:
        raise CameraError(
            f"{config.name}: exposure_us {exposure_us:g} is longer than a frame at {config.fps:g} fps",
            hint="shorten camera.exposure_us, or lower camera.fps",
        )
    if exposure_us / 1000 >= config.read_timeout_ms:
        raise CameraError(
            f"{config.name}: read_timeout_ms {config.read_timeout_ms} is over before an exposure of "
            f"{exposure_us / 1000:g} ms is",
            hint="raise camera.read_timeout_ms",
        )


def _controls(config: PiCameraConfig) -> dict[str, Any]:
    """What libcamera is asked for; set before the start, so that the first frame has it already."""
    controls: dict[str, Any] = {}
    if config.exposure_us is not None:
        controls["ExposureTime"] = int(config.exposure_us)
    if config.gain is not None:
        controls["AnalogueGain"] = float(config.gain)
    if config.exposure_us is not None and config.gain is not None:
        controls["AeEnable"] = False
    if config.focus_dioptres is not None:
        controls |= {"AfMode": 0, "LensPosition": float(config.focus_dioptres)}  # 0: manual
    if config.fps:
        controls["FrameDurationLimits"] = (int(1e6 / config.fps),) * 2
    elif config.mode == "video" and (config.exposure_us or 0) > VIDEO_FRAME_US:
        controls["FrameDurationLimits"] = (VIDEO_FRAME_US, int(1.1 * (config.exposure_us or 0)))
    return controls


def _picamera2() -> Any:
    try:
        return importlib.import_module("picamera2")
    except (ImportError, ValueError) as error:  # ValueError: numpy's word for a module compiled for another numpy
        raise CameraError(f"picamera2 can't be loaded: {error}", hint=SYSTEM_HINT) from error


def _copied(request: Any) -> BgrImage:
    """The pixels of a request as an array of their own; they are mapped meanwhile, not copied before."""
    with _picamera2().MappedArray(request, "main", write=False) as mapped:
        return np.array(mapped.array, dtype=np.uint8, order="C")


def _close(camera: Any, shown: str) -> None:
    try:
        camera.cancel_all_and_flush()  # a job that waits for a frame would wait for ever, and a stop behind it
        camera.close()
    except Exception as error:  # the same: and nobody is left to be told but the log
        log_event(log, "camera_close_failed", logging.WARNING, device=shown, reason=f"{type(error).__name__}: {error}")
