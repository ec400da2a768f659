"""Whether one model misses fewer than another, or whether these parts can't tell: paired tests, exact.

Both models judged the same parts, so only those count that one missed and the other did not. Where each part stands for
itself this is McNemar's test in its exact form (McNemar, Psychometrika 12, 1947: the discordant parts are a fair coin's
throws if the models are alike). Pictures of one part are no throws of their own: there the difference of a whole group
gets a fair coin's sign (sign-flip permutation test; Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses",
3rd ed. 2005). The distribution of the sum is counted out, not drawn; with groups of one it is McNemar's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from agent.binomial import upper_bound
from optimize.intervals import group_draws, ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ALPHA", "escape_upper", "holm", "net_by_group", "paired_p", "smallest_difference"]

ALPHA = 0.05
"""What is less probable than this by chance alone is called a difference."""

K = TypeVar("K", bound=Hashable)


def net_by_group(first: NDArray[np.bool_], second: NDArray[np.bool_], groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """By how many more the second misses, group by group.

    Args:
        first: (U,) what the first model misses.
        second: (U,) what the second one misses.
        groups: (U,) which part, lot or strip each belongs to.

    Returns:
        (G,) in the order in which groups come first; positive where the second misses more.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    net = np.zeros(len(number), dtype=np.int64)
    np.add.at(net, [number[name] for name in groups], second.astype(np.int64) - first.astype(np.int64))
    return net


def paired_p(net: NDArray[np.int64]) -> float:
    """How probable so large a difference is if the two models are alike, two-sided.

    Args:
        net: (G,) the difference in each group, see `net_by_group`; groups without one say nothing.

    Returns:
        0 to 1; 1 where the models agree on every group.
    """
    return _tail(_sums(np.abs(net)), abs(int(net.sum())))


def smallest_difference(net: NDArray[np.int64]) -> int | None:
    """From how many fewer missed on these parts would have shown the first model to be better.

    What the first model alone misses stays as it is; the second one misses more and more, each in a group of its own,
    until chance explains it no longer. A set so small that even this shows nothing gives None.

    Args:
        net: (G,) see `net_by_group`.
    """
    against = -net[net < 0]
    counted, lost = _sums(against), int(against.sum())
    for gained in range(1, len(net) - len(against) + 1):
        counted = np.convolve(counted, (0.5, 0.5))
        if gained > lost and _tail(counted, gained - lost) < ALPHA:
            return gained - lost
    return None


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Raise p-values so that all of them may be looked at together (Holm, Scand. J. Statistics 6, 1979).

    Args:
        p_values: by any name.

    Returns:
        The same names; a single value stays as it is.
    """
    raised: dict[K, float] = {}
    highest, count = 0.0, len(p_values)
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda entry: entry[1])):
        highest = max(highest, min(1.0, (count - i) * p))
        raised[name] = highest
    return {name: raised[name] for name in p_values}


def escape_upper(missed: NDArray[np.bool_], groups: Sequence[Hashable]) -> float:
    """The escape rate lies below this with 95 % confidence, one-sided.

    Clopper-Pearson where each unit stands for itself. With groups the 95th percentile of the bootstrap over groups, but
    never less than Clopper-Pearson: units that hang together know no more than independent ones. None missed: the
    bound for as many units as there are groups; and never less than that, else some misses could look safer than none.

    Args:
        missed: (U,) at least one.
        groups: (U,).
    """
    count = len(set(groups))
    none_of_so_many = upper_bound(0, count)
    if not missed.any():
        return none_of_so_many
    independent = upper_bound(int(missed.sum()), len(missed))
    if count == len(missed):
        return independent
    draws = group_draws(groups, np.column_stack([missed, np.ones(len(missed))]).astype(np.float64), ratio)
    return max(independent, none_of_so_many, float(np.percentile(draws, 95)))


def _sums(sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The probability of each sum 0 … N if each size counts or not as a fair coin falls."""
    counted = np.ones(1)
    for size in sizes[sizes > 0].tolist():
        grown = np.zeros(len(counted) + size)
        grown[: len(counted)] += counted / 2
        grown[size:] += counted / 2
        counted = grown
    return counted


def _tail(counted: NDArray[np.float64], seen: int) -> float:
    """The probability that plus and minus differ by `seen` or more."""
    total = len(counted) - 1
    differences = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(counted[differences >= seen].sum()))
