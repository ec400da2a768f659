"""The plan as lines for people and as JSON; the keys of the JSON are listed in `defect-opt data split --help`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimize.data_split.evidence import EVIDENCE, Link
from optimize.data_split.frames import FrameRule
from optimize.data_split.plan import SplitPlan

__all__ = ["plan_json", "plan_lines"]

_MEANING = {
    "copy": "the same pixels",
    "near copy": "the same surface in the same place (saved again)",
    "exposure": "one scene under another light, shifted or not",
    "overlap": "crops that share a part of one surface",
    "frame number": "shot one after the other",
    "column": "the data's own group, part or lot",
}


def plan_lines(plan: SplitPlan, out: Path) -> list[str]:
    """Tables of images and groups, what linked them, warnings, and how to go on."""
    grouping = plan.grouping
    sizes = grouping.sizes
    n = len(plan.dataset)
    lines = [f"{plan.dataset.root}: {n:,} pictures in {len(sizes):,} groups", ""]
    lines += [*_table(plan), "", "pairs linked by"]
    lines += [f"  {k:<13}{count:>7,}  {_MEANING[k]}" for k, count in grouping.evidence.items() if count]
    lines += [f"  (none)         {'':>5}every picture is a group of its own"] if not grouping.links else []
    lines += [f"  {_rule(rule)}" for rule in grouping.rules]
    shared = sum(size for size in sizes.values() if size > 1)
    largest, size = next(iter(sizes.items()))
    lines += ["", f"{shared:,} pictures share a surface with another; the largest group holds {size}: {largest} ..."]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return [*lines, "", f"wrote {out} ({grouping.seconds:.0f} s)", f"Next: defect-opt train --data {out}"]


def _rule(rule: FrameRule) -> str:
    return (
        f"names like {rule.pattern}: frames at most {rule.gap} apart are one part (of such neighbours "
        f"{rule.near_linked / rule.near:.0%} visibly show one surface, of others {rule.far_linked / rule.far:.0%})"
    )


def _table(plan: SplitPlan) -> Iterator[str]:
    """Images (groups) by class and split."""
    names = [*plan.dataset.classes, "all"]
    width = max(5, *(len(name) for name in names))
    yield f"{'class':<{width}}" + "".join(f"{split:>15}" for split in (*plan.splits, "all"))
    for label in (*plan.dataset.classes, None):
        cells = list(plan.counts(label).values())
        cells.append((sum(n for n, _ in cells), sum(groups for _, groups in cells)))
        shown = (f"{n:,} ({groups:,})" for n, groups in cells)
        yield f"{'all' if label is None else label:<{width}}" + "".join(f"{cell:>15}" for cell in shown)
    yield "images (groups)"


def plan_json(plan: SplitPlan, out: Path) -> dict[str, Any]:
    """One JSON document."""
    grouping = plan.grouping
    sizes = grouping.sizes
    largest, size = next(iter(sizes.items()))
    return {
        "data": str(plan.dataset.root),
        "out": str(out),
        "n": len(plan.dataset),
        "groups": len(sizes),
        "group_sizes": {str(k): count for k, count in sorted(Counter(sizes.values()).items())},
        "largest": {"group": largest, "n": size},
        "seed": plan.seed,
        "fractions": dict(plan.fractions),
        "kept": list(plan.kept),
        "moved": list(plan.moved),
        "splits": _counts_json(plan, None),
        "classes": {label: _counts_json(plan, label) for label in plan.dataset.classes},
        "evidence": dict(grouping.evidence),
        "frame_rules": [dataclasses.asdict(rule) for rule in grouping.rules],
        "alike": list(grouping.alike),
        "across_classes": grouping.is_across_classes,
        "links": [_link_json(plan, link) for link in grouping.links],
        "warnings": list(plan.warnings),
        "seconds": round(grouping.seconds, 1),
    }


def _counts_json(plan: SplitPlan, label: str | None) -> dict[str, dict[str, int]]:
    return {split: {"n": n, "groups": groups} for split, (n, groups) in plan.counts(label).items()}


def _link_json(plan: SplitPlan, link: Link) -> dict[str, Any]:
    pair = link.pair
    document: dict[str, Any] = {
        "files": [plan.dataset.samples[i].file for i in (pair.first, pair.second)],
        "evidence": link.evidence,
    }
    if link.evidence in EVIDENCE[1:4]:  # found by looking
        document |= {
            "shift_px": list(pair.shift_px),
            "share": round(pair.share, 3),
            "correlation": round(pair.correlation, 3),
        }
    return document
