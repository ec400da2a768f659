"""An engine for the GPU of this machine: compiled and measured with the agent's own code, for this machine alone."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle import Bundle
from agent.bundle.golden import is_as_recorded
from agent.config import EngineConfig
from agent.engines.device import Device, open_device
from agent.engines.trt import TensorRtEngine
from agent.engines.trt_api import TensorRt, load_tensorrt
from agent.engines.trt_open import Prepared, prepare
from agent.errors import EngineError
from optimize.files import write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EngineHere", "NoEngine", "build_here"]

WARM_UP, TIMED = 20, 200
"""Inferences before, and while, it is timed."""

Heard = Callable[[str, int, int], None]


class NoEngine(Exception):  # noqa: N818  # it is no fault of the bundle
    """This machine has no TensorRT, or no GPU; the text says what to install."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineHere:
    """An engine for this machine.

    Attributes:
        path: the plan.
        engine: TensorRT, GPU and precision in words.
        graph: what it was compiled from: `trt16`, `trt` or `fp32`.
        typing: `strong` or `weak`.
        notes: what fell back, and why.
        seconds: what compiling took.
        p50_ms: median of one inference, copies included.
        p95_ms: of 200 inferences 190 took no longer.
        goldens: golden inputs that were replayed.
        changed: those of them that were judged otherwise than the Q/DQ graph was at the build.
        worst: largest difference of any output to the Q/DQ graph's; None for a detector.
    """

    path: Path
    engine: str
    graph: str
    typing: str
    notes: tuple[str, ...]
    seconds: float
    p50_ms: float
    p95_ms: float
    goldens: int
    changed: int
    worst: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {**dataclasses.asdict(self), "path": str(self.path), "notes": list(self.notes), "for": "this machine"}


def build_here(bundle: Bundle, heard: Heard | None = None) -> EngineHere:
    """Compile the bundle's graph, replay its goldens, and time it.

    Args:
        bundle: with graphs for TensorRT.
        heard: hears of TensorRT's phases.

    Returns:
        What came out; the plan lies beside the bundle.

    Raises:
        NoEngine: no TensorRT here, or no GPU.
        EngineError: TensorRT does not build or run it.
        ModelError: the plan can't be written.
    """
    try:
        api = load_tensorrt()
        device = open_device()
    except EngineError as error:
        raise NoEngine(f"{error.message}" + (f" ({error.hint})" if error.hint else "")) from error
    try:
        found = prepare(bundle, EngineConfig(kind="trt"), api=api, device=device, cache=None, building=heard)
        path = _write(bundle, found, api, device)
        engine = TensorRtEngine(
            found.plan,
            api=api,
            device=device,
            label=found.key.precision,
            spec=bundle.manifest.input,
            outputs=bundle.manifest.outputs,
        )
    except BaseException:
        device.close()
        raise
    try:
        return _measured(bundle, found, path, engine)
    finally:
        engine.close()


def _write(bundle: Bundle, found: Prepared, api: TensorRt, device: Device) -> Path:
    major, minor = device.compute_capability
    version = ".".join(str(part) for part in api.version)
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-")
    path = bundle.path.with_suffix(f".tensorrt-{version}.sm{major}{minor}.{gpu}.plan")
    write_atomically(path, found.plan)
    return path


def _measured(bundle: Bundle, found: Prepared, path: Path, engine: TensorRtEngine) -> EngineHere:
    goldens = [golden for golden in bundle.goldens() if "trt" in golden.outputs]
    changed, worst = 0, 0.0
    for golden in goldens:
        outputs = engine.infer(golden.image[None])
        changed += not is_as_recorded(golden, "trt", outputs, bundle.manifest)
        worst = max(worst, _difference(outputs, golden.outputs["trt"]))
    taken = _timed(engine, [golden.image[None] for golden in goldens])
    built = found.built
    assert built is not None  # without a cache it is always built
    return EngineHere(
        path=path,
        engine=engine.name,
        graph=built.graph,
        typing=built.typing,
        notes=(*built.notes, *engine.notes),
        seconds=round(built.seconds, 1),
        p50_ms=round(float(np.percentile(taken, 50)), 3),
        p95_ms=round(float(np.percentile(taken, 95)), 3),
        goldens=len(goldens),
        changed=changed,
        worst=None if bundle.manifest.detection is not None else worst,
    )


def _difference(found: Mapping[str, NDArray[np.float32]], expected: Mapping[str, NDArray[np.float32]]) -> float:
    shared = found.keys() & expected.keys()
    return max((float(np.abs(found[role] - expected[role]).max(initial=0.0)) for role in shared), default=0.0)


def _timed(engine: TensorRtEngine, pictures: list[NDArray[np.uint8]]) -> list[float]:
    taken = []
    for i in range(WARM_UP + TIMED):
        start = time.perf_counter_ns()
        engine.infer(pictures[i % len(pictures)])
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return taken[WARM_UP:]
