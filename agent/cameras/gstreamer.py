"""Any GStreamer pipeline as a camera, and with it the CSI cameras of a Jetson.

The one door to GStreamer, through `gi`. Nothing of it is imported before a camera is opened.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable

from agent.cameras.argus import argus_pipeline
from agent.cameras.gst_pipeline import Pipeline, Sample, load_gstreamer, pipeline_without_secrets
from agent.cameras.sensor_time import FrameCounter
from agent.config import ArgusCameraConfig, GStreamerCameraConfig, lag_ms_of
from agent.errors import CameraError, ImageError
from agent.frame import BgrImage, Fault, Frame, Part
from agent.log import log_event

__all__ = ["GStreamerCamera"]

START_S = 10.0
"""Longest time from the start of a pipeline to its first frame: streams send a key frame every few seconds."""

log = logging.getLogger("agent.cameras.gstreamer")


class GStreamerCamera:
    """One pipeline, started again when a live source goes away.

    The configured text gets a converter to BGR and a sink (`appsink`) behind it. GStreamer runs it in threads of its
    own; frames wait here, two at most, or only the newest one with `newest_only`. `poll` returns at the time asked, but
    for the start of a lost pipeline, in which a driver may hang; that is what the watchdog is for.

    Sources that read files (or make pictures, as `videotestsrc` does) end: every frame is given, and at the line's
    pace. Live sources, and everything that comes over a network, never end: when nothing comes for `read_timeout_ms`,
    at an error and at the end of the stream the camera is `lost`, and the pipeline is made anew after `reopen_s`, then
    twice that, up to eight times that, until a frame comes. A pipeline that was just started has `START_S` for its
    first frame. Nothing of the old pipeline is given after that.

    When a frame was exposed, GStreamer does not say. What is sure: a live source stamps each frame when it gets it from
    the driver (the pipeline runs on the system's monotonic clock, so the stamp is one), or with the driver's own stamp
    (`v4l2src`: the start or the end of the frame, as the driver likes), and never later than the frame arrives here. So
    `exposed_ns` is that stamp, or the time of arrival where there is none, less `latency_ms`; a frame that has waited
    somewhere in the pipeline stays old by it. A reference timestamp of this computer's own clock
    (`timestamp/x-unix`) is taken when it is earlier. NTP and PTP times are another machine's clock, and not used.
    `nvarguscamerasrc` stamps behind the image processor, so `latency_ms` has to cover exposure, readout and processing.
    A file's frames have no such time.

    A frame that a decoder or driver marks as damaged is a fault, and so is one that only fills a gap. `jpegdec` marks
    nothing: it fills half a picture with grey, and leaves out what is none (seen with 1.22). A pipeline that ends in
    `image/jpeg` has its pictures decoded here, and a damaged one is a fault; so leave that decoder out.

    USB cameras are better off with `OpenCvCamera`. `v4l2src` takes the largest size unless caps say otherwise, and that
    of GStreamer 1.22.0 keeps its device open after it was stopped (seen with the kernel's vivid, without this module,
    too): each loss costs a file descriptor, and what is plugged in again gets another number.

    Args:
        config: the pipeline, or the sensor of a Jetson that one is made for.
        newest_only: forget frames that wait when a newer one comes: for free run and triggers of their own.
        clock: seconds, monotonic; decides when a lost camera is opened again.

    Raises:
        CameraError: GStreamer is not installed, or the pipeline can't be made, does not start or gives no frame.
    """

    def __init__(
        self,
        config: GStreamerCameraConfig | ArgusCameraConfig,
        *,
        newest_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._clock = clock
        self._newest_only = newest_only
        self._text = argus_pipeline(config) if isinstance(config, ArgusCameraConfig) else config.pipeline
        self._shown = shown_from_pipeline(self._text)
        self._gst = load_gstreamer()
        self._closed = threading.Event()
        self._ended = False
        self._lost: str | None = None
        self._reasons: deque[str] = deque()
        self._counter = FrameCounter()
        self._sequence = 0
        self._size: tuple[int, int] | None = None
        self._wait_s = config.reopen_s
        self._retry_at = 0.0
        self._pipeline: Pipeline | None = self._started()
        with contextlib.ExitStack() as on_refusal:
            on_refusal.callback(self.close)
            self._require_frame(self._pipeline)
            on_refusal.pop_all()

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
        """The pipeline read a file to its end; a live one never ends, it is lost."""
        return self._closed.is_set() or (self._ended and not self._reasons)

    @property
    def lost(self) -> str | None:
        """Why a live source does not deliver, until it does again."""
        return self._lost

    def poll(self, timeout_s: float) -> bool:
        """Wait for a frame; starts a lost pipeline again when that is due."""
        if self.ended or self._reasons:
            return not self.ended
        if self._pipeline is None:
            self._reopen(timeout_s)
        pipeline = self._pipeline
        if pipeline is None or self._closed.is_set():
            return False
        if pipeline.wait(min(timeout_s, max(0.0, self._silence_left_s(pipeline)))):
            self._lost, self._wait_s = None, self._config.reopen_s
            return True
        self._look_after(pipeline)
        return bool(self._reasons)

    def read(self, part: Part) -> Frame | Fault:
        """Take the frame that waits; without one, wait for it as long as `read_timeout_ms`."""
        there = self.poll(self._config.read_timeout_ms / 1000)
        began_ns = time.monotonic_ns()  # waiting for an exposure is no cost
        sample = self._pipeline.take() if there and self._pipeline is not None else None
        if sample is None:
            default = f"{self._shown}: there is no frame"
            reason = self._reasons.popleft() if self._reasons else self._lost or default
            return Fault(part=part, stage="capture", reason=reason)
        self._sequence = self._counter.count(sample.number)
        try:
            image = sample.image()
        except ImageError as error:
            return Fault(part=part, stage="capture", reason=f"{self._shown}: frame {self._sequence}: {error.message}")
        self._note_size(image)
        return self._frame(part, image, sample, (time.monotonic_ns() - began_ns) / 1e6)

    def close(self) -> None:
        """Stop the pipeline; whoever waits in `poll` comes back at once."""
        self._closed.set()
        if self._pipeline is not None:
            self._pipeline.stop()

    def _frame(self, part: Part, image: BgrImage, sample: Sample, capture_ms: float) -> Frame:
        earlier_ns = int(lag_ms_of(self._config) * 1e6)
        return Frame(
            part=part,
            image=image,
            camera=self.name,
            source=self._shown,
            sequence=self._sequence,
            captured=sample.arrived,
            capture_ms=capture_ms,
            exposed_ns=None if sample.stamped_ns is None else sample.stamped_ns - earlier_ns,
        )

    def _started(self) -> Pipeline:
        return Pipeline(self._gst, self._text, shown=self._shown, newest_only=self._newest_only)

    def _require_frame(self, pipeline: Pipeline) -> None:
        if pipeline.wait(START_S):
            return
        reason = pipeline.over or f"gives no frame within {START_S:g} s"
        raise CameraError(
            f"{self._shown}: {reason}",
            hint=f"on this machine, `gst-launch-1.0 -v {_tried(self._text)} ! fakesink` must run",
        )

    def _silence_left_s(self, pipeline: Pipeline) -> float:
        """Seconds until the camera counts as lost when nothing comes."""
        patience_s = self._config.read_timeout_ms / 1000
        if not pipeline.delivered:
            patience_s = max(START_S, patience_s)
        return pipeline.active_ns / 1e9 + patience_s - time.monotonic()

    def _look_after(self, pipeline: Pipeline) -> None:
        """Nothing came in time: it is over, silent for too long, or simply not yet there."""
        if self._closed.is_set():
            return
        if pipeline.over is not None and pipeline.finite:
            self._ended = True
            if pipeline.failed:
                self._reasons.append(f"{self._shown}: stops after {self._sequence} frames: {pipeline.over}")
        elif pipeline.over is not None:
            self._lose(pipeline, pipeline.over)
        elif self._silence_left_s(pipeline) <= 0:
            silent_ms = (time.monotonic_ns() - pipeline.active_ns) / 1e6
            self._lose(pipeline, f"no frame for {silent_ms:,.0f} ms")

    def _lose(self, pipeline: Pipeline | None, reason: str) -> None:
        if pipeline is not None:
            pipeline.stop()
        self._pipeline = None
        self._counter.begin_anew()
        self._lost = f"{self._shown}: {reason}"
        self._retry_at = self._clock() + self._wait_s
        self._wait_s = min(2 * self._wait_s, 8 * self._config.reopen_s)

    def _reopen(self, timeout_s: float) -> None:
        """Start a lost pipeline again if that is due within the time."""
        early_s = self._retry_at - self._clock()
        if early_s > 0:
            self._closed.wait(min(early_s, timeout_s))
        if early_s > timeout_s or self._closed.is_set():
            return
        try:
            self._pipeline = self._started()
        except CameraError as error:
            self._lose(None, error.message.removeprefix(f"{self._shown}: "))
        if self._closed.is_set() and self._pipeline is not None:
            self._pipeline.stop()

    def _note_size(self, image: BgrImage) -> None:
        size = (image.shape[1], image.shape[0])
        if self._size is not None and size != self._size:
            fields = {"was": "{}x{}".format(*self._size), "now": "{}x{}".format(*size)}
            log_event(log, "frame_size_changed", logging.WARNING, camera=self.name, **fields)
        self._size = size


def shown_from_pipeline(text: str) -> str:
    """What messages call a pipeline: its source, without passwords."""
    source = pipeline_without_secrets(text.split("!", 1)[0].strip())
    return f"gstreamer {source if len(source) <= 80 else source[:77] + '...'}"


def _tried(text: str) -> str:
    """The pipeline as a shell takes it, where it is short enough to be read."""
    shown = re.sub(r"([()\"$`\\])", r"\\\1", pipeline_without_secrets(text))
    return shown if len(shown) <= 200 else "PIPELINE"
