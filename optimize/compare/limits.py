"""Equal overkill: the limit of each model at which as many good parts are stopped, and the curve over all limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from optimize.compare.units import Judged, Units

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Curve", "allowed_at", "common_rate", "curve_of", "limit_at", "rate_at"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """What each limit costs, from the highest limit to the lowest.

    Attributes:
        rates: (L,) overkill as a share of good parts, or false boxes per picture; ascending.
        missed: (L,) share of the units that count which are missed there; descending.
    """

    rates: NDArray[np.float64]
    missed: NDArray[np.float64]


def rate_at(alarms: NDArray[np.float64], exposures: int, limit: float) -> float:
    """Overkill (or false boxes per picture) at a limit.

    Args:
        alarms: (F,) scores of the good parts, or of the false boxes.
        exposures: good parts, or pictures; at least 1.
        limit: what reaches it is stopped.
    """
    return float((alarms >= limit).sum()) / exposures


def allowed_at(rate: float, exposures: int) -> int:
    """How many good parts (or false boxes) a rate is; a part of one is none.

    Args:
        rate: share of good parts, or false boxes per picture.
        exposures: good parts, or pictures.
    """
    return int(rate * exposures + 1e-9)


def limit_at(alarms: NDArray[np.float64], exposures: int, rate: float, floor: float = 0.0) -> float:
    """The lowest limit that stops no more good parts than this.

    Args:
        alarms: (F,) scores of the good parts, or of the false boxes.
        exposures: good parts, or pictures; at least 1.
        rate: share of good parts, or false boxes per picture.
        floor: no limit is lower.

    Returns:
        A finite limit: `floor` where every score may be stopped; just over the highest finite score where none may,
        also where so many could not be judged that no limit keeps the rate.
    """
    allowed = allowed_at(rate, exposures)
    falling = np.sort(alarms)[::-1]
    if allowed >= len(falling):
        return floor
    first_spared = float(falling[allowed])
    if first_spared < floor:
        return floor
    if not np.isfinite(first_spared):
        first_spared = max((float(v) for v in falling[np.isfinite(falling)]), default=1.0)
    return float(np.nextafter(first_spared, np.inf))


def common_rate(judged: Sequence[Judged], exposures: int) -> float:
    """The rate at which models are compared when nobody names one: the largest of what their own limits cost.

    Every model then has a limit that is no stricter than what somebody chose for one of them. At least one good part
    (or one false box), as below that a limit is set by nothing that was seen.

    Args:
        judged: by model.
        exposures: good parts, or pictures; at least 1.
    """
    return max(1 / exposures, *(rate_at(j.alarms, exposures, j.own_limit) for j in judged))


def curve_of(units: Units, judged: Judged) -> Curve:
    """Every limit that makes a difference.

    Args:
        units: gives the exposures; without any there is no curve, and it is empty.
        judged: one model.
    """
    if not units.exposures or not len(judged.scores):
        return Curve(rates=np.empty(0), missed=np.empty(0))
    values = np.concatenate([judged.scores, judged.alarms])
    limits = np.unique(values[np.isfinite(values)])[::-1]
    limits = np.concatenate([[np.inf], limits])
    alarms, scores = np.sort(judged.alarms), np.sort(judged.scores)
    stopped = len(alarms) - np.searchsorted(alarms, limits, side="left")
    missed = np.searchsorted(scores, limits, side="left")
    return Curve(rates=stopped / units.exposures, missed=missed / len(scores))
