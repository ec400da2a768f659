"""Whether a difference is chance: exact, by group, and against what counting by hand gives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.compare.paired import ALPHA, escape_upper, holm, net_by_group, paired_p, smallest_difference
from optimize.evaluate import upper_bound


def mcnemar(b: int, c: int) -> float:
    """The exact test as textbooks write it: a fair coin thrown b + c times."""
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / math.pow(2, b + c)
    return min(1.0, 2 * tail)


def flipped(net: list[int]) -> float:
    """The sign-flip test by trying every sign."""
    seen = abs(sum(net))
    signs = list(itertools.product((1, -1), repeat=len(net)))
    return sum(abs(sum(s * v for s, v in zip(sign, net, strict=True))) >= seen for sign in signs) / len(signs)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 30))
def test_parts_that_stand_for_themselves_give_mcnemars_test(b: int, c: int, agreed: int) -> None:
    """The test that every statistician knows, whatever the models agree on."""
    net = np.array([1] * b + [-1] * c + [0] * agreed, dtype=np.int64)

    assert paired_p(net) == pytest.approx(mcnemar(b, c), rel=1e-9)


@given(st.lists(st.integers(-6, 6), max_size=9))
def test_groups_give_what_trying_every_sign_gives(net: list[int]) -> None:
    """The distribution is counted out; this counts it the slow way."""
    assert paired_p(np.array(net, dtype=np.int64)) == pytest.approx(flipped(net))


@pytest.mark.parametrize(("b", "c", "expected"), [(6, 0, 0.03125), (8, 1, 0.0390625), (5, 0, 0.0625), (3, 3, 1.0)])
def test_the_p_value_is_the_one_in_the_tables(b: int, c: int, expected: float) -> None:
    """Binomial tables, by hand."""
    assert paired_p(np.array([1] * b + [-1] * c, dtype=np.int64)) == pytest.approx(expected)


def test_ten_pictures_of_one_part_are_one_throw() -> None:
    """Ten misses of one scratch, photographed ten times, show nothing."""
    first, second = np.zeros(10, dtype=np.bool_), np.ones(10, dtype=np.bool_)

    assert paired_p(net_by_group(first, second, ["a"] * 10)) == 1.0
    assert paired_p(net_by_group(first, second, [str(i) for i in range(10)])) == pytest.approx(2 / 2**10)


def test_the_net_is_counted_group_by_group() -> None:
    """Positive where the second one misses more."""
    first = np.array([True, False, False, False])
    second = np.array([False, True, True, False])

    assert net_by_group(first, second, ["a", "b", "b", "c"]).tolist() == [-1, 2, 0]


def test_a_thousand_discordant_parts_are_no_overflow() -> None:
    """2 to the power of 1,100 is no float."""
    net = np.array([1] * 600 + [-1] * 500, dtype=np.int64)

    assert paired_p(net) == pytest.approx(0.0028, abs=0.0002)


@pytest.mark.parametrize(("alone", "n"), [(0, 412), (1, 412), (3, 50), (10, 100)])
def test_the_smallest_difference_is_the_first_that_is_significant(alone: int, n: int) -> None:
    """By hand: what the second one misses alone grows until the test says so, and one fewer would not do."""
    found = smallest_difference(np.array([-1] * alone + [0] * (n - alone), dtype=np.int64))

    assert found is not None
    assert mcnemar(alone + found, alone) < ALPHA
    assert mcnemar(alone + found - 1, alone) >= ALPHA


def test_what_the_second_one_missed_already_does_not_count() -> None:
    """It is a question about the set, not about what came out."""
    plain = np.zeros(100, dtype=np.int64)
    missed = np.array([1] * 40 + [0] * 60, dtype=np.int64)

    assert smallest_difference(plain) == smallest_difference(missed) == 6


def test_five_parts_show_no_difference_whatever_comes_out() -> None:
    """2 / 2 ** 5 is more than 5 %: better said before the line is stopped for it."""
    assert smallest_difference(np.zeros(5, dtype=np.int64)) is None
    assert smallest_difference(np.zeros(6, dtype=np.int64)) == 6


def test_holm_raises_as_in_the_paper() -> None:
    """Three values by hand: 3 x 0.01, 2 x 0.03, and the last no lower than that."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.04}) == {"a": 0.04}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_alike_models_differ_by_chance_in_less_than_five_percent() -> None:
    """The error of the first kind, on a thousand sets of groups, is what it claims to be."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 4).tolist()
    hard = rng.random((1000, 60)) < 0.3
    called = 0
    for row in hard:
        p = np.repeat(np.where(row, 0.5, 0.02), 4)
        # Within a group a model misses all or nothing: pictures of one part look alike.
        first, second = (np.repeat(rng.random(60) < p[::4], 4) for _ in range(2))
        called += paired_p(net_by_group(first, second, groups)) < ALPHA

    assert called / 1000 < 0.06


def test_independent_parts_have_the_exact_bound() -> None:
    """Clopper and Pearson's, as in the scorecard."""
    missed = np.array([True] * 3 + [False] * 409)

    assert escape_upper(missed, range(412)) == upper_bound(3, 412)


def test_groups_never_narrow_the_bound() -> None:
    """Ten pictures of each of 20 parts know no more than 200 parts would, and none missed rests on 20."""
    groups = np.repeat(np.arange(20), 10).tolist()
    one_part = np.repeat(np.arange(20) == 3, 10)

    assert escape_upper(np.zeros(200, dtype=np.bool_), groups) == upper_bound(0, 20)
    assert escape_upper(one_part, groups) > upper_bound(10, 200)
    assert escape_upper(np.arange(200) == 7, groups) >= upper_bound(1, 200)


def test_some_misses_never_look_safer_than_none() -> None:
    """With few groups the bootstrap knows less than a bound that counts them (tile steel: 6 of 47 in eight groups)."""
    groups = np.arange(47) % 8
    six = np.isin(np.arange(47), (3, 11, 12, 20, 21, 29))

    assert escape_upper(six, groups.tolist()) >= escape_upper(np.zeros(47, dtype=np.bool_), groups.tolist())
