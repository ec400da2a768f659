"""A detector's scorecard as a picture: the FROC curve, and the defects that escaped as they look."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

from agent.bundle import Manifest
from agent.errors import ImageError
from optimize.dataset import Dataset, read_image
from optimize.detection_card import DetectionScorecard
from optimize.detection_score import BoxFates, box_fates
from optimize.errors import DataError
from optimize.outcomes import RANK, Outcome, counter_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["draw_detection", "worst_misses", "write_detection"]

Colour: TypeAlias = tuple[int, int, int]  # BGR

CELL_PX, CAPTION_PX, COLUMNS, MOST = 256, 40, 4, 12
WIDTH, HEIGHT = COLUMNS * CELL_PX, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 340, 50, 60
FALSE_FROM, FALSE_TO = 1 / 64, 16.0
"""Ends of the logarithmic axis, false boxes per picture; rarer ones are drawn at the left edge."""

WHITE, INK, GRID, PALE = (255, 255, 255), (60, 60, 60), (225, 225, 225), (130, 130, 130)
CURVE: Colour = (190, 120, 40)
ESCAPED: Colour = (40, 40, 220)
CAUGHT: Colour = (60, 150, 30)
FINDING: Colour = (230, 160, 20)
IGNORED: Colour = (160, 160, 160)


def write_detection(
    path: Path, card: DetectionScorecard, outcomes: Sequence[Outcome], dataset: Dataset, manifest: Manifest
) -> None:
    """Draw and write.

    Args:
        path: a PNG (or JPEG) file.
        card: what came out.
        outcomes: of the images.
        dataset: where they are.
        manifest: of the bundle.

    Raises:
        DataError: the set has no boxes, or the file can't be written.
    """
    if not card.has_boxes:
        raise DataError(
            f"{dataset.root}: has no boxes, so there is no FROC curve and no miss to draw",
            hint="leave --picture out, or outline the defects",
        )
    try:
        written = cv2.imwrite(str(path), draw_detection(card, outcomes, dataset, manifest))
    except cv2.error as error:
        raise DataError(f"{path}: can't be drawn ({error})", hint="--picture takes a .png file") from error
    if not written:
        raise DataError(f"{path}: can't be written", hint="does its folder exist, and does it end in .png?")


def draw_detection(
    card: DetectionScorecard, outcomes: Sequence[Outcome], dataset: Dataset, manifest: Manifest
) -> NDArray[np.uint8]:
    """The FROC curve above, the worst misses below.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    fates = box_fates(outcomes, manifest)
    shown = worst_misses(outcomes, fates, manifest)
    rows = [_froc(card)]
    head = np.full((58, WIDTH, 3), 255, np.uint8)
    title = f"the worst of {card.box_escapes} outlined defects that no finding over the limit lies on"
    if not shown:
        title = "some finding over the limit lies on every outlined defect"
    _text(head, title, (12, 22), size=0.6)
    for i, (name, colour) in enumerate(_LEGEND):
        _text(head, name, (12 + 250 * i, 46), colour)
    rows.append(head)
    cells = [_cell(outcomes[i], dataset, manifest, fates, i) for i in shown]
    for start in range(0, len(cells), COLUMNS):
        row = np.full((CELL_PX + CAPTION_PX, WIDTH, 3), 255, np.uint8)
        for column, cell in enumerate(cells[start : start + COLUMNS]):
            row[:, column * CELL_PX : (column + 1) * CELL_PX] = cell
        rows.append(row)
    return np.vstack(rows)


_LEGEND = (
    ("outlined, not found", ESCAPED),
    ("outlined, found", CAUGHT),
    ("finding over the limit", FINDING),
    ("outlined, does not count", IGNORED),
)


def worst_misses(outcomes: Sequence[Outcome], fates: BoxFates, manifest: Manifest) -> list[int]:
    """Which images show the worst escapes: passed parts first, then by severity, then by size; twelve at most.

    Returns:
        Numbers of outcomes.
    """
    worst: dict[int, tuple[bool, int, float]] = {}
    for k in np.flatnonzero(fates.escaped):
        image = int(fates.records.images[k])
        severity = RANK[manifest.classes[int(fates.classes[k])].severity]
        key = (outcomes[image].decision.value == "ok", severity, float(fates.areas[k]))
        worst[image] = max(worst.get(image, key), key)
    return sorted(worst, key=lambda image: worst[image], reverse=True)[:MOST]


def _froc(card: DetectionScorecard) -> NDArray[np.uint8]:
    canvas = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    _text(canvas, "FROC: outlined defects found over false boxes per picture", (LEFT, 28), size=0.6)
    for share in range(0, 101, 20):
        y = _y(share / 100)
        cv2.line(canvas, (LEFT, y), (WIDTH - RIGHT, y), GRID, 1)
        _text(canvas, f"{share} %", (LEFT - 50, y + 4))
    for at in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16):
        cv2.line(canvas, (_x(at), TOP), (_x(at), HEIGHT - BOTTOM), GRID, 1)
        _text(canvas, f"{at:g}" if at >= 1 else f"1/{round(1 / at)}", (_x(at) - 10, HEIGHT - BOTTOM + 18))
    _text(canvas, "false boxes per picture", (LEFT, HEIGHT - 14))
    for point in card.froc:
        if point.sensitivity_95 is not None and point.false_per_picture <= card.froc_curve[-1][0]:
            low, high = point.sensitivity_95
            cv2.line(canvas, (_x(point.false_per_picture), _y(low)), (_x(point.false_per_picture), _y(high)), PALE, 1)
    points = list(_steps(card.froc_curve))
    if points:
        cv2.polylines(canvas, [np.array(points, np.int32)], isClosed=False, color=CURVE, thickness=2)
    if card.false_per_picture is not None and card.box_escape_rate is not None and card.boxes:
        here = _x(card.false_per_picture), _y(1 - card.box_escape_rate)
        cv2.circle(canvas, here, 6, ESCAPED, 2, cv2.LINE_AA)
        _text(canvas, f"limit {card.limit:.2f}", (here[0] + 10, here[1] + 18), ESCAPED)
    for i, line in enumerate(_figures(card)):
        _text(canvas, line, (WIDTH - RIGHT + 24, TOP + 14 + 24 * i))
    return canvas


def _steps(curve: Sequence[tuple[float, float]]) -> Iterator[tuple[int, int]]:
    """Between two limits nothing changes, so the curve goes to the right, then up."""
    height = 0.0
    for false, found in curve:
        yield _x(false), _y(height)
        yield _x(false), _y(found)
        height = found


def _figures(card: DetectionScorecard) -> Iterator[str]:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    yield f"map50 {shown(card.map50)}, map50-95 {shown(card.map50_95)}"
    yield f"{card.escapes} of {card.defects} defective parts passed"
    for name, entry in card.by_severity.items():
        yield f"  {name}: {entry.escapes} of {entry.parts}"
    yield f"{card.box_escapes} of {card.boxes} outlined defects not found"
    for name, entry in card.by_severity.items():
        yield f"  {name}: {entry.box_escapes} of {entry.boxes}"
    if card.overkill_per_1000 is not None:
        yield f"{card.overkill_per_1000:.1f} of 1,000 good parts stopped"
    yield "grey bars: 95 % by group"


def _cell(outcome: Outcome, dataset: Dataset, manifest: Manifest, fates: BoxFates, number: int) -> NDArray[np.uint8]:
    cell = np.full((CELL_PX + CAPTION_PX, CELL_PX, 3), 255, np.uint8)
    room = CELL_PX - 8
    try:
        image = read_image(dataset.samples[number].path)
    except ImageError:  # it was judged a moment ago; the sheet is no place to fail
        return cell
    scale = room / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2
    cell[top : top + size[1], left : left + size[0]] = small

    def frame(edges: Sequence[float], colour: Colour, text: str, *, is_below: bool) -> None:
        x0, x1 = (round(left + edges[i] * scale) for i in (0, 2))
        y0, y1 = (round(top + edges[i] * scale) for i in (1, 3))
        cv2.rectangle(cell, (x0, y0), (x1 - 1, y1 - 1), colour, 1 if is_below else 2)
        _label(cell, text, (x0, y1 + 8 if is_below else y0 - 3), colour)

    escaped = {int(k) for i, k, gone in _rows(fates) if i == number and gone}
    for k, box in enumerate(outcome.boxes or ()):
        colour = IGNORED if box.is_ignored else ESCAPED if k in escaped else CAUGHT
        frame((box.left, box.top, box.right, box.bottom), colour, box.class_name, is_below=False)
    counter = counter_of(manifest)
    for one in counter.count(outcome.findings) if counter is not None else ():
        if one.level > 0 and one.finding.box_px is not None:
            x, y, w, h = one.finding.box_px
            frame((x, y, x + w, y + h), FINDING, f"{one.finding.class_name} {one.finding.score:.2f}", is_below=True)
    name = Path(outcome.file).stem
    _text(cell, name if len(name) <= 34 else f"..{name[-32:]}", (6, CELL_PX + 14))
    colour = ESCAPED if outcome.decision.value == "ok" else INK
    _text(cell, f"judged {outcome.decision.value}", (6, CELL_PX + 31), colour)
    return cell


def _rows(fates: BoxFates) -> Iterator[tuple[Any, Any, Any]]:
    return zip(fates.records.images, fates.records.places, fates.escaped, strict=True)


def _label(canvas: NDArray[np.uint8], text: str, at: tuple[int, int], colour: Colour) -> None:
    """On any picture: with a ground of its colour, and never over the edge."""
    plain = _plain(text)
    (width, height), base = cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, 0.34, 1)
    x = max(0, min(at[0], canvas.shape[1] - width - 2))
    y = max(height + 2, min(at[1], CELL_PX - base))
    cv2.rectangle(canvas, (x - 1, y - height - 2), (x + width + 1, y + base - 1), colour, cv2.FILLED)
    cv2.putText(canvas, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.34, WHITE, 1, cv2.LINE_AA)


def _x(false: float) -> int:
    share = math.log(min(max(false, FALSE_FROM), FALSE_TO) / FALSE_FROM) / math.log(FALSE_TO / FALSE_FROM)
    return LEFT + round(share * (WIDTH - LEFT - RIGHT))


def _y(share: float) -> int:
    return HEIGHT - BOTTOM - round(share * (HEIGHT - TOP - BOTTOM))


def _text(canvas: Any, text: str, at: tuple[int, int], colour: Colour = INK, *, size: float = 0.42) -> None:
    cv2.putText(canvas, _plain(text), at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _plain(text: str) -> str:
    """OpenCV's fonts know ASCII only."""
    return text.encode("ascii", "replace").decode()
