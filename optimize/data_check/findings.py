"""Findings: all that was found in a data set, as facts; what they mean is said in `verdicts`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from optimize.data_check.pairs import Pair, components
from optimize.data_check.pictures import Picture, Unreadable
from optimize.dataset import SPLITS, Dataset

__all__ = ["Findings", "is_leak", "without_structure"]

STRUCTURE_SHARE = 0.5
STRUCTURE_MINIMUM = 30
"""When so many pictures of a class, and more than half of it, hang together as one surface, it is no surface: they
share a frame, an outline or a pattern, and correlation can't tell parts apart."""
_JUDGING = frozenset({"val", "test"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found.

    Attributes:
        dataset: the set as it is listed.
        pictures: what could be read; indices in the other fields count here.
        unreadable: what could not.
        exact: sets of pictures with the same pixels.
        near: pairs of near copies; none of them an exact one.
        overlaps: pairs of overlapping crops; none of them a near copy.
        alike: classes in which most pictures share a structure; no pair of theirs is in `near` or `overlaps`.
        seconds: what the search took.
    """

    dataset: Dataset
    pictures: Sequence[Picture]
    unreadable: Sequence[Unreadable]
    exact: Sequence[tuple[int, ...]]
    near: Sequence[Pair]
    overlaps: Sequence[Pair]
    alike: tuple[str, ...]
    seconds: float

    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Class to split to number of listed files; without splits there is only `all`, which is always there."""
        counts: dict[str, dict[str, int]] = {}
        for name in self.dataset.classes:
            splits = Counter(s.split for s in self.dataset.samples if s.label == name)
            row = {split: splits[split] for split in SPLITS if split in self.dataset.splits}
            counts[name] = {**row, "all": splits.total()}
        return counts

    def leaks(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those pairs that lie in two splits, one of which judges."""
        return [p for p in pairs if is_leak(self.pictures, (p.first, p.second))]

    def files(self, indices: Sequence[int]) -> list[str]:
        """The files of pictures."""
        return [self.pictures[i].sample.file for i in indices]

    def labels(self, indices: Sequence[int]) -> list[str | None]:
        """The classes of pictures."""
        return [self.pictures[i].sample.label for i in indices]

    def splits(self, indices: Sequence[int]) -> list[str | None]:
        """The splits of pictures."""
        return [self.pictures[i].sample.split for i in indices]


def is_leak(pictures: Sequence[Picture], indices: Sequence[int]) -> bool:
    """Whether pictures of one surface lie in different splits, one of which is used to choose or to judge.

    `train` and `calib` may share: calibration measures ranges, learns nothing and judges nothing.
    """
    splits = {pictures[i].sample.split for i in indices}
    return len(splits) > 1 and bool(splits & _JUDGING)


def without_structure(
    pictures: Sequence[Picture], near: Sequence[Pair], overlaps: Sequence[Pair]
) -> tuple[list[Pair], list[Pair], tuple[str, ...]]:
    """Take out the pairs of classes whose pictures all look like one surface, and name those classes."""
    sizes = Counter(p.sample.label for p in pictures)
    alike: set[str] = set()
    for members in components([*near, *overlaps]):
        label, count = Counter(pictures[i].sample.label for i in members).most_common(1)[0]
        if label is not None and count >= max(STRUCTURE_MINIMUM, STRUCTURE_SHARE * sizes[label]):
            alike.add(label)
    kept = [[p for p in pairs if pictures[p.first].sample.label not in alike] for pairs in (near, overlaps)]
    return kept[0], kept[1], tuple(sorted(alike))
