"""An exact bound on a rate, from how often something happened among few: what 0 of 50 changed verdicts prove."""

from __future__ import annotations

import math

__all__ = ["CONFIDENCE", "upper_bound"]

CONFIDENCE = 0.95
"""Of the one-sided bound."""

MAX_N = 1_000
"""Of the cases: the sum below is exact and short for the golden pictures of a bundle (200 at most)."""


def upper_bound(events: int, n: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided Clopper-Pearson bound: the largest rate that these counts leave plausible.

    It is the p at which `events` or fewer of n come with probability 1 - confidence (Clopper and Pearson, Biometrika
    26, 1934). The binomial sum is taken term by term and p found by bisection, to 1e-12. `optimize.binomial` gives the
    same for large counts, by the incomplete beta function.

    Args:
        events: how often it happened, 0 to n.
        n: how often it could have happened, 1 to `MAX_N`.
        confidence: between 0 and 1.

    Returns:
        Between events / n and 1.
    """
    if not 0 <= events <= n or not 1 <= n <= MAX_N or not 0 < confidence < 1:
        raise ValueError(f"upper_bound: got {events} of {n} at {confidence}")
    if events == n:
        return 1.0
    low, high = events / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _at_most(events, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(events: int, n: int, p: float) -> float:
    """The probability of `events` or fewer of n, each with probability p."""
    return math.fsum(
        math.exp(_log_comb(n, k) + k * math.log(p) + (n - k) * math.log1p(-p)) if 0 < p < 1 else float(p <= 0)
        for k in range(events + 1)
    )


def _log_comb(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
