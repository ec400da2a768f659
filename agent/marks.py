"""What was found, drawn on its picture: boxes with class, score and size, and the policy's zones as thin lines.

Colours are Okabe and Ito's palette, which the colour-blind can tell apart; the words stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

from agent.bundle import Finding
from agent.verdict import Decision, Verdict
from agent.zones import Zone

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COLOURS_BGR", "INK_BGR", "draw_marks", "marked_picture", "plain"]

Colour: TypeAlias = tuple[int, int, int]

COLOURS_BGR: Mapping[Decision, Colour] = MappingProxyType(
    {
        Decision.OK: (115, 158, 0),
        Decision.DEFECT: (0, 94, 213),
        Decision.REVIEW: (0, 159, 230),
        Decision.ERROR: (167, 121, 204),
    }
)
INK_BGR: Mapping[Decision, Colour] = MappingProxyType(
    {
        Decision.OK: (255, 255, 255),
        Decision.DEFECT: (255, 255, 255),
        Decision.REVIEW: (0, 0, 0),
        Decision.ERROR: (0, 0, 0),
    }
)
"""What can be read on each colour."""

MAX_BOXES = 50
"""The foremost; more cover the picture and each other."""

_ZONE_BGR = (233, 180, 86)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def marked_picture(image: NDArray[np.uint8], verdict: Verdict) -> NDArray[np.uint8] | None:
    """A flagged part's frame with its findings and zones drawn, a copy; None without a box, or when that fails.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        verdict: whose findings and zones are in its pixels.
    """
    if all(finding.box_px is None for finding in _shown(verdict)):
        return None
    picture = np.array(image, order="C")
    try:
        draw_marks(picture, verdict)
    except (cv2.error, ValueError, OverflowError):
        # Marks are for people; the part's verdict and its picture must not be lost over them.
        return None
    return picture


def draw_marks(picture: Any, verdict: Verdict, scale: tuple[float, float] = (1.0, 1.0)) -> None:
    """Draw a flagged part's findings, and any part's zones, into a picture.

    Args:
        picture: (H, W, 3) uint8 BGR, C-contiguous; drawn into. Lines and letters grow with it.
        verdict: any decision.
        scale: from pixels of the frame to those of the picture, x and y.
    """
    for zone in verdict.zones:
        _draw_zone(picture, zone, scale)
    # The foremost last, so that it lies on top.
    for finding in reversed(_shown(verdict)):
        if finding.box_px is not None:
            _draw_box(picture, finding, finding.box_px, scale, verdict.decision)


def plain(text: str) -> str:
    """ASCII, as OpenCV's built-in font has nothing else."""
    return text.encode("ascii", "replace").decode()


def _shown(verdict: Verdict) -> list[Finding]:
    if verdict.decision not in (Decision.DEFECT, Decision.REVIEW):
        return []
    return [finding for finding in verdict.findings[:MAX_BOXES] if finding.severity != "ok"]


def _draw_zone(picture: Any, zone: Zone, scale: tuple[float, float]) -> None:
    thin = max(1, round(max(picture.shape[:2]) / 1500))
    points = [_point(picture, x * scale[0], y * scale[1]) for x, y in zone.points]
    cv2.polylines(picture, [np.array(points, dtype=np.int32)], isClosed=True, color=_ZONE_BGR, thickness=thin)
    size = 0.8 * _letters(picture)
    name = f"{zone.name} (ignored)" if zone.is_ignored else zone.name
    _, unit = cv2.getTextSize(name, _FONT, size, 1)[0]
    x, y = min(points, key=lambda point: (point[1], point[0]))
    cv2.putText(picture, plain(name), (x + 3, y + unit + 4), _FONT, size, _ZONE_BGR, 1, cv2.LINE_AA)


def _draw_box(
    picture: Any, finding: Finding, box: tuple[float, float, float, float], scale: tuple[float, float], by: Decision
) -> None:
    x, y, width, height = box
    corner = _point(picture, x * scale[0], y * scale[1])
    opposite = _point(picture, (x + width) * scale[0], (y + height) * scale[1])
    thick = max(2, round(max(picture.shape[:2]) / 400))
    cv2.rectangle(picture, corner, opposite, COLOURS_BGR[by], thickness=thick)
    label = f"{finding.class_name} {finding.score:.2f}"
    if finding.size_mm is not None:
        label += f" {finding.size_mm:.3g} mm"
    _draw_label(picture, plain(label), corner, opposite, by)


def _draw_label(picture: Any, text: str, corner: tuple[int, int], opposite: tuple[int, int], by: Decision) -> None:
    """On a plate of the box's colour: above the box, else under it, else in it; never over the picture's edge."""
    size = _letters(picture)
    stroke = max(1, round(size * 1.4))
    (width, height), base = cv2.getTextSize(text, _FONT, size, stroke)
    high = height + base + 2
    left = max(0, min(corner[0], picture.shape[1] - width - 4))
    if corner[1] >= high:
        top = corner[1] - high
    elif opposite[1] + high < picture.shape[0]:
        top = opposite[1] + 1
    else:
        top = corner[1]
    cv2.rectangle(picture, (left, top), (left + width + 3, top + high), COLOURS_BGR[by], thickness=-1)
    cv2.putText(picture, text, (left + 2, top + height + 2), _FONT, size, INK_BGR[by], stroke, cv2.LINE_AA)


def _letters(picture: Any) -> float:
    """Size of the letters in OpenCV's measure: readable when the picture is shown 400 px wide or more."""
    return max(float(max(picture.shape[:2])) / 1100, 0.4)


def _point(picture: Any, x: float, y: float) -> tuple[int, int]:
    """The nearest pixel of the picture."""
    height, width = picture.shape[:2]
    return round(min(max(x, 0.0), width - 1)), round(min(max(y, 0.0), height - 1))
