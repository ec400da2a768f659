"""The contact sheet of a split: linked pairs by evidence, the doubtful ones first, and the largest group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.data_check.sheet import COLUMNS, cell_of, pair_cells, row_of, write_rows
from optimize.data_split.evidence import EVIDENCE, Link
from optimize.data_split.plan import SplitPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["write_split_sheet"]

PAIRS_EACH = 8
GROUP_PICTURES = 32


def write_split_sheet(plan: SplitPlan, path: Path) -> None:
    """Draw what a person should look at before trusting the groups.

    Args:
        plan: the splits.
        path: a PNG (or JPEG) file; its folder is made.

    Raises:
        DataError: the file can't be written.
    """
    rows = [row for kind in EVIDENCE for row in _evidence(plan, kind)]
    write_rows([*rows, *_largest(plan)], path)


def _evidence(plan: SplitPlan, kind: str) -> Iterator[NDArray[np.uint8]]:
    links = [link for link in plan.grouping.links if link.evidence == kind]
    if not links:
        return
    shown = _chosen(links)
    cells = [cell for link in shown for cell in pair_cells(plan.grouping.pictures, link.pair)]
    yield from _rows(f"{kind}: {len(shown)} of {len(links)} pairs, the doubtful first", cells)


def _chosen(links: Sequence[Link]) -> list[Link]:
    """Half of them with the least correlation, half evenly spaced over the others."""
    doubtful = sorted(links, key=lambda link: link.pair.correlation)
    first, rest = doubtful[: PAIRS_EACH // 2], doubtful[PAIRS_EACH // 2 :]
    spaced = sorted({k * len(rest) // (PAIRS_EACH // 2) for k in range(PAIRS_EACH // 2)}) if rest else []
    return [*first, *(rest[k] for k in spaced)]


def _largest(plan: SplitPlan) -> Iterator[NDArray[np.uint8]]:
    group, size = next(iter(plan.grouping.sizes.items()))
    indices = [i for i, s in enumerate(plan.grouping.dataset.samples) if s.group == group]
    chosen = sorted({indices[k * size // GROUP_PICTURES] for k in range(GROUP_PICTURES)})
    pictures = plan.grouping.pictures
    cells = [cell_of(pictures[i].grey, Path(pictures[i].sample.file).stem) for i in chosen]
    yield from _rows(f"the largest group: {len(chosen)} of {size} pictures", cells)


def _rows(title: str, cells: Sequence[Any]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(cells), COLUMNS):
        yield row_of("" if start else title, cells[start : start + COLUMNS])
