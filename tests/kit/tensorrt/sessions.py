"""The graph run by ONNX Runtime with optimizations off: what explicit Q/DQ must compute."""

from __future__ import annotations

from typing import Any

__all__ = ["session"]


def session(graph: bytes) -> Any:
    """A session on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
