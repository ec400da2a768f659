"""The one place where the bench asks our own code for INT8 graphs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.quantize.model import read_model
from optimize.quantize.quantizer import Quantizer
from optimize.recipe import PreprocessRecipe
from tools.bench_quantize.theirs import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from optimize.quantize.place import Target

__all__ = ["TARGETS", "build_bundle", "ours", "ours_detector"]

TARGETS = ("cpu", "tensorrt")
ROOT = Path(__file__).resolve().parents[2]


def ours(model: Path, tensors: Sequence[NDArray[np.uint8]], target: str) -> bytes:
    """Our INT8 graph of a classifier, with the defaults a user gets.

    Args:
        model: a float graph as `defect-opt train` writes it.
        tensors: calibration pictures, each (1, height_px, width_px, 3) uint8 RGB.
        target: `cpu` or `tensorrt`.

    Returns:
        ONNX bytes. Both targets come from one calibration, which is kept until another model or other pictures come.
    """
    return _quantizer(model, tensors).quantize(_name(target)).graph


def ours_detector(model: Path, pictures: Sequence[NDArray[np.uint8]], target: str) -> bytes:
    """Our INT8 graph of a foreign detector.

    Args:
        model: the customer's export, floats from 0 to 1 in.
        pictures: calibration pictures, each (S, S, 3) uint8 RGB.
        target: `cpu` or `tensorrt`.

    Raises:
        Unavailable: the export is none that we can take in.
    """
    from agent.errors import AgentError

    try:
        tensors = [picture[None] for picture in pictures]
        return _quantizer(model, tensors, PreprocessRecipe()).quantize(_name(target)).graph
    except AgentError as error:
        raise Unavailable(error.message) from error


_kept: dict[str, Quantizer] = {}


def _quantizer(
    model: Path, tensors: Sequence[NDArray[np.uint8]], preprocess: PreprocessRecipe | None = None
) -> Quantizer:
    """A calibrated model; the last one is kept."""
    parts = [model.read_bytes(), *(tensor.tobytes() for tensor in tensors)]
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    if key not in _kept:
        _kept.clear()
        _kept[key] = Quantizer(read_model(model, preprocess), tensors)
    return _kept[key]


def _name(target: str) -> Target:
    return "cpu" if target == "cpu" else "trt"


def build_bundle(model: Path, data: Path, out: Path, *, threads: int) -> bytes:
    """A whole bundle by the command line, as a user makes it; its bytes.

    Raises:
        Unavailable: the build fails for another reason than its gate.
    """
    folder = out.parent
    # Which graph a CPU runs is decided by measured speed, unless the recipe says it.
    (folder / "defect-opt.yaml").write_text("quantize:\n  cpu_graph: int8\n", encoding="utf-8")
    words = {"--model": model, "--data": data, "--calib": data, "--out": out, "--name": "bench", "--threads": threads}
    flat = [str(word) for pair in words.items() for word in pair]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "optimize", "build", "--int8", *flat],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1) or not out.is_file():
        said = done.stderr.strip().splitlines()
        raise Unavailable(f"defect-opt build fails: {said[-1] if said else done.returncode}")
    return out.read_bytes()
