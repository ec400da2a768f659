"""Read every picture of a data set once, and keep what the searches need: a fingerprint and a small grey copy."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from agent.errors import ImageError
from optimize.dataset import Sample, read_image
from optimize.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GREY_EDGE", "Picture", "Unreadable", "read_pictures"]

GREY_EDGE = 336
"""Longest edge in pixels of the grey copy that is kept: 113 kB a picture at most."""
DARK_LEVEL = 16
"""A picture whose brightest pixels stay under this grey level is nearly black: 12 bits saved as 16 look like that."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What is kept of one readable picture.

    Attributes:
        sample: file, class, split and group.
        width_px: as stored in the file.
        height_px: as stored in the file.
        colour: False when the three channels are equal.
        dark: nearly black, see `DARK_LEVEL`.
        pixels: SHA-256 of size and BGR pixels, hex; the same picture saved losslessly in another format has it too.
        grey: (h, w) uint8, at most `GREY_EDGE` on its longest edge.
    """

    sample: Sample
    width_px: int
    height_px: int
    colour: bool
    dark: bool
    pixels: str
    grey: NDArray[np.uint8]

    @property
    def edge_px(self) -> int:
        """The longest edge of the stored picture."""
        return max(self.width_px, self.height_px)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A file that is listed as a picture and can't be decoded, and why."""

    sample: Sample
    reason: str


def read_pictures(samples: Sequence[Sample], progress: Progress) -> tuple[list[Picture], list[Unreadable]]:
    """Decode all pictures with the device's own decoder and keep what the searches need.

    Args:
        samples: which.
        progress: told of each.

    Returns:
        Pictures and unreadable files, each in the order of `samples`.
    """
    pictures: list[Picture] = []
    broken: list[Unreadable] = []
    for sample in progress.track(samples, "reading pictures"):
        item = _read(sample)
        if isinstance(item, Picture):
            pictures.append(item)
        else:
            broken.append(item)
    return pictures, broken


def _read(sample: Sample) -> Picture | Unreadable:
    try:
        return _picture(sample, read_image(sample.path))
    except ImageError as error:
        return Unreadable(sample=sample, reason=error.message.removeprefix(f"{sample.path}: "))


def _picture(sample: Sample, image: NDArray[np.uint8]) -> Picture:
    height, width = image.shape[:2]
    blue, green, red = image[..., 0], image[..., 1], image[..., 2]
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
    return Picture(
        sample=sample,
        width_px=width,
        height_px=height,
        colour=not (np.array_equal(blue, green) and np.array_equal(green, red)),
        dark=bool(np.percentile(grey, 99.9) < DARK_LEVEL),
        pixels=hashlib.sha256(f"{width}x{height}".encode() + image.tobytes()).hexdigest(),
        grey=_at_most(grey, GREY_EDGE),
    )


def _at_most(grey: NDArray[np.uint8], edge_px: int) -> NDArray[np.uint8]:
    height, width = grey.shape
    scale = edge_px / max(height, width)
    if scale >= 1:
        return grey
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
