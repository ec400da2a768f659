"""One connection of the line server, what a line of text is, and the socket that listens."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import socket
import time

from agent.errors import ConfigError
from agent.frame import Stamp

__all__ = ["BACKLOG", "LINE_BYTES", "Peer", "decoded", "encoded", "is_printable", "keep_alive", "listen"]

LINE_BYTES = 512
"""Longest line that is taken."""

BACKLOG = 128

FRAME = " \x02\x03"
"""What bar code readers may put around a code: STX and ETX."""

SEPARATORS = dict.fromkeys(range(0x1C, 0x20))
"""What may stand in a code: GS1 codes have GS between their fields."""

DEAD_MS = 10_000
"""A peer that does not answer for so long is gone: TCP_USER_TIMEOUT, and the keep-alive probes together."""


@dataclasses.dataclass(eq=False, slots=True)
class Peer:
    """One connection.

    Attributes:
        name: its address and port, for messages.
        address: its IP address.
        empty_s: when nothing of it was unread for the last time (`time.monotonic`).
        lay_s: how long what was read last may have lain unread.
        due: numbers of the answers that will be told.
        leaves_s: it is not heard any more, and is kept until then for what is due.
        has_ended: the other side says no more; it may read yet.
        since_s: when it came.
    """

    name: str
    address: str
    sock: socket.socket
    inbox: bytearray = dataclasses.field(default_factory=bytearray)
    outbox: bytearray = dataclasses.field(default_factory=bytearray)
    has_spoken: bool = False
    partial_since: float | None = None
    arrived: Stamp = dataclasses.field(default_factory=Stamp.now)
    is_held: bool = False
    is_dead: bool = False
    unread: int = 0
    empty_s: float = 0.0
    lay_s: float = 0.0
    due: set[int] = dataclasses.field(default_factory=set)
    leaves_s: float | None = None
    has_ended: bool = False
    since_s: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        """No line of it is heard any more."""
        return self.is_dead or self.leaves_s is not None

    def leave(self, within_s: float) -> None:
        """Hear nothing of it any more; it is kept so long for the answers due."""
        if self.leaves_s is None:
            self.leaves_s = time.monotonic() + within_s
        self.partial_since, self.is_held = None, False
        self.inbox.clear()


def is_printable(text: str) -> bool:
    """Whether there are no control characters, but for `SEPARATORS`."""
    return text.translate(SEPARATORS).isprintable()


def decoded(line: bytes) -> str | None:
    """A line's text without its frame; None where there is none: too long, bytes, or control characters alone."""
    try:
        text = line.decode().strip(FRAME)
    except UnicodeDecodeError:
        return None
    is_text = not text or any(c.isprintable() and c != " " for c in text)
    return text if is_text and len(line) <= LINE_BYTES else None


def encoded(text: str) -> bytes:
    """One line, whatever the text: what can't be printed becomes a space; cut to `LINE_BYTES`."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable.encode(errors="replace")[: LINE_BYTES - 2].decode(errors="ignore").rstrip(" ").encode() + b"\r\n"


_PROBLEMS = {
    errno.EADDRINUSE: ("is in use", "another program listens there (`ss -tlnp` shows which); choose another port"),
    errno.EADDRNOTAVAIL: ("is no address of this machine", "`ip address` lists them; 0.0.0.0 is all of them"),
    errno.EACCES: ("is not allowed", "ports under 1024 are for root; choose a higher one"),
}


def listen(where: str, host: str, port: int) -> socket.socket:
    """The socket that takes connections, without waiting for them.

    Raises:
        ConfigError: the address can't be had; `where` is the block of the configuration.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except (OSError, UnicodeError) as error:
        listener.close()
        number = error.errno if isinstance(error, OSError) else None
        problem, hint = _PROBLEMS.get(number or 0, (f"can't be used ({error})", "give an IP address of this machine"))
        raise ConfigError(f"{where}: {host} port {port} {problem}", hint=hint) from error
    return listener


def keep_alive(sock: socket.socket) -> None:
    """Send at once, and notice within `DEAD_MS` that the other side is gone (tcp(7))."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_MS // 2_000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, DEAD_MS // 2_000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_MS)
