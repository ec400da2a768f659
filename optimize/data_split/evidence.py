"""Evidence: why two pictures are taken to show one surface."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from optimize.data_check.pairs import Pair
from optimize.data_check.pictures import Picture
from optimize.data_check.search import SharedSurfaces

__all__ = ["EVIDENCE", "Evidence", "Link", "column_links", "surface_links"]

Evidence: TypeAlias = Literal["copy", "near copy", "exposure", "overlap", "frame number", "column"]
EVIDENCE: tuple[Evidence, ...] = ("copy", "near copy", "exposure", "overlap", "frame number", "column")
"""Same pixels; the same surface in the same place; the same scene under another light, shifted a little or not; crops
that share a part; frames shot one after the other; the data's own group, part or lot."""

SCENE_SHARE = 0.8
"""Overlap from which two pictures show one scene under two lights, and not two crops."""
LIGHT_RATIO = 1.1
"""Ratio of the mean grey levels from which the light was another: of 7 exposures of the magnetic tiles each is 1.11 to
1.28 times as bright as the one before (95 % of them)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Two pictures that go together, and why.

    Attributes:
        pair: which, and where they overlap; indices of pictures.
        evidence: why.
    """

    pair: Pair
    evidence: Evidence


def surface_links(pictures: Sequence[Picture], shared: SharedSurfaces) -> list[Link]:
    """What the pictures themselves show; of a set of copies each is linked with the first."""
    copies = [_chained(members) for members in shared.exact]
    links = [Link(pair=pair, evidence="copy") for pairs in copies for pair in pairs]
    light = [max(float(picture.grey.mean()), 1.0) for picture in pictures]
    for near in (True, False):
        for pair in shared.near if near else shared.overlaps:
            one, other = light[pair.first], light[pair.second]
            is_relit = max(one, other) / min(one, other) >= LIGHT_RATIO
            kind: Evidence = "near copy" if near else "overlap"
            links.append(Link(pair=pair, evidence="exposure" if is_relit and pair.share >= SCENE_SHARE else kind))
    return links


def column_links(pictures: Sequence[Picture]) -> list[Link]:
    """What the data themselves say."""
    named: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        if picture.sample.group is not None:
            named[picture.sample.group].append(index)
    return [Link(pair=pair, evidence="column") for members in named.values() for pair in _chained(members)]


def _chained(members: Sequence[int]) -> Iterator[Pair]:
    """As few pairs as connect them all."""
    for first, second in itertools.pairwise(members):
        yield Pair(first=first, second=second)
