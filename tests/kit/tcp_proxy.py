"""A TCP proxy that can be slow, frozen, deaf, cut or refusing: the network between a station and its broker."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import threading
import time
from types import TracebackType

__all__ = ["TcpProxy"]

CHUNK_BYTES = 65_536
SLICE_S = 0.02


@dataclasses.dataclass(eq=False, slots=True)
class _Pair:
    """One client and its connection to the target."""

    client: socket.socket
    target: socket.socket
    sent: int = 0

    def close(self, *, reset: bool) -> None:
        for sock in (self.client, self.target):
            if reset:  # SO_LINGER with 0 s: close sends RST
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class TcpProxy:
    """Forwards a loopback port of its own to another; a context manager. What it does may be changed at any time.

    Args:
        target_port: where to, on loopback.
        target_host: the target's address.

    Attributes:
        port: where it listens.
        connections: how many it has taken so far.
    """

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        self._target = (target_host, target_port)
        self._state = threading.Condition()
        self._bytes_per_s = 0.0
        self._stalled = self._deaf = self._refusing = self._closing = False
        self._cut_after = 0
        self._pairs: set[_Pair] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0

    def ok(self) -> None:
        """Forward everything at once from now on."""
        with self._state:
            self._bytes_per_s, self._cut_after = 0.0, 0
            self._stalled = self._deaf = self._refusing = False
            self._state.notify_all()

    def slow(self, bytes_per_s: float) -> None:
        """Let so many bytes per second through, per connection, towards the target."""
        with self._state:
            self._bytes_per_s = bytes_per_s

    def stall(self) -> None:
        """Freeze: connections stay open and nothing passes, as when a cable is pulled behind a switch."""
        with self._state:
            self._stalled = True

    def deafen(self) -> None:
        """Let everything through to the target and no answer back."""
        with self._state:
            self._deaf = True

    def refuse(self) -> None:
        """Reset whoever connects."""
        with self._state:
            self._refusing = True

    def cut_after(self, count: int) -> None:
        """Reset each connection once the client has sent so many bytes; 0 never does."""
        with self._state:
            self._cut_after = count

    def cut(self) -> None:
        """Reset all connections now."""
        with self._state:
            pairs = list(self._pairs)
        for pair in pairs:
            self._drop(pair)

    def _drop(self, pair: _Pair) -> None:
        with self._state:
            self._pairs.discard(pair)
        pair.close(reset=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._state:
                if self._closing:
                    client.close()
                    return
                self.connections += 1
                refusing = self._refusing
            try:
                target = socket.create_connection(self._target, timeout=5)
            except OSError:
                refusing, target = True, socket.socket()
            target.settimeout(None)
            pair = _Pair(client, target)
            if refusing:
                pair.close(reset=True)
                continue
            with self._state:
                self._pairs.add(pair)
            for forth in (True, False):
                thread = threading.Thread(target=self._pump, args=(pair,), kwargs={"forth": forth}, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, pair: _Pair, *, forth: bool) -> None:
        source, sink = (pair.client, pair.target) if forth else (pair.target, pair.client)
        try:
            while data := source.recv(self._portion(forth=forth)):
                if not self._pass(pair, len(data), forth=forth):
                    break
                sink.sendall(data)
        except OSError:
            pass
        self._drop(pair)

    def _portion(self, *, forth: bool) -> int:
        """How much to read at once: with a rate or a limit little, so that both are met within a few bytes."""
        with self._state:
            if forth and self._bytes_per_s:
                return max(1, int(self._bytes_per_s * SLICE_S))
            return 64 if forth and self._cut_after else CHUNK_BYTES

    def _pass(self, pair: _Pair, count: int, *, forth: bool) -> bool:
        """Wait while frozen or too fast; False when the connection must be cut instead."""
        with self._state:
            self._state.wait_for(lambda: self._closing or not (self._stalled or (self._deaf and not forth)))
            if self._closing:
                return False
            if forth:
                pair.sent += count
                if self._cut_after and pair.sent > self._cut_after:
                    return False
            rate = self._bytes_per_s if forth else 0.0
        if rate:
            time.sleep(count / rate)
        return True

    def __enter__(self) -> TcpProxy:  # noqa: PYI034 - Self needs Python 3.11
        thread = threading.Thread(target=self._accept, daemon=True)
        self._threads.append(thread)
        thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._state:
            self._closing = True
            self._state.notify_all()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            pass  # wakes accept
        self._listener.close()
        self.cut()
        for thread in list(self._threads):
            thread.join(5)
