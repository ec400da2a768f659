"""The rule that recommends, and the sentence that a person signs."""

from __future__ import annotations

import itertools

import pytest

from optimize.compare.decision import Contender, Question, choose, noun_of, p_text
from optimize.compare.timing import Latency


def ms(median: float, *, spread: float = 0.2) -> Latency:
    return Latency(median=median, low=median - spread, high=median + spread, count=50)


def contender(name: str, missed: int, median: float | None = None, **more: object) -> Contender:
    latency = None if median is None else ms(median)
    return Contender(name=name, missed=missed, latency=latency, **more)  # type: ignore[arg-type]


def question(p: float | dict[str, float], *contenders: Contender, n: int = 412) -> Question:
    """With one p-value for all pairs, or by both names joined."""
    pairs = itertools.permutations([c.name for c in contenders], 2)
    values = {(a, b): p if isinstance(p, float) else p["".join(sorted(a + b))] for a, b in pairs}
    return Question(n=n, unit="part", counted="critical", p_values=values)


def test_the_one_that_misses_less_is_deployed_though_it_is_slower() -> None:
    """The sentence of the issue, word for word."""
    ssd, yolo = contender("SSD", 3, 16.4), contender("YOLO", 9, 12.4)

    found = choose([yolo, ssd], question(0.04, yolo, ssd))

    assert found.reason == "deploy SSD: 3 of 412 critical parts missed against 9, p = 0.04; 4.0 ms slower"
    assert (found.name, found.against, found.p_value, found.is_shown) == ("SSD", "YOLO", 0.04, True)


def test_without_a_difference_the_faster_one_is_taken() -> None:
    """The issue's other sentence; the slower one missed fewer, and that must be said."""
    ssd, yolo = contender("SSD", 3, 16.4), contender("YOLO", 5, 12.1)

    found = choose([ssd, yolo], question(0.73, yolo, ssd))

    assert found.reason == (
        "no difference that these 412 critical parts can show (5 against 3 missed, p = 0.73); take the faster: YOLO, "
        "12.1 against 16.4 ms; SSD missed fewer, which may be chance"
    )
    assert (found.name, found.is_shown) == ("YOLO", False)


def test_what_is_faster_round_by_round_is_faster_on_a_busy_machine() -> None:
    """A busy moment slows both of a round: their middle halves overlap, and one is 5 ms faster all the same."""
    busy = [8.0, 30.0, 9.0, 50.0, 8.5, 22.0]
    fast, slow, noisy = (
        Latency(median=15, low=8, high=30, count=6, taken=tuple(taken))
        for taken in (busy, [value + 5 for value in busy], [busy[-1 - i] for i in range(6)])
    )

    assert fast.is_apart_from(slow)
    assert slow.is_apart_from(fast)
    assert not fast.is_apart_from(noisy)


def test_the_faster_one_that_also_missed_fewer_needs_no_excuse() -> None:
    """Nothing speaks for the other."""
    ssd, yolo = contender("SSD", 5, 16.4), contender("YOLO", 3, 12.1)

    reason = choose([ssd, yolo], question(0.73, yolo, ssd)).reason

    assert reason.endswith("(3 against 5 missed, p = 0.73); take the faster: YOLO, 12.1 against 16.4 ms")


def test_a_doubtful_difference_is_no_proof_but_speed_does_not_outweigh_it() -> None:
    """None against five in 412 is p = 0.06: nobody would put up the one that let five critical parts pass."""
    ssd, yolo = contender("SSD", 0, 16.4), contender("YOLO", 5, 12.1)

    found = choose([yolo, ssd], question(0.0625, yolo, ssd))

    assert found.reason == (
        "take SSD: 0 of 412 critical parts missed against 5, p = 0.062; that is no proof, but the safer choice; "
        "4.3 ms slower"
    )
    assert (found.name, found.is_shown) == ("SSD", False)


def test_a_doubtful_third_is_not_taken_for_its_speed() -> None:
    """The fastest of those alike is taken, not the fastest of all."""
    a, b, c = contender("a", 3, 16.0), contender("b", 5, 12.0), contender("c", 11, 2.0)

    found = choose([a, b, c], question({"ab": 0.7, "ac": 0.08, "bc": 0.3}, a, b, c))

    assert found.name == "b"
    assert "c missed more (11, p = 0.08)" in found.reason


def test_the_higher_map_does_not_deploy_a_model_that_misses_more() -> None:
    """The reason why this command exists; the sentence says what mAP would have chosen."""
    safe, praised = contender("safe", 2, 10.0, map50=0.71), contender("praised", 11, 10.0, map50=0.84)

    found = choose([praised, safe], question(0.012, safe, praised))

    assert found.name == "safe"
    assert found.reason == (
        "deploy safe: 2 of 412 critical parts missed against 11, p = 0.012; as fast; "
        "by mAP50 it would have been praised (0.840 against 0.710)"
    )


def test_the_order_on_the_command_line_changes_nothing_that_matters() -> None:
    """Somebody will type them the other way round."""
    a, b, c = contender("a", 3, 9.0), contender("b", 9, 7.0), contender("c", 3, 12.0)
    asked = question({"ab": 0.02, "ac": 1.0, "bc": 0.02}, a, b, c)

    assert {choose(order, asked).name for order in itertools.permutations([a, b, c])} == {"a"}


def test_equally_fast_ones_are_told_apart_by_misses() -> None:
    """Where the middle halves of their times overlap nobody would notice the difference."""
    slow, quick = contender("slow", 3, 12.3), contender("quick", 5, 12.1)

    found = choose([quick, slow], question(0.7, slow, quick))

    assert found.name == "slow"
    assert "they are as fast: take slow, which missed fewer" in found.reason


def test_wholly_alike_models_give_the_first() -> None:
    """A coin would give another answer each time."""
    first, second = contender("first", 4, 12.1), contender("second", 4, 12.2)

    assert "take first, the first given" in choose([first, second], question(1.0, first, second)).reason
    assert choose([second, first], question(1.0, first, second)).name == "second"


def test_models_that_could_not_be_timed_are_told_apart_by_misses() -> None:
    """An unknown time is no fast one."""
    a, b, timed = contender("a", 4), contender("b", 3), contender("t", 6, 90.0)

    assert choose([a, b], question(0.9, a, b)).name == "b"
    assert "they could not be timed: take b" in choose([a, b], question(0.9, a, b)).reason
    assert choose([a, timed], question(0.9, a, timed)).name == "t"


def test_images_that_could_not_be_judged_stand_in_the_sentence() -> None:
    """They were stopped, not seen: a model that fails on hard parts would look safe."""
    a, b = contender("a", 0, 5.0, unjudged=7), contender("b", 9, 5.0)

    assert choose([a, b], question(0.01, a, b)).reason.endswith(
        "; images that could not be judged (7 by a) count as stopped"
    )


def test_of_three_the_two_that_cannot_be_told_apart_are_named() -> None:
    """And the third is dismissed with its misses."""
    a, b, c = contender("a", 3, 16.0), contender("b", 5, 12.0), contender("c", 30, 2.0)

    found = choose([a, b, c], question({"ab": 0.7, "ac": 0.001, "bc": 0.002}, a, b, c))

    assert found.name == "b"
    assert found.reason == (
        "no difference between a and b that these 412 critical parts can show (b 5, a 3 missed, p = 0.7); "
        "c missed more (30, p = 0.001); take the faster: b, 12.0 against 16.0 ms; a missed fewer, which may be chance"
    )


def test_of_three_the_best_is_deployed_against_each() -> None:
    """With the p-value of each."""
    a, b, c = contender("a", 3, 16.0), contender("b", 15, 12.0), contender("c", 30, 2.0)

    found = choose([a, b, c], question({"ab": 0.01, "ac": 0.0001, "bc": 0.03}, a, b, c))

    assert (found.name, found.against) == ("a", "b")
    assert found.reason == (
        "deploy a: 3 of 412 critical parts missed against 15 (b, p = 0.01) and 30 (c, p < 0.001); 4.0 ms slower than b"
    )


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.04, "p = 0.04"), (0.7266, "p = 0.73"), (0.0496, "p = 0.0496"), (0.0504, "p = 0.05"), (0.05, "p = 0.05")],
)
def test_a_p_value_is_never_rounded_over_the_threshold(p: float, expected: str) -> None:
    """`p = 0.05` beside "deploy" would be argued about."""
    assert p_text(p) == expected


def test_tiny_p_values_are_not_written_as_zero() -> None:
    """Nothing has no probability at all."""
    assert p_text(1e-9) == "p < 0.001"


@pytest.mark.parametrize(
    ("unit", "counted", "n", "expected"),
    [
        ("part", "critical", 412, "critical parts"),
        ("box", "critical", 1, "critical box"),
        ("part", "all", 1, "defective part"),
        ("box", "all", 9, "defect boxes"),
    ],
)
def test_what_is_counted_is_named(unit: str, counted: str, n: int, expected: str) -> None:
    """A critical part and any defect are not the same thing."""
    assert noun_of(unit, counted, n) == expected  # type: ignore[arg-type]
