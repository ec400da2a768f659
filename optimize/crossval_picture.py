"""A cross-validation as a picture: one confusion over all folds, each fold's figures, and sure against right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

from optimize.crossval_report import CrossReport, Figure
from optimize.temperature import BINS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["draw_report"]

Colour: TypeAlias = tuple[int, int, int]  # BGR

HEIGHT, MATRIX_WIDTH, BARS_WIDTH, RELIABILITY_WIDTH = 600, 700, 480, 500
TOP, BOTTOM, RIGHT = 76, 64, 24
INK, GRID, WHITE = (60, 60, 60), (225, 225, 225), (255, 255, 255)
FIRST, SECOND, GAP = (190, 130, 60), (80, 160, 60), (70, 70, 215)
MAX_NAME = 15


def draw_report(report: CrossReport) -> bytes:
    """Draw what should be looked at before the numbers are believed.

    Returns:
        A PNG file.
    """
    canvas = np.hstack([_matrix(report), _bars(report), _reliability(report)])
    return bytes(cv2.imencode(".png", canvas)[1].tobytes())


def _matrix(report: CrossReport) -> NDArray[np.uint8]:
    """Rows are the truth, the rarest class first; columns what the folds said, in the same order."""
    canvas = np.full((HEIGHT, MATRIX_WIDTH, 3), 255, dtype=np.uint8)
    classes, found = report.found.classes, report.found
    order = [classes.index(entry.name) for entry in report.classes]
    counts = np.asarray(report.confusion)[np.ix_(order, order)]
    left, top, n = 190, TOP + 30, len(order)
    cell = min((MATRIX_WIDTH - left - RIGHT) // n, (HEIGHT - top - BOTTOM) // n)
    overall = report.figures["accuracy"].overall
    _text(canvas, f"{found.folds.count} folds: {overall:.2%} of {int(counts.sum())} right", (14, 28), size=0.55)
    _text(canvas, f"{report.groups} groups; rows: truth, rarest first; columns: what the folds said", (14, 50))
    for i, entry in enumerate(report.classes):
        y = top + i * cell
        recall = "-" if entry.recall is None else f"{entry.recall:.0%}"
        _text(canvas, f"{i + 1} {_short(entry.name)} {recall}", (8, y + cell // 2 + 4))
        _text(canvas, str(i + 1), (left + i * cell + cell // 2 - 4, top - 8))
        for j, count in enumerate(counts[i]):
            share = int(count) / max(int(counts[i].sum()), 1)
            _fill(canvas, (left + j * cell, y), cell, share, is_right=i == j)
            if count and cell >= 18:
                _text(canvas, str(count), (left + j * cell + cell // 2 - 4 * len(str(count)), y + cell // 2 + 4))
    return canvas


def _bars(report: CrossReport) -> NDArray[np.uint8]:
    """Accuracy and balanced recall of each fold, their means as lines; the axis begins where the bars differ."""
    canvas = np.full((HEIGHT, BARS_WIDTH, 3), 255, dtype=np.uint8)
    rows = [(fold.accuracy, fold.balanced_recall) for fold in report.folds]
    lowest = max(0.0, float(np.floor(10 * min(min(row) for row in rows) - 1)) / 10)
    left, width = 52, BARS_WIDTH - 52 - RIGHT

    def y_of(value: float) -> int:
        return HEIGHT - BOTTOM - round((value - lowest) / (1 - lowest) * (HEIGHT - TOP - BOTTOM))

    _text(canvas, "each fold", (left, 28), size=0.55)
    for i in range(6):
        value = lowest + (1 - lowest) * i / 5
        cv2.line(canvas, (left, y_of(value)), (BARS_WIDTH - RIGHT, y_of(value)), GRID, 1)
        _text(canvas, f"{value:.2f}", (left - 42, y_of(value) + 4))
    step = width / len(rows)
    for i, row in enumerate(rows):
        for j, (value, colour) in enumerate(zip(row, (FIRST, SECOND), strict=True)):
            x = round(left + step * (i + 0.15 + 0.35 * j))
            cv2.rectangle(canvas, (x, y_of(value)), (round(x + 0.33 * step), HEIGHT - BOTTOM), colour, cv2.FILLED)
        _text(canvas, str(i + 1), (round(left + step * (i + 0.47)), HEIGHT - BOTTOM + 18))
    for j, (name, colour) in enumerate((("accuracy", FIRST), ("balanced recall", SECOND))):
        figure = report.figures[name.replace(" ", "_")]
        cv2.line(canvas, (left, y_of(figure.mean)), (BARS_WIDTH - RIGHT, y_of(figure.mean)), colour, 1, cv2.LINE_AA)
        _text(canvas, f"{name} {_spread(figure)}", (left, HEIGHT - 28 + 18 * j), colour)
    return canvas


def _reliability(report: CrossReport) -> NDArray[np.uint8]:
    """How right the folds are where they are so sure; the gap to the diagonal is the error."""
    canvas = np.full((HEIGHT, RELIABILITY_WIDTH, 3), 255, dtype=np.uint8)
    found, left = report.calibration, 52
    side = min(RELIABILITY_WIDTH - left - RIGHT, HEIGHT - TOP - BOTTOM)

    def at(x: float, y: float) -> tuple[int, int]:
        return left + round(x * side), HEIGHT - BOTTOM - round(y * side)

    _text(canvas, "sure against right", (left, 28), size=0.55)
    _text(canvas, f"ECE {found.before:.3f} raw, {found.after:.3f} at temperature {found.temperature:g}", (left, 50))
    for i in range(6):
        cv2.line(canvas, at(0, i / 5), at(1, i / 5), GRID, 1)
        _text(canvas, f"{i / 5:.1f}", (left - 34, at(0, i / 5)[1] + 4))
        _text(canvas, f"{i / 5:.1f}", (at(i / 5, 0)[0] - 10, HEIGHT - BOTTOM + 18))
    _steps(canvas, found.bins, at)
    for count, confidence, right in zip(*found.bins_before, strict=True):
        if count:
            cv2.circle(canvas, at(confidence / count, right / count), 4, GAP, 1, cv2.LINE_AA)
    cv2.line(canvas, at(0, 0), at(1, 1), INK, 1, cv2.LINE_AA)
    _text(canvas, "probability of the class that was named", (left, HEIGHT - 28))
    _text(canvas, "bars: share right (images in the bin)", (left, HEIGHT - 10), FIRST)
    _text(canvas, "rings: raw", (left + 290, HEIGHT - 10), GAP)
    return canvas


def _steps(canvas: NDArray[np.uint8], bins: NDArray[np.float64], at: Any) -> None:
    for i, (count, _, right) in enumerate(zip(*bins, strict=True)):
        if not count:
            continue
        low, high = at(i / BINS, right / count), at((i + 1) / BINS, 0)
        cv2.rectangle(canvas, (low[0] + 1, low[1]), (high[0] - 1, high[1]), (225, 195, 150), cv2.FILLED)
        cv2.line(canvas, low, (high[0] - 1, low[1]), FIRST, 2)
        _text(canvas, f"{int(count)}", (low[0] + 2, max(low[1] - 6, TOP - 12)), size=0.33)


def _fill(canvas: NDArray[np.uint8], corner: tuple[int, int], cell: int, share: float, *, is_right: bool) -> None:
    """White to green on the diagonal, white to red off it; a little red is seen, as mistakes are few."""
    strength = round(150 * share) if is_right else round(150 * min(1.0, 3 * share))
    colour = (255 - strength, 255 - strength // 3 if is_right else 255 - strength, 255 - strength if is_right else 255)
    x, y = corner
    cv2.rectangle(canvas, (x, y), (x + cell - 2, y + cell - 2), colour, cv2.FILLED)
    cv2.rectangle(canvas, (x, y), (x + cell - 2, y + cell - 2), GRID, 1)


def _spread(figure: Figure) -> str:
    return f"{figure.mean:.2%}" + ("" if figure.spread is None else f" +- {100 * figure.spread:.2f}")


def _short(name: str) -> str:
    """OpenCV's fonts know ASCII only."""
    plain = name.encode("ascii", "replace").decode()
    return plain if len(plain) <= MAX_NAME else plain[: MAX_NAME - 1] + "."


def _text(canvas: Any, text: str, at: tuple[int, int], colour: Colour = INK, *, size: float = 0.42) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
