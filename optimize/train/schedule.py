"""How a run is spread over its epochs: learning rate, picture size, and what a time budget leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

__all__ = ["Schedule"]

WARM_UP = 0.1
"""Share of the schedule over which the learning rate rises."""


class Planned(Protocol):
    """What a recipe says about time: `TrainConfig`, and a detector's."""

    @property
    def schedule(self) -> int:
        """Length in epochs."""

    @property
    def peak_lr(self) -> float:
        """Highest learning rate."""

    @property
    def size(self) -> int:
        """Input width and height in pixels."""

    @property
    def small_until(self) -> float:
        """Share of the schedule that runs at three quarters of the size."""

    @property
    def minutes(self) -> float | None:
        """Time budget."""


class Sized(Protocol):
    """A finished epoch."""

    @property
    def size_px(self) -> int:
        """Width and height of its pictures."""


class Schedule:
    """Positions on it run from 0 to `config.schedule`; an epoch is one step, or more when time is short."""

    def __init__(self, config: Planned) -> None:
        self._config = config

    def lr(self, position: float) -> float:
        """Linear warm-up, then a cosine to 0 (Loshchilov and Hutter, "SGDR", ICLR 2017)."""
        share = position / self._config.schedule
        rising = share / WARM_UP
        falling = 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
        return self._config.peak_lr * (rising if share < WARM_UP else falling)

    def size_px(self, position: float) -> int:
        """Training size: small first, in multiples of 32 as the networks' strides want it."""
        size = self._config.size
        small = max(32, round(0.75 * size / 32) * 32)
        is_small = position < self._config.small_until * self._config.schedule and small < size
        return small if is_small else size

    def advance(self, position: float, history: Sequence[Sized], seconds: float) -> float:
        """How far the next epoch goes: 1, or more when the time budget asks for it.

        Args:
            position: where it begins.
            history: the epochs so far.
            seconds: what they took.
        """
        left = self._config.schedule - position
        if self._config.minutes is None or not history:
            return min(1.0, left)
        seconds_left = 60 * self._config.minutes - seconds
        per_area = seconds / sum(record.size_px**2 for record in history)
        positions = np.arange(position, self._config.schedule)
        seconds_needed = per_area * sum(self.size_px(p) ** 2 for p in positions)
        if seconds_left <= seconds_needed / left:
            return left
        return min(left, max(1.0, seconds_needed / seconds_left))
