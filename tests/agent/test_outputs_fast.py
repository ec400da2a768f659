"""The fast path: exactly one result per part and output, at the latest at the deadline, whatever an output does."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.config import FreeRunConfig, OutputsConfig
from agent.frame import Fault, Part, Stamp
from agent.outputs import FastPath, Output, open_outputs
from agent.outputs import fast as fast_module
from agent.triggers import open_trigger
from agent.triggers.queue import TriggerQueue
from tests.kit.cameras import HandCamera
from tests.kit.outputs import Recorder
from tests.kit.waiting import wait_until

HOUR_NS = 3_600_000_000_000


def part_at(sequence: int, mono_ns: int | None = None) -> Part:
    """A part; by default triggered now."""
    at = Stamp.now() if mono_ns is None else Stamp(0, mono_ns)
    return Part(id=f"p{sequence}", trigger="test", sequence=sequence, triggered=at)


class Paths:
    """Makes fast paths, and closes them."""

    def __init__(self) -> None:
        self._made: list[FastPath] = []

    def make(self, *outputs: Output, deadline_ms: float | None = None) -> FastPath:
        """One more."""
        self._made.append(FastPath(outputs, deadline_ms=deadline_ms))
        return self._made[-1]

    def close(self) -> None:
        """All of them."""
        for one in self._made:
            one.close()


@pytest.fixture
def paths() -> Iterator[Paths]:
    """They end with the test."""
    made = Paths()
    yield made
    made.close()


def test_each_output_hears_the_whole_way_of_a_part_in_its_order(paths: Paths) -> None:
    """A PLC programmer's diagram is drawn from it."""
    first, second = Recorder(), Recorder()
    fast, part = paths.make(first, second), part_at(1)
    fast.ready(is_ready=True)
    fast.offered(part)
    fast.ready(is_ready=False)
    fast.begin(part)
    fast.exposing(is_exposing=True)
    fast.exposing(is_exposing=False)
    assert fast.finish(part, "ok", "good")
    fast.fault("camera lost")
    fast.fault(None)
    fast.close()

    assert first.told == second.told
    assert first.told == [
        ("ready", True),
        ("expect", "p1"),
        ("ready", False),
        ("busy", "p1"),
        ("exposing", True),
        ("exposing", False),
        ("result", "p1", "ok", "good"),
        ("fault", "camera lost"),
        ("fault", None),
        ("close",),
    ]


def test_a_part_without_a_verdict_is_an_error_at_its_deadline(paths: Paths) -> None:
    """The PLC does not wait for a model; the verdict that comes after it is late, and goes to no output."""
    output = Recorder()
    fast, part = paths.make(output, deadline_ms=30), part_at(1)
    fast.begin(part)
    wait_until(lambda: output.results)
    told_ns = time.monotonic_ns()
    in_time = fast.finish(part, "ok", "good")
    fast.close()

    assert output.results == [("p1", "error", "deadline: no verdict within 30 ms (line.deadline_ms)")]
    assert told_ns >= part.triggered.mono_ns + 30_000_000
    assert not in_time


def test_no_ok_passes_after_the_deadline_even_if_nobody_was_awake(paths: Paths) -> None:
    """The thread may come late; the clock decides."""
    output = Recorder()
    output.gate.clear()
    fast, part = paths.make(output, deadline_ms=1), part_at(1, time.monotonic_ns() - 10_000_000)
    fast.ready(is_ready=True)  # the thread hangs in this output
    fast.begin(part)
    in_time = fast.finish(part, "ok", "good")
    output.gate.set()
    fast.close()

    assert not in_time
    assert [result[:2] for result in output.results] == [("p1", "error")]


def test_the_deadline_counts_from_the_trigger_although_the_line_has_not_begun(paths: Paths) -> None:
    """A part waits behind one that hangs in the camera: its result is due all the same."""
    output = Recorder()
    fast = paths.make(output, deadline_ms=20)
    triggers = TriggerQueue(kind="test", prefix="part", waiting=1)
    triggers.watch(fast)
    waits = triggers.offer("waits", Stamp.now())
    assert isinstance(waits, Part)
    wait_until(lambda: output.results)
    begun = triggers.next(0)
    assert begun == waits
    fast.begin(waits)
    in_time = fast.finish(waits, "ok", "good")
    fast.close()

    assert [result[:2] for result in output.results] == [("waits", "error")]
    assert not in_time


def test_a_refused_part_is_an_error_at_once_and_only_once(paths: Paths) -> None:
    """The line finishes it when it gets round to it; that is not late, and nobody hears it again."""
    output = Recorder()
    fast = paths.make(output, deadline_ms=60_000)
    triggers = TriggerQueue(kind="test", prefix="part", waiting=0)
    triggers.watch(fast)
    refused = triggers.offer("early", Stamp.now())
    assert isinstance(refused, Fault)
    wait_until(lambda: output.results)
    fault = triggers.next(0)
    assert isinstance(fault, Fault)
    fast.refused(fault)
    in_time = fast.finish(fault.part, "error", fault.reason)
    fast.close()

    assert in_time
    assert output.results == [("early", "error", "trigger: refused: the line is not running yet")]


def test_a_second_verdict_and_one_for_nobody_give_no_result(paths: Paths) -> None:
    """The first result stands; an ok that nobody asked for is never told."""
    output = Recorder()
    fast, part = paths.make(output), part_at(1)
    fast.begin(part)
    fast.finish(part, "defect", "scratch")
    fast.begin(part)
    second = fast.finish(part, "ok", "good")
    stranger = fast.finish(part_at(7), "ok", "good")
    fast.close()

    assert not second
    assert not stranger
    assert output.results == [("p1", "defect", "scratch")]


def test_a_bug_in_one_output_keeps_nothing_from_the_others_and_is_told(paths: Paths) -> None:
    """The GPIO lines do not wait for a network, nor the other way round."""
    broken, sound = Recorder("result", "expect", "close"), Recorder()
    fast = paths.make(broken, sound)
    for number in range(1, 4):
        fast.begin(part_at(number))
        assert fast.finish(part_at(number), "ok", "good")
    wait_until(lambda: fast.trouble)
    trouble = fast.trouble
    fast.close()

    assert [result[0] for result in sound.results] == ["p1", "p2", "p3"]
    assert [result[0] for result in broken.results] == ["p1", "p2", "p3"]
    assert trouble is not None
    assert trouble.startswith("Recorder: unexpected RuntimeError: ")
    assert sound.is_closed
    assert broken.is_closed


def test_trouble_is_what_the_outputs_say(paths: Paths) -> None:
    """It becomes the station's status, and goes away with its cause."""
    first, second = Recorder(), Recorder()
    fast = paths.make(first, second)
    seen = [fast.trouble]
    first.trouble, second.trouble = "no ACK 7", "line 3 failed"
    seen.append(fast.trouble)
    first.trouble = None
    seen.append(fast.trouble)

    assert seen == [None, "no ACK 7; line 3 failed", "line 3 failed"]


def test_what_is_open_at_the_end_is_an_error(paths: Paths) -> None:
    """A PLC that waits for it is not left waiting, and what the line still decides comes too late for it."""
    output = Recorder()
    fast, part = paths.make(output), part_at(1)
    fast.begin(part)
    fast.close()
    fast.close()
    fast.begin(part_at(2))
    fast.finish(part, "ok", "good")

    assert output.results == [("p1", "error", "the line was stopped before this part was judged")]
    assert output.is_closed
    assert output.told.count(("close",)) == 1


def test_without_outputs_there_is_no_thread_and_the_deadline_still_tells_late_from_in_time(paths: Paths) -> None:
    """Most stations have none: nothing is paid for."""
    before = threading.active_count()
    fast, now = paths.make(deadline_ms=1_000), time.monotonic_ns()
    early, late = part_at(1, now), part_at(2, now - 2_000_000_000)
    for part in (early, late):
        fast.offered(part)
        fast.begin(part)
    in_time = [fast.finish(early, "ok", ""), fast.finish(late, "ok", "")]
    fast.refused(Fault(part=part_at(3), stage="trigger", reason="refused"))
    fast.fault("camera lost")

    assert in_time == [True, False]
    assert threading.active_count() == before
    assert fast.trouble is None


def test_without_a_deadline_a_result_is_never_late(paths: Paths) -> None:
    """`deadline_ms: null`."""
    output = Recorder()
    fast, part = paths.make(output), part_at(1, time.monotonic_ns() - HOUR_NS)
    fast.begin(part)

    assert fast.finish(part, "ok", "good")


@pytest.mark.parametrize("seed", range(3))
def test_exactly_one_result_each_whatever_the_order_and_the_threads(
    paths: Paths, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are triggered by one thread, and finished, refused or late on others, in any order."""
    monkeypatch.setattr(fast_module, "CLOSE_S", 60)
    chance = random.Random(seed)
    outputs = Recorder(), Recorder("busy")
    fast, now, count = paths.make(*outputs, deadline_ms=1_000), time.monotonic_ns(), 1_000
    late = {number for number in range(1, count + 1) if chance.random() < 0.3}
    refused = {number for number in range(1, count + 1) if chance.random() < 0.1}
    parts = {
        number: part_at(number, now - 2_000_000_000 if number in late else now + HOUR_NS)
        for number in range(1, count + 1)
    }
    for number, part in parts.items():
        if number in refused:
            fast.refused(Fault(part=part, stage="trigger", reason="refused"))
        else:
            chance.choice((fast.offered, fast.begin))(part)
    order = list(parts)
    chance.shuffle(order)

    def finish(numbers: list[int]) -> list[tuple[int, bool]]:
        done = []
        for number in numbers:
            fast.begin(parts[number])
            done.append((number, fast.finish(parts[number], "ok", "good")))
            fast.finish(parts[number], "ok", "again")
        return done

    with ThreadPoolExecutor(4) as pool:
        finished = [one for done in pool.map(finish, [order[i::4] for i in range(4)]) for one in done]
    fast.close()

    for output in outputs:
        assert Counter(result[0] for result in output.results) == {f"p{number}": 1 for number in parts}
        assert {result[0] for result in output.results if result[1] == "ok"} == {
            f"p{number}" for number in parts if number not in late | refused
        }
        assert not [result for result in output.results if result[2] == "again"]
    assert {number for number, in_time in finished if not in_time} == late - refused


def test_no_output_is_configured() -> None:
    """The default."""
    trigger = open_trigger(FreeRunConfig(kind="free"), HandCamera())

    assert open_outputs(OutputsConfig(), trigger) == []
