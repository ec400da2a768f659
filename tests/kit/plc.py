"""A PLC, a bar code reader or an attacker: one end of a TCP connection that speaks lines."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType

__all__ = ["Plc"]

PATIENCE_S = 20.0


class Plc:
    """A client; a context manager.

    Args:
        port: where to, on loopback.
        address: its own, another one of loopback for another machine.
        reads: how much its side of the connection holds; small for one that does not read.
    """

    def __init__(self, port: int, *, address: str = "127.0.0.1", reads: int | None = None) -> None:
        self._sock = socket.socket()
        self._sock.settimeout(PATIENCE_S)
        if reads is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, reads)
        self._sock.bind((address, 0))
        self._got = bytearray()
        try:
            self._sock.connect(("127.0.0.1", port))
        except OSError:
            self._sock.close()
            raise

    def say(self, *lines: str) -> None:
        """Send lines, each with its end."""
        self.send("".join(f"{line}\r\n" for line in lines).encode())

    def send(self, data: bytes) -> None:
        """Send bytes; all of them, or as many as the other side takes before it hangs up."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._sock.sendall(data)

    def line(self) -> str | None:
        """The next line; None when the other side has hung up."""
        while (end := self._got.find(b"\r\n")) < 0:
            if not self._receive():
                assert not self._got, f"half a line: {bytes(self._got)!r}"
                return None
        line = self._got[:end].decode()
        del self._got[: end + 2]
        return line

    def lines_until(self, last: str) -> list[str]:
        """Lines up to the first one that begins with this."""
        lines: list[str] = []
        while not lines or not lines[-1].startswith(last):
            line = self.line()
            assert line is not None, f"hung up after {lines}"
            lines.append(line)
        return lines

    def rest(self) -> list[str]:
        """All lines until the other side hangs up."""
        lines = []
        while (line := self.line()) is not None:
            lines.append(line)
        return lines

    def finish(self) -> None:
        """Say no more, and go on reading: what `nc` does at the end of its input."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def _receive(self) -> bool:
        try:
            data = self._sock.recv(65_536)
        except ConnectionResetError:
            return False
        self._got += data
        return bool(data)

    def __enter__(self) -> Plc:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
