"""Pieces of surface to cut pictures from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from tests.kit.pictures import encoded

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["crop", "steel", "write_pictures"]


def steel(seed: int, height: int = 400, width: int = 400) -> NDArray[np.uint8]:
    """A piece of surface to cut pictures from: grain of three sizes under uneven light; (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    grey = np.full((height, width), 120.0)
    for grain_px, contrast in ((3, 14), (8, 10), (25, 8)):
        noise = rng.standard_normal((height // grain_px + 2, width // grain_px + 2))
        grey += contrast * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    grey *= np.linspace(0.8, 1.2, width)[None, :]
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def crop(surface: NDArray[np.uint8], left: int, top: int, side: int = 200) -> NDArray[np.uint8]:
    """A square of it."""
    return surface[top : top + side, left : left + side]


def write_pictures(folder: Path, files: Mapping[str, NDArray[np.uint8] | bytes]) -> Path:
    """Write pictures, or bytes as they are, below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encoded(content, path.suffix))
    return folder
