"""A comparison as a picture: what each limit would cost, where the models stand, and the misses as a table."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

from optimize.compare.comparison import Comparison, ModelResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["draw_comparison", "rate_name"]

Colour: TypeAlias = tuple[int, int, int]  # BGR
Place: TypeAlias = Callable[[float, float], tuple[int, int]]

HEIGHT, CURVES_WIDTH, TABLE_WIDTH = 600, 640, 800
LEFT, TOP, RIGHT, BOTTOM = 62, 76, 24, 64
INK: Colour = (60, 60, 60)
GRID: Colour = (225, 225, 225)
FAINT: Colour = (150, 150, 150)
COLOURS: Sequence[Colour] = ((190, 120, 40), (60, 60, 210), (60, 140, 30), (160, 60, 150), (30, 140, 220), (90, 90, 90))
MAX_NAME = 22
COLUMNS_PX = (28, 226, 302, 374, 464, 556, 622, 690)
WRAP = 125


def draw_comparison(comparison: Comparison) -> bytes:
    """Draw the curves with the operating points, and the table with the recommendation.

    Returns:
        A PNG file.
    """
    canvas = np.hstack([_curves(comparison), _table(comparison)])
    return bytes(cv2.imencode(".png", canvas)[1].tobytes())


def rate_name(comparison: Comparison) -> str:
    """What the horizontal axis is called."""
    return "false boxes per picture" if comparison.unit == "box" else "overkill: share of good parts that are rejected"


def _curves(comparison: Comparison) -> NDArray[np.uint8]:
    """Missed share over overkill: lower and further left is better; bars are 95 % intervals by group."""
    canvas = np.full((HEIGHT, CURVES_WIDTH, 3), 255, dtype=np.uint8)
    right, top = _ranges(comparison)
    has_curves = bool(comparison.exposures)

    def at(x: float, y: float) -> tuple[int, int]:
        width, height = CURVES_WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + round(min(x / right, 1.0) * width), HEIGHT - BOTTOM - round(min(y / top, 1.0) * height)

    _text(canvas, f"missed share of {comparison.n} {comparison.noun}", (14, 28), size=0.55)
    _text(canvas, _subtitle(comparison), (14, 50))
    _axes(canvas, comparison, (right, top), at)
    if comparison.rate is not None:
        _dashed(canvas, at(comparison.rate, 0), at(comparison.rate, top))
    coloured = [(model, COLOURS[i % len(COLOURS)]) for i, model in enumerate(comparison.models)]
    for model, colour in coloured if has_curves else ():
        _steps(canvas, model, right, at, colour)
    for i, (model, colour) in enumerate(coloured):
        column, aside = at(_rate_of(model) if has_curves else i + 1, 0)[0], 6 * i - 3 * (len(coloured) - 1)
        _point(canvas, model, at, colour, (column, column + aside))
    return canvas


def _ranges(comparison: Comparison) -> tuple[float, float]:
    """How far the axes go: around where the models stand, not to where all is stopped."""
    models = comparison.models
    highest = max(model.escape_95[1] for model in models)
    if not comparison.exposures:
        return len(models) + 1.0, min(1.0, _round_up(max(1.1 * highest, 0.02)))
    rates = [_rate_of(model) for model in models]
    right = _round_up(3 * max(comparison.rate or 0.0, *rates, 1 / comparison.exposures))
    begin = max(float(model.curve.missed[model.curve.rates <= right][0]) for model in models)
    top = min(1.0, _round_up(max(1.1 * highest, min(begin, 3 * highest), 0.02)))
    return (min(right, 1.0) if comparison.unit == "part" else right), top


def _round_up(value: float) -> float:
    """To five steps of 1, 2 or 5 times a power of ten, so that the axis can be read."""
    power = 10.0 ** math.floor(math.log10(value / 5))
    return next(5 * step * power for step in (1, 2, 5, 10) if 5 * step * power >= value - 1e-12)


def _rate_of(model: ModelResult) -> float:
    rate = model.false_boxes_per_image if model.overkill_rate is None else model.overkill_rate
    return 0.0 if rate is None else rate


def _subtitle(comparison: Comparison) -> str:
    allowance = comparison.allowance
    if allowance is None:
        return "each at its own limit; bars: 95 % by group"
    what = "shows" if comparison.unit == "box" else "rejects"
    return f"rings: each {what} {_ascii(allowance)}; bars: 95 % by group"


def _axes(canvas: NDArray[np.uint8], comparison: Comparison, ends: tuple[float, float], at: Place) -> None:
    right, top = ends
    for i in range(6):
        y = at(0, top * i / 5)[1]
        cv2.line(canvas, (LEFT, y), (CURVES_WIDTH - RIGHT, y), GRID, 1)
        _text(canvas, f"{top * i / 5:.1%}", (8, y + 4))
        if comparison.exposures:
            value = right * i / 5
            label = f"{value:.2f}" if comparison.unit == "box" else f"{value:.1%}"
            _text(canvas, label, (at(value, 0)[0] - 18, HEIGHT - BOTTOM + 18))
    if comparison.exposures:
        _text(canvas, rate_name(comparison), (LEFT, HEIGHT - 22))


def _steps(canvas: NDArray[np.uint8], model: ModelResult, right: float, at: Place, colour: Colour) -> None:
    """Between two limits nothing changes: a staircase."""
    corners: list[tuple[int, int]] = []
    for rate, missed in zip(model.curve.rates.tolist(), model.curve.missed.tolist(), strict=True):
        if rate > right:
            break
        if corners:
            corners.append((at(rate, 0)[0], corners[-1][1]))
        corners.append(at(rate, missed))
    corners.append((at(right, 0)[0], corners[-1][1]))
    cv2.polylines(canvas, [np.array(corners, dtype=np.int32)], False, colour, 2, cv2.LINE_AA)


def _point(canvas: NDArray[np.uint8], model: ModelResult, at: Place, colour: Colour, columns: tuple[int, int]) -> None:
    """A ring where the model stands, and its interval a little aside, as the others stand at the same overkill."""
    ring, bar = columns
    low, high = (at(0, end)[1] for end in model.escape_95)
    cv2.line(canvas, (bar, low), (bar, high), colour, 1, cv2.LINE_AA)
    for row in (low, high):
        cv2.line(canvas, (bar - 4, row), (bar + 4, row), colour, 1)
    row = at(0, model.escape_rate)[1]
    cv2.circle(canvas, (ring, row), 6, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
    cv2.circle(canvas, (ring, row), 6, colour, 2, cv2.LINE_AA)


def _dashed(canvas: NDArray[np.uint8], low: tuple[int, int], high: tuple[int, int]) -> None:
    for y in range(high[1], low[1], 8):
        cv2.line(canvas, (low[0], y), (low[0], min(y + 4, low[1])), FAINT, 1)


def _table(comparison: Comparison) -> NDArray[np.uint8]:
    """One row per model, the recommended one in bold; the sentence and the notes below."""
    canvas = np.full((HEIGHT, TABLE_WIDTH, 3), 255, dtype=np.uint8)
    _text(canvas, f"recommended: {_ascii(comparison.choice.name)}", (14, 28), size=0.55)
    rate = "false/pict." if comparison.unit == "box" else "overkill"
    titles = ("model", "missed", "escapes", "95 % under", rate, "limit", "mAP50", "ms")
    for title, x in zip(titles, COLUMNS_PX, strict=True):
        _text(canvas, title, (x, TOP), FAINT)
    y = TOP + 26
    for i, model in enumerate(comparison.models):
        cv2.rectangle(canvas, (12, y - 9), (22, y + 1), COLOURS[i % len(COLOURS)], cv2.FILLED)
        is_bold = model.name == comparison.choice.name
        for cell, x in zip(_cells(model), COLUMNS_PX, strict=True):
            _text(canvas, cell, (x, y), weight=2 if is_bold else 1)
        y += 24
    y += 16
    for paragraph in (comparison.choice.reason, *(f"note: {note}" for note in comparison.notes)):
        for line in textwrap.wrap(_ascii(paragraph), WRAP):
            _text(canvas, line, (14, y))
            y += 19
        y += 7
    return canvas


def _cells(model: ModelResult) -> tuple[str, ...]:
    rate = "-"
    if model.overkill_rate is not None:
        rate = f"{model.overkill_rate:.2%}"
    elif model.false_boxes_per_image is not None:
        rate = f"{model.false_boxes_per_image:.2f}"
    return (
        _short(model.name),
        f"{model.missed} of {model.n}",
        f"{model.escape_rate:.2%}",
        f"{model.escape_upper_95:.2%}",
        rate,
        f"{model.limit:.3f}",
        "-" if model.map50 is None else f"{model.map50:.3f}",
        "-" if model.latency is None else f"{model.latency.median:.1f}",
    )


def _ascii(text: str) -> str:
    """OpenCV's fonts know ASCII only."""
    return text.encode("ascii", "replace").decode()


def _short(name: str) -> str:
    plain = _ascii(name)
    return plain if len(plain) <= MAX_NAME else plain[: MAX_NAME - 1] + "."


def _text(
    canvas: Any, text: str, at: tuple[int, int], colour: Colour = INK, *, size: float = 0.42, weight: int = 1
) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, weight, cv2.LINE_AA)
