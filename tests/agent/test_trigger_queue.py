"""Triggers that come when they want: every one leaves exactly once, as a part or as a refusal; none in silence."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.frame import Fault, Part, Stamp
from agent.triggers import queue
from agent.triggers.ids import ID_BYTES, cleaned_id, made_up_id
from agent.triggers.queue import TriggerQueue
from tests.kit.waiting import wait_until
from tests.kit.watchers import Listener

NOW = Stamp(1_769_850_843_127, time.monotonic_ns() + 3_600_000_000_000)


def queue_of(waiting: int = 1, *, is_running: bool = True) -> TriggerQueue:
    """A queue whose line has asked for a part."""
    made = TriggerQueue(kind="test", prefix="part", waiting=waiting)
    if is_running:
        assert made.next(0) is None
    return made


def drained(of: TriggerQueue) -> list[Part | Fault]:
    """All that it gives now."""
    given: list[Part | Fault] = []
    while (one := of.next(0)) is not None:
        given.append(one)
    return given


def test_a_trigger_becomes_a_part_with_the_moment_it_came() -> None:
    """The picture must be later than that."""
    triggers = queue_of()
    offered = triggers.offer("A1", NOW)

    assert offered == Part(id="A1", trigger="test", sequence=1, triggered=NOW)
    assert triggers.next(0) == offered
    assert triggers.next(0) is None


def test_a_part_without_a_name_gets_one() -> None:
    """It tells the moment, and is unlike those of this run and of earlier ones."""
    triggers = queue_of(waiting=5)
    names = [triggers.offer(None, NOW), triggers.offer("", NOW), triggers.offer(" \r", NOW)]

    assert [one.id for one in names if isinstance(one, Part)] == [
        "part-20260131T091403127-1",
        "part-20260131T091403127-2",
        "part-20260131T091403127-3",
    ]


def test_more_than_may_wait_are_refused_loudly() -> None:
    """Each of them gets an `error` verdict, which the line hears of before it takes the next part."""
    triggers = queue_of(waiting=1)
    first, second, third = (triggers.offer(name, NOW) for name in ("first", "second", "third"))

    assert isinstance(first, Part)
    assert isinstance(second, Part)
    assert isinstance(third, Fault)
    assert third.reason == "refused: a part is being judged, and 1 more wait already (trigger.waiting)"
    assert drained(triggers) == [third, first, second]


def test_no_part_may_wait_where_none_is_wanted() -> None:
    """`waiting: 0`: a part is taken only while the line is free."""
    triggers = queue_of(waiting=0)
    taken = triggers.offer("taken", NOW)
    assert triggers.next(0) == taken
    refused = triggers.offer("refused", NOW)
    assert isinstance(refused, Fault)
    assert refused.reason == "refused: a part is being judged, and none may wait (trigger.waiting: 0)"
    assert triggers.next(0) == refused

    assert isinstance(triggers.offer("free again", NOW), Part)


def test_before_the_line_runs_as_many_wait_as_may() -> None:
    """A part is there, even if the line is not."""
    triggers = queue_of(waiting=1, is_running=False)

    assert isinstance(triggers.offer("waits", NOW), Part)
    refused = triggers.offer("early", NOW)
    assert isinstance(refused, Fault)
    assert refused.reason == "refused: the line is not running yet"
    assert [one.part.id if isinstance(one, Fault) else one.id for one in drained(triggers)] == ["early", "waits"]


def test_a_trigger_that_was_noticed_too_late_is_an_error() -> None:
    """The process stood still for seconds: a picture of now would be one of another part."""
    triggers = queue_of()
    refused = triggers.offer("A1", Stamp(0, time.monotonic_ns() - 3_000_000_000))

    assert isinstance(refused, Fault)
    assert refused.reason.startswith("the trigger was noticed 30")
    assert triggers.next(0) == refused


def test_noise_does_not_keep_parts_from_being_judged() -> None:
    """Refusals come first, but not for ever: a flood of them must not starve the line."""
    triggers = queue_of(waiting=1)
    for number in range(100):
        triggers.offer(str(number), NOW)
    kinds = [type(one) for one in drained(triggers)]

    assert kinds.index(Part) == queue.REFUSALS_IN_A_ROW
    assert kinds.count(Fault) == 98
    assert kinds.count(Part) == 2


def test_triggers_of_which_only_the_number_is_known_are_errors() -> None:
    """Edges that the kernel threw away."""
    triggers = queue_of()
    triggers.lose(3, NOW, "edge lost")
    lost = drained(triggers)

    assert [(one.part.sequence, one.reason) for one in lost if isinstance(one, Fault)] == [
        (1, "edge lost"),
        (2, "edge lost"),
        (3, "edge lost"),
    ]
    assert len({one.part.id for one in lost if isinstance(one, Fault)}) == 3


def test_whoever_floods_waits_for_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals are owed, so they can't be dropped, and memory ends somewhere."""
    monkeypatch.setattr(queue, "MAX_REFUSALS", 10)
    triggers = queue_of(waiting=0)
    with ThreadPoolExecutor(1) as pool:
        flood = pool.submit(lambda: [triggers.offer(None, NOW) for _ in range(100)])
        wait_until(lambda: triggers.is_held_back)
        assert not flood.done()
        given: list[Part | Fault] = []
        while len(given) < 100:
            one = triggers.next(10)
            assert one is not None
            given.append(one)
        offered = flood.result(10)

    assert {str(one) for one in given} == {str(one) for one in offered}
    assert triggers.next(0) is None


def test_close_lets_go_of_one_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop must not hang on a flood; what it had offered is still given."""
    monkeypatch.setattr(queue, "MAX_REFUSALS", 2)
    triggers = queue_of(waiting=0)
    with ThreadPoolExecutor(1) as pool:
        flood = pool.submit(lambda: [triggers.offer(str(number), NOW) for number in range(4)])
        wait_until(lambda: triggers.is_held_back)
        triggers.close()
        offered = flood.result(10)
    given = drained(triggers)

    assert len(offered) == len(given) == 4
    assert triggers.ended


def test_what_waits_at_the_end_is_an_error() -> None:
    """A part that was triggered gets its verdict, whatever stops the line."""
    triggers = queue_of(waiting=1)
    listener = Listener()
    triggers.watch(listener)
    triggers.offer("first", NOW)
    triggers.offer("second", NOW)
    assert not triggers.ended
    triggers.close()
    triggers.close()
    ended = [triggers.ended]
    given = drained(triggers)
    ended.append(triggers.ended)

    assert [(one.part.id, one.reason) for one in given if isinstance(one, Fault)] == [
        ("first", "the line was stopped before this part was judged"),
        ("second", "the line was stopped before this part was judged"),
    ]
    assert ended == [False, True]
    assert listener.heard[-2:] == given
    assert listener.readiness[-1] is False


def test_after_the_end_nothing_is_taken() -> None:
    """Whoever offers is told; the line owes nothing."""
    triggers = queue_of()
    triggers.close()

    refused = triggers.offer("late", NOW)
    assert isinstance(refused, Fault)
    assert refused.reason == "refused: the line has stopped"
    assert triggers.next(0) is None
    assert triggers.ended


def test_close_wakes_the_line() -> None:
    """It waits for a part for as long as it was told to."""
    triggers = queue_of()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(triggers.next, 600)
        triggers.close()

        assert waiting.result(10) is None


def test_ready_tells_whether_a_trigger_will_be_taken() -> None:
    """A PLC that waits for `ready` is never refused."""
    triggers = TriggerQueue(kind="test", prefix="part", waiting=0)
    listener = Listener()
    triggers.watch(listener)
    triggers.next(0)
    triggers.offer(None, NOW)
    triggers.next(0)
    triggers.next(0)
    triggers.close()

    assert listener.readiness == [False, True, False, True, False]


def test_ready_stays_while_more_may_wait() -> None:
    """With one place, the part on its way to the line and one more are taken."""
    triggers = queue_of(waiting=1)
    listener = Listener()
    triggers.watch(listener)
    triggers.offer(None, NOW)
    after_one = list(listener.readiness)
    triggers.offer(None, NOW)

    assert after_one == [True]
    assert listener.readiness == [True, False]


def test_a_bug_in_the_fast_outputs_loses_no_part() -> None:
    """Whatever the watcher does, the trigger goes its way to the line."""
    triggers, listener = queue_of(waiting=0), Listener(fails=True)
    with pytest.raises(RuntimeError):
        triggers.watch(listener)
    taken, refused = triggers.offer("A1", NOW), triggers.offer("A2", NOW)

    assert drained(triggers) == [refused, taken]
    assert listener.heard[:4] == [True, taken, False, refused]


def test_every_trigger_leaves_exactly_once_whatever_the_threads_do() -> None:
    """Four sources, one line, and a random pace; the fast outputs hear of each in the order of its sequence."""
    triggers = queue_of(waiting=2)
    listener = Listener()
    triggers.watch(listener)
    chance = random.Random(9)
    start = threading.Barrier(5)
    given: list[Part | Fault] = []

    def source(name: int) -> list[Part | Fault]:
        start.wait()
        return [triggers.offer(f"{name}-{number}", NOW) for number in range(500)]

    def line() -> None:
        start.wait()
        while not triggers.ended:
            one = triggers.next(chance.choice((0, 0.001, 0.01)))
            if one is not None:
                given.append(one)

    with ThreadPoolExecutor(5) as pool:
        running = pool.submit(line)
        offered = [one for source in [pool.submit(source, name) for name in range(4)] for one in source.result(60)]
        triggers.close()
        running.result(60)
    ids = [one.part.id if isinstance(one, Fault) else one.id for one in given]
    refused = {one.part.id for one in offered if isinstance(one, Fault)}

    assert sorted(ids) == sorted(f"{name}-{number}" for name in range(4) for number in range(500))
    assert refused <= {one.part.id for one in given if isinstance(one, Fault)}
    assert sorted(set(listener.sequences)) == list(range(1, 2_001))
    firsts = list(dict.fromkeys(listener.sequences))
    assert firsts == sorted(firsts)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_an_id_can_stand_in_a_line_of_text(text: str) -> None:
    """Whatever a bar code reader sends, with room in a verdict's 256 bytes; cleaning it again changes nothing."""
    cleaned = cleaned_id(text)

    assert len(cleaned.encode()) <= ID_BYTES
    assert cleaned.isprintable()
    assert " " not in cleaned
    assert cleaned_id(cleaned) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A1", "A1"),
        (" lot 7 / 3 ", "lot_7_/_3"),
        ("01095\x1d21ABC", "01095_21ABC"),
        ("a\x00b", "a?b"),
        ("Öse-12", "Öse-12"),
        ("\ud800", "?"),
        ("x" * 1_000, "x" * ID_BYTES),
        ("€" * 1_000, "€" * (ID_BYTES // 3)),
        ("", ""),
        ("\r\n", ""),
    ],
)
def test_an_id_keeps_what_can_be_printed(text: str, cleaned: str) -> None:
    """The PLC gets the same word back."""
    assert cleaned_id(text) == cleaned


def test_a_made_up_id_is_utc() -> None:
    """Not the local time, which stands still twice a year."""
    assert made_up_id("p", NOW, 17) == "p-20260131T091403127-17"
