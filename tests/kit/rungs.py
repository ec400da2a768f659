"""Rungs for ladders: figures made up for pure tests, and small real networks that lost something on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from agent.profile import GraphTiming
from optimize.ladder import ClassCount, LostClass, Rung
from tests.kit.float_models import CLASSES, conv_classifier

__all__ = ["LOST", "blind_to", "rung", "with_weights"]

LOST = LostClass(name="spot", before=4, after=0, n=4, p_value=0.0625, rule="none")


def rung(name: str, ms: float | None = 10.0, drop: float = 0.0, **changes: Any) -> Rung:
    """A rung of made-up figures."""
    timing = None if ms is None else GraphTiming(file=name, p50_ms=ms, p95_ms=ms, p99_ms=ms, n=15)
    values: dict[str, Any] = {
        "name": name,
        "file": f"{name}.onnx",
        "sha256": "0" * 64,
        "graph": "fp32",
        "made_from": None,
        "task": "classify",
        "n": 100,
        "accuracy": 0.99 - drop / 100,
        "drop_points": drop,
        "drop_95": (drop - 1, drop + 1),
        "recall": (ClassCount(name="spot", severity="major", hits=4, n=4),),
        "escapes": 0,
        "defects": 60,
        "escape_rate": 0.0,
        "escape_upper_95": 0.0487,
        "overkills": 0,
        "goods": 40,
        "decisions_changed": 0,
        "flips": (),
        "lost": (),
        "fell": (),
        "unjudged": 0,
        "failure": "",
        "macs": 1_000_000,
        "parameters": 1000,
        "size_bytes": 4_000_000,
        "structure": "a" * 64,
        "temperature": 1.0,
        "latency": timing,
    }
    return Rung(**{**values, **changes})


def with_weights(change: Any, data: bytes | None = None) -> bytes:
    """A classifier of `tests.kit.float_models` with other weights: `change` takes names to arrays and changes them."""
    model = onnx.load_model_from_string(conv_classifier() if data is None else data)
    arrays = {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    change(arrays)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(arrays[tensor.name], dtype=np.float32), tensor.name))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def blind_to(label: str) -> bytes:
    """The classifier that never calls this class; all others it calls as before."""

    def silence(arrays: dict[str, Any]) -> None:
        arrays["bias"][CLASSES.index(label)] = -100.0

    return with_weights(silence)
