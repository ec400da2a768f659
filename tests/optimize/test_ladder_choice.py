"""Which rung is taken: the fastest that keeps every limit, never one that lost a class, else the nearest and why."""

from __future__ import annotations

from typing import Any

import pytest

from optimize.errors import OptimizeError
from optimize.ladder import Budget, breaches_of, choose_rung, pareto_front
from tests.kit.rungs import LOST, rung


def test_rungs_without_any_timing_are_refused() -> None:
    """A profile of other networks says nothing."""
    with pytest.raises(OptimizeError, match="no timing of any rung") as caught:
        choose_rung([rung("top", None), rung("small", None)], Budget())

    assert "bench --profile" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("budget", "changes", "limit", "words"),
    [
        (Budget(max_drop=0.75), {"drop": 1.0}, "max_drop", "max_drop: 1.00 points lost, 0.25 over 0.75"),
        (Budget(max_drop=0), {"drop": 0.5}, "max_drop", "max_drop: 0.50 points lost, 0.5 over 0"),
        (Budget(max_drop=0.75), {"drop": float("nan")}, "max_drop", "max_drop: nan"),
        (Budget(max_latency_ms=8), {"ms": 10.0}, "max_latency_ms", "max_latency_ms: 10.00 ms, 2 over 8"),
        (Budget(max_latency_ms=8), {"ms": None}, "max_latency_ms", "the profile holds no timing of its structure"),
        (Budget(max_size_mb=1.5), {}, "max_size_mb", "max_size_mb: 4.00 MB, 2.5 over 1.5"),
        (Budget(max_escape=0.01), {}, "max_escape", "0 of 60 escape, which is under 4.87% with 95 % confidence"),
        (Budget(max_escape=0.01), {"escape_upper_95": None}, "max_escape", "no part of this set is bad"),
        (Budget(), {"failure": "a.png: NaN", "unjudged": 3}, "judged", "could not judge 3 of 100 images (a.png: NaN)"),
        (Budget(), {"lost": (LOST,)}, "recall", "loses the class spot: 4 of 4 before, 0 now (none is left)"),
    ],
)
def test_each_limit_is_kept_and_named_when_it_is_not(
    budget: Budget, changes: dict[str, Any], limit: str, words: str
) -> None:
    """By which limit and by how much, so that a person knows what to give up."""
    (found,) = breaches_of(rung("small", **changes), budget)

    assert found.limit == limit
    assert words in found.words


def test_the_fastest_within_all_limits_is_taken() -> None:
    """Half the multiplications can be no faster: what was measured decides."""
    rungs = [
        rung("top", 20.0),
        rung("half", 21.0, 0.1, macs=500_000),
        rung("small", 4.0, 0.5),
        rung("tiny", 2.0, 3.0),
    ]

    found = choose_rung(rungs, Budget(max_drop=0.75))

    assert found.name == "small"
    assert "5.0 times as fast as top" in found.reason


def test_of_rungs_that_are_alike_in_time_the_one_that_loses_less_is_taken() -> None:
    """Two percent of latency are noise, half a point is not."""
    rungs = [rung("top", 20.0), rung("a", 4.0, 0.7), rung("b", 4.08, 0.1), rung("c", 4.5, 0.0)]

    assert choose_rung(rungs, Budget(max_drop=0.75)).name == "b"


def test_a_rung_that_lost_a_class_is_never_taken() -> None:
    """However fast, and whatever the mean says."""
    rungs = [rung("top", 20.0), rung("small", 2.0, 0.1, lost=(LOST,))]

    assert choose_rung(rungs, Budget(max_drop=0.75)).name == "top"
    none = choose_rung(rungs, Budget(max_latency_ms=5))
    assert (none.name, none.nearest) == (None, "top")


def test_a_rung_that_could_not_judge_what_the_top_could_is_never_taken() -> None:
    """It stops such a part, but nobody knows for what."""
    rungs = [rung("top", 20.0), rung("broken", 2.0, failure="a.png: NaN", unjudged=1)]

    assert choose_rung(rungs, Budget()).name == "top"
    assert choose_rung(rungs, Budget(max_latency_ms=5)).nearest == "top"
    assert pareto_front(rungs) == ("top",)


def test_without_a_rung_that_keeps_all_the_nearest_is_named() -> None:
    """What misses its limit by the smallest part of it."""
    rungs = [rung("top", 20.0), rung("small", 5.5, 0.2), rung("tiny", 2.0, 3.0)]

    found = choose_rung(rungs, Budget(max_drop=0.75, max_latency_ms=5))

    assert not found
    assert (found.nearest, [b.limit for b in found.breaches]) == ("small", ["max_latency_ms"])
    assert "0.5 over 5" in found.reason


def test_an_untimed_rung_is_not_taken_by_chance() -> None:
    """The device's profile knows only some."""
    rungs = [rung("top", 20.0), rung("new", None), rung("small", 5.0, 0.2)]

    assert choose_rung(rungs, Budget()).name == "small"


def test_the_front_holds_what_nobody_beats() -> None:
    """A slower rung that loses more is not worth looking at, nor one that lost a class."""
    rungs = [
        rung("top", 20.0),
        rung("worse", 21.0, 1.0),
        rung("small", 5.0, 0.5),
        rung("same", 6.0, 0.5),
        rung("lossy", 1.0, 0.1, lost=(LOST,)),
        rung("new", None),
    ]

    assert pareto_front(rungs) == ("small", "top")
