"""One connection served: waiting for the host, births, data live and late, rebirths, goodbye."""

from __future__ import annotations

import collections
import itertools
import logging
import time
from typing import Any

from agent.commands.decode import Incoming
from agent.errors import JournalError
from agent.journal import StoredVerdict
from agent.publisher.orders import Orders
from agent.publisher.words import Trouble
from agent.sparkplug.commands import device_command, node_command
from agent.sparkplug.link import NodeLink
from agent.sparkplug.names import Topics
from agent.sparkplug.payload import DataType, Metric, Payload, encode
from agent.sparkplug.primary_host import PrimaryHost
from agent.sparkplug.tags import BDSEQ, REBIRTH, part_time_ms, part_values
from agent.sparkplug.view import View

__all__ = ["Session", "death"]

CARE_S = 0.5
AT_ONCE = 64
"""Records per turn, so that commands and the keep-alive are looked after in between."""

LATE_AT_ONCE = 256
"""Records that are read ahead for history: one query's worth."""

JOURNAL_RETRY_S = 1.0
SUBSCRIBE_S = 10.0
NOT_LIVE_S = 0.3
"""Of a stop's time this much at least is left for the goodbye."""

log = logging.getLogger("agent.sparkplug")


def death(bdseq: int, now_ms: int) -> bytes:
    """The NDEATH of the session with this number: no sequence number, and one metric."""
    metric = Metric(name=BDSEQ, timestamp_ms=now_ms, datatype=DataType.INT64, value=bdseq)
    return encode(Payload(timestamp_ms=now_ms, metrics=(metric,)))


class Session:
    """Serves one link that is ready.

    Args:
        link: the broker has accepted us on it.
        bdseq: as in its will.
        topics: where to.
        view: values, records, commands: what outlives the connection.
        orders: from other threads.
        inbox: what has come on the link, oldest first.

    Attributes:
        born: births were sent, so there was a session.
        host_left: the primary host went offline, and we left for it.
    """

    def __init__(
        self,
        link: NodeLink,
        *,
        bdseq: int,
        topics: Topics,
        view: View,
        orders: Orders,
        inbox: collections.deque[Incoming],
    ) -> None:
        self._link, self._bdseq, self._topics, self._view, self._orders = link, bdseq, topics, view, orders
        self._inbox = inbox
        self._host = PrimaryHost(view.config.primary_host_form)
        self._seq = 0
        self.born = self.host_left = False
        self._born_at = 0.0
        self._rebirth_due = False
        now = time.monotonic()
        self._care_at, self._started = now, now
        self._numbers_at = self._journal_at = 0.0
        self._tokens, self._tokens_at = 1.0, now
        self._wants_more = False
        self._late: collections.deque[StoredVerdict] = collections.deque()

    def run(self) -> Trouble | None:
        """Serve until the link is lost (its trouble), the host has left, or a stop was asked for (None)."""
        self._view.told_deaf = ""
        while self._link.trouble is None and self._orders.stop_at is None and not self.host_left:
            self._turn()
        stop_at = self._orders.stop_at or time.monotonic() + CARE_S
        if self._link.trouble is None:
            self._leave(stop_at)
        elif self.born:
            self._view.backlog.lost(time.monotonic())
        self._view.remember()
        return None if self.host_left or self._orders.stop_at is not None else self._link.trouble

    def _turn(self) -> None:
        now = time.monotonic()
        if self._link.wait(self._pause(now), self._orders.fileno()):
            self._orders.hear()
        now = time.monotonic()
        self._view.turned_at = now
        while self._inbox:
            self._hear(self._inbox.popleft())
        if now >= self._care_at:
            self._take_care(now)
        if self._link.trouble is not None:
            return
        if not self.born:
            self._perhaps_begin(now)
        elif self._host.is_online is False and self._topics.state is not None:
            self.host_left = True
        else:
            self._speak(now)

    def _pause(self, now: float) -> float:
        times = [self._care_at]
        if self.born and not self._link.wants_write:
            times.append(self._numbers_at)
            if self._wants_more:
                times.append(self._journal_at)
            elif self._view.backlog.first is not None:
                rate = self._view.config.history_rate_hz
                times.append(max(self._journal_at, now + max(0.0, 1.0 - self._tokens) / rate))
        if self._rebirth_due:
            times.append(self._born_at + self._view.config.rebirth_s)
        return max(0.0, min(times) - now)

    def _take_care(self, now: float) -> None:
        self._care_at = now + CARE_S
        self._link.keep_alive()
        if self._link.trouble is None:
            self._view.backlog.trust(now)
        self._view.remember_sometimes(now)
        self._view.tell_deaf(self._link.deaf)

    def _perhaps_begin(self, now: float) -> None:
        """The births come first of all messages; commands are listened to before, and the host is there."""
        if not self._link.subscribed:
            if now - self._started > SUBSCRIBE_S:
                self._link.abandon(Trouble(cause="silent", words="the broker did not answer our subscriptions"))
            return
        if self._topics.state is not None and self._host.is_online is not True:
            self._view.waits_for_host()
            return
        try:
            self._view.begin()
        except JournalError as error:
            self._view.journal_failed(error)
            self._care_at = min(self._care_at, now + CARE_S)
            return
        self.born = True
        self._birth(now)
        self._view.is_born()

    def _birth(self, now: float) -> None:
        """NBIRTH with sequence number 0 and this session's bdSeq, then DBIRTH."""
        self._rebirth_due, self._born_at = False, now
        self._numbers_at = now + self._view.config.metrics_s
        self._view.look(now)
        now_ms = _utc_ms()
        control = (
            Metric(name=BDSEQ, timestamp_ms=now_ms, datatype=DataType.INT64, value=self._bdseq),
            Metric(name=REBIRTH, timestamp_ms=now_ms, datatype=DataType.BOOLEAN, value=False),
        )
        self._seq = 0
        self._publish(self._topics.of_node("NBIRTH"), (*control, *self._view.node.birth(now_ms)))
        self._publish(self._topics.of_device("DBIRTH"), self._view.device.birth(now_ms))

    def _publish(self, topic: str, metrics: Any) -> None:
        """One thread sends, so sequence numbers and messages are in the same order."""
        payload = encode(Payload(timestamp_ms=_utc_ms(), seq=self._seq, metrics=tuple(metrics)))
        self._seq = (self._seq + 1) % 256
        self._link.send(topic, payload)

    def _hear(self, incoming: Incoming) -> None:
        if incoming.topic == self._topics.state:
            self._host.hear(incoming.payload)
            return
        if incoming.topic == self._topics.of_node("NCMD"):
            asked = node_command(incoming)
        elif incoming.topic == self._topics.of_device("DCMD"):
            asked = device_command(incoming, self._view.writable)
        else:
            return
        self._rebirth_due = self._rebirth_due or (asked.rebirth and self.born)
        for refused in asked.refused:
            self._view.refuse(refused)
        if not self.born:
            return
        for name, value in asked.writes:
            news = self._view.write(name, value)
            if news:
                self._publish(self._topics.of_device("DDATA"), news)

    def _speak(self, now: float) -> None:
        if self._rebirth_due and now >= self._born_at + self._view.config.rebirth_s:
            self._birth(now)
        if self._link.wants_write:
            return
        if now >= self._numbers_at or self._view.status_due:
            self._numbers_at = now + self._view.config.metrics_s
            node, device = self._view.look(now)
            for topic, news in (("NDATA", node), ("DDATA", device)):
                if news:
                    of = self._topics.of_node if topic == "NDATA" else self._topics.of_device
                    self._publish(of(topic), news)
        if now >= self._journal_at:
            try:
                self._send_live(now)
                self._send_late(now)
            except JournalError as error:
                self._view.journal_failed(error)
                self._journal_at = now + JOURNAL_RETRY_S

    def _send_live(self, now: float) -> None:
        """What was recorded since the births, in order."""
        backlog, upto = self._view.backlog, self._view.recorded()
        self._wants_more = False
        if upto <= backlog.last:
            return
        until = min(upto, backlog.last + AT_ONCE)
        for stored in self._view.read(backlog.last + 1, until):
            if not self._send_part(stored, is_historical=False):
                self._wants_more = True
                return
            backlog.sent_live(stored.rec, now)
        backlog.last = max(backlog.last, until)
        self._wants_more = upto > until

    def _send_late(self, now: float) -> None:
        """History, oldest first, at a limited rate beside what is live, which never waits for it."""
        backlog, rate = self._view.backlog, self._view.config.history_rate_hz
        self._tokens = min(max(1.0, rate / 10), self._tokens + (now - self._tokens_at) * rate)
        self._tokens_at = now
        if backlog.first is None or self._tokens < 1 or self._wants_more or self._link.wants_write:
            return
        for _ in range(min(int(self._tokens), AT_ONCE)):
            stored = self._next_late()
            if stored is None or not self._send_part(stored, is_historical=True):
                return
            self._late.popleft()
            self._tokens -= 1
            backlog.sent_late(stored.rec, now)

    def _next_late(self) -> StoredVerdict | None:
        """The oldest record that is owed, of those that the journal still has."""
        backlog = self._view.backlog
        while not self._late and (owed := backlog.first) is not None:
            self._late.extend(itertools.islice(self._view.read(*owed), LATE_AT_ONCE))
            if not self._late:
                backlog.skip(owed[1])
        return self._late[0] if self._late else None

    def _send_part(self, stored: StoredVerdict, *, is_historical: bool) -> bool:
        """False when the link takes no more now."""
        if self._link.wants_write or self._link.trouble is not None:
            return False
        try:
            values = part_values(stored.body)
            metrics = self._view.device.news(values, part_time_ms(values), is_historical=is_historical)
            self._publish(self._topics.of_device("DDATA"), metrics)
        except ValueError as error:  # no JSON, or a number that fits no metric: one record must not hold up the others
            self._view.part_failed(stored.rec, error)
        return self._link.trouble is None

    def _leave(self, stop_at: float) -> None:
        """Send what is live, publish the NDEATH ourselves and wait until the broker has it, then disconnect."""
        if self.born and not self.host_left:
            self._send_last(stop_at)
        acknowledged = False
        if self.born and self._link.trouble is None:
            number = self._link.send(self._topics.of_node("NDEATH"), death(self._bdseq, _utc_ms()), qos=1)
            while not acknowledged and self._link.trouble is None and (left := stop_at - time.monotonic()) > 0:
                self._link.wait(left)
                acknowledged = any(ack.mid == number for ack in self._link.take_acks())
        now = time.monotonic()
        if acknowledged and not self.host_left:
            self._view.backlog.arrived()
        else:  # a host that is gone may have missed the last messages
            self._view.backlog.lost(now)
        if self._link.trouble is None:
            self._link.goodbye(max(0.1, stop_at - now))

    def _send_last(self, stop_at: float) -> None:
        until = stop_at - max(NOT_LIVE_S, (stop_at - time.monotonic()) / 2)
        try:
            while self._link.trouble is None and time.monotonic() < until:
                self._send_live(time.monotonic())
                if not self._wants_more and not self._link.wants_write:
                    return
                self._link.wait(min(0.05, max(0.0, until - time.monotonic())) if self._link.wants_write else 0.0)
        except JournalError as error:
            self._view.journal_failed(error)


def _utc_ms() -> int:
    return max(0, time.time_ns() // 1_000_000)
