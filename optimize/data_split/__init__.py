"""Splits that do not leak: which pictures show one surface, and train, calib, val and test that never divide them.

```text
read_dataset ── data_check.search ── evidence ─┐
                          └────────── frames ──┴─ grouping ── plan ── table, report, sheet
```

A group is what evidence connects, directly or through other pictures. An invented link makes a group larger than it
need be; a missed one lets a model be examined on what it learned. So in doubt pictures are linked.
"""

from __future__ import annotations

from optimize.data_split.evidence import EVIDENCE, Link
from optimize.data_split.frames import FrameRule
from optimize.data_split.grouping import Grouping, group_pictures
from optimize.data_split.plan import SPLIT_FRACTIONS, SplitPlan, plan_splits
from optimize.data_split.report import plan_json, plan_lines
from optimize.data_split.sheet import write_split_sheet
from optimize.data_split.table import check_out, write_splits

__all__ = [
    "EVIDENCE",
    "SPLIT_FRACTIONS",
    "FrameRule",
    "Grouping",
    "Link",
    "SplitPlan",
    "check_out",
    "group_pictures",
    "plan_json",
    "plan_lines",
    "plan_splits",
    "write_split_sheet",
    "write_splits",
]
