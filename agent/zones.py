"""Zones of the picture with limits of their own: where a box lies, told by areas.

A zone is a polygon in pixels of the frame; a rectangle is one too. A finding belongs to every zone that it has an area
in common with, and to the picture around them unless one zone holds all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

from agent.bundle.manifest import PolicySpec
from agent.bundle.preprocess import Box

__all__ = ["Zone", "is_simple"]

Point: TypeAlias = tuple[float, float]

SLACK = 1e-6
"""Share of a box that may lie outside of a zone that holds it whole: sums of floats."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One zone.

    Attributes:
        name: how verdicts call it.
        points: its corners in order, x and y in pixels of the frame; it does not cross itself.
        limits: what decides in it.
        min_size_mm: smaller findings in it are no defects; None leaves that to their class.
        is_ignored: findings that lie in it entirely are no defects.
    """

    name: str
    points: tuple[Point, ...]
    limits: PolicySpec
    min_size_mm: float | None = None
    is_ignored: bool = False

    def overlap(self, box: Box) -> Literal["none", "some", "all"]:
        """How much of a box lies in the zone.

        Args:
            box: x, y, width, height in pixels of the frame. One thinner than a pixel is taken for a pixel, so that it
                lies somewhere.
        """
        x, y, width, height = box[0], box[1], max(box[2], 1.0), max(box[3], 1.0)
        corners = list(self.points)
        # Sutherland and Hodgman (CACM 1974): cut the polygon at each side of the box; the edges that a hollow polygon
        # leaves along the sides enclose nothing.
        for axis, limit, sign in ((0, x, 1), (0, x + width, -1), (1, y, 1), (1, y + height, -1)):
            corners = _cut(corners, axis, limit, sign)
            if not corners:
                return "none"
        share = abs(_area(corners)) / (width * height)
        return "all" if share >= 1 - SLACK else "some" if share > SLACK else "none"


def is_simple(points: Sequence[Point]) -> bool:
    """Whether a polygon encloses an area and no two of its edges meet, other than neighbours in their corner."""
    edges = list(zip(points, [*points[1:], points[0]], strict=True))
    if abs(_area(points)) == 0:
        return False
    last = len(edges) - 1
    return not any(
        _cross(*edges[i], *edges[j]) for i in range(len(edges)) for j in range(i + 2, len(edges)) if (i, j) != (0, last)
    )


def _cut(corners: Sequence[Point], axis: int, limit: float, sign: int) -> list[Point]:
    """The part of a polygon on one side of a line across an axis: `sign` 1 keeps what is above the limit."""
    kept: list[Point] = []
    for start, end in zip([corners[-1], *corners[:-1]], corners, strict=True):
        start_in, end_in = ((point[axis] - limit) * sign >= 0 for point in (start, end))
        if start_in != end_in:
            share = (limit - start[axis]) / (end[axis] - start[axis])
            other = start[1 - axis] + share * (end[1 - axis] - start[1 - axis])
            kept.append((limit, other) if axis == 0 else (other, limit))
        if end_in:
            kept.append(end)
    return kept


def _area(points: Sequence[Point]) -> float:
    """Signed, by the shoelace formula."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], points[0]], strict=True)) / 2


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether two edges meet, touching included."""
    sides = _side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)
    if sides[0] * sides[1] < 0 and sides[2] * sides[3] < 0:
        return True
    ends = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
    return any(side == 0 and _between(*end) for side, end in zip(sides, ends, strict=True))


def _side(a: Point, b: Point, point: Point) -> float:
    return (b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0])


def _between(a: Point, b: Point, point: Point) -> bool:
    """Whether a point on an edge's line lies on the edge."""
    return all(min(a[k], b[k]) <= point[k] <= max(a[k], b[k]) for k in (0, 1))
