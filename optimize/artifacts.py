"""What a bundle holds beside its graphs: ranges, sensitivities, and a calibration cache for DLA and TensorRT 8."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optimize.budget import Fitted
from optimize.progress import Progress
from optimize.quantize.cache import write_cache
from optimize.quantize.place import Target
from optimize.quantize.quantizer import Quantizer
from optimize.quantize.search import sensitivity_json
from optimize.quantize.stability import ranges_json, stability

__all__ = ["CACHE", "RANGES", "SENSITIVITY", "sidecar_files"]

RANGES, SENSITIVITY, CACHE = "ranges.json", "sensitivity.json", "calib.cache"

CACHE_VERSION = "8.6.1"
"""The TensorRT named in the cache's first line; later ones that read caches do not compare it."""


def sidecar_files(
    quantizer: Quantizer, fitted: Mapping[Target, Fitted], seed: int, progress: Progress
) -> dict[str, bytes]:
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
    if "trt" in fitted:
        files[CACHE] = write_cache(quantizer.float_ranges(progress), version=CACHE_VERSION)
    return files


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
