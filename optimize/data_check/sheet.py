"""The contact sheet: examples of every class, then the pairs that were found, with what they share framed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from optimize.data_check.findings import Findings
from optimize.data_check.pairs import Pair
from optimize.data_check.pictures import Picture
from optimize.data_check.report import DataCheck
from optimize.dataset import read_image
from optimize.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COLUMNS", "cell_of", "pair_cells", "row_of", "write_contact_sheet", "write_rows"]

CELL_PX = 128
CAPTION_PX = 34
COLUMNS = 8
MAX_PAIRS = 16
_BACK, _INK, _FRAME = (30, 30, 30), (235, 235, 235), (0, 94, 213)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_contact_sheet(check: DataCheck, path: Path) -> None:
    """Draw what a person should look at before trusting the numbers.

    Args:
        check: what was found.
        path: a PNG (or JPEG) file; its folder is made.

    Raises:
        DataError: the file can't be written.
    """
    found = check.findings
    rows = [row_of(f"{label}: {row['all']} pictures", _examples(found, label)) for label, row in found.counts.items()]
    if not found.counts:
        rows = [row_of(f"{len(found.pictures)} pictures without a class", _examples(found, None))]
    pairs = _worst_pairs(found)
    if pairs:
        cells = [cell for pair in pairs for cell in pair_cells(found.pictures, pair)]
        title = f"the same surface twice ({len(pairs)} of {len(found.near) + len(found.overlaps)} pairs)"
        rows += [
            row_of(title if start == 0 else "", cells[start : start + COLUMNS])
            for start in range(0, len(cells), COLUMNS)
        ]
    write_rows(rows, path)


def write_rows(rows: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Write rows as one picture.

    Raises:
        DataError: the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = cv2.imwrite(str(path), np.vstack(rows))
    except (OSError, cv2.error) as error:
        raise DataError(f"{path}: can't be written ({error})", hint="give a file that ends in .png") from error
    if not written:
        raise DataError(f"{path}: can't be written", hint="give a file that ends in .png, in a folder that is yours")


def _examples(found: Findings, label: str | None) -> list[Any]:
    """Evenly spaced ones, so that one burst does not fill the row."""
    indices = [i for i, p in enumerate(found.pictures) if p.sample.label == label]
    chosen = sorted({indices[k * len(indices) // COLUMNS] for k in range(COLUMNS)}) if indices else []
    return [cell_of(found.pictures[i].grey, Path(found.pictures[i].sample.file).stem) for i in chosen]


def _worst_pairs(found: Findings) -> list[Pair]:
    """Leaks first, then by how much is shared; at most `MAX_PAIRS`."""
    pairs = [*found.near, *found.overlaps]
    leaks = {id(p) for p in found.leaks(pairs)}
    return sorted(pairs, key=lambda p: (id(p) not in leaks, -p.share, -p.correlation))[:MAX_PAIRS]


def pair_cells(pictures: Sequence[Picture], pair: Pair) -> list[Any]:
    """The two pictures of a pair, each with the part framed that the other one shows too."""
    right, down = pair.shift_px
    cells = []
    for index, other, x, y in ((pair.first, pair.second, right, down), (pair.second, pair.first, -right, -down)):
        picture, mate = pictures[index], pictures[other]
        image = read_image(picture.sample.path)
        corner = max(0, x), max(0, y)
        opposite = min(picture.width_px, x + mate.width_px) - 1, min(picture.height_px, y + mate.height_px) - 1
        thickness = max(1, picture.edge_px // 64)
        cv2.rectangle(image, corner, opposite, _FRAME, thickness)
        name = f"{picture.sample.split or 'no split'}: {Path(picture.sample.file).stem}"
        cells.append(cell_of(image, name, f"{pair.share:.0%}, r {pair.correlation:.2f}"))
    return cells


def row_of(title: str, cells: Sequence[Any]) -> NDArray[np.uint8]:
    """One row of cells under its title."""
    head = np.full((22 if title else 4, COLUMNS * CELL_PX, 3), _BACK, np.uint8)
    if title:
        cv2.putText(head, _plain(title), (4, 16), _FONT, 0.45, _INK, 1, cv2.LINE_AA)
    body = np.full((CELL_PX + CAPTION_PX, COLUMNS * CELL_PX, 3), _BACK, np.uint8)
    for column, cell in enumerate(cells):
        body[:, column * CELL_PX : (column + 1) * CELL_PX] = cell
    return np.vstack([head, body])


def cell_of(image: NDArray[np.uint8], *lines: str) -> NDArray[np.uint8]:
    """One picture in its aspect ratio, with up to two lines of caption."""
    cell = np.full((CELL_PX + CAPTION_PX, CELL_PX, 3), _BACK, np.uint8)
    room = CELL_PX - 4
    scale = room / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if small.ndim == 2:
        small = cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)
    left, top = (CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2
    cell[top : top + size[1], left : left + size[0]] = small
    for number, line in enumerate(lines):
        # The end of a name tells files apart; its head, here, the split.
        text = _plain(line) if len(line) <= 22 else f"{_plain(line)[:8]}..{_plain(line)[-12:]}"
        cv2.putText(cell, text, (3, CELL_PX + 12 + 15 * number), _FONT, 0.32, _INK, 1, cv2.LINE_AA)
    return cell


def _plain(text: str) -> str:
    """ASCII, as OpenCV's built-in font has nothing else."""
    return text.encode("ascii", "replace").decode()
