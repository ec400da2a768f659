"""The region of interest and further views of a part in the configuration."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from agent.config.cameras import CameraConfig
from agent.errors import ConfigError
from agent.typed_yaml import key as _key

__all__ = ["LocateConfig", "MaskConfig", "PerspectiveConfig", "RoiConfig", "ViewConfig"]

MOST_SHRUNK = 2.0
"""How many times a side may be longer in the frame than in the picture made of it: beyond it pixels would be skipped,
and a scratch with them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocateConfig:
    """Where the part lies, by a picture of a piece of it.

    Attributes:
        template: picture file, cut out of a frame on which the part lies as it should (the reference).
        at: x and y of the template's top left corner in the reference frame, in pixels.
        search: x, y, width and height of the part of the frame that is searched, in pixels; empty is the whole frame.
        turn_deg: the part may be turned by this many degrees either way; 0 searches no turned one, and is faster.
        min_score: normalised correlation (1 is the same picture, whatever the light) under which the part is not found.
        max_shift_px: a part found farther than this from its place in the reference is out of bounds; empty sets none.
    """

    template: Path = _key(path=True)
    at: tuple[int, ...] = _key(low=0, high=65_535)
    search: tuple[int, ...] | None = _key(None, low=0, high=65_535)
    turn_deg: float = _key(0.0, low=0, high=15)
    min_score: float = _key(0.7, low=0.1, high=1)
    max_shift_px: float | None = _key(None, low=0, high=65_535)

    def __post_init__(self) -> None:
        if len(self.at) != 2:
            raise ConfigError(f"roi.locate.at: got {list(self.at)}, expected x and y")
        _check_box("roi.locate.search", self.search)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PerspectiveConfig:
    """A plane seen at an angle, made flat.

    Attributes:
        corners: four points of the frame in pixels, x and y each: those that become the top left, top right, bottom
            right and bottom left corner.
        width_px: of the picture made of them.
        height_px: of the picture made of them.
    """

    corners: tuple[tuple[float, ...], ...] = _key(low=0, high=65_535)
    width_px: int = _key(low=8, high=16_384)
    height_px: int = _key(low=8, high=16_384)

    def __post_init__(self) -> None:
        if len(self.corners) != 4 or any(len(corner) != 2 for corner in self.corners):
            raise ConfigError(f"roi.perspective.corners: got {_shown(self.corners)}, expected four of the form [x, y]")
        self._check_shape()
        self._check_size()

    def _check_shape(self) -> None:
        ring = [*self.corners, *self.corners[:2]]
        turns = [
            (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
            for a, b, c in zip(ring, ring[1:], ring[2:], strict=False)
        ]
        # Twice the area of a corner's triangle; one under a pixel is no corner.
        if all(turn < -1 for turn in turns):
            raise ConfigError(
                f"roi.perspective.corners: {_shown(self.corners)} run against the clock, which would mirror the part",
                hint="give top left, top right, bottom right, bottom left",
            )
        if not all(turn > 1 for turn in turns):
            raise ConfigError(
                f"roi.perspective.corners: {_shown(self.corners)} are no quadrilateral: its edges cross, three corners "
                "lie on a line, or it is hollow",
                hint="give top left, top right, bottom right, bottom left",
            )

    def _check_size(self) -> None:
        sides = [math.dist(a, b) for a, b in zip(self.corners, [*self.corners[1:], self.corners[0]], strict=True)]
        for key, is_px, longest in (
            ("width_px", self.width_px, max(sides[0], sides[2])),
            ("height_px", self.height_px, max(sides[1], sides[3])),
        ):
            if longest > MOST_SHRUNK * is_px:
                raise ConfigError(
                    f"roi.perspective.{key}: got {is_px}, but that side is {longest:.0f} px long in the frame: more "
                    f"than {MOST_SHRUNK:g} to one would skip pixels, and a scratch with them",
                    hint=f"{key}: {math.ceil(longest)}",
                )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaskConfig:
    """What the model must not see.

    Attributes:
        polygons: 1 to 50 polygons of 3 to 64 corners, x and y each, in pixels of the region.
        keep: the polygons are all that the model sees; else they are what it does not see.
        grey: the value that stands in place of what is not seen.
    """

    polygons: tuple[tuple[tuple[float, ...], ...], ...] = _key(low=0, high=65_535)
    keep: bool = True
    grey: int = _key(114, low=0, high=255)

    def __post_init__(self) -> None:
        if not 1 <= len(self.polygons) <= 50:
            raise ConfigError(f"roi.mask.polygons: got {len(self.polygons)}, expected 1 to 50")
        for number, polygon in enumerate(self.polygons):
            if not 3 <= len(polygon) <= 64 or any(len(corner) != 2 for corner in polygon):
                raise ConfigError(
                    f"roi.mask.polygons[{number}]: got {len(polygon)} corners, expected 3 to 64 of the form [x, y]"
                )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoiConfig:
    """What the model sees of a frame. The steps come in this order; each counts in pixels of what the one before gave.

    Attributes:
        locate: find the part; all further places move and turn with it. Empty takes it to lie as it should.
        perspective: four corners made a rectangle; empty leaves it out.
        rotate_deg: turned clockwise about the middle. 90, 180 and 270 are exact, swap width and height and lose
            nothing; any other keeps the picture's size, so cut away the corners with `crop`.
        crop: x, y, width and height in pixels; empty keeps all.
        mask: polygons that the model sees, or does not see; empty shows all.
    """

    locate: LocateConfig | None = None
    perspective: PerspectiveConfig | None = None
    rotate_deg: float = _key(0.0, low=0, high=360)
    crop: tuple[int, ...] | None = _key(None, low=0, high=65_535)
    mask: MaskConfig | None = None

    def __post_init__(self) -> None:
        _check_box("roi.crop", self.crop)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ViewConfig:
    """A further camera that looks at the same part; the first is `camera`, with `roi`.

    Attributes:
        name: how verdicts call the view; the first one is called as its camera is.
        camera: where its frames come from.
        roi: what the model sees of its frames; empty is the whole frame.
        delay_ms: from the trigger to its exposure, beyond the trigger's own delay.
        window_ms: its frame must be here this long after the first camera's, and must have been exposed no farther from
            it in time (`delay_ms` counted in); else the view is missing, and the part an `error`.
        pixel_mm: one pixel of its picture in millimetres; empty takes `policy.pixel_mm`.
    """

    name: str = _key(pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    camera: CameraConfig = _key()
    roi: RoiConfig | None = None
    delay_ms: float = _key(0.0, low=0, high=60_000)
    window_ms: float = _key(500.0, low=1, high=60_000)
    pixel_mm: float | None = _key(None, low=0.000001, high=1000)


def _check_box(where: str, box: tuple[int, ...] | None) -> None:
    if box is not None and (len(box) != 4 or min(box[2:]) <= 0):
        raise ConfigError(f"{where}: got {list(box)}, expected x, y, width and height, the last two over 0")


def _shown(corners: tuple[tuple[float, ...], ...]) -> str:
    return str([[round(value, 1) for value in corner] for corner in corners])[:200]
