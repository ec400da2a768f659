"""The table of splits: written beside its target, read back, and only then put in its place."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from pathlib import Path

from optimize.data_split.plan import SplitPlan
from optimize.dataset import Dataset, read_dataset
from optimize.errors import DataError

__all__ = ["check_out", "write_splits"]


def check_out(path: Path, *, is_forced: bool) -> None:
    """Refuse a target before any work is done.

    Raises:
        DataError: it is no `.csv`, or it exists and that is not wanted.
    """
    if path.suffix.lower() != ".csv":
        raise DataError(f"{path}: expected a file that ends in .csv", hint="--out splits.csv")
    if path.is_dir():
        raise DataError(f"{path}: is a folder", hint=f"--out {path / 'splits.csv'}")
    if path.exists() and not is_forced:
        raise DataError(f"{path}: exists already", hint="give another name, or --force to write over it")


def write_splits(plan: SplitPlan, path: Path, *, is_forced: bool = False) -> None:
    """Write file, class, split and group, by file name; and `root`, when the table does not lie with its pictures.

    Args:
        plan: what to write.
        path: a `.csv` file; its folder is made. Data read from it are those of the plan, or nothing is written.
        is_forced: whether a file that exists may be written over.

    Raises:
        DataError: the file exists already, can't be written, or a name in it can't be written in a table.
    """
    check_out(path, is_forced=is_forced)
    part = path.with_name(f".{path.stem}.{os.getpid()}.csv")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(_text(plan.dataset, path), encoding="utf-8", newline="")
        _check_written(plan.dataset, part)
        part.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        hint = "give --out a place that is yours; the data folder may stay as it is"
        raise DataError(f"{path}: can't be written ({error})", hint=hint) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _text(dataset: Dataset, path: Path) -> str:
    root = dataset.root.resolve()
    is_beside = path.parent.resolve() == root
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "class", "split", "group", *([] if is_beside else ["root"])])
    for s in dataset.samples:
        table.writerow([s.file, s.label, s.split, s.group, *([] if is_beside else [root.as_posix()])])
    return text.getvalue()


def _check_written(dataset: Dataset, part: Path) -> None:
    """A name with a line break, a space at its end or a backslash does not survive a table; find out now."""
    read = read_dataset(part)
    for wanted, got in zip(dataset.samples, read.samples, strict=True):
        if (wanted.file, wanted.label, wanted.split, wanted.group) != (got.file, got.label, got.split, got.group):
            raise DataError(f"{wanted.path}: its name can't be written in a table of splits", hint="rename the file")
