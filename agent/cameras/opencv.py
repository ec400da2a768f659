"""Video files, RTSP and HTTP streams, and USB cameras, through OpenCV."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import math
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from agent.cameras.decode import decode_image, path_in_words
from agent.cameras.stream_clock import StreamClock
from agent.cameras.v4l2 import NotTaken, ask_device, exposure_stamp_ns, size_not_taken
from agent.config import OpenCvCameraConfig, lag_ms_of
from agent.errors import CameraError, ImageError
from agent.frame import BgrImage, Fault, Frame, Part, Stamp
from agent.log import log_event

__all__ = ["OpenCvCamera", "url_without_secrets"]

STREAMS = ("rtsp", "rtsps", "http", "https", "udp", "rtp", "rtmp", "srt", "tcp")
RTSP = ("rtsp://", "rtsps://")

WAITED_NS = 1_000_000
"""A packet that is there at once is handed out in a tenth of that."""

_opening = threading.Lock()
"""FFMPEG's options are one variable of the process; cameras that open at the same time may differ in theirs."""

log = logging.getLogger("agent.cameras.opencv")


class OpenCvCamera:
    """One `cv2.VideoCapture`, opened again when a live source goes away.

    A video file is a finite source: every frame is given, then it has ended. One that stops before the number of
    frames that its header promises gives one fault for that, then ends. It must open and hold a frame.

    A stream or a device is a live source: when it delivers nothing for `read_timeout_ms`, ends or breaks off, it is
    `lost`, and opened again after `reopen_s`, then twice that, up to eight times that, until a frame comes. Frames are
    given in the order in which they arrive; what a slow line leaves waiting grows old in the buffers of network and
    driver (a driver is asked for one buffer). Free run reads all the time and so never sees an old one.

    What a device does not take of the configured format, size, rate, exposure and gain is logged, once, by
    `camera_setting_not_taken`. Give devices by `/dev/v4l/by-id`, which follows the camera by its serial number, or by
    `/dev/v4l/by-path`, which stays with the socket: two cameras of a model without serial numbers share one `by-id`.

    When a frame was exposed: a V4L2 driver stamps it (`exposure_stamp_ns`). An RTSP stream's frames are dated by their
    own times (`StreamClock`), and what had gathered while it was opened is left out (`old_frames_skipped`): it is up to
    seconds old. Any other stream has no times to trust, so a frame counts as arrived when the last one did that had to
    be waited for. Less `latency_ms`, each is a time before which the exposure did not begin.

    `poll` blocks in OpenCV, which can't be interrupted: up to `read_timeout_ms` for a frame, up to `open_timeout_ms`
    for a try to open a stream again, and as long to read an RTSP stream's backlog. For V4L2 devices OpenCV takes the
    first such time of a process, rounded up to seconds; a driver that hangs elsewhere is what the watchdog is for.
    `close` may come from another thread: a call that is under way then gives the device back when it ends.

    MJPEG is taken as packets and decoded by `decode_image`, so a damaged frame is a fault. Left to itself FFMPEG gives
    a truncated one with the rest of the frame before it, which is the part before it (seen with OpenCV 4.8 and 5.0).
    With H.264 and H.265 that can't be told from outside: what was lost on the way is patched up from neighbouring
    frames in silence. For inspection prefer MJPEG, and TCP for RTSP (OpenCV's choice when nothing else is asked).

    Args:
        config: the source and its time limits.
        clock: seconds, monotonic; decides when a lost camera is opened again.

    Raises:
        CameraError: the source can't be opened at the start.
    """

    def __init__(self, config: OpenCvCameraConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._source = _source_from_text(config.source)
        self._closed = threading.Event()
        self._ended = False
        self._lost: str | None = None
        self._sequence = 0
        self._size: tuple[int, int] | None = None
        self._waiting: collections.deque[_Grabbed | str] = collections.deque()  # frames, or reasons why there is none
        self._wait_s = config.reopen_s
        self._retry_at = 0.0
        self._in_use = threading.RLock()
        self._told: set[str] = set()
        self._stream_clock: StreamClock | None = None
        self._waited_ns = self._opened_ns = self._skipped = 0
        _refuse_what_does_not_apply(self._source, config)
        _quiet_libraries(config)
        self._capture = self._opened()
        if self._capture is None:
            raise _why_not_open(self._source, config)
        if self._source.kind == "file" and not self.poll(0):
            raise CameraError(f"{self._source.shown}: opens as a video but holds no frame", hint=_FILE_HINT)

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
        """The video file is at its end; a live source never ends, it is lost."""
        return self._closed.is_set() or (self._ended and not self._waiting)

    @property
    def lost(self) -> str | None:
        """Why a live source does not deliver, until it does again."""
        return self._lost

    def poll(self, timeout_s: float) -> bool:
        """Grab the next frame, unless one waits; opens a lost source again when that is due."""
        with self._in_use:
            if self.ended:
                return False
            if not self._waiting and self._capture is None:
                self._reopen(timeout_s)
            while not self._waiting and self._capture is not None and not self.ended:
                self._grab(self._capture)
        if self._closed.is_set():
            self.close()
            return False
        return bool(self._waiting)

    def read(self, part: Part) -> Frame | Fault:
        """Decode the grabbed frame; without one, wait for one as long as `read_timeout_ms`."""
        with self._in_use:
            taken = self._taken(part)
        if self._closed.is_set():
            self.close()
        return taken

    def close(self) -> None:
        """Release the device or file; or let the call do it that is under way in another thread."""
        self._closed.set()
        if self._in_use.acquire(blocking=False):
            try:
                if self._capture is not None:
                    self._capture.release()
                    self._capture = None
            finally:
                self._in_use.release()

    def _taken(self, part: Part) -> Frame | Fault:
        there = self.poll(self._config.read_timeout_ms / 1000)
        waiting = self._waiting.popleft() if there else self._lost or f"{self._source.shown}: there is no frame"
        if not isinstance(waiting, _Grabbed) or self._capture is None:
            return Fault(part=part, stage="capture", reason=str(waiting))
        started_ns = time.monotonic_ns()
        try:
            image = _retrieve(self._capture, f"{self._source.shown}: frame {waiting.sequence}")
        except ImageError as error:
            return Fault(part=part, stage="capture", reason=error.message)
        self._note_size(image)
        return Frame(
            part=part,
            image=image,
            camera=self.name,
            source=self._source.shown,
            sequence=waiting.sequence,
            captured=waiting.at,
            capture_ms=waiting.cost_ms + (time.monotonic_ns() - started_ns) / 1e6,
            exposed_ns=waiting.exposed_ns,
        )

    def _grab(self, capture: cv2.VideoCapture) -> None:
        """Put the next frame, or what came in its place, into `_waiting`; or find out that nothing will come."""
        started_ns = time.monotonic_ns()
        grabbed = _grab(capture)
        took_ms = (time.monotonic_ns() - started_ns) / 1e6
        silent = took_ms >= 0.9 * self._config.read_timeout_ms
        if not grabbed and not silent and _grab(capture):
            # FFMPEG says the same of one bad frame as of the end, but after a bad one it goes on.
            self._sequence += 1
            self._waiting.append(f"{self._source.shown}: frame {self._sequence} can't be decoded")
            grabbed = True
        if grabbed:
            self._note_frame(capture, started_ns)
        elif self._source.kind == "file":
            self._finish(capture)
        else:
            self._lose(f"no frame for {took_ms:,.0f} ms" if silent else "it ended, or the connection broke")

    def _note_frame(self, capture: cv2.VideoCapture, started_ns: int) -> None:
        at = Stamp.now()
        exposed_ns = self._exposed_ns(capture, started_ns, at.mono_ns)
        if self._is_backlog(at.mono_ns):
            self._skipped += 1
            return
        self._sequence += 1
        # Waiting for a live source to expose is no cost; a file only ever decodes.
        cost_ms = (at.mono_ns - started_ns) / 1e6 if self._source.kind == "file" else 0.0
        self._waiting.append(_Grabbed(self._sequence, at, cost_ms, exposed_ns))
        self._lost, self._wait_s = None, self._config.reopen_s

    def _exposed_ns(self, capture: cv2.VideoCapture, started_ns: int, arrived_ns: int) -> int | None:
        """The time before which the grabbed frame was not exposed."""
        if self._source.kind == "file":
            return None
        if arrived_ns - started_ns >= WAITED_NS:
            self._waited_ns = arrived_ns
        sent_ns = self._waited_ns
        if self._source.kind == "device":
            sent_ns = exposure_stamp_ns(capture, arrived_ns)
        elif self._stream_clock is not None:
            sent_ns = self._stream_clock.sent_ns(int(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6), arrived_ns)
        return sent_ns - int(lag_ms_of(self._config) * 1e6)

    def _is_backlog(self, now_ns: int) -> bool:
        """The frame gathered while the stream was opened; says so when there are no more of them."""
        late = now_ns - self._opened_ns > self._config.open_timeout_ms * 1e6
        if self._stream_clock is not None and not self._stream_clock.caught_up and not late:
            return True
        if self._skipped:
            fields = {"camera": self.name, "frames": self._skipped, "caught_up": not late}
            log_event(log, "old_frames_skipped", logging.WARNING if late else logging.INFO, **fields)
            self._skipped = 0
        return False

    def _finish(self, capture: cv2.VideoCapture) -> None:
        self._ended = True
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        # Where a container does not count its frames FFMPEG estimates: one frame or one percent may be missing.
        if 0 < self._sequence < promised - max(1, promised // 100):
            where = f"after {self._sequence} of {promised} frames"
            self._waiting.append(f"{self._source.shown}: the video stops {where}, it is cut off or damaged there")

    def _lose(self, reason: str) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
        self._lost = f"{self._source.shown}: {reason}"
        self._retry_at = self._clock() + self._wait_s
        self._wait_s = min(2 * self._wait_s, 8 * self._config.reopen_s)

    def _reopen(self, timeout_s: float) -> None:
        """Open a lost source again if that is due within the time."""
        early_s = self._retry_at - self._clock()
        if early_s > 0:
            self._closed.wait(min(early_s, timeout_s))
        if early_s > timeout_s or self._closed.is_set():
            return
        self._capture = self._opened()
        if self._capture is None:
            self._lose(_why_not_open(self._source, self._config).message.removeprefix(f"{self._source.shown}: "))

    def _opened(self) -> cv2.VideoCapture | None:
        """An opened capture, or None; what a device did not take is told, each of it once."""
        self._waited_ns = time.monotonic_ns()
        self._stream_clock = StreamClock() if self._source.target.lower().startswith(RTSP) else None
        capture = _open_capture(self._source, self._config)
        if capture is not None and self._source.kind == "device":
            self._tell_once(ask_device(capture, self._source.target, self._config))
        if capture is not None:
            _ask_for_packets(capture, self._source)
        self._opened_ns, self._skipped = time.monotonic_ns(), 0
        return capture

    def _note_size(self, image: BgrImage) -> None:
        size = (image.shape[1], image.shape[0])
        if self._size is not None and size != self._size:
            fields = {"was": "{}x{}".format(*self._size), "now": "{}x{}".format(*size)}
            log_event(log, "frame_size_changed", logging.WARNING, camera=self.name, **fields)
        if self._source.kind == "device":
            self._tell_once(size_not_taken(self._config, *size))
        self._size = size

    def _tell_once(self, not_taken: list[NotTaken]) -> None:
        for refused in not_taken:
            if refused.key not in self._told:
                self._told.add(refused.key)
                fields = {"setting": refused.key, "asked": refused.asked, "got": refused.got}
                log_event(log, "camera_setting_not_taken", logging.WARNING, camera=self.name, **fields)


@dataclasses.dataclass(frozen=True, slots=True)
class _Grabbed:
    """A frame that is in OpenCV's hands."""

    sequence: int
    at: Stamp
    cost_ms: float
    exposed_ns: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """What to open, and what to call it where others read."""

    kind: Literal["device", "stream", "file"]
    target: str
    shown: str


def url_without_secrets(url: str) -> str:
    """A URL as it may be logged: no user, no password, no values of telling query keys."""
    url = re.sub(r"://.*@", "://***@", url)  # to the last @: better too much than half a password with a / in it
    return re.sub(r"(?i)([?&][^=&]*(?:pass|pwd|user|token|key|secret|auth|sig)[^=&]*=)[^&#]*", r"\1***", url)


def _source_from_text(text: str) -> _Source:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if text.isascii() and text.isdigit():
        return _Source("device", f"/dev/video{int(text)}", f"/dev/video{int(text)}")
    if text.startswith("/dev/"):
        return _Source("device", text, text)
    if scheme is None:
        return _Source("file", text, path_in_words(Path(text)))
    if scheme.group(1).lower() in STREAMS:
        return _Source("stream", text, url_without_secrets(text))
    raise CameraError(
        f"{url_without_secrets(text)}: {scheme.group(1)}:// is no stream that we know",
        hint=f"camera.source is a device, the path of a video file, or a URL that begins with {', '.join(STREAMS)}",
    )


def _quiet_libraries(config: OpenCvCameraConfig) -> None:
    """Keep FFMPEG and OpenCV from writing to stderr, where FFMPEG would show passwords, and bound V4L2's waits.

    OpenCV reads these variables when it opens its first source; who set them before keeps what was set.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(math.ceil(config.read_timeout_ms / 1000)))
    if "OPENCV_LOG_LEVEL" not in os.environ:
        errors_only = 2
        set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, OpenCV 5
        set_level(errors_only)


def _open_capture(source: _Source, config: OpenCvCameraConfig) -> cv2.VideoCapture | None:
    """An opened capture, or None; OpenCV gives no reasons."""
    limits = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, config.open_timeout_ms),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, config.read_timeout_ms),
    ]
    try:
        if source.kind == "device":
            # A stable name under /dev/v4l is a link, which may point elsewhere after the camera was plugged in again.
            capture = cv2.VideoCapture(os.path.realpath(source.target), cv2.CAP_V4L2)
        else:
            with _ffmpeg_options(source, config):
                capture = cv2.VideoCapture(source.target, cv2.CAP_FFMPEG, limits)
    except cv2.error:
        return None
    if capture.isOpened():
        return capture
    capture.release()
    return None


@contextlib.contextmanager
def _ffmpeg_options(source: _Source, config: OpenCvCameraConfig) -> Iterator[None]:
    """Open with the configured transport; FFMPEG's options that somebody set for the process stay, and win."""
    variable = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
    with _opening:
        before = os.environ.get(variable)
        if source.target.lower().startswith(RTSP) and "rtsp_transport" not in (before or ""):
            transport = f"rtsp_transport;{config.transport}"
            os.environ[variable] = f"{before}|{transport}" if before else transport
        try:
            yield
        finally:
            if before is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = before


def _refuse_what_does_not_apply(source: _Source, config: OpenCvCameraConfig) -> None:
    """A key that has no effect is a mistake of whoever wrote it.

    Raises:
        CameraError: there is one.
    """
    of_devices = {"width_px": 0, "height_px": 0, "fps": 0, "pixel_format": "", "exposure_us": None, "gain": None}
    set_here = [key for key, left_alone in of_devices.items() if getattr(config, key) != left_alone]
    if source.kind != "device" and set_here:
        raise CameraError(
            f"{source.shown}: {', '.join(set_here)} can only be asked of a device",
            hint="remove them, and set them where the stream or the file is made",
        )
    if config.transport != "tcp" and not source.target.lower().startswith(RTSP):
        raise CameraError(f"{source.shown}: transport is for rtsp:// only", hint="remove camera.transport")


def _ask_for_packets(capture: cv2.VideoCapture, source: _Source) -> None:
    """Take MJPEG undecoded; `_retrieve` sees from what comes whether that was granted."""
    fourcc = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    if fourcc.to_bytes(4, "little").upper() not in (b"MJPG", b"JPEG"):
        return
    if source.kind == "device":
        capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    else:
        capture.set(cv2.CAP_PROP_FORMAT, -1)


def _grab(capture: cv2.VideoCapture) -> bool:
    try:
        return bool(capture.grab())
    except cv2.error:
        return False


def _retrieve(capture: cv2.VideoCapture, source: str) -> BgrImage:
    """The grabbed frame as a new (H, W, 3) uint8 BGR array.

    Raises:
        ImageError: there is none, or it is damaged.
    """
    try:
        good, image = capture.retrieve()
    except cv2.error as error:
        raise ImageError(f"{source}: can't be decoded") from error
    if not good or image is None or image.dtype != np.uint8 or not image.size:
        raise ImageError(f"{source}: is empty or can't be decoded")
    if image.ndim == 2 and image.shape[0] == 1:  # a packet
        return decode_image(image.tobytes(), source=source)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] != 3:
        raise ImageError(f"{source}: has {image.shape[2]} channels, expected 3")
    return np.ascontiguousarray(image, dtype=np.uint8)


_RIGHTS_HINTS = {
    "device": "add the user that runs the agent to the group `video`",
    "file": "give the user that runs the agent the right to read it (chmod, chown)",
}
_FILE_HINT = "`ffprobe FILE` tells what is in it; `ffmpeg -i FILE -c:v mjpeg -q:v 2 NEW.avi` makes one that can be read"


def _why_not_open(source: _Source, config: OpenCvCameraConfig) -> CameraError:
    if source.kind == "stream":
        return CameraError(
            f"{source.shown}: can't be opened within {config.open_timeout_ms:,} ms: nobody answers at that address, "
            "the path is wrong, the login is refused, or what comes is no video",
            hint="check that the camera is on and reachable; `ffplay URL` on this machine must show its picture",
        )
    path = Path(source.target)
    try:
        found = path.stat()
    except FileNotFoundError:
        return CameraError(f"{source.shown}: no such {source.kind}", hint=_hint_for_missing(source))
    except OSError as error:
        return CameraError(f"{source.shown}: may not be read ({error.strerror})", hint=_RIGHTS_HINTS[source.kind])
    if not os.access(path, os.R_OK, effective_ids=True):
        return CameraError(f"{source.shown}: may not be read by this user", hint=_RIGHTS_HINTS[source.kind])
    if source.kind == "device":
        return CameraError(
            f"{source.shown}: is no video device that delivers pictures, or another program holds it",
            hint="`v4l2-ctl --list-devices` shows the devices, `fuser -v DEVICE` shows who holds one",
        )
    return _why_no_video(source, found)


def _why_no_video(source: _Source, found: os.stat_result) -> CameraError:
    if stat.S_ISDIR(found.st_mode):
        return CameraError(f"{source.shown}: is a folder, expected a video", hint="pictures: set camera.kind to folder")
    problem = "no video that OpenCV can read: another kind of file, cut off before its index, or an unknown codec"
    return CameraError(f"{source.shown}: is {problem if found.st_size else 'empty (0 bytes)'}", hint=_FILE_HINT)


def _hint_for_missing(source: _Source) -> str:
    if source.kind == "file":
        return f"check the path; a relative one starts at {Path.cwd()}"
    present: list[str] = []
    for folder in ("/dev/v4l/by-id", "/dev/v4l/by-path"):
        with contextlib.suppress(OSError):
            present += sorted(str(p) for p in Path(folder).iterdir())
    return f"is it plugged in? Present: {', '.join(present) or 'none'}"
