"""The pictures that a damaged network is brought back on: chosen without test among them, and read once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.bundle.manifest import InputSpec
from agent.bundle.preprocess import fit
from optimize.box_readers import has_boxes, read_boxes
from optimize.calibration import FEW_IMAGES, Selection, pick_calibration
from optimize.dataset import Dataset, read_dataset, read_image
from optimize.progress import Progress
from optimize.trained import Trained

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Pictures", "read_pictures", "recovery_pictures"]

LARGEST = 2
"""Pictures are kept at no more than this many times the network's input: crops need no more, and memory is finite."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """Pictures in memory.

    Attributes:
        fitted: (N, H, W, 3) uint8 RGB, as the device sees them.
        whole: each (h, w, 3) uint8 RGB, to be augmented.
    """

    fitted: NDArray[np.uint8]
    whole: list[NDArray[np.uint8]]


def recovery_pictures(
    root: Path, trained: Trained, selection: Selection, *, data: Path | None = None, progress: Progress | None = None
) -> tuple[Dataset, tuple[str, ...]]:
    """Choose the pictures that a network is pruned and recovered on; their labels count for nothing.

    Args:
        root: a folder with a `calib` split, or without splits.
        trained: the network, for what the user should know.
        selection: how many pictures at most, and the seed.
        data: another set, whose `test` split must not be among them either.
        progress: hears what is read.

    Returns:
        The pictures, and what the user should know, in sentences.

    Raises:
        DataError: too few, unreadable, or some of a `test` split.
    """
    dataset = _read(root, trained)
    named = [dataset] if data is None or data.resolve() == root.resolve() else [dataset, _read(data, trained)]
    test = [sample for each in named if "test" in each.splits for sample in each.take("test")]
    chosen = pick_calibration(dataset.take("calib"), test=test, selection=selection, progress=progress).dataset
    told = []
    if len(chosen) < FEW_IMAGES:
        told.append(f"only {len(chosen)} pictures to recover on: {FEW_IMAGES} or more are better, 200 are good")
    shown = {sample.label for sample in chosen}
    missing = [] if trained.task == "detect" or None in shown else [c for c in trained.classes if c not in shown]
    if missing:
        told.append(f"no picture shows {', '.join(missing)}: what the network knows of it may be lost unseen")
    return chosen, tuple(told)


def read_pictures(dataset: Dataset, spec: InputSpec, progress: Progress) -> Pictures:
    """Read pictures as the network sees them, and as far as recovery needs them.

    Raises:
        ImageError: one can't be read.
    """
    fitted, whole = [], []
    for sample in progress.track(dataset.samples, "reading pictures"):
        image = read_image(sample.path)
        fitted.append(fit(image, spec))
        whole.append(_shrunk(image, spec))
    return Pictures(fitted=np.stack(fitted), whole=whole)


def _read(root: Path, trained: Trained) -> Dataset:
    return read_boxes(root) if trained.task == "detect" and has_boxes(root) else read_dataset(root)


def _shrunk(image: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """(H, W, 3) BGR to RGB, no larger than recovery needs, by the network's own resize rule."""
    height, width = image.shape[:2]
    most = LARGEST * max(spec.width_px, spec.height_px)
    if max(height, width) <= most:
        return np.ascontiguousarray(image[:, :, ::-1])
    if spec.resize == "letterbox":
        share = most / max(height, width)
        width, height = max(8, round(width * share)), max(8, round(height * share))
    return fit(image, InputSpec(width_px=min(width, most), height_px=min(height, most)))
