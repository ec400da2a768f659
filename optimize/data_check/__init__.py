"""What is wrong with a data set, before a model learns it.

```text
read_dataset ── pictures ── surfaces ─┬─ duplicates ─┐
                                      └─ overlaps ───┴─ search ── findings ── verdicts ── report, sheet
```

The one that matters most: a picture in `test` that shows what the model has seen in `train`. Copies are easy; crops of
one strip of steel, or six exposures of one tile, are what makes published numbers too good.
"""

from __future__ import annotations

import time

from optimize.data_check.findings import Findings
from optimize.data_check.pairs import Pair
from optimize.data_check.pictures import read_pictures
from optimize.data_check.report import DataCheck, report_json, report_lines
from optimize.data_check.search import search
from optimize.data_check.sheet import write_contact_sheet
from optimize.data_check.verdicts import Check, judge
from optimize.dataset import Dataset
from optimize.progress import Progress

__all__ = ["Check", "DataCheck", "Findings", "Pair", "check_data", "report_json", "report_lines", "write_contact_sheet"]


def check_data(dataset: Dataset, progress: Progress) -> DataCheck:
    """Read every picture of a set, look for what must not be there, and say what to do.

    Args:
        dataset: with or without splits; without, pairs of one surface are found and named, but leak nowhere.
        progress: told of pictures and pairs.
    """
    started = time.monotonic()
    pictures, unreadable = read_pictures(dataset.samples, progress)
    shared = search(pictures, progress)
    findings = Findings(
        dataset=dataset,
        pictures=pictures,
        unreadable=unreadable,
        exact=shared.exact,
        near=shared.near,
        overlaps=shared.overlaps,
        alike=shared.alike,
        seconds=time.monotonic() - started,
    )
    return DataCheck(findings=findings, checks=judge(findings))
