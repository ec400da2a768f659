"""A line of text is a part: from a PLC, or from a bar code reader whose code is the part's id.

```text
TRIGGER [id]      a part; without an id one is made up
id                the same, as a bar code reader sends it: one word, and none of those that begin another line
PING [text]       answered with PONG [text]
```

`agent.outputs.tcp` has what is answered.
"""

from __future__ import annotations

import logging

from agent.config import TcpTriggerConfig
from agent.frame import Fault, Part, Stamp
from agent.log import log_event
from agent.triggers.lines import LineServer, Peer
from agent.triggers.queue import TriggerQueue, TriggerWatcher

__all__ = ["TcpTrigger"]

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
        self.server.hear("TRIGGER", self._trigger)
        self.server.hear("", self._trigger)

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

    def _trigger(self, peer: Peer, part_id: str, at: Stamp) -> bool:
        """On the server's thread. False holds the peer back while the line owes too many refusals."""
        if self._queue.is_held_back:
            return False
        if self._is_sender(peer):
            self._queue.offer(part_id, at)
        else:
            others = ", ".join(other.name for other in self._senders)
            limit = f"trigger.senders: {self._config.senders}"
            self._queue.refuse(part_id, at, f"refused: {peer.name} may not trigger while {others} may ({limit})")
        if self._queue.is_closed:
            self.server.say(peer, "REFUSED the line has stopped")
        return True

    def _is_sender(self, peer: Peer) -> bool:
        self._senders = [other for other in self._senders if not other.is_dead]
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
