"""Synthetic parts: metal surfaces with scratches, pits, dents and stains, for the demo and for tests.

No camera, no download and no licence is needed to see the whole way from pictures to verdicts. A part is brushed or
cast metal under uneven light; good parts carry dust, faint tool marks along the brushing and a lens that darkens its
corners, so that a model has to look for more than "anything unusual". Nothing measured on these says anything about a
real line.

The same seed gives the same parts (`numpy.random.Generator`, one per part): part 7 is the same among 10 and among 1000.

    python -m optimize.synthetic parts/ --train 1500 --val 250 --calib 100 --test 250 --seed 1
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from optimize.dataset import SPLITS
from optimize.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BALANCED", "CLASSES", "LINE", "SIZE_PX", "SyntheticPart", "generate", "write_image", "write_parts"]

CLASSES = ("ok", "scratch", "pit", "dent", "stain")
"""What a part may be."""
BALANCED: Mapping[str, float] = MappingProxyType(dict.fromkeys(CLASSES, 1 / len(CLASSES)))
"""As many of each class: for training."""
LINE: Mapping[str, float] = MappingProxyType({"ok": 0.6, "scratch": 0.1, "pit": 0.1, "dent": 0.1, "stain": 0.1})
"""Most parts are good: for a line."""
SIZE_PX = 200
MIN_SIZE_PX, MAX_SIZE_PX = 64, 2048

Plane: TypeAlias = "NDArray[np.float32]"
"""(size, size) float32."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticPart:
    """One part, its picture and the truth about it.

    Attributes:
        image: (size, size, 3) uint8 BGR.
        label: one of `CLASSES`.
        box_px: x, y, width, height around what is wrong, or None for a good part.
    """

    image: NDArray[np.uint8]
    label: str
    box_px: tuple[int, int, int, int] | None


def generate(
    n: int, *, seed: int, size_px: int = SIZE_PX, mix: Mapping[str, float] = BALANCED
) -> Iterator[SyntheticPart]:
    """Make parts, one after the other.

    Args:
        n: how many.
        seed: any whole number from 0; another seed gives other parts.
        size_px: edge of the square picture, 64 to 2048; everything on a part scales with it.
        mix: class to its share. Classes come in a mixed order, and in these shares as nearly as whole parts allow.

    Raises:
        DataError: a size out of range, an unknown class, or shares that do not add up to 1.
    """
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise DataError(f"size_px: got {size_px}, expected {MIN_SIZE_PX} to {MAX_SIZE_PX}")
    if set(mix) - set(CLASSES) or min(mix.values(), default=-1) < 0 or abs(sum(mix.values()) - 1) > 1e-6:
        raise DataError(f"mix: got {dict(mix)}, expected shares of {', '.join(CLASSES)} that add up to 1")
    for index, label in enumerate(itertools.islice(_labels(mix, seed), n)):
        yield _part(np.random.default_rng((seed, index)), label, size_px)


def _labels(mix: Mapping[str, float], seed: int) -> Iterator[str]:
    """Labels without end: in each run of twenty the shares are met, the order within is drawn."""
    rng = np.random.default_rng((seed, 2**31))
    owed = dict.fromkeys(CLASSES, 0.0)
    while True:
        run = []
        for _ in range(20):
            for label in CLASSES:
                owed[label] += mix.get(label, 0.0)
            label = max(CLASSES, key=lambda c: owed[c])
            owed[label] -= 1
            run.append(label)
        yield from (run[i] for i in rng.permutation(len(run)))


def _part(rng: np.random.Generator, label: str, size: int) -> SyntheticPart:
    angle = float(rng.uniform(0, 2 * np.pi))
    light = (float(np.cos(angle)), float(np.sin(angle)))
    surface = _metal(rng, size)
    stain: Plane | None = None
    mark = np.zeros((size, size), np.float32)
    if label == "scratch":
        mark = _scratches(rng, size, light)
    elif label == "pit":
        mark = _pits(rng, size, light)
    elif label == "dent":
        mark = _dent(rng, size, light)
    elif label == "stain":
        stain = _stain(rng, size)
    grey = (surface + mark) * _light(rng, size, light)
    tint = 1 + rng.uniform(-0.02, 0.02, 3).astype(np.float32)
    colour = grey[..., None] * tint
    if stain is not None:
        # Rust, oil or cleaner: it takes most of the blue and least of the red.
        absorbed = np.array([1.0, rng.uniform(0.7, 1.0), rng.uniform(0.35, 0.9)], np.float32)
        colour *= 1 - stain[..., None] * absorbed
    colour += rng.normal(0, rng.uniform(0.004, 0.012), colour.shape).astype(np.float32)
    image = np.clip(np.rint(colour * 255), 0, 255).astype(np.uint8)
    return SyntheticPart(image=image, label=label, box_px=_box(np.abs(mark) if stain is None else stain))


def _noise(rng: np.random.Generator, size: int, grain_px: float) -> Plane:
    """Smooth noise of one grain size, mean 0 and deviation 1."""
    cells = max(2, round(size / grain_px))
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    plane = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray((plane - plane.mean()) / (plane.std() + 1e-6), dtype=np.float32)


def _metal(rng: np.random.Generator, size: int) -> Plane:
    """Bare metal without light, about 0.55: brushed along some direction, or cast, with dust and tool marks."""
    unit = size / SIZE_PX
    base = np.full((size, size), rng.uniform(0.45, 0.62), np.float32)
    base += 0.012 * _noise(rng, size, 40 * unit)
    if rng.random() < 0.6:
        angle = float(rng.normal(0, 6) + (90 if rng.random() < 0.3 else 0))
        base += rng.uniform(0.02, 0.045) * _brushing(rng, size, angle)
        for _ in range(int(rng.integers(0, 4))):
            base += rng.uniform(-0.025, 0.025) * _tool_mark(rng, size, angle)
    else:
        grains = ((9.0, 0.018), (4.0, 0.02), (1.6, 0.018))
        base += sum(rng.uniform(0.6, 1.3) * weight * _noise(rng, size, grain * unit) for grain, weight in grains)
    return base + _dust(rng, size)


def _brushing(rng: np.random.Generator, size: int, angle: float) -> Plane:
    """Noise drawn out into lines, mean 0 and deviation 1."""
    wide = int(size * 1.5)  # turned by any angle it still covers the part
    short = rng.standard_normal((wide, 10)).astype(np.float32)
    lines = cv2.resize(short, (wide, wide), interpolation=cv2.INTER_CUBIC)
    lines = cv2.GaussianBlur(lines, (1, 0), sigmaX=0.1, sigmaY=max(0.5, 0.6 * size / SIZE_PX))
    turn = cv2.getRotationMatrix2D((wide / 2, wide / 2), angle, 1.0)
    lines = cv2.warpAffine(lines, turn, (wide, wide), flags=cv2.INTER_LINEAR)
    start = (wide - size) // 2
    plane = lines[start : start + size, start : start + size]
    return np.asarray((plane - plane.mean()) / (plane.std() + 1e-6), dtype=np.float32)


def _tool_mark(rng: np.random.Generator, size: int, angle: float) -> Plane:
    """A faint straight line across the whole part, along the brushing: usual, and no defect."""
    turn = np.deg2rad(-angle)
    along = np.array([np.cos(turn), np.sin(turn)]) * size * 1.5
    middle = rng.uniform(0, size, 2)
    return _strokes(size, [np.stack([middle - along, middle + along])], rng.uniform(0.8, 1.6) * size / SIZE_PX)


def _dust(rng: np.random.Generator, size: int) -> Plane:
    """A few specks, smaller and fainter than pits."""
    plane = np.zeros((size, size), np.float32)
    unit = size / SIZE_PX
    for _ in range(int(rng.integers(0, 5))):
        spot = _blob(size, rng.uniform(0, size, 2), rng.uniform(0.5, 0.9) * unit, rng)
        plane += np.float32(rng.uniform(-0.1, 0.08)) * spot
    return plane


def _light(rng: np.random.Generator, size: int, light: tuple[float, float]) -> Plane:
    """A lamp from one side, a soft gloss somewhere, and a lens that darkens its corners: about 0.6 to 1.4."""
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) / size) - np.float32(0.5)
    slope = 1 + rng.uniform(0.05, 0.35) * (light[0] * x + light[1] * y)
    centre = rng.uniform(-0.4, 0.4, 2)
    gloss = rng.uniform(0, 0.25) * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / rng.uniform(0.04, 0.2))
    vignette = 1 - rng.uniform(0.1, 0.5) * (x * x + y * y)
    return np.asarray(rng.uniform(0.8, 1.15) * (slope + gloss) * vignette, dtype=np.float32)


def _scratches(rng: np.random.Generator, size: int, light: tuple[float, float]) -> Plane:
    """One to three thin, slightly bent grooves: a bright flank, and a dark one away from the light."""
    unit = size / SIZE_PX
    paths = []
    start, heading = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        length = rng.uniform(0.3, 0.85) * size
        bend = rng.normal(0, 0.35)
        steps = np.linspace(-0.5, 0.5, 24)
        turn = heading + rng.normal(0, 0.08) + bend * steps
        path = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], axis=1) * length / len(steps), axis=0)
        paths.append(path - path.mean(axis=0) + start + rng.normal(0, 8 * unit, 2))
    width = rng.uniform(1.3, 2.8) * unit
    groove = _strokes(size, paths, width)
    # A tool jumps: the groove is deeper here and shallower there, but never quite gone.
    groove *= np.clip(0.85 + 0.3 * _noise(rng, size, 30 * unit), 0.35, 1.2)
    shadow = _moved(groove, light, 1.3 * width)
    contrast = _contrast(rng, 0.2, 0.45)
    return np.asarray(contrast * (groove - 0.8 * shadow), dtype=np.float32)


def _pits(rng: np.random.Generator, size: int, light: tuple[float, float]) -> Plane:
    """Two to twelve small holes, mostly close together: dark inside, a bright lip on the far side."""
    unit = size / SIZE_PX
    centre = rng.uniform(0.2, 0.8, 2) * size
    spread = rng.uniform(5, 22) * unit
    plane = np.zeros((size, size), np.float32)
    contrast = _contrast(rng, 0.18, 0.4)
    for _ in range(int(rng.integers(2, 13))):
        at = np.clip(centre + rng.normal(0, spread, 2), 4 * unit, size - 4 * unit)
        radius = rng.uniform(2.0, 4.8) * unit
        hole = _blob(size, at, radius, rng)
        lip = np.clip(_moved(hole, light, -0.9 * radius) - hole, 0, None)
        plane += np.float32(contrast) * (0.45 * lip - hole)
    return np.clip(plane, -0.42, 0.3)


def _dent(rng: np.random.Generator, size: int, light: tuple[float, float]) -> Plane:
    """A smooth hollow: its slope towards the light is dark, the other one bright (Lambert's law, small slopes)."""
    radius = rng.uniform(0.07, 0.16) * size
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    centre = rng.uniform(0.22, 0.78, 2) * size
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.6)
    along = ((x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)) / (radius * stretch)
    across = (-(x - centre[0]) * np.sin(turn) + (y - centre[1]) * np.cos(turn)) / radius
    depth = np.exp(-(np.minimum(along**2 + across**2, 40) ** 1.4)).astype(np.float32)
    slope = light[0] * cv2.Sobel(depth, cv2.CV_32F, 1, 0) + light[1] * cv2.Sobel(depth, cv2.CV_32F, 0, 1)
    slope /= np.abs(slope).max() + 1e-6
    contrast = _contrast(rng, 0.11, 0.26)
    return np.asarray(contrast * (slope - 0.25 * depth), dtype=np.float32)


def _stain(rng: np.random.Generator, size: int) -> Plane:
    """A dried drop: ragged outline, uneven inside, darker at its rim. How much light it takes, 0 to about 0.5."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    centre = rng.uniform(0.22, 0.78, 2) * size
    radius, stretch = rng.uniform(0.09, 0.22) * size, rng.uniform(0.7, 1.4)
    distance = np.hypot((x - centre[0]) * stretch, (y - centre[1]) / stretch) / radius
    distance += 0.16 * _noise(rng, size, radius * 0.9) + 0.06 * _noise(rng, size, radius * 0.3)
    inside = 1 / (1 + np.exp(np.clip((distance - 1) * rng.uniform(9, 22), -30, 30)))
    rim = np.exp(-(((distance - 0.93) / 0.12) ** 2))
    body = inside * (0.75 + 0.18 * _noise(rng, size, radius * 0.5)) + rng.uniform(0.1, 0.6) * rim * inside
    return np.asarray(np.clip(_contrast(rng, 0.17, 0.42) * body, 0, 0.6), dtype=np.float32)


def _contrast(rng: np.random.Generator, low: float, high: float) -> float:
    """As many faint defects as strong ones: uniform in the logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _strokes(size: int, paths: list[NDArray[np.float64]], width_px: float) -> Plane:
    """Soft lines of height 1 along paths of (x, y)."""
    plane = np.zeros((size, size), np.float32)
    for path in paths:
        line = np.zeros((size, size), np.uint8)
        points = np.rint(np.clip(path, -8 * size, 8 * size) * 16).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(line, [points], isClosed=False, color=255, thickness=1, lineType=cv2.LINE_AA, shift=4)
        soft = cv2.GaussianBlur(line.astype(np.float32), (0, 0), max(0.4, width_px / 2))
        plane = np.maximum(plane, soft / max(float(soft.max()), 1e-6))
    return plane


def _blob(size: int, at: NDArray[np.float64], radius_px: float, rng: np.random.Generator) -> Plane:
    """A roundish spot of height 1 with a soft edge."""
    plane = np.zeros((size, size), np.float32)
    reach = int(np.ceil(3 * radius_px)) + 2
    left, top = (int(v) - reach for v in at)
    y, x = np.mgrid[top : top + 2 * reach, left : left + 2 * reach].astype(np.float32)
    stretch, turn = rng.uniform(0.75, 1.33), rng.uniform(0, np.pi)
    dx, dy = x - at[0], y - at[1]
    along = (dx * np.cos(turn) + dy * np.sin(turn)) / (radius_px * stretch)
    across = (-dx * np.sin(turn) + dy * np.cos(turn)) * stretch / radius_px
    spot = np.exp(-(np.minimum(along**2 + across**2, 30) ** 1.5))
    rows, columns = slice(max(0, top), top + 2 * reach), slice(max(0, left), left + 2 * reach)
    part = plane[rows, columns]
    part[:] = spot[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
    return plane


def _moved(plane: Plane, direction: tuple[float, float], distance_px: float) -> Plane:
    move = np.array([[1, 0, direction[0] * distance_px], [0, 1, direction[1] * distance_px]], np.float32)
    return np.asarray(cv2.warpAffine(plane, move, (plane.shape[1], plane.shape[0])), dtype=np.float32)


def _box(mark: Plane) -> tuple[int, int, int, int] | None:
    """Around all that is at least a quarter as strong as the strongest."""
    if mark.max() <= 0:
        return None
    ys, xs = np.nonzero(mark >= mark.max() / 4)
    return int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1


def write_parts(
    folder: Path, counts: Mapping[str, int], *, seed: int, size_px: int = SIZE_PX, mix: Mapping[str, float] = BALANCED
) -> None:
    """Write parts as a data set: a folder per class, `splits.csv` (file,class,split) and `boxes.csv`.

    Args:
        folder: made when absent; files of the same name are overwritten.
        counts: split (`train`, `calib`, `val`, `test`) to how many parts.
        seed: as in `generate`; no two splits share a part.
        size_px: as in `generate`.
        mix: as in `generate`.

    Raises:
        DataError: an unknown split or class, or the folder can't be written.
    """
    if set(counts) - set(SPLITS):
        raise DataError(f"counts: got the splits {sorted(counts)}, expected {', '.join(SPLITS)}")
    split_of = [split for split in SPLITS for _ in range(counts.get(split, 0))]
    rows, boxes = [], []
    for index, part in enumerate(generate(len(split_of), seed=seed, size_px=size_px, mix=mix)):
        file = f"{part.label}/part-{seed}-{index:05}.jpg"
        write_image(folder / file, part.image)
        rows.append((file, part.label, split_of[index]))
        if part.box_px is not None:
            x, y, width, height = part.box_px
            boxes.append((file, part.label, x, y, x + width, y + height))
    _write_csv(folder / "splits.csv", ("file", "class", "split"), rows)
    _write_csv(folder / "boxes.csv", ("file", "class", "xmin", "ymin", "xmax", "ymax"), boxes)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one picture as JPEG, quality 95; the folder is made when absent.

    Raises:
        DataError: the file can't be written.
    """
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror})") from error


def _write_csv(path: Path, head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head)
            writer.writerows(rows)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror})") from error
