"""Pictures and their boxes in memory, and the batches that training sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agent.errors import ImageError
from optimize.augment import augment_with_boxes
from optimize.dataset import Dataset, LabelledBox, Sample, read_image
from optimize.detect.config import DetectConfig
from optimize.errors import DataError
from optimize.export import normalize
from optimize.trainset import refuse_broken

__all__ = ["BoxBatch", "BoxBatches", "BoxPictures", "Truth", "read_pictures"]

KEPT = 0.3
"""A box of which a crop leaves less than this share is no longer to be found, and no false alarm either."""

SMALLEST_PX = 2.0
"""Nor is one whose shorter side is less, at the network's input."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is to be found in one picture.

    Attributes:
        boxes: (n, 4) x0, y0, x1, y1 in pixels.
        classes: (n,) class numbers.
        is_ignored: (n,) neither to be found nor a false alarm.
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    is_ignored: NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoxPictures:
    """Decoded images and what is to be found in them.

    Attributes:
        images: each (H, W, 3) uint8 RGB, as they are.
        truths: of each.
        is_grey: in every image the three channels are the same.
        samples: where they came from.
    """

    images: Sequence[NDArray[np.uint8]]
    truths: Sequence[Truth]
    is_grey: bool
    samples: tuple[Sample, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class BoxBatch:
    """What one step sees.

    Attributes:
        inputs: (N, C, S, S) float32, normalized.
        truths: of each picture, in pixels of the input.
    """

    inputs: Tensor
    truths: Sequence[Truth]


def read_pictures(dataset: Dataset) -> BoxPictures:
    """Decode images and number their boxes' classes.

    Raises:
        DataError: images can't be read (they are named), or have no boxes.
    """
    number = {name: i for i, name in enumerate(dataset.classes)}
    images: list[NDArray[np.uint8]] = []
    truths: list[Truth] = []
    broken: list[str] = []
    for sample in dataset:
        if sample.boxes is None:
            raise DataError(
                f"{sample.file}: nobody said what is to be found in it",
                hint="give a set with boxes: VOC, COCO or YOLO files, or boxes.csv",
            )
        try:
            image = np.ascontiguousarray(read_image(sample.path)[:, :, ::-1])
        except ImageError as error:
            broken.append(error.message)
            continue
        images.append(image)
        truths.append(_truth(sample.boxes, number, image.shape))
    refuse_broken(dataset, broken)
    is_grey = all(np.array_equal(i[..., 0], i[..., 1]) and np.array_equal(i[..., 0], i[..., 2]) for i in images)
    return BoxPictures(images=images, truths=truths, is_grey=is_grey, samples=dataset.samples)


class BoxBatches:
    """Makes batches; what comes out depends on seed, epoch and image only.

    Args:
        config: the recipe.
        pictures: what there is to train on.
        channels: 3, or 1 for a grey network, which gets the first channel.
    """

    def __init__(self, config: DetectConfig, pictures: BoxPictures, channels: int) -> None:
        self._config, self._pictures, self._channels = config, pictures, channels

    def file(self, image: int) -> str:
        """The name of a picture in its set."""
        return self._pictures.samples[image].file

    def original(self, image: int) -> tuple[NDArray[np.uint8], Truth]:
        """A picture as it was read, (H, W, 3) uint8 RGB, and what is to be found in it."""
        return self._pictures.images[image], self._pictures.truths[image]

    def make(self, images: NDArray[np.int64], size_px: int, epoch: int) -> BoxBatch:
        """One batch.

        Args:
            images: (N,) positions of the pictures.
            size_px: width and height.
            epoch: from 1.
        """
        made = [self.picture(i, size_px, epoch) for i in images.tolist()]
        return BoxBatch(normalize(np.stack([picture for picture, _ in made])), [truth for _, truth in made])

    def picture(self, image: int, size_px: int, epoch: int) -> tuple[NDArray[np.uint8], Truth]:
        """One augmented picture (size_px, size_px, C) uint8, and what is left to be found in it."""
        random = np.random.default_rng([self._config.seed, epoch, image])
        pixels, truth = self._pictures.images[image][:, :, : self._channels], self._pictures.truths[image]
        config = self._config
        whole = None if config.tile_px is None else round(size_px * max(pixels.shape[:2]) / config.tile_px)
        picture, boxes = augment_with_boxes(
            pixels,
            truth.boxes,
            size_px,
            config.augmentation,
            random,
            is_letterbox=config.resize == "letterbox" or config.tile_px is not None,
            whole_px=None if whole is None or whole <= size_px else whole,
        )
        return picture, visible(dataclasses.replace(truth, boxes=boxes), size_px)


def visible(truth: Truth, size_px: int) -> Truth:
    """What a crop leaves: boxes cut off at the edges; too little of one makes it ignored, nothing of it removes it."""
    cut = truth.boxes.clip(0, size_px)
    sides, whole = cut[:, 2:] - cut[:, :2], truth.boxes[:, 2:] - truth.boxes[:, :2]
    share = sides.prod(1) / whole.prod(1).clip(1e-9)
    is_ignored = truth.is_ignored | (share < KEPT) | (sides.min(1, initial=np.inf) < SMALLEST_PX)
    left = sides.min(1, initial=np.inf) > 0
    return Truth(boxes=cut[left], classes=truth.classes[left], is_ignored=is_ignored[left])


def _truth(boxes: Sequence[LabelledBox], number: dict[str, int], shape: tuple[int, ...]) -> Truth:
    height, width = shape[:2]
    corners = np.array([[b.left, b.top, b.right, b.bottom] for b in boxes], dtype=np.float64).reshape(-1, 4)
    return Truth(
        boxes=corners.clip(0, [width, height, width, height]),
        classes=np.array([number[b.class_name] for b in boxes], dtype=np.int64),
        is_ignored=np.array([b.is_ignored for b in boxes], dtype=np.bool_),
    )
