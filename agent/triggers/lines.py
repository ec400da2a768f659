"""Lines of text over TCP, from and to machines that may be hostile, slow, or gone without a word."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable

from agent.frame import Stamp
from agent.log import log_event
from agent.triggers.peer import BACKLOG, LINE_BYTES, Peer, decoded, encoded, is_printable, keep_alive, listen

__all__ = ["LineServer"]

PARTIAL_S = 5.0
"""Longest time from the first byte of a line to its end."""

PEERS, PEERS_PER_ADDRESS = 32, 16
"""Connections at the same time, of all and of one address. Beyond, the oldest of them that never said a line goes."""

SILENT_S = 3_600.0
"""One that never said a line is closed after that, where no results are told: it is of no use to anybody."""

OUT_BYTES = 65_536
"""What may wait for a peer that does not read; further lines are lost to it as a whole, and that is told."""

READ_BYTES = 4_096
"""What is read of one peer before the next one's turn."""

LOOK_S = 0.1
"""Longest time that the thread waits for something to read: when it looks later than that, the process stood still."""

LINGER_S = 5.0
"""Longest time that a connection that is to be closed is kept for the answers that are due on it."""

ANSWERS_S = 30.0
"""The same, of one that has said all and still reads (`shutdown`, `nc` at the end of its input)."""

HELD_S = 0.02
"""Between two tries to bring a line that could not be taken."""

TOO_MANY = "too many connections"
NO_LINE = f"expected lines of text of at most {LINE_BYTES} bytes"

log = logging.getLogger("agent.tcp")


class LineServer:
    """Takes connections and lines, and says lines; one thread, `tcp`. No method waits for the network.

    A line ends with CR, LF or both, and is UTF-8 without control characters (but for `FRAME` around it, `SEPARATORS`
    in it, and for hearers of any text); empty ones count for nothing. What is no line (bytes, a line without its end,
    too long a one) is answered with `REFUSED`, and its connection closed when the answers due were told. Its first
    word, whatever its case, chooses who hears it (`hear`); a line of one other word goes to the hearer of `""`.

    Who has said a line is never sent away for a newcomer; who never did is worth less than one. A connection whose
    other side says no more is closed when the answers due on it were told.

    It lives as long as somebody holds it: whoever opened it, and who called `hold`; each calls `close`.

    Args:
        where: the block of the configuration, for messages.
        host: address to listen on.
        port: TCP port.

    Attributes:
        port: where it listens.

    Raises:
        ConfigError: the address can't be had.
    """

    def __init__(self, where: str, host: str, port: int) -> None:
        self._greeting: dict[str, str] = {}
        self._listener = listen(where, host, port)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.RLock()
        self._peers: dict[int, Peer] = {}
        self._hearers: dict[str, Callable[[Peer, str, Stamp], bool]] = {"PING": self._pong}
        self._any_text: set[str] = set()
        self._holders = 1
        self._is_crowded = False
        self._looked_s = self._idle_s = time.monotonic()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="tcp", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str | None:
        """Who does not read what is said, in words; None while all do, and while somebody serves them."""
        if not self._thread.is_alive() and self._holders:
            return f"port {self.port} is not served any more"
        with self._lock:
            deaf = [f"{peer.name} ({peer.unread} lines)" for peer in self._peers.values() if peer.unread]
        return f"results are not read, and were lost to: {', '.join(deaf)}" if deaf else None

    def hear(self, word: str, hearer: Callable[[Peer, str, Stamp], bool], *, any_text: bool = False) -> None:
        """Give the lines that begin with a word to somebody, on the thread `tcp`.

        Args:
            word: in capitals; empty for lines of one word that nobody else hears.
            hearer: called with who said it, what follows the word, and when it came. False when it can't be taken now:
                it is brought again, and nothing more is read from this peer before.
            any_text: it wants lines with control characters too.
        """
        self._hearers[word] = hearer
        if any_text:
            self._any_text.add(word)

    def say(self, peer: Peer, text: str) -> None:
        """Say a line to one peer; from any thread."""
        with self._lock:
            if not peer.is_dead:
                self._send(peer, encoded(text))

    def tell(self, text: str, *, answers: int | None = None) -> None:
        """Say a line to all peers; from any thread. `answers`: the number of the answer that it is."""
        data = encoded(text)
        with self._lock:
            for peer in self._peers.values():
                self._send(peer, data)
                if answers is not None:
                    peer.due.discard(answers)

    def owe(self, peer: Peer, ask: Callable[[], int | None]) -> None:
        """Remember that an answer is due to a peer: it is told before this connection is closed.

        Args:
            peer: whose line is to be answered.
            ask: brings the line to whoever answers, and gives the answer's number; None when there will be none. No
                line is told meanwhile.
        """
        with self._lock:
            number = ask()
            if number is not None and self._greeting:  # else nobody speaks here
                peer.due.add(number)

    def greet(self, text: str) -> None:
        """Say a line to all peers, and to each that connects from now on, in place of the one with the same first word.

        From any thread; whoever connects meanwhile hears the newest last.
        """
        with self._lock:
            self._greeting[text.partition(" ")[0]] = text
            self.tell(text)

    def drop(self, peer: Peer, reason: str) -> None:
        """Close a connection as soon as the answers due on it are told, and say why; from the thread `tcp`."""
        log_event(log, "tcp_refused", logging.WARNING, peer=peer.name, reason=reason)
        self._dismiss(peer, reason)

    def hold(self) -> None:
        """Keep it open until one more `close`."""
        with self._lock:
            self._holders += 1

    def close(self) -> None:
        """Let go of it; the last one ends it."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        self._ring()
        self._thread.join()

    def _dismiss(self, peer: Peer, reason: str) -> None:
        self.say(peer, f"REFUSED {reason}")
        if not peer.due:
            self._forget(peer)
        else:
            peer.leave(LINGER_S)

    def _ring(self) -> None:
        with self._lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def _send(self, peer: Peer, data: bytes) -> None:
        """Send now what the network takes; the rest waits for it to take more. The lock is held."""
        if len(peer.outbox) + len(data) > OUT_BYTES:
            if not peer.unread:
                log_event(log, "tcp_unread", logging.ERROR, peer=peer.name)
            peer.unread += 1
            return
        had = bool(peer.outbox)
        peer.outbox += data
        if not had:
            self._flush(peer)
            if peer.outbox or peer.is_dead:
                self._ring()

    def _flush(self, peer: Peer) -> None:
        try:
            while peer.outbox:
                del peer.outbox[: peer.sock.send(peer.outbox)]
            peer.unread = 0
        except BlockingIOError:
            pass
        except OSError:
            peer.is_dead = True

    def _run(self) -> None:
        try:
            while self._holders:
                self._turn()
        except Exception:  # our bug: nobody is heard any more, and connections that are closed say so
            log.exception("bug")
        finally:
            for peer in list(self._peers.values()):
                self._forget(peer)
            with self._lock:
                os.close(self._bell)
                self._bell = -1
            self._selector.close()
            self._listener.close()

    def _turn(self) -> None:
        self._looked_s = time.monotonic()
        found = self._selector.select(0)
        if not found:
            self._idle_s = self._looked_s
            for peer in self._peers.values():
                peer.empty_s = peer.empty_s if peer.is_held else self._looked_s
            found = self._selector.select(self._wait_s())
        ready = {key.fd: events for key, events in found}
        if ready.pop(self._bell, 0):
            os.eventfd_read(self._bell)
        known = list(self._peers.values())  # nobody has looked yet at what those who come now have sent
        if not ready.pop(self._listener.fileno(), 0):
            self._idle_s = self._looked_s
        else:
            any(not self._accept() for _ in range(BACKLOG))
        for peer in known:
            self._serve_safely(peer, ready.get(peer.sock.fileno(), 0))

    def _serve_safely(self, peer: Peer, events: int) -> None:
        try:
            self._serve(peer, events)
        except Exception:  # our bug, at one line of one peer; the others are served
            log.exception("bug")
            self.drop(peer, "internal error")

    def _wait_s(self) -> float:
        """Until a line is brought again, or one without an end has waited long enough; never long."""
        peers = self._peers.values()
        if any(peer.is_held for peer in peers):
            return HELD_S
        began = [peer.partial_since for peer in peers if peer.partial_since is not None]
        return min(LOOK_S, max(0.0, min(began) + PARTIAL_S - time.monotonic())) if began else LOOK_S

    def _serve(self, peer: Peer, events: int) -> None:
        with self._lock:
            if events & selectors.EVENT_WRITE:
                self._flush(peer)
        if not (peer.is_dead or peer.has_ended) and (peer.is_held or events & selectors.EVENT_READ):
            self._read(peer)
        else:
            peer.empty_s = self._looked_s
        if peer.partial_since is not None and time.monotonic() >= peer.partial_since + PARTIAL_S:
            self.drop(peer, f"a line without its end for {PARTIAL_S:g} s")
        if not (peer.has_spoken or peer.is_over or self._greeting) and time.monotonic() >= peer.since_s + SILENT_S:
            self.drop(peer, f"no line for {SILENT_S:g} s")
        if peer.is_dead or self._has_left(peer):
            self._forget(peer)
        elif peer.sock.fileno() >= 0:
            hears = not (peer.is_held or peer.has_ended)
            self._watch(peer, selectors.EVENT_READ * hears | selectors.EVENT_WRITE * bool(peer.outbox))

    def _has_left(self, peer: Peer) -> bool:
        if peer.leaves_s is None:
            return False
        with self._lock:
            return not (peer.due or peer.outbox) or time.monotonic() >= peer.leaves_s

    def _watch(self, peer: Peer, events: int) -> None:
        known = self._selector.get_map().get(peer.sock.fileno())
        if known is None and events:
            self._selector.register(peer.sock, events)
        elif known is not None and not events:
            self._selector.unregister(peer.sock)
        elif known is not None and known.events != events:
            self._selector.modify(peer.sock, events)

    def _read(self, peer: Peer) -> None:
        if not peer.is_held:
            before_s = time.monotonic()
            try:
                data = peer.sock.recv(READ_BYTES)
            except BlockingIOError:
                peer.empty_s = before_s
                return
            except OSError:
                peer.is_dead = True
                return
            if not data:
                if peer.inbox:
                    log_event(log, "tcp_cut", logging.WARNING, peer=peer.name, reason="a line without its end")
                peer.has_ended = True
                peer.leave(ANSWERS_S)
                return
            if peer.leaves_s is not None:
                return
            peer.inbox += data
            peer.arrived = Stamp.now()
            peer.lay_s = time.monotonic() - peer.empty_s
            if len(data) < READ_BYTES:  # that was all; else there may be more, as old
                peer.empty_s = before_s
        self._take(peer, peer.arrived)

    def _take(self, peer: Peer, at: Stamp) -> None:
        """Bring each whole line; what is left is the beginning of one."""
        lines = peer.inbox.replace(b"\r", b"\n").split(b"\n")
        rest = lines.pop()
        peer.is_held = False
        while lines and not peer.is_over and not peer.is_held:
            peer.is_held = not self._bring(peer, bytes(lines[0]), at)
            if not peer.is_held:
                lines.pop(0)
        peer.inbox = bytearray(b"" if peer.is_over else b"\n".join([*lines, rest]))
        if peer.is_over or peer.is_held or not rest:
            peer.partial_since = None
        elif len(rest) > LINE_BYTES:
            self.drop(peer, f"a line of more than {LINE_BYTES} bytes")
        elif peer.partial_since is None:
            peer.partial_since = time.monotonic()

    def _bring(self, peer: Peer, line: bytes, at: Stamp) -> bool:
        """One line to its hearer; False when that can't take it now."""
        text = decoded(line)
        if text is None:
            self.drop(peer, NO_LINE)
            return True
        if not text:
            return True
        word, _, rest = text.partition(" ")
        known = word.upper()
        if known not in self._hearers and not rest:
            known, rest = "", word
        hearer = self._hearers.get(known)
        if known not in self._any_text and not is_printable(text):
            self.drop(peer, NO_LINE)
            return True
        if hearer is None:
            self.drop(peer, f"unknown line: {text[:40]}")
            return True
        peer.has_spoken = True
        return hearer(peer, rest.strip(" "), at)

    def _pong(self, peer: Peer, rest: str, at: Stamp) -> bool:
        del at
        self.say(peer, f"PONG {rest}".rstrip())
        return True

    def _accept(self) -> bool:
        """One who waits; False when nobody does."""
        before_s = time.monotonic()
        try:
            sock, address = self._listener.accept()
        except BlockingIOError:
            self._idle_s = before_s
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # it stays in the listener's queue: not to try all the time
                time.sleep(HELD_S)
            return False
        peer = Peer(f"{address[0]}:{address[1]}", str(address[0]), sock, empty_s=self._idle_s)
        sock.setblocking(False)
        keep_alive(sock)
        if self._make_room(peer):
            with self._lock:  # what changes meanwhile is said after the greeting
                self._peers[sock.fileno()] = peer
                for line in self._greeting.values():
                    self.say(peer, line)
            self._watch(peer, selectors.EVENT_READ)
        else:
            self._dismiss(peer, TOO_MANY)
        return True

    def _make_room(self, peer: Peer) -> bool:
        """Send the oldest silent one away where it is needed; False when all have spoken. A crowd is told once."""
        rivals = [other for other in self._peers.values() if other.address == peer.address]
        if len(rivals) < PEERS_PER_ADDRESS:
            rivals = list(self._peers.values())
            if len(rivals) < PEERS:
                self._is_crowded = False
                return True
        silent = next((other for other in rivals if not (other.has_spoken or other.is_over)), None)
        if not self._is_crowded:
            self._is_crowded = True
            gone = (silent or peer).name
            log_event(log, "tcp_crowded", logging.WARNING, peers=len(self._peers), newcomer=peer.name, closed=gone)
        if silent is not None:
            self._dismiss(silent, TOO_MANY)
        return silent is not None

    def _forget(self, peer: Peer) -> None:
        with self._lock:
            peer.is_dead = True
            if peer.sock.fileno() < 0:
                return
            self._peers.pop(peer.sock.fileno(), None)
            if peer.sock.fileno() in self._selector.get_map():
                self._selector.unregister(peer.sock)
            peer.partial_since, peer.is_held = None, False
            peer.sock.close()
