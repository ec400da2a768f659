"""How a training went, as a picture: people would rather look than read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from optimize.train import TrainResult

__all__ = ["RECALL", "TRAIN_LOSS", "VAL_LOSS", "Curve", "draw_curves", "draw_training"]

Colour: TypeAlias = tuple[int, int, int]  # BGR

HEIGHT, CURVES_WIDTH, MATRIX_WIDTH = 560, 640, 600
LEFT, TOP, RIGHT, BOTTOM = 60, 60, 20, 60
INK: Colour = (60, 60, 60)
GRID: Colour = (225, 225, 225)
RECALL: Colour = (60, 140, 30)
TRAIN_LOSS: Colour = (190, 120, 40)
VAL_LOSS: Colour = (40, 60, 200)
MAX_NAME = 14


def draw_training(result: TrainResult) -> bytes:
    """Draw losses and recall over the epochs, and the confusion on `val` beside them.

    Returns:
        A PNG file.
    """
    canvas = np.hstack([_curves(result), _matrix(result)])
    return bytes(cv2.imencode(".png", canvas)[1].tobytes())


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """One figure over the epochs.

    Attributes:
        name: in words.
        values: one per epoch, 0 to 1.
        colour: BGR.
    """

    name: str
    values: Sequence[float]
    colour: Colour


def draw_curves(title: str, best_epoch: int, curves: Sequence[Curve], *, top: float) -> NDArray[np.uint8]:
    """Draw figures over the epochs, the best one marked.

    Args:
        title: in words.
        best_epoch: from 1.
        curves: at least one, at most three.
        top: what 1 stands for on the second scale, that of losses.

    Returns:
        (HEIGHT, CURVES_WIDTH, 3) uint8 BGR.
    """
    canvas = np.full((HEIGHT, CURVES_WIDTH, 3), 255, dtype=np.uint8)
    _text(canvas, title, (LEFT, 28), size=0.55)
    for i in range(6):
        y = _y(i / 5)
        cv2.line(canvas, (LEFT, y), (CURVES_WIDTH - RIGHT, y), GRID, 1)
        _text(canvas, f"{i / 5:.1f}", (LEFT - 38, y + 4), RECALL)
        _text(canvas, f"{top * i / 5:.2f}", (LEFT + 6, y - 4), TRAIN_LOSS)
    best = _x(best_epoch - 1, len(curves[0].values))
    cv2.line(canvas, (best, TOP), (best, HEIGHT - BOTTOM), (170, 170, 170), 1)
    for i, curve in enumerate(curves):
        _line(canvas, curve.values, curve.colour)
        _text(canvas, curve.name, (LEFT + 195 * i, HEIGHT - 20), curve.colour)
    return canvas


def _curves(result: TrainResult) -> NDArray[np.uint8]:
    history = result.history
    top = max(max(record.train_loss, record.val_loss) for record in history)
    curves = (
        Curve("balanced recall on val", [record.val_balanced_recall for record in history], RECALL),
        Curve("loss on val", [record.val_loss / top for record in history], VAL_LOSS),
        Curve("loss in training", [record.train_loss / top for record in history], TRAIN_LOSS),
    )
    title = f"{result.config.arch}: {len(history)} epochs, best {result.best_epoch}"
    return draw_curves(title, result.best_epoch, curves, top=top)


def _matrix(result: TrainResult) -> NDArray[np.uint8]:
    canvas = np.full((HEIGHT, MATRIX_WIDTH, 3), 255, dtype=np.uint8)
    counts, n = result.val.confusion, len(result.classes)
    left, top = 140, TOP + 40
    cell = min((MATRIX_WIDTH - left - RIGHT) // n, (HEIGHT - top - BOTTOM) // n)
    title = f"val: {result.val.accuracy:.1%} of {sum(map(sum, counts))} right"
    _text(canvas, title, (left, 28), size=0.55)
    _text(canvas, "true class by row, predicted by column (same order)", (left, 50))
    for i, row in enumerate(counts):
        y = top + i * cell
        _text(canvas, f"{i + 1} {_short(result.classes[i])}", (6, y + cell // 2 + 4))
        _text(canvas, str(i + 1), (left + i * cell + cell // 2 - 4, top - 8))
        for j, count in enumerate(row):
            x = left + j * cell
            share = count / max(sum(row), 1)
            fill = _shade(share, right=i == j)
            cv2.rectangle(canvas, (x, y), (x + cell - 2, y + cell - 2), fill, -1)
            if count and cell >= 18:
                _text(canvas, str(count), (x + cell // 2 - 4 * len(str(count)), y + cell // 2 + 4))
    return canvas


def _shade(share: float, *, right: bool) -> Colour:
    """White to green on the diagonal, white to red off it."""
    strength = int(150 * share)
    return (255 - strength, 255 - strength // 3, 255 - strength) if right else (255 - strength, 255 - strength, 255)


def _line(canvas: NDArray[np.uint8], values: Sequence[float], colour: Colour) -> None:
    points = np.array([[_x(i, len(values)), _y(value)] for i, value in enumerate(values)], dtype=np.int32)
    cv2.polylines(canvas, [points], isClosed=False, color=colour, thickness=2, lineType=cv2.LINE_AA)


def _x(i: int, n: int) -> int:
    return LEFT + round(i / max(n - 1, 1) * (CURVES_WIDTH - LEFT - RIGHT))


def _y(share: float) -> int:
    return HEIGHT - BOTTOM - round(min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM))


def _short(name: str) -> str:
    """OpenCV's fonts know ASCII only."""
    plain = name.encode("ascii", "replace").decode()
    return plain if len(plain) <= MAX_NAME else plain[: MAX_NAME - 1] + "."


def _text(canvas: Any, text: str, at: tuple[int, int], colour: Colour = INK, *, size: float = 0.42) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
