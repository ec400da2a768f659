"""Pair: two pictures that show the same surface; and which pictures hang together through pairs."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

__all__ = ["Pair", "components"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two pictures that show the same surface, in part or in whole.

    Attributes:
        first: index of a picture.
        second: index of another.
        shift_px: right and down: where the second one's corner lies on the first, in stored pixels.
        share: overlap as a share of the smaller picture, 0 to 1.
        correlation: of the locally normalised overlap, -1 to 1.
        peak: height of the phase peak in deviations; None where no shift was searched.
    """

    first: int
    second: int
    shift_px: tuple[int, int] = (0, 0)
    share: float = 1.0
    correlation: float = 1.0
    peak: float | None = None


def components(pairs: Iterable[Pair]) -> list[list[int]]:
    """Pictures that pairs connect, directly or through others; the largest set first, each sorted."""
    parent: dict[int, int] = {}

    def root(index: int) -> int:
        while parent.setdefault(index, index) != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for pair in pairs:
        parent[root(pair.second)] = root(pair.first)
    members: dict[int, list[int]] = defaultdict(list)
    for index in sorted(parent):
        members[root(index)].append(index)
    return sorted(members.values(), key=lambda m: (-len(m), m))
