"""Folds: each image is judged once by a network that saw no image of its group.

```text
all images but test ─ deal by class, whole groups ─ fold 1 … fold K
for each fold:  judged once │ of the others: most train, some (whole groups) stop the training
```

A network that stops at the epoch which does best on some images has been chosen by them, and looks better there than it
is. So the images of a fold neither train nor stop: `parts_of` holds a part of the others out for that.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from optimize.dataset import Dataset, Sample, assign_splits
from optimize.errors import DataError

__all__ = ["Folds", "deal_folds", "group_of", "parts_of", "pool"]

STOP_SHARE = 0.15
"""What part of a fold's other images becomes `val`, as `train` itself does it for a set that has none."""

MOST = 50
"""More folds than this cost days and tell nothing new."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Which fold judges which image.

    Attributes:
        dataset: the images that were dealt out.
        count: how many folds.
        seed: what decided.
        numbers: for each image the fold that judges it, from 1; 0 for images that only train.
        notices: what the user should know, in sentences.
    """

    dataset: Dataset
    count: int
    seed: int
    numbers: tuple[int, ...]
    notices: tuple[str, ...]

    def judged(self, fold: int) -> tuple[Sample, ...]:
        """The images that a fold judges."""
        return tuple(s for s, number in zip(self.dataset.samples, self.numbers, strict=True) if number == fold)


def group_of(sample: Sample) -> str:
    """The group of an image; one without is its own (a NUL keeps its name apart from any group's)."""
    return sample.group if sample.group is not None else f"\0{sample.file}"


def pool(dataset: Dataset) -> Dataset:
    """All images but those of `test`; all of them where the set has no splits.

    Raises:
        DataError: an image has no label, or nothing is left.
    """
    kept = tuple(sample for sample in dataset.samples if sample.split != "test")
    if not kept:
        raise DataError(
            f"{dataset.root}: every image is in test, which cross-validation leaves alone",
            hint="mark some rows of splits.csv as train",
        )
    found = dataclasses.replace(dataset, samples=kept)
    found.targets  # noqa: B018 - refuses an image without label
    return found


def deal_folds(dataset: Dataset, count: int, seed: int) -> Folds:
    """Deal images out to folds: by class, never dividing a group; the same set and seed give the same folds.

    Groups with the rarest classes are dealt first, larger ones before smaller ones, each to the fold that still lacks
    most of what it holds. A class with one group can't be trained on and judged: its group only trains, and is in no
    fold.

    Args:
        dataset: labelled images, see `pool`.
        count: how many folds, at least 2.
        seed: decides between groups that are alike.

    Raises:
        DataError: one class only, or fewer groups than folds.
    """
    groups = _groups(dataset.samples)
    _check(dataset, groups, count)
    of_class: dict[str, set[str]] = defaultdict(set)
    for name, samples in groups.items():
        for sample in samples:
            of_class[str(sample.label)].add(name)
    lone = {next(iter(names)) for names in of_class.values() if len(names) == 1}
    number_of = dict.fromkeys(lone, 0) | _dealt({n: g for n, g in groups.items() if n not in lone}, count, seed)
    numbers = tuple(number_of[group_of(sample)] for sample in dataset.samples)
    notices = tuple(_notices(dataset, of_class, number_of, count))
    return Folds(dataset=dataset, count=count, seed=seed, numbers=numbers, notices=notices)


def parts_of(folds: Folds, fold: int) -> Dataset:
    """What one fold's network may see: `train`, and a `val` that stops it; nothing of what the fold judges.

    Args:
        folds: see `deal_folds`.
        fold: from 1.

    Returns:
        The other folds' images. No group is in both splits, and every class is in `train`.
    """
    others = tuple(s for s, n in zip(folds.dataset.samples, folds.numbers, strict=True) if n != fold)
    whole = dataclasses.replace(folds.dataset, samples=others)
    split = assign_splits(whole, seed=folds.seed + fold, fractions={"train": 1 - STOP_SHARE, "val": STOP_SHARE})
    back = {group_of(sample) for sample in _lacking_in_train(split)}
    samples = tuple(dataclasses.replace(s, split="train") if group_of(s) in back else s for s in split.samples)
    if not any(sample.split == "val" for sample in samples):
        raise DataError(
            f"{whole.root}: {len(whole)} images in {len({group_of(s) for s in others})} groups are too few to train "
            f"fold {fold} and to know when to stop",
            hint="use fewer folds, or more images",
        )
    return dataclasses.replace(split, samples=samples)


def _lacking_in_train(split: Dataset) -> Iterator[Sample]:
    """Images of classes that only `val` has: what is never trained on can't be found."""
    trained = {sample.label for sample in split.samples if sample.split == "train"}
    return (sample for sample in split.samples if sample.label not in trained)


def _groups(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[group_of(sample)].append(sample)
    return groups


def _dealt(groups: Mapping[str, Sequence[Sample]], count: int, seed: int) -> dict[str, int]:
    """Group to fold; what a fold lacks of a class goes below zero when a group was larger than that."""
    total = Counter(sample.label for samples in groups.values() for sample in samples)
    need = [{label: n / count for label, n in total.items()} for _ in range(count)]
    ties = dict(zip(sorted(groups), np.random.default_rng(seed).permutation(len(groups)).tolist(), strict=True))
    order = sorted(groups, key=lambda g: (min(total[s.label] for s in groups[g]), -len(groups[g]), ties[g]))
    number_of = {}
    for name in order:
        held = Counter(sample.label for sample in groups[name])
        # How much the sum of need ** 2 / total grows: least where most of it is lacking.
        costs = [sum((n * n - 2 * n * fold[label]) / total[label] for label, n in held.items()) for fold in need]
        best = min(range(count), key=lambda i: (round(costs[i], 9), -sum(need[i].values())))
        for label, n in held.items():
            need[best][label] -= n
        number_of[name] = best + 1
    return number_of


def _check(dataset: Dataset, groups: Mapping[str, object], count: int) -> None:
    if not 2 <= count <= MOST:
        raise DataError(f"cv: got {count} folds, expected 2 to {MOST}", hint="--cv 5 is usual")
    present = [name for name, n in dataset.counts.items() if n]
    if len(present) < 2:
        raise DataError(
            f"{dataset.root}: got one class only ({', '.join(present)}), expected at least two",
            hint="add images of good parts as a class of their own, or of defects",
        )
    empty = [name for name, n in dataset.counts.items() if not n]
    if empty:
        raise DataError(
            f"{dataset.root}: {', '.join(empty)} has images in test only, so no network could learn it",
            hint="move some of its images to train, or take the class out of the set",
        )
    if len(groups) < count:
        raise DataError(
            f"{dataset.root}: got {len(groups)} groups, expected at least one for each of {count} folds",
            hint=f"--cv {max(2, len(groups))}, or images of more parts",
        )


def _notices(
    dataset: Dataset, of_class: Mapping[str, set[str]], number_of: Mapping[str, int], count: int
) -> Iterator[str]:
    for name, n in dataset.counts.items():
        names = of_class[name]
        if len(names) == 1:
            yield f"{name} has one group ({n} images): it is trained on, never judged, and nothing is known about it"
        elif len(names) < count:
            held = sorted({number_of[group] for group in names} - {0})
            lacking = [i for i in range(1, count + 1) if i not in held]
            yield (
                f"{name} has {len(names)} groups for {count} folds: fold{'s' * (len(lacking) != 1)} "
                f"{', '.join(map(str, lacking))} {'have' if len(lacking) != 1 else 'has'} none of it"
            )
