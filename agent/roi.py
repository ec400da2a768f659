"""The region of interest: from a camera's frame to the picture that the model sees, and back.

```text
frame ─ locate ─ perspective ─ rotate ─ crop ─ one warp ─ mask ─▶ region      RoiMap: region px ─▶ frame px
        where is   four corners  about    box    or, where no pixel
        the part?  made flat     middle          is moved, none
```

The steps are always in this order, and each counts in pixels of what the one before gave. They are put together into
one 3 x 3 matrix first, so a picture is resampled once at most: crops and quarter turns copy pixels as they are.

Places are those of `Box`: the top left corner of the top left pixel is (0, 0), its middle (0.5, 0.5).

Training uses it too, by `defect-agent inspect --save-roi`, or by `Roi(config).take(image)`: numpy and OpenCV only.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from agent.bundle.preprocess import Box
from agent.config import CameraConfig, MaskConfig, RoiConfig
from agent.errors import ConfigError, ImageError
from agent.locate import Located, Locator, NotFound, shift_matrix, turn_matrix
from agent.log import log_event

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Located", "NotFound", "Region", "Roi", "RoiMap", "configured_size"]

MIN_SIDE_PX = 8
"""A region with a shorter side shows no part."""

EDGE_SLACK_PX = 1e-3
"""How far a region may reach beyond the frame: sums of floats."""

LONGEST_MAP_PX = 320
"""The longer side of a heatmap over the whole frame; it is for eyes."""

SAMPLES = 512
"""Pixels that are looked at first to tell whether a region shows something."""

HINT = "give the region in pixels of this camera's frames; `defect-agent inspect --save-roi` shows what it holds"

log = logging.getLogger("agent.roi")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoiMap:
    """Where a region lies in its frame.

    Attributes:
        to_frame: (3, 3) float64, from homogeneous places in the region to those in the frame.
        width_px: of the region.
        height_px: of the region.
        frame_width_px: of the frame.
        frame_height_px: of the frame.
    """

    to_frame: NDArray[np.float64]
    width_px: int
    height_px: int
    frame_width_px: int
    frame_height_px: int

    def point_to_frame(self, x: float, y: float) -> tuple[float, float]:
        """A place in the region as a place in the frame."""
        return _moved(self.to_frame, x, y)

    def point_to_region(self, x: float, y: float) -> tuple[float, float]:
        """A place in the frame as a place in the region; outside of it where it is not part of it."""
        return _moved(np.asarray(np.linalg.inv(self.to_frame), dtype=np.float64), x, y)

    def outline(self) -> tuple[tuple[float, float], ...]:
        """The region's corners in the frame, from its own top left, clockwise."""
        return tuple(self.point_to_frame(x, y) for x, y in _corners(self.width_px, self.height_px))

    def is_inside(self) -> bool:
        """Whether all of the region lies in the frame."""
        depths = self.to_frame @ np.array([(x, y, 1.0) for x, y in _corners(self.width_px, self.height_px)]).T
        return bool(depths[2].min() > 0) and all(
            -EDGE_SLACK_PX <= x <= self.frame_width_px + EDGE_SLACK_PX
            and -EDGE_SLACK_PX <= y <= self.frame_height_px + EDGE_SLACK_PX
            for x, y in self.outline()
        )

    def box_to_frame(self, box: Box) -> Box:
        """The upright box in the frame that holds a box of the region, cut off at the frame's edges."""
        x, y, width, height = box
        corners = [self.point_to_frame(x + dx, y + dy) for dx, dy in _corners(width, height)]
        left, right = (_within(each(p[0] for p in corners), self.frame_width_px) for each in (min, max))
        top, bottom = (_within(each(p[1] for p in corners), self.frame_height_px) for each in (min, max))
        return left, top, right - left, bottom - top

    def heatmap_to_frame(self, heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
        """A map over the region as one over the whole frame.

        Args:
            heatmap: (h, w) float32 over the region, edge to edge, at any resolution.

        Returns:
            (h, w) float32 over the frame, edge to edge, 320 px at most: 0 outside of the region.
        """
        scale = LONGEST_MAP_PX / max(self.frame_width_px, self.frame_height_px, LONGEST_MAP_PX)
        size = max(round(self.frame_width_px * scale), 1), max(round(self.frame_height_px * scale), 1)
        high, wide = heatmap.shape
        from_cells = self.to_frame @ np.diag([self.width_px / wide, self.height_px / high, 1.0])
        to_cells = np.diag([size[0] / self.frame_width_px, size[1] / self.frame_height_px, 1.0]) @ from_cells
        # A rim of repeated cells, so that the outer half cells are filled as well; then cut by the region's outline.
        rim = cv2.copyMakeBorder(heatmap, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        warped = cv2.warpPerspective(rim, _by_middles(to_cells @ shift_matrix(-1, -1)), size, flags=cv2.INTER_LINEAR)
        inside = np.zeros((size[1], size[0]), dtype=np.uint8)
        outline = [_moved(to_cells, x, y) for x, y in _corners(wide, high)]
        cv2.fillConvexPoly(inside, _sixteenths(outline), 1, shift=4)
        return np.asarray(warped * inside, dtype=np.float32)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """What the model sees of one frame.

    Attributes:
        image: (H, W, 3) uint8 BGR; may be a view of the frame, so it is not to be written to.
        map: where it lies in the frame.
        located: where the part was found; None when nobody searched.
    """

    image: NDArray[np.uint8]
    map: RoiMap
    located: Located | None = None


class Roi:
    """Takes the configured region out of frames; one thread at a time.

    The template's digest is logged as the event `region`, so that it can be told later what parts were searched by.

    Attributes:
        template_sha256: of the template's file, hex; None without one.

    Args:
        config: the steps.
        frame_size: width and height of the frames in pixels where they are known; then what does not fit them is
            refused now, and not at the first part.

    Raises:
        ConfigError: the template can't be read, shows nothing or is larger than its search area; the region reaches
            beyond the frame, or a step beyond what the one before it gave.
    """

    def __init__(self, config: RoiConfig, *, frame_size: tuple[int, int] | None = None) -> None:
        self._config = config
        self._locator = None if config.locate is None else Locator(config.locate)
        self.template_sha256 = None if self._locator is None else self._locator.sha256
        self._plan: _Plan | None = None
        if config.locate is not None:
            path, digest = str(config.locate.template), self.template_sha256
            log_event(log, "region", template=path, template_sha256=digest, min_score=config.locate.min_score)
        if frame_size is not None:
            try:
                self._fit(*frame_size)
            except ImageError as error:
                raise ConfigError(error.message, hint=error.hint) from error

    def take(self, image: NDArray[np.uint8]) -> Region | NotFound:
        """Take the region out of one frame.

        Args:
            image: (H, W, 3) uint8 BGR, contiguous or not; never written to.

        Returns:
            The region; or why the part was not found, or was found where the region would not lie in the frame.

        Raises:
            ImageError: it is no such image, the region or the search area reaches beyond it, or it shows nothing in
                the region.
        """
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ImageError("image: expected (H, W, 3) uint8 BGR")
        plan = self._fit(image.shape[1], image.shape[0])
        found = None if self._locator is None else self._locator.find(image)
        if isinstance(found, NotFound):
            return found
        place = plan.place if found is None else plan.moved(found)
        if found is not None and not place.is_inside():
            reason = f"the part lies so that its region reaches beyond the picture: {found.described()}"
            return NotFound(reason=reason, score=found.score)
        region = _picture(image, place)
        plan.refuse_blank(region)
        return Region(image=plan.masked(region), map=place, located=found)

    def _fit(self, width: int, height: int) -> _Plan:
        plan = self._plan
        if plan is None or (plan.place.frame_width_px, plan.place.frame_height_px) != (width, height):
            if self._locator is not None:
                self._locator.refuse_small(width, height)
            plan = self._plan = _Plan(self._config, width, height)
        return plan


def configured_size(camera: CameraConfig) -> tuple[int, int] | None:
    """Width and height of a camera's frames, where its configuration says them."""
    size = getattr(camera, "width_px", 0), getattr(camera, "height_px", 0)
    return size if all(size) else None


class _Plan:
    """The steps, put together for frames of one size.

    Attributes:
        place: where the region lies when the part lies as it should.
    """

    def __init__(self, config: RoiConfig, width: int, height: int) -> None:
        steps, size = _put_together(config, width, height)
        self.place = RoiMap(
            to_frame=steps, width_px=size[0], height_px=size[1], frame_width_px=width, frame_height_px=height
        )
        if not self.place.is_inside():
            shown = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in self.place.outline())
            raise ImageError(
                f"roi: the region's corners {shown} reach beyond the frame of {width} x {height} px", hint=HINT
            )
        if min(size) < MIN_SIDE_PX:
            raise ImageError(f"roi: the region has {size[0]} x {size[1]} px, expected {MIN_SIDE_PX} or more each way")
        self._mask = config.mask
        self._kept = np.ones(size[::-1], np.uint8) if config.mask is None else _kept(config.mask, *size)
        seen = np.flatnonzero(self._kept)
        if not seen.size:
            raise ImageError("roi.mask: it leaves nothing to be seen", hint="roi.mask.keep says which side is seen")
        self._some = np.unravel_index(seen[:: max(seen.size // SAMPLES, 1)], self._kept.shape)

    def moved(self, found: Located) -> RoiMap:
        """Where the region lies when the part lies there."""
        return dataclasses.replace(self.place, to_frame=found.matrix @ self.place.to_frame)

    def masked(self, region: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Without what the model must not see; own memory where there is a mask."""
        if self._mask is None:
            return region
        covered = np.full_like(region, self._mask.grey, order="C")
        return np.asarray(cv2.copyTo(region, self._kept, covered))

    def refuse_blank(self, region: NDArray[np.uint8]) -> None:
        """What is seen must show something: a model answers whatever it is given."""
        some = region[self._some]
        if (some == some[0]).all() and (region[self._kept > 0] == some[0]).all():
            raise ImageError(f"roi: every pixel of the region has the same value {some[0].tolist()} (blue, green, red)")


def _put_together(config: RoiConfig, width: int, height: int) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """From places in the region to places in a frame whose part lies as it should, and the region's size."""
    steps, size = np.eye(3), (width, height)
    if (flat := config.perspective) is not None:
        size = flat.width_px, flat.height_px
        source = np.array(_corners(*size), dtype=np.float32)
        steps = cv2.getPerspectiveTransform(source, np.array(flat.corners, dtype=np.float32)).astype(np.float64)
    if turn := config.rotate_deg % 360:
        turned = (size[1], size[0]) if turn in (90, 270) else size
        to_middle, from_middle = shift_matrix(size[0] / 2, size[1] / 2), shift_matrix(-turned[0] / 2, -turned[1] / 2)
        steps, size = steps @ to_middle @ turn_matrix(-turn) @ from_middle, turned
    if config.crop is not None:
        x, y, *cut = config.crop
        if x + cut[0] > size[0] or y + cut[1] > size[1]:
            raise ImageError(
                f"roi.crop: got {list(config.crop)}, which reaches beyond the {size[0]} x {size[1]} px before it",
                hint=HINT,
            )
        steps, size = steps @ shift_matrix(x, y), (cut[0], cut[1])
    return steps, size


def _kept(mask: MaskConfig, width: int, height: int) -> NDArray[np.uint8]:
    """(height, width) uint8: 1 where the model sees; a polygon has the pixels that its edges run through."""
    inside = np.zeros((height, width), dtype=np.uint8)
    for number, polygon in enumerate(mask.polygons):
        right, bottom = (max(corner[axis] for corner in polygon) for axis in (0, 1))
        if right > width or bottom > height:
            raise ImageError(
                f"roi.mask.polygons[{number}]: reaches to {right:g}, {bottom:g} of a region of {width} x {height} px",
                hint="give it in pixels of the region, after crop",
            )
        cv2.fillPoly(inside, [_sixteenths(polygon)], 1, shift=4)  # one by one: together, overlaps would cancel out
    return inside if mask.keep else 1 - inside


def _picture(image: NDArray[np.uint8], place: RoiMap) -> NDArray[np.uint8]:
    """The region's pixels: copied as they are where none lies between others, else interpolated."""
    linear, at = place.to_frame[:2, :2], place.to_frame[:2, 2]
    quarters = next((n for n in range(4) if np.array_equal(linear, turn_matrix(-90.0 * n)[:2, :2])), None)
    is_rigid = np.array_equal(place.to_frame[2], (0, 0, 1)) and np.array_equal(at, np.round(at))
    if quarters is not None and is_rigid:
        x, y, width, height = (round(value) for value in place.box_to_frame((0, 0, place.width_px, place.height_px)))
        cut = image[y : y + height, x : x + width]
        return cut if quarters == 0 else np.ascontiguousarray(np.rot90(cut, -quarters))
    matrix, size = _by_middles(place.to_frame), (place.width_px, place.height_px)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    try:
        return np.asarray(cv2.warpPerspective(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))
    except cv2.error as error:
        raise ImageError(f"roi: {image.shape}: OpenCV can't warp it ({error})") from error


def _by_middles(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same mapping as OpenCV counts, whose pixels have their middle at whole numbers."""
    return shift_matrix(-0.5, -0.5) @ matrix @ shift_matrix(0.5, 0.5)


def _sixteenths(points: Any) -> NDArray[np.int32]:
    """Places as OpenCV draws them with `shift=4`."""
    return np.asarray(np.round((np.asarray(points, dtype=np.float64) - 0.5) * 16), dtype=np.int32)


def _corners(width: float, height: float) -> tuple[tuple[float, float], ...]:
    return (0, 0), (width, 0), (width, height), (0, height)


def _moved(matrix: NDArray[np.float64], x: float, y: float) -> tuple[float, float]:
    across, down, depth = matrix @ (x, y, 1.0)
    return float(across / depth), float(down / depth)


def _within(value: float, limit: int) -> float:
    return min(max(value, 0.0), float(limit))
