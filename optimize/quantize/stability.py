"""Would more pictures widen the ranges? And `ranges.json`, which keeps what the ranges were read off."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.quantize.ranges import MIN_WIDTH, Method, Range, TensorStats

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GROWING", "Growth", "StabilityReport", "ranges_json", "stability"]

GROWING = 0.05
"""From this mean growth a tensor is named: 5 % of a range are 13 of its 256 levels."""

ROUNDS = 200
FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How much of a tensor's range half of the pictures had not shown, as a share of the range of all, 0 to 1.

    Attributes:
        mean: over random halves.
        low: 5 % of the halves had less.
        high: 5 % of the halves had more.
    """

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StabilityReport:
    """Whether the pictures were enough.

    Attributes:
        images: how many there were.
        growth: each tensor's; None where one picture is all there was.
        growing: tensors whose range still grew by more than `GROWING` from half of the pictures to all, most first; all
            of them where growth could not be measured.
    """

    images: int
    growth: Mapping[str, Growth | None]
    growing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "images": self.images,
            "growing": list(self.growing),
            "growth": {name: _growth_json(growth) for name, growth in self.growth.items()},
        }


def stability(stats: Mapping[str, TensorStats], seed: int = 0, *, rounds: int = ROUNDS) -> StabilityReport:
    """Measure, by random halves of the pictures, whether ranges still grow with their number.

    For a tensor whose values have a tail the largest value goes on growing with more pictures, by about as much from n
    to 2 n as from n / 2 to n; that is what a half tells about pictures which nobody has taken yet.

    Args:
        stats: from `collect`.
        seed: of the halves; the same for all tensors.
        rounds: how many halves.
    """
    counts = {found.image_low.size for found in stats.values()}
    images = max(counts, default=0)
    assert counts <= {images}, "all tensors were measured on the same pictures"
    halves = _halves(images, seed, rounds)
    growth = {name: _growth(found, halves) for name, found in stats.items()}
    order = sorted(growth, key=lambda name: (-(g.mean if (g := growth[name]) else 1.0), name))
    growing = tuple(name for name in order if (g := growth[name]) is None or g.mean > GROWING)
    return StabilityReport(images=images, growth=growth, growing=growing)


def _halves(images: int, seed: int, rounds: int) -> NDArray[np.int64]:
    """(rounds, images // 2): which pictures each half has."""
    rng = np.random.default_rng(seed)
    picks = [rng.permutation(images)[: images // 2] for _ in range(rounds)]
    return np.array(picks, dtype=np.int64).reshape(rounds, images // 2)


def _growth(stats: TensorStats, halves: NDArray[np.int64]) -> Growth | None:
    if not halves.size:
        return None
    low = np.minimum(stats.image_low.astype(np.float64), 0)
    high = np.maximum(stats.image_high.astype(np.float64), 0)
    full = float(high.max() - low.min())
    if full < MIN_WIDTH:
        return Growth(mean=0.0, low=0.0, high=0.0)  # always 0
    missing = 1 - (high[halves].max(axis=1) - low[halves].min(axis=1)) / full
    few, many = np.quantile(missing, [0.05, 0.95])
    return Growth(mean=float(missing.mean()), low=float(few), high=float(many))


def ranges_json(
    stats: Mapping[str, TensorStats], chosen: Mapping[str, tuple[Method, Range]], report: StabilityReport
) -> bytes:
    """Write `ranges.json`: the same ranges give the same bytes.

    Args:
        stats: from `collect`.
        chosen: tensor to the method that was taken and its range.
        report: from `stability`.

    Returns:
        UTF-8 JSON with sorted keys. Numbers are the shortest text that gives back the same float32. The digest of a
        tensor's histogram is the SHA-256 of its counts as little-endian int64, then `low` and `high` as little-endian
        float32.
    """
    table = {
        "format": FORMAT,
        "images": report.images,
        "growing": list(report.growing),
        "tensors": {name: _entry(stats[name], *chosen[name], report.growth[name]) for name in chosen},
    }
    return (json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _entry(stats: TensorStats, method: Method, span: Range, growth: Growth | None) -> dict[str, Any]:
    return {
        "method": method,
        "low": _number(span.low),
        "high": _number(span.high),
        "seen": {"low": _number(stats.low), "high": _number(stats.high)},
        "histogram": _digest(stats),
        "growth": _growth_json(growth),
    }


def _digest(stats: TensorStats) -> str:
    digest = hashlib.sha256(stats.counts.astype("<i8").tobytes())
    digest.update(np.array([stats.low, stats.high], dtype="<f4").tobytes())
    return digest.hexdigest()


def _growth_json(growth: Growth | None) -> dict[str, float] | None:
    if growth is None:
        return None
    return {key: round(value, 6) for key, value in dataclasses.asdict(growth).items()}


def _number(value: float) -> float:
    return float(str(np.float32(value)))
