"""The outbox's end of a connection: what goes next, what is under way, and what its answer means.

Messages go in the order of their numbers; only one that the broker refused comes later than those behind it. A message
leaves the outbox after a PUBACK with a good reason code. What was under way when a connection was lost is simply taken
from the outbox again.

A PUBACK is not delivery: the broker may die with the message in its memory (shared notes on MQTT, section 0; `kill -9`
of mosquitto lost 200 of 200). So what was acknowledged in the last `RESEND_S` before a connection broke is sent once
more on the next one; consumers remove repeats by `rec`.

A new connection starts with one message under way and allows one more with each answer, as TCP does: on a link that is
cut every few kilobytes a full window is sent again and again, and its answers are lost with the connection.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from typing import Literal, Protocol

from agent.journal import Outbox, OutboxRow
from agent.publisher import words
from agent.publisher.lanes import Admission, Failure, Lanes, Outcome
from agent.publisher.link import GOOD_BELOW, Ack, Link
from agent.publisher.pace import Pace
from agent.publisher.report import Report, tell
from agent.publisher.words import Trouble

__all__ = ["Drain", "TellEvent"]

BATCH_ROWS = 100
MAX_FLYING_BYTES = 4 << 20
LOSSES_TO_SUSPECT = 3
ABOUT_ONE_MESSAGE = frozenset({0x90, 0x95, 0x99})
"""Topic name invalid, packet too large, payload format invalid (MQTT 5.0, section 3.4.2.1)."""

RESEND_S = 10.0
"""Longer than a broker takes to hand a message on to who is there, short enough that a flapping link repeats little."""

RESEND_ROWS = 2_000

NO_SUBSCRIBERS = 0x10


class TellEvent(Protocol):
    """`Journal.event`: something that a person should know of."""

    def __call__(
        self, name: str, severity: Literal["info", "warning", "alarm"], text: str, /, **data: str | float | bool | None
    ) -> object:
        """Record it."""


@dataclasses.dataclass(slots=True)
class _Flight:
    row: OutboxRow
    size_bytes: int
    sent_at: float


class Drain:
    """Sends what waits, over one link after another.

    Args:
        outbox: where messages wait.
        window: messages under way at once.
        backlog_rate_hz: see `Pace`.
        report: counters, and what is held.
        tell_event: records what a person should know of.
    """

    def __init__(
        self, outbox: Outbox, *, window: int, backlog_rate_hz: float, report: Report, tell_event: TellEvent
    ) -> None:
        self._outbox = outbox
        self._configured_window = self._widest = window
        self._window = 1
        self._report = report
        self._tell_event = tell_event
        self._lanes = Lanes()
        self._pace = Pace(backlog_rate_hz)
        self._flying: dict[int, _Flight] = {}
        self._flying_bytes = 0
        self._alone: int | None = None
        self._queue: deque[OutboxRow] = deque()
        self._cursor = 0
        self._highest = 0
        self._more = True
        self._acked: list[int] = []
        self._recent: deque[tuple[float, OutboxRow]] = deque(maxlen=RESEND_ROWS)
        self._again: deque[OutboxRow] = deque()
        self._repeated: set[int] = set()
        self._struck, self._strikes = 0, 0
        self._paced = False
        self._answered_at = 0.0

    def begin(self, link: Link) -> None:
        """A new connection: start from the outbox's first message."""
        self._widest = max(1, min(self._configured_window, link.limits.receive_max - 1))  # one is for the status
        self._window = 1
        self._forget_flights()

    def start_over(self) -> None:
        """After trouble with the journal: look at everything again that is not under way."""
        self._rewind(0)

    def birth_accepted(self) -> None:
        """The broker took the status on this connection."""
        self._lanes.birth_accepted()

    def look_again(self) -> None:
        """There may be new messages."""
        self._more = True

    @property
    def idle(self) -> bool:
        """Nothing is under way and nothing may go now."""
        return not self._flying and not self._again and not self._queue and not self._more

    @property
    def waiting_since(self) -> float | None:
        """Since when the broker owes us an answer, in monotonic seconds; None when it doesn't."""
        oldest = next((flight.sent_at for flight in self._flying.values()), None)
        return None if oldest is None else max(oldest, self._answered_at)

    def next_turn(self, now: float) -> float | None:
        """When `pump` has something to do without being woken; None: when woken."""
        times = []
        if not self._flying and (due := self._lanes.next_due()) is not None:
            times.append(due)
        if self._paced:
            times.append(self._pace.next_token_at(now))
        return min(times, default=None)

    def pump(self, link: Link, now: float) -> None:
        """Send what may go now.

        Raises:
            JournalError: the outbox can't be read.
        """
        if now >= self._pace.measure_at:
            self._pace.measure(self._outbox.depth() - len(self._acked), now)
        while (
            link.trouble is None
            and len(self._flying) < self._window
            and self._flying_bytes < MAX_FLYING_BYTES
            and (row := self._next(now)) is not None
        ):
            self._send(link, row, now)

    def _next(self, now: float) -> OutboxRow | None:
        self._paced = False
        if self._alone is not None:
            return None
        suspect = self._lanes.due(now)
        if suspect is not None:
            if self._flying:
                return None
            self._alone = suspect.seq
            return suspect
        while waiting := self._again or (self._queue if self._queue or self._refill() else None):
            row = waiting[0]
            admission = self._lanes.admit(row, in_flight=self._is_flying(row.kind))
            self._paced = admission is Admission.GO and not self._pace.allows(row.created_ms, now)
            if self._paced or admission is Admission.WAIT:
                return None
            waiting.popleft()
            if admission is Admission.GO:
                return row
        return None

    def _is_flying(self, kind: str) -> bool:
        """Only asked where it matters: it looks through all that is under way."""
        return self._lanes.cautious(kind) and any(flight.row.kind == kind for flight in self._flying.values())

    def _refill(self) -> bool:
        while self._more and not self._queue:
            rows = self._outbox.pending(after=self._cursor, limit=BATCH_ROWS)
            self._more = len(rows) == BATCH_ROWS
            if rows:
                self._cursor = rows[-1].seq
                self._queue.extend(rows if rows[0].seq > self._highest else self._not_under_way(rows))
        return bool(self._queue)

    def _not_under_way(self, rows: tuple[OutboxRow, ...]) -> list[OutboxRow]:
        """Without those in flight, those just acknowledged, and those that try again on their own."""
        known = {flight.row.seq for flight in self._flying.values()} | set(self._acked) | self._lanes.suspected
        return [row for row in rows if row.seq not in known]

    def _rewind(self, cursor: int) -> None:
        self._queue.clear()
        self._cursor = min(self._cursor, cursor)
        self._more = True

    def _send(self, link: Link, row: OutboxRow, now: float) -> None:
        """Publish with QoS 1 whatever the row says: without a PUBACK it could never leave the outbox."""
        payload = self._outbox.payload(row)
        if payload is None:  # the picture was evicted meanwhile, which was an event then
            self._done(row)
            self._lanes.forget(row)
            return self._after_change()
        excess = link.excess(row.topic, payload, row.content_type)
        if excess is not None:
            return self._too_large(row, excess, now)
        try:
            mid = link.publish(row.topic, payload, content_type=row.content_type, retain=row.retain)
        except ValueError as error:
            return self._set_aside(row, f"MQTT can't carry it ({error})")
        if mid is not None:
            self._flying[mid] = _Flight(row, len(payload), now)
            self._flying_bytes += len(payload)
            self._highest = max(self._highest, row.seq)
        return None

    def _too_large(self, row: OutboxRow, reason: str, now: float) -> None:
        """A picture yields at once; a verdict or an event waits until others prove that it is the exception."""
        if row.kind == "image":
            self._set_aside(row, reason)
        else:
            self._failed(row, "refused alone", reason, now)

    def settle(self, ack: Ack, now: float) -> None:
        """Take the broker's answer to one message.

        Raises:
            JournalError: the outbox can't be written.
        """
        flight = self._flying.pop(ack.mid, None)
        if flight is None:
            return
        self._flying_bytes -= flight.size_bytes
        self._answered_at = now
        if ack.code < GOOD_BELOW:
            self._accepted(flight.row, ack, now)
        else:
            self._report.refused += 1
            how: Failure = "refused alone" if ack.code in ABOUT_ONE_MESSAGE else "refused"
            self._failed(flight.row, how, words.refusal(ack.code, ack.name), now)

    def _accepted(self, row: OutboxRow, ack: Ack, now: float) -> None:
        self._report.published += 1
        self._window = min(self._widest, self._window + 1)
        if row.seq not in self._repeated:  # once more is enough: a link that breaks all the time must get on
            self._recent.append((now, row))
        self._done(row)
        if ack.code == NO_SUBSCRIBERS:
            if self._report.unheard == 0:
                tell("nobody_listens", topic=row.topic, note="no subscriber matched; further ones are counted only")
            self._report.unheard += 1
        if self._lanes.accepted(row):
            self._after_change()
            self._say_opened(row.kind)

    def _done(self, row: OutboxRow) -> None:
        """It left the outbox, as far as the broker goes."""
        if self._alone == row.seq:
            self._alone = None
        if row.seq in self._repeated:
            self._repeated.discard(row.seq)
        else:
            self._acked.append(row.seq)
            self._pace.left()

    def _failed(self, row: OutboxRow, how: Failure, reason: str, now: float) -> None:
        if self._alone == row.seq:
            self._alone = None
        outcome = self._lanes.failed(row, how, reason, now)
        self._after_change()
        if outcome is Outcome.SET_ASIDE:
            self._set_aside(row, reason)
        elif outcome is Outcome.LANE_HELD:
            self._say_held(row, reason)

    def _set_aside(self, row: OutboxRow, reason: str) -> None:
        if self._alone == row.seq:
            self._alone = None
        if row.seq in self._repeated:  # it was acknowledged once, and left the outbox then
            self._repeated.discard(row.seq)
        else:
            self._outbox.set_aside(row.seq, reason)
            self._pace.left()
            self._report.set_aside += 1
        self._lanes.forget(row)
        self._after_change()

    def _after_change(self) -> None:
        """A lane may have opened: what waited in it comes from the outbox again, in order."""
        first = self._lanes.take_rewind()
        if first is not None:
            self._rewind(first - 1)
        self._report.held = self._lanes.held

    def _say_held(self, row: OutboxRow, reason: str) -> None:
        hint = "nothing is lost; they go out when the broker takes them again"
        tell("publishing_refused", logging.WARNING, kind=row.kind, topic=row.topic, reason=reason, hint=hint)
        text = f"the broker does not take {row.kind}s: {reason}"
        self._tell_event("publishing_refused", "alarm", text, kind=row.kind, topic=row.topic)

    def _say_opened(self, kind: str) -> None:
        tell("publishing_resumed", kind=kind)
        self._tell_event("publishing_resumed", "info", f"the broker takes {kind}s again", kind=kind)

    def lost(self, trouble: Trouble, now: float) -> None:
        """The connection is gone: learn from what was under way, and start anew with the next one."""
        head = next((flight.row for flight in self._flying.values()), None)
        alone, flying = self._alone, len(self._flying)
        self._plan_repeats()
        self._forget_flights()
        if head is None or not _blames(trouble, head):
            return
        if flying == 1 and head.seq == alone:
            self._failed(head, "silent" if trouble.cause == "silent" else "cut", trouble.words, now)
            return
        self._strikes = self._strikes + 1 if head.seq == self._struck else 1
        self._struck = head.seq
        if self._strikes >= LOSSES_TO_SUSPECT or trouble.cause == "silent":
            self._lanes.suspect(head)

    def _plan_repeats(self) -> None:
        """What the broker acknowledged last may have died with it: it goes once more, before everything else."""
        under_way = [flight.row for flight in self._flying.values() if flight.row.seq in self._repeated]
        last = self._recent[-1][0] if self._recent else 0.0
        fresh = [row for acked_at, row in self._recent if acked_at >= last - RESEND_S]
        self._recent.clear()
        rows = {row.seq: row for row in [*under_way, *self._again, *fresh]}
        self._again = deque(rows[seq] for seq in sorted(rows))
        self._repeated = set(rows)

    def _forget_flights(self) -> None:
        self._flying.clear()
        self._flying_bytes = 0
        self._alone = None
        self._rewind(0)

    def flush(self) -> None:
        """Tell the journal what was acknowledged since the last call.

        Raises:
            JournalError: the journal can't be written; what was to be told is kept for the next time.
        """
        if self._acked:
            self._outbox.acknowledge(self._acked)
            self._acked = []


def _blames(trouble: Trouble, head: OutboxRow) -> bool:
    """Whether a loss may be the oldest message's doing.

    A broker that closes the link may have found it too large. One that says nothing more is more likely dead; but a
    picture may be too much for a slow link, and must not block the verdicts behind it.
    """
    return trouble.cause == "cut" or (trouble.cause == "silent" and head.kind == "image")
