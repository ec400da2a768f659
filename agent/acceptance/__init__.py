"""Acceptance: a device proves that its engine does what the build promised, before it goes live and while it is.

```text
goldens of the bundle ─ replay ─┬─ measured ─ judged against the limits ─ file: accepted, or refused ─ gate: who may run
                                └─ watch: one golden between two parts, for as long as the line runs
```
"""

from agent.acceptance.file import (
    ACCEPT_AGAIN,
    Acceptance,
    write_acceptance,
)
from agent.acceptance.gate import Admission, admit, check_admission, require_acceptance
from agent.acceptance.measured import Latency, Measured, board_to_json, judge, measure, measured_to_json, unmeasured
from agent.acceptance.replay import Answer, GoldenReplay, reference_graph
from agent.acceptance.watch import EngineWatch

__all__ = [
    "ACCEPT_AGAIN",
    "Acceptance",
    "Admission",
    "Answer",
    "EngineWatch",
    "GoldenReplay",
    "Latency",
    "Measured",
    "admit",
    "board_to_json",
    "check_admission",
    "judge",
    "measure",
    "measured_to_json",
    "reference_graph",
    "require_acceptance",
    "unmeasured",
    "write_acceptance",
]
