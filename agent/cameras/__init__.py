"""Cameras: where pictures come from. `open_camera` chooses one by the type of its configuration.

| configuration | module | source |
| --- | --- | --- |
| `FolderCameraConfig` | `folder` | picture files, in the order of their names |
| `OpenCvCameraConfig` | `opencv` | video file, RTSP or HTTP stream, USB camera |
| `GStreamerCameraConfig` | `gstreamer` | any GStreamer pipeline |
| `ArgusCameraConfig` | `gstreamer`, `argus` | CSI camera of a Jetson |
| `GenicamCameraConfig` | `genicam` | GigE Vision or USB3 Vision camera, through Aravis |
| `PiCameraConfig` | `picamera` | CSI camera of a Raspberry Pi, through picamera2 |
| any live one | `guard` | wraps it: a frame that is not new and whole is a fault |
| any, with free run | `newest` | wraps it: only the newest frame counts |
| a live one, with a trigger of its own | `triggered` | wraps it: a part gets the first frame after its trigger |

`decode` turns the bytes of a picture file into pixels; training uses it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from agent.cameras.decode import PICTURE_SUFFIXES, decode_image, read_image
from agent.config import (
    ArgusCameraConfig,
    CameraConfig,
    FolderCameraConfig,
    FrameTriggerConfig,
    FreeRunConfig,
    GenicamCameraConfig,
    GStreamerCameraConfig,
    OpenCvCameraConfig,
    PiCameraConfig,
    TriggerConfig,
    lag_ms_of,
)
from agent.errors import CameraError
from agent.frame import Fault, Frame, Part

__all__ = ["PICTURE_SUFFIXES", "Camera", "decode_image", "is_live", "open_camera", "open_view", "read_image"]

STILL_S = 1.0
"""So long a still scene in H.264 may give the same picture, at any rate of frames; a dead encoder does for ever. No two
triggered parts are judged by one picture all the same (`agent.cameras.triggered`)."""


class Camera(Protocol):
    """One source of exposures. It belongs to one thread: no two methods run at the same time.

    ```python
    if camera.poll(0.25):
        frame_or_fault = camera.read(part)
    ```
    """

    @property
    def name(self) -> str:
        """How messages and logs call it."""

    def poll(self, timeout_s: float) -> bool:
        """Wait until an exposure, or the failure of one, is there to be read; `read` takes it.

        A live source may block longer than asked: see its class.

        Args:
            timeout_s: seconds to wait.

        Returns:
            False when nothing came in time, while the camera is lost, and when the source has ended.
        """

    @property
    def upcoming(self) -> str | None:
        """The part id of the exposure that `poll` has announced, where the source knows one: a file's name.

        The part is named by it before its trigger goes to the journal, so that a part which a crash cut short is known
        by its name when the source is read again. None where the trigger has to make one up.
        """

    @property
    def ended(self) -> bool:
        """No frame will ever come again: a finite source is at its end, or the camera is closed."""

    @property
    def lost(self) -> str | None:
        """Why the camera does not deliver right now, in words; None while it does."""

    def read(self, part: Part) -> Frame | Fault:
        """Take the exposure for this part.

        Args:
            part: whose picture it is.

        Returns:
            The frame, whose pixels belong to the caller and are never written to again; or the reason why there is
            none. Never raises for one exposure.
        """

    def close(self) -> None:
        """Give the device back; may be called twice."""


def open_camera(
    config: CameraConfig,
    *,
    trigger: TriggerConfig,
    is_judged: Callable[[str], bool],
    settle_ms: float = 0.0,
    strobe: Callable[[bool], None] = lambda _is_exposing: None,
) -> Camera:
    """Open the configured camera, with what its trigger needs around it.

    Args:
        config: which one, and how.
        trigger: with free run the camera gets a thread of its own, and only its newest frame counts; with a trigger
            that comes when it wants, a part gets the first frame after it. Files give one picture per part either way.
        is_judged: whether the journal holds a verdict for a part id; asked by a folder camera that resumes, from the
            thread that polls.
        settle_ms: from the strobe's start to the exposure.
        strobe: told True before the exposure of a triggered part, and False after it.

    Raises:
        CameraError: it can't be opened; the hint says what to do.
    """
    if is_live(config) and not isinstance(trigger, FrameTriggerConfig | FreeRunConfig):
        return _open_triggered(config, delay_ms=trigger.delay_ms, settle_ms=settle_ms, strobe=strobe)
    if isinstance(config, GenicamCameraConfig) and config.trigger == "software":
        raise CameraError(
            f"{config.name}: camera.trigger is software, but nothing asks for a picture: trigger is {trigger.kind}",
            hint="set camera.trigger to off or one of the camera's lines, or trigger.kind to interval, gpio or tcp",
        )
    is_free = isinstance(trigger, FreeRunConfig)
    camera = _open_guarded(config, is_judged, newest_only=is_free)
    if is_free:
        from agent.cameras.newest import NewestFrame

        return NewestFrame(camera)
    return camera


def open_view(config: CameraConfig, *, delay_ms: float, window_ms: float, is_judged: Callable[[str], bool]) -> Camera:
    """Open a further camera of a part: live ones give the first frame after the part's trigger and the delay.

    Args:
        config: which one, and how.
        delay_ms: from the trigger to its exposure.
        window_ms: how long the frame may take from then; nobody waits for it longer.
        is_judged: as for `open_camera`.

    Raises:
        CameraError: it can't be opened; the hint says what to do.
    """
    if is_live(config):
        return _open_triggered(config, delay_ms=delay_ms, timeout_ms=window_ms)
    return _open(config, is_judged, newest_only=False)


def is_live(config: CameraConfig) -> bool:
    """Whether time means something to this camera: it is no folder and no video file."""
    if isinstance(config, OpenCvCameraConfig):
        source = config.source
        return source.isdigit() or source.startswith("/dev/") or "://" in source
    return not isinstance(config, FolderCameraConfig)


def _open_triggered(
    config: CameraConfig,
    *,
    delay_ms: float,
    timeout_ms: float | None = None,
    settle_ms: float = 0.0,
    strobe: Callable[[bool], None] = lambda _is_exposing: None,
) -> Camera:
    """A live camera that gives a part the first frame after its trigger."""
    from agent.cameras.triggered import ExposedOnDemand, Moment, TriggeredCamera

    assert not isinstance(config, FolderCameraConfig)
    if isinstance(config, GenicamCameraConfig) and config.trigger.startswith("Line"):
        raise CameraError(
            f"{config.name}: camera.trigger is {config.trigger}: the camera's own line says when it exposes, and a "
            "part of another trigger could get the picture of the pulse after it",
            hint="set trigger.kind to frame (each pulse is a part), or camera.trigger to software",
        )
    latency_ms = 0.0 if isinstance(config, PiCameraConfig) else lag_ms_of(config)
    timeout_ms = config.read_timeout_ms + latency_ms if timeout_ms is None else timeout_ms
    moment = Moment(delay_ms=delay_ms, settle_ms=settle_ms, timeout_ms=timeout_ms, strobe=strobe)
    # Every frame is wanted: the first one after a trigger must not be replaced by one after it.
    camera = _open_guarded(config, lambda _part_id: False, newest_only=False)
    if isinstance(config, GenicamCameraConfig) and config.trigger == "software":
        return ExposedOnDemand(camera, moment)
    return TriggeredCamera(camera, moment)


def _open_guarded(config: CameraConfig, is_judged: Callable[[str], bool], *, newest_only: bool) -> Camera:
    """The camera; of a live one every frame is looked at."""
    camera = _open(config, is_judged, newest_only=newest_only)
    if not is_live(config):
        return camera
    from agent.cameras.guard import FrameGuard, GuardedCamera

    return GuardedCamera(camera, FrameGuard(still_s=_still_s(config)))


def _still_s(config: CameraConfig) -> float:
    """How long the same picture may come in a row: H.264 and H.265 repeat what did not change."""
    text = ""
    if isinstance(config, OpenCvCameraConfig):
        text = config.source
    elif isinstance(config, GStreamerCameraConfig):
        text = config.pipeline
    is_coded = re.search(r"(?i)^(rtsps?|udp|rtp|rtmp|srt|tcp)://|rtspsrc|[hx]\.?26[45]|decodebin", text)
    return STILL_S if is_coded else 0.0


def _open(config: CameraConfig, is_judged: Callable[[str], bool], *, newest_only: bool) -> Camera:
    match config:
        case FolderCameraConfig():
            from agent.cameras.folder import FolderCamera

            return FolderCamera(config, is_judged=is_judged)
        case OpenCvCameraConfig():
            from agent.cameras.opencv import OpenCvCamera

            return OpenCvCamera(config)
        case GStreamerCameraConfig() | ArgusCameraConfig():
            from agent.cameras.gstreamer import GStreamerCamera

            return GStreamerCamera(config, newest_only=newest_only)
        case GenicamCameraConfig():
            from agent.cameras.genicam import GenicamCamera

            return GenicamCamera(config)
        case PiCameraConfig():
            from agent.cameras.picamera import PiCamera

            return PiCamera(config)
