"""Why a rung broke: the pictures that it judges otherwise than the top, with what both looked at.

For each picture the top stands on the left and the rung on the right, with decision, class and score in the decision's
colour. A classifier's class activation map lies over the picture (of the foremost defect class, whatever was decided);
of a detector its findings are outlined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from agent.config import PolicyConfig
from agent.engines import Engine, open_engine
from agent.errors import ImageError
from agent.frame import Frame, Part, Stamp
from agent.inspection import Inspector
from agent.marks import COLOURS_BGR, INK_BGR, draw_marks, plain
from agent.verdict import Decision, Policy, Verdict, policy_from_config
from optimize.dataset import Dataset, read_image
from optimize.ladder.model import RungModel
from optimize.ladder.rung import Flip

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_DRAWN", "draw_flips"]

MAX_DRAWN = 40
"""Pictures on one sheet, the worst first; all of them are in ladder.json."""

COLUMNS = 4
CELL_PX, CAPTION_PX, GAP_PX, HEAD_PX = 150, 32, 8, 34
HEAT = 0.55
_BACK, _INK = 30, (235, 235, 235)
_WORDS = {"escape": "ESCAPES NOW", "broke": "wrong now", "mended": "right now", "changed": "changed"}


def draw_flips(top: RungModel, rung: RungModel, flips: Sequence[Flip], dataset: Dataset, *, threads: int = 1) -> bytes:
    """Draw the pictures whose decision or class changed.

    Args:
        top: the top.
        rung: what judges otherwise.
        flips: which pictures, the worst first; at least one.
        dataset: what they are of.
        threads: CPU threads of one inference.

    Returns:
        A PNG file.
    """
    samples = {sample.file: sample for sample in dataset}
    eyes = [_Eye(model, threads) for model in (top, rung)]
    try:
        cells = []
        for flip in flips[:MAX_DRAWN]:
            try:
                image = read_image(samples[flip.file].path)
            except ImageError:
                image = np.full((CELL_PX, CELL_PX, 3), _BACK, dtype=np.uint8)  # one of both could not judge it
            cells.append(_cell(flip, [_look(image, eye.see(image, flip.file)) for eye in eyes]))
    finally:
        for eye in eyes:
            eye.close()
    kinds = {kind: sum(flip.kind == kind for flip in flips) for kind in _WORDS}
    counted = ", ".join(f"{count} {_WORDS[kind].lower()}" for kind, count in kinds.items() if count)
    drawn = f", {MAX_DRAWN} drawn" if len(flips) > MAX_DRAWN else ""
    return _sheet(cells, f"{top.name} (left) against {rung.name} (right): {len(flips)} differ: {counted}{drawn}")


class _Eye:
    """One rung's inspector and policy."""

    def __init__(self, model: RungModel, threads: int) -> None:
        self._engine: Engine = open_engine(model.bundle, model.engine_config(threads))
        self._inspector = Inspector(model.bundle, self._engine)
        self._policy: Policy = policy_from_config(PolicyConfig(), model.bundle.manifest)

    def see(self, image: NDArray[np.uint8], file: str) -> Verdict:
        now = Stamp.now()
        part = Part(id=file, trigger="ladder", sequence=1, triggered=now)
        frame = Frame(part=part, image=image, camera="ladder", source=file, sequence=1, captured=now)
        return self._policy.judge(self._inspector.inspect(frame))

    def close(self) -> None:
        self._engine.close()


def _look(image: NDArray[np.uint8], verdict: Verdict) -> NDArray[np.uint8]:
    """(CELL_PX + CAPTION_PX, CELL_PX, 3) BGR: the picture with what was looked at, and what was decided under it."""
    scale = CELL_PX / max(image.shape[:2])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    picture: Any = np.ascontiguousarray(cv2.resize(image, size, interpolation=how))
    if verdict.inspection.heatmap is not None:
        picture = _heated(picture, verdict.inspection.heatmap)
    if verdict.inspection.task == "detect":
        draw_marks(picture, verdict, (size[0] / image.shape[1], size[1] / image.shape[0]))
    canvas = np.full((CELL_PX + CAPTION_PX, CELL_PX, 3), _BACK, dtype=np.uint8)
    top, left = (CELL_PX - size[1]) // 2, (CELL_PX - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = picture
    canvas[CELL_PX:] = COLOURS_BGR[verdict.decision]
    ink = INK_BGR[verdict.decision]
    _write(canvas, verdict.decision.value, (4, CELL_PX + 13), ink)
    _write(canvas, _said(verdict), (4, CELL_PX + 27), ink)
    return canvas


def _said(verdict: Verdict) -> str:
    if verdict.decision is Decision.ERROR:
        return verdict.reason
    foremost = next(iter(verdict.inspection.findings), None)
    top = verdict.top if verdict.inspection.task == "detect" else foremost
    return "nothing found" if top is None else f"{top.class_name} {top.score:.2f}"


def _heated(picture: Any, heatmap: NDArray[np.float32]) -> Any:
    """The warmest places in colour, the rest as it is; each map on its own scale, 0 to 1."""
    heat = cv2.resize(heatmap, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_LINEAR).clip(0, 1)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    weight = (HEAT * heat)[:, :, None]
    return (picture * (1 - weight) + colours * weight).astype(np.uint8)


def _cell(flip: Flip, looks: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    pair = np.hstack(looks)
    head = np.full((HEAD_PX, pair.shape[1], 3), _BACK, dtype=np.uint8)
    truth = flip.label if flip.label is not None else flip.severity
    _write(head, f"{_WORDS[flip.kind]}: {truth}", (4, 14), _INK)
    _write(head, flip.file, (4, 28), (170, 170, 170))
    whole = np.vstack([head, pair])
    return np.asarray(
        cv2.copyMakeBorder(whole, 0, GAP_PX, 0, GAP_PX, cv2.BORDER_CONSTANT, value=(_BACK,) * 3), dtype=np.uint8
    )


def _sheet(cells: Sequence[NDArray[np.uint8]], title: str) -> bytes:
    rows = list(_rows(cells))
    width = max(row.shape[1] for row in rows)
    head = np.full((HEAD_PX, width, 3), _BACK, dtype=np.uint8)
    _write(head, title, (6, 22), _INK, size=0.5)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=_BACK) for row in rows]
    return bytes(cv2.imencode(".png", np.vstack([head, *padded]))[1].tobytes())


def _rows(cells: Sequence[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(cells), COLUMNS):
        yield np.hstack(cells[start : start + COLUMNS])


def _write(canvas: Any, text: str, at: tuple[int, int], ink: tuple[int, int, int], *, size: float = 0.38) -> None:
    """One line, cut off where it would leave the canvas."""
    text = plain(text)
    room = canvas.shape[1] - at[0] - 4
    while len(text) > 4 and cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0] > room:
        text = text.removesuffix("..")[:-1] + ".."
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, ink, 1, cv2.LINE_AA)
