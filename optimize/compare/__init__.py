"""Which of two or more bundles misses fewer critical defects at equal overkill, and what these parts can show of it."""

from __future__ import annotations

from optimize.compare.bundles import CompareOptions, compare_bundles
from optimize.compare.comparison import Comparison, ModelResult, Operating, compare, operate
from optimize.compare.decision import Choice
from optimize.compare.picture import draw_comparison
from optimize.compare.timing import Latency
from optimize.compare.units import Judged, Units, Verdicts, box_units, part_units

__all__ = [
    "Choice",
    "CompareOptions",
    "Comparison",
    "Judged",
    "Latency",
    "ModelResult",
    "Operating",
    "Units",
    "Verdicts",
    "box_units",
    "compare",
    "compare_bundles",
    "draw_comparison",
    "operate",
    "part_units",
]
