"""Intervals by group: wider than by image where images repeat a part, and never certain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from optimize.intervals import group_interval, mean_recall, mean_recall_reach, ratio, recall_counts, weighted_interval


def rate(is_right: Sequence[int] | NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.column_stack([np.asarray(is_right, dtype=np.float64), np.ones(len(is_right))])


def test_nothing_to_count_has_no_interval() -> None:
    """No good part says nothing about overkill."""
    assert group_interval(["a", "b"], np.zeros((2, 2)), ratio) is None


def test_independent_images_give_the_interval_of_a_proportion() -> None:
    """Against the normal approximation, which holds for 900 of 1000."""
    found = group_interval(range(1000), rate(np.arange(1000) % 10 > 0), ratio)

    assert found is not None
    spread = 1.96 * math.sqrt(0.9 * 0.1 / 1000)
    assert (found.low, found.high) == pytest.approx((0.9 - spread, 0.9 + spread), abs=0.003)
    assert found.groups == 1000


def test_ten_pictures_of_one_part_count_as_one_part() -> None:
    """The interval of 100 parts is that of 100 parts, however often each was taken."""
    is_right = np.arange(100) % 10 > 0
    once = group_interval(range(100), rate(is_right), ratio)
    ten = group_interval(np.repeat(np.arange(100), 10).tolist(), rate(np.repeat(is_right, 10)), ratio)

    assert once is not None
    assert ten is not None
    assert (ten.low, ten.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize(("groups", "low"), [(1, 0.025), (10, 0.6915), (100, 0.9638)])
def test_all_right_is_no_certainty(groups: int, low: float) -> None:
    """Clopper and Pearson's limit for n of n, two-sided (R's binom.test: 10 of 10 gives 0.6915)."""
    found = group_interval(range(groups), rate([1] * groups), ratio)

    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, 1.0), abs=5e-5)


def test_none_wrong_is_no_certainty_either() -> None:
    """Nothing escaped of 100 parts: up to 3.6 % may."""
    found = group_interval(range(100), rate([0] * 100), ratio)

    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.0, 1 - 0.9638), abs=5e-5)


def test_groups_that_add_nothing_are_not_counted() -> None:
    """Good parts say nothing about escapes; 3 defective parts are 3, whatever stands beside them."""
    counts = np.array([[0, 1]] * 3 + [[0, 0]] * 500, dtype=np.float64)

    found = group_interval(range(503), counts, ratio)

    assert found is not None
    assert found.groups == 3


def test_the_same_counts_give_the_same_interval() -> None:
    """A report that changes when it is made again is not believed."""
    counts = rate(np.arange(50) % 7 > 0)

    assert group_interval(range(50), counts, ratio) == group_interval(range(50), counts, ratio)


def test_mean_recall_counts_classes_not_images() -> None:
    """90 of 90 good ones and 1 of 10 defects is 55 %; a class that was not drawn is left out."""
    targets = np.array([0] * 90 + [1] * 10)
    is_right = np.array([True] * 91 + [False] * 9)

    sums = recall_counts(targets, is_right, 3).sum(axis=0, keepdims=True)

    assert mean_recall(sums)[0] == pytest.approx(0.55)


def test_a_perfect_mean_recall_is_as_uncertain_as_its_rarest_class() -> None:
    """1,000 good parts do not make two defects a statistic."""
    targets = np.array([0] * 1000 + [1] * 2)
    counts = recall_counts(targets, np.ones(1002, dtype=np.bool_), 2)

    found = group_interval(range(1002), counts, mean_recall, reach=mean_recall_reach(range(1002), targets))

    assert found is not None
    assert found.low == pytest.approx((0.025 ** (1 / 1000) + 0.025**0.5) / 2)


def test_weighing_images_gives_the_same_interval_as_summing_them() -> None:
    """A figure that is no function of sums is drawn by the same groups; a share can be computed both ways."""
    rng = np.random.default_rng(4)
    groups = [f"part {i}" for i in rng.integers(0, 12, 60)]
    hits = (rng.random(60) < 0.7).astype(np.float64)

    summed = group_interval(groups, np.column_stack([hits, np.ones(60)]), ratio)
    weighed = weighted_interval(groups, lambda weights: weights @ hits / weights.sum(axis=1))

    assert summed is not None
    assert weighed is not None
    assert weighed.ends() == summed.ends()
    assert weighed.groups == 12


def test_a_weighed_figure_that_is_no_number_has_no_interval() -> None:
    """Nothing outlined: an interval would claim that something is known."""
    assert weighted_interval(["a", "b"], lambda weights: np.full(len(weights), np.nan)) is None


def test_a_weighed_figure_that_never_varies_keeps_its_doubt() -> None:
    """Forty of forty found is not certainty; the end is that of so many groups."""
    found = weighted_interval([str(i) for i in range(40)], lambda weights: np.ones(len(weights)))

    assert found is not None
    assert found.ends() == (round(0.025 ** (1 / 40), 4), 1.0)
