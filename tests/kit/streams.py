"""An MJPEG camera over HTTP, from the standard library: it can be stalled, cut, refused and brought back.

It goes the same way through OpenCV as an RTSP camera (FFMPEG, the same time limits); see `tests.kit.rtsp` for one.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tests.kit.pictures import encoded

__all__ = ["MjpegServer", "mjpeg_frame", "mjpeg_server"]


def mjpeg_frame(image: NDArray[np.uint8]) -> bytes:
    """A JPEG with a comment of four kilobytes: FFMPEG wants two before it believes that a stream is one."""
    data = encoded(image, ".jpg")
    return data[:2] + b"\xff\xfe" + struct.pack(">H", 4002) + bytes(4000) + data[2:]


@contextlib.contextmanager
def mjpeg_server() -> Iterator[MjpegServer]:
    """A server that listens, and is gone at the end."""
    server = MjpegServer()
    server.start()
    try:
        yield server
    finally:
        server.hang_up()


class MjpegServer:
    """Serves each pushed frame once, to the client that is connected.

    Args:
        kept: frames that wait for the client at most; the oldest are forgotten. None keeps all.

    Attributes:
        attempts: connections that were accepted so far, refused ones too.
        refuse: hang up on whoever connects.
    """

    def __init__(self, *, kept: int | None = None) -> None:
        self._frames: deque[bytes] = deque(maxlen=kept)
        self._changed = threading.Condition()
        self._client = 0
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._port = 0
        self.attempts = 0
        self.refuse = False

    @property
    def url(self) -> str:
        """Its address, the same after a restart."""
        return f"http://127.0.0.1:{self._port}/video.mjpg"

    @property
    def port(self) -> int:
        """Its port."""
        return self._port

    def push(self, *images: NDArray[np.uint8]) -> None:
        """Send these pictures as frames."""
        self.push_bytes(*(mjpeg_frame(image) for image in images))

    def push_bytes(self, *frames: bytes) -> None:
        """Send these bytes as if each were a JPEG."""
        with self._changed:
            self._frames.extend(frames)
            self._changed.notify_all()

    def start(self) -> None:
        """Listen, at the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self._spawn(self._accept, self._listener)

    def hang_up(self) -> None:
        """Close the listening socket and every connection, as a camera that loses its power; frames are forgotten."""
        self.drop_client()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()

    def drop_client(self) -> None:
        """Close the connection and go on listening; frames that were not sent are forgotten."""
        with self._changed:
            self._frames.clear()
            self._client += 1
            self._changed.notify_all()

    def _spawn(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.attempts += 1
            if self.refuse:
                connection.close()
                continue
            with self._changed:
                self._client += 1
                self._changed.notify_all()
            self._spawn(self._serve, connection, self._client)

    def _serve(self, connection: socket.socket, client: int) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
            while (frame := self._next_frame(client)) is not None:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n"
                connection.sendall(head.encode() + frame + b"\r\n")

    def _next_frame(self, client: int) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._client != client)
            return self._frames.popleft() if self._client == client else None
