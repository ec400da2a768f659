"""One thing that the lint has to say."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

__all__ = ["SEVERITIES", "TARGETS", "Finding", "Severity", "Target"]

Severity = Literal["error", "warning", "note"]
"""`error`: refused, or computes nonsense. `warning`: slow, or less accurate than it could be. `note`: good to know."""

Target = Literal["cpu", "trt"]
"""ONNX Runtime's CPU kernels on x86 and ARM, or TensorRT on a GPU."""

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that makes a graph slow or wrong on a target.

    Attributes:
        rule: what was found, a name that stays the same from release to release.
        severity: how bad it is.
        target: where; `both` when it is the same for all.
        layer: the node's name (its first output where it has none), or the tensor's, in the graph as it was given.
        message: what it is, and why it is slow or wrong; it reads on after the layer's name.
        remedy: what to do.
    """

    rule: str
    severity: Severity
    target: Literal["cpu", "trt", "both"]
    layer: str
    message: str
    remedy: str

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES, self.severity
        assert self.target in (*TARGETS, "both"), self.target
