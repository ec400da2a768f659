"""Grouping: which pictures go together, through all evidence."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from optimize.data_check.pairs import components
from optimize.data_check.pictures import Picture, read_pictures
from optimize.data_check.search import search
from optimize.data_split.evidence import EVIDENCE, Link, column_links, surface_links
from optimize.data_split.frames import FrameRule, frame_links
from optimize.dataset import Dataset
from optimize.errors import DataError
from optimize.progress import Progress

__all__ = ["Grouping", "group_pictures"]

ACROSS_CLASSES_PAIRS = 300_000
"""Up to so many pairs (about 770 pictures) classes are compared with one another unasked: less than a minute."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """A data set, and which of its pictures go together.

    Attributes:
        dataset: each sample with its group, which is named after the group's first file.
        pictures: in the order of the samples.
        links: every pair that was linked, and why.
        rules: what frame numbers mean here; empty where they mean nothing.
        alike: classes in which most pictures share a structure, so that surfaces can't be told apart there.
        is_across_classes: whether shifted crops of different classes were compared.
        seconds: what the search took.
    """

    dataset: Dataset
    pictures: Sequence[Picture]
    links: Sequence[Link]
    rules: Sequence[FrameRule]
    alike: tuple[str, ...]
    is_across_classes: bool
    seconds: float

    @property
    def sizes(self) -> Mapping[str, int]:
        """Group to its number of pictures, the largest first."""
        return dict(Counter(str(sample.group) for sample in self.dataset.samples).most_common())

    @property
    def evidence(self) -> Mapping[str, int]:
        """Evidence to how many pairs it links; all kinds, in their order."""
        counted = Counter(link.evidence for link in self.links)
        return {kind: counted[kind] for kind in EVIDENCE}


def group_pictures(dataset: Dataset, progress: Progress, *, is_across_classes: bool | None = None) -> Grouping:
    """Find which pictures of a set show one surface, part or lot; splits that the set has do not matter.

    Args:
        dataset: a group that it names is evidence, and is kept together.
        progress: told of pictures and pairs.
        is_across_classes: whether shifted crops are looked for between classes; None: where the set is small enough.

    Raises:
        DataError: a picture can't be read, so that nobody knows what it shows.
    """
    started = time.monotonic()
    n = len(dataset)
    is_across = n * (n - 1) // 2 <= ACROSS_CLASSES_PAIRS if is_across_classes is None else is_across_classes
    # Present splits would keep the search from looking within them.
    samples = [dataclasses.replace(sample, split=None) for sample in dataset.samples]
    pictures, broken = read_pictures(samples, progress)
    if broken:
        raise DataError(
            f"{dataset.root}: {len(broken)} of {n} pictures can't be read, the first: "
            f"{broken[0].sample.file} ({broken[0].reason})",
            hint="`defect-opt data check` names them all; take them out of the set, or save them again",
        )
    shared = search(pictures, progress, is_across_classes=is_across)
    seen = [*surface_links(pictures, shared), *column_links(pictures)]
    by_number, rules = frame_links(pictures, seen, shared.alike)
    links = [*seen, *by_number]
    group_of = {index: members[0] for members in components(link.pair for link in links) for index in members}
    grouped = [
        dataclasses.replace(sample, group=dataset.samples[group_of.get(index, index)].file)
        for index, sample in enumerate(dataset.samples)
    ]
    return Grouping(
        dataset=dataclasses.replace(dataset, samples=tuple(grouped)),
        pictures=pictures,
        links=links,
        rules=rules,
        alike=shared.alike,
        is_across_classes=is_across,
        seconds=time.monotonic() - started,
    )
