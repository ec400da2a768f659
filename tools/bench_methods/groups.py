"""`data split` on both sets: what it finds and invents against their columns, as checks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.data_split import group_pictures
from optimize.dataset import data_digest, read_dataset
from optimize.files import write_atomically
from optimize.progress import SilentProgress
from tools.bench_methods.splits import split_figures
from tools.bench_quantize.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optimize.dataset import Dataset

__all__ = ["found_groups", "groups_part"]


def groups_part(roots: Mapping[str, Path], work: Path) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Both checks take the worse of the two sets.

    `split_precision` is of links that the columns could know: those that share 45 % of the picture, from where the
    author of NEU's column joins crops (see `splits`). All other readings stand in the rows.
    """
    rows = [
        {"part": "splits", "set": name, **_kept(root, work / f"splits-{name}.json")} for name, root in roots.items()
    ]
    checks = {
        "split_recall": _worst(rows, "recall", "pairs of one column group that end in one group of ours"),
        "split_precision": _worst(rows, "precision", "direct links of at least 45 % overlap that the column has"),
    }
    return checks, rows


def found_groups(bare: Dataset, path: Path) -> Dataset:
    """A set with the groups that `data split` finds; kept in a file."""
    key = data_digest(bare)
    if path.is_file() and (kept := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
        groups = kept["groups"]
    else:
        groups = [s.group for s in group_pictures(bare, SilentProgress()).dataset.samples]
        write_atomically(path, json.dumps({"key": key, "groups": groups}).encode())
    pairs = zip(bare.samples, groups, strict=True)
    return dataclasses.replace(bare, samples=tuple(dataclasses.replace(s, group=group) for s, group in pairs))


def _kept(root: Path, path: Path) -> dict[str, Any]:
    """The figures of a set; they take minutes, so they are kept."""
    key = data_digest(read_dataset(root))
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["key"] == key:
            return dict(found["figures"])
    figures = split_figures(root)
    write_atomically(path, json.dumps({"key": key, "figures": figures}).encode())
    return figures


def _worst(rows: Sequence[Mapping[str, Any]], key: str, what: str) -> Figure:
    row = min(rows, key=lambda row: row[key]["value"])
    found = row[key]
    return Figure(
        value=found["value"], low=found["low"], high=found["high"], why=f"{what}; {row['set']}, the worse set"
    )
