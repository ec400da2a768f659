"""Which channels go: those that cost least for each multiplication they save, in steps of eight.

A step takes a group to the next lower multiple of eight, its least important channels first. It costs

    total x ln(before / after)

where before and after are the sums of the group's scores. For the first channels that is what they score; a group that
has little left asks more and more for it, so that none is emptied because a first-order estimate took each channel for
the only one that goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optimize.errors import OptimizeError
from optimize.prune.costs import Costs
from optimize.prune.graph import ChannelGroup

__all__ = ["MULTIPLE", "choose"]

MULTIPLE = 8
"""Widths are rounded to it: what a vector register of a CPU and a tensor core take at a time. Torch-Pruning's own table
of latencies shows networks of odd widths slower than unpruned ones."""

FLOOR = 0.5
"""A group keeps at least this part of the share of multiplications that is kept: for half of them a quarter of its
channels. All groups at their floor are far below any budget, so that there is always a choice."""

TINY = 1e-12


def choose(
    groups: Sequence[ChannelGroup],
    scores: Sequence[NDArray[np.float64]],
    costs: Costs,
    budget: float,
    *,
    widths: Sequence[int],
    share: float,
) -> list[NDArray[np.int64]]:
    """Take channels away until the multiplications are within a budget.

    Args:
        groups: all channels.
        scores: for each group (width,) how much its channels matter, comparable between groups, 0 or more.
        costs: of the network.
        budget: multiplications that may be left.
        widths: of each group before any pruning, which its floor is counted from.
        share: of multiplications that are to be kept in the end, 0 to 1.

    Returns:
        For each group the channels that go, sorted.

    Raises:
        OptimizeError: even the narrowest network is above the budget.
    """
    ladders = [_Ladder(group, each) for group, each in zip(groups, scores, strict=True)]
    floors = [max(MULTIPLE, int(np.ceil(FLOOR * share * width / MULTIPLE)) * MULTIPLE) for width in widths]
    gone = np.zeros(len(groups), dtype=np.int64)
    left = whole = costs.without(gone)
    taken: list[tuple[int, int]] = []
    while left > budget:
        steps = np.array([ladder.step(int(n), floor) for ladder, n, floor in zip(ladders, gone, floors, strict=True)])
        saved = costs.savings(gone, steps)
        able = np.flatnonzero((steps > 0) & (saved > 0))
        if not able.size:
            raise OptimizeError(
                f"keep-macs: widths that are multiples of {MULTIPLE} leave {left / whole:.2f} of the multiplications "
                f"at least, got a budget of {budget / whole:.2f}",
                hint="keep more of them, or start from a smaller architecture",
            )
        prices = [ladders[i].price(int(gone[i]), int(steps[i])) / saved[i] for i in able]
        best = int(able[int(np.argmin(prices))])
        gone[best] += steps[best]
        taken.append((best, int(steps[best])))
        left = costs.without(gone)
    _give_back(taken, gone, costs, budget)
    return [np.sort(ladder.order[:n]) for ladder, n in zip(ladders, gone, strict=True)]


def _give_back(taken: list[tuple[int, int]], gone: NDArray[np.int64], costs: Costs, budget: float) -> None:
    """Undo steps that the budget has room for after all, the dearest first: the last one went below it."""
    for group, step in reversed(taken):
        gone[group] -= step
        if costs.without(gone) > budget:
            gone[group] += step


class _Ladder:
    """The channels of a group from the least important one on, and what it costs to take them away."""

    def __init__(self, group: ChannelGroup, scores: NDArray[np.float64]) -> None:
        self._group = group
        self.order = np.argsort(scores, kind="stable").astype(np.int64)
        sound = np.maximum(np.nan_to_num(scores[self.order], nan=0.0, posinf=0.0), 0) + TINY
        self._left = np.append(sound[::-1].cumsum()[::-1], TINY)

    def step(self, gone: int, floor: int) -> int:
        """Channels to the next multiple; 0 where no more may go."""
        width = self._group.width - gone
        lower = (width - 1) // MULTIPLE * MULTIPLE
        return 0 if self._group.is_protected or lower < floor else width - lower

    def price(self, gone: int, step: int) -> float:
        return float(self._left[0] * np.log(self._left[gone] / self._left[gone + step]))
