"""An exact bound on a rate, from how often something happened: escapes on a test set, verdicts that changed here."""

from __future__ import annotations

import math

__all__ = ["CONFIDENCE", "upper_bound"]

CONFIDENCE = 0.95
"""Of the one-sided bound."""


def upper_bound(events: int, n: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided Clopper-Pearson bound: the largest rate that these counts leave plausible.

    It is the p at which `events` or fewer of n would be seen with probability 1 - confidence, that is the `confidence`
    quantile of the Beta(events + 1, n - events) distribution (Clopper and Pearson, Biometrika 26, 1934; the beta form
    in NIST/SEMATECH e-Handbook of Statistical Methods, 7.2.4.1). Found by bisection, to 1e-12.

    Args:
        events: how often it happened, 0 to n.
        n: how often it could have happened, at least 1.
        confidence: between 0 and 1.

    Returns:
        Between events / n and 1.
    """
    if not 0 <= events <= n or n < 1 or not 0 < confidence < 1:
        raise ValueError(f"upper_bound: got {events} of {n} at {confidence}")
    if events == n:
        return 1.0
    low, high = events / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _incomplete_beta(middle, events + 1, n - events) < confidence:
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), for 0 < x < 1 (DLMF 8.17.22, with 8.17.4 for large x)."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    logarithm = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(logarithm) / a / _continued_fraction(x, a, b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + …)) of DLMF 8.17.22, by the modified Lentz method (DLMF 3.10(iii))."""
    fraction = c = 1.0
    d = 0.0
    for j in range(1, 10_000):
        m = j // 2
        if j % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _nonzero(1 + term * d)
        c = _nonzero(1 + term / c)
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return fraction


def _nonzero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
