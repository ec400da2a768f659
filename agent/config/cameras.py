"""Cameras in the configuration: where pictures come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, Union

from agent.typed_yaml import key as _key

__all__ = [
    "ArgusCameraConfig",
    "CameraConfig",
    "FolderCameraConfig",
    "GStreamerCameraConfig",
    "GenicamCameraConfig",
    "OpenCvCameraConfig",
    "PiCameraConfig",
    "lag_ms_of",
]

USUAL_LAG_MS = 100.0
"""Exposure, readout and transfer of a camera on this device: one frame at 10 per second."""

LOCAL_SOURCES = frozenset({
    "v4l2src", "libcamerasrc", "nvarguscamerasrc", "nvv4l2camerasrc", "videotestsrc", "filesrc", "multifilesrc",
})  # fmt: skip
"""GStreamer elements whose frames come from this machine; whatever else a pipeline begins with may be far away."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FolderCameraConfig:
    """Pictures from a folder, in the order of their names: for tests, acceptance and replays.

    Attributes:
        kind: `folder`.
        name: how messages and logs call it.
        path: the folder; sub-folders are searched too, files that are no pictures are left alone and counted.
        rate_hz: parts per second; 0 is as fast as the line can.
        loop: start again at the end, for ever.
        resume: leave out pictures that the journal already holds a verdict for.
        max_pixels: a picture with more is refused before it is decoded (default 200 MP).
    """

    kind: Literal["folder"]
    name: str = _key("folder", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    path: Path = _key(path=True)
    rate_hz: float = _key(0.0, low=0, high=10_000)
    loop: bool = False
    resume: bool = True
    max_pixels: int = _key(200_000_000, low=1, high=2_000_000_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenCvCameraConfig:
    """A video file, an RTSP or HTTP stream, or a USB camera, through OpenCV.

    Attributes:
        kind: `opencv`.
        name: how messages and logs call it.
        source: `/dev/v4l/by-id/…` or `by-path/…`, a device number (`"0"`), a video file, or an `rtsp://` or `http://`
            URL. Numbers change with the order in which cameras are found; `by-id` follows the camera (its serial
            number), `by-path` the socket that it is plugged into, for cameras that have none.
        width_px: asked of the device; 0 leaves it to OpenCV, which asks for 640 x 480.
        height_px: asked of the device; 0 as for the width.
        fps: asked of the device; 0 leaves it alone.
        pixel_format: four letters asked of the device, such as `MJPG`, `YUYV`, `GREY`; empty leaves it alone.
        exposure_us: exposure of the device in microseconds, in steps of 100; empty leaves it to the device (automatic).
        gain: of the device, in its own unit; empty leaves it to the device.
        transport: of an RTSP stream; `udp` loses packets where `tcp` waits.
        open_timeout_ms: longest time to open a stream.
        read_timeout_ms: longest time without a frame; then the camera counts as lost.
        reopen_s: shortest wait before a lost camera is opened again; grows to eight times that.
        latency_ms: longest time from the start of an exposure until its frame is here, where the driver does not say;
            a triggered part takes only a frame that is later than its trigger by this much. Empty is 100 ms; of a
            network stream at a triggered station it has to be given, as nobody can guess it.
    """

    kind: Literal["opencv"]
    name: str = _key("camera", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    source: str = _key()
    width_px: int = _key(0, low=0, high=16_384)
    height_px: int = _key(0, low=0, high=16_384)
    fps: float = _key(0.0, low=0, high=1_000)
    pixel_format: str = _key("", pattern=r"([A-Za-z0-9 ]{4})?", form="four letters such as MJPG")
    exposure_us: float | None = _key(None, low=1, high=60_000_000)
    gain: float | None = _key(None, low=0, high=100_000)
    transport: Literal["tcp", "udp"] = "tcp"
    open_timeout_ms: int = _key(3_000, low=100, high=60_000)
    read_timeout_ms: int = _key(2_000, low=50, high=60_000)
    reopen_s: float = _key(1.0, low=0.1, high=60)
    latency_ms: float | None = _key(None, low=0, high=60_000)

    @property
    def is_lag_unknown(self) -> bool:
        """Whether it comes over a network, and nobody has said how late."""
        return self.latency_ms is None and "://" in self.source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GStreamerCameraConfig:
    """Any GStreamer pipeline.

    Attributes:
        kind: `gstreamer`.
        name: how messages and logs call it.
        pipeline: elements up to raw video or `image/jpeg`, without a sink: `rtspsrc location=… ! decodebin`.
        read_timeout_ms: longest time without a frame; then the camera counts as lost.
        reopen_s: shortest wait before a lost camera is opened again; grows to eight times that.
        latency_ms: longest time from the start of an exposure until the source stamps its frame, or, without a stamp,
            until the frame is here; a triggered part takes only a frame that is later than its trigger by this much.
            Empty is 100 ms for a source on this machine (`LOCAL_SOURCES`); of any other at a triggered station it
            has to be given, as nobody can guess it.
    """

    kind: Literal["gstreamer"]
    name: str = _key("camera", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    pipeline: str = _key(pattern=r"[^\x00-\x1f]{1,4000}", form="GStreamer elements with `!` between them")
    read_timeout_ms: int = _key(2_000, low=50, high=60_000)
    reopen_s: float = _key(1.0, low=0.1, high=60)
    latency_ms: float | None = _key(None, low=0, high=60_000)

    @property
    def is_lag_unknown(self) -> bool:
        """Whether it may come over a network, and nobody has said how late."""
        return (
            self.latency_ms is None and self.pipeline.partition("!")[0].strip().partition(" ")[0] not in LOCAL_SOURCES
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArgusCameraConfig:
    """A CSI camera of a Jetson, through NVIDIA's `nvarguscamerasrc`.

    Attributes:
        kind: `argus`.
        name: how messages and logs call it.
        sensor: number of the sensor.
        sensor_mode: of the driver; empty leaves the choice to it.
        width_px: of the sensor's picture, before `flip`.
        height_px: of the sensor's picture, before `flip`.
        fps: frames per second.
        exposure_us: microseconds; empty is automatic.
        gain: analogue gain; empty is automatic.
        flip: `nvvidconv`'s flip-method, 0 to 7; an odd one swaps width and height.
        read_timeout_ms: longest time without a frame; then the camera counts as lost.
        reopen_s: shortest wait before a lost camera is opened again; grows to eight times that.
        latency_ms: longest time from the start of an exposure until the source stamps its frame, or, without a stamp,
            until the frame is here; a triggered part takes only a frame that is later than its trigger by this much.
    """

    kind: Literal["argus"]
    name: str = _key("camera", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    sensor: int = _key(0, low=0, high=15)
    sensor_mode: int | None = _key(None, low=0, high=31)
    width_px: int = _key(1_920, low=16, high=16_384)
    height_px: int = _key(1_080, low=16, high=16_384)
    fps: float = _key(30.0, low=0.1, high=1_000)
    exposure_us: float | None = _key(None, low=1, high=60_000_000)
    gain: float | None = _key(None, low=1, high=1_000)
    flip: int = _key(0, low=0, high=7)
    read_timeout_ms: int = _key(2_000, low=50, high=60_000)
    reopen_s: float = _key(1.0, low=0.1, high=60)
    latency_ms: float = _key(USUAL_LAG_MS, low=0, high=60_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenicamCameraConfig:
    """A GigE Vision or USB3 Vision camera, through Aravis.

    Attributes:
        kind: `genicam`.
        name: how messages and logs call it.
        device: Aravis's name of the camera, or its address; empty takes the only one.
        pixel_format: as GenICam calls it, such as `Mono8`, `BayerRG8`, `RGB8`; empty leaves it alone.
        width_px: of the region; 0 leaves it alone.
        height_px: of the region; 0 leaves it alone.
        fps: in free run; 0 leaves it alone.
        exposure_us: microseconds; empty leaves it alone.
        gain: in the camera's unit; empty leaves it alone.
        trigger: what makes the camera expose: nothing (`off`, it runs freely), us (`software`), or one of its lines.
        trigger_delay_us: of the camera itself, after its trigger.
        features: more GenICam features as `Name=value`, set in this order before it starts.
        packet_bytes: size of a GigE packet; 0 lets Aravis find the largest.
        read_timeout_ms: longest time without a frame; then the camera counts as lost.
        reopen_s: shortest wait before a lost camera is opened again; grows to eight times that.
        latency_ms: longest time from the start of an exposure until its frame is here, where the driver does not say;
            a triggered part takes only a frame that is later than its trigger by this much.
    """

    kind: Literal["genicam"]
    name: str = _key("camera", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    device: str = _key("", pattern=r"[\w .:-]{0,120}", form="letters, digits, `_`, `.`, `:`, `-`")
    pixel_format: str = _key("", pattern=r"\w{0,40}", form="a GenICam name such as Mono8")
    width_px: int = _key(0, low=0, high=65_536)
    height_px: int = _key(0, low=0, high=65_536)
    fps: float = _key(0.0, low=0, high=100_000)
    exposure_us: float | None = _key(None, low=1, high=60_000_000)
    gain: float | None = _key(None, low=0, high=100_000)
    trigger: Literal["off", "software", "Line0", "Line1", "Line2", "Line3"] = "off"
    trigger_delay_us: float = _key(0.0, low=0, high=60_000_000)
    features: tuple[str, ...] = _key((), pattern=r"\w{1,64}=[^\x00-\x1f]{1,128}", form="Name=value")
    packet_bytes: int = _key(0, low=0, high=65_535)
    read_timeout_ms: int = _key(2_000, low=50, high=60_000)
    reopen_s: float = _key(1.0, low=0.1, high=60)
    latency_ms: float = _key(USUAL_LAG_MS, low=0, high=60_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PiCameraConfig:
    """A CSI camera of a Raspberry Pi, through picamera2.

    Attributes:
        kind: `picamera`.
        name: how messages and logs call it.
        number: of the camera, as `rpicam-hello --list-cameras` counts.
        mode: `video` delivers fast, `still` takes the sensor's best picture.
        width_px: of the frame.
        height_px: of the frame.
        fps: frames per second; 0 leaves it to the mode.
        exposure_us: microseconds; empty is automatic.
        gain: analogue gain; empty is automatic.
        focus_dioptres: lens position, 0 is infinity; empty leaves it to the lens.
        buffers: that the driver fills in turn; fewer are fresher, more lose less.
        read_timeout_ms: longest time without a frame; then the camera counts as lost.
        reopen_s: shortest wait before a lost camera is opened again; grows to eight times that.
    """

    kind: Literal["picamera"]
    name: str = _key("camera", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    number: int = _key(0, low=0, high=15)
    mode: Literal["video", "still"] = "video"
    width_px: int = _key(1_280, low=16, high=16_384)
    height_px: int = _key(720, low=16, high=16_384)
    fps: float = _key(0.0, low=0, high=1_000)
    exposure_us: float | None = _key(None, low=1, high=600_000_000)
    gain: float | None = _key(None, low=1, high=1_000)
    focus_dioptres: float | None = _key(None, low=0, high=32)
    buffers: int = _key(4, low=1, high=16)
    read_timeout_ms: int = _key(2_000, low=50, high=60_000)
    reopen_s: float = _key(1.0, low=0.1, high=60)


CameraConfig = Union[  # noqa: UP007 - read at run time on Python 3.10
    FolderCameraConfig,
    OpenCvCameraConfig,
    GStreamerCameraConfig,
    ArgusCameraConfig,
    GenicamCameraConfig,
    PiCameraConfig,
]


def lag_ms_of(camera: OpenCvCameraConfig | GStreamerCameraConfig | ArgusCameraConfig | GenicamCameraConfig) -> float:
    """Its `latency_ms`, or what stands for it."""
    return USUAL_LAG_MS if camera.latency_ms is None else camera.latency_ms
