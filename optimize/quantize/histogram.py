"""Where to clip, read off a histogram: percentile, least squared error, least lost information. Numpy only.

Exact zeros are counted apart. The grids that we quantize to hold 0 exactly, so zeros (half of what a ReLU gives) are
never rounded, and a rule that took them for values of the lowest bin would clip far too much to make that bin finer.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BINS", "Histogram", "count_values", "entropy_span", "percentile_span", "span_error", "squared_error_span"]

BINS = 2048
"""As many as TensorRT's calibrator has (S. Migacz, "8-bit Inference with TensorRT", GTC 2017)."""

Span: TypeAlias = "tuple[float, float]"

_CHUNK = 1 << 16  # values in work at once: they stay in the cache
_STRIDE = 8
_WINDOWS = 48  # ends that the entropy rule tries in its coarse round


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """Values counted in bins of equal width.

    Attributes:
        low: the lower edge of the first bin, the smallest value.
        high: the upper edge of the last bin, the largest value.
        counts: (BINS,) float64; exact zeros are not among them.
        total: how many values there were, zeros included.
        zeros: how many of them were exactly 0.
    """

    low: float
    high: float
    counts: NDArray[np.float64]
    total: int
    zeros: int

    @classmethod
    def of(cls, counts: NDArray[np.int64], low: float, high: float, zeros: int) -> Histogram:
        """A histogram from plain counts, (BINS,), in which zeros were counted like all other values."""
        others = counts.astype(np.float64)
        if zeros and low <= 0 <= high:
            others[_bins_of(np.zeros(1), low, high)[0]] -= zeros
        return cls(low=low, high=high, counts=others, total=int(counts.sum()), zeros=zeros)

    @property
    def edges(self) -> NDArray[np.float64]:
        """(BINS + 1,) float64; the first and the last are `low` and `high`."""
        return np.linspace(self.low, self.high, BINS + 1)

    def folded(self) -> Histogram:
        """The histogram of magnitudes: BINS bins from 0 to the largest; values are taken as even within a bin.

        Asks for `low` below `high`.
        """
        top = max(abs(self.low), abs(self.high))
        cumulated = np.concatenate([[0.0], np.cumsum(self.counts)])
        below = np.linspace(0, top, BINS + 1)
        inside = np.interp(below, self.edges, cumulated) - np.interp(-below, self.edges, cumulated)
        counts = np.maximum(np.diff(inside), 0)
        return Histogram(low=0.0, high=top, counts=counts, total=self.total, zeros=self.zeros)


def count_values(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.int64]:
    """Count values in BINS bins of equal width from `low` to `high`; the last bin holds `high` too.

    Args:
        values: any shape; what lies outside goes to the nearest bin.
        low: the lower edge of the first bin.
        high: the upper edge of the last; where it equals `low`, all goes to the first bin.

    Returns:
        (BINS,) int64.
    """
    flat = values.reshape(-1)
    counts = np.zeros(BINS, dtype=np.int64)
    for start in range(0, flat.size, _CHUNK):
        counts += np.bincount(_bins_of(flat[start : start + _CHUNK], low, high), minlength=BINS)
    return counts


def _bins_of(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.int64]:
    if low == high:
        return np.zeros(values.shape, dtype=np.int64)
    places = (values.astype(np.float64) - low) * (BINS / (high - low))
    return np.clip(places.astype(np.int64), 0, BINS - 1)


def percentile_span(histogram: Histogram, percentile: float, *, symmetric: bool) -> Span:
    """The span that keeps this share of all values, zeros included.

    What is cut off is divided between both tails; a histogram that lies on one side of 0 has one tail. The symmetric
    span keeps the share of the magnitudes.

    Args:
        histogram: of all values.
        percentile: share of values to keep, in percent.
        symmetric: the span is as wide below 0 as above.
    """
    cut = 1 - percentile / 100
    if symmetric or histogram.low >= 0 or histogram.high <= 0:
        magnitude = _quantile(histogram.folded(), 1 - cut)
        return _signed(histogram, magnitude, symmetric=symmetric)
    return min(_quantile(histogram, cut / 2), 0.0), max(_quantile(histogram, 1 - cut / 2), 0.0)


def squared_error_span(histogram: Histogram, *, symmetric: bool) -> Span:
    """The span whose grid has the least squared error, found by trying every pair of bin edges, coarse then fine.

    The error is as `span_error` has it. As in R. Banner et al., "Post training 4-bit quantization of convolutional
    networks", NeurIPS 2019, but for the measured distribution in place of a fitted one.
    """
    if symmetric or histogram.low >= 0 or histogram.high <= 0:
        magnitudes = histogram.folded()
        highs = magnitudes.edges[1:]
        step = highs / (127 if symmetric else 255)
        errors = _clipped_above(magnitudes)[1:] + np.cumsum(magnitudes.counts) * step**2 / 12
        return _signed(histogram, float(highs[int(np.argmin(errors))]), symmetric=symmetric)
    return _two_sided_span(histogram)


def _two_sided_span(histogram: Histogram) -> Span:
    edges = histogram.edges
    lows, highs = np.flatnonzero(edges <= 0), np.flatnonzero(edges >= 0)
    surface = _TwoSided(histogram)
    low, high = surface.best(lows[::_STRIDE], highs[::-1][::_STRIDE])
    near_low = lows[np.abs(lows - low) <= _STRIDE]
    near_high = highs[np.abs(highs - high) <= _STRIDE]
    low, high = surface.best(near_low, near_high[::-1])
    return float(edges[low]), float(edges[high])


class _TwoSided:
    """The squared error over pairs of bin edges."""

    def __init__(self, histogram: Histogram) -> None:
        mirrored = dataclasses.replace(
            histogram, low=-histogram.high, high=-histogram.low, counts=histogram.counts[::-1]
        )
        self._edges = histogram.edges
        self._above = _clipped_above(histogram)
        self._below = _clipped_above(mirrored)[::-1]
        self._cumulated = np.concatenate([[0.0], np.cumsum(histogram.counts)])

    def best(self, lows: NDArray[np.int64], highs: NDArray[np.int64]) -> tuple[int, int]:
        """The pair with the least error, the first where several have it."""
        inside = self._cumulated[highs][None, :] - self._cumulated[lows][:, None]
        step = (self._edges[highs][None, :] - self._edges[lows][:, None]) / 255
        errors = self._below[lows][:, None] + self._above[highs][None, :] + inside * step**2 / 12
        row, column = np.unravel_index(int(np.argmin(errors)), errors.shape)
        return int(lows[row]), int(highs[column])


def span_error(histogram: Histogram, low: float, high: float, *, symmetric: bool) -> float:
    """The mean squared error of quantizing to 8 bits, as a model of it.

    Inside the span rounding is noise of variance step² / 12; outside the distance to the nearest end counts, with
    values even within a bin; exact zeros are free.

    Args:
        histogram: of all values.
        low: the smallest level, 0 or below.
        high: the largest level, 0 or above.
        symmetric: 255 levels around 0, else 256 from `low` to `high`.
    """
    if symmetric:
        high = max(abs(low), abs(high))
        low = -high
    mirrored = dataclasses.replace(histogram, low=-histogram.high, high=-histogram.low, counts=histogram.counts[::-1])
    clipped = 0.0
    for side, end in ((histogram, high), (mirrored, -low)):
        clipped += float(np.interp(end, side.edges, _clipped_above(side))) if end < side.high else 0.0
    step = (high - low) / (254 if symmetric else 255)
    cumulated = np.concatenate([[0.0], np.cumsum(histogram.counts)])
    inside = np.interp(high, histogram.edges, cumulated) - np.interp(low, histogram.edges, cumulated)
    return float((clipped + inside * step**2 / 12) / max(histogram.total, 1))


def _clipped_above(histogram: Histogram) -> NDArray[np.float64]:
    """For each edge t, the sum of (x - t)² over all x above it; (BINS + 1,)."""
    edges = histogram.edges
    centres = (edges[:-1] + edges[1:]) / 2
    width = (histogram.high - histogram.low) / BINS
    moments = (
        histogram.counts,
        histogram.counts * centres,
        histogram.counts * (centres**2 + width**2 / 12),
    )
    count, first, second = (np.concatenate([np.cumsum(m[::-1])[::-1], [0.0]]) for m in moments)
    errors: NDArray[np.float64] = np.maximum(second - 2 * edges * first + edges**2 * count, 0)
    return errors


def entropy_span(histogram: Histogram, *, symmetric: bool) -> Span:
    """The span that loses the least information: TensorRT's entropy rule.

    For each span the values inside, with all outside moved to its ends, are compared with what is left of them when
    the bins are merged to the levels that the grid has (128 magnitudes, or 256 levels) and spread again over the bins
    that were not empty; the span with the smallest Kullback-Leibler divergence is taken (S. Migacz, "8-bit Inference
    with TensorRT", GTC 2017). The asymmetric form moves both ends in turn, which the source does not have.
    """
    if not histogram.counts.any():
        return _signed(histogram, max(abs(histogram.low), abs(histogram.high)), symmetric=symmetric)
    if symmetric or histogram.low >= 0 or histogram.high <= 0:
        magnitudes = histogram.folded()
        levels = 128 if symmetric else 256
        last = _best_last(magnitudes.counts, 0, levels, levels)
        return _signed(histogram, float(magnitudes.edges[last]), symmetric=symmetric)
    edges = histogram.edges
    zero = int(_bins_of(np.zeros(1), histogram.low, histogram.high)[0])
    first, last = 0, BINS
    for _ in range(2):
        last = _best_last(histogram.counts, first, min(max(zero + 1, first + 256), BINS), 256)
        shortest = min(max(BINS - zero, BINS - last + 256), BINS)
        mirrored = _best_last(histogram.counts[::-1], BINS - last, shortest, 256)
        first = BINS - mirrored
    return min(float(edges[first]), 0.0), max(float(edges[last]), 0.0)


def _best_last(counts: NDArray[np.float64], first: int, shortest: int, levels: int) -> int:
    """The end of the window from `first` with the smallest divergence, coarse then fine; the widest of equals.

    Only ends behind a bin with values are tried: at all others the divergence is infinite, or the window has nothing
    more to show.
    """
    ends = np.flatnonzero(counts) + 1
    ends = ends[ends >= shortest][::-1]
    if not ends.size:
        return BINS
    gap = max(ends.size // _WINDOWS, 1)
    divergences = {place: _divergence(counts, first, int(ends[place]), levels) for place in range(0, ends.size, gap)}
    near = min(divergences, key=lambda place: (divergences[place], place))
    for place in range(max(near - gap, 0), min(near + gap + 1, ends.size), max(gap // 8, 1)):
        divergences[place] = _divergence(counts, first, int(ends[place]), levels)
    return int(ends[min(divergences, key=lambda place: (divergences[place], place))])


def _divergence(counts: NDArray[np.float64], first: int, last: int, levels: int) -> float:
    """KL(P || Q) of one window in nats; infinite where P has values in a bin that Q has emptied."""
    window = counts[first:last]
    before, after = counts[:first].sum(), counts[last:].sum()
    filled = window > 0
    if (before and not filled[0]) or (after and not filled[-1]) or not filled.any():
        return float("inf")
    starts, lengths = _groups(window.size, levels)
    alive = np.add.reduceat(filled.astype(np.float64), starts)
    level = np.repeat(np.add.reduceat(window, starts) / np.maximum(alive, 1), lengths)
    reference = window.copy()
    reference[0] += before
    reference[-1] += after
    p, q = reference[filled], level[filled]
    p /= p.sum()
    q /= q.sum()
    return float((p * np.log(p / q)).sum())


@functools.cache
def _groups(size: int, levels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which bins go to which level: the first bin of each, and how many; as even as whole bins allow."""
    starts = np.arange(min(levels, size)) * size // min(levels, size)
    return starts, np.diff(starts, append=size)


def _quantile(histogram: Histogram, share: float) -> float:
    """The value below which this share of all values lies, zeros included; even within a bin."""
    counts = histogram.counts.copy()
    if histogram.zeros:
        counts[_bins_of(np.zeros(1), histogram.low, histogram.high)[0]] += histogram.zeros
    cumulated = np.concatenate([[0.0], np.cumsum(counts)])
    wanted = share * cumulated[-1]
    bin_ = int(np.clip(np.searchsorted(cumulated, wanted, side="left") - 1, 0, BINS - 1))
    inside = (wanted - cumulated[bin_]) / counts[bin_] if counts[bin_] else 0.0
    edges = histogram.edges
    return float(edges[bin_] + min(max(inside, 0.0), 1.0) * (edges[bin_ + 1] - edges[bin_]))


def _signed(histogram: Histogram, magnitude: float, *, symmetric: bool) -> Span:
    """A magnitude as a span, on the sides of 0 where there are values."""
    if histogram.low >= 0:
        return 0.0, magnitude
    if histogram.high <= 0:
        return -magnitude, 0.0
    assert symmetric
    return -magnitude, magnitude
