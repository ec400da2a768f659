"""Large pictures in parts: where the tiles lie, and one list of findings from what was seen in each.

A defect on a seam is seen by several tiles. Boxes that a tile's edge does not cut are told apart as in one picture, by
non-maximum suppression. A cut box shows a part of its defect only; what another tile saw of the same pixels must show
the same part. So both boxes are compared within the region that both tiles saw, and where they agree there they are
one defect: its box is what holds both, its score the higher one. That way a fuller box takes the place of a cut one,
and two halves of a defect larger than the overlap are joined. The whole picture is seen so coarsely that its small
boxes give way to the tiles'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from agent.bundle.boxes import MAX_CANDIDATES, Detections, areas, box_iou, suppress
from agent.bundle.detection import DetectionSpec, Tiling
from agent.bundle.preprocess import Placement
from agent.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Seen", "Tile", "merge_tiles", "seen_in_tile", "tiles_of"]

Floats: TypeAlias = "NDArray[np.float64]"

MAX_TILES = 400
"""More would hold the line up for longer than any part may take; the tile is too small for the camera then."""

BLURRED_PX = 16
"""A box of the whole picture whose shorter side is less, in pixels of the input, gives way to a tile's if there is one:
one pixel more or less changes it too much to tell by overlap that both are the same."""

EDGE_SHARE = 0.02
"""A box that ends within this share of a tile's side of its edge is cut by it: detectors are not exact to the pixel."""

THINNEST_PX = 1e-3
"""Side that a box has at least before it is cut off at the edges."""

SAME_IOU = 0.5
"""From here on two boxes agree within the region that both tiles saw."""

SAME_SHARE = 0.7
"""As `SAME_IOU`, as share of the smaller box: a sliver at the edge is drawn too thick or too thin, but in place."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A part of the picture, in its pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1."""
        return self.x, self.y, self.x + self.width, self.y + self.height


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """Detections in pixels of the picture.

    Attributes:
        boxes: (n, 4) float64, x0, y0, x1, y1.
        scores: (n,) float32.
        classes: (n,) int64.
        cut_at: as of `Detections`.
    """

    boxes: Floats
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    cut_at: float = 0.0

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Seen:
        """Some of them."""
        return dataclasses.replace(self, boxes=self.boxes[rows], scores=self.scores[rows], classes=self.classes[rows])


def tiles_of(width: int, height: int, tiling: Tiling | None) -> tuple[Tile, ...]:
    """Where to look: the whole picture where it is no larger than a tile, else the tiles, and the whole if wanted.

    Tiles have one size and lie evenly, so that neighbours have at least `tiling.overlap` in common.

    Args:
        width: of the picture in pixels.
        height: of the picture in pixels.
        tiling: None looks at the whole.

    Raises:
        ImageError: the picture would need more than `MAX_TILES`.
    """
    whole = Tile(x=0, y=0, width=width, height=height)
    if tiling is None or max(width, height) <= tiling.tile_px:
        return (whole,)
    columns, rows = (_starts(side, tiling) for side in (width, height))
    if len(columns) * len(rows) > MAX_TILES:
        raise ImageError(
            f"a picture of {width} x {height} px has {len(columns) * len(rows)} tiles of {tiling.tile_px} px, "
            f"expected at most {MAX_TILES}",
            hint="rebuild the bundle with a larger tile_px, or let the camera give smaller pictures",
        )
    size = {"width": min(tiling.tile_px, width), "height": min(tiling.tile_px, height)}
    tiles = tuple(Tile(x=x, y=y, **size) for y in rows for x in columns)
    return (*tiles, whole) if tiling.with_whole else tiles


def _starts(side: int, tiling: Tiling) -> list[int]:
    room = side - tiling.tile_px
    if room <= 0:
        return [0]
    gaps = math.ceil(room / max(math.floor(tiling.tile_px * (1 - tiling.overlap)), 1))
    return [round(i * room / gaps) for i in range(gaps + 1)]


def seen_in_tile(found: Detections, placement: Placement, tile: Tile) -> Seen:
    """Detections in pixels of the picture, cut off at the tile's edges; those that lie outside of it are left out.

    Args:
        found: in pixels of the graph's input.
        placement: where the tile lies in the input.
        tile: where it lies in the picture.
    """
    corners, inside = [], []
    for row, (x0, y0, x1, y1) in enumerate(found.boxes.tolist()):
        # A box without width or height still lies somewhere; only what lies in the padding has none after this.
        x, y, width, height = placement.to_image((x0, y0, max(x1 - x0, THINNEST_PX), max(y1 - y0, THINNEST_PX)))
        if x + width > x and y + height > y:
            corners.append((x + tile.x, y + tile.y, x + width + tile.x, y + height + tile.y))
            inside.append(row)
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    scores, classes = found.scores, found.classes
    if len(inside) < len(found):
        scores, classes = scores[inside], classes[inside]
    return Seen(boxes=boxes, scores=scores, classes=classes, cut_at=found.cut_at)


def merge_tiles(
    seen: Sequence[tuple[Tile, Seen]], width: int, height: int, spec: DetectionSpec, *, input_px: int
) -> Seen:
    """One list of what was seen in all tiles, best first, each defect once.

    Args:
        seen: per tile its detections, in pixels of the picture.
        width: of the picture.
        height: of the picture.
        spec: gives `nms_iou` and `max_findings`.
        input_px: the shorter side of the graph's input, in its pixels: tells how coarsely the whole was looked at.
    """
    everything = _joined([found for _, found in seen])
    tiles = np.array([tile.corners for tile, _ in seen], dtype=np.float64)
    origin = np.repeat(np.arange(len(seen)), [len(found) for _, found in seen])
    n_seen = len(everything)
    best = np.argsort(-everything.scores, kind="stable")[:MAX_CANDIDATES]
    everything, origin = everything.only(best), origin[best]
    if len(everything) > 1 and len(seen) > 1:
        frame = np.array([0, 0, width, height], dtype=np.float64)
        is_whole = np.all(tiles[origin] == frame, axis=1)
        blurred = is_whole & (_shorter_sides(everything.boxes) < BLURRED_PX * max(width, height) / input_px)
        everything, rows = _sharpened(everything, blurred, is_whole)
        everything = _mended(everything, tiles[origin[rows]], origin[rows], frame)
    kept = suppress(everything.boxes, everything.scores, everything.classes, spec.nms_iou, limit=spec.max_findings)
    left_out = [found.cut_at for _, found in seen]
    if n_seen > MAX_CANDIDATES:
        left_out.append(float(everything.scores.min()))
    if len(kept) == spec.max_findings < len(everything):
        left_out.append(float(everything.scores[kept[-1]]))
    return dataclasses.replace(everything.only(kept), cut_at=max(left_out))


def _joined(parts: Sequence[Seen]) -> Seen:
    return Seen(
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        classes=np.concatenate([part.classes for part in parts]),
    )


def _sharpened(found: Seen, blurred: NDArray[np.bool_], is_whole: NDArray[np.bool_]) -> tuple[Seen, NDArray[np.int64]]:
    """Small boxes of the whole picture give way to the best of the tiles', and leave it their score if it is higher."""
    scores, alive = found.scores.copy(), np.ones(len(found), dtype=bool)
    for row in np.flatnonzero(blurred).tolist():
        shared = _shared(found.boxes[row][None], found.boxes)
        least = np.minimum(areas(found.boxes[row][None]), areas(found.boxes))
        fits = (shared >= SAME_SHARE * least) & (shared > 0) & (found.classes == found.classes[row]) & ~is_whole
        if fits.any():
            heir = int(np.argmax(np.where(fits, box_iou(found.boxes[row][None], found.boxes)[0], -1)))
            scores[heir] = max(scores[heir], scores[row])
            alive[row] = False
    rows = np.flatnonzero(alive)
    return Seen(boxes=found.boxes, scores=scores, classes=found.classes).only(rows), rows


def _mended(found: Seen, tiles: Floats, origin: NDArray[np.int64], frame: Floats) -> Seen:
    """Cut boxes joined to what other tiles saw of the same defect."""
    cut = _is_cut(found.boxes, tiles, frame)
    # Pairs are compared as they were seen; groups grow by their links, so that a scratch through five tiles is one.
    group = np.arange(len(found))
    for row in np.flatnonzero(cut).tolist():
        same = _same(found, tiles, row) & (origin != origin[row])
        for other in np.flatnonzero(same).tolist():
            group[group == group[other]] = group[row]
    members = [np.flatnonzero(group == label) for label in np.unique(group)]
    boxes = [np.concatenate([found.boxes[rows, :2].min(axis=0), found.boxes[rows, 2:].max(axis=0)]) for rows in members]
    return Seen(
        boxes=np.array(boxes),
        scores=np.array([found.scores[rows].max() for rows in members], dtype=np.float32),
        classes=np.array([found.classes[rows[0]] for rows in members], dtype=np.int64),
    )


def _is_cut(boxes: Floats, tiles: Floats, frame: Floats) -> NDArray[np.bool_]:
    """(n,): whether a box ends at an edge of its tile that is none of the picture's."""
    near = (tiles[:, 2:] - tiles[:, :2]) * EDGE_SHARE
    low = (boxes[:, :2] <= tiles[:, :2] + near) & (tiles[:, :2] > frame[:2])
    high = (boxes[:, 2:] >= tiles[:, 2:] - near) & (tiles[:, 2:] < frame[2:])
    result: NDArray[np.bool_] = np.any(low | high, axis=1)
    return result


def _same(found: Seen, tiles: Floats, row: int) -> NDArray[np.bool_]:
    """(n,): of the same class, and within what both tiles saw the same place."""
    common = np.concatenate(
        [np.maximum(tiles[row, :2], tiles[:, :2]), np.minimum(tiles[row, 2:], tiles[:, 2:])], axis=1
    )
    ours, theirs = _within(found.boxes[row][None], common), _within(found.boxes, common)
    shared, left, right = _shared(ours, theirs), areas(ours), areas(theirs)
    agree = (shared >= SAME_IOU * (left + right - shared)) | (shared >= SAME_SHARE * np.minimum(left, right))
    result: NDArray[np.bool_] = agree & (shared > 0) & (found.classes == found.classes[row])
    return result


def _within(boxes: Floats, region: Floats) -> Floats:
    """Boxes cut off at regions, (n, 4); empty ones have no positive side."""
    return np.concatenate([np.maximum(boxes[:, :2], region[:, :2]), np.minimum(boxes[:, 2:], region[:, 2:])], axis=1)


def _shared(left: Floats, right: Floats) -> Floats:
    """Area that the boxes of each row have in common, (n,)."""
    return areas(_within(left, right))


def _shorter_sides(boxes: Floats) -> Floats:
    result: Floats = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    return result
