"""The pictures that graphs are compared on: fixed random views of the NEU test images, and its calibration images.

20 views of each of the 270 test images, 5,400 in all; the originals are not among them. Every view is a function of
the seed, the image's file name and the view's number alone, so any subset is the same on any machine.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.bundle import fit
from optimize.dataset import read_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from agent.bundle import InputSpec

__all__ = ["Pictures", "Source", "read_split", "views_of"]

SEED = 20260
VIEWS_EACH = 20
SMALLEST_CROP = 0.75
"""Share of a side: the defect's class must stay visible."""
GAIN = (0.85, 1.15)
OFFSET = (-15.0, 15.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where pictures come from, and what they are made for.

    Attributes:
        root: a folder with `splits.csv` (file, class, split, and group where pictures overlap).
        spec: the graph's input.
        classes: in the order of the graph's outputs.
    """

    root: Path
    spec: InputSpec
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """Labelled pictures at a model's input.

    Attributes:
        images: (n, height_px, width_px, 3) uint8 RGB.
        labels: (n,) int64, index into the graph's outputs.
        groups: (n,) int64; pictures of one group show the same steel and are resampled together.
        digest: sha256 over pixels and labels, hex.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    def tensors(self) -> list[NDArray[np.uint8]]:
        """Each picture as the graph takes it, (1, height_px, width_px, 3)."""
        return [image[None] for image in self.images]


def read_split(source: Source, split: str, *, limit: int | None = None) -> Pictures:
    """One split as it is, without views.

    Args:
        source: the pictures' folder and the graph's input.
        split: its name there.
        limit: at most so many, spread evenly over the sorted files.
    """
    rows = _rows(source.root, split, limit)
    return _pictures(source, rows, [fit(read_image(source.root / row["file"]), source.spec) for row in rows])


def views_of(source: Source, split: str, *, each: int = VIEWS_EACH, limit: int | None = None) -> Pictures:
    """Random views of a split's images: a crop, mirrored or not, in another light.

    Args:
        source: the pictures' folder and the graph's input.
        split: its name there.
        each: views of each image.
        limit: at most so many images, spread evenly over the sorted files.
    """
    repeated, images = [], []
    for row in _rows(source.root, split, limit):
        image = read_image(source.root / row["file"])
        for number in range(each):
            repeated.append(row)
            images.append(fit(_view(image, row["file"], number), source.spec))
    return _pictures(source, repeated, images)


def _view(image: NDArray[np.uint8], file: str, number: int) -> NDArray[np.uint8]:
    """One view, (h, w, 3) uint8 BGR, its size that of the crop."""
    name = int.from_bytes(hashlib.sha256(file.encode()).digest()[:8], "big")
    rng = np.random.default_rng([SEED, name, number])
    height, width = image.shape[:2]
    share = rng.uniform(SMALLEST_CROP, 1)
    crop_height, crop_width = round(height * share), round(width * share)
    top, left = int(rng.integers(0, height - crop_height + 1)), int(rng.integers(0, width - crop_width + 1))
    view = image[top : top + crop_height, left : left + crop_width]
    if rng.random() < 0.5:
        view = view[:, ::-1]
    if rng.random() < 0.5:
        view = view[::-1]
    lit = view.astype(np.float32) * rng.uniform(*GAIN) + rng.uniform(*OFFSET)
    return np.ascontiguousarray(np.clip(np.rint(lit), 0, 255).astype(np.uint8))


def _rows(root: Path, split: str, limit: int | None) -> list[dict[str, str]]:
    with (root / "splits.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted((row for row in csv.DictReader(file) if row["split"] == split), key=lambda row: row["file"])
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, limit).round().astype(int)]


def _pictures(source: Source, rows: Sequence[dict[str, str]], images: Sequence[NDArray[np.uint8]]) -> Pictures:
    # A set without groups has each file in a group of its own.
    names = [row.get("group") or row["file"] for row in rows]
    index = {name: i for i, name in enumerate(sorted(set(names)))}
    stack = np.stack(images)
    labels = np.array([source.classes.index(row["class"]) for row in rows], dtype=np.int64)
    digest = hashlib.sha256(stack.tobytes() + labels.tobytes()).hexdigest()
    groups = np.array([index[name] for name in names], dtype=np.int64)
    return Pictures(images=stack, labels=labels, groups=groups, digest=digest)
