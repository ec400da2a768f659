"""Small pictures with squares and bars outlined in a boxes.csv: what a detector can learn in seconds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

__all__ = ["write_box_set"]


def write_box_set(folder: Path, *, n: int = 24, side_px: int = 96, good: int = 4, seed: int = 0) -> Path:
    """Write a set: dark squares (`pit`) and bright bars (`scratch`) on noisy grey, and some good parts.

    Args:
        folder: where; made when it is absent.
        n: pictures with defects; three quarters train, the rest is val.
        side_px: of each picture.
        good: pictures without one.
        seed: decides.

    Returns:
        The folder, with images/, boxes.csv and splits.csv.
    """
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    boxes, splits = [], []
    for i in range(n + good):
        image = (128 + random.normal(0, 6, (side_px, side_px, 1))).clip(0, 255).astype(np.uint8).repeat(3, 2)
        name = f"images/{i:03}.png"
        label = "ok" if i >= n else ("pit", "scratch")[i % 2]
        if label != "ok":
            width, height = (20, 20) if label == "pit" else (36, 10)
            x, y = (int(random.integers(2, side_px - side - 2)) for side in (width, height))
            image[y : y + height, x : x + width] = 30 if label == "pit" else 230
            boxes.append((name, label, x, y, x + width, y + height))
        cv2.imwrite(str(folder / name), image)
        splits.append((name, label, "val" if i % 8 in {3, 6} else "train", f"g{i}"))
    _write(folder / "boxes.csv", ("file", "class", "xmin", "ymin", "xmax", "ymax"), boxes)
    _write(folder / "splits.csv", ("file", "class", "split", "group"), splits)
    return folder


def _write(path: Path, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
