"""Acceptance: a device proves that its engine does what the build promised, before it goes live and while it is.

```text
goldens of the bundle ─ replay ─┬─ measured ─ judged against the limits ─ file: accepted, or refused
                                └─ watch: one golden between two parts, for as long as the line runs
```
"""

from agent.acceptance.file import (
    ACCEPT_AGAIN,
    Acceptance,
    accepted_in,
    accepted_of,
    refuse_refused,
    refused_in,
    write_acceptance,
)
from agent.acceptance.measured import Latency, Measured, board_to_json, judge, measure, measured_to_json
from agent.acceptance.replay import Answer, GoldenReplay, reference_graph
from agent.acceptance.watch import EngineWatch

__all__ = [
    "ACCEPT_AGAIN",
    "Acceptance",
    "Answer",
    "EngineWatch",
    "GoldenReplay",
    "Latency",
    "Measured",
    "accepted_in",
    "accepted_of",
    "board_to_json",
    "judge",
    "measure",
    "measured_to_json",
    "reference_graph",
    "refuse_refused",
    "refused_in",
    "write_acceptance",
]
