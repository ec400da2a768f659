"""systemd's side of the notify protocol: a real UNIX datagram socket that remembers what it was told."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


class NotifySocket:
    """What a service manager binds and gives its service as NOTIFY_SOCKET.

    Args:
        name: a path, or `@name` for an abstract socket.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)

    def environ(self, *, watchdog_s: float | None = None, pid: int | None = None) -> dict[str, str]:
        """The variables that systemd would set for the service."""
        environ = {"NOTIFY_SOCKET": self.name}
        if watchdog_s is not None:
            environ["WATCHDOG_USEC"] = str(round(watchdog_s * 1e6))
            environ["WATCHDOG_PID"] = str(os.getpid() if pid is None else pid)
        return environ

    def received(self) -> list[str]:
        """Every datagram so far that was not asked for before; never waits."""
        messages: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(self._socket.recv(65_536, socket.MSG_DONTWAIT).decode())
        return messages

    def wait_for(self, assignment: str, *, timeout_s: float = 10) -> str:
        """The next datagram that holds `assignment` as one of its lines.

        Raises:
            TimeoutError: none came.
        """
        self._socket.settimeout(timeout_s)
        while True:
            message = self._socket.recv(65_536).decode()
            if assignment in message.split("\n"):
                return message

    def close(self) -> None:
        """Stop listening; a path is removed."""
        self._socket.close()
        if not self.name.startswith("@"):
            Path(self.name).unlink(missing_ok=True)


@contextlib.contextmanager
def notify_socket(name: str | Path) -> Iterator[NotifySocket]:
    """A service manager's socket for the time of the block."""
    listener = NotifySocket(str(name))
    try:
        yield listener
    finally:
        listener.close()
