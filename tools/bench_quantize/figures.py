"""Numbers with an interval: pictures of one group show the same steel, so groups are resampled, not pictures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["RESAMPLES", "Figure", "Resampling", "absent", "median_ratio", "noise_powers", "points"]

RESAMPLES = 2000
SEED = 4
INTERVAL = (2.5, 97.5)
MAX_SNR_DB = 120.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number and its 95 % interval.

    Attributes:
        value: None where it can't be measured here.
        low: the interval's lower end.
        high: its upper end.
        why: why there is no value, or what is special about it.
    """

    value: float | None
    low: float | None
    high: float | None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; `why` only where there is one."""
        found: dict[str, Any] = {key: _rounded(getattr(self, key)) for key in ("value", "low", "high")}
        return found if self.why is None else {**found, "why": self.why}


def absent(why: str) -> Figure:
    """A number that can't be measured here."""
    return Figure(value=None, low=None, high=None, why=why)


class Resampling:
    """A fixed bootstrap over groups: every statistic is computed on the same resamples, so differences are paired.

    Args:
        groups: (n,) the group of each picture, counted from 0.
        resamples: how many.
    """

    def __init__(self, groups: NDArray[np.int64], resamples: int = RESAMPLES) -> None:
        self._groups = groups
        self._count = int(groups.max()) + 1
        rng = np.random.default_rng(SEED)
        even = np.full(self._count, 1 / self._count)
        self._weights = rng.multinomial(self._count, even, size=resamples).astype(np.float64)

    def figure(self, statistic: Callable[..., Any], *columns: NDArray[Any], why: str | None = None) -> Figure:
        """A statistic of sums over pictures.

        Args:
            statistic: from the sums of the columns to the number; works on arrays elementwise.
            columns: (n,) one number for each picture.
            why: what is special about it.
        """
        sums = [np.bincount(self._groups, weights=column, minlength=self._count) for column in columns]
        value = float(statistic(*(column.sum() for column in sums)))
        spread = np.asarray(statistic(*(self._weights @ column for column in sums)))
        low, high = (float(edge) for edge in np.percentile(spread, INTERVAL))
        return Figure(value=value, low=low, high=high, why=why)

    def mean(self, column: NDArray[Any]) -> Figure:
        """The mean over pictures."""
        return self.figure(lambda total, count: total / count, column, np.ones(len(column)))

    def snr_gain(self, signal: NDArray[Any], ours: NDArray[Any], theirs: NDArray[Any]) -> Figure:
        """By how many dB our signal to noise is above theirs, from powers of each picture."""
        return self.figure(lambda s, a, b: _db(s, a) - _db(s, b), signal, ours, theirs)

    def snr(self, signal: NDArray[Any], noise: NDArray[Any]) -> Figure:
        """Signal to noise in dB, from powers of each picture."""
        return self.figure(_db, signal, noise)


def points(right: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What each picture adds to a drop in percentage points, before the mean is taken."""
    return np.asarray(100.0 * (right.astype(np.float64) - other.astype(np.float64)))


def noise_powers(reference: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Signal and noise power of each picture, as `optimize.quantize.sensitivity.snr_db` has it."""
    wanted, found = (
        np.asarray(v, np.float64) - np.mean(v, axis=-1, keepdims=True, dtype=np.float64) for v in (reference, other)
    )
    return np.sum(wanted**2, axis=-1), np.sum((wanted - found) ** 2, axis=-1)


def median_ratio(above: Sequence[float], below: Sequence[float], why: str | None = None) -> Figure:
    """The median of paired ratios, with an interval by resampling the rounds.

    Args:
        above: a time of each round.
        below: the other graph's, in the same rounds.
        why: what is special about it.
    """
    ratios = np.asarray(above) / np.asarray(below)
    rng = np.random.default_rng(SEED)
    medians = np.median(ratios[rng.integers(0, len(ratios), (RESAMPLES, len(ratios)))], axis=1)
    low, high = (float(edge) for edge in np.percentile(medians, INTERVAL))
    return Figure(value=float(np.median(ratios)), low=low, high=high, why=why)


def _db(signal: Any, noise: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(10 * np.log10(np.asarray(signal) / np.asarray(noise)), -MAX_SNR_DB, MAX_SNR_DB)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4) + 0.0
