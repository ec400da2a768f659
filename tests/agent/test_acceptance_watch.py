"""The engine beside the line: replayed between parts, held against what was accepted, and never in a part's way."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.acceptance.file import Acceptance
from agent.acceptance.replay import GoldenReplay
from agent.acceptance.watch import BUSY_S, FAILING, LOST, RECHECK_S, SPACING_S, START_S, WINDOW, EngineWatch
from agent.bundle import Bundle, Tensor
from agent.config import AcceptanceConfig, EngineConfig, PolicyConfig
from agent.engines import FALL_BACK, Engine, open_engine
from agent.errors import EngineError
from agent.frame import Fault, Part, Stage, Stamp
from agent.inspection import Inspection, ref_from_bundle
from agent.journal import Journal
from tests.kit.goldens import confused_classifier, golden_bundle
from tests.kit.models import classifier
from tests.kit.station import AgentProcess, make_parts, make_station
from tests.kit.waiting import wait_until

GOLDENS = 4
MS = 2.0


class Clock:
    """Seconds and nanoseconds, set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def seconds(self) -> float:
        return self.now_s

    def nanoseconds(self) -> int:
        return round(self.now_s * 1e9)


class Paced:
    """A real engine whose inferences take as long as the clock is told, and which may begin to fail."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock
        self.name, self.kind = engine.name, engine.kind
        self.ms = MS
        self.fails = False
        self.runs = 0

    def infer(self, tensor: Tensor) -> Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]:
        self.runs += 1
        self._clock.now_s += self.ms / 1000
        if self.fails:
            raise EngineError("the GPU is gone")
        return self._engine.infer(tensor)

    def close(self) -> None:
        self._engine.close()


class Line:
    """A watch with all that it needs, and what it told."""

    def __init__(self, bundle: Bundle, *, accepted: bool = True, **config: Any) -> None:
        self.clock = Clock()
        self.engine = Paced(open_engine(bundle, EngineConfig()), self.clock)
        replay = GoldenReplay(bundle, self.engine, "cpu", PolicyConfig(), clock=self.clock.nanoseconds)
        verdicts = {f"golden/{i:03d}.png": replay.play(i).expected for i in range(len(replay))}
        self.accepted = Acceptance(
            accepted=True,
            bundle_digest=bundle.digest,
            engine=self.engine.name,
            kind=self.engine.kind,
            graph="cpu",
            identity={"kind": self.engine.kind},
            p50_ms=MS,
            p99_ms=MS,
            changed=0,
            verdicts=verdicts,
            problems=(),
            time="2026-11-30T12:00:00.000Z",
        )
        self.told: list[str | None] = []
        self.fails: list[bool] = []
        self.engine.runs = 0
        self._bundle = bundle
        self._replay = replay
        self._config = AcceptanceConfig(**config)
        self.watch = self.watching(self.accepted if accepted else None)

    def watching(self, accepted: Acceptance | None) -> EngineWatch:
        """A new start of the line."""
        return EngineWatch(
            self._replay,
            self.engine,
            accepted,
            self._config,
            changed=self._hear,
            clock=self.clock.seconds,
        )

    def _hear(self, fault: str | None, fails: bool) -> None:
        self.told.append(fault)
        self.fails.append(fails)

    def part(self, *views: Stage | None, not_found: str | None = None) -> None:
        """A part of which the watch hears, by its views (one): judged, or failed at a stage."""
        part = Part(id="p", trigger="test", sequence=1, triggered=Stamp.now())
        seen = []
        for stage in views or (None,):
            fault = None if stage is None else Fault(part=part, stage=stage, reason="launch failure")
            same = {"part": part, "frame": None, "bundle": ref_from_bundle(self._bundle), "engine": self.engine.name}
            seen.append(Inspection(fault=fault, not_found=not_found, **same))  # type: ignore[arg-type]
        self.watch.hear(*seen)
        self.clock.now_s += 0.25
        self.watch.turn(judged=True)

    def idle(self, steps: int, *, judged: bool = False, step_s: float = 0.25) -> int:
        """Steps of the line; gives how many goldens were replayed."""
        before = self.engine.runs
        for _ in range(steps):
            self.clock.now_s += step_s
            self.watch.turn(judged=judged)
        return self.engine.runs - before


@contextlib.contextmanager
def line(tmp_path: Path, **keys: Any) -> Iterator[Line]:
    made = Line(golden_bundle(tmp_path, count=GOLDENS), **keys)
    yield made
    made.engine.close()


@pytest.fixture
def accepted(tmp_path: Path) -> Iterator[Line]:
    """An engine that is as accepted, after its start."""
    with line(tmp_path) as made:
        made.watch.start()
        yield made


def test_at_the_start_every_golden_is_replayed_once(accepted: Line) -> None:
    """Before the first part; nothing is held against a sound engine."""
    assert accepted.engine.runs == GOLDENS
    assert accepted.watch.fault is None
    assert accepted.told == []


def test_after_replay_hours_one_golden_goes_after_each_step_without_a_part(accepted: Line) -> None:
    """Never two in one step: a part that comes meanwhile waits for one inference at most."""
    accepted.idle(100)
    assert accepted.engine.runs == GOLDENS  # not due yet
    accepted.clock.now_s += 24 * 3600
    assert [accepted.idle(1) for _ in range(6)] == [1, 1, 1, 1, 0, 0]


def test_a_part_is_not_kept_waiting_while_the_line_has_idle_moments(accepted: Line) -> None:
    """A due replay lets the parts pass."""
    accepted.clock.now_s += 24 * 3600

    assert accepted.idle(20, judged=True) == 0
    assert accepted.idle(1) == 1
    assert accepted.idle(5, judged=True) == 0


def test_on_a_line_that_is_never_idle_one_golden_goes_between_two_parts_now_and_then(accepted: Line) -> None:
    """Else the busiest line would be the one that nobody watches."""
    accepted.clock.now_s += 24 * 3600 + BUSY_S
    seconds = 3
    replayed = accepted.idle(round(seconds * SPACING_S / 0.05), judged=True, step_s=0.05)

    assert 2 <= replayed <= seconds + 1


def test_a_real_line_replays_in_its_idle_moments_and_judges_every_part(tmp_path: Path) -> None:
    """The whole agent at two parts a second, with a replay due all the time: goldens in between, no part lost."""
    names = make_parts(tmp_path / "parts", 500)
    config = make_station(tmp_path, port=None, camera={"rate_hz": 2.0}, acceptance={"replay_hours": 0.000001})
    golden_bundle(tmp_path, count=2)
    with AgentProcess(config) as agent:
        wait_until(lambda: agent.log().count("goldens_replayed") >= 3, 120, what="three replays")
        assert agent.terminate() == 0, agent.log()
    with Journal.open_readonly(tmp_path / "state") as journal:
        judged, pending = [verdict.part for verdict in journal.read()], journal.stats().pending

    assert judged == names[: len(judged)]
    assert judged
    assert pending == 0


def test_a_busy_line_is_let_alone(tmp_path: Path) -> None:
    """Parts without a pause: the replay that is due waits."""
    names = make_parts(tmp_path / "parts", 12)
    config = make_station(tmp_path, port=None, acceptance={"replay_hours": 0.000001})
    golden_bundle(tmp_path, count=2)
    with AgentProcess(config) as agent:
        assert agent.wait() == 0, agent.log()
    with Journal.open_readonly(tmp_path / "state") as journal:
        judged = [verdict.part for verdict in journal.read()]

    assert judged == names
    assert agent.log().count("goldens_replayed") == 1  # the start's


def test_replay_hours_0_replays_at_the_start_only(tmp_path: Path) -> None:
    """As configured."""
    with line(tmp_path, replay_hours=0) as made:
        made.watch.start()
        made.clock.now_s += 1e7
        assert made.idle(10) == 0


def test_an_engine_twice_as_slow_as_at_acceptance_is_told_after_two_passes(accepted: Line) -> None:
    """One busy moment is no alarm; the second pass comes at once."""
    accepted.engine.ms = 2.1 * MS
    accepted.clock.now_s += 24 * 3600
    accepted.idle(GOLDENS)
    first = accepted.watch.fault
    accepted.idle(GOLDENS)

    assert first is None
    assert accepted.watch.fault == "the engine is slow: 4.2 ms per inference, at acceptance 2.0 ms"
    assert accepted.told == [accepted.watch.fault]


def test_a_busy_moment_is_no_fault(accepted: Line) -> None:
    """Slow once, and as before at the second look."""
    accepted.engine.ms = 10 * MS
    accepted.clock.now_s += 24 * 3600
    accepted.idle(GOLDENS)
    accepted.engine.ms = MS
    accepted.idle(10)

    assert accepted.watch.fault is None
    assert accepted.told == []


def test_the_fault_ends_by_itself_when_its_cause_does(accepted: Line) -> None:
    """A fan that was blocked and is free again; looked at every minute while it lasts."""
    accepted.engine.ms = 5 * MS
    accepted.clock.now_s += 24 * 3600
    accepted.idle(2 * GOLDENS)
    slow = accepted.watch.fault
    accepted.engine.ms = MS
    accepted.clock.now_s += RECHECK_S
    accepted.idle(GOLDENS)

    assert slow is not None
    assert accepted.watch.fault is None
    assert [fault is None for fault in accepted.told] == [False, True]


def test_the_factor_is_the_configurations(tmp_path: Path) -> None:
    """A plant that shares its GPU may allow more."""
    with line(tmp_path, slow_factor=10) as made:
        made.engine.ms = 9 * MS
        made.watch.start()
        assert made.watch.fault is None


def test_a_golden_that_gets_another_verdict_than_at_acceptance_is_named(tmp_path: Path) -> None:
    """A driver's update changed a kernel: which picture, what now, what then."""
    with line(tmp_path) as made:
        verdicts = {**made.accepted.verdicts, "golden/002.png": "ok good"}
        made.watch = made.watching(dataclasses.replace(made.accepted, verdicts=verdicts))
        made.watch.start()

        assert made.watch.fault == (
            "the engine answers otherwise than at acceptance: golden/002.png is defect stain, was ok good"
        )


def test_an_engine_that_begins_to_fail_is_told(accepted: Line) -> None:
    """Its parts get error verdicts; the status says why."""
    accepted.engine.fails = True
    accepted.clock.now_s += 24 * 3600
    accepted.idle(GOLDENS)

    assert accepted.watch.fault is not None
    assert "golden/000.png is error: the GPU is gone, was ok good; 3 more" in accepted.watch.fault


@pytest.mark.parametrize("stage", ["infer", "decode"])
def test_three_parts_in_a_row_without_an_answer_are_the_engines_fault(accepted: Line, stage: Stage) -> None:
    """A GPU that dies in the middle of a shift: told at the third part, not after hundreds."""
    for _ in range(FAILING - 1):
        accepted.part(stage)
    before = list(accepted.told)
    accepted.engine.fails = True
    accepted.part(stage)

    assert before == []
    assert accepted.told == ["the engine fails: 3 parts in a row got no answer (launch failure)"]
    assert accepted.fails == [True]
    assert accepted.watch.fault == accepted.told[0]
    for _ in range(100):
        accepted.part(stage)
    assert len(accepted.told) == 1  # once


def test_parts_that_fail_now_and_then_are_not_the_engines_fault(accepted: Line) -> None:
    """And of a camera's fault the engine knows nothing: neither for it nor against it."""
    stages: list[Stage | None] = ["infer", "infer", None, "infer", "capture", "infer", None]
    for stage in stages:
        accepted.part(stage)
    assert accepted.told == []

    for stage in ("infer", "capture", "infer", "preprocess"):
        accepted.part(stage)
    accepted.part(not_found="no part there")
    accepted.part("infer")
    assert len(accepted.told) == 1


def test_the_views_of_a_part_count_once(accepted: Line) -> None:
    """Three cameras that see one part are not three parts; and one view without an answer is a part without one."""
    accepted.part("infer", "infer", "infer")
    accepted.part("capture", "infer", None)
    assert accepted.told == []
    accepted.part(None, None, "infer")
    assert len(accepted.told) == 1


def test_a_golden_is_tried_at_once_and_an_engine_that_answers_all_of_them_is_back(accepted: Line) -> None:
    """On a line that is never idle, too; the goldens are what says so."""
    for _ in range(FAILING):
        accepted.part("infer")
    runs = accepted.engine.runs
    assert runs == GOLDENS + 1  # the first one right after the third part
    accepted.idle(GOLDENS - 2)
    early = list(accepted.told)
    accepted.idle(1)

    assert len(early) == 1
    assert accepted.watch.fault is None
    assert [fault is None for fault in accepted.told] == [False, True]


def test_an_engine_that_stays_dead_stays_told_and_is_tried_every_minute(accepted: Line) -> None:
    """And the day it answers again, that is told."""
    accepted.engine.fails = True
    for _ in range(FAILING):
        accepted.part("infer")
    accepted.idle(200)
    assert accepted.engine.runs == 2 * GOLDENS  # the start's, and one pass
    assert len(accepted.told) == 1
    accepted.engine.fails = False
    accepted.clock.now_s += RECHECK_S
    accepted.idle(GOLDENS)

    assert accepted.told[1:] == [None]


def test_goldens_that_pass_while_parts_go_on_failing_end_nothing(accepted: Line) -> None:
    """Small pictures may run where the line's do not: the alarm does not flicker."""
    for _ in range(60):
        accepted.part("infer")

    assert len(accepted.told) == 1
    accepted.part()  # one that is judged: the goldens are tried at once
    accepted.idle(GOLDENS)
    assert accepted.watch.fault is not None  # and of the last parts most are without an answer
    for _ in range(WINDOW - LOST):
        accepted.part()
    assert accepted.told[1:] == [None]


@pytest.mark.parametrize("form", ["ei", "eei", "eiiiiiiii"], ids=["every second", "two of three", "every ninth"])
def test_an_engine_that_fails_now_and_then_is_told_by_its_share(accepted: Line, form: str) -> None:
    """Never three parts in a row: still a GPU that loses parts, and somebody has to look."""
    seen = 0
    while not accepted.told and seen < WINDOW:
        accepted.part("infer" if form[seen % len(form)] == "e" else None)
        seen += 1

    assert accepted.told == [f"the engine fails: {LOST} of the last {seen} parts got no answer (launch failure)"]
    assert accepted.fails == [True]


def test_a_few_lost_parts_of_many_are_not_the_engines_fault(accepted: Line) -> None:
    """Four of fifty, again and again; and parts that it was not asked about are none of the fifty."""
    for _ in range(6):
        for _ in range(LOST - 1):
            accepted.part("infer")
            accepted.part()
        for _ in range(WINDOW - 2 * (LOST - 1)):
            accepted.part()
            accepted.part("capture")

    assert accepted.told == []


def test_an_engine_that_failed_now_and_then_is_back_when_goldens_and_parts_say_so(accepted: Line) -> None:
    """Neither alone: the goldens pass at once, and the share takes its parts."""
    for _ in range(LOST):
        accepted.part("infer")
        accepted.part()
    accepted.idle(2 * GOLDENS)
    after_goldens = list(accepted.told)
    for _ in range(WINDOW - 2 * LOST):
        accepted.part()
    before = list(accepted.told)
    for _ in range(2):
        accepted.part()

    assert len(after_goldens) == len(before) == 1
    assert accepted.told[1:] == [None]


def test_a_share_that_is_small_again_ends_nothing_before_every_golden_got_its_answer(accepted: Line) -> None:
    """Parts alone do not say it."""
    for _ in range(LOST):
        accepted.part("infer")
        accepted.part()
    accepted.engine.fails = True
    for _ in range(2 * WINDOW):
        accepted.part()
    meanwhile = [fault is None for fault in accepted.told]
    accepted.engine.fails = False
    for _ in range(2):  # the pass that was under way, and a whole one
        accepted.clock.now_s += RECHECK_S
        accepted.idle(GOLDENS)

    assert not any(meanwhile)
    assert accepted.watch.fault is None


def test_without_goldens_some_parts_that_are_judged_say_that_it_is_back(tmp_path: Path) -> None:
    """There is nothing else to ask."""
    made = Line(golden_bundle(tmp_path, count=0), accepted=False)
    made.watch.start()
    for _ in range(FAILING):
        made.part("infer")
    for _ in range(FAILING):
        made.part()
    made.engine.close()

    assert [fault is None for fault in made.told] == [False, True]


def test_without_an_acceptance_the_build_is_what_counts(tmp_path: Path) -> None:
    """Nobody measured here; but another verdict than at the build is one all the same."""
    bundle = golden_bundle(tmp_path, count=6, graph=confused_classifier(), reference=classifier())
    strict, lenient = Line(bundle, accepted=False), Line(bundle, accepted=False, max_changed=4)
    for made in (strict, lenient):
        made.engine.ms = 1000 / 6  # no acceptance, no time to be slower than
        made.watch.start()
        made.engine.close()

    assert strict.watch.fault is not None
    assert "otherwise than at the build: golden/000.png is defect scratch, was ok good; 3 more" in strict.watch.fault
    assert lenient.watch.fault is None


def test_an_engine_of_another_runtime_than_accepted_is_told_at_once(tmp_path: Path) -> None:
    """The worst known fault of a Jetson: the CPU does the GPU's work, and nobody sees it."""
    with line(tmp_path) as made:
        then = dataclasses.replace(made.accepted, kind="trt", engine="TensorRT 10.3.0 Orin int8")
        made.watch = made.watching(then)
        made.watch.start()

        assert made.watch.fault == f"the engine is {made.engine.name}, accepted was TensorRT 10.3.0 Orin int8"


def test_a_fall_back_is_a_fault_without_any_acceptance_and_without_goldens(tmp_path: Path) -> None:
    """`auto` may fall back; the plant hears of it."""
    made = Line(golden_bundle(tmp_path, count=0), accepted=False)
    made.engine.name = f"onnxruntime CPU ({FALL_BACK}: no GPU)"
    made.watch = made.watching(None)
    made.watch.start()
    made.engine.close()

    assert made.told == [f"the engine is {made.engine.name}"]
    assert made.idle(5) == 0


def test_a_start_replay_has_an_end_and_the_rest_follows_in_idle_moments(tmp_path: Path) -> None:
    """An engine that takes seconds must not keep systemd waiting; that it is slow is said at once."""
    with line(tmp_path) as made:
        made.engine.ms = START_S * 1000 / 3
        made.watch.start()
        runs, fault = made.engine.runs, made.watch.fault
        assert (runs, fault is not None) == (3, True)
        assert made.idle(GOLDENS) == GOLDENS
