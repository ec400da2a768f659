"""The check as lines for people and as JSON; the keys of the JSON are listed in `defect-opt data check --help`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from optimize.data_check.findings import Findings, is_leak
from optimize.data_check.pairs import Pair
from optimize.data_check.verdicts import Check, Level, worst

__all__ = ["DataCheck", "report_json", "report_lines"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataCheck:
    """A data set, what was found in it, and what that means.

    Attributes:
        findings: the facts.
        checks: the questions and answers.
    """

    findings: Findings
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Level:
        """The gravest answer."""
        return worst(self.checks)


def report_lines(check: DataCheck) -> list[str]:
    """A table of counts, then a line per question and its remedy."""
    found = check.findings
    lines = [f"{found.dataset.root}: {len(found.dataset):,} pictures; other files: {len(found.dataset.ignored):,}", ""]
    if found.counts:
        lines += [*_table(found), ""]
    width = max(len(c.name) for c in check.checks)
    for c in check.checks:
        lines.append(f"{c.verdict:<4}  {c.name:<{width}}  {c.text}")
        if c.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {c.remedy}")
    return [*lines, "", f"{check.verdict} ({found.seconds:.0f} s)"]


def _table(found: Findings) -> list[str]:
    columns = [*found.dataset.splits, "all"]
    width = max([5, *(len(name) for name in found.counts)])
    head = f"{'class':<{width}}" + "".join(f"{column:>8}" for column in columns)
    rows = [f"{name:<{width}}" + "".join(f"{row[c]:>8,}" for c in columns) for name, row in found.counts.items()]
    return [head, *rows]


def report_json(check: DataCheck) -> dict[str, Any]:
    """One JSON document."""
    found = check.findings
    sizes = Counter((p.width_px, p.height_px) for p in found.pictures).most_common()
    colour = sum(p.colour for p in found.pictures)
    return {
        "data": str(found.dataset.root),
        "verdict": check.verdict,
        "checks": [dataclasses.asdict(c) for c in check.checks],
        "n": len(found.dataset),
        "ignored": len(found.dataset.ignored),
        "splits": dict(found.dataset.splits),
        "classes": {name: dict(row) for name, row in found.counts.items()},
        "sizes": [{"width_px": w, "height_px": h, "n": n} for (w, h), n in sizes],
        "colour": {"grey": len(found.pictures) - colour, "colour": colour},
        "unreadable": [{"file": u.sample.file, "reason": u.reason} for u in found.unreadable],
        "exact_duplicates": [_set_json(found, group) for group in found.exact],
        "near_duplicates": [_near_json(found, pair) for pair in found.near],
        "overlaps": [_overlap_json(found, pair) for pair in found.overlaps],
        "seconds": round(found.seconds, 1),
    }


def _set_json(found: Findings, indices: Sequence[int]) -> dict[str, Any]:
    return {
        "files": found.files(indices),
        "classes": found.labels(indices),
        "splits": found.splits(indices),
        "leak": is_leak(found.pictures, indices),
    }


def _near_json(found: Findings, pair: Pair) -> dict[str, Any]:
    return {**_set_json(found, (pair.first, pair.second)), "correlation": round(pair.correlation, 3)}


def _overlap_json(found: Findings, pair: Pair) -> dict[str, Any]:
    indices = (pair.first, pair.second)
    return {
        "files": found.files(indices),
        "class": found.labels(indices)[0],
        "splits": found.splits(indices),
        "leak": is_leak(found.pictures, indices),
        "shift_px": list(pair.shift_px),
        "share": round(pair.share, 3),
        "correlation": round(pair.correlation, 3),
        "peak": None if pair.peak is None else round(pair.peak, 1),
    }
