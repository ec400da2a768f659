"""TensorRT's engine on a stand-in: a plan, an engine from it, and what it must compute."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent.bundle import InputSpec, Outputs
from agent.engines import Engine
from agent.engines.device import Device
from agent.engines.onnxrt import OnnxRuntimeEngine
from agent.engines.trt import TensorRtEngine
from agent.engines.trt_api import load_tensorrt
from agent.engines.trt_build import BuildOptions, Graphs, build_plan
from tests.kit.gpus import Machine
from tests.kit.models import classifier

__all__ = ["OUTPUTS", "ROLES", "SPEC", "VERSION", "assert_same", "engine_on", "opened", "picture", "plan_of"]

SPEC = InputSpec(width_px=32, height_px=32)
OUTPUTS = Outputs(logits="logits", embedding="embedding", cam="cam")
ROLES = ("logits", "embedding", "cam")
VERSION = "10.3.0"


def picture(seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(1, 32, 32, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)


def plan_of(graph: bytes | None = None, **options: Any) -> bytes:
    """A plan from the stand-in that is installed, in FP32: what is computed is the graph, whatever the version."""
    graphs = Graphs(qdq=None, qdq16=None, fp32=graph or classifier(), calibration=None)
    return build_plan(load_tensorrt(), graphs, BuildOptions(precision="fp32", **options)).plan


def engine_on(device: Device, plan: bytes | None = None, **more: Any) -> TensorRtEngine:
    """An engine; the device stays the caller's where this raises."""
    arguments = {"label": "fp32", "spec": SPEC, "outputs": OUTPUTS, **more}
    return TensorRtEngine(plan_of() if plan is None else plan, api=load_tensorrt(), device=device, **arguments)


def opened(gpu: Machine, plan: bytes | None = None, **more: Any) -> TensorRtEngine:
    """Device and engine as the agent opens them: what fails closes the device."""
    device = gpu.open()
    try:
        return engine_on(device, plan, **more)
    except BaseException:
        device.close()
        raise


def reference() -> Engine:
    return OnnxRuntimeEngine(classifier(), threads=1, label="fp32", spec=SPEC, outputs=OUTPUTS)


def assert_same(engine: Engine, seeds: range = range(3)) -> None:
    """The engine gives what ONNX Runtime gives, for several pictures in a row."""
    expected = reference()
    for seed in seeds:
        got, wanted = engine.infer(picture(seed)), expected.infer(picture(seed))
        assert tuple(got) == ROLES
        for role in ROLES:
            np.testing.assert_allclose(got[role], wanted[role], rtol=1e-4, atol=1e-5)
            assert got[role].dtype == np.float32
