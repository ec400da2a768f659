"""What the publisher says of itself: counters, the link's state, and one log line for a loss and one for its end."""

from __future__ import annotations

import collections
import dataclasses
import logging
import time
from typing import Any

from agent.log import log_event
from agent.messages import rfc3339
from agent.publisher.words import Trouble

__all__ = ["LinkState", "Report"]

UNSTEADY_LOSSES = 4
UNSTEADY_WINDOW_S = 60.0

log = logging.getLogger("agent.publisher")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """The link to the broker at one moment.

    Attributes:
        connected: the broker has accepted us.
        protocol: `5`, `3.1.1`, or empty before the first connection.
        since: RFC 3339, when it became so.
        error: the last trouble in words, kept after it is over; empty when there was none.
        problem: what is wrong now, in words, or None: no connection, or messages that the broker does not take.
        counters: `published`, `refused`, `set_aside`, `reconnects`, `unheard` (nobody had subscribed), `bugs`.
    """

    connected: bool
    protocol: str
    since: str
    error: str
    problem: str | None
    counters: dict[str, int]


class Report:
    """Written by the publisher's thread alone; `state` may be read by any.

    Attributes:
        held: kinds of message that the broker does not take now, with its reason.
        deaf: why no command can be heard now, in words, or None; also before the first try to connect.
        status_refused: why the broker did not take the last status, or empty.
        turned_at: the thread's last sign of life, monotonic seconds.
    """

    def __init__(self) -> None:
        self.published = 0
        self.refused = 0
        self.set_aside = 0
        self.reconnects = 0
        self.unheard = 0
        self.bugs = 0
        self.held: dict[str, str] = {}
        self.deaf: str | None = None
        self.status_refused = ""
        self.turned_at = time.monotonic()
        self._connected = False
        self._protocol = ""
        self._since_ms = _now_ms()
        self._error = ""
        self._down_since: float | None = time.monotonic()
        self._told: set[str] = set()
        self._losses: collections.deque[float] = collections.deque(maxlen=UNSTEADY_LOSSES)
        self._quiet = False

    @property
    def connected(self) -> bool:
        """The broker has accepted us."""
        return self._connected

    @property
    def held_in_words(self) -> str | None:
        """What the broker does not take now, or None."""
        return "; ".join(f"the broker does not take {kind}s: {why}" for kind, why in self.held.items()) or None

    def state(self) -> LinkState:
        """The link as it is now."""
        down = None if self._connected else f"no broker: {self._error or 'connecting'}"
        return LinkState(
            connected=self._connected,
            protocol=self._protocol,
            since=rfc3339(self._since_ms),
            error=self._error,
            problem=down or self.held_in_words,
            counters=self.counters(),
        )

    def counters(self) -> dict[str, int]:
        """See `LinkState`."""
        names = ("published", "refused", "set_aside", "reconnects", "unheard", "bugs")
        return {name: getattr(self, name) for name in names}

    def up(self, protocol: str, broker: str) -> None:
        """The broker has accepted us."""
        seconds = 0.0 if self._down_since is None else time.monotonic() - self._down_since
        if self._protocol:
            self.reconnects += 1
        self._connected, self._protocol, self._since_ms, self._down_since = True, protocol, _now_ms(), None
        self.deaf = None
        self._told.clear()
        if not self._quiet:
            tell("broker_connected", broker=broker, protocol=f"MQTT {protocol}", after_s=round(seconds, 1))

    def down(self, trouble: Trouble) -> None:
        """A connection ended, or could not be made: said once per outage, and again only what a person must mend."""
        now = time.monotonic()
        if self._quiet and now - self._losses[-1] > UNSTEADY_WINDOW_S:  # not unsteady any more: away
            self._quiet = False
            self._told.clear()
        first = not self._told
        if self._connected:
            self._since_ms = _now_ms()
            self._losses.append(now)
            self._watch_unsteady()
        self._connected = False
        self._down_since = now if self._down_since is None else self._down_since
        self._error = trouble.words
        self.deaf = f"no connection to the broker ({trouble.words})"
        if trouble.words not in self._told and (first or trouble.cause in {"refused", "taken over"}):
            self._told.add(trouble.words)
            if not self._quiet:
                tell("broker_lost", logging.WARNING, reason=trouble.words, hint=trouble.hint)

    def left(self) -> None:
        """We said goodbye ourselves."""
        self._connected, self._since_ms, self._down_since = False, _now_ms(), time.monotonic()

    def _watch_unsteady(self) -> None:
        """Four losses within a minute: from now on they are counted, not logged, or they would fill the disk."""
        full = len(self._losses) == UNSTEADY_LOSSES
        if full and self._losses[-1] - self._losses[0] < UNSTEADY_WINDOW_S and not self._quiet:
            self._quiet = True
            hint = "does another client use our client id? else check network and broker"
            tell("broker_unsteady", logging.WARNING, losses=UNSTEADY_LOSSES, within_s=UNSTEADY_WINDOW_S, hint=hint)

    def tick(self) -> None:
        """Call it now and then while connected: says when an unsteady link has held for a minute."""
        if self._quiet and time.monotonic() - self._losses[-1] > UNSTEADY_WINDOW_S:
            self._quiet = False
            tell("broker_steady", reconnects=self.reconnects)


def tell(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event of the publisher's; fields without a value are left out."""
    log_event(log, event, level, **{key: value for key, value in fields.items() if value is not None})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
