"""Running a graph in ONNX Runtime, in one of two arithmetics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["Mode", "open_session", "outputs_of"]

Mode = Literal["here", "exact"]
"""`here`: all optimizations, the fused integer kernels of this CPU. `exact`: optimizations off, Q/DQ computed in
float as the standard says; what a CPU with VNNI or an ARM core gives up to one step on ties."""


def open_session(graph: bytes, mode: Mode) -> Any:
    """An InferenceSession on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if mode == "here" else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def outputs_of(session: Any, images: Iterable[NDArray[np.uint8]], output: str | None = None) -> NDArray[np.float32]:
    """One output for each picture.

    Args:
        session: a graph with one input that takes one picture.
        images: each (height_px, width_px, 3) uint8.
        output: its name; None takes `logits`, or the first where there is no such output.

    Returns:
        (n, …) float32, the batch axis of each inference taken off.
    """
    names = [value.name for value in session.get_outputs()]
    wanted = output or ("logits" if "logits" in names else names[0])
    source = session.get_inputs()[0].name
    return np.concatenate([session.run([wanted], {source: image[None]})[0] for image in images])
