"""When a message waits, when its kind is held, and when it is set aside; and how fast the rest goes."""

from __future__ import annotations

import time
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.journal import OutboxRow
from agent.publisher.lanes import DELAYS_S, Admission, Lanes, Outcome
from agent.publisher.pace import Backoff, Pace


def row(seq: int, kind: Literal["verdict", "image"] = "verdict") -> OutboxRow:
    return OutboxRow(
        seq=seq, kind=kind, topic="t", qos=1, retain=False, rec=seq, created_ms=0, content_type="application/json"
    )


def test_one_refusal_lets_the_others_pass_one_at_a_time() -> None:
    """Whether it is about this message or about all of them, the next one tells."""
    lanes = Lanes()

    assert lanes.failed(row(1), "refused", "no", now=0.0) is Outcome.TRY_LATER
    assert lanes.admit(row(1), in_flight=False) is Admission.SKIP
    assert lanes.admit(row(2), in_flight=False) is Admission.GO
    assert lanes.admit(row(3), in_flight=True) is Admission.WAIT
    lanes.accepted(row(2))
    assert lanes.admit(row(3), in_flight=True) is Admission.GO
    assert lanes.due(0.5) is None
    assert lanes.due(1.0) == row(1)


def test_two_refusals_in_a_row_hold_the_kind_and_no_other() -> None:
    """An access list concerns a topic; verdicts must pass while pictures may not."""
    lanes = Lanes()
    lanes.failed(row(1, "image"), "refused", "not authorized", now=0.0)

    assert lanes.failed(row(2, "image"), "refused", "not authorized", now=0.0) is Outcome.LANE_HELD
    assert lanes.held == {"image": "not authorized"}
    assert lanes.admit(row(3, "image"), in_flight=False) is Admission.SKIP
    assert lanes.admit(row(4), in_flight=True) is Admission.GO


def test_a_held_kind_starts_again_with_its_oldest() -> None:
    """The order holds: everything that waited comes again from the first one on."""
    lanes = Lanes()
    for seq in (1, 2, 3):
        lanes.failed(row(seq), "refused", "no", now=0.0)
    lanes.admit(row(5), in_flight=False)
    lanes.admit(row(4), in_flight=False)

    assert lanes.due(1.0) == row(1)
    assert lanes.accepted(row(1))
    assert lanes.take_rewind() == 4
    assert lanes.take_rewind() is None
    assert lanes.due(1.0) == row(2)
    assert lanes.held == {}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200))
@settings(max_examples=50)
def test_a_broker_that_takes_nothing_never_empties_the_journal(refused: list[int]) -> None:
    """Whatever is refused how often: without an accepted message nothing is set aside."""
    lanes = Lanes()
    outcomes = {lanes.failed(row(seq), "refused", "no", now=float(n)) for n, seq in enumerate(refused)}

    assert Outcome.SET_ASIDE not in outcomes


def test_a_message_that_fails_while_others_pass_is_set_aside() -> None:
    """Three times, each time with another of its kind accepted in between: it is the message."""
    lanes = Lanes()
    outcomes = []
    for n in range(3):
        outcomes.append(lanes.failed(row(1), "refused", "no", now=float(n)))
        lanes.accepted(row(10 + n))

    assert outcomes == [Outcome.TRY_LATER, Outcome.TRY_LATER, Outcome.SET_ASIDE]
    assert lanes.due(100.0) is None


def test_pictures_that_only_the_access_list_denies_are_kept() -> None:
    """Verdicts pass and pictures don't: not authorized concerns all pictures, and is mended by a person."""
    lanes = Lanes()
    for n in range(10):
        assert lanes.failed(row(1, "image"), "refused", "no", now=n * 100.0) is not Outcome.SET_ASIDE
        lanes.accepted(row(10 + n))


def test_picture_that_cuts_the_link_is_set_aside_when_the_status_passes() -> None:
    """Brokers without MQTT 5 just close on what is too large; each new connection begins with an accepted status."""
    lanes = Lanes()
    outcomes = []
    for n in range(3):
        lanes.birth_accepted()
        outcomes.append(lanes.failed(row(1, "image"), "cut", "closed", now=n * 100.0))

    assert outcomes == [Outcome.TRY_LATER, Outcome.LANE_HELD, Outcome.SET_ASIDE]
    assert lanes.held == {}


def test_verdict_is_not_set_aside_for_cutting_the_link() -> None:
    """Pictures go before verdicts: an accepted status is no proof against a verdict."""
    lanes = Lanes()
    for n in range(20):
        lanes.birth_accepted()
        assert lanes.failed(row(1), "cut", "closed", now=n * 1000.0) is not Outcome.SET_ASIDE


def test_silence_is_never_a_reason_to_set_aside() -> None:
    """A link that froze says nothing about what was under way."""
    lanes = Lanes()
    for n in range(20):
        lanes.birth_accepted()
        lanes.accepted(row(100 + n, "image"))
        assert lanes.failed(row(1, "image"), "silent", "frozen", now=n * 1000.0) is not Outcome.SET_ASIDE


def test_tries_become_rare() -> None:
    """A refusal that lasts all night must not be asked about every second; and it ends within half a minute."""
    lanes = Lanes()
    lanes.failed(row(1), "refused", "no", now=0.0)
    lanes.failed(row(2), "refused", "no", now=0.0)
    tries, now = [], 0.0
    for _ in range(8):
        due = lanes.next_due()
        assert due is not None
        tries.append(due - now)
        now = due
        lanes.failed(row(1), "refused", "no", now=now)

    assert tries == [1, 2, 4, 8, 16, 30, 30, 30]
    assert DELAYS_S["refused"][1] == 30


def test_held_kind_whose_last_picture_was_evicted_goes_on() -> None:
    """The one that tries for the others may be gone; then the next one must, or the kind is held for ever."""
    lanes = Lanes()
    lanes.failed(row(1, "image"), "refused", "no", now=0.0)
    lanes.failed(row(2, "image"), "refused", "no", now=0.0)
    lanes.admit(row(3, "image"), in_flight=False)
    lanes.forget(row(1, "image"))
    assert lanes.held
    lanes.forget(row(2, "image"))

    assert lanes.held == {}
    assert lanes.take_rewind() == 3
    assert lanes.admit(row(3, "image"), in_flight=False) is Admission.GO
    assert lanes.admit(row(4, "image"), in_flight=True) is Admission.WAIT


def allowed_within(pace: Pace, seconds: float, created_ms: float, *, start: float) -> int:
    steps = int(seconds * 1000)
    return sum(pace.allows(int(created_ms), start + n / 1000) for n in range(1, steps + 1))


def test_backlog_goes_at_the_limited_rate() -> None:
    """100 per second, give or take the first burst."""
    start = time.monotonic()
    pace = Pace(100.0)
    old_ms = time.time() * 1000 - 60_000

    assert 195 <= allowed_within(pace, 2.0, old_ms, start=start) <= 210


def test_live_messages_go_at_once_unless_many_wait() -> None:
    """A young message is held back only when hundreds of them would overflow the broker's queue together."""
    start = time.monotonic()
    pace = Pace(100.0)
    young_ms = time.time() * 1000

    assert allowed_within(pace, 0.5, young_ms, start=start) == 500
    pace.measure(10_000, start)
    assert allowed_within(pace, 0.5, young_ms, start=start) <= 60


def test_backlog_behind_a_fast_line_shrinks() -> None:
    """1,000 parts per second come in live: at a fixed rate of 100 the backlog would grow for ever."""
    start = time.monotonic()
    pace = Pace(100.0)
    depth = 5_000
    pace.measure(depth, start)
    sent_in_last_second = 0
    for second in range(1, 40):
        now = start + second
        sent_in_last_second = allowed_within(pace, 1.0, 0, start=now - 1)
        pace.left(sent_in_last_second)
        depth += 900 - sent_in_last_second
        pace.measure(depth, now)

    assert sent_in_last_second > 900


def test_pauses_double_up_to_the_longest_and_are_spread() -> None:
    """A plant's stations must not come back all in the same moment."""
    backoff = Backoff(0.2, 2.0)
    pauses = [backoff.take() for _ in range(8)]

    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, [0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2], strict=True))
    assert len({Backoff(2.0, 2.0).take() for _ in range(20)}) > 1
    backoff.reset()
    assert backoff.take() <= 0.2
    assert backoff.take(longest=True) >= 1.0
