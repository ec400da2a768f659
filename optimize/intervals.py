"""Intervals by group: how far a figure could lie from what was measured, when images of one part are not independent.

Ten pictures of one part are one part seen ten times. Counting them as ten makes every interval too narrow, so whole
groups are drawn with replacement, and the figure is computed anew from what was drawn (the cluster bootstrap: Davison
and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8; percentile interval, section 5.3.1).

All figures here are functions of sums over images, so a resample costs one matrix product, not a pass over the images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "Interval",
    "Statistic",
    "group_draws",
    "group_interval",
    "mean_recall",
    "mean_recall_reach",
    "ratio",
    "recall_counts",
    "weighted_interval",
    "weighted_intervals",
]

CONFIDENCE = 0.95
"""Two-sided."""

RESAMPLES = 2000
"""Draws: the ends of a 95 % interval then rest on the 50 most extreme ones on each side."""

SEED = 20_170
"""Fixed: the same counts give the same interval on every machine."""

CHUNK = 200
"""Resamples drawn at once: with 10,000 groups 16 MB."""

Statistic: TypeAlias = "Callable[[NDArray[np.float64]], NDArray[np.float64]]"
"""From (R, F) sums, one row per resample, to (R,) figures; not a number where a resample says nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Between which values a figure lies with 95 % confidence, for parts like these.

    Attributes:
        low: lower end.
        high: upper end.
        groups: how many groups it rests on; with fewer than about ten it is too narrow.
    """

    low: float
    high: float
    groups: int

    def ends(self) -> tuple[float, float]:
        """Low and high, to four digits."""
        return round(self.low, 4), round(self.high, 4)

    def to_json(self) -> list[float]:
        """`[low, high]`, to four digits."""
        return list(self.ends())


def group_interval(
    groups: Sequence[Hashable],
    counts: NDArray[np.float64],
    statistic: Statistic,
    *,
    reach: float | None = None,
    seed: int = SEED,
) -> Interval | None:
    """Bootstrap a figure over groups.

    Where every group agrees (none of 40 parts escaped), each resample gives the same figure, and the percentiles would
    claim certainty. The end that nothing was seen of is then the exact binomial limit for so many groups, as if each
    group counted once: (0.025) ** (1 / groups) (Clopper and Pearson, Biometrika 26, 1934).

    Args:
        groups: (N,) the group of each image.
        counts: (N, F) what each image adds to the sums.
        statistic: from sums to the figure, which lies within 0 to 1.
        reach: how near to 1 a figure of 1 must be, where groups do not count alike, see `mean_recall_reach`.
        seed: decides the draws.

    Returns:
        The interval over the groups that count; None when the figure is not a number.
    """
    sums = _sums_by_group(groups, np.asarray(counts, dtype=np.float64))
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    if not np.isfinite(value):
        return None
    n = len(sums)
    draws = group_draws(groups, counts, statistic, seed=seed)
    return _interval(value, draws, n, _reach(n) if reach is None else reach)


def weighted_interval(groups: Sequence[Hashable], statistic: Statistic, *, seed: int = SEED) -> Interval | None:
    """Bootstrap a figure that is no function of sums, such as an average precision, over groups.

    Args:
        groups: (N,) the group of each image; at least one.
        statistic: from (R, N), how often each image counts, to (R,) figures within 0 to 1.
        seed: decides the draws; they are those of `group_interval` when every group counts there.

    Returns:
        The interval; None when the figure is not a number.
    """
    return weighted_intervals(groups, lambda weights: statistic(weights)[:, None], seed=seed)[0]


def weighted_intervals(
    groups: Sequence[Hashable], statistic: Statistic, *, seed: int = SEED
) -> tuple[Interval | None, ...]:
    """Several figures from the same draws; `statistic` gives (R, K), else as `weighted_interval`."""
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    own = np.array([number[name] for name in groups])
    random, n = np.random.default_rng(seed), len(number)
    even = np.full(n, 1 / n)
    draws = np.concatenate(
        [
            statistic(random.multinomial(n, even, size=CHUNK)[:, own].astype(np.float64))
            for _ in range(RESAMPLES // CHUNK)
        ]
    )
    values = statistic(np.ones((1, len(own))))[0]
    return tuple(
        _interval(float(value), column[np.isfinite(column)], n, _reach(n)) if np.isfinite(value) else None
        for value, column in zip(values, draws.T, strict=True)
    )


def _interval(value: float, draws: NDArray[np.float64], groups: int, reach: float) -> Interval:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(v) for v in np.percentile(draws, (tail, 100 - tail)))
    if value >= 1:
        low = min(low, reach)
    if value <= 0:
        high = max(high, 1 - reach)
    return Interval(low=min(low, value), high=max(high, value), groups=groups)


def group_draws(
    groups: Sequence[Hashable], counts: NDArray[np.float64], statistic: Statistic, *, seed: int = SEED
) -> NDArray[np.float64]:
    """The figure from each resample of the groups; those that say nothing are left out.

    Args:
        groups: (N,) the group of each image.
        counts: (N, F) what each image adds to the sums.
        statistic: from sums to the figure.
        seed: decides the draws.
    """
    draws = statistic(_resampled(_sums_by_group(groups, np.asarray(counts, dtype=np.float64)), seed))
    return draws[np.isfinite(draws)]


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first sum over the second; not a number over nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan))


def mean_recall(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean recall of the classes that were drawn.

    Args:
        sums: (R, 2 C): hits of each class, then images of each class.
    """
    n_classes = sums.shape[1] // 2
    hits, support = sums[:, :n_classes], sums[:, n_classes:]
    recalls = np.where(support > 0, hits / np.maximum(support, 1), 0.0)
    present = (support > 0).sum(axis=1)
    return np.asarray(np.where(present > 0, recalls.sum(axis=1) / np.maximum(present, 1), np.nan))


def mean_recall_reach(groups: Sequence[Hashable], targets: NDArray[np.int64]) -> float:
    """How near to 1 the mean recall must be when every image is right: the mean of what each class's groups show.

    Args:
        groups: (N,) the group of each image.
        targets: (N,) class numbers; at least one.
    """
    of_class: dict[int, set[Hashable]] = {}
    for group, target in zip(groups, targets.tolist(), strict=True):
        of_class.setdefault(target, set()).add(group)
    return sum(_reach(len(names)) for names in of_class.values()) / len(of_class)


def recall_counts(targets: NDArray[np.int64], is_right: NDArray[np.bool_], n_classes: int) -> NDArray[np.float64]:
    """What each image adds to the sums of `mean_recall`.

    Args:
        targets: (N,) class numbers.
        is_right: (N,) whether the class was named.
        n_classes: C.

    Returns:
        (N, 2 C): a hit of its class, then an image of its class.
    """
    counts, rows = np.zeros((len(targets), 2 * n_classes)), np.arange(len(targets))
    counts[rows, targets] = is_right
    counts[rows, n_classes + targets] = 1
    return counts


def _reach(groups: int) -> float:
    """The rate under which so many groups would all be right with less than 2.5 %."""
    return float(((1 - CONFIDENCE) / 2) ** (1 / groups))


def _sums_by_group(groups: Sequence[Hashable], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G, F); groups that add nothing at all (good parts, for an escape rate) are left out."""
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((max(len(number), 1), counts.shape[1]))
    np.add.at(sums, [number[name] for name in groups], counts)
    kept = sums[sums.any(axis=1)]
    return kept if len(kept) else sums[:1]


def _resampled(sums: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(RESAMPLES, F): the sums over as many groups as there are, drawn with replacement."""
    random, n = np.random.default_rng(seed), len(sums)
    even = np.full(n, 1 / n)
    return np.concatenate([random.multinomial(n, even, size=CHUNK) @ sums for _ in range(RESAMPLES // CHUNK)])
