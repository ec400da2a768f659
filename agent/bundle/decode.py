"""From a graph's numbers to findings: temperature, softmax, defect score, uncertainty; boxes are in `boxes`.

Pure, in float64, and the same code on the workstation and on the device. A number that is not finite is never passed
on: it is an error here, and an `error` verdict later.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle.manifest import Manifest, Severity
from agent.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Classification", "Finding", "decode_classification", "findings_from_boxes", "heatmap_from_cam"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the model believes to see.

    Attributes:
        class_name: its class.
        severity: the class's severity, from the manifest.
        score: probability or confidence, 0 to 1.
        box_px: x, y, width, height in pixels of the frame, origin top left; None when the whole picture is meant.
        size_mm: the box's longer side in millimetres; None without a box, or when the pixel pitch is not known.
        zone: the zone of the policy that it lies in; None outside all zones.
    """

    class_name: str
    severity: Severity
    score: float
    box_px: tuple[float, float, float, float] | None = None
    size_mm: float | None = None
    zone: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """What a classifier's logits mean.

    Attributes:
        findings: every class with its probability, highest first; equal ones in the manifest's order.
        defect_score: 1 - P(good), that is the sum over all classes whose severity is not `ok`; 0 to 1.
        uncertainty: entropy of the probabilities over its maximum, 0 (sure) to 1 (no idea).
    """

    findings: tuple[Finding, ...]
    defect_score: float
    uncertainty: float


def decode_classification(logits: NDArray[Any], manifest: Manifest) -> Classification:
    """Turn logits into probabilities, a defect score and an uncertainty.

    Probabilities are softmax(logits / temperature) (temperature scaling: Guo et al., ICML 2017). A manifest without
    an `ok` class gives a defect score of 1 for every part.

    Args:
        logits: (1, C) or (C,), any float type, C in the manifest's class order.
        manifest: gives classes, severities and the temperature.

    Raises:
        EngineError: another shape, or a value that is not finite.
    """
    count = len(manifest.classes)
    if logits.shape not in ((1, count), (count,)):
        raise EngineError(
            f"logits: got shape {logits.shape}, expected (1, {count}), one per class of the manifest",
            hint="rebuild the bundle: its graph and its classes do not belong together",
        )
    probabilities = _softmax(logits.reshape(count).tolist(), manifest.temperature)
    findings = tuple(
        Finding(
            class_name=manifest.classes[i].name,
            severity=manifest.classes[i].severity,
            score=probabilities[i],
        )
        for i in sorted(range(count), key=lambda i: -probabilities[i])
    )
    # Summed, not 1 - P(good), which would lose the last digits of a small score; rounding may end just above 1.
    defect_score = min(1.0, math.fsum(f.score for f in findings if f.severity != "ok"))
    return Classification(findings=findings, defect_score=defect_score, uncertainty=_entropy(probabilities))


def findings_from_boxes(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    manifest: Manifest,
    pixel_mm: float | None,
) -> tuple[Finding, ...]:
    """Name what was detected.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the frame.
        scores: (n,), 0 to 1, best first.
        classes: (n,), in the manifest's order.
        manifest: gives names and severities.
        pixel_mm: one pixel in millimetres, for the sizes; None when nobody knows.

    Returns:
        As many findings, in the same order.
    """
    findings = []
    for (x0, y0, x1, y1), score, at in zip(boxes.tolist(), scores.tolist(), classes.tolist(), strict=True):
        size_mm = None if pixel_mm is None else max(x1 - x0, y1 - y0) * pixel_mm
        kind = manifest.classes[at]
        findings.append(
            Finding(
                class_name=kind.name,
                severity=kind.severity,
                score=score,
                box_px=(x0, y0, x1 - x0, y1 - y0),
                size_mm=size_mm,
            )
        )
    return tuple(findings)


def heatmap_from_cam(cam: NDArray[Any], class_index: int) -> NDArray[np.float32]:
    """Pick one class's activation map and stretch it to 0..1.

    Softmax ignores a constant added to all logits, so the map's zero means nothing: lowest becomes 0, highest 1
    (class activation mapping: Zhou et al., CVPR 2016). A flat map becomes all zeros.

    Args:
        cam: (1, C, h, w), any float type.
        class_index: which class, in the manifest's order.

    Returns:
        (h, w) float32, 0 to 1, own memory.

    Raises:
        EngineError: another number of dimensions or classes, or a value that is not finite.
    """
    if cam.ndim != 4 or cam.shape[0] != 1 or cam.shape[1] <= class_index or 0 in cam.shape:
        raise EngineError(f"cam: got shape {cam.shape}, expected (1, C, h, w) with C over {class_index}")
    chosen = cam[0, class_index].astype(np.float64)
    low, high = float(chosen.min()), float(chosen.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EngineError("cam: the model gave values that are not numbers (NaN or infinity)")
    chosen -= low
    if high > low:
        chosen /= high - low
    return np.asarray(chosen, dtype=np.float32)


def _softmax(logits: list[float], temperature: float) -> list[float]:
    """In plain floats: for the few classes of an inspection it takes a tenth of what array calls take."""
    if not all(map(math.isfinite, logits)):
        raise EngineError(f"logits: the model gave {logits}, expected finite numbers")
    highest = max(logits)
    powers = [math.exp((logit - highest) / temperature) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def _entropy(probabilities: list[float]) -> float:
    """Shannon entropy over log C, 0 to 1; p log p is 0 at p = 0."""
    entropy = -math.fsum(p * math.log(p) for p in probabilities if p > 0)
    return min(max(entropy / math.log(len(probabilities)), 0.0), 1.0)
