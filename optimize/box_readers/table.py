"""`boxes.csv`: columns file,class,xmin,ymin,xmax,ymax; a line per box, in pixel edges; files relative to the folder.

A line with a file and five empty cells is a good part.
"""

from __future__ import annotations

from pathlib import Path

from optimize.box_readers.found import Folder, FoundImage, FoundSet, checked_box, split_of_folders
from optimize.box_readers.sizes import picture_size
from optimize.errors import DataError
from optimize.paths import path_below
from optimize.samples import LabelledBox
from optimize.splits_csv import SplitTable, open_table

__all__ = ["BOXES_CSV", "EDGES", "read_boxes_csv"]

BOXES_CSV = "boxes.csv"
EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_boxes_csv(folder: Folder, path: Path) -> FoundSet:
    """Read the table.

    Args:
        folder: what its files are relative to.
        path: the table.

    Raises:
        DataError: with the line that can't be used.
    """
    table = _table(path)
    boxes: dict[str, list[LabelledBox]] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    for line, row in table.rows:
        where = f"{path}: line {line}"
        if None in row or None in row.values():
            raise DataError(f"{where}: has more or fewer cells than line 1", hint="correct the line")
        cells = {str(column): str(cell).strip() for column, cell in row.items()}
        file = path_below(cells["file"])
        if file is None:
            raise DataError(f"{where}: file: {cells['file']!r} leads out of {folder.root}", hint="correct the line")
        if file not in sizes:
            if not (folder.root / file).is_file():
                raise DataError(f"{where}: {file}: no such file below {folder.root}", hint="correct the line")
            sizes[file], boxes[file] = picture_size(folder.root / file), []
        if any(cells[key] for key in ("class", *EDGES)):
            edges = _edges(where, cells)
            boxes[file].append(checked_box(f"{where} ({file})", cells["class"], edges, sizes[file]))
    images = [
        FoundImage(file=file, boxes=tuple(found), split=split_of_folders(file.split("/")[:-1]))
        for file, found in boxes.items()
    ]
    return FoundSet(form=BOXES_CSV, images=tuple(images))


def _table(path: Path) -> SplitTable:
    try:
        return open_table(path, required=("file", "class", *EDGES), form="file,class,xmin,ymin,xmax,ymax")
    except DataError as error:
        hint = error.hint or "name the columns so; a line is one box in pixels, such as a.png,scratch,10,20,40,35"
        raise DataError(error.message, hint=hint) from error


def _edges(where: str, cells: dict[str, str]) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(cells[key]) for key in EDGES)
    except ValueError:
        found = ",".join(cells[key] for key in EDGES)
        raise DataError(f"{where}: got {found}, expected four numbers", hint="correct the line") from None
    return left, top, right, bottom
