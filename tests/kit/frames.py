"""Parts and frames without a camera."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from agent.frame import Frame, Part, Stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLACK", "GREY", "RED", "WHITE", "frame_of", "part_of", "plain_image"]

WHITE, GREY, BLACK, RED = (255, 255, 255), (128, 128, 128), (0, 0, 0), (0, 0, 255)
"""BGR."""


def plain_image(colour: tuple[int, int, int], *, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 BGR of one colour, but for one corner: a blank picture is no part."""
    image = np.full((height, width, 3), colour, dtype=np.uint8)
    image[0, 0] ^= 1
    return image


def part_of(name: str = "part-1") -> Part:
    """A part triggered now."""
    return Part(id=name, trigger="test", sequence=1, triggered=Stamp.now())


def frame_of(image: NDArray[np.uint8], *, name: str = "part-1", capture_ms: float = 0.0) -> Frame:
    """A frame exposed now."""
    return Frame(
        part=part_of(name),
        image=image,
        camera="test",
        source="tests/kit/frames.py",
        sequence=1,
        captured=Stamp.now(),
        capture_ms=capture_ms,
    )
