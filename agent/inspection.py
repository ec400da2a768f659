"""Inspector and Inspection: what the model saw in one frame.

`Inspector.inspect` never raises for a part: whatever fails inside becomes the inspection's fault, and from there an
`error` verdict. It also carries on a fault that came instead of a frame.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from agent.bundle.manifest import Severity
from agent.frame import Fault, Frame, Part

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BundleRef", "Finding", "Inspection", "StageMs"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BundleRef:
    """Which bundle decided.

    Attributes:
        name: name and version, `neu-1.0.0`.
        digest: SHA-256 of its manifest, hex; it covers every file of the bundle.
    """

    name: str
    digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the model believes to see.

    Attributes:
        class_name: its class.
        severity: the class's severity, from the manifest.
        score: probability or confidence, 0 to 1.
        box_px: x, y, width, height in pixels of the frame, origin top left; None when the whole picture is meant.
    """

    class_name: str
    severity: Severity
    score: float
    box_px: tuple[float, float, float, float] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageMs:
    """What each stage took, in milliseconds."""

    capture: float = 0.0
    preprocess: float = 0.0
    infer: float = 0.0
    decode: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What the model saw, or why it saw nothing.

    Attributes:
        part: whose inspection this is.
        frame: the exposure; None when there was none.
        fault: the reason why there is no result; None when there is one.
        findings: every class with its probability, highest first (classify); detections (detect).
        defect_score: 1 - P(good), 0 to 1; None when there is no result.
        uncertainty: entropy of the class probabilities over its maximum, 0 (sure) to 1 (no idea).
        heatmap: (h, w) float32, 0 to 1, where the reason lies; None when the graph has no map.
        ms: milliseconds per stage.
        bundle: which bundle.
        engine: which engine, in words: `onnxruntime 1.32.0 CPU int8, 1 thread`.
    """

    part: Part
    frame: Frame | None
    fault: Fault | None
    findings: tuple[Finding, ...] = ()
    defect_score: float | None = None
    uncertainty: float | None = None
    heatmap: NDArray[np.float32] | None = None
    ms: StageMs = StageMs()
    bundle: BundleRef
    engine: str
