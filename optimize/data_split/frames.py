"""Frame numbers: pictures shot one after the other, where the pictures themselves prove that this means something.

A camera numbers its frames, and a burst of one part has numbers close together: `exp0_num_461`, `exp1_num_524`, ... Yet
in most sets numbers only count files. So the gap that separates bursts is read off the set: neighbours in number whose
pictures visibly show one surface must have small gaps, the others large ones. Where small gaps do not foretell it,
numbers say nothing and are left alone (NEU steel: each class is numbered 1, 2, 3, ...).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from optimize.data_check.pairs import Pair, components
from optimize.data_check.pictures import Picture
from optimize.data_split.evidence import Link

__all__ = ["FrameRule", "frame_links"]

MIN_NEAR, MIN_FAR = 20, 10
"""Neighbours that must speak on each side of the gap, or chance could draw the line."""
MIN_NEAR_LINKED, MAX_FAR_LINKED = 0.7, 0.3
"""Share of neighbours seen to show one surface: within the gap at least (not every such pair is recognised: dark
exposures are not), beyond it at most. Magnetic tiles have 0.89 and 0.03."""
MIN_GAP_RATIO = 5.0
"""Between bursts the gaps are larger than within them, median to median, at least by so much: a burst takes less time
than the handling of parts. Without that, numbers only count (1, 2, 3, ... with some files gone). Magnetic tiles have
1,058 to 19."""
MAX_SHARED_NUMBERS = 0.01
"""When more numbers than this occur in two classes, each class was numbered for itself."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameRule:
    """What frame numbers of one pattern mean.

    Attributes:
        pattern: of the file names; `#` is the frame number, `*` other digits.
        gap: neighbours in number at most so far apart show one part.
        near: neighbours within the gap, of one class.
        near_linked: of them, those whose pictures show one surface.
        far: neighbours farther apart, of one class.
        far_linked: of them, those whose pictures show one surface.
    """

    pattern: str
    gap: int
    near: int
    near_linked: int
    far: int
    far_linked: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """Pictures that one camera numbered, by number."""

    pattern: str
    members: list[tuple[int, int]]  # number, index of the picture


def frame_links(
    pictures: Sequence[Picture], seen: Iterable[Link], alike: Sequence[str] = ()
) -> tuple[list[Link], list[FrameRule]]:
    """Link neighbours in number, where numbers are proven to mean something.

    Args:
        pictures: all readable ones.
        seen: links that the pictures themselves show.
        alike: classes whose surfaces can't be told apart; they prove nothing.

    Returns:
        Links, and the rules that they follow.
    """
    surface = np.arange(len(pictures))
    for members in components(link.pair for link in seen):
        surface[members] = members[0]
    links: list[Link] = []
    rules: list[FrameRule] = []
    for by_other_digits in _series(pictures):
        for candidates in by_other_digits:  # the first way to read the names that proves itself
            found = [(s, rule) for s in candidates if (rule := _rule(s, pictures, surface.tolist(), alike))]
            if found:
                rules += [rule for _, rule in found]
                links += [link for s, rule in found for link in _links(s, rule.gap)]
                break
    return links, rules


def _links(series: _Series, gap: int) -> Iterable[Link]:
    for (number, first), (after, second) in itertools.pairwise(series.members):
        if after - number <= gap:
            yield Link(pair=Pair(first=first, second=second), evidence="frame number")


def _series(pictures: Sequence[Picture]) -> Iterable[tuple[list[_Series], list[_Series]]]:
    """For each pattern of names two readings: other digits may vary along a series (exposures), or not (dates)."""
    named: dict[str, list[tuple[list[str], int]]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        stem = picture.sample.file.rpartition("/")[2].rpartition(".")[0]
        pieces = re.split(r"([0-9]+)", stem)
        if len(pieces) > 1:
            named["\0".join(pieces[::2])].append((pieces, index))
    for members in named.values():
        runs = range(1, len(members[0][0]), 2)
        frame = max(runs, key=lambda run: (len({pieces[run] for pieces, _ in members}), run))
        varying: dict[str, list[tuple[int, int]]] = defaultdict(list)
        fixed: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for pieces, index in members:
            numbered = (int(pieces[frame]), index)
            varying[_pattern(pieces, frame, other="*")].append(numbered)
            fixed[_pattern(pieces, frame, other=None)].append(numbered)
        yield _by_class(varying, pictures), _by_class(fixed, pictures)


def _pattern(pieces: Sequence[str], frame: int, other: str | None) -> str:
    return "".join(
        piece if place % 2 == 0 else "#" if place == frame else (other or piece) for place, piece in enumerate(pieces)
    )


def _by_class(series: dict[str, list[tuple[int, int]]], pictures: Sequence[Picture]) -> list[_Series]:
    """Sorted by number; divided by class where each class was numbered for itself."""
    made = []
    for pattern, members in series.items():
        classes_of: dict[int, set[str | None]] = defaultdict(set)
        for number, index in members:
            classes_of[number].add(pictures[index].sample.label)
        shared = sum(len(classes) > 1 for classes in classes_of.values())
        parts: dict[str | None, list[tuple[int, int]]] = defaultdict(list)
        for number, index in sorted(members):
            parts[pictures[index].sample.label if shared > MAX_SHARED_NUMBERS * len(members) else None].append(
                (number, index)
            )
        made += [_Series(pattern=pattern, members=part) for part in parts.values()]
    return made


def _rule(
    series: _Series, pictures: Sequence[Picture], surface: Sequence[int], alike: Sequence[str]
) -> FrameRule | None:
    """The gap that best divides neighbours of one surface from others; None where none does it well."""
    gaps, linked = _neighbours(series, pictures, surface, alike)
    if len(gaps) < MIN_NEAR + MIN_FAR:
        return None
    order = np.argsort(gaps, kind="stable")
    gaps, linked = gaps[order], linked[order]
    ends = np.flatnonzero(np.append(gaps[1:] > gaps[:-1], True))  # a line lies between two different gaps only
    near_linked = np.cumsum(linked)[ends]
    right = near_linked + (len(linked) - ends - 1) - (linked.sum() - near_linked)
    best = int(right.argmax())
    near, n_linked = int(ends[best]) + 1, int(near_linked[best])
    far, far_linked = len(gaps) - near, int(linked.sum()) - n_linked
    if near < MIN_NEAR or far < MIN_FAR or np.median(gaps[near:]) < MIN_GAP_RATIO * max(1, np.median(gaps[:near])):
        return None
    if n_linked < MIN_NEAR_LINKED * near or far_linked > MAX_FAR_LINKED * far:
        return None
    return FrameRule(
        pattern=series.pattern,
        gap=int(gaps[ends[best]]),
        near=near,
        near_linked=n_linked,
        far=far,
        far_linked=far_linked,
    )


def _neighbours(
    series: _Series, pictures: Sequence[Picture], surface: Sequence[int], alike: Sequence[str]
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Gaps between neighbours of one class (others were not compared), and whether their pictures show one surface."""
    gaps, linked = [], []
    for (number, first), (after, second) in itertools.pairwise(series.members):
        label = pictures[first].sample.label
        if label == pictures[second].sample.label and label not in alike:
            # A float holds any number that a file name can; only its order and rough size count.
            gaps.append(float(after - number))
            linked.append(surface[first] == surface[second])
    return np.array(gaps, dtype=np.float64), np.array(linked, dtype=np.bool_)
