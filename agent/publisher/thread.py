"""The publisher's thread: connects, serves, comes back; it ends when told to and never before."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from agent.commands import Commands, Incoming
from agent.commands.door import TakesTriggers
from agent.config import MqttConfig
from agent.errors import ConfigError
from agent.journal import Outbox
from agent.messages import MetricsMessage, StatusMessage
from agent.publisher.access import open_access
from agent.publisher.drain import Drain, TellEvent
from agent.publisher.face import Face
from agent.publisher.link import ANSWER_S, Link, Protocol, protocols_to_try
from agent.publisher.orders import Orders
from agent.publisher.pace import Backoff
from agent.publisher.report import LinkState, Report, tell
from agent.publisher.session import Session
from agent.publisher.words import PERHAPS_VERSION, Trouble

__all__ = ["Publisher"]

FIRST_PAUSE_S = 0.2
STEADY_S = 5.0
"""A connection that lasted this long, or carried a message, was a good one: the next pause is short again."""

TRIAL_S = 3.0
"""How long a broker may take to answer our first MQTT 5 CONNECT before 3.1.1 is tried."""

TRY_AGAIN_S = 600.0
"""A broker that took 3.1.1 only after it failed with MQTT 5, without saying why, is asked for 5 again after this."""

DOUBTS_TO_ASK_AGAIN = 3

STUCK_S = 60.0
"""Connecting may block for a few seconds per address; a turn that takes longer than this is stuck."""

log = logging.getLogger("agent.publisher")


class Publisher:
    """outbox → MQTT, in its own thread.

    A message leaves the outbox after a PUBACK with a good reason code. Whatever happens to the network, the broker or
    this program, the rest stays there; the line never waits for any of it.

    Args:
        config: the broker.
        outbox: where messages wait.
        station: ROOT.
        status: the station's status; called by this thread.
        metrics: its numbers; called by this thread.
        tell_event: records what a person should know of (`Journal.event`); None records nothing.
        trigger: takes `trigger` commands; None listens to no commands.

    Raises:
        ConfigError: the password or certificate files can't be used.
    """

    def __init__(
        self,
        config: MqttConfig,
        outbox: Outbox,
        *,
        station: str,
        status: Callable[[], StatusMessage],
        metrics: Callable[[], MetricsMessage],
        tell_event: TellEvent | None = None,
        trigger: TakesTriggers | None = None,
    ) -> None:
        open_access(config, station)  # a mistake is told at the start, not in the log of the night shift
        self._config, self._outbox, self._station = config, outbox, station
        self._report = Report()
        self._orders = Orders()
        self._face = Face(station, status, metrics, self._report)
        self._drain = Drain(
            outbox,
            window=config.inflight,
            backlog_rate_hz=config.backlog_rate_hz,
            report=self._report,
            tell_event=tell_event or _tell_nobody,
        )
        self._commands: Commands | None = None
        if trigger is not None:
            self._commands = Commands(station, trigger, tell_event=tell_event or _tell_nobody, ring=self._orders.ring)
        self._known: Protocol | None = None
        self._known_until = math.inf
        self._doubts = 0
        self._bug = ""
        self._served_s = 0.0
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Start the thread; a broker that is away is no reason to fail."""
        if self._commands is not None:
            self._commands.start()
        self._thread.start()

    def status_changed(self) -> None:
        """Publish the retained status now; from any thread, never blocks."""
        self._orders.status_due = True
        self._orders.ring()

    def stop(self, timeout_s: float) -> bool:
        """Send what can be sent in time, publish `offline`, leave.

        Args:
            timeout_s: how long all of it may take.

        Returns:
            False when the thread hangs in a connect or a name look-up; it ends by itself after it.
        """
        if self._commands is not None:
            self._commands.close()
        self._orders.stop_at = time.monotonic() + timeout_s
        self._orders.ring()
        if self._thread.ident is not None:
            self._thread.join(timeout_s + 0.5)
        if self._thread.is_alive():
            return False
        self._orders.close()
        return True

    @property
    def connected(self) -> bool:
        """The broker has accepted us."""
        return self._report.connected

    @property
    def link(self) -> LinkState:
        """The link now, with counters."""
        return self._report.state()

    @property
    def deaf(self) -> str | None:
        """Why no command can be heard now, in words; None while they can, and before the first try to connect."""
        return self._report.deaf

    def alive(self) -> bool:
        """The thread runs, and is not stuck."""
        return self._thread.is_alive() and time.monotonic() - self._report.turned_at < STUCK_S

    def _run(self) -> None:
        backoff = Backoff(FIRST_PAUSE_S, self._config.reconnect_max_s)
        while self._orders.stop_at is None:
            published, self._served_s, trouble = self._report.published, 0.0, None
            try:
                trouble = self._round()
            except Exception as error:  # ours; this thread must outlive it, or the plant never hears of a part again
                self._own_bug(error)
            if self._report.published > published or self._served_s > STEADY_S:
                backoff.reset()
            if self._orders.stop_at is None:
                pause_s = backoff.take(longest=trouble is not None and trouble.cause == "taken over")
                self._orders.rest(pause_s, self._turned)
        self._report.left()

    def _round(self) -> Trouble | None:
        """Connect and serve; when the broker does not take MQTT 5, fall back at once."""
        trouble = None
        if time.monotonic() > self._known_until:
            self._known = None
        for protocol in protocols_to_try(self._config.protocol, self._known):
            fallen = trouble
            trouble = self._connect_and_serve(protocol, fallen=fallen)
            if trouble is None or trouble.cause not in PERHAPS_VERSION:
                break
            self._doubt(trouble)
        if trouble is not None:
            self._report.down(trouble)
        return trouble

    def _doubt(self, trouble: Trouble) -> None:
        """A broker that did speak MQTT 5 may only be slow; three failures in a row and it may be another one."""
        self._doubts += 1
        if trouble.cause == "version" or self._known == "3.1.1" or self._doubts >= DOUBTS_TO_ASK_AGAIN:
            self._known = None

    def _remember(self, protocol: Protocol, fallen: Trouble | None) -> None:
        """What a broker took; one that took 3.1.1 after it failed with MQTT 5 is asked again some day."""
        self._doubts = 0
        if fallen is None:
            if protocol == "5":
                self._known, self._known_until = "5", math.inf
            return
        said_so = fallen.cause == "version"
        self._known, self._known_until = "3.1.1", math.inf if said_so else time.monotonic() + TRY_AGAIN_S
        tell("broker_speaks_3_1_1", reason=fallen.words, note="refused messages go unnoticed on MQTT 3.1.1")

    def _connect_and_serve(self, protocol: Protocol, *, fallen: Trouble | None) -> Trouble | None:
        """One connection, from connect to loss; None when a stop was asked for."""
        try:
            access = open_access(self._config, self._station)  # each time: passwords and certificates are renewed
        except ConfigError as error:
            return Trouble(cause="refused", words=error.message, hint=error.hint)
        will = self._face.offline("the connection was lost")
        link = Link(
            access,
            protocol,
            will=None if will is None else (self._face.status_topic, will),
            listen=None if self._commands is None else self._commands.topic,
            hear=_nobody if self._commands is None else self._commands.take,
        )
        try:
            trial = self._config.protocol == "auto" and self._known is None and protocol == "5"
            link.open(TRIAL_S if trial else ANSWER_S)
            while not link.ready and link.trouble is None and self._orders.stop_at is None:
                if link.await_answer(self._orders.fileno()):
                    self._orders.hear()
                self._report.turned_at = time.monotonic()
            if not link.ready:
                return link.trouble
            self._remember(protocol, fallen)
            return self._serve(link)
        finally:
            link.abandon(Trouble(cause="cut", words="abandoned"))

    def _serve(self, link: Link) -> Trouble | None:
        self._report.up(link.protocol, f"{self._config.host}:{self._config.port}")
        started = time.monotonic()
        session = Session(
            link,
            outbox=self._outbox,
            drain=self._drain,
            face=self._face,
            orders=self._orders,
            report=self._report,
            config=self._config,
            commands=self._commands,
        )
        try:
            return session.run()
        finally:
            self._served_s = time.monotonic() - started

    def _own_bug(self, error: Exception) -> None:
        words = f"unexpected {type(error).__name__}: {error}"
        self._report.bugs += 1
        self._report.down(Trouble(cause="cut", words=words))
        if words != self._bug:
            self._bug = words
            log.error("bug", exc_info=error)

    def _turned(self) -> None:
        self._report.turned_at = time.monotonic()


def _nobody(_incoming: Incoming) -> None:
    """Where nobody listens to commands."""


def _tell_nobody(_name: str, _severity: str, _text: str, /, **_data: str | float | bool | None) -> None:
    """Where no journal takes events."""
