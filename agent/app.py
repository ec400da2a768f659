"""Wiring: a configuration in, a running station out. The only place that chooses implementations.

`run_station` reads as what happens: open what can refuse first (bundle, engine, journal, camera), then start what runs
beside the line (publisher), replay the golden pictures, say READY, run, and leave in reverse order. A broker that is
away keeps nothing from starting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypedDict

from agent.acceptance import (
    ACCEPT_AGAIN,
    Admission,
    EngineWatch,
    GoldenReplay,
    admit,
    reference_graph,
    require_acceptance,
)
from agent.bundle import Bundle, open_bundle
from agent.cameras import Camera, open_camera, open_view
from agent.config import AgentConfig, FrameTriggerConfig, FreeRunConfig, LineConfig
from agent.cores import beside, line_cores, running_on
from agent.engines import BEFORE_BUILD, OpenedEngine, goes_live, open_cache, open_engine, time_for_one
from agent.errors import JournalError, NotDurable
from agent.face import Face
from agent.health import Heartbeat, clock_synced, notify
from agent.inspection import Inspector, ref_from_bundle
from agent.journal import Journal
from agent.log import log_event
from agent.outputs import FastPath, open_outputs
from agent.outputs.gpio import set_inactive
from agent.publisher import Publisher
from agent.roi import Roi, configured_size
from agent.sparkplug import EdgeNode, Source
from agent.station import Station
from agent.triggers import Trigger, open_trigger
from agent.triggers.mqtt import MqttTrigger
from agent.verdict import Policy, Verdict, policy_from_config
from agent.views import PartVerdict, View, ViewCameras, ViewJudge, joined_by, judge_from_config

__all__ = ["Summary", "run_station"]

DRAIN_AT_STOP_S = 3.0
"""How long a stop waits for the broker: with everything else a stop stays under five seconds."""

SPARKPLUG_STOP_S = 1.5
"""How long a stop waits for the Sparkplug host's broker; what it does not get is sent after the next start."""

DRAIN_PATIENCE_S = 5.0
"""How long the end of a finite source waits for the next message to leave before it leaves the rest on disk."""

WATCHED_GOLDENS = 20
"""Golden pictures that are replayed while the line runs; `accept` replays all."""

SWITCH_S = 0.0005
"""How long a thread may compute in Python while another one waits to."""

BUFFERS_BESIDE = 2
"""Inputs beside those that wait: one in the engine, one being prepared."""

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
    cores = line_cores(config.line.pin_cores)
    if config.outputs.gpio is not None:
        set_inactive(config.outputs.gpio)  # what a process that died has left there must not stand until we are ready
    with contextlib.ExitStack() as stack:
        stack.enter_context(_prompt_threads())
        bundle = open_bundle(config.bundle)
        require_acceptance(config, bundle)
        with running_on(cores):
            engine = _open_engine(config, bundle)
        stack.callback(engine.close)
        admission = admit(config, bundle, engine)
        goes_live(engine, open_cache(config))
        eyes = _eyes(config, bundle, engine)  # a mistake in policy or region is told before anything is begun
        with running_on(beside(cores)):
            journal = _open_journal(config)
        stack.enter_context(_closing(journal))
        with running_on(cores):
            camera, trigger, fast = _open_line(config, journal, stack)
        _tell_changed(journal, engine, admission)
        face = Face(config, bundle, engine.name, journal, fault=fast.fault)
        heartbeat = Heartbeat(stuck_s=config.watchdog.stuck_s)
        with (
            _publishing(config, journal, face, trigger, beside(cores)) as publisher,
            _sparkplug(config, journal, face, beside(cores)),
            running_on(cores),
        ):
            watch = _watch(config, bundle, engine, admission, lambda *told: face.engine_changed(*told, stop=stop))
            station = Station(
                trigger=trigger,
                camera=camera,
                journal=journal,
                fast=fast,
                beat=heartbeat.beat,
                changed=face.changed,
                between=lambda verdict: _between(watch, face, verdict),
                **eyes,
            )
            face.late = lambda: station.late
            watch.start()
            _be_ready(config, bundle, engine, face, stop)
            judged = station.run(stop, max_parts)
            journal.flush()
            if publisher is not None:
                _let_out(journal, face, heartbeat, stop)
            notify("STOPPING=1")  # starts systemd's stop time, which a long drain must not use up
        summary = Summary(
            judged=judged,
            by_decision=dict(journal.stats().by_decision),
            unsent=journal.outbox.depth(),
            stopped=face.stopped,
        )
    log_event(log, "stopped", judged=summary.judged, unsent=summary.unsent, **summary.by_decision)
    return summary


def _open_engine(config: AgentConfig, bundle: Bundle) -> OpenedEngine:
    cache, within_ms = open_cache(config), time_for_one(config)
    return open_engine(bundle, config.engine, cache=cache, building=_tell_building, within_ms=within_ms)


def _open_journal(config: AgentConfig) -> Journal:
    return Journal.open(
        config.journal,
        state_dir=config.state_dir,
        station=config.station,
        clock_state=clock_synced,
        recipe=config.recipe,
        publish=config.mqtt is not None,
        held=config.line.result == "durable",
    )


class _Eyes(TypedDict):
    """What looks and decides, and how far it may run ahead."""

    inspector: Inspector
    policy: Policy
    views: ViewJudge | None
    line: LineConfig


def _eyes(config: AgentConfig, bundle: Bundle, engine: OpenedEngine) -> _Eyes:
    line = _pace(config)
    roi = None if config.roi is None else Roi(config.roi, frame_size=configured_size(config.camera))
    pixel_mm, buffers = config.policy.pixel_mm, line.ahead + BUFFERS_BESIDE
    return _Eyes(
        inspector=Inspector(bundle, engine, pixel_mm=pixel_mm, roi=roi, buffers=buffers),
        policy=policy_from_config(config.policy, bundle.manifest),
        views=judge_from_config(config, bundle, engine) if config.views else None,
        line=line,
    )


def _be_ready(config: AgentConfig, bundle: Bundle, engine: OpenedEngine, face: Face, stop: threading.Event) -> None:
    """The last thing before the first part; where the engine is not as accepted the line is kept from it."""
    if config.acceptance.required:
        face.keep_out(stop)  # whatever the acceptance does not name, such as the memory: the answers count
    gc.collect()
    gc.freeze()  # what is there now stays: nobody has to look through it again while parts come
    if face.stopped is None:
        face.ready()
        log_event(log, "ready", station=config.station, bundle=ref_from_bundle(bundle).name, engine=engine.name)
        notify("READY=1", f"STATUS={bundle.manifest.name} on {engine.name}")


def _let_out(journal: Journal, face: Face, heartbeat: Heartbeat, stop: threading.Event) -> None:
    """A line that ended by itself leaves when the plant has heard of its parts, or at least why it ended."""
    if face.stopped is not None:
        _drain(journal, threading.Event(), heartbeat, longest_s=DRAIN_PATIENCE_S)
    elif not stop.is_set():
        _drain(journal, stop, heartbeat)


@contextlib.contextmanager
def _prompt_threads() -> Iterator[None]:
    """A thread that comes back from the engine, the disk or the network gets on sooner than after Python's 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()


def _open_line(
    config: AgentConfig, journal: Journal, stack: contextlib.ExitStack
) -> tuple[Camera | ViewCameras, Trigger, FastPath]:
    """Cameras, trigger and fast outputs; on the stack in the order in which they are to be closed."""
    camera = _open_cameras(config, journal, strobe=lambda on: fast.exposing(is_exposing=on))
    stack.callback(camera.close)
    trigger = open_trigger(config.trigger, camera)
    stack.callback(trigger.close)
    fast = FastPath(
        open_outputs(config.outputs, trigger),
        deadline_ms=config.line.deadline_ms,
        durable=config.line.result == "durable",
    )
    stack.callback(fast.close)
    fast.fault("starting")
    return camera, trigger, fast


def _open_cameras(config: AgentConfig, journal: Journal, *, strobe: Callable[[bool], None]) -> Camera | ViewCameras:
    """The station's camera, or all that look at a part together; the first one lights the strobe for all of them."""

    def light(is_exposing: bool) -> None:
        if is_exposing or not config.views:  # of several views the line ends it, once all have exposed
            strobe(is_exposing)

    first = open_camera(
        config.camera,
        trigger=config.trigger,
        is_judged=journal.is_judged,
        settle_ms=config.outputs.settle_ms,
        strobe=light,
    )
    if not config.views:
        return first
    with contextlib.ExitStack() as opened:
        opened.callback(first.close)
        join = joined_by(config)
        further = []
        for view in config.views:
            delay_ms = view.delay_ms + getattr(config.trigger, "delay_ms", 0.0)
            camera = open_view(view.camera, delay_ms=delay_ms, window_ms=view.window_ms, is_judged=journal.is_judged)
            opened.callback(camera.close)
            further.append(View(name=view.name, camera=camera, delay_ms=view.delay_ms, window_ms=view.window_ms))
        opened.pop_all()
    return ViewCameras(first, further, join=join)


def _pace(config: AgentConfig) -> LineConfig:
    """The newest frame of a free run would grow old while it waits; and no trigger may wait where none is to."""
    ahead = config.line.ahead
    if isinstance(config.trigger, FreeRunConfig):
        ahead = 0
    elif not isinstance(config.trigger, FrameTriggerConfig):
        ahead = min(ahead, config.trigger.waiting)
    return dataclasses.replace(config.line, ahead=ahead)


def _between(watch: EngineWatch, face: Face, verdict: Verdict | None) -> None:
    """After each step, on the line's thread: what would delay a part waits until there is none."""
    if isinstance(verdict, PartVerdict):
        watch.hear(*(view.verdict.inspection for view in verdict.views))
    elif verdict is not None:
        watch.hear(verdict.inspection)
    watch.turn(judged=verdict is not None)
    if verdict is None:
        face.idle()


def _watch(
    config: AgentConfig,
    bundle: Bundle,
    engine: OpenedEngine,
    admission: Admission,
    changed: Callable[[str | None, bool], None],
) -> EngineWatch:
    graph = reference_graph(bundle, engine, config.engine)
    replay = GoldenReplay(bundle, engine, graph, config.policy, limit=WATCHED_GOLDENS)
    return EngineWatch(replay, engine, admission.accepted, config.acceptance, changed=changed)


def _tell_changed(journal: Journal, engine: OpenedEngine, admission: Admission) -> None:
    """Another TensorRT, driver or option than at acceptance: no fault by itself, but nobody has accepted it."""
    accepted, differs = admission.accepted, "; ".join(admission.differs)
    if accepted is not None and differs:
        text = f"the engine is {engine.name}, accepted was {accepted.engine} ({differs}): {ACCEPT_AGAIN}"
        same = {"engine": engine.name, "accepted": accepted.engine, "differs": differs}
        journal.event("engine_not_accepted", "warning", text, **same)
        log_event(log, "engine_not_accepted", logging.WARNING, **same)


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
def _publishing(
    config: AgentConfig, journal: Journal, face: Face, trigger: Trigger, cores: frozenset[int]
) -> Iterator[Publisher | None]:
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
        trigger=trigger if isinstance(trigger, MqttTrigger) else None,
    )
    if isinstance(trigger, MqttTrigger):
        trigger.trouble = lambda: publisher.deaf
    face.tell_status = publisher.status_changed
    with running_on(cores):
        publisher.start()
    try:
        yield publisher
    finally:
        publisher.stop(DRAIN_AT_STOP_S)


@contextlib.contextmanager
def _sparkplug(config: AgentConfig, journal: Journal, face: Face, cores: frozenset[int]) -> Iterator[None]:
    if config.sparkplug is None or config.mqtt is None:
        yield
        return
    node = EdgeNode(
        config.sparkplug,
        config.mqtt,
        station=config.station,
        state_dir=config.state_dir,
        journal=journal,
        source=Source(status=face.status, metrics=face.metrics, tell_event=journal.event),
    )
    also = face.tell_status

    def tell_both() -> None:
        also()
        node.status_changed()

    face.tell_status = tell_both
    with running_on(cores):
        node.start()
    try:
        yield
    finally:
        face.tell_status = also
        with contextlib.suppress(JournalError):  # a journal that has failed says so itself; the host hears of the end
            journal.flush()
        node.stop(SPARKPLUG_STOP_S)


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
