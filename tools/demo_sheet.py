"""The demo's contact sheet: the flagged parts, from the pictures that came over MQTT, with what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agent.bundle import Bundle, open_bundle
from agent.config import EngineConfig
from agent.engines import open_engine
from agent.frame import Frame, Part, Stamp
from agent.inspection import Finding, Inspection, Inspector
from agent.overlay import draw_overlay
from agent.verdict import Decision, Verdict

__all__ = ["write_sheet"]

CELL_PX, COLUMNS, MAX_CELLS = 220, 6, 48
_BACK, _INK, _WRONG = (24, 24, 24), (235, 235, 235), (120, 200, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_sheet(
    path: Path, flagged: Sequence[tuple[dict[str, Any], bytes]], truth: dict[str, str], bundle_file: Path, title: str
) -> None:
    """Draw flagged parts.

    Args:
        path: the PNG to write.
        flagged: verdicts as received, each with its picture as received.
        truth: part to its true class.
        bundle_file: gives the heatmaps; what was decided is taken from the verdicts.
        title: one line above.
    """
    bundle = open_bundle(bundle_file)
    engine = open_engine(bundle, EngineConfig())
    inspector = Inspector(bundle, engine)
    cells = [_cell(verdict, picture, truth, bundle, inspector) for verdict, picture in flagged[:MAX_CELLS]]
    engine.close()
    if len(flagged) > MAX_CELLS:
        title += f"  (the first {MAX_CELLS} of {len(flagged)})"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), _sheet(cells, title))


def _cell(
    verdict: dict[str, Any], picture: bytes, truth: dict[str, str], bundle: Bundle, inspector: Inspector
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One part as the agent draws it, the truth beneath."""
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    part = Part(id=verdict["part"], trigger="demo", sequence=verdict["rec"], triggered=Stamp.now())
    frame = Frame(
        part=part,
        image=np.asarray(image, dtype=np.uint8),
        camera="mqtt",
        source=verdict["image"]["topic"],
        sequence=verdict["rec"],
        captured=Stamp.now(),
    )
    seen = inspector.inspect(frame)
    severity = {c.name: c.severity for c in bundle.manifest.classes}
    findings = tuple(
        Finding(class_name=f["class"], severity=severity[f["class"]], score=f["score"]) for f in verdict["findings"]
    )
    drawn = draw_overlay(
        Verdict(
            decision=Decision(verdict["decision"]),
            reason=verdict["reason"],
            inspection=Inspection(
                part=part,
                frame=frame,
                fault=None,
                findings=findings,
                defect_score=verdict["score"],
                heatmap=seen.heatmap,
                bundle=inspector.ref,
                engine=verdict["engine"],
            ),
            top=next((f for f in findings if f.class_name == verdict["class"]), None),
            score=verdict["score"],
            threshold=verdict["threshold"],
            decided=Stamp.now(),
        ),
        side_px=CELL_PX,
    )
    true_class = truth[verdict["part"].split("#")[0]]
    caption = np.full((20, drawn.shape[1], 3), _BACK, np.uint8)
    colour = _INK if true_class == verdict["class"] else _WRONG
    cv2.putText(caption, f"in truth: {true_class}", (4, 14), _FONT, 0.4, colour, 1, cv2.LINE_AA)
    return np.asarray(np.vstack([drawn, caption]), dtype=np.uint8)


def _sheet(cells: Sequence[np.ndarray[Any, np.dtype[np.uint8]]], title: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    height, width = (cells[0].shape[0] + 8, cells[0].shape[1] + 8) if cells else (60, CELL_PX)
    rows = max(1, -(-len(cells) // COLUMNS))
    sheet = np.full((40 + rows * height, max(COLUMNS * width, 800), 3), _BACK, np.uint8)
    cv2.putText(sheet, title, (10, 26), _FONT, 0.6, _INK, 1, cv2.LINE_AA)
    for number, cell in enumerate(cells):
        top, left = 40 + number // COLUMNS * height, number % COLUMNS * width + 4
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet
