"""Wiring: a configuration in, a running station out. The only place that chooses implementations.

`run_station` reads as what happens: open what can refuse first (bundle, engine, journal, camera), then start what runs
beside the line (publisher), replay the golden pictures, say READY, run, and leave in reverse order. A broker that is
away keeps nothing from starting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator

from agent import __version__
from agent.acceptance import (
    ACCEPT_AGAIN,
    Acceptance,
    EngineWatch,
    GoldenReplay,
    accepted_of,
    reference_graph,
    refuse_refused,
)
from agent.bundle import Bundle, open_bundle
from agent.cameras import open_camera
from agent.config import AgentConfig
from agent.engines import BEFORE_BUILD, Engine, open_cache, open_engine
from agent.errors import JournalError, NotDurable
from agent.frame import Stamp
from agent.health import Heartbeat, clock_synced, notify
from agent.inspection import Inspector
from agent.journal import Journal
from agent.log import log_event
from agent.messages import MetricsMessage, StatusMessage, rfc3339
from agent.publisher import Publisher
from agent.station import Station
from agent.triggers import open_trigger
from agent.verdict import policy_from_config

__all__ = ["Summary", "run_station"]

DRAIN_AT_STOP_S = 3.0
"""How long a stop waits for the broker: with everything else a stop stays under five seconds."""

DRAIN_PATIENCE_S = 5.0
"""How long the end of a finite source waits for the next message to leave before it leaves the rest on disk."""

WATCHED_GOLDENS = 20
"""Golden pictures that are replayed while the line runs; `accept` replays all."""

BUILD_S = 7_200
"""How long an engine may be compiled at a start (systemd: EXTEND_TIMEOUT_USEC): TensorRT's slowest level takes over an
hour for large networks on small boards."""

log = logging.getLogger("agent.app")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did.

    Attributes:
        judged: parts that got a verdict in this run.
        by_decision: verdicts in the journal by decision, earlier runs included.
        unsent: messages that still wait for the broker, on disk.
        stopped: why the line ended itself; None when it was asked to, or its source ended.
    """

    judged: int
    by_decision: dict[str, int]
    unsent: int
    stopped: str | None = None


def run_station(config: AgentConfig, *, stop: threading.Event, max_parts: int | None = None) -> Summary:
    """Run one station until it is asked to stop or its source ends.

    Args:
        config: what `read_config` gave.
        stop: set it (from a signal handler, say) to make the line finish its part, drain and leave. We set it when the
            engine is not what was accepted and the configuration wants the line to stop then.
        max_parts: leave after that many parts.

    Raises:
        AgentError: something can't be opened, or the engine was not accepted; or JournalError: verdicts can't be made
            durable any more.
    """
    with contextlib.ExitStack() as stack:
        bundle = open_bundle(config.bundle)
        accepted = accepted_of(config, bundle)
        engine = open_engine(bundle, config.engine, cache=open_cache(config), building=_tell_building, is_live=True)
        stack.callback(engine.close)
        refuse_refused(config, bundle, engine)
        inspector = Inspector(bundle, engine, pixel_mm=config.policy.pixel_mm)
        policy = policy_from_config(config.policy, bundle.manifest)
        journal = Journal.open(
            config.journal,
            state_dir=config.state_dir,
            station=config.station,
            clock_state=clock_synced,
            recipe=config.recipe,
            publish=config.mqtt is not None,
        )
        stack.enter_context(_closing(journal))
        camera = open_camera(config.camera, trigger=config.trigger, is_judged=journal.is_judged)
        stack.callback(camera.close)
        _tell_changed(journal, engine, accepted)
        face = _Face(config, bundle, engine.name, journal)
        heartbeat = Heartbeat(stuck_s=config.watchdog.stuck_s)
        with _publishing(config, journal, face) as publisher:
            watch = _watch(config, bundle, engine, accepted, lambda fault: face.engine_changed(fault, publisher, stop))
            station = Station(
                trigger=open_trigger(config.trigger, camera),
                camera=camera,
                inspector=inspector,
                policy=policy,
                journal=journal,
                beat=heartbeat.beat,
                camera_changed=lambda reason: face.camera_changed(reason, publisher),
                between=lambda judged: watch.turn(judged=judged),
            )
            watch.start()
            if face.stopped is None:
                log_event(log, "ready", station=config.station, bundle=inspector.ref.name, engine=engine.name)
                notify("READY=1", f"STATUS={bundle.manifest.name} on {engine.name}")
            judged = station.run(stop, max_parts)
            journal.flush()
            if publisher is not None and face.stopped is not None:
                _drain(journal, threading.Event(), heartbeat, longest_s=DRAIN_PATIENCE_S)  # the plant is to hear why
            elif publisher is not None and not stop.is_set():
                _drain(journal, stop, heartbeat)
            notify("STOPPING=1")  # starts systemd's stop time, which a long drain must not use up
        summary = Summary(
            judged=judged,
            by_decision=dict(journal.stats().by_decision),
            unsent=journal.outbox.depth(),
            stopped=face.stopped,
        )
    log_event(log, "stopped", judged=summary.judged, unsent=summary.unsent, **summary.by_decision)
    return summary


def _watch(
    config: AgentConfig,
    bundle: Bundle,
    engine: Engine,
    accepted: Acceptance | None,
    changed: Callable[[str | None], None],
) -> EngineWatch:
    graph = reference_graph(bundle, engine, config.engine)
    replay = GoldenReplay(bundle, engine, graph, config.policy, limit=WATCHED_GOLDENS)
    return EngineWatch(replay, engine, accepted, config.acceptance, changed=changed)


def _tell_changed(journal: Journal, engine: Engine, accepted: Acceptance | None) -> None:
    """Another TensorRT, driver or option than at acceptance: no fault by itself, but nobody has accepted it."""
    if accepted is not None and accepted.engine != engine.name and accepted.kind == engine.kind:
        text = f"the engine is {engine.name}, accepted was {accepted.engine}: {ACCEPT_AGAIN}"
        journal.event("engine_not_accepted", "warning", text, engine=engine.name, accepted=accepted.engine)
        log_event(log, "engine_not_accepted", logging.WARNING, engine=engine.name, accepted=accepted.engine)


def _tell_building(phase: str, _step: int, _steps: int) -> None:
    """Before an engine is compiled: systemd hears that this start may take long, and the log why."""
    if phase == BEFORE_BUILD:
        notify(f"EXTEND_TIMEOUT_USEC={BUILD_S * 1_000_000}", "STATUS=compiling the TensorRT engine")
        log_event(log, "engine_building", hint="build it before the line needs it: defect-agent build-engine")


@contextlib.contextmanager
def _closing(journal: Journal) -> Iterator[None]:
    """Close the journal at the end; from here on its failure means that verdicts are no longer durable."""
    try:
        try:
            yield
        finally:
            journal.close()
    except JournalError as error:
        raise NotDurable(error.message, hint=error.hint) from error


@contextlib.contextmanager
def _publishing(config: AgentConfig, journal: Journal, face: _Face) -> Iterator[Publisher | None]:
    if config.mqtt is None:
        yield None
        return
    publisher = Publisher(
        config.mqtt,
        journal.outbox,
        station=config.station,
        status=face.status,
        metrics=face.metrics,
        tell_event=journal.event,
    )
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.stop(DRAIN_AT_STOP_S)


def _drain(journal: Journal, stop: threading.Event, heartbeat: Heartbeat, *, longest_s: float = math.inf) -> None:
    """Let a finite run's last messages out, as long as they move; what stays is on disk and goes out another time.

    A broker that holds messages back without an answer costs the patience once, not for each of them.
    """
    left, moved_at = journal.outbox.depth(), time.monotonic()
    until = moved_at + longest_s
    while left and time.monotonic() < min(until, moved_at + DRAIN_PATIENCE_S) and not stop.wait(0.02):
        heartbeat.beat()
        if (now_left := journal.outbox.depth()) < left:
            left, moved_at = now_left, time.monotonic()


class _Face:
    """What the station says of itself: status and metrics."""

    def __init__(self, config: AgentConfig, bundle: Bundle, engine: str, journal: Journal) -> None:
        self._config, self._bundle, self._engine, self._journal = config, bundle, engine, journal
        self._since = self._started = Stamp.now()
        self._fault: str | None = None
        self._engine_fault: str | None = None
        self.stopped: str | None = None

    def engine_changed(self, fault: str | None, publisher: Publisher | None, stop: threading.Event) -> None:
        """Tell the plant that the engine is not what was accepted, or is again; end the line where that is wanted."""
        if fault is not None and self._config.acceptance.on_change == "stop":
            self.stopped = fault
            stop.set()
        self._engine_fault, self._since = fault, Stamp.now()
        if fault is None:
            self._journal.event("engine_as_accepted", "info", f"{self._engine}: as accepted again", engine=self._engine)
            log_event(log, "engine_as_accepted", engine=self._engine)
        else:
            self._journal.event("engine_degraded", "alarm", fault, engine=self._engine)
            log_event(log, "engine_degraded", logging.ERROR, engine=self._engine, reason=fault)
        if publisher is not None:
            publisher.status_changed()

    def camera_changed(self, reason: str | None, publisher: Publisher | None) -> None:
        """Tell the plant once that the camera is lost, and once that it is back."""
        self._fault, self._since = reason, Stamp.now()
        name = self._config.camera.name
        if reason is None:
            self._journal.event("camera_found", "info", f"camera {name} delivers again", camera=name)
            log_event(log, "camera_found", camera=name)
        else:
            self._journal.event("camera_lost", "alarm", f"camera {name}: {reason}", camera=name)
            log_event(log, "camera_lost", logging.ERROR, camera=name, reason=reason)
        if publisher is not None:
            publisher.status_changed()

    def status(self) -> StatusMessage:
        """The retained status as it is now."""
        camera = None if self._fault is None else f"camera {self._config.camera.name}: {self._fault}"
        faults = [fault for fault in (camera, self._engine_fault) if fault is not None]
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
            counters=dict(self._journal.stats().by_decision),
        )

    def metrics(self) -> MetricsMessage:
        """The numbers of the moment."""
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
        )
