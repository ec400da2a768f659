"""`data split` on sets whose groups are known: which pairs of one group it puts together, and which it invents.

The `group` and `split` columns are taken away before, and asked afterwards. A pair is two pictures of one group.

A column is no ground truth where its author looked for less: that of NEU steel joins crops from about 45 % of overlap
on. So besides the share of our pairs that the column has too, two figures are given that do not rest on it: the share
among the links that overlap enough for the column to know them, and a control. For the control each picture is compared
with the mirror images of the others: such a pair shows the same texture and the same kinds of defect, but never one
surface, so every link found there is an invention, and as many are to be expected among the links proper.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimize.data_check.overlaps import count_mirrored
from optimize.data_check.surfaces import surfaces_of
from optimize.data_split import Grouping, group_pictures
from optimize.dataset import read_dataset
from optimize.intervals import group_interval, ratio
from optimize.progress import Progress, SilentProgress

__all__ = ["split_figures"]

COLUMN_SHARE = 0.45
"""Overlap from which the NEU column joins crops; of the links below it has 60 %, of those above 99 %."""


def split_figures(root: Path, progress: Progress | None = None, *, has_control: bool = True) -> dict[str, Any]:
    """Split a set without its splits and groups, and compare with its `group` column.

    Args:
        root: a set with a `group` column.
        progress: told of pictures and pairs.
        has_control: whether mirror images are compared too; doubles the time.

    Returns:
        Shares as `{value, low, high, n}`, with 95 % intervals by group, and counts:
        `recall`: of the pairs of one column group, those that we put together, directly or through others.
        `precision`: of our direct links that overlap by 45 % or more, or are frame neighbours, those the column has.
        `precision_direct`: the same of all direct links. `precision_transitive`: of all pairs that we put together.
        `control`: links that were found, links to mirror images, and 1 minus the one over the other.
        `pairs`, `column_pairs`, `links` by evidence, `groups`, `column_groups`, `largest`, `column_largest`,
        `seconds`, and `cpu_seconds` of the grouping.
    """
    progress = progress or SilentProgress()
    column = [str(s.group or s.file) for s in read_dataset(root, has_splits=False).samples]
    bare = read_dataset(root, has_splits=False, group_by="")
    started, cpu = time.monotonic(), time.process_time()
    grouping = group_pictures(bare, progress)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    ours = [str(s.group) for s in grouping.dataset.samples]
    mine, theirs = _pairs(ours), _pairs(column)
    direct = _direct(grouping, 0.0)
    known = _direct(grouping, COLUMN_SHARE)
    return {
        "recall": _share(theirs, mine, column),
        "precision": _share(known, theirs, ours),
        "precision_direct": _share(direct, theirs, ours),
        "precision_transitive": _share(mine, theirs, ours),
        "control": _control(grouping, progress) if has_control else None,
        "pairs": len(mine),
        "column_pairs": len(theirs),
        "links": dict(grouping.evidence),
        "frame_rules": [dataclasses.asdict(rule) for rule in grouping.rules],
        "groups": len(set(ours)),
        "column_groups": len(set(column)),
        "largest": max(grouping.sizes.values()),
        "column_largest": max(np.unique(column, return_counts=True)[1].tolist()),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def _pairs(groups: Sequence[str]) -> set[tuple[int, int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    return {(a, b) for m in members.values() for place, a in enumerate(m) for b in m[place + 1 :]}


def _direct(grouping: Grouping, least: float) -> set[tuple[int, int]]:
    pairs = (link.pair for link in grouping.links if link.pair.share >= least)
    return {(min(p.first, p.second), max(p.first, p.second)) for p in pairs}


def _share(pairs: Iterable[tuple[int, int]], among: set[tuple[int, int]], groups: Sequence[str]) -> dict[str, Any]:
    """How many of some pairs are among others; whole groups are drawn anew for the interval."""
    rows = [(groups[a], (a, b) in among) for a, b in sorted(pairs)]
    if not rows:
        return {"value": None, "low": None, "high": None, "n": 0}
    counts = np.array([(hit, 1) for _, hit in rows], dtype=np.float64)
    interval = group_interval([group for group, _ in rows], counts, ratio)
    assert interval is not None
    value = float(counts[:, 0].mean())
    return {"value": round(value, 4), "low": interval.to_json()[0], "high": interval.to_json()[1], "n": len(rows)}


def _control(grouping: Grouping, progress: Progress) -> dict[str, Any]:
    found = sum(link.evidence in ("exposure", "overlap", "near copy") for link in grouping.links)
    invented = count_mirrored(grouping.pictures, surfaces_of(grouping.pictures), progress)
    return {"links": found, "mirrored": invented, "value": round(1 - invented / found, 4) if found else None}
