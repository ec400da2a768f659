"""A PLC in an agent's journey: it waits for the agent, triggers parts and files what it is told as it comes."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

from tests.kit.waiting import wait_until

__all__ = ["LinePlc"]


class LinePlc:
    """One connection to an agent that may still have to start, and may be killed; a context manager.

    Args:
        port: of the agent's line of text, on loopback.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._lines: list[list[str]] = []
        self._results = 0
        self._changed = threading.Condition()

    def trigger(self, part: str) -> None:
        """Say that a part is there."""
        with contextlib.suppress(OSError):  # it was killed: the part never came
            self._socket.sendall(f"TRIGGER {part}\r\n".encode())

    def said(self, word: str) -> list[list[str]]:
        """The lines that began with this word, in five fields at most."""
        with self._changed:
            return [line for line in self._lines if line[0] == word]

    @property
    def results(self) -> int:
        """How many RESULT lines came."""
        return self._results

    def wait_for(self, word: str, count: int) -> list[list[str]]:
        """Until so many such lines came."""
        with self._changed:
            there = self._changed.wait_for(lambda: sum(line[0] == word for line in self._lines) >= count, 60)
        assert there, (word, count, self._lines[-3:])
        return self.said(word)

    def _read(self) -> None:
        with self._socket.makefile("r", encoding="utf-8", newline="\r\n") as lines, contextlib.suppress(OSError):
            for line in lines:
                with self._changed:
                    self._lines.append(line.strip().split(" ", 4))
                    self._results += line.startswith("RESULT ")
                    self._changed.notify_all()

    def _connected(self) -> bool:
        with contextlib.suppress(OSError):
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=60)
            return True
        return False

    def __enter__(self) -> LinePlc:  # noqa: PYI034 - Self needs Python 3.11
        wait_until(self._connected, 60, what="an agent that listens")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.wait_for("READY", 1)
        wait_until(lambda: self.said("READY")[-1][1] == "1", 60, what="READY 1")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()
