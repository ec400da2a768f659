"""Find pictures that are shifted crops, or other exposures, of one surface.

Phase correlation proposes a shift (Kuglin and Hines, "The phase correlation image alignment method", 1975), correlation
of the overlap decides. Two stages keep it cheap: small surfaces propose for every pair of a class (about 0.1 ms), and
full ones decide for the few that are left (about 2 ms). Only pairs that matter are looked at: across splits where the
set has splits, never within one `group`.

Not searched for: a crop that was rotated, mirrored or scaled; and, unless it is asked for, shifted crops in different
classes.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from optimize.data_check.pairs import Pair
from optimize.data_check.pictures import Picture
from optimize.data_check.surfaces import COARSE_EDGE, FINE_EDGE, Shift, Surface, correlation, overlap_share
from optimize.dataset import Sample
from optimize.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MIN_CORRELATION", "MIN_SHARE", "count_mirrored", "find_overlaps"]

MIN_CORRELATION = 0.5
"""Of the locally normalised overlap. Nine in ten true overlaps of NEU steel have more than 0.7."""
MIN_PEAK = 5.0
PEAK_BY_SHARE = 5.0
"""Height of the phase peak in deviations that makes sure: `MIN_PEAK + PEAK_BY_SHARE * share`, more where more overlaps.

A long scratch resembles itself all along and reaches 2 to 4. Ground tiles of one kind, which share their grooves, reach
5 to 9 over the whole picture; two exposures of one tile 10 to 60 (measured on NEU steel and magnetic tiles).
"""
MIN_SHARE = 0.1
"""Overlap as a share of the smaller picture; with less there is too little texture to be sure."""
_COARSE_PEAK = 3.6
_COARSE_PEAK_LEAST, _COARSE_PEAK_BY_SHARE = 3.2, 2.0
"""As for the fine ones; it saves half the time, and of 1,562 overlaps of NEU steel and of the tiles it lost none."""
_COARSE_CORRELATION = 0.3
_BATCH = 256
_REFINE_PX = 7
_EPSILON = 1e-3


def find_overlaps(
    pictures: Sequence[Picture],
    surfaces: Mapping[int, Surface],
    progress: Progress,
    *,
    is_across_classes: bool = False,
) -> list[Pair]:
    """Find all overlapping pairs that matter.

    Args:
        pictures: all readable pictures; the pairs' indices count in this order.
        surfaces: theirs.
        progress: told which picture is compared with the others.
        is_across_classes: also compares pictures of different classes.
    """
    work = _work(pictures, surfaces, is_across_classes=is_across_classes)
    search = _Search(surfaces)
    found: list[Pair] = []
    pairs = sum(len(others) for _, others in work)
    for first, others in progress.track(work, f"comparing {pairs:,} pairs of surfaces"):
        for start in range(0, len(others), _BATCH):
            found += search.partners_of(first, others[start : start + _BATCH])
    return found


def count_mirrored(pictures: Sequence[Picture], surfaces: Mapping[int, Surface], progress: Progress) -> int:
    """How many pairs are found when the second picture of each is turned upside down: all of them are invented.

    A control for `find_overlaps`: the texture stays, and so does a scratch along the strip; only the surface can't be
    the same. About as many of the pairs that it finds are to be expected to be inventions.
    """
    work = _work(pictures, surfaces, is_across_classes=False)
    n = len(pictures)
    search = _Search({**surfaces, **{n + i: _upside_down(surface) for i, surface in surfaces.items()}})
    found = 0
    for first, others in progress.track(work, "comparing with mirror images"):
        mirrored = [n + i for i in others]
        for start in range(0, len(mirrored), _BATCH):
            found += len(search.partners_of(first, mirrored[start : start + _BATCH]))
    return found


def _upside_down(surface: Surface) -> Surface:
    fine, coarse = np.ascontiguousarray(surface.fine[::-1]), np.ascontiguousarray(surface.coarse[::-1])
    return dataclasses.replace(surface, fine=fine, coarse=coarse)


def _work(
    pictures: Sequence[Picture], surfaces: Mapping[int, Surface], *, is_across_classes: bool
) -> list[tuple[int, list[int]]]:
    """Each picture with the later ones, of its class or of all, that must not show the same surface."""
    by_class: dict[str | None, list[int]] = defaultdict(list)
    for index in surfaces:
        by_class[None if is_across_classes else pictures[index].sample.label].append(index)
    work = []
    for members in by_class.values():
        for position, first in enumerate(members):
            others = [i for i in members[position + 1 :] if _matters(pictures[first].sample, pictures[i].sample)]
            if others:
                work.append((first, others))
    return work


def _matters(first: Sample, second: Sample) -> bool:
    if first.group is not None and first.group == second.group:
        return False
    return first.split is None or first.split != second.split


class _Search:
    """The two stages, with the spectra that they need."""

    def __init__(self, surfaces: Mapping[int, Surface]) -> None:
        self._surfaces = surfaces
        self._coarse_edge = _canvas([s.coarse.shape for s in surfaces.values()], COARSE_EDGE, 0)
        # Room for the shift to be refined; a wrapped-round copy lies elsewhere, as the shift is roughly known.
        self._fine_edge = _canvas([s.fine.shape for s in surfaces.values()], FINE_EDGE, 2 * _REFINE_PX)
        self._coarse = {i: _spectrum(s.coarse, self._coarse_edge) for i, s in surfaces.items()}
        self._fine = lru_cache(maxsize=256)(lambda i: _spectrum(surfaces[i].fine, self._fine_edge))

    def partners_of(self, first: int, others: Sequence[int]) -> list[Pair]:
        """Which of the others overlap with the first."""
        edge = self._coarse_edge
        spectra = np.stack([self._coarse[i] for i in others])
        planes = np.fft.irfft2(self._coarse[first] * spectra.conj(), s=(edge, edge)).reshape(len(others), -1)
        top = planes.argmax(axis=1)
        # The mean of a plane is next to nothing beside its deviation, as surfaces have none.
        deviation = np.sqrt(np.einsum("ij,ij->i", planes, planes) / planes.shape[1])
        height = planes[np.arange(len(others)), top] / np.maximum(deviation, 1e-12)
        pairs = []
        for position, shifts in self._coarse_shifts(first, others, top, height):
            shift = self._best_coarse(first, others[position], shifts)
            pair = None if shift is None else self._decide(first, others[position], shift)
            if pair is not None:
                pairs.append(pair)
        return pairs

    def _coarse_shifts(
        self, first: int, others: Sequence[int], top: NDArray[np.intp], height: NDArray[np.floating]
    ) -> Iterator[tuple[int, list[Shift]]]:
        """Which of the others may overlap, and at which of the four shifts that a circular peak may mean.

        All at once, as most of a set is left after the first stage: every pair shows some peak.
        """
        edge = self._coarse_edge
        shape = self._surfaces[first].coarse.shape
        shapes = np.array([self._surfaces[i].coarse.shape for i in others])
        down, right = np.divmod(top, edge)
        proposed: dict[int, list[Shift]] = defaultdict(list)
        for y, x in ((y, x) for y in (down, down - edge) for x in (right, right - edge)):
            rows = np.minimum(shape[0], shapes[:, 0] + y) - np.maximum(0, y)
            columns = np.minimum(shape[1], shapes[:, 1] + x) - np.maximum(0, x)
            area = np.maximum(rows, 0) * np.maximum(columns, 0)
            share = area / np.minimum(shape[0] * shape[1], shapes.prod(axis=1))
            needed = np.maximum(_COARSE_PEAK, _COARSE_PEAK_LEAST + _COARSE_PEAK_BY_SHARE * share)
            for position in np.flatnonzero((share >= 0.8 * MIN_SHARE) & (height >= needed)).tolist():
                proposed[position].append((int(y[position]), int(x[position])))
        yield from sorted(proposed.items())

    def _best_coarse(self, first: int, second: int, shifts: Sequence[Shift]) -> Shift | None:
        """The one that correlates best; None where none does well."""
        a, b = self._surfaces[first].coarse, self._surfaces[second].coarse
        best, best_shift = _COARSE_CORRELATION, None
        for shift in shifts:
            value = correlation(a, b, shift)
            if value > best:
                best, best_shift = value, shift
        return best_shift

    def _decide(self, first: int, second: int, coarse: Shift) -> Pair | None:
        a, b = self._surfaces[first], self._surfaces[second]
        plane = np.fft.irfft2(self._fine(first) * self._fine(second).conj(), s=(self._fine_edge, self._fine_edge))
        shift, peak = _best_near(plane, tuple(round(c * FINE_EDGE / COARSE_EDGE) for c in coarse))
        share = overlap_share(a.fine.shape, b.fine.shape, shift)
        if share < MIN_SHARE or peak < MIN_PEAK + PEAK_BY_SHARE * share:
            return None
        value = correlation(a.fine, b.fine, shift)
        if value <= MIN_CORRELATION:
            return None
        return Pair(
            first=first,
            second=second,
            shift_px=(round(shift[1] * a.scale), round(shift[0] * a.scale)),
            share=share,
            correlation=value,
            peak=peak,
        )


def _best_near(plane: NDArray[np.floating], centre: tuple[int, ...]) -> tuple[Shift, float]:
    """The highest point of a phase plane near a shift, and its height in deviations."""
    reach = np.arange(-_REFINE_PX, _REFINE_PX + 1)
    rows, columns = centre[0] + reach, centre[1] + reach
    near = plane[np.ix_(rows % plane.shape[0], columns % plane.shape[1])]
    row, column = divmod(int(near.argmax()), len(columns))
    return (int(rows[row]), int(columns[column])), float(near.max() / max(float(plane.std()), 1e-12))


def _canvas(shapes: Sequence[tuple[int, ...]], least: int, margin: int) -> int:
    """Edge of a square that holds every surface, of a size that the FFT likes."""
    longest = max([least, *(max(shape) for shape in shapes)])
    return int(cv2.getOptimalDFTSize(longest + margin))


def _spectrum(surface: NDArray[np.float32] | NDArray[np.int8], edge: int) -> NDArray[np.complex64]:
    """Phase only: the whitened spectrum of a surface on an empty square."""
    canvas = np.zeros((edge, edge), dtype=np.float32)
    canvas[: surface.shape[0], : surface.shape[1]] = surface
    spectrum = np.fft.rfft2(canvas)
    size = np.abs(spectrum)
    return np.asarray(spectrum / (size + _EPSILON * size.mean() + 1e-12), dtype=np.complex64)
