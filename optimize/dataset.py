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

import csv
import dataclasses
import difflib
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from agent.cameras.decode import PICTURE_SUFFIXES, read_image
from agent.errors import ImageError
from optimize.errors import DataError

__all__ = [
    "SPLITS",
    "Dataset",
    "Sample",
    "assign_splits",
    "check_fractions",
    "data_digest",
    "read_dataset",
    "read_image",
]

SPLITS = ("train", "calib", "val", "test")
"""The names a split may have; each command takes its own."""

DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.7, "val": 0.15, "test": 0.15})
"""How `assign_splits` divides a set that came without splits."""

_CSV_NAME = "splits.csv"
_GROUP_COLUMNS = ("group", "part", "lot")
_ROOT_COLUMN = "root"
_MAX_CLASS_CHARACTERS = 80  # as in the bundle's manifest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image of a data set.

    Attributes:
        path: where the file is.
        file: the same, relative to the set's folder, with forward slashes.
        label: what it shows, or None in a flat folder.
        split: `train`, `calib`, `val` or `test`, or None in a set without splits.
        group: the physical part (or lot, or strip) it was taken of, or None when nobody said.
    """

    path: Path
    file: str
    label: str | None
    split: str | None = None
    group: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A set of images, sorted by file name.

    Attributes:
        root: the folder.
        samples: the images, in the order of their `file`.
        classes: every class of the whole set, sorted; a split keeps them all, so that class numbers never move.
        ignored: files of the folder that are no images, relative, sorted.
    """

    root: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The label of each sample, in order."""
        return tuple(sample.label for sample in self.samples)

    @property
    def targets(self) -> tuple[int, ...]:
        """The class number of each sample, in order.

        Raises:
            DataError: a sample has no label.
        """
        number = {name: i for i, name in enumerate(self.classes)}
        return tuple(number[self._label_of(sample)] for sample in self.samples)

    @property
    def splits(self) -> Mapping[str, int]:
        """How many images each split holds; empty for a set without splits."""
        counted = Counter(sample.split for sample in self.samples if sample.split is not None)
        return {name: counted[name] for name in SPLITS if counted[name]}

    @property
    def counts(self) -> Mapping[str, int]:
        """How many images each class has here, 0 included."""
        counted = Counter(sample.label for sample in self.samples)
        return {name: counted[name] for name in self.classes}

    def take(self, split: str) -> Dataset:
        """The images of one split; all of them where the set has no splits.

        Raises:
            DataError: the set has splits, but nothing in this one.
        """
        if split not in SPLITS:
            raise DataError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
        if not self.splits:
            return self
        chosen = tuple(sample for sample in self.samples if sample.split == split)
        if not chosen:
            found = ", ".join(f"{name} {count}" for name, count in self.splits.items())
            raise DataError(
                f"{self.root}: no image is in the split {split!r} (there are: {found})",
                hint=f"mark some rows of {_CSV_NAME} as {split}, or give another folder",
            )
        return dataclasses.replace(self, samples=chosen)

    def _label_of(self, sample: Sample) -> str:
        if sample.label is None:
            raise DataError(
                f"{sample.path}: has no label",
                hint=f"put the images in a folder per class, or write {_CSV_NAME} with file,class,split",
            )
        return sample.label


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
    columns = _Columns(has_splits=has_splits, group_by=group_by)
    if root.suffix.lower() == ".csv" and root.is_file():
        root, samples, ignored = _read_table(root, columns)
    else:
        samples, ignored = _read_folder(root, columns)
    if not samples:
        raise DataError(
            f"{root}: no image found ({len(ignored)} other files)",
            hint=f"expected {_CSV_NAME}, a folder per class, or images ({' '.join(sorted(PICTURE_SUFFIXES))})",
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
    """SHA-256 (hex) over names, labels, splits and the bytes of every image; for provenance.

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


def _is_image(name: str) -> bool:
    # "._x.jpg" is what macOS leaves beside x.jpg on foreign disks; hidden files are never data.
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".")


def _walk(root: Path) -> Iterator[tuple[str, ...]]:
    """Every file below a folder as its relative parts, in order; hidden folders and `__MACOSX` excepted."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        above = Path(folder).relative_to(root).parts
        for name in sorted(files):
            yield (*above, name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Which columns of a table count; see `read_dataset`."""

    has_splits: bool
    group_by: str | None


def _read_folder(root: Path, columns: _Columns) -> tuple[list[Sample], list[str]]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder", hint="give the folder that holds the images or their splits.csv")
    try:
        has_csv = (root / _CSV_NAME).is_file()
    except OSError as error:
        raise DataError(f"{root}: can't be looked into ({error.strerror})", hint=f"chmod +rx {root}") from error
    if has_csv:
        table = _open_table(root / _CSV_NAME)
        samples = _read_rows(table, root, columns)
        ignored = [name for name in map("/".join, _walk(root)) if not _is_image(PurePosixPath(name).name)]
        return samples, [name for name in ignored if name != _CSV_NAME]
    if columns.group_by:
        raise DataError(f"{root}: has no {_CSV_NAME}, so no column {columns.group_by!r} to group by")
    samples, ignored = _read_folders(root)
    if not columns.has_splits:
        samples = [dataclasses.replace(sample, split=None) for sample in samples]
    return samples, ignored


def _read_table(path: Path, columns: _Columns) -> tuple[Path, list[Sample], list[str]]:
    """A table of splits that was named itself: its root, and its rows."""
    table = _open_table(path)
    roots = {str(row.get(_ROOT_COLUMN) or "").strip() for _, row in table.rows} or {""}
    if len(roots) > 1:
        raise DataError(f"{path}: root: got {sorted(roots)[:3]}, expected one folder for all rows")
    root = path.parent / roots.pop()
    try:
        is_there = root.is_dir()
    except OSError:
        is_there = False
    if not is_there:
        hint = f"correct its root column, or copy it to the images as {_CSV_NAME}"
        raise DataError(f"{path}: root: {root}: no such folder", hint=hint)
    return root, _read_rows(table, root, columns), []


def _read_folders(root: Path) -> tuple[list[Sample], list[str]]:
    files = list(_walk(root))
    images = [parts for parts in files if _is_image(parts[-1])]
    ignored = ["/".join(parts) for parts in files if not _is_image(parts[-1])]
    tops = {parts[0] for parts in images if len(parts) > 1}
    in_splits = tops & set(SPLITS)
    if in_splits and tops - in_splits:
        raise DataError(
            f"{root}: got the split folders {sorted(in_splits)} beside {sorted(tops - in_splits)}",
            hint=f"keep only {', '.join(SPLITS)} at the top, or say which image is what in {_CSV_NAME}",
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


_Row: TypeAlias = "dict[str | None, str | list[str] | None]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A table of splits as it was written: its columns, and each row with the line it ends in."""

    path: Path
    columns: list[str]
    rows: list[tuple[int, _Row]]


def _open_table(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as UTF-8 text ({error})") from error
    if "\0" in text:
        raise DataError(f"{path}: holds NUL bytes, expected text")
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in head and "," not in head else ",")
    columns = [column.strip() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    missing = [column for column in ("file", "class") if column not in columns]
    if missing:
        raise DataError(f"{path}: line 1: got the columns {columns}, expected file,class,split[,group]")
    rows: list[tuple[int, _Row]]
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    return _Table(path=path, columns=columns, rows=rows)


def _read_rows(table: _Table, root: Path, columns: _Columns) -> list[Sample]:
    if columns.group_by and columns.group_by not in table.columns:
        found = ", ".join(table.columns)
        raise DataError(f"{table.path}: got no column {columns.group_by!r} to group by (there are: {found})")
    rows = _Rows(root=root, path=table.path, columns=table.columns, wanted=columns)
    for line, row in table.rows:
        rows.add(line, row)
    rows.finish()
    return rows.samples


class _Rows:
    """The rows of a `splits.csv`, checked one by one; nothing in the file is trusted."""

    def __init__(self, *, root: Path, path: Path, columns: list[str], wanted: _Columns) -> None:
        self.samples: list[Sample] = []
        self._root, self._path = root, path
        self._has_split = wanted.has_splits and "split" in columns
        self._group_column = wanted.group_by
        if wanted.group_by is None:
            self._group_column = next((c for c in _GROUP_COLUMNS if c in columns), None)
        self._line_of: dict[str, int] = {}
        self._split_of: dict[str, tuple[str | None, int]] = {}
        self._missing: list[tuple[int, str]] = []

    def add(self, line: int, row: Mapping[str | None, str | list[str] | None]) -> None:
        """Check one row and keep it."""
        if None in row or None in row.values():
            raise self._error(line, "has more or fewer cells than line 1")
        cells = {str(column): str(cell).strip() for column, cell in row.items()}
        file = self._file(line, cells["file"])
        if not cells["class"]:
            raise self._error(line, f"{file}: class: is empty")
        split = self._split(line, cells["split"]) if self._has_split else None
        group = cells[self._group_column] or None if self._group_column else None
        if group is not None:
            self._keep_together(line, group, split)
        path = self._root / file
        if not path.is_file():
            self._missing.append((line, file))
        self.samples.append(Sample(path=path, file=file, label=cells["class"], split=split, group=group))

    def finish(self) -> None:
        """Refuse the whole when a file is missing: a set that shrank unseen gives wrong numbers."""
        if self._missing:
            line, file = self._missing[0]
            more = f" (and {len(self._missing) - 1} more)" if len(self._missing) > 1 else ""
            raise self._error(line, f"{file}: no such file below {self._root}{more}")

    def _file(self, line: int, cell: str) -> str:
        name = PurePosixPath(cell.replace("\\", "/"))
        if not cell or not cell.isprintable():
            raise self._error(line, f"file: got {cell!r}, expected a path below {self._root}")
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise self._error(line, f"file: {cell!r} leads out of {self._root}")
        file = name.as_posix()
        if file in self._line_of:
            raise self._error(line, f"{file}: stands in line {self._line_of[file]} already")
        self._line_of[file] = line
        return file

    def _split(self, line: int, cell: str) -> str:
        if cell not in SPLITS:
            near = difflib.get_close_matches(cell.lower(), SPLITS, n=1, cutoff=0.4)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise self._error(line, f"split: got {cell!r}, expected one of {', '.join(SPLITS)}{meant}")
        return cell

    def _keep_together(self, line: int, group: str, split: str | None) -> None:
        first, first_line = self._split_of.setdefault(group, (split, line))
        if first != split:
            raise self._error(
                line,
                f"group {group!r} is in {split} here and in {first} in line {first_line}: a part lies in one split",
            )

    def _error(self, line: int, message: str) -> DataError:
        return DataError(f"{self._path}: line {line}: {message}", hint=f"correct the line in {self._path}")
