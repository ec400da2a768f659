"""The plan: which split each group goes to, and what the user has to know about it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from optimize.data_split.grouping import Grouping
from optimize.dataset import SPLITS, Dataset, Sample, assign_splits
from optimize.errors import DataError

__all__ = ["SPLIT_FRACTIONS", "SplitPlan", "plan_splits"]

SPLIT_FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.65, "calib": 0.05, "val": 0.12, "test": 0.18})
FEW_GROUPS = 3
"""A class with fewer groups in a split that judges: its figures there are anecdotes."""
LARGE_SHARE = 0.25
"""A group that holds more of a class than this is named: it decides alone what its split shows of the class."""
WIDE_OF_SHARE = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """Pictures with their groups and splits.

    Attributes:
        grouping: what goes together, and why.
        dataset: the set with its new splits.
        seed: what decided between groups alike.
        fractions: the shares that were asked for.
        kept: splits that were taken over as they were.
        moved: files that joined a kept split, as they show a surface of it.
    """

    grouping: Grouping
    dataset: Dataset
    seed: int
    fractions: Mapping[str, float]
    kept: tuple[str, ...]
    moved: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that were asked for, in their order."""
        return tuple(s for s in SPLITS if self.fractions.get(s) or s in self.kept)

    def counts(self, label: str | None = None) -> Mapping[str, tuple[int, int]]:
        """Split to its numbers of images and groups, of one class or of all."""
        images: dict[str, list[Sample]] = defaultdict(list)
        for sample in self.dataset.samples:
            if label is None or sample.label == label:
                images[str(sample.split)].append(sample)
        return {s: (len(images[s]), len({sample.group for sample in images[s]})) for s in self.splits}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one sentence each; the gravest first."""
        return (
            *_alike(self),
            *_contradicted(self),
            *_thin(self),
            *_large(self),
            *_wide(self),
            *_moved(self),
            *_not_compared(self),
        )


def plan_splits(
    grouping: Grouping,
    *,
    seed: int = 0,
    fractions: Mapping[str, float] = SPLIT_FRACTIONS,
    keep: Sequence[str] = (),
) -> SplitPlan:
    """Deal groups out to splits, by class; a group is never divided.

    Args:
        grouping: of the set; with the splits it came with, if any are to be kept.
        seed: decides between groups alike; the same set and seed give the same splits.
        fractions: split to its share; the shares add up to 1.
        keep: splits whose pictures stay in them. Pictures elsewhere that show the same surface join them.

    Raises:
        DataError: no labels, bad shares, a split to keep that is not there, or a group in two splits to keep.
    """
    dataset = grouping.dataset
    unlabelled = next((sample.file for sample in dataset.samples if sample.label is None), None)
    if unlabelled is not None:
        raise DataError(f"{dataset.root}: {unlabelled} has no label", hint="put the images in a folder per class")
    fixed = _fixed(dataset, keep)
    dealt = assign_splits(dataset, seed=seed, fractions=fractions, fixed=fixed)
    moved = [
        old.file for old, new in zip(dataset.samples, dealt.samples, strict=True)
        if new.split in keep and old.split != new.split and str(old.group) in fixed
    ]  # fmt: skip
    return SplitPlan(
        grouping=grouping,
        dataset=dealt,
        seed=seed,
        fractions=dict(fractions),
        kept=tuple(s for s in SPLITS if s in keep),
        moved=tuple(moved),
    )


def _fixed(dataset: Dataset, keep: Sequence[str]) -> dict[str, str]:
    """Group to the split that holds it."""
    fixed: dict[str, tuple[str, str]] = {}
    for split in keep:
        if split not in dataset.splits:
            found = ", ".join(dataset.splits) or "none"
            raise DataError(f"{dataset.root}: no image is in the split {split!r} that is to be kept (splits: {found})")
    for sample in dataset.samples:
        if sample.split is None or sample.split not in keep:
            continue
        split, file = fixed.setdefault(str(sample.group), (sample.split, sample.file))
        if split != sample.split:
            raise DataError(
                f"{dataset.root}: {file} ({split}) and {sample.file} ({sample.split}) show one surface or part: "
                f"not both splits can be kept",
                hint=f"keep {split} or {sample.split}, not both",
            )
    return {group: split for group, (split, _) in fixed.items()}


def _alike(plan: SplitPlan) -> Iterator[str]:
    if plan.grouping.alike:
        yield (
            f"most pictures of {', '.join(plan.grouping.alike)} look like one surface (a frame, an outline, a "
            f"pattern): crops and exposures of one part could not be told there, so these splits MAY LEAK; crop to the "
            f"surface that is inspected, or name the part in a `group` column"
        )


def _contradicted(plan: SplitPlan) -> Iterator[str]:
    samples = plan.dataset.samples
    pairs = [link.pair for link in plan.grouping.links if link.evidence in {"copy", "near copy"}]
    named = [
        f"{samples[p.first].file} ({samples[p.first].label}) and {samples[p.second].file} ({samples[p.second].label})"
        for p in pairs
        if samples[p.first].label != samples[p.second].label
    ]
    if named:
        more = ", ..." if len(named) > 3 else ""
        yield (
            f"{len(named)} pairs are one picture under two classes: {', '.join(named[:3])}{more}; one label of each is "
            f"wrong, or the picture shows both"
        )


def _thin(plan: SplitPlan) -> Iterator[str]:
    for label in plan.dataset.classes:
        counts = plan.counts(label)
        total = len({s.group for s in plan.dataset.samples if s.label == label})
        empty = [split for split, (n, _) in counts.items() if not n]
        few = [
            f"{groups} in {split}" for split, (_, groups) in counts.items()
            if split in ("val", "test") and 0 < groups < FEW_GROUPS
        ]  # fmt: skip
        if empty:
            yield f"{label} has only {total} groups: none in {' and '.join(empty)}; collect more parts, or use --cv"
        if few:
            yield f"{label}: groups {', '.join(few)}: figures of this class there are anecdotes, give them with counts"


def _large(plan: SplitPlan) -> Iterator[str]:
    for label in plan.dataset.classes:
        images = [s for s in plan.dataset.samples if s.label == label]
        sizes: dict[str | None, int] = defaultdict(int)
        for sample in images:
            sizes[sample.group] += 1
        group = max(sizes, key=lambda g: sizes[g])
        if sizes[group] > max(2, LARGE_SHARE * len(images)):
            yield f"{label}: one group holds {sizes[group]} of {len(images)} images ({group} and what it links to)"


def _wide(plan: SplitPlan) -> Iterator[str]:
    n = len(plan.dataset)
    for split, (images, _) in plan.counts().items():
        share = plan.fractions.get(split)
        if share is not None and split not in plan.kept and abs(images / n - share) > WIDE_OF_SHARE:
            yield f"{split} got {images / n:.0%} of the images, not {share:.0%}: groups are too large to do better"


def _moved(plan: SplitPlan) -> Iterator[str]:
    if plan.moved:
        yield (
            f"{len(plan.moved)} images joined {' and '.join(plan.kept)}, as they show a surface or part of it: "
            f"{', '.join(plan.moved[:3])}{', ...' if len(plan.moved) > 3 else ''}"
        )


def _not_compared(plan: SplitPlan) -> Iterator[str]:
    if not plan.grouping.is_across_classes and len(plan.dataset.classes) > 1:
        yield "shifted crops were compared within each class only; --across-classes compares all, and takes longer"
