"""All pairs of pictures that show one surface: copies, near copies, other exposures and shifted crops."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from optimize.data_check.duplicates import exact_copies, near_copies
from optimize.data_check.findings import without_structure
from optimize.data_check.overlaps import find_overlaps
from optimize.data_check.pairs import Pair
from optimize.data_check.pictures import Picture
from optimize.data_check.surfaces import surfaces_of
from optimize.progress import Progress

__all__ = ["SharedSurfaces", "search"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SharedSurfaces:
    """Which pictures show the same surface.

    Attributes:
        exact: sets of pictures with the same pixels.
        near: pairs of near copies; none of them an exact one.
        overlaps: pairs of overlapping crops or shifted exposures; none of them a near copy.
        alike: classes in which most pictures share a structure; no pair of theirs is in `near` or `overlaps`.
    """

    exact: list[tuple[int, ...]]
    near: list[Pair]
    overlaps: list[Pair]
    alike: tuple[str, ...]


def search(pictures: Sequence[Picture], progress: Progress, *, is_across_classes: bool = False) -> SharedSurfaces:
    """Find pictures that show the same surface.

    Pairs of one `group` are not looked at, nor shifted crops within one split: neither makes a number too good.

    Args:
        pictures: all readable ones; indices count in this order.
        progress: told of pairs.
        is_across_classes: compares shifted crops of different classes too; near copies are found across them anyway.
    """
    surfaces = surfaces_of(pictures)
    near = near_copies(pictures, surfaces)
    copies = {frozenset((p.first, p.second)) for p in near}
    overlaps = [
        pair
        for pair in find_overlaps(pictures, surfaces, progress, is_across_classes=is_across_classes)
        if pictures[pair.first].pixels != pictures[pair.second].pixels
        and frozenset((pair.first, pair.second)) not in copies
    ]
    near, overlaps, alike = without_structure(pictures, near, overlaps)
    return SharedSurfaces(exact=exact_copies(pictures), near=near, overlaps=overlaps, alike=alike)
