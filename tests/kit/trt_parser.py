"""The real TensorRT-RTX parser and builder, for tests marked `tensorrt`; no GPU is needed.

The reader of plans lives with the benchmarks, which need it too: `tools/bench_models/trt_plan.py`.
"""

from __future__ import annotations

from tools.bench_models.trt_plan import (
    Int8Share,
    PlanLayer,
    TrtError,
    build_plan,
    int8_convs,
    int8_share,
    log_lines,
    plan_layers,
)

__all__ = [
    "Int8Share",
    "PlanLayer",
    "TrtError",
    "build_plan",
    "int8_convs",
    "int8_share",
    "log_lines",
    "plan_layers",
]
