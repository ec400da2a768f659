"""What a data set is made of: samples, their outlined defects, and the set itself."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from optimize.errors import DataError

__all__ = ["CSV_NAME", "SPLITS", "Dataset", "LabelledBox", "Sample"]

SPLITS = ("train", "calib", "val", "test")
"""The names a split may have; each command takes its own."""

CSV_NAME = "splits.csv"
"""The table of a folder."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBox:
    """One defect that somebody outlined, in pixels of the image; x to the right and y down, edges not pixel centres.

    Attributes:
        class_name: what it is; it may be another than the image's label.
        left: x of the left edge.
        top: y of the upper edge.
        right: x of the right edge, more than `left`.
        bottom: y of the lower edge, more than `top`.
        is_ignored: neither a finding to be made nor a false alarm (COCO's crowds, VOC's difficult ones).
    """

    class_name: str
    left: float
    top: float
    right: float
    bottom: float
    is_ignored: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image of a data set.

    Attributes:
        path: where the file is.
        file: the same, relative to the set's folder, with forward slashes.
        label: what it shows, or None in a flat folder.
        split: `train`, `calib`, `val` or `test`, or None in a set without splits.
        group: the physical part (or lot, or strip) it was taken of, or None when nobody said.
        boxes: the defects on it, none on a good part; None in a set without boxes.
    """

    path: Path
    file: str
    label: str | None
    split: str | None = None
    group: str | None = None
    boxes: tuple[LabelledBox, ...] | None = None


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
                hint=f"mark some rows of {CSV_NAME} as {split}, or give another folder",
            )
        return dataclasses.replace(self, samples=chosen)

    def _label_of(self, sample: Sample) -> str:
        if sample.label is None:
            raise DataError(
                f"{sample.path}: has no label",
                hint=f"put the images in a folder per class, or write {CSV_NAME} with file,class,split",
            )
        return sample.label
