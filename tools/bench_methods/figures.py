"""Figures of the bench: intervals by group for one network, by seed for a comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from optimize.intervals import group_interval, ratio
from tools.bench_quantize.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench_methods.trainings import Judged

__all__ = ["accuracy_figure", "gain_figure", "rate_figure", "seeds_figure"]

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Student's t, two-sided 95 %, by degrees of freedom."""


def accuracy_figure(judged: Judged, *, why: str | None = None) -> Figure:
    """Share right, with its interval over groups."""
    return rate_figure(judged.groups, judged.right, np.ones(len(judged.right)), why=why)


def rate_figure(
    groups: Sequence[str], hits: np.ndarray, support: np.ndarray, *, why: str | None = None, scale: float = 1.0
) -> Figure:
    """Hits over support, with its interval over groups.

    Args:
        groups: (N,) of each image.
        hits: (N,) numbers.
        support: (N,) numbers.
        why: what is special about it.
        scale: 100 for percent.
    """
    counts = np.stack([hits, support], axis=1)
    interval = group_interval(groups, counts, ratio)
    value = float(hits.sum() / support.sum())
    if interval is None:
        return Figure(value=scale * value, low=None, high=None, why=why)
    return Figure(value=scale * value, low=scale * interval.low, high=scale * interval.high, why=why)


def gain_figure(better: Judged, worse: Judged, *, why: str | None = None, scale: float = 100.0) -> Figure:
    """What one network gets right more than another on the same images, in points; paired, by group."""
    names = {name: i for i, name in enumerate(dict.fromkeys(better.groups))}
    numbers = np.array([names[g] for g in better.groups])
    gains = np.bincount(numbers, weights=better.right - worse.right, minlength=len(names))
    sizes = np.bincount(numbers, minlength=len(names)).astype(float)
    draws = np.random.default_rng(5).multinomial(len(names), np.full(len(names), 1 / len(names)), size=2000)
    low, high = np.percentile((draws @ gains) / (draws @ sizes), (2.5, 97.5))
    value = gains.sum() / sizes.sum()
    return Figure(value=float(scale * value), low=float(scale * low), high=float(scale * high), why=why)


def seeds_figure(values: Sequence[float], *, why: str | None = None) -> Figure:
    """Mean over seeds, with the interval that so few of them allow (Student)."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Figure(value=mean, low=None, high=None, why=why)
    reach = T_95[n - 1] * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Figure(value=mean, low=mean - reach, high=mean + reach, why=why)
