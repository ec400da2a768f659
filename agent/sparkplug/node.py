"""The sparkplug thread: connects, serves, comes back; it ends when told to and never before."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from pathlib import Path

from agent.commands.decode import Incoming
from agent.config import MqttConfig, SparkplugConfig
from agent.errors import ConfigError, JournalError
from agent.journal import Journal
from agent.log import log_event
from agent.publisher.access import open_access
from agent.publisher.link import ANSWER_S, Protocol, protocols_to_try
from agent.publisher.orders import Orders
from agent.publisher.pace import Backoff
from agent.publisher.words import PERHAPS_VERSION, Trouble
from agent.sparkplug.link import NodeLink
from agent.sparkplug.memory import Memory
from agent.sparkplug.names import topics_of
from agent.sparkplug.session import Session, death
from agent.sparkplug.view import Door, Source, View

__all__ = ["EdgeNode"]

FIRST_PAUSE_S = 0.2
STEADY_S = 5.0
HOST_LEFT_PAUSE_S = 0.2
STUCK_S = 60.0
MAX_INBOX = 1_000
"""Messages that wait for one turn; of more the oldest go. STATE is retained, and who wants a rebirth asks again."""

log = logging.getLogger("agent.sparkplug")


class EdgeNode:
    """The station as a Sparkplug edge node with one device, in its own thread over its own connection.

    It reads the journal and nothing of the line waits for it.

    Args:
        config: names, host, history.
        broker: that of the publisher; client id with `-spb` behind it.
        station: ROOT.
        state_dir: where it remembers.
        journal: verdicts by record.
        source: status, metrics, events.
        door: takes what hosts write; None announces nothing that can be written.

    Raises:
        ConfigError: the password or certificate files can't be used.
    """

    def __init__(
        self,
        config: SparkplugConfig,
        broker: MqttConfig,
        *,
        station: str,
        state_dir: Path,
        journal: Journal,
        source: Source,
        door: Door | None = None,
    ) -> None:
        open_access(broker, station)
        self._broker, self._station = broker, station
        self.topics = topics_of(config, station)
        self._orders = Orders()
        self._journal = journal
        self._reader = Journal.open_readonly(state_dir)
        self._view = View(
            config,
            journal=journal,
            reader=self._reader,
            memory=Memory(state_dir),
            source=source,
            door=door,
            doubt_s=2.0 * broker.keepalive_s + 2.0,
        )
        self._known: Protocol | None = None
        self._told = self._bug = ""
        self._session: Session | None = None
        self._thread = threading.Thread(target=self._run, name="sparkplug", daemon=True)

    def start(self) -> None:
        """Start the thread; a broker that is away is no reason to fail."""
        self._journal.outbox.also_ring = self._orders.ring
        self._thread.start()

    def status_changed(self) -> None:
        """Show the status now; from any thread, never blocks."""
        self._view.status_due = True
        self._orders.ring()

    @property
    def born(self) -> bool:
        """Births were sent on the present connection."""
        session = self._session
        return session is not None and session.born

    def alive(self) -> bool:
        """The thread runs, and is not stuck."""
        return self._thread.is_alive() and time.monotonic() - self._view.turned_at < STUCK_S

    def stop(self, timeout_s: float) -> bool:
        """Send what is live, publish the NDEATH, leave; False when the thread hangs in a connect."""
        self._orders.stop_at = time.monotonic() + timeout_s
        self._orders.ring()
        if self._thread.ident is not None:
            self._thread.join(timeout_s + 0.5)
        self._journal.outbox.also_ring = _nothing
        if self._thread.is_alive():
            return False
        self._orders.close()
        self._reader.close()
        return True

    def _run(self) -> None:
        backoff = Backoff(FIRST_PAUSE_S, self._broker.reconnect_max_s)
        while self._orders.stop_at is None:
            started, trouble, left = time.monotonic(), None, False
            try:
                trouble, left = self._round()
            except Exception as error:  # ours; this thread must outlive it, or the host never hears of a part again
                self._own_bug(error)
            if left or time.monotonic() - started > STEADY_S:
                backoff.reset()
            if self._orders.stop_at is None:
                pause_s = backoff.take(longest=trouble is not None and trouble.cause == "taken over")
                self._orders.rest(HOST_LEFT_PAUSE_S if left else pause_s, self._turned)

    def _round(self) -> tuple[Trouble | None, bool]:
        """Connect and serve; when the broker does not take MQTT 5, fall back at once."""
        trouble, left = None, False
        for protocol in protocols_to_try(self._broker.protocol, self._known):
            trouble, left = self._connect_and_serve(protocol)
            if trouble is None or trouble.cause not in PERHAPS_VERSION:
                break
            self._known = None
        self._tell(trouble)
        return trouble, left

    def _connect_and_serve(self, protocol: Protocol) -> tuple[Trouble | None, bool]:
        """One connection: why it ended, and whether we left because the host did."""
        try:
            access = open_access(self._broker, self._station)
        except ConfigError as error:
            return Trouble(cause="refused", words=error.message, hint=error.hint), False
        access = dataclasses.replace(access, client_id=f"{access.client_id}-spb")
        inbox: collections.deque[Incoming] = collections.deque(maxlen=MAX_INBOX)
        bdseq, topics = self._view.next_bdseq, self.topics
        commands = (topics.of_node("NCMD"), topics.of_device("DCMD"))
        link = NodeLink(
            access,
            protocol,
            will=(topics.of_node("NDEATH"), death(bdseq, max(0, time.time_ns() // 1_000_000))),
            subscribe=commands if topics.state is None else (topics.state, *commands),
            hear=inbox.append,
            opened=lambda: _ignored(self._view.take_bdseq()),
        )
        try:
            link.open(ANSWER_S)
            while not link.ready and link.trouble is None and self._orders.stop_at is None:
                if link.await_answer(self._orders.fileno()):
                    self._orders.hear()
                self._view.turned_at = time.monotonic()
            if not link.ready:
                return link.trouble, False
            self._known = protocol
            return self._serve(Session(
                link, bdseq=bdseq, topics=topics, view=self._view, orders=self._orders, inbox=inbox
            ))  # fmt: skip
        finally:
            link.abandon(Trouble(cause="cut", words="abandoned"))

    def _serve(self, session: Session) -> tuple[Trouble | None, bool]:
        self._session = session
        self._tell(None)
        try:
            return session.run(), session.host_left
        finally:
            self._session = None

    def _tell(self, trouble: Trouble | None) -> None:
        """One line when the broker is lost, and one when it is back."""
        words = "" if trouble is None else trouble.words
        if words and words != self._told:
            log_event(log, "sparkplug_lost", logging.WARNING, reason=words, hint=trouble.hint if trouble else None)
        self._told = words

    def _own_bug(self, error: Exception) -> None:
        with contextlib.suppress(JournalError):
            self._view.backlog.lost(time.monotonic())
        words = f"unexpected {type(error).__name__}: {error}"
        if words != self._bug:
            self._bug = words
            log.error("bug", exc_info=error)

    def _turned(self) -> None:
        self._view.turned_at = time.monotonic()


def _ignored(_value: object) -> None:
    """A callback that has nothing to give."""


def _nothing() -> None:
    """Nobody to ring."""
