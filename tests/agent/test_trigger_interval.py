"""A part at fixed times: no drift, and a line that is late gets refusals, not a burst."""

from __future__ import annotations

from agent.config import IntervalTriggerConfig
from agent.frame import Fault, Part
from agent.triggers import open_trigger
from agent.triggers.interval import IntervalTrigger
from tests.kit.cameras import HandCamera
from tests.kit.waiting import wait_until
from tests.kit.watchers import Listener


def trigger_of(period_ms: float, *, waiting: int = 1) -> IntervalTrigger:
    """Opened as the station opens it."""
    config = IntervalTriggerConfig(kind="interval", period_ms=period_ms, waiting=waiting, part_prefix="press7")
    trigger = open_trigger(config, HandCamera())
    assert isinstance(trigger, IntervalTrigger)
    return trigger


def taken(trigger: IntervalTrigger, count: int) -> list[Part | Fault]:
    """So many parts and refusals."""
    given: list[Part | Fault] = []
    while len(given) < count:
        one = trigger.next(10)
        assert one is not None
        given.append(one)
    return given


def moment(one: Part | Fault) -> int:
    """When it was due."""
    return (one.part if isinstance(one, Fault) else one).triggered.mono_ns


def test_ticks_keep_their_times_whatever_the_line_does() -> None:
    """The n-th is due n periods after the first, to the nanosecond; UTC goes with it."""
    trigger = trigger_of(3)
    first, *others = taken(trigger, 20)
    trigger.close()
    given = sorted([first, *others], key=moment)
    assert isinstance(first, Part)

    assert [moment(one) - moment(first) for one in given] == [3_000_000 * tick for tick in range(20)]
    assert first.id.startswith("press7-20")
    assert first.trigger == "interval"
    utc = [(one.part if isinstance(one, Fault) else one).triggered.utc_ms for one in given]
    assert utc == sorted(utc)


def test_the_clock_starts_with_the_line() -> None:
    """What ticks before the line asks is nobody's part."""
    trigger = trigger_of(1)
    listener = Listener()
    trigger.watch(listener)
    before = list(listener.sequences)
    first = trigger.next(10)
    trigger.close()

    assert before == []
    assert isinstance(first, Part)
    assert first.sequence == 1


def test_a_late_line_gets_refusals_and_no_burst() -> None:
    """It is away for many ticks: what may wait waits, each of the others is an error, and none is missing."""
    trigger = trigger_of(1, waiting=1)
    listener = Listener()
    trigger.watch(listener)
    away = trigger.next(10)
    wait_until(lambda: len(listener.sequences) >= 30)
    trigger.close()
    given: list[Part | Fault] = []
    while not trigger.ended:
        one = trigger.next(0)
        assert one is not None
        given.append(one)
    faults = [one for one in given if isinstance(one, Fault)]

    assert isinstance(away, Part)
    assert len(given) == len(faults)  # the one that waited, too: the line was stopped
    assert sorted(one.part.sequence for one in faults) == list(range(2, len(faults) + 2))
    assert len(faults) >= 29
    refused = [one for one in faults if one.reason.startswith("refused: a part is being judged, and 1 more wait")]
    assert len(refused) == len(faults) - 1


def test_a_closed_clock_is_silent() -> None:
    """Its thread has ended; what came before is still given, and then no more."""
    trigger = trigger_of(1)
    taken(trigger, 3)
    trigger.close()
    trigger.close()
    while trigger.next(0) is not None:
        pass

    assert trigger.ended
    assert trigger.lost is None
    assert trigger.next(0.01) is None


def test_a_clock_that_never_ran_can_be_closed() -> None:
    """The start failed before the line ran."""
    trigger = trigger_of(60_000)
    trigger.close()

    assert trigger.ended
