"""Pictures in memory: which images train, which choose, decoded once and kept as bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.bundle.manifest import InputSpec
from agent.bundle.preprocess import fit
from agent.errors import ImageError
from optimize.dataset import Dataset, Sample, assign_splits, read_image
from optimize.errors import DataError

__all__ = ["Pictures", "fitted_pictures", "raw_pictures", "refuse_broken", "train_and_val"]

VAL_SHARE = 0.15
"""What part of `train` becomes `val` in a set that has none."""

LARGEST = 2
"""Pictures are kept at no more than this many times the network's input: crops need no more, and memory is finite."""


SHOWN = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Decoded images and what they show.

    Attributes:
        images: each (H, W, 3) uint8 RGB.
        targets: (N,) class numbers.
        is_grey: in every image the three channels are the same.
        masks: for each image (H, W) uint8, 255 on the defect, or None where there is no mask; None without masks.
        is_labelled: (N,) which targets somebody gave; the others are what a teacher takes them for. None: all of them.
    """

    images: Sequence[NDArray[np.uint8]]
    targets: NDArray[np.int64]
    is_grey: bool
    masks: Sequence[NDArray[np.uint8] | None] | None = None
    is_labelled: NDArray[np.bool_] | None = None


def train_and_val(dataset: Dataset, seed: int) -> tuple[Mapping[str, Dataset], tuple[str, ...]]:
    """The images that train and those that choose; `test` and `calib` are left alone.

    Args:
        dataset: a whole set. Without splits all of it is dealt out; without `val` a part of `train` becomes it.
        seed: decides what becomes `val`.

    Returns:
        `train` and `val`, and what the user should know, in sentences.

    Raises:
        DataError: no labels, one class only, a class that `train` lacks, or nothing left for `val`.
    """
    notices = []
    whole = dataset.take("train")
    _check_classes(whole)
    if "val" not in dataset.splits:
        dataset = assign_splits(whole, seed=seed, fractions={"train": 1 - VAL_SHARE, "val": VAL_SHARE})
        notices.append(
            f"{dataset.root} has no val split: {dataset.splits.get('val', 0)} of {len(whole)} images "
            f"became it (by class and group, seed {seed})"
        )
        if "val" not in dataset.splits:
            raise DataError(f"{dataset.root}: {len(whole)} images are too few to keep some for val")
    parts = {name: dataset.take(name) for name in ("train", "val")}
    _check_classes(parts["train"])  # again: what became val may have been all that a class had
    lacking = [name for name, count in parts["val"].counts.items() if count == 0]
    if lacking:
        notices.append(f"val has no image of {', '.join(lacking)}: nothing is known about how well it is found")
    return parts, tuple(notices)


def raw_pictures(dataset: Dataset, size_px: int, *, masks: Path | None = None, is_letterbox: bool = False) -> Pictures:
    """Read images for training: as they are, or shrunk to twice the network's input.

    Args:
        dataset: the images.
        size_px: the network's input.
        masks: folder with masks at the images' own paths, `.png`; an image may be without.
        is_letterbox: keep the aspect ratio of what is shrunk.

    Raises:
        DataError: images or masks can't be read (they are named), or have no label; or there is no mask at all.
    """
    shapes: list[tuple[int, ...]] = []

    def shrunk(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        shapes.append(image.shape)
        return _shrunk(image, LARGEST * size_px, is_letterbox=is_letterbox)

    pictures = _pictures(dataset, shrunk)
    if masks is None:
        return pictures
    kept = [(picture.shape[1], picture.shape[0]) for picture in pictures.images]
    found = [_mask(masks, *each) for each in zip(dataset, shapes, kept, strict=True)]
    if not any(mask is not None for mask in found):
        example = masks / PurePosixPath(dataset.samples[0].file).with_suffix(".png")
        raise DataError(f"{masks}: holds no mask for any image, expected files such as {example}")
    return dataclasses.replace(pictures, masks=found)


def _mask(masks: Path, sample: Sample, shape: tuple[int, ...], kept: tuple[int, int]) -> NDArray[np.uint8] | None:
    """The mask of an image at the size (width, height) that it was kept at; None without a file, or nothing white."""
    path = masks / PurePosixPath(sample.file).with_suffix(".png")
    if not path.is_file():
        return None
    try:
        mask = read_image(path)[:, :, 0]
    except ImageError as error:
        raise DataError(f"mask: {error.message}", hint=error.hint) from error
    if mask.shape != shape[:2]:
        raise DataError(
            f"{path}: is {mask.shape[1]} x {mask.shape[0]}, expected {shape[1]} x {shape[0]} as {sample.file}",
            hint="a mask has the size of its picture",
        )
    white = ((mask > 127) * np.uint8(255)).astype(np.uint8)
    if (mask.shape[1], mask.shape[0]) != kept:
        white = np.asarray(cv2.resize(white, kept, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return white if white.any() else None


def fitted_pictures(dataset: Dataset, spec: InputSpec) -> Pictures:
    """Read images as the device will see them.

    Raises:
        DataError: images can't be read (they are named), or have no label.
    """
    return _pictures(dataset, lambda image: fit(image, spec))


def _pictures(dataset: Dataset, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Pictures:
    images: list[NDArray[np.uint8]] = []
    broken: list[str] = []
    for sample in dataset:
        try:
            images.append(change(read_image(sample.path)))
        except ImageError as error:  # noqa: PERF203 - all broken ones are to be named
            broken.append(error.message)
    refuse_broken(dataset, broken)
    is_grey = all(np.array_equal(i[..., 0], i[..., 1]) and np.array_equal(i[..., 0], i[..., 2]) for i in images)
    return Pictures(images=images, targets=np.asarray(dataset.targets, dtype=np.int64), is_grey=is_grey)


def refuse_broken(dataset: Dataset, broken: Sequence[str]) -> None:
    """Name the images that can't be used, all at once.

    Args:
        dataset: the images.
        broken: why each of them can't be used; empty is fine.

    Raises:
        DataError: there are some.
    """
    if broken:
        raise DataError(
            f"{dataset.root}: {len(broken)} of {len(dataset)} images can't be used: {'; '.join(broken[:SHOWN])}"
            + ("; ..." if len(broken) > SHOWN else ""),
            hint="replace or remove them; `defect-opt data check` names them all",
        )


def _shrunk(image: NDArray[np.uint8], largest_px: int, *, is_letterbox: bool) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    if max(height, width) > largest_px:
        share = min(1.0, largest_px / max(height, width))
        wanted = [round(side * share) if is_letterbox else min(side, largest_px) for side in (width, height)]
        spec = InputSpec(width_px=max(wanted[0], 8), height_px=max(wanted[1], 8))
        return fit(image, spec)
    return np.ascontiguousarray(image[:, :, ::-1])


def _check_classes(train: Dataset) -> None:
    train.targets  # noqa: B018 - refuses an image without label
    if len(train.classes) < 2:
        found = ", ".join(train.classes)
        raise DataError(
            f"{train.root}: got one class only ({found}), expected at least two",
            hint="add images of good parts as a class of their own, or of defects",
        )
    empty = [name for name, count in train.counts.items() if count == 0]
    if empty:
        raise DataError(
            f"{train.root}: train has no image of {', '.join(empty)}",
            hint="move some of its images to train, or take the class out of the set",
        )
