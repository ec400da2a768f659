"""A running GStreamer pipeline whose frames end in this process: what `GStreamerCamera` is made of.

GStreamer's types are untyped here: it is reached through `gi`, and only when a camera is opened.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import re
import threading
import time
from collections import deque
from typing import Any

import numpy as np

from agent.cameras.decode import decode_image
from agent.cameras.gi_door import gi_modules
from agent.cameras.opencv import url_without_secrets
from agent.errors import CameraError, ImageError
from agent.frame import BgrImage, Stamp

__all__ = ["GStreamer", "Pipeline", "Sample", "load_gstreamer", "pipeline_without_secrets"]

SINK = "agent_sink"
TO_BGR = f"videoconvert ! video/x-raw,format=BGR ! appsink name={SINK}"
AS_JPEG = f"appsink name={SINK} caps=image/jpeg"

KEPT = 2
"""Frames that wait for a line that takes each of them; a source that is faster is held up by that."""

PACKAGES = "gir1.2-gstreamer-1.0 gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base"

JETPACK = "is NVIDIA's, and on a Jetson only: apt install nvidia-l4t-gstreamer (in a container: the NVIDIA runtime)"
PACKAGE_OF = {
    "gstreamer1.0-plugins-base": ("videoconvert", "videotestsrc", "decodebin", "uridecodebin", "videoscale"),
    "gstreamer1.0-plugins-good": ("v4l2src", "rtspsrc", "udpsrc", "souphttpsrc", "jpegdec", "pngdec", "multifilesrc"),
    "gstreamer1.0-plugins-bad": ("bayer2rgb", "h264parse", "h265parse", "srtsrc", "openh264dec"),
    "gstreamer1.0-libav": ("avdec_h264", "avdec_h265", "avdec_mjpeg"),
    "gstreamer1.0-libcamera": ("libcamerasrc",),
}
"""Debian's and Ubuntu's packages of the elements that pipelines for cameras begin with."""

REASONS = {
    "not-negotiated": "what one element gives, the next one does not take",
    "not-linked": "an element has no video for the next one",
}
"""Of a stream that stopped (`GstFlowReturn`), in words."""

NO_SUCH_ELEMENT, NO_SUCH_PROPERTY, CANNOT_LINK = 1, 2, 3
"""Of `GstParseError`, in GStreamer's reference."""

log = logging.getLogger("agent.cameras.gstreamer")


@dataclasses.dataclass(frozen=True, slots=True)
class GStreamer:
    """The libraries: `Gst` and `GstVideo` through gi, and what gi can't do without a second copy of each frame."""

    gst: Any
    video: Any
    extract: Any

    def pixels(self, buffer: Any) -> BgrImage:
        """The bytes of a buffer as a new (n,) uint8 array.

        gi hands out bytes, which can't be written to, so an array of one's own would be a copy of a copy. The address
        of the buffer is its hash in PyGObject; that is used only where its `repr` shows the same address.
        """
        size = buffer.get_size()
        if f" at {hash(buffer):#x})" in repr(buffer):
            pixels = np.empty(size, np.uint8)
            if self.extract(hash(buffer), 0, pixels.ctypes.data, size) == size:
                return pixels
        copied: BgrImage = np.frombuffer(buffer.extract_dup(0, size), np.uint8).copy()
        return copied


def load_gstreamer() -> GStreamer:
    """Load and start GStreamer; its first start on a machine scans all plug-ins, which takes seconds.

    Raises:
        CameraError: it is not installed, or does not start.
    """
    gst, _app, video = gi_modules({"Gst": "1.0", "GstApp": "1.0", "GstVideo": "1.0"}, packages=PACKAGES)
    try:
        gst.init(None)
        extract = ctypes.CDLL("libgstreamer-1.0.so.0").gst_buffer_extract
    except (RuntimeError, OSError) as error:  # GLib.Error is a RuntimeError
        raise CameraError(f"GStreamer does not start: {error}", hint=f"apt install --reinstall {PACKAGES}") from error
    extract.restype = ctypes.c_size_t
    extract.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
    return GStreamer(gst, video, extract)


def pipeline_without_secrets(text: str) -> str:
    """A pipeline, or what GStreamer says of it, as it may be logged: no passwords of URLs or properties."""
    masked = re.sub(r"\S+://\S+", lambda found: url_without_secrets(found[0]), text)
    return re.sub(r"(?i)\b([\w-]*(?:pw|passw|user|token|secret|key)[\w-]*\s*=\s*)(\"[^\"]*\"|\S+)", r"\1***", masked)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A frame that is in GStreamer's hands.

    Attributes:
        arrived: when it came to the end of the pipeline.
        stamped_ns: CLOCK_MONOTONIC of the earliest stamp that it is sure to have; None where time means nothing.
        number: the source's own number of it (`v4l2src`: the driver's), else how many have come.
    """

    library: GStreamer
    sample: Any
    arrived: Stamp
    stamped_ns: int | None
    number: int

    def image(self) -> BgrImage:
        """Its pixels as a new (H, W, 3) uint8 BGR array; a JPEG is decoded by `decode_image`, which refuses half ones.

        Raises:
            ImageError: it is damaged, fills a gap, or is smaller than its caps say.
        """
        buffer, flags = self.sample.get_buffer(), self.library.gst.BufferFlags
        if buffer.has_flags(flags.CORRUPTED):
            raise ImageError("is damaged, say the driver or the decoder")
        if buffer.has_flags(flags.GAP):
            raise ImageError("is missing, what came only fills the gap")
        if self.sample.get_caps().get_structure(0).get_name() == "image/jpeg":
            return decode_image(buffer.extract_dup(0, buffer.get_size()), source="the JPEG")
        info = self.library.video.VideoInfo.new_from_caps(self.sample.get_caps())
        meta = self.library.video.buffer_get_video_meta(buffer)
        stride, start = (meta.stride[0], meta.offset[0]) if meta is not None else (info.stride[0], info.offset[0])
        return _rows(self.library.pixels(buffer), start, stride, (info.height, info.width))


def _rows(pixels: BgrImage, start: int, stride: int, size: tuple[int, int]) -> BgrImage:
    """Rows without the padding that GStreamer puts behind each (it rounds them up to four bytes)."""
    height, width = size
    whole = start + stride * height
    if len(pixels) < whole - stride + 3 * width:
        raise ImageError(f"has {len(pixels):,} bytes, expected {whole:,} for {width} x {height} px")
    if (start, stride, len(pixels)) == (0, 3 * width, whole):
        return pixels.reshape(height, width, 3)
    shape, strides = (height, width, 3), (stride, 3, 1)
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(pixels[start:], shape, strides))


class Pipeline:
    """One run of a pipeline: made, started, and stopped once.

    GStreamer's threads call `_on_sample`, `_on_error` and `_on_eos`, which only put down what came and wake whoever
    waits. A callback that finds `KEPT` frames waiting waits itself, which holds the source up. (The bus also has a
    synchronous handler. PyGObject keeps a reference on each message that it drops, and so on the open device.)

    Attributes:
        over: why no frame will come any more, in words; None while it runs.
        failed: it is over because of an error.
        delivered: a frame has come.
        active_ns: CLOCK_MONOTONIC of the last frame, or of the start.

    Args:
        library: GStreamer.
        text: elements up to raw video in main memory.
        shown: how messages call it.
        newest_only: keep one frame, the newest.

    Raises:
        CameraError: it can't be made or started.
    """

    def __init__(self, library: GStreamer, text: str, *, shown: str, newest_only: bool) -> None:
        self.over: str | None = None
        self.failed = False
        self.delivered = False
        self._library = library
        self._newest_only = newest_only
        self._waiting: deque[Sample] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._live = False
        self._network: bool | None = None
        self._clock_behind_ns = 0
        self._arrivals = 0
        self._unix_time = library.gst.Caps.from_string("timestamp/x-unix")
        self._pipeline = _parsed(library, text, shown)
        self._sink = self._pipeline.get_by_name(SINK)
        self._sink.set_properties(sync=False, qos=False, max_buffers=1, emit_signals=True, enable_last_sample=False)
        self._bus = self._pipeline.get_bus()
        self._bus.enable_sync_message_emission()
        self._handlers = [
            (self._sink, self._sink.connect("new-sample", self._on_sample)),
            (self._bus, self._bus.connect("sync-message::error", self._on_error)),
            (self._bus, self._bus.connect("sync-message::eos", self._on_eos)),
        ]
        self.active_ns = time.monotonic_ns()
        self._start(shown)

    @property
    def finite(self) -> bool:
        """Its source is a file, or something made up: it ends, and its frames have no time."""
        return not self._live and not self._over_network()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a frame; False at once when none can come any more."""
        while self._bus.pop() is not None:  # messages would pile up; those that count have been told as they came
            pass
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.over is not None or self._stopped, timeout_s)
            return bool(self._waiting) and not self._stopped

    def take(self) -> Sample | None:
        """The oldest frame that waits."""
        with self._changed:
            taken = self._waiting.popleft() if self._waiting and not self._stopped else None
            self._changed.notify_all()
            return taken

    def stop(self) -> None:
        """Give the device back; may be called twice, and from another thread."""
        with self._changed:
            again, self._stopped = self._stopped, True
            self._waiting.clear()
            self._changed.notify_all()
        if again:
            return
        self._pipeline.set_state(self._library.gst.State.NULL)
        for source, handler in self._handlers:
            source.disconnect(handler)
        self._bus.disable_sync_message_emission()

    def _start(self, shown: str) -> None:
        gst = self._library.gst
        clock = gst.SystemClock.obtain()
        self._pipeline.use_clock(clock)
        self._clock_behind_ns = time.monotonic_ns() - clock.get_time()
        states = gst.StateChangeReturn
        paused = self._pipeline.set_state(gst.State.PAUSED)
        self._live = paused == states.NO_PREROLL
        if paused != states.FAILURE and self._pipeline.set_state(gst.State.PLAYING) != states.FAILURE:
            return
        self.stop()
        raise CameraError(f"{shown}: {self.over or 'does not start'}", hint=_HINT_DEVICE)

    def _on_sample(self, sink: Any) -> Any:
        try:
            sample = sink.emit("pull-sample")
            if sample is not None:
                self._keep(self._described(sample, Stamp.now()))
        except Exception as error:  # nobody else would hear of it: PyGObject prints it and goes on
            log.exception("bug")
            self._end(f"unexpected {type(error).__name__}: {error}", failed=True)
        return self._library.gst.FlowReturn.OK

    def _keep(self, sample: Sample) -> None:
        with self._changed:
            if self._newest_only and not self.finite:
                self._waiting.clear()
            self._changed.wait_for(lambda: len(self._waiting) < KEPT or self._stopped)
            if not self._stopped:
                self._waiting.append(sample)
            self.delivered, self.active_ns = True, sample.arrived.mono_ns
            self._changed.notify_all()

    def _described(self, sample: Any, arrived: Stamp) -> Sample:
        buffer = sample.get_buffer()
        self._arrivals += 1
        # Frames are counted by ones; of a file or a connection the offsets are bytes.
        counted = self._live and buffer.offset_end == buffer.offset + 1
        stamped_ns = None if self.finite else min([arrived.mono_ns, *self._stamps(sample, buffer, arrived)])
        return Sample(self._library, sample, arrived, stamped_ns, int(buffer.offset) if counted else self._arrivals)

    def _stamps(self, sample: Any, buffer: Any, arrived: Stamp) -> list[int]:
        """The times that the frame was stamped with, in nanoseconds of CLOCK_MONOTONIC."""
        gst = self._library.gst
        stamps = []
        if self._live and buffer.pts != gst.CLOCK_TIME_NONE:
            running_ns = sample.get_segment().to_running_time(gst.Format.TIME, buffer.pts)
            if running_ns != gst.CLOCK_TIME_NONE:
                stamps.append(running_ns + self._pipeline.get_base_time() + self._clock_behind_ns)
        meta = buffer.get_reference_timestamp_meta(self._unix_time)
        if meta is not None:
            stamps.append(arrived.mono_ns - (time.time_ns() - meta.timestamp))
        return stamps

    def _on_error(self, _bus: Any, message: Any) -> None:
        error, debug = message.parse_error()
        self._end(_why(message.src.get_name(), error.message, debug or ""), failed=True)

    def _on_eos(self, _bus: Any, _message: Any) -> None:
        self._end("the stream ended", failed=False)

    def _end(self, reason: str, *, failed: bool) -> None:
        with self._changed:
            if self.over is None:
                self.over, self.failed = reason, failed
            self._changed.notify_all()

    def _over_network(self) -> bool:
        if self._network is None:
            kinds = [_kind_of(element) for element in _elements(self._library.gst, self._pipeline)]
            network = any(kind.startswith("Source") and "Network" in kind for kind in kinds)
            if not self.delivered:
                return network  # a source that finds its parts while it starts may not have them all
            self._network = network
        return self._network


def _kind_of(element: Any) -> str:
    factory = element.get_factory()
    return str(factory.get_metadata("klass")) if factory is not None else ""


def _elements(gst: Any, pipeline: Any) -> list[Any]:
    found: list[Any] = []
    iterator = pipeline.iterate_recurse()
    while True:
        result, element = iterator.next()
        if result != gst.IteratorResult.OK:
            return found
        found.append(element)


def _why(element: str, message: str, debug: str) -> str:
    """GStreamer's error in one line; the reason, and the system's own words, stand in its debugging text."""
    found = re.search(r"system error: (.+)|streaming stopped, reason (\S+)", debug)
    reason = (found[1] or REASONS.get(found[2], found[2])) if found else ""
    text = f"{message.rstrip('.')} ({element}{': ' * bool(reason)}{reason})"
    return pipeline_without_secrets(" ".join(text.split()))


_HINT_DEVICE = "is it there, plugged in, and held by nobody else? `gst-launch-1.0` shows more with GST_DEBUG=3"
_HINT_LINK = (
    "camera.pipeline has to end in image/jpeg, or in raw video in main memory, without a sink: put decodebin behind "
    "H.264, bayer2rgb behind video/x-bayer, nvvidconv behind memory:NVMM"
)


def _parsed(library: GStreamer, text: str, shown: str) -> Any:
    """The pipeline with our sink.

    Raises:
        CameraError: GStreamer can't make it.
    """
    is_jpeg = text.rsplit("!", 1)[-1].split(",", 1)[0].strip() == "image/jpeg"
    try:
        return library.gst.parse_launch(f"{text} ! {AS_JPEG if is_jpeg else TO_BGR}")
    except RuntimeError as error:  # GLib.Error
        code, message = getattr(error, "code", -1), str(getattr(error, "message", error))
        reason = pipeline_without_secrets(message)
        raise CameraError(f"{shown}: the pipeline can't be made: {reason}", hint=_hint(code, message)) from error


def _hint(code: int, message: str) -> str:
    quoted = re.search(r'"([^"]+)"', message)
    name = quoted[1] if quoted else ""
    if code == NO_SUCH_ELEMENT:
        return _hint_for_element(name)
    if code == NO_SUCH_PROPERTY:
        return "`gst-inspect-1.0 ELEMENT` lists the properties of an element"
    if code == CANNOT_LINK:
        return _HINT_LINK
    return "elements stand with ` ! ` between them, and text with spaces in double quotes; see `man gst-launch-1.0`"


def _hint_for_element(name: str) -> str:
    if name.startswith("nv"):
        return f"{name} {JETPACK}"
    packages = [package for package, elements in PACKAGE_OF.items() if name in elements]
    if packages:
        return f"apt install {packages[0]}"
    return f"check the spelling; `gst-inspect-1.0 | grep {name}` finds it when its plug-in is installed"
