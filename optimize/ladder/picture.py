"""A ladder as a picture: loss over latency, the Pareto front as a line, limits dashed, the chosen rung ringed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np

from optimize.ladder.assess import Ladder
from optimize.ladder.rung import Rung

__all__ = ["draw_ladder"]

Colour: TypeAlias = tuple[int, int, int]  # BGR
Place: TypeAlias = Callable[[float, float], tuple[int, int]]

WIDTH, HEIGHT = 1100, 640
LEFT, TOP, RIGHT, BOTTOM = 78, 84, 40, 108
INK: Colour = (60, 60, 60)
GRID: Colour = (228, 228, 228)
FAINT: Colour = (140, 140, 140)
FRONT: Colour = (190, 120, 40)
CHOSEN: Colour = (60, 140, 30)
REFUSED: Colour = (60, 60, 210)
INT8: Colour = (160, 60, 150)
WRAP = 150
FEWEST_TICKS = 3


def draw_ladder(ladder: Ladder) -> bytes:
    """Draw the rungs that have a latency.

    Returns:
        A PNG file.
    """
    canvas = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    rungs = [rung for rung in ladder.rungs if rung.latency is not None]
    x_ends, y_ends = _x_ends(rungs, ladder), _y_ends(rungs, ladder)

    def at(ms: float, points: float) -> tuple[int, int]:
        share = (math.log(ms) - math.log(x_ends[0])) / (math.log(x_ends[1]) - math.log(x_ends[0]))
        height = (points - y_ends[0]) / (y_ends[1] - y_ends[0])
        inside_x, inside_y = min(max(share, 0.0), 1.0), min(max(height, 0.0), 1.0)
        return LEFT + round(inside_x * (WIDTH - LEFT - RIGHT)), TOP + round(inside_y * (HEIGHT - TOP - BOTTOM))

    _text(canvas, f"points of {ladder.measure} lost against {ladder.rungs[0].name}, over one inference", (14, 28), 0.6)
    _text(canvas, _subtitle(ladder), (14, 52), 0.42, FAINT)
    _axes(canvas, x_ends, y_ends, at)
    _limits(canvas, ladder, x_ends, y_ends, at)
    front = [next(r for r in rungs if r.name == name) for name in ladder.front]
    points = [at(_ms(rung), rung.drop_points) for rung in front]
    if len(points) > 1:
        cv2.polylines(canvas, [np.array(points, dtype=np.int32)], False, FRONT, 1, cv2.LINE_AA)
    for rung in rungs:
        _point(canvas, rung, at, is_chosen=rung.name == ladder.choice.name)
    _names(canvas, rungs, at)
    for i, line in enumerate(textwrap.wrap(_ascii(ladder.choice.reason), WRAP)[:3]):
        _text(canvas, line, (14, HEIGHT - 44 + 17 * i), 0.42)
    return bytes(cv2.imencode(".png", canvas)[1].tobytes())


def _ms(rung: Rung) -> float:
    assert rung.latency is not None
    return rung.latency.p50_ms


def _subtitle(ladder: Ladder) -> str:
    split = f"{ladder.split}, " if ladder.split else ""
    legend = "squares: INT8; crosses: lost a class; dashed: limits; ring: taken"
    return f"{split}{ladder.rungs[0].n} images; median on {ladder.timed_on}; {legend}"


def _x_ends(rungs: Sequence[Rung], ladder: Ladder) -> tuple[float, float]:
    limit = ladder.budget.max_latency_ms
    values = [_ms(rung) for rung in rungs] + ([limit] if limit is not None else [])
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.08, 1.15)
    return low / margin, high * margin * 1.1


def _y_ends(rungs: Sequence[Rung], ladder: Ladder) -> tuple[float, float]:
    limit = ladder.budget.max_drop
    values = [0.0, *(rung.drop_points for rung in rungs), *([limit] if limit is not None else [])]
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), 0.1)
    return low - margin, high + margin


def _axes(canvas: Any, x_ends: tuple[float, float], y_ends: tuple[float, float], at: Place) -> None:
    for ms in _ticks(*x_ends):
        column = at(ms, 0)[0]
        cv2.line(canvas, (column, TOP), (column, HEIGHT - BOTTOM), GRID, 1)
        _text(canvas, f"{ms:g}", (column - 10, HEIGHT - BOTTOM + 18), 0.42)
    for points in _even_ticks(*y_ends):
        row = at(x_ends[0], points)[1]
        cv2.line(canvas, (LEFT, row), (WIDTH - RIGHT, row), GRID, 1)
        _text(canvas, f"{points:+.3g}" if points else "0", (14, row + 4), 0.42)
    zero = at(x_ends[0], 0)[1]
    cv2.line(canvas, (LEFT, zero), (WIDTH - RIGHT, zero), FAINT, 1)
    _text(canvas, "ms", (WIDTH - RIGHT - 4, HEIGHT - BOTTOM + 18), 0.42)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; where the axis is too short to hold three of them, even ones."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
    inside = [value for value in values if low <= value <= high]
    return inside if len(inside) >= FEWEST_TICKS else _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about six of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / 6))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= (high - low) / 6)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _limits(canvas: Any, ladder: Ladder, x_ends: tuple[float, float], y_ends: tuple[float, float], at: Place) -> None:
    if ladder.budget.max_latency_ms is not None:
        column = at(ladder.budget.max_latency_ms, 0)[0]
        _dashed(canvas, (column, TOP), (column, HEIGHT - BOTTOM))
    if ladder.budget.max_drop is not None:
        row = at(x_ends[0], min(ladder.budget.max_drop, y_ends[1]))[1]
        _dashed(canvas, (LEFT, row), (WIDTH - RIGHT, row))


def _dashed(canvas: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    length = math.hypot(end[0] - start[0], end[1] - start[1])
    for done in range(0, int(length), 10):
        ends = [
            tuple(round(s + (e - s) * min(part, length) / length) for s, e in zip(start, end, strict=True))
            for part in (done, done + 5)
        ]
        cv2.line(canvas, ends[0], ends[1], CHOSEN, 1)


def _point(canvas: Any, rung: Rung, at: Place, *, is_chosen: bool) -> None:
    x, y = at(_ms(rung), rung.drop_points)
    if rung.lost:
        cv2.drawMarker(canvas, (x, y), REFUSED, cv2.MARKER_TILTED_CROSS, 14, 2, cv2.LINE_AA)
    elif rung.graph == "cpu":
        cv2.rectangle(canvas, (x - 5, y - 5), (x + 5, y + 5), INT8, cv2.FILLED)
    else:
        cv2.circle(canvas, (x, y), 6, FRONT, cv2.FILLED, cv2.LINE_AA)
    if is_chosen:
        cv2.circle(canvas, (x, y), 13, CHOSEN, 2, cv2.LINE_AA)


def _names(canvas: Any, rungs: Sequence[Rung], at: Place) -> None:
    """Beside the points; one that would cover another, or a point, is moved down and tied to its own by a line."""
    points = {rung.name: at(_ms(rung), rung.drop_points) for rung in rungs}
    taken = [(y + 4, x - 8, x + 8) for x, y in points.values()]
    for name, (x, y) in sorted(points.items(), key=lambda item: (item[1][1], -item[1][0])):
        shown = _ascii(name)
        (width, _), _ = cv2.getTextSize(shown, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
        left = x + 16 if x + 16 + width < WIDTH - 4 else x - 16 - width
        row = y + 4
        while any(abs(row - r) < 14 and left < end and start < left + width for r, start, end in taken):
            row += 14
        taken.append((row, left, left + width))
        if row > y + 4:
            cv2.line(canvas, (x, y + 7), (left - 3, row - 4), FAINT, 1, cv2.LINE_AA)
        _text(canvas, shown, (left, row), 0.42)


def _ascii(text: str) -> str:
    """OpenCV's fonts know ASCII only."""
    return text.encode("ascii", "replace").decode()


def _text(canvas: Any, text: str, at: tuple[int, int], size: float, colour: Colour = INK) -> None:
    cv2.putText(canvas, _ascii(text), at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
