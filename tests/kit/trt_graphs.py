"""What a bundle has for TensorRT, made from a small float classifier by the workbench's own quantizer."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.engines.trt_build import Graphs
from optimize.halved import halved
from optimize.progress import SilentProgress
from optimize.quantize import QuantizeOptions, Quantizer, read_model
from optimize.quantize.cache import write_cache
from tests.kit.float_models import SIDE, write_model

__all__ = ["some_pictures", "trt_graphs"]


def some_pictures(count: int) -> list[NDArray[np.uint8]]:
    """Noise, each (1, SIDE, SIDE, 3) uint8."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count)]


@functools.cache
def trt_graphs() -> Graphs:
    """All four parts; two convolutions are INT8, the head is float."""
    pictures = some_pictures(4)
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "m.onnx")
        fp32 = path.read_bytes()
        quantizer = Quantizer(read_model(path), pictures, QuantizeOptions(method="minmax"))
    qdq = quantizer.quantize("trt").graph
    half = halved(qdq, pictures)
    assert half.graph is not None
    calibration = write_cache(quantizer.float_ranges(SilentProgress()), version="8.6.1")
    return Graphs(fp32=fp32, qdq=qdq, qdq16=half.graph, calibration=calibration)
