"""What a detector's training sees: some images with their boxes, as they are and as augmentation changes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from optimize.dataset import Dataset, Sample
from optimize.detect.config import DetectConfig
from optimize.detect.pictures import BoxBatches, Truth, read_pictures
from optimize.errors import DataError

__all__ = ["write_box_preview"]

PER_CLASS, VARIANTS, CELL_PX, GAP_PX, CAPTION_PX = 2, 5, 200, 4, 22
BACK, INK = 30, (235, 235, 235)
BOX, IGNORED = (0, 94, 213), (160, 160, 160)


def write_box_preview(config: DetectConfig, dataset: Dataset, path: Path) -> int:
    """Draw some images of each class of boxes, and some good parts.

    Args:
        config: the recipe; its augmentation, size and seed.
        dataset: a whole set with boxes; its `train` is taken.
        path: a PNG (or JPEG) file; its folder is made.

    Returns:
        How many images are on it, one per row.

    Raises:
        DataError: nothing to train on, an image that can't be read, or the file can't be written.
    """
    train = dataset.take("train")
    shown = dataclasses.replace(train, samples=tuple(_examples(train)))
    pictures = read_pictures(shown)
    batches = BoxBatches(config, pictures, 3)
    rows = [_header(), *(_row(config, batches, number) for number in range(len(shown)))]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_written = cv2.imwrite(str(path), np.vstack(rows))
    except (OSError, cv2.error):
        is_written = False
    if not is_written:
        raise DataError(f"{path}: can't be written", hint="give a file that ends in .png, in a folder that is yours")
    return len(shown)


def _examples(train: Dataset) -> Iterator[Sample]:
    """Evenly spaced ones of each class, then good parts; none twice."""
    seen: set[str] = set()
    for name in (*train.classes, None):
        members = [sample for sample in train if _shows(sample, name) and sample.file not in seen]
        for k in range(min(PER_CLASS, len(members))):
            sample = members[k * len(members) // PER_CLASS]
            seen.add(sample.file)
            yield sample


def _shows(sample: Sample, name: str | None) -> bool:
    boxes = sample.boxes or ()
    return not boxes if name is None else any(box.class_name == name for box in boxes)


def _row(config: DetectConfig, batches: BoxBatches, number: int) -> NDArray[np.uint8]:
    image, truth = batches.original(number)
    cells = [_cell(image, truth)]
    cells += [_cell(*batches.picture(number, config.size, epoch)) for epoch in range(1, VARIANTS + 1)]
    row = np.hstack(cells)
    caption = np.full((CAPTION_PX, row.shape[1], 3), BACK, dtype=np.uint8)
    _write(caption, batches.file(number))
    return np.vstack([caption, row])


def _header() -> NDArray[np.uint8]:
    header = np.full((CAPTION_PX + 6, (CELL_PX + GAP_PX) * (VARIANTS + 1), 3), BACK, dtype=np.uint8)
    _write(header, "as it is | as training changes it (grey: cut off too far, neither to be found nor a false alarm)")
    return header


def _cell(picture: NDArray[np.uint8], truth: Truth) -> NDArray[np.uint8]:
    """(H, W, 3) RGB with its boxes, as a framed BGR cell."""
    height, width = picture.shape[:2]
    scale = CELL_PX / max(height, width)
    small = cv2.resize(picture[:, :, ::-1], (round(width * scale), round(height * scale)))
    for box, is_ignored in zip(truth.boxes * scale, truth.is_ignored, strict=True):
        x0, y0, x1, y1 = (round(float(value)) for value in box)
        cv2.rectangle(small, (x0, y0), (x1 - 1, y1 - 1), IGNORED if is_ignored else BOX, 1)
    cell = np.full((CELL_PX + GAP_PX, CELL_PX + GAP_PX, 3), BACK, dtype=np.uint8)
    cell[: small.shape[0], : small.shape[1]] = small
    return cell


def _write(canvas: NDArray[np.uint8], text: str) -> None:
    """OpenCV's fonts know ASCII only."""
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(canvas, plain, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
