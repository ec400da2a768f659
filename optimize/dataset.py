"""Labelled images: where they are, what they show, and which split they belong to.

Three layouts are read, the first that fits:

```text
splits.csv             columns file,class,split[,group]; files relative to the folder
train/ val/ test/ ...  a folder per split, a folder per class in each
ok/ scratch/ ...       a folder per class; no splits
*.jpg *.png ...        a flat folder; no labels (for calibration)
```

The `group` column (`part` or `lot` will do) names one physical part, or one strip of steel. A group lies in one split
only: two pictures of one part in `train` and `test` make every number better than it is.

A table of splits may also be given by itself, as `defect-opt data split --out splits-1.csv` writes it: its files are
relative to the folder that its `root` column names (the same in every row, absolute or relative to the table), or to
its own folder where it has none. In a folder's own `splits.csv` that column counts for nothing: what lies in a folder
never leads out of it. No `file` ever leads out of its root.

Needs numpy and OpenCV only. `read_image` is the device's own decoder: training and line see the same pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np

from agent.cameras.decode import PICTURE_SUFFIXES, read_image
from agent.errors import ImageError
from optimize.errors import DataError
from optimize.paths import is_picture, walk
from optimize.samples import CSV_NAME, SPLITS, Dataset, LabelledBox, Sample
from optimize.splits_csv import Columns, open_table, read_rows, read_table

__all__ = [
    "SPLITS",
    "Dataset",
    "LabelledBox",
    "Sample",
    "assign_splits",
    "check_fractions",
    "data_digest",
    "read_dataset",
    "read_image",
]

DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.7, "val": 0.15, "test": 0.15})
"""How `assign_splits` divides a set that came without splits."""

_MAX_CLASS_CHARACTERS = 80  # as in the bundle's manifest


def read_dataset(root: Path, *, has_splits: bool = True, group_by: str | None = None) -> Dataset:
    """Find the images of a folder, their labels, splits and groups; opens no image.

    Args:
        root: the folder, in one of the layouts of the module's docstring; or a table of splits, a `.csv` file.
        has_splits: False overlooks the splits that the set came with, also where they divide a group.
        group_by: the column of the table that names a part; by default the first of `group`, `part` and `lot` that is
            there. An empty word overlooks them all.

    Returns:
        The set; its order and its classes depend on names only.

    Raises:
        DataError: no such folder, no image in it, or a `splits.csv` that can't be used (with the line).
    """
    root = Path(root)
    columns = Columns(has_splits=has_splits, group_by=group_by)
    if root.suffix.lower() == ".csv" and root.is_file():
        root, samples, ignored = read_table(root, columns)
    else:
        samples, ignored = _read_folder(root, columns)
    if not samples:
        raise DataError(
            f"{root}: no image found ({len(ignored)} other files)",
            hint=f"expected {CSV_NAME}, a folder per class, or images ({' '.join(sorted(PICTURE_SUFFIXES))})",
        )
    classes = sorted({sample.label for sample in samples if sample.label is not None})
    for name in classes:
        if not name.isprintable() or len(name) > _MAX_CLASS_CHARACTERS:
            raise DataError(f"{root}: class {name!r}: expected at most {_MAX_CLASS_CHARACTERS} printable characters")
    return Dataset(
        root=root,
        samples=tuple(sorted(samples, key=lambda sample: sample.file)),
        classes=tuple(classes),
        ignored=tuple(sorted(ignored)),
    )


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Refuse shares that can't be dealt.

    Raises:
        DataError: unknown split names, or shares that do not add up to 1.
    """
    if set(fractions) - set(SPLITS) or not abs(sum(fractions.values()) - 1) <= 1e-6 or min(fractions.values()) < 0:
        raise DataError(
            f"fractions: got {dict(fractions)}, expected shares of {', '.join(SPLITS)} that add up to 1",
            hint="for example train=0.7,val=0.15,test=0.15",
        )


def assign_splits(
    dataset: Dataset,
    *,
    seed: int,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    fixed: Mapping[str, str] | None = None,
) -> Dataset:
    """Deal the images out to splits: by class, and never dividing a group.

    Groups with the rarest classes are dealt first, each to the split that it brings nearest to its share (by squares,
    so that a rare class reaches every split before one has all of it). Where a group holds several classes, each counts
    by its share of the class, not by its images. The seed decides between groups alike. The same set, seed and
    fractions give the same splits on every machine.

    Args:
        dataset: the set; splits that it has already are overwritten.
        seed: any whole number from 0.
        fractions: split to its share; the shares add up to 1.
        fixed: group to the split it has to lie in; the shares of the others make up for it.

    Returns:
        The same images with new splits.

    Raises:
        DataError: unknown split names, or shares that do not add up to 1.
    """
    check_fractions(fractions)
    shares = {split: fractions[split] for split in SPLITS if fractions.get(split)}
    groups = _groups(dataset.samples)
    total = Counter(dataset.labels)
    # What each split still lacks of each class; it goes below zero when a group was larger than the need.
    need = {split: {label: share * n for label, n in total.items()} for split, share in shares.items()}
    ties = dict(zip(sorted(groups), np.random.default_rng(seed).permutation(len(groups)).tolist(), strict=True))
    order = sorted(groups, key=lambda g: (*_rarest(groups[g], total), -len(groups[g]), ties[g]))
    split_of: dict[str, str] = {}
    fixed = fixed or {}
    for name in sorted(order, key=lambda g: g not in fixed):
        held = Counter(sample.label for sample in groups[name])
        split = fixed.get(name) or min(
            shares, key=lambda s: sum(_cost(n, need[s][c], total[c] * shares[s]) / total[c] for c, n in held.items())
        )
        if split in need:
            for label, n in held.items():
                need[split][label] -= n
        split_of.update((sample.file, split) for sample in groups[name])
    return dataclasses.replace(
        dataset, samples=tuple(dataclasses.replace(s, split=split_of[s.file]) for s in dataset.samples)
    )


def data_digest(dataset: Dataset) -> str:
    """SHA-256 (hex) over names, labels, splits, outlined defects and the bytes of every image; for provenance.

    Raises:
        ImageError: a file can't be read.
    """
    digest = hashlib.sha256()
    for sample in dataset.samples:
        try:
            content = hashlib.sha256(sample.path.read_bytes()).hexdigest()
        except OSError as error:
            raise ImageError(f"{sample.path}: can't be read ({error.strerror})") from error
        digest.update("\0".join((sample.file, sample.label or "", sample.split or "", content, "")).encode())
        for box in sample.boxes or ():
            edges = (box.left, box.top, box.right, box.bottom, box.is_ignored)
            digest.update("\0".join((box.class_name, *map(str, edges), "")).encode())
    return digest.hexdigest()


def _rarest(samples: Iterable[Sample], total: Mapping[str | None, int]) -> tuple[int, int]:
    """How rare a group's rarest class is, and (negative) how many images of it the group holds."""
    counted = Counter(sample.label for sample in samples)
    return min((total[label], -n) for label, n in counted.items())


def _cost(n: int, need: float, target: float) -> float:
    """How much `need ** 2 / target` grows when `n` images are added (it shrinks while the need is large)."""
    return (n * n - 2 * n * need) / target


def _groups(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples by group; a sample without one is its own (a NUL keeps its name apart from any group's)."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.group if sample.group is not None else f"\0{sample.file}"].append(sample)
    return groups


def _read_folder(root: Path, columns: Columns) -> tuple[list[Sample], list[str]]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder", hint="give the folder that holds the images or their splits.csv")
    try:
        has_csv = (root / CSV_NAME).is_file()
    except OSError as error:
        raise DataError(f"{root}: can't be looked into ({error.strerror})", hint=f"chmod +rx {root}") from error
    if has_csv:
        table = open_table(root / CSV_NAME)
        samples = read_rows(table, root, columns)
        ignored = [name for name in map("/".join, walk(root)) if not is_picture(PurePosixPath(name).name)]
        return samples, [name for name in ignored if name != CSV_NAME]
    if columns.group_by:
        raise DataError(f"{root}: has no {CSV_NAME}, so no column {columns.group_by!r} to group by")
    samples, ignored = _read_folders(root)
    if not columns.has_splits:
        samples = [dataclasses.replace(sample, split=None) for sample in samples]
    return samples, ignored


def _read_folders(root: Path) -> tuple[list[Sample], list[str]]:
    files = list(walk(root))
    images = [parts for parts in files if is_picture(parts[-1])]
    ignored = ["/".join(parts) for parts in files if not is_picture(parts[-1])]
    tops = {parts[0] for parts in images if len(parts) > 1}
    in_splits = tops & set(SPLITS)
    if in_splits and tops - in_splits:
        raise DataError(
            f"{root}: got the split folders {sorted(in_splits)} beside {sorted(tops - in_splits)}",
            hint=f"keep only {', '.join(SPLITS)} at the top, or say which image is what in {CSV_NAME}",
        )
    depth = 2 if in_splits else 1  # how many folders say what an image is
    loose = ["/".join(parts) for parts in images if len(parts) <= depth]
    if loose and len(loose) < len(images):
        raise DataError(
            f"{root}: {len(loose)} images lie beside the class folders, the first is {loose[0]}",
            hint="move each into the folder of its class, or out of the way",
        )
    return [_folder_sample(root, parts, is_split=bool(in_splits), is_loose=bool(loose)) for parts in images], ignored


def _folder_sample(root: Path, parts: tuple[str, ...], *, is_split: bool, is_loose: bool) -> Sample:
    return Sample(
        path=root.joinpath(*parts),
        file="/".join(parts),
        label=None if is_loose else parts[1 if is_split else 0],
        split=parts[0] if is_split else None,
    )
