"""An RTSP camera: GStreamer's own server in a process of its own, which can be killed as a power cut kills a camera.

Each picture says when it was taken: its left half is a grey that counts the 40 ms of CLOCK_MONOTONIC. Its right half is
noise, as no two pictures of a sensor are alike.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.cameras.gi_door import gi_modules
from agent.errors import CameraError

__all__ = ["FRAME_MS", "RtspServer", "rtsp_server", "taken_ns", "why_no_gstreamer", "why_no_rtsp"]

ROOT = Path(__file__).parents[2]
READY = "ready"
ELEMENTS = ("videotestsrc", "videoconvert", "souphttpsrc", "multipartdemux", "jpegdec", "pngdec", "concat", "videobox")
RTSP_ELEMENTS = ("appsrc", "x264enc", "rtph264pay", "rtspsrc", "openh264dec")
FRAME_MS, GREYS, DARKEST, STEP = 40, 50, 20, 4


@functools.lru_cache(maxsize=1)
def why_no_gstreamer() -> str:
    """Why GStreamer can't be tested here; empty where it can."""
    return _missing(ELEMENTS, "GstApp")


@functools.lru_cache(maxsize=1)
def why_no_rtsp() -> str:
    """Why there is no RTSP server to test with here; empty where there is one."""
    return _missing(RTSP_ELEMENTS, "GstRtspServer")


def _missing(elements: tuple[str, ...], library: str) -> str:
    packages = (
        "apt install python3-gi gir1.2-gst-plugins-base-1.0 gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base "
        "gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
    )
    try:
        gst, _library = gi_modules({"Gst": "1.0", library: "1.0"}, packages="")
    except CameraError as error:
        return f"{error.message}: {packages}"
    gst.init(None)
    absent = [name for name in elements if gst.ElementFactory.find(name) is None]
    return f"no GStreamer element {', '.join(absent)}: {packages}" if absent else ""


@contextlib.contextmanager
def rtsp_server(width: int = 64, height: int = 48) -> Iterator[RtspServer]:
    """A server that sends 25 frames per second, and is gone at the end."""
    server = RtspServer()
    server.start(width, height)
    try:
        yield server
    finally:
        server.kill()


class RtspServer:
    """One camera at one address; its picture moves."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Its address, the same after a restart."""
        return f"rtsp://127.0.0.1:{self._port}/live"

    def start(self, width: int = 64, height: int = 48) -> None:
        """Switch it on, with frames of this size."""
        command = [sys.executable, "-m", "tests.kit.rtsp", str(self._port), str(width), str(height)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == READY, "the RTSP server does not start"

    def stall(self, *, stalled: bool) -> None:
        """Freeze it with its connections open, or let it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP if stalled else signal.SIGCONT)

    def kill(self) -> None:
        """Cut its power."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None


def taken_ns(image: NDArray[np.uint8], arrived_ns: int) -> int:
    """When the server took this picture, in nanoseconds of CLOCK_MONOTONIC, to 40 ms; it is known if under two seconds.

    Args:
        image: (H, W, 3) uint8 BGR.
        arrived_ns: when it came.
    """
    luma = 16 + float(image[:, : image.shape[1] // 4].mean()) * 219 / 255  # BT.601, studio range
    grey = round((luma - DARKEST) / STEP)
    frames = arrived_ns // (FRAME_MS * 1_000_000)
    return (frames - (frames - grey) % GREYS) * FRAME_MS * 1_000_000


def _picture(width: int, height: int) -> bytes:
    luma = np.random.default_rng().integers(60, 200, (height, width), dtype=np.uint8)
    luma[:, : width // 2] = DARKEST + STEP * (time.monotonic_ns() // (FRAME_MS * 1_000_000) % GREYS)
    return luma.tobytes() + bytes([128]) * (width * height // 2)


def _expose(gst: Any, media: Any, width: int, height: int) -> None:
    sensor = media.get_element().get_by_name("sensor")

    def run() -> None:
        pause = threading.Event()
        while sensor.emit("push-buffer", gst.Buffer.new_wrapped(_picture(width, height))) == gst.FlowReturn.OK:
            pause.wait(FRAME_MS / 1000)

    threading.Thread(target=run, daemon=True).start()


def _serve(port: str, width: str, height: str) -> None:
    gst, glib, rtsp = gi_modules({"Gst": "1.0", "GLib": "2.0", "GstRtspServer": "1.0"}, packages="")
    gst.init(None)
    server = rtsp.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = rtsp.RTSPMediaFactory()
    factory.set_shared(True)
    factory.set_launch(
        "( appsrc name=sensor is-live=true do-timestamp=true format=time "
        f"caps=video/x-raw,format=I420,width={width},height={height},framerate=25/1 "
        "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! rtph264pay name=pay0 )"
    )
    factory.connect("media-configure", lambda _factory, media: _expose(gst, media, int(width), int(height)))
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    print(READY, flush=True)
    glib.MainLoop().run()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
