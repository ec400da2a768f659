"""A contact sheet of what training would see: look at it before hours go into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.bundle.preprocess import fit
from optimize.dataset import Dataset, Sample, read_image
from optimize.errors import DataError
from optimize.train.batches import Batches
from optimize.train_config import TrainConfig
from optimize.trainset import raw_pictures, train_and_val

__all__ = ["write_preview"]

PER_CLASS = 3
VARIANTS = 6
CELL_PX = 160
CAPTION_PX = 22
GAP_PX = 4
_BACK, _INK = 30, (235, 235, 235)


def write_preview(config: TrainConfig, dataset: Dataset, path: Path) -> int:
    """Draw some images of each class: as the device sees them, then as training changes them.

    Args:
        config: the recipe; its augmentation, size and seed.
        dataset: a whole set; its `train` is taken.
        path: a PNG (or JPEG) file; its folder is made.

    Returns:
        How many images are on it, one per row.

    Raises:
        DataError: nothing to train on, or the file can't be written.
        ImageError: an image can't be read.
    """
    parts, _ = train_and_val(dataset, config.seed)
    samples = tuple(_examples(parts["train"]))
    shown = dataclasses.replace(parts["train"], samples=samples)
    pictures = raw_pictures(shown, config.size, masks=config.masks, is_letterbox=config.resize == "letterbox")
    batches = Batches(config, pictures, n_classes=len(dataset.classes), channels=3, background=None)
    rows = [_row(config, batches, sample, number) for number, sample in enumerate(samples)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_written = cv2.imwrite(str(path), np.vstack([_header(rows[0].shape[1]), *rows]))
    except (OSError, cv2.error) as error:
        raise DataError(
            f"{path}: can't be written", hint="give a file that ends in .png, in a folder of yours"
        ) from error
    if not is_written:
        raise DataError(f"{path}: can't be written", hint="give a file that ends in .png, in a folder that is yours")
    return len(samples)


def _examples(train: Dataset) -> Iterator[Sample]:
    """Evenly spaced ones, so that one burst does not stand for a class."""
    for label in train.classes:
        members = [sample for sample in train if sample.label == label]
        for k in range(min(PER_CLASS, len(members))):
            yield members[k * len(members) // PER_CLASS]


def _row(config: TrainConfig, batches: Batches, sample: Sample, number: int) -> NDArray[np.uint8]:
    size_px = config.window_px or config.size
    changed = [batches.picture(number, size_px, epoch)[0] for epoch in range(1, VARIANTS + 1)]
    pictures = [fit(read_image(sample.path), config.spec), *changed]
    cells = [_cell(picture) for picture in pictures]
    row = np.hstack(cells)
    caption = np.full((CAPTION_PX, row.shape[1], 3), _BACK, dtype=np.uint8)
    _write(caption, f"{sample.label}: {sample.file}")
    return np.vstack([caption, row])


def _header(width: int) -> NDArray[np.uint8]:
    header = np.full((CAPTION_PX + 6, width, 3), _BACK, dtype=np.uint8)
    _write(header, "as the device sees it | as training changes it (blending of two pictures is not shown)")
    return header


def _cell(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(S, S, 3) RGB to a framed BGR cell."""
    sharp = picture.shape[0] <= CELL_PX
    how = cv2.INTER_NEAREST if sharp else cv2.INTER_AREA
    small: Any = cv2.resize(picture[:, :, ::-1], (CELL_PX, CELL_PX), interpolation=how)
    framed = cv2.copyMakeBorder(small, 0, GAP_PX, 0, GAP_PX, cv2.BORDER_CONSTANT, value=(_BACK,) * 3)
    return np.asarray(framed, dtype=np.uint8)


def _write(canvas: Any, text: str) -> None:
    """OpenCV's fonts know ASCII only."""
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(canvas, plain, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
