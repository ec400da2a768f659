"""What every test may ask for, and why a test that can't run here is skipped."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Commands under test note their runs in a ledger; not in the one of whoever runs the tests.
os.environ["DEFECT_OPT_LEDGER"] = str(Path(tempfile.mkdtemp(prefix="defect-opt-tests-")) / "ledger.jsonl")
# What a killed process leaves in memory goes with the run's folder, not into everybody's /dev/shm.
os.environ["RUNTIME_DIRECTORY"] = tempfile.mkdtemp(prefix="defect-agent-run-")
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
settings.register_profile("here", deadline=None)
settings.load_profile("here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--boot", action="store_true", help="boot a real systemd in a container (root)")
    parser.addoption("--faults", action="store_true", help="100,000 triggers with random faults")
    parser.addoption("--every-network", action="store_true", help="quantize every network with every attention")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@functools.lru_cache(maxsize=1)
def _why_no_gpu() -> str:
    """Why engines can't be compiled and run here, in the agent's own words; empty where they can."""
    from agent.engines.device import open_device
    from agent.engines.trt_api import load_tensorrt
    from agent.errors import EngineError

    try:
        load_tensorrt()
        open_device().close()
    except EngineError as error:
        return error.message
    return ""


NEEDS: dict[str, tuple[Callable[[], object], str]] = {
    "torch": (lambda: _has("torch"), "needs PyTorch: pip install -e '.[train]'"),
    "tensorrt": (lambda: _has("tensorrt_rtx"), "needs TensorRT-RTX (x86-64 Linux): pip install -e '.[trt-test]'"),
    "mosquitto": (
        lambda: shutil.which("mosquitto") and shutil.which("mosquitto_sub"),
        "needs mosquitto: apt install mosquitto mosquitto-clients",
    ),
    "shared": (SHARED.is_dir, f"needs the images in {SHARED}"),
    "systemd": (lambda: shutil.which("systemd-analyze"), "needs systemd-analyze: apt install systemd"),
}
"""Marker to what tells whether its tests can run here, and what to say when they can't."""


def _why_not(item: pytest.Item) -> str | None:
    """The reason why a marked test can't run here, or None."""
    for marker, (is_there, reason) in NEEDS.items():
        if item.get_closest_marker(marker) and not is_there():
            return reason
    if item.get_closest_marker("gpu") and _why_no_gpu():
        return f"needs TensorRT and a GPU (tools/test --gpu): {_why_no_gpu()}"
    if item.get_closest_marker("boot") and not item.config.getoption("--boot"):
        return "opt-in: tools/test --boot"
    if item.get_closest_marker("faults") and not item.config.getoption("--faults"):
        return "opt-in: tools/test --faults (two minutes)"
    if item.get_closest_marker("every_network") and not item.config.getoption("--every-network"):
        return "opt-in: tools/test --every-network (ten minutes)"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = _why_not(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def neu() -> Path:
    """NEU steel with its splits; mark the test `shared`."""
    return SHARED / "neu-det"


@pytest.fixture(scope="session")
def magnetic_tile() -> Path:
    """Magnetic tiles with their splits; mark the test `shared`."""
    return SHARED / "magnetic-tile"
