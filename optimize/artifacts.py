"""What a bundle holds beside its graphs: ranges, sensitivities, and a calibration cache for DLA and TensorRT 8."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from optimize.budget import Fitted
from optimize.errors import ModelError
from optimize.progress import Progress
from optimize.quantize.cache import write_cache
from optimize.quantize.place import Target
from optimize.quantize.quantizer import Quantizer
from optimize.quantize.search import sensitivity_json
from optimize.quantize.stability import ranges_json, stability

__all__ = ["CACHE", "RANGES", "SENSITIVITY", "Sidecar", "sidecar_files"]

RANGES, SENSITIVITY, CACHE = "ranges.json", "sensitivity.json", "calib.cache"

CACHE_VERSION = "8.6.1"
"""The TensorRT named in the cache's first line; later ones that read caches do not compare it."""

LEAST = 1e-6
"""What stands for the range of a tensor that is always 0: a cache knows no zero."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """Files beside the graphs.

    Attributes:
        files: by name in the bundle.
        growing: tensors whose range would go on growing with more calibration pictures.
        warnings: what could not be written, one sentence each.
    """

    files: Mapping[str, bytes]
    growing: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def sidecar_files(quantizer: Quantizer, fitted: Mapping[Target, Fitted], seed: int, progress: Progress) -> Sidecar:
    """Write them; the same graphs and pictures give the same bytes.

    Args:
        quantizer: the calibrated float graph.
        fitted: each target's graph.
        seed: of the random halves that show whether ranges hold.
        progress: hears where we are.
    """
    report = stability(quantizer.stats, seed)
    ranges: dict[str, Any] = {"equalization": quantizer.strength}
    for target in fitted:
        spans = quantizer.spans(target)
        ranges[target] = json.loads(ranges_json(quantizer.stats, spans, report))
    files = {
        RANGES: _canonical(ranges),
        SENSITIVITY: sensitivity_json({target: (found.ranking, found.result) for target, found in fitted.items()}),
    }
    if "trt" not in fitted:
        return Sidecar(files=files, growing=report.growing)
    largest = {name: max(value, LEAST) for name, value in quantizer.float_ranges(progress).items()}
    try:
        return Sidecar(files={**files, CACHE: write_cache(largest, version=CACHE_VERSION)}, growing=report.growing)
    except ModelError as error:
        why = f"no {CACHE}, which only DLA and TensorRT 8 need: {error.message}"
        return Sidecar(files=files, growing=report.growing, warnings=(why,))


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
