"""A line of text is a part: from a PLC, or from a bar code reader whose code is the part's id.

```text
TRIGGER [id]      a part; without an id one is made up
id                the same, as a bar code reader sends it: one word, and none of those that begin another line
PING [text]       answered with PONG [text]
```

`agent.outputs.tcp` has what is answered. An id with control characters in it is answered as a part of another, made up
id whose result is `error`.
"""

from __future__ import annotations

import errno
import logging

from agent.config import TcpTriggerConfig
from agent.errors import ConfigError
from agent.frame import Fault, Part, Stamp
from agent.log import log_event
from agent.triggers.ids import cleaned_id
from agent.triggers.lines import LineServer
from agent.triggers.peer import Peer, is_printable
from agent.triggers.queue import TriggerQueue, TriggerWatcher

__all__ = ["TcpTrigger"]

UNREAD_S = 0.25
"""A line that may have lain unread for longer has no moment: the server looks more often, unless it stood still."""

log = logging.getLogger("agent.triggers")


class TcpTrigger:
    """Triggers from `senders` connections at the same time; the first ones that bring one are those.

    A trigger of any other connection is refused, with its verdict. One from the same address as a sender takes that
    one's place, whose connection is closed: a PLC that was restarted comes back before its old connection is dead.

    Args:
        config: where to listen.

    Attributes:
        server: an output on the same address says its lines there.

    Raises:
        ConfigError: the address can't be had.
    """

    def __init__(self, config: TcpTriggerConfig) -> None:
        self._config = config
        self._queue = TriggerQueue(kind=config.kind, prefix=config.part_prefix, waiting=config.waiting)
        self._senders: list[Peer] = []
        self._is_closed = False
        self.server = LineServer("trigger", config.host, config.port)
        self.server.hear("TRIGGER", self._trigger, any_text=True)
        self.server.hear("", self._trigger, any_text=True)

    @property
    def ended(self) -> bool:
        """Closed, and all that came was given."""
        return self._queue.ended

    @property
    def lost(self) -> str | None:
        """None: a PLC that is away has no parts for us, and says so itself."""
        return None

    def watch(self, watcher: TriggerWatcher) -> None:
        """Tell the fast outputs."""
        self._queue.watch(watcher)

    def next(self, timeout_s: float) -> Part | Fault | None:
        """The next line's part, or one that was refused."""
        return self._queue.next(timeout_s)

    def close(self) -> None:
        """Refuse what still comes; the server ends with the output that shares it."""
        self._queue.close()
        if not self._is_closed:
            self._is_closed = True
            self.server.close()

    def is_on(self, host: str, port: int) -> bool:
        """Whether this is where it listens, by its configuration."""
        return (host, port) == (self._config.host, self._config.port)

    @property
    def host(self) -> str:
        """Where it listens, as configured."""
        return self._config.host

    def is_in_the_way(self, port: int, error: ConfigError) -> bool:
        """Whether an address could not be had because this trigger may have it, in other words."""
        cause = error.__cause__
        return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE and port == self.server.port

    def _trigger(self, peer: Peer, part_id: str, at: Stamp) -> bool:
        """On the server's thread. False holds the peer back while the line owes too many refusals."""
        if self._queue.is_held_back:
            return False
        self.server.owe(peer, lambda: self._ask(peer, part_id, at))
        if self._queue.is_closed:
            self.server.say(peer, "REFUSED the line has stopped")
        return True

    def _ask(self, peer: Peer, part_id: str, at: Stamp) -> int | None:
        """Its number in RESULT; None when the line has stopped."""
        if (reason := self._objection(peer, part_id)) is not None:
            fault = self._queue.refuse(part_id if is_printable(part_id) else None, at, reason)
            return None if self._queue.is_closed else fault.part.sequence
        asked = self._queue.offer(part_id, at)
        sequence = asked.part.sequence if isinstance(asked, Fault) else asked.sequence
        return None if self._queue.is_closed else sequence

    def _objection(self, peer: Peer, part_id: str) -> str | None:
        """Why the part that lies there can't be judged; None when it can."""
        if not is_printable(part_id):  # it may be a stranger: it takes nobody's place
            return f"refused: no id has control characters ({cleaned_id(part_id)[:40]})"
        if not self._is_sender(peer):
            others = ", ".join(other.name for other in self._senders)
            limit = f"trigger.senders: {self._config.senders}"
            return f"refused: {peer.name} may not trigger while {others} may ({limit})"
        if peer.lay_s > UNREAD_S:  # of any moment since then; what the camera sees now may be another part
            return f"it lay unread for up to {peer.lay_s * 1_000:.0f} ms: its picture can't be told"
        return None

    def _is_sender(self, peer: Peer) -> bool:
        self._senders = [other for other in self._senders if not other.is_over]
        if peer in self._senders:
            return True
        if len(self._senders) >= self._config.senders:
            before = next((other for other in self._senders if other.address == peer.address), None)
            if before is None:
                return False
            self._senders.remove(before)
            self.server.drop(before, f"{peer.name} triggers in its place")
        log_event(log, "tcp_sender", peer=peer.name)
        self._senders.append(peer)
        return True
