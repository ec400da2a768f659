"""Face: what the station says of itself. Status, metrics, and one event each time something is lost or found."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable

from agent import __version__
from agent.board import Board
from agent.bundle import Bundle
from agent.config import AgentConfig
from agent.damping import STEADY_S, Damping
from agent.frame import Stamp
from agent.journal import Journal
from agent.log import log_event
from agent.messages import MetricsMessage, StatusMessage, rfc3339

__all__ = ["Face", "Throttling"]

LOOK_S = 5.0
"""How often the board is looked at; a look takes some milliseconds, and none is taken while a part is judged."""

log = logging.getLogger("agent.app")


class Throttling:
    """Whether heat or a weak power supply holds the board back, looked at now and then, told when it changes.

    Args:
        board: the board.
        tell: told what holds it back, in words, and an empty tuple when nothing does any more.
        clock: monotonic seconds.
    """

    def __init__(
        self, board: Board, tell: Callable[[tuple[str, ...]], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._board, self._tell, self._clock = board, tell, clock
        self._lock = threading.Lock()
        self._next_s = float("-inf")
        self._counters: dict[str, int] = {}
        self.now: tuple[str, ...] = ()
        self.temperature_c: float | None = None

    def look(self) -> None:
        """Look, unless that was done a moment ago; from any thread."""
        with self._lock:
            if self._clock() < self._next_s:
                return
            self._next_s = self._clock() + LOOK_S
            sample = self._board.sample()
            risen = [words for words, count in sample.counters.items() if count > self._counters.get(words, count)]
            self._counters = dict(sample.counters)
            self.temperature_c = max(sample.temperatures_c.values(), default=None)
            before, self.now = self.now, tuple(dict.fromkeys((*sample.throttled, *risen)))
            if self.now != before:
                self._tell(self.now)


class Face:
    """What the station says of itself.

    Args:
        config: of the station.
        bundle: that decides.
        engine: in words.
        journal: takes the events, knows the numbers.
        fault: told what keeps the line from judging parts, and None when nothing does: for the fast outputs.
        board: the board.
        clock: monotonic seconds, for what is unsteady.

    Attributes:
        stopped: why the line ends itself; None while it does not.
        late: gives the parts of this run that were decided after their deadline.
        tell_status: called when the status has changed.
    """

    def __init__(
        self,
        config: AgentConfig,
        bundle: Bundle,
        engine: str,
        journal: Journal,
        *,
        fault: Callable[[str | None], None],
        board: Board | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._bundle, self._engine, self._journal = config, bundle, engine, journal
        self._since = self._started = Stamp.now()
        self._lock = threading.RLock()  # the line changes it, the publisher's thread looks
        self._faults: dict[str, str] = {}
        self._lost: dict[str, str | None] = {}
        self._dampings = {what: Damping(clock) for what in ("camera", "trigger", "output")}
        self._tell_outputs = fault
        self._throttling = Throttling(board or Board(), self._throttled)
        self.stopped: str | None = None
        self.late: Callable[[], int] = lambda: 0
        self.tell_status: Callable[[], None] = lambda: None

    def engine_changed(self, fault: str | None, fails: bool, *, stop: threading.Event) -> None:
        """Tell the plant that the engine fails, or is not what was accepted, or is again; end the line where wanted."""
        if fault is not None and self._config.acceptance.on_change == "stop":
            self.stopped = fault
            stop.set()
        if fault is None:
            self._journal.event("engine_as_accepted", "info", f"{self._engine}: as accepted again", engine=self._engine)
            log_event(log, "engine_as_accepted", engine=self._engine)
        else:
            event = "engine_failing" if fails else "engine_degraded"
            self._journal.event(event, "alarm", fault, engine=self._engine)
            log_event(log, event, logging.ERROR, engine=self._engine, reason=fault)
        self._note("engine", fault)

    def changed(self, what: str, reason: str | None) -> None:
        """Tell the plant once that the camera (trigger, output) is lost, and once that it is back.

        What is lost more than three times within a minute is told once more, as `camera_unsteady`. From then on it is
        counted, until it has held for a minute: see `agent.damping`. The fast outputs hear of every change.
        """
        self.look()
        with self._lock:
            self._lost = {**self._lost, what: None if reason is None else f"{self._shown(what)}: {reason}"}
            damping = self._dampings[what]
            how = damping.changed(reason)
            if how == "tell":
                self._tell_changed(what, reason)
            elif how == "unsteady":
                self._tell_unsteady(what, damping)
            else:
                log_event(log, f"{what}_flaps", logging.DEBUG, losses=damping.losses, reason=reason or "back")
        if what in ("camera", "trigger"):
            self.ready()

    def look(self) -> None:
        """Tell what was unsteady and holds again; from any thread, and now and then."""
        with self._lock:
            for what, damping in self._dampings.items():
                if damping.is_steady_again():
                    meanwhile = f"lost {damping.losses} times within {damping.seconds:.0f} s"
                    self._tell_changed(what, damping.reason, meanwhile, losses=damping.losses)
                    damping.losses = 0

    def _tell_changed(self, what: str, reason: str | None, meanwhile: str = "", **data: int) -> None:
        name, shown = self._named(what), self._shown(what)
        after = f" and holds, after it was {meanwhile}" if meanwhile else ""
        if reason is None:
            self._journal.event(f"{what}_found", "info", f"{shown} is back{after}", **{what: name}, **data)
            log_event(log, f"{what}_found", logging.INFO, **{what: name}, **data)
        else:
            text = f"{shown}: {reason}{f', and stays away; {meanwhile} before' if meanwhile else ''}"
            self._journal.event(f"{what}_lost", "alarm", text, **{what: name}, **data)
            log_event(log, f"{what}_lost", logging.ERROR, **{what: name}, reason=reason, **data)
        self._note(what, None if reason is None else f"{shown}: {reason}")

    def _tell_unsteady(self, what: str, damping: Damping) -> None:
        name = self._named(what)
        fault = (
            f"{self._shown(what)}: unsteady, lost {damping.losses} times within {damping.seconds:.0f} s, "
            f"the last time: {damping.reason}"
        )
        text = f"{fault}; told again when nothing has changed for {STEADY_S:.0f} s"
        self._journal.event(f"{what}_unsteady", "alarm", text, **{what: name}, losses=damping.losses)
        log_event(log, f"{what}_unsteady", logging.ERROR, **{what: name}, losses=damping.losses, reason=damping.reason)
        self._note(what, fault)

    def _named(self, what: str) -> str:
        return self._config.camera.name if what == "camera" else what

    def _shown(self, what: str) -> str:
        return f"camera {self._named(what)}" if what == "camera" else f"the {what}"

    def keep_out(self, stop: threading.Event) -> None:
        """An engine that is not as accepted before the first part: the line ends without one."""
        if (fault := self._faults.get("engine")) is not None:
            self.stopped = fault
            stop.set()

    def ready(self) -> None:
        """The line takes parts, unless camera or trigger are lost already: the fast outputs hear which it is."""
        self._tell_outputs(next((fault for w in ("camera", "trigger") if (fault := self._lost.get(w))), None))

    def idle(self) -> None:
        """No part is there: a look at the board delays none."""
        self.look()
        self._throttling.look()

    def status(self) -> StatusMessage:
        """The retained status as it is now."""
        stats = self._journal.stats()
        faults = list(self._faults.values())
        return StatusMessage(
            station=self._config.station,
            state="degraded" if faults else "online",
            reason="; ".join(faults) or "running",
            since=rfc3339(self._since.utc_ms),
            time=rfc3339(Stamp.now().utc_ms),
            boot=self._journal.boot,
            version=__version__,
            bundle=f"{self._bundle.manifest.name}-{self._bundle.manifest.version}",
            bundle_digest=self._bundle.digest,
            engine=self._engine,
            counters=dict(stats.by_decision),
            ledger=stats.ledger.counts(),
        )

    def metrics(self) -> MetricsMessage:
        """The numbers of the moment."""
        self.look()
        self._throttling.look()
        stats, now = self._journal.stats(), Stamp.now()
        return MetricsMessage(
            station=self._config.station,
            time=rfc3339(now.utc_ms),
            uptime_s=round((now.mono_ns - self._started.mono_ns) / 1e9, 1),
            counters=dict(stats.by_decision),
            outbox=stats.outbox,
            journal_pending=stats.pending,
            evidence_bytes=stats.evidence_bytes,
            disk_free_bytes=shutil.disk_usage(self._config.state_dir).free,
            ledger=stats.ledger.counts(),
            late=self.late(),
            throttled=self._throttling.now,
            temperature_c=self._throttling.temperature_c,
        )

    def _note(self, what: str, fault: str | None) -> None:
        with self._lock:
            self._since = Stamp.now()
            faults = {name: reason for name, reason in self._faults.items() if name != what}
            self._faults = faults if fault is None else {**faults, what: fault}
        self.tell_status()

    def _throttled(self, by: tuple[str, ...]) -> None:
        hottest = self._throttling.temperature_c
        if by:
            self._journal.event("throttled", "warning", f"the board is slowed down: {'; '.join(by)}", hottest_c=hottest)
            log_event(log, "throttled", logging.WARNING, reason="; ".join(by), hottest_c=hottest)
        else:
            self._journal.event("throttled_no_more", "info", "the board runs at full speed again", hottest_c=hottest)
            log_event(log, "throttled_no_more", hottest_c=hottest)
