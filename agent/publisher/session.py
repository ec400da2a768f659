"""One connection served: birth, messages, status and metrics, until the link is lost or a stop is asked for."""

from __future__ import annotations

import logging
import time

from agent.commands import Commands
from agent.config import MqttConfig
from agent.errors import JournalError
from agent.journal import Outbox
from agent.publisher import words
from agent.publisher.drain import Drain
from agent.publisher.face import JSON, Face
from agent.publisher.link import GOOD_BELOW, Ack, Link
from agent.publisher.orders import Orders
from agent.publisher.report import Report, tell
from agent.publisher.words import Trouble

__all__ = ["Session"]

CARE_S = 0.5
"""How often the keep-alive and late answers are looked after."""

LEAST_ANSWER_S = 10.0
"""The next PUBACK may take this long, or twice the keep-alive if that is longer."""

STATUS_RETRY_S = 30.0
JOURNAL_RETRY_S = 1.0
GOODBYE_S = 1.0


class Session:
    """Serves one link that is ready.

    Args:
        link: the broker has accepted us on it.
        outbox: rings when new messages were committed.
        drain: sends them.
        face: status and metrics.
        orders: from other threads.
        report: counters.
        config: periods.
        commands: whose replies are sent.
    """

    def __init__(
        self,
        link: Link,
        *,
        outbox: Outbox,
        drain: Drain,
        face: Face,
        orders: Orders,
        report: Report,
        config: MqttConfig,
        commands: Commands | None = None,
    ) -> None:
        self._link, self._outbox, self._drain, self._face = link, outbox, drain, face
        self._orders, self._report, self._commands = orders, report, commands
        self._reply_mids: set[int] = set()
        self._answer_s = max(LEAST_ANSWER_S, 2.0 * config.keepalive_s)
        self._metrics_s = config.metrics_s
        self._metrics_at = self._care_at = time.monotonic()
        self._status_mid: int | None = None
        self._status_sent_at = 0.0
        self._status_retry_at: float | None = None
        self._born = False
        self._told_held: str | None = None
        self._journal_at = 0.0
        self._journal_error = ""

    def run(self) -> Trouble | None:
        """Serve until the link is lost (its trouble) or a stop was asked for and done (None)."""
        self._drain.begin(self._link)
        self._orders.status_due = True
        while self._link.trouble is None and self._orders.stop_at is None:
            self._turn()
        if self._link.trouble is None and self._orders.stop_at is not None:
            self._leave(self._orders.stop_at)
            return self._end(None)
        return self._end(self._link.trouble)

    def _turn(self, until: float | None = None) -> None:
        """Wait for something to happen, and do what follows from it."""
        now = time.monotonic()
        pause = self._pause(now) if until is None else min(self._pause(now), until - now)
        if self._link.wait(pause, self._orders.fileno(), self._outbox.wake_fd):
            self._orders.hear()
            self._outbox.drain_wake()
            self._drain.look_again()
        now = self._report.turned_at = time.monotonic()
        self._take_answers(now)
        if now >= self._care_at:
            self._take_care(now)
        self._speak(now)
        self._move(now)

    def _pause(self, now: float) -> float:
        times = [self._care_at]
        next_turn = self._drain.next_turn(now) if self._born else None
        if next_turn is not None:
            times.append(max(next_turn, self._journal_at))
        if self._metrics_s and not self._link.wants_write:
            times.append(self._metrics_at)
        return max(0.0, min(times) - now)

    def _take_answers(self, now: float) -> None:
        for ack in self._link.take_acks():
            if ack.mid in self._reply_mids:
                self._reply_mids.discard(ack.mid)
                continue
            if ack.mid == self._status_mid:
                self._status_answered(ack, now)
                continue
            try:
                self._drain.settle(ack, now)
            except JournalError as error:
                self._journal_failed(error, now)

    def _take_care(self, now: float) -> None:
        """Notice a link that is dead or deaf."""
        self._care_at = now + CARE_S
        if self._link.trouble is not None:
            return
        self._link.keep_alive()
        self._report.tick()
        status_since = None if self._status_mid is None else self._status_sent_at
        waiting = [since for since in (self._drain.waiting_since, status_since) if since is not None]
        if waiting and now - min(waiting) > self._answer_s:
            self._link.abandon(words.silent("the broker acknowledged nothing", self._answer_s))

    def _speak(self, now: float) -> None:
        """Publish status and metrics when they are due."""
        if self._told_held != self._report.held_in_words:
            self._told_held, self._orders.status_due = self._report.held_in_words, True
        retry = self._status_retry_at is not None and now >= self._status_retry_at
        if (self._orders.status_due or retry) and self._status_mid is None:
            self._orders.status_due, self._status_retry_at = False, None
            self._publish_status(self._face.online())
            self._born = self._born or self._status_mid is None
        self._send_replies()
        # A link that is stuck gets no heap of metrics.
        if self._metrics_s and now >= self._metrics_at and not self._link.wants_write and self._link.trouble is None:
            self._metrics_at = now + self._metrics_s
            numbers = self._face.numbers()
            if numbers is not None:
                self._link.publish(self._face.metrics_topic, numbers, content_type=JSON, qos=0)

    def _send_replies(self) -> None:
        """A reply that gets lost with the link is asked for again."""
        if self._link.deaf and self._report.deaf is None:
            self._report.deaf = f"the broker does not let us subscribe to the commands: {self._link.deaf}"
            tell("commands_not_heard", logging.ERROR, reason=self._report.deaf)
        for reply in [] if self._commands is None or self._link.trouble is not None else self._commands.replies():
            mid = self._link.publish(reply.topic, reply.payload, content_type=JSON, correlation=reply.correlation)
            if mid is not None:
                self._reply_mids.add(mid)

    def _publish_status(self, payload: bytes | None) -> None:
        if payload is not None and self._link.trouble is None:
            self._status_mid = self._link.publish(self._face.status_topic, payload, content_type=JSON, retain=True)
            self._status_sent_at = time.monotonic()

    def _status_answered(self, ack: Ack, now: float) -> None:
        self._status_mid, self._born = None, True
        refused = "" if ack.code < GOOD_BELOW else words.refusal(ack.code, ack.name)
        if not refused:
            self._drain.birth_accepted()
        else:
            self._report.refused += 1
            self._status_retry_at = now + STATUS_RETRY_S
        if refused and refused != self._report.status_refused:
            tell("status_refused", logging.WARNING, topic=self._face.status_topic, reason=refused)
        self._report.status_refused = refused

    def _move(self, now: float) -> None:
        """Send messages once the birth is acknowledged: it comes first, and proves that the broker takes something."""
        if now < self._journal_at:
            return
        try:
            if self._born and self._link.trouble is None:
                self._drain.pump(self._link, now)
            self._drain.flush()
        except JournalError as error:
            self._journal_failed(error, now)

    def _journal_failed(self, error: JournalError, now: float) -> None:
        """The disk's trouble is not the broker's: keep the link, and try the outbox again in a while."""
        self._journal_at = now + JOURNAL_RETRY_S
        self._drain.start_over()
        if str(error) != self._journal_error:
            self._journal_error = str(error)
            tell("outbox_failed", logging.ERROR, reason=error.message, hint=error.hint)

    def _leave(self, stop_at: float) -> None:
        """Send what can be sent in time, say `offline` ourselves (no will is published then), and go."""
        now = time.monotonic()
        last = stop_at - min(GOODBYE_S, max(0.0, stop_at - now) / 3)
        while self._link.trouble is None and not (self._born and self._drain.idle) and time.monotonic() < last:
            self._turn(last)
        self._publish_status(self._face.offline("stopped"))
        while self._link.trouble is None and self._status_mid is not None and time.monotonic() < stop_at:
            self._link.wait(stop_at - time.monotonic())
            self._take_answers(time.monotonic())
        if self._link.trouble is None:
            self._link.goodbye(max(0.1, stop_at - time.monotonic()))

    def _end(self, trouble: Trouble | None) -> Trouble | None:
        """Keep what the last answers say; `trouble` is None when we left ourselves."""
        now = time.monotonic()
        self._take_answers(now)
        try:
            if trouble is not None:
                self._drain.lost(trouble, now)
            self._drain.flush()
        except JournalError as error:
            self._journal_failed(error, now)
        return trouble
