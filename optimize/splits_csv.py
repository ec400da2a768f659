"""A table of splits: opened, and its rows checked one by one; nothing in the file is trusted."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from optimize.errors import DataError
from optimize.paths import path_below
from optimize.samples import CSV_NAME, SPLITS, Sample

__all__ = ["Columns", "SplitTable", "open_table", "read_rows", "read_table"]

_GROUP_COLUMNS = ("group", "part", "lot")
_ROOT_COLUMN = "root"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a table count; see `read_dataset`."""

    has_splits: bool
    group_by: str | None


def read_table(path: Path, columns: Columns) -> tuple[Path, list[Sample], list[str]]:
    """A table of splits that was named itself: its root, its rows, and no files that were overlooked.

    Raises:
        DataError: the table or its root can't be used.
    """
    table = open_table(path)
    roots = {str(row.get(_ROOT_COLUMN) or "").strip() for _, row in table.rows} or {""}
    if len(roots) > 1:
        raise DataError(f"{path}: root: got {sorted(roots)[:3]}, expected one folder for all rows")
    root = path.parent / roots.pop()
    try:
        is_there = root.is_dir()
    except OSError:
        is_there = False
    if not is_there:
        hint = f"correct its root column, or copy it to the images as {CSV_NAME}"
        raise DataError(f"{path}: root: {root}: no such folder", hint=hint)
    return root, read_rows(table, root, columns), []


_Row: TypeAlias = "dict[str | None, str | list[str] | None]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SplitTable:
    """A table of splits as it was written: its columns, and each row with the line it ends in."""

    path: Path
    columns: list[str]
    rows: list[tuple[int, _Row]]


def open_table(
    path: Path, *, required: Sequence[str] = ("file", "class"), form: str = "file,class,split[,group]"
) -> SplitTable:
    """Read a CSV file, with commas or semicolons.

    Args:
        path: the file, UTF-8.
        required: columns that must be there.
        form: what line 1 should look like, for the message.

    Raises:
        DataError: not text, no CSV, or a column is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as UTF-8 text ({error})") from error
    if "\0" in text:
        raise DataError(f"{path}: holds NUL bytes, expected text")
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in head and "," not in head else ",")
    columns = [column.strip() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    missing = [column for column in required if column not in columns]
    if missing:
        raise DataError(f"{path}: line 1: got the columns {columns}, expected {form}")
    rows: list[tuple[int, _Row]]
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    return SplitTable(path=path, columns=columns, rows=rows)


def read_rows(table: SplitTable, root: Path, columns: Columns) -> list[Sample]:
    """The images that the table lists.

    Raises:
        DataError: with the line that can't be used.
    """
    if columns.group_by and columns.group_by not in table.columns:
        found = ", ".join(table.columns)
        raise DataError(f"{table.path}: got no column {columns.group_by!r} to group by (there are: {found})")
    rows = _Rows(root=root, path=table.path, columns=table.columns, wanted=columns)
    for line, row in table.rows:
        rows.add(line, row)
    rows.finish()
    return rows.samples


class _Rows:
    """The rows of a `splits.csv`, checked one by one; nothing in the file is trusted."""

    def __init__(self, *, root: Path, path: Path, columns: list[str], wanted: Columns) -> None:
        self.samples: list[Sample] = []
        self._root, self._path = root, path
        self._has_split = wanted.has_splits and "split" in columns
        self._group_column = wanted.group_by
        if wanted.group_by is None:
            self._group_column = next((c for c in _GROUP_COLUMNS if c in columns), None)
        self._line_of: dict[str, int] = {}
        self._split_of: dict[str, tuple[str | None, int]] = {}
        self._missing: list[tuple[int, str]] = []

    def add(self, line: int, row: Mapping[str | None, str | list[str] | None]) -> None:
        """Check one row and keep it."""
        if None in row or None in row.values():
            raise self._error(line, "has more or fewer cells than line 1")
        cells = {str(column): str(cell).strip() for column, cell in row.items()}
        file = self._file(line, cells["file"])
        if not cells["class"]:
            raise self._error(line, f"{file}: class: is empty")
        split = self._split(line, cells["split"]) if self._has_split else None
        group = cells[self._group_column] or None if self._group_column else None
        if group is not None:
            self._keep_together(line, group, split)
        path = self._root / file
        if not path.is_file():
            self._missing.append((line, file))
        self.samples.append(Sample(path=path, file=file, label=cells["class"], split=split, group=group))

    def finish(self) -> None:
        """Refuse the whole when a file is missing: a set that shrank unseen gives wrong numbers."""
        if self._missing:
            line, file = self._missing[0]
            more = f" (and {len(self._missing) - 1} more)" if len(self._missing) > 1 else ""
            raise self._error(line, f"{file}: no such file below {self._root}{more}")

    def _file(self, line: int, cell: str) -> str:
        if not cell or not cell.isprintable():
            raise self._error(line, f"file: got {cell!r}, expected a path below {self._root}")
        file = path_below(cell)
        if file is None:
            raise self._error(line, f"file: {cell!r} leads out of {self._root}")
        if file in self._line_of:
            raise self._error(line, f"{file}: stands in line {self._line_of[file]} already")
        self._line_of[file] = line
        return file

    def _split(self, line: int, cell: str) -> str:
        if cell not in SPLITS:
            near = difflib.get_close_matches(cell.lower(), SPLITS, n=1, cutoff=0.4)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise self._error(line, f"split: got {cell!r}, expected one of {', '.join(SPLITS)}{meant}")
        return cell

    def _keep_together(self, line: int, group: str, split: str | None) -> None:
        first, first_line = self._split_of.setdefault(group, (split, line))
        if first != split:
            raise self._error(
                line,
                f"group {group!r} is in {split} here and in {first} in line {first_line}: a part lies in one split",
            )

    def _error(self, line: int, message: str) -> DataError:
        return DataError(f"{self._path}: line {line}: {message}", hint=f"correct the line in {self._path}")
