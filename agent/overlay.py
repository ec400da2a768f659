"""A verdict drawn on its picture, for people: `inspect --overlay`, and the contact sheet of the demo.

The frame's colour is the decision, and the word stands beside it. On flagged parts the heatmap lies over the picture,
stronger where the score comes from, or the findings' boxes; zones are thin lines, and so is the outline of what the
model saw where that is not the whole frame. Everything is in the frame's pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from agent.marks import COLOURS_BGR, INK_BGR, draw_marks, plain
from agent.verdict import Decision, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["draw_overlay"]

_DARK = 40
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_HEAT = 0.55
"""How much of the hottest spot is colour and no longer picture, 0 to 1."""

_OUTLINE, _OUTLINE_UNDER = (255, 255, 255), (0, 0, 0)
_PARTS = 16
"""OpenCV's `shift=4`: sixteenths of a pixel."""


def draw_overlay(verdict: Verdict, *, side_px: int = 480) -> NDArray[np.uint8]:
    """Draw a verdict: border and banner in the decision's colour, class and score, part, boxes and heatmap.

    Args:
        verdict: any decision; one without a frame gives an empty card with the reason.
        side_px: length of the picture's longer side in the result, from 64 up; small pictures grow, so that the text
            can be read.

    Returns:
        (H, W, 3) uint8 BGR, own memory: the picture in its aspect ratio, a border around and a banner under it.
    """
    colour = COLOURS_BGR[verdict.decision]
    canvas, scale = _canvas(verdict, side_px)
    _draw_outline(canvas, verdict, scale)
    draw_marks(canvas, verdict, scale)
    border = max(side_px // 80, 2)
    framed = cv2.copyMakeBorder(canvas, border, border, border, border, cv2.BORDER_CONSTANT, value=colour)
    banner = _banner(verdict, framed.shape[1], max(side_px // 7, 20), colour)
    return np.asarray(np.vstack([framed, banner]), dtype=np.uint8)


def _canvas(verdict: Verdict, side_px: int) -> tuple[Any, tuple[float, float]]:
    """The picture at its size in the result, heat included, and the scale from frame pixels, x and y."""
    image: Any = None if verdict.inspection.frame is None else verdict.inspection.frame.image
    if image is None or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        return np.full((side_px * 3 // 4, side_px, 3), _DARK, dtype=np.uint8), (1.0, 1.0)
    height, width = image.shape[:2]
    longer = max(height, width)
    size = max(round(width * side_px / longer), 1), max(round(height * side_px / longer), 1)
    how = cv2.INTER_AREA if longer > side_px else cv2.INTER_LINEAR
    picture = cv2.resize(image, size, interpolation=how)
    if verdict.decision in (Decision.DEFECT, Decision.REVIEW) and verdict.inspection.heatmap is not None:
        picture = _heated(picture, verdict.inspection.heatmap)
    # A narrow picture gets a dark card beside it, so that the banner has room for its words.
    card = np.full((size[1], max(size[0], side_px // 2), 3), _DARK, dtype=np.uint8)
    card[:, : size[0]] = picture
    return card, (size[0] / width, size[1] / height)


def _draw_outline(canvas: Any, verdict: Verdict, scale: tuple[float, float]) -> None:
    """Of the region of interest, with its top side marked, as it may be turned."""
    region = verdict.inspection.region
    if region is None:
        return
    points = np.round(np.array(region.outline()) * scale * _PARTS).astype(np.int32)
    for colour, thick in ((_OUTLINE_UNDER, 3), (_OUTLINE, 1)):
        cv2.polylines(canvas, [points], isClosed=True, color=colour, thickness=thick, lineType=cv2.LINE_AA, shift=4)
    cv2.line(canvas, points[0], points[1], _OUTLINE, 2, cv2.LINE_AA, shift=4)


def _heated(picture: Any, heatmap: NDArray[np.float32]) -> Any:
    heat = cv2.resize(heatmap, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_LINEAR)
    heat = np.clip(heat, 0, 1)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    weight = (_HEAT * heat)[:, :, None]
    return (picture * (1 - weight) + colours * weight).astype(np.uint8)


def _banner(verdict: Verdict, width: int, height: int, colour: tuple[int, int, int]) -> Any:
    banner = np.full((height, width, 3), colour, dtype=np.uint8)
    headline = verdict.decision.value.upper()
    if verdict.top is not None:
        headline += f"  {verdict.top.class_name} {verdict.top.score:.2f}"
    detail = verdict.inspection.part.id
    if verdict.decision is Decision.ERROR:
        detail += f": {verdict.reason}"
    ink = INK_BGR[verdict.decision]
    _write(banner, headline, ink, baseline=round(height * 0.46), height=height * 0.30)
    _write(banner, detail, ink, baseline=round(height * 0.86), height=height * 0.22)
    return banner


def _write(banner: Any, text: str, ink: tuple[int, int, int], *, baseline: int, height: float) -> None:
    """One line of text, shortened with dots until it fits."""
    text = plain(text[:200])
    (_, unit), _ = cv2.getTextSize("X", _FONT, 1.0, 1)
    size, left = height / unit, max(round(height / 2), 2)
    thickness = max(round(size * 1.6), 1)
    room = banner.shape[1] - 2 * left
    while cv2.getTextSize(text, _FONT, size, thickness)[0][0] > room and len(text) > 3:
        text = text.removesuffix("...")[:-1] + "..."
    cv2.putText(banner, text, (left, baseline), _FONT, size, ink, thickness, cv2.LINE_AA)
