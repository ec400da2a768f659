"""Surfaces as they might also have looked: crops, symmetries, light, focus, noise.

A steel strip has no up and no left, lamps age, and a lens is never twice equally sharp; a network that has seen few
pictures must not learn any of these. Each picture is changed by its own random generator, so that what it became
depends on seed, epoch and image only, and a run that was interrupted goes on as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Augmentation", "augment"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far pictures are changed.

    Attributes:
        min_area: smallest share of the picture that a crop keeps, 0 to 1; 1 never crops.
        is_upright: parts always lie the same way: no mirror images, no quarter turns.
        light: strength of gain, offset, gamma and slope of the light; 0 leaves it.
        blur: share of pictures that are blurred.
        noise: share of pictures that get sensor noise.
        cutout: share of pictures with one square covered.
    """

    min_area: float = 0.5
    is_upright: bool = False
    light: float = 1.0
    blur: float = 0.2
    noise: float = 0.3
    cutout: float = 0.3


def augment(
    image: NDArray[np.uint8], size_px: int, how: Augmentation, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Make one training picture.

    Args:
        image: (H, W, C) uint8, any size, one or three channels.
        size_px: width and height wanted.
        how: how far to go.
        random: decides; the same state gives the same picture.

    Returns:
        (size_px, size_px, C) uint8, own memory.
    """
    picture = _crop(image, size_px, how.min_area, random)
    if not how.is_upright:
        picture = _turn(picture, int(random.integers(8)))
    if random.random() < how.blur:
        picture = _pixels(cv2.GaussianBlur(picture, (0, 0), random.uniform(0.3, 1.0)))
    values = picture.astype(np.float32)
    if how.light > 0:
        values = _relight(values, how.light, random)
    if random.random() < how.noise:
        sigma = random.uniform(1.0, 10.0)
        # One noise for all channels: a grey camera stays grey.
        values += np.float32(sigma) * random.standard_normal((size_px, size_px, 1), dtype=np.float32)
    if random.random() < how.cutout:
        side = int(size_px * random.uniform(0.15, 0.4))
        top, left = random.integers(0, size_px - side + 1, 2)
        values[top : top + side, left : left + side] = random.uniform(0.0, 255.0)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _crop(image: NDArray[np.uint8], size_px: int, min_area: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of the picture, its aspect ratio changed a little, resampled in one step."""
    height, width = image.shape[:2]
    side = math.sqrt(random.uniform(min_area, 1.0))
    aspect = math.exp(random.uniform(-0.2, 0.2)) if min_area < 1 else 1.0
    crop_width, crop_height = min(1.0, side * aspect) * width, min(1.0, side / aspect) * height
    left, top = random.uniform(0, width - crop_width), random.uniform(0, height - crop_height)
    scale_x, scale_y = size_px / crop_width, size_px / crop_height
    if min(scale_x, scale_y) < 1:
        # Bilinear sampling skips pixels when it shrinks; the device averages over areas. The blur stands in for that.
        sigma_x, sigma_y = (max(0.35 * (1 / scale - 1), 0.01) for scale in (scale_x, scale_y))
        image = _pixels(cv2.GaussianBlur(image, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y))
    # Centre to centre: half a pixel of each grid.
    matrix = np.array(
        [
            [scale_x, 0, (0.5 - left) * scale_x - 0.5],
            [0, scale_y, (0.5 - top) * scale_y - 0.5],
        ]
    )
    cropped = cv2.warpAffine(
        image, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return _pixels(cropped)


def _turn(image: NDArray[np.uint8], symmetry: int) -> NDArray[np.uint8]:
    """One of the eight symmetries of the square."""
    if symmetry & 1:
        image = image[:, ::-1]
    if symmetry & 2:
        image = image[::-1]
    if symmetry & 4:
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image)


def _relight(values: NDArray[np.float32], strength: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Another lamp, another exposure: gamma, contrast about the mean, offset, and now and then a slope."""
    gamma = math.exp(random.uniform(-0.5, 0.5) * strength)
    values = np.float32(255) * np.power(values / np.float32(255), np.float32(gamma))
    mean = values.mean()
    contrast = math.exp(random.uniform(-0.5, 0.4) * strength)
    values = (values - mean) * np.float32(contrast) + mean + np.float32(random.uniform(-50, 50) * strength)
    if random.random() < 0.5:
        size = values.shape[0]
        angle, depth = random.uniform(0, 2 * math.pi), random.uniform(0, 30) * strength
        ramp = np.linspace(-1, 1, size, dtype=np.float32)
        slope = math.cos(angle) * ramp[None, :, None] + math.sin(angle) * ramp[:, None, None]
        values = values + np.float32(depth) * slope
    return np.asarray(values, dtype=np.float32)


def _pixels(image: Any) -> NDArray[np.uint8]:
    """OpenCV's result with the channel axis that it drops from grey pictures."""
    return np.asarray(image[:, :, None] if image.ndim == 2 else image, dtype=np.uint8)
