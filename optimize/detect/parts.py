"""Which images train a detector and which choose its best epoch; needs no torch, so a mistake is told at once."""

from __future__ import annotations

from optimize.dataset import Dataset, assign_splits
from optimize.errors import DataError
from optimize.samples import CSV_NAME
from optimize.trainset import VAL_SHARE

__all__ = ["parts_of"]


def parts_of(dataset: Dataset, seed: int) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """The images that train and those that choose; `test` is left alone.

    Args:
        dataset: a whole set with boxes. Without `val` a part of its `train` becomes it.
        seed: decides what becomes `val`.

    Returns:
        `train` and `val`, and what the user should know, in sentences.

    Raises:
        DataError: boxes or splits that can't be trained on.
    """
    if not dataset.classes:
        raise DataError(f"{dataset.root}: no image has a box", hint="a detector learns from outlined defects")
    notices = []
    whole = dataset.take("train")
    if "val" not in dataset.splits:
        dataset = assign_splits(whole, seed=seed, fractions={"train": 1 - VAL_SHARE, "val": VAL_SHARE})
        notices.append(
            f"{dataset.root} has no val split: {dataset.splits.get('val', 0)} of {len(whole)} images "
            f"became it (by class and group, seed {seed})"
        )
        if "val" not in dataset.splits:
            raise DataError(
                f"{dataset.root}: {len(whole)} images are too few to keep some for val",
                hint=f"outline defects on more of them, or write {CSV_NAME} with train and val",
            )
    parts = {name: dataset.take(name) for name in ("train", "val")}
    counted = {name: _boxes_of(part) for name, part in parts.items()}
    empty = [name for name in dataset.classes if not counted["train"].get(name)]
    if empty:
        raise DataError(
            f"{dataset.root}: train has no box of {', '.join(empty)}",
            hint="move some of its images to train, or take the class out of the set",
        )
    lacking = [name for name in dataset.classes if not counted["val"].get(name)]
    if len(lacking) == len(dataset.classes):
        raise DataError(
            f"{dataset.root}: val has no box, nothing to choose the best epoch by",
            hint="move some images with boxes to val, or leave val out: a part of train then becomes it",
        )
    if lacking:
        notices.append(f"val has no box of {', '.join(lacking)}: nothing is known about how well it is found")
    return parts, tuple(notices)


def _boxes_of(part: Dataset) -> dict[str, int]:
    found: dict[str, int] = {}
    for sample in part:
        for box in sample.boxes or ():
            if not box.is_ignored:
                found[box.class_name] = found.get(box.class_name, 0) + 1
    return found
