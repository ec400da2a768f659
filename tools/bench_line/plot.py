"""Two pictures in one: the line's rate over the bare loop's, and where a part's time goes at a steady pace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Row = Mapping[str, Any]

__all__ = ["draw_line"]

WIDTH, LEFT, RIGHT, BAR, GAP, TOP, BOTTOM = 980, 270, 170, 18, 8, 56, 40
INK, PALE, LINE, FOUR = (40, 40, 40), (215, 215, 215), (160, 110, 40), (90, 170, 220)
COLOURS = {
    "preprocess": (200, 160, 90), "infer": (190, 190, 190), "decide": (90, 170, 220), "rest": (130, 130, 200),
    "disk": (110, 190, 120), "broker": (200, 130, 190),
}  # fmt: skip
BOUNDS = {"5 ms": 0.95, "1 ms": 0.85}


def draw_line(rows: Sequence[Row]) -> bytes | None:
    """A PNG of what was measured; None where neither rates nor latencies were."""
    rates = [row for row in rows if row["part"] == "rate"]
    paces = [row for row in rows if row["part"] == "latency"]
    sheets = [draw(mine) for mine, draw in ((rates, _rates), (paces, _stages)) if mine]
    if not sheets:
        return None
    return bytes(cv2.imencode(".png", np.vstack(sheets))[1].tobytes())


def _rates(rows: Sequence[Row]) -> NDArray[np.uint8]:
    canvas = _sheet("Rate of the line over the bare InferenceSession.run loop (dark: 1 camera, light: 4)", len(rows))
    for i, row in enumerate(rows):
        y = TOP + i * (BAR + GAP)
        ratio = row["ratio"]
        _text(canvas, f"{row['model']}, {row['cameras']} cam", (12, y + 14))
        colour = LINE if row["cameras"] == 1 else FOUR
        cv2.rectangle(canvas, (LEFT, y), (_x(ratio["value"]), y + BAR), colour, -1)
        middle = y + BAR // 2
        cv2.line(canvas, (_x(ratio["low"]), middle), (_x(ratio["high"]), middle), INK, 2)
        bound = _x(next(bound for end, bound in BOUNDS.items() if row["model"].endswith(end)))
        cv2.line(canvas, (bound, y - 2), (bound, y + BAR + 2), (40, 40, 200), 2)
        told = f"{ratio['value']:.2f}  {row['line_per_s']:.0f}/s"
        _text(canvas, told, (WIDTH - RIGHT + 16, y + 14))
    _axis(canvas, [0, 0.25, 0.5, 0.75, 1.0], 1.0, "")
    return canvas


def _stages(rows: Sequence[Row]) -> NDArray[np.uint8]:
    """Medians side by side, and where the last of a hundred parts ends."""
    longest = max(_p99(row) for row in rows)
    canvas = _sheet("Median ms of a part from its trigger, stage by stage; the thin line ends at p99", len(rows))
    for i, row in enumerate(rows):
        y, at = TOP + i * (BAR + GAP), 0.0
        _text(canvas, f"{row['model'].removesuffix(' ms')} ms at {row['per_s']:g}/s", (12, y + 14))
        known = {name: row[f"{name}_ms"][0] for name in ("preprocess", "infer", "decide", "disk", "broker")}
        known["rest"] = max(0.0, row["decided_ms"][0] - sum(known[k] for k in ("preprocess", "infer", "decide")))
        for name, colour in COLOURS.items():
            upto = at + known[name]
            cv2.rectangle(canvas, (_x(at / longest), y), (_x(upto / longest), y + BAR), colour, -1)
            at = upto
        middle = y + BAR // 2
        cv2.line(canvas, (_x(at / longest), middle), (_x(_p99(row) / longest), middle), INK, 1)
        _text(canvas, f"{at:.1f}, p99 {_p99(row):.1f}", (WIDTH - RIGHT + 16, y + 14))
    _axis(canvas, [longest * k / 4 for k in range(5)], longest, " ms")
    for i, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + 110 * i
        cv2.rectangle(canvas, (x, 34), (x + 12, 46), colour, -1)
        _text(canvas, name, (x + 18, 45))
    return canvas


def _p99(row: Row) -> float:
    return float(row["received_ms"][-1])


def _sheet(title: str, bars: int) -> NDArray[np.uint8]:
    canvas = np.full((TOP + bars * (BAR + GAP) + BOTTOM, WIDTH, 3), 255, np.uint8)
    _text(canvas, title, (12, 24), 0.5)
    return canvas


def _axis(canvas: NDArray[np.uint8], marks: Sequence[float], full: float, unit: str) -> None:
    y = canvas.shape[0] - BOTTOM + 4
    cv2.line(canvas, (LEFT, y), (_x(1.0), y), PALE, 1)
    for mark in marks:
        _text(canvas, f"{mark:.3g}{unit}", (_x(mark / full) - 12, y + 18))


def _x(share: float) -> int:
    return LEFT + round(min(max(share, 0.0), 1.1) * (WIDTH - LEFT - RIGHT))


def _text(canvas: NDArray[np.uint8], text: str, at: tuple[int, int], size: float = 0.42) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
