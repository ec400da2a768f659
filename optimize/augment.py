"""Surfaces as they might also have looked: crops, symmetries, small turns, light, focus, noise.

A steel strip has no up and no left, lamps age, and a lens is never twice equally sharp; a network that has seen few
pictures must not learn any of these. Each picture is changed by its own random generator, so that what it became
depends on seed, epoch and image only, and a run that was interrupted goes on as if nothing had happened.

A mask of the defect, where there is one, moves with the picture; light, focus and noise leave it alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from optimize.errors import OptimizeError

__all__ = ["Augmentation", "Move", "augment", "augment_with_boxes", "augmentation_from_text", "draw_move"]

PAD = 128
"""Grey level around a letterboxed picture, as on the device: 0 for the network."""

ZOOM = 0.25
"""Windows are cut up to a quarter larger or smaller than the scale of the whole picture (as exponents of e)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far pictures are changed.

    Attributes:
        min_area: smallest share of the picture that a crop keeps, 0.05 to 1; 1 never crops.
        is_upright: parts always lie the same way: no mirror images, no quarter turns.
        is_turned: quarter turns beside the mirror images; False for surfaces with a direction, such as rolled steel.
        angle: largest small turn in degrees, either way.
        light: strength of gain, offset, gamma and slope of the light; 0 leaves it.
        blur: share of pictures that are blurred.
        noise: share of pictures that get sensor noise.
        cutout: share of pictures with one square covered.
    """

    min_area: float = 0.5
    is_upright: bool = False
    is_turned: bool = True
    angle: float = 0.0
    light: float = 1.0
    blur: float = 0.2
    noise: float = 0.3
    cutout: float = 0.3

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:
                shown = "crop" if name == "min_area" else name
                raise OptimizeError(f"augment: {shown}: got {value}, expected {low:g} to {high:g}")


_BOUNDS = (
    ("min_area", 0.05, 1),
    ("angle", 0, 45),
    ("light", 0, 2),
    ("blur", 0, 1),
    ("noise", 0, 1),
    ("cutout", 0, 1),
)

_KEYS: Mapping[str, str] = {"crop": "min_area"} | {name: name for name, _, _ in _BOUNDS if name != "min_area"}

_OFF = Augmentation(min_area=1, light=0, blur=0, noise=0, cutout=0, is_upright=True)


def augmentation_from_text(
    text: str | None, *, is_upright: bool, is_turned: bool = True, default: Augmentation | None = None
) -> Augmentation:
    """Read `--augment`: `none`, or what differs from the defaults, such as `light=0.5,blur=0,angle=10`.

    Args:
        text: as it was given.
        is_upright: see `Augmentation`.
        is_turned: see `Augmentation`.
        default: what is not named is as here; None is the classifier's.

    Raises:
        OptimizeError: an unknown name, or a value that is no number or out of bounds.
    """
    if text == "none":
        return _OFF
    changes: dict[str, float] = {}
    for item in (text or "").split(","):
        if not item.strip():
            continue
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in _KEYS:
            raise OptimizeError(
                f"augment: got {name!r}, expected none, or some of {', '.join(f'{key}=X' for key in _KEYS)}",
                hint="for example --augment light=0.5,cutout=0; --preview shows what comes out",
            )
        try:
            changes[_KEYS[name]] = float(value)
        except ValueError as error:
            raise OptimizeError(f"augment: {name}: got {value!r}, expected a number") from error
    return dataclasses.replace(default or Augmentation(), is_upright=is_upright, is_turned=is_turned, **changes)


def augment(
    image: NDArray[np.uint8],
    size_px: int,
    how: Augmentation,
    random: np.random.Generator,
    *,
    mask: NDArray[np.uint8] | None = None,
    is_letterbox: bool = False,
    whole_px: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Make one training picture.

    Args:
        image: (H, W, C) uint8, any size, one or three channels.
        size_px: width and height wanted.
        how: how far to go.
        random: decides; the same state gives the same picture, and at another size the same view.
        mask: (H, W) uint8, 255 on the defect.
        is_letterbox: keep the aspect ratio, and pad.
        whole_px: cut a window of `size_px` out of the picture as it would be at this size, around the defect where
            the mask has one, else anywhere; None takes the whole picture, cropped and scaled to `size_px`.

    Returns:
        (size_px, size_px, C) uint8, own memory; and the mask as (size_px, size_px) uint8, 255 on the defect and soft at
        its edge, or None without one.
    """
    layers = image if mask is None else np.dstack([image, mask])
    at = None if whole_px is None else _place(layers.shape, mask, random)
    move = draw_move(layers.shape, size_px, how, random, is_letterbox=is_letterbox, window=at, whole_px=whole_px)
    layers, beyond = move.picture(layers)
    picture, moved = (layers, None) if mask is None else (layers[..., :-1], np.ascontiguousarray(layers[..., -1]))
    return _finished(picture, beyond, how, random), moved


def augment_with_boxes(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    size_px: int,
    how: Augmentation,
    random: np.random.Generator,
    *,
    is_letterbox: bool = False,
    whole_px: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Make one training picture of a detector, and move its boxes with it.

    Args:
        image: (H, W, C) uint8, any size, one or three channels.
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the image, edges.
        size_px: width and height wanted.
        how: how far to go.
        random: decides; the same state gives the same picture.
        is_letterbox: keep the aspect ratio, and pad.
        whole_px: cut a window of `size_px` out of the picture as it would be at this size, around one of the boxes
            where there are some, else anywhere; None takes the whole picture, cropped and scaled to `size_px`.

    Returns:
        (size_px, size_px, C) uint8, own memory; and (n, 4) boxes in pixels of it, not cut off at its edges.
    """
    at = None if whole_px is None else _place_in_box(image.shape, boxes, random)
    move = draw_move(image.shape, size_px, how, random, is_letterbox=is_letterbox, window=at, whole_px=whole_px)
    picture, beyond = move.picture(image)
    return _finished(picture, beyond, how, random), move.boxes(boxes)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Where each place of a picture goes.

    Attributes:
        matrix: (2, 3) from pixel centres of the picture to those of the result.
        symmetry: of the square, applied afterwards: bit 0 mirrors left and right, bit 1 up and down, bit 2 transposes.
        size_px: width and height of the result.
        is_padded: grey lies beyond the picture, else its mirror image.
    """

    matrix: NDArray[np.float64]
    symmetry: int
    size_px: int
    is_padded: bool

    def picture(self, layers: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """(H, W, C) uint8 moved; and where nothing of it lies (size_px, size_px, 1), None where that can't be."""
        beyond = _beyond(layers.shape, self.matrix, self.size_px) if self.is_padded else None
        moved = _turn(_warped(layers, self.matrix, self.size_px, is_padded=self.is_padded), self.symmetry)
        return moved, None if beyond is None else _turn(beyond, self.symmetry)

    def boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 4) x0, y0, x1, y1 moved: the upright box around what each became; it may lie outside."""
        if not len(boxes):
            return np.zeros((0, 4))
        # Edges to centres and back: half a pixel of each grid.
        x, y = boxes[:, [0, 2, 0, 2]] - 0.5, boxes[:, [1, 1, 3, 3]] - 0.5
        (a, b, c), (d, e, f) = self.matrix.tolist()
        x, y = a * x + b * y + c + 0.5, d * x + e * y + f + 0.5
        if self.symmetry & 1:
            x = self.size_px - x
        if self.symmetry & 2:
            y = self.size_px - y
        if self.symmetry & 4:
            x, y = y, x
        return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1)


def draw_move(
    shape: tuple[int, ...],
    size_px: int,
    how: Augmentation,
    random: np.random.Generator,
    *,
    is_letterbox: bool,
    window: tuple[float, float] | None,
    whole_px: int | None,
) -> Move:
    """Choose a crop (or a window around a place), a small turn and a symmetry."""
    if window is None or whole_px is None:
        matrix = _crop(shape, size_px, how, random, is_letterbox=is_letterbox)
    else:
        matrix = _window(shape, window, size_px, whole_px, random, is_letterbox=is_letterbox)
    if how.angle:
        matrix = _turned(matrix, math.radians(random.uniform(-how.angle, how.angle)), size_px)
    return Move(
        matrix=matrix,
        symmetry=0 if how.is_upright else int(random.integers(8 if how.is_turned else 4)),
        size_px=size_px,
        is_padded=is_letterbox or whole_px is not None,
    )


def _finished(
    picture: NDArray[np.uint8], beyond: NDArray[np.uint8] | None, how: Augmentation, random: np.random.Generator
) -> NDArray[np.uint8]:
    picture = _photographed(np.ascontiguousarray(picture), how, random)
    if beyond is not None:
        picture[beyond[..., 0] > 0] = PAD  # no lamp reaches padding: the device pads with one grey
    return picture


def _photographed(picture: NDArray[np.uint8], how: Augmentation, random: np.random.Generator) -> NDArray[np.uint8]:
    """The same place of the same part, by another lens, lamp and sensor."""
    size_px = picture.shape[0]
    if random.random() < how.blur:
        picture = _pixels(cv2.GaussianBlur(picture, (0, 0), random.uniform(0.3, 1.0)))
    values = picture.astype(np.float32)
    if how.light > 0:
        values = _relight(values, how.light, random)
    sigma = random.uniform(1.0, 10.0) if random.random() < how.noise else 0.0
    if random.random() < how.cutout:
        share, level = random.uniform(0.15, 0.4), random.uniform(0.0, 255.0)
        top, left = (int(at * size_px * (1 - share)) for at in random.random(2))
        side = int(size_px * share)
        values[top : top + side, left : left + side] = level
    if sigma:
        # One noise for all channels: a grey camera stays grey. Drawn last: how much of it there is depends on the size.
        values += np.float32(sigma) * random.standard_normal((size_px, size_px, 1), dtype=np.float32)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _crop(
    shape: tuple[int, ...], size_px: int, how: Augmentation, random: np.random.Generator, *, is_letterbox: bool
) -> NDArray[np.float64]:
    """The map (2, 3) of a random part of the picture, its aspect ratio changed a little, onto the whole result."""
    height, width = shape[:2]
    side = math.sqrt(random.uniform(how.min_area, 1.0))
    aspect = math.exp(random.uniform(-0.2, 0.2)) if how.min_area < 1 else 1.0
    crop_width, crop_height = min(1.0, side * aspect) * width, min(1.0, side / aspect) * height
    left, top = random.uniform(0, width - crop_width), random.uniform(0, height - crop_height)
    scale_x, scale_y = size_px / crop_width, size_px / crop_height
    if is_letterbox:
        scale_x = scale_y = min(scale_x, scale_y)
    return _onto(size_px, (left + crop_width / 2, top + crop_height / 2), (scale_x, scale_y))


def _window(
    shape: tuple[int, ...],
    at: tuple[float, float],
    size_px: int,
    whole_px: int,
    random: np.random.Generator,
    *,
    is_letterbox: bool,
) -> NDArray[np.float64]:
    """The map of a window around a place, near the scale that the whole picture has on the device."""
    scale_x, scale_y = whole_px / shape[1], whole_px / shape[0]
    if is_letterbox:
        scale_x = scale_y = min(scale_x, scale_y)
    zoom = math.exp(random.uniform(-ZOOM, ZOOM))
    reach = size_px / 3
    x = at[0] + random.uniform(-reach, reach) / scale_x
    y = at[1] + random.uniform(-reach, reach) / scale_y
    return _onto(size_px, (x, y), (scale_x * zoom, scale_y * zoom))


def _place(shape: tuple[int, ...], mask: NDArray[np.uint8] | None, random: np.random.Generator) -> tuple[float, float]:
    """A pixel (x, y) of the defect, or any where there is none."""
    if mask is None or not mask.any():
        return float(random.uniform(0, shape[1])), float(random.uniform(0, shape[0]))
    rows, columns = np.nonzero(mask)
    chosen = int(random.integers(len(rows)))
    return float(columns[chosen]) + 0.5, float(rows[chosen]) + 0.5


def _place_in_box(
    shape: tuple[int, ...], boxes: NDArray[np.float64], random: np.random.Generator
) -> tuple[float, float]:
    """The middle of one of the boxes, or any place where there is none."""
    if not len(boxes):
        return float(random.uniform(0, shape[1])), float(random.uniform(0, shape[0]))
    x0, y0, x1, y1 = boxes[int(random.integers(len(boxes)))].tolist()
    return (x0 + x1) / 2, (y0 + y1) / 2


def _onto(size_px: int, centre: tuple[float, float], scale: tuple[float, float]) -> NDArray[np.float64]:
    """The map that brings a place to the middle of the result, centre to centre: half a pixel of each grid."""
    (x, y), (scale_x, scale_y), middle = centre, scale, size_px / 2 - 0.5
    return np.array([[scale_x, 0, (0.5 - x) * scale_x + middle], [0, scale_y, (0.5 - y) * scale_y + middle]])


def _beyond(shape: tuple[int, ...], matrix: NDArray[np.float64], size_px: int) -> NDArray[np.uint8]:
    """(size_px, size_px, 1) uint8, 1 where no part of the picture lies."""
    whole = np.zeros(shape[:2], dtype=np.uint8)
    flags = cv2.INTER_NEAREST
    found = cv2.warpAffine(
        whole, matrix, (size_px, size_px), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=1
    )
    return _pixels(found)


def _warped(image: NDArray[np.uint8], matrix: NDArray[np.float64], size_px: int, *, is_padded: bool) -> Any:
    """Resample in one step; beyond the picture lies padding, or its mirror image."""
    scale_x, scale_y = (float(np.hypot(*matrix[:, axis])) for axis in (0, 1))
    if min(scale_x, scale_y) < 1:
        # Bilinear sampling skips pixels when it shrinks; the device averages over areas. The blur stands in for that.
        sigma_x, sigma_y = (max(0.35 * (1 / scale - 1), 0.01) for scale in (scale_x, scale_y))
        image = _pixels(cv2.GaussianBlur(image, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y))
    flags, beyond = cv2.INTER_LINEAR, cv2.BORDER_CONSTANT if is_padded else cv2.BORDER_REFLECT_101
    # No defect where there is no picture; only padded pictures have such places.
    colour = (PAD,) * image.shape[2] if image.shape[2] in {1, 3} else (*(PAD,) * (image.shape[2] - 1), 0)
    warped = cv2.warpAffine(image, matrix, (size_px, size_px), flags=flags, borderMode=beyond, borderValue=colour)
    return _pixels(warped)


def _turned(matrix: NDArray[np.float64], angle: float, size_px: int) -> NDArray[np.float64]:
    """The same map, then a turn about the middle of the result."""
    cos, sin, middle = math.cos(angle), math.sin(angle), (size_px - 1) / 2
    turn = np.array([[cos, -sin, middle * (1 - cos + sin)], [sin, cos, middle * (1 - cos - sin)], [0, 0, 1]])
    return np.asarray((turn @ np.vstack([matrix, [0, 0, 1]]))[:2])


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
