"""Results as lines of text over TCP, to everybody who is connected.

```text
HELLO defect-agent 1                      to one who connects: the grammar's version
READY 0|1                                 whether a trigger will be taken; when it changes, and after HELLO
FAULT 0|1 [reason]                        whether the line can't judge; when it changes, and after HELLO
PART seq id                               a trigger came, its RESULT will follow
RESULT seq id decision code reason        the one result of a part
REFUSED reason                            what was sent was not taken; where it is no line of ours, we hang up
PONG [text]                               answers PING [text]

ACK seq                                   from the PLC, where `ack_ms` is set: it has the result
```

`seq` counts the triggers of this run from 1. `id` has no spaces. `decision` is ok, defect, review or error, and `code`
1, 2, 3 or 4. Lines end with CR LF and have 512 bytes at most.

Who has said a line keeps its connection. Who never did goes when 32 are connected, 16 of one address, and another one
comes: a display that only listens says `PING` once. One that ends its side (`nc` at the end of its input) still hears
the results of its parts, for 30 s at most.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from agent.config import TcpOutputConfig
from agent.errors import ConfigError
from agent.frame import Part, Stamp
from agent.triggers.ids import cleaned_id
from agent.triggers.lines import LineServer
from agent.triggers.peer import Peer
from agent.triggers.tcp import TcpTrigger
from agent.verdict import Decision

if TYPE_CHECKING:
    from agent.triggers import Trigger

__all__ = ["TcpOutput", "open_tcp_output"]

MAX_AWAITED = 1_000
"""Results whose ACK is waited for; the oldest of more counts as not acknowledged."""

GRAMMAR = 1

SAME = "give trigger.host and outputs.tcp.host the same address: they share the port then"


def open_tcp_output(config: TcpOutputConfig, trigger: Trigger) -> TcpOutput:
    """Open the output, on the trigger's server where that has the same address.

    Raises:
        ConfigError: the address can't be had.
    """
    if isinstance(trigger, TcpTrigger) and trigger.is_on(config.host, config.port):
        trigger.server.hold()
        return TcpOutput(config, trigger.server)
    try:
        return TcpOutput(config, LineServer("outputs.tcp", config.host, config.port))
    except ConfigError as error:
        if isinstance(trigger, TcpTrigger) and trigger.is_in_the_way(config.port, error):
            problem = f"is in use by our own trigger (trigger.host: {trigger.host})"
            raise ConfigError(f"outputs.tcp: {config.host} port {config.port} {problem}", hint=SAME) from error
        raise


class TcpOutput:
    """Says each result once to each connection that is there. No result waits for a PLC.

    Args:
        config: `ack_ms`.
        server: which says the lines; `close` lets go of it.
    """

    def __init__(self, config: TcpOutputConfig, server: LineServer) -> None:
        self.server = server
        self._ack_ns = int(config.ack_ms * 1e6)
        self._lock = threading.Lock()
        self._awaited: OrderedDict[int, tuple[Part, int]] = OrderedDict()
        self._unacked: str | None = None
        self._is_closed = False
        for line in (f"HELLO defect-agent {GRAMMAR}", "READY 0", "FAULT 0"):
            server.greet(line)
        server.hear("ACK", self._acked)

    @property
    def trouble(self) -> str | None:
        """Who does not read, or which result nobody acknowledged in time."""
        with self._lock:
            self._look()
            return self._unacked or self.server.trouble

    def ready(self, *, is_ready: bool) -> None:
        """Say READY."""
        self.server.greet(f"READY {is_ready:d}")

    def expect(self, part: Part) -> None:
        """Say PART."""
        self.server.tell(f"PART {part.sequence} {_word(part.id)}")

    def busy(self, part: Part) -> None:
        """Nothing: PART said it."""

    def exposing(self, *, is_exposing: bool) -> None:
        """Nothing: a network is no strobe line."""

    def result(self, part: Part, decision: str, reason: str) -> None:
        """Say RESULT."""
        code = Decision(decision).code
        if self._ack_ns:
            with self._lock:
                self._look()
                self._awaited[part.sequence] = part, time.monotonic_ns() + self._ack_ns
        self.server.tell(f"RESULT {part.sequence} {_word(part.id)} {decision} {code} {reason}", answers=part.sequence)

    def fault(self, reason: str | None) -> None:
        """Say FAULT."""
        self.server.greet("FAULT 0" if reason is None else f"FAULT 1 {reason}")

    def close(self) -> None:
        """Say that no trigger will be taken, and close the connections."""
        if not self._is_closed:
            self._is_closed = True
            self.ready(is_ready=False)
            self.server.close()

    def _acked(self, peer: Peer, rest: str, at: Stamp) -> bool:
        if not (rest.isascii() and rest.isdecimal() and len(rest) < 20):
            self.server.drop(peer, f"expected ACK and a number, got ACK {rest[:40]}")
            return True
        with self._lock:
            self._look()
            awaited = self._awaited.pop(int(rest), None)
            if awaited is not None and at.mono_ns <= awaited[1]:
                self._unacked = None
        return True

    def _look(self) -> None:
        """Results whose time is over; the lock is held."""
        now = time.monotonic_ns()
        while self._awaited:
            sequence, (part, until) = next(iter(self._awaited.items()))
            if now <= until and len(self._awaited) < MAX_AWAITED:
                return
            del self._awaited[sequence]
            ms = self._ack_ns / 1e6
            self._unacked = f"outputs.tcp: no ACK {sequence} (part {part.id}) within {ms:g} ms of its result"


def _word(part_id: str) -> str:
    return cleaned_id(part_id) or "?"
