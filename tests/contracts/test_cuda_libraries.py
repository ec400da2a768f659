"""The real PyCUDA and the real cuda-python on a stand-in driver: the same suites, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.gpus import OWN_PROCESS
from tests.kit.libcuda import missing_for

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("tests/contracts/test_device.py", "tests/agent/test_trt_runtime.py", "tests/agent/test_trt_runtime_graphs.py")


def test_the_real_libraries_keep_the_contract() -> None:
    """The driver stays in a process for good, and whatever looks for a GPU there finds it."""
    missing = {kind: missing_for(kind) for kind in ("pycuda", "cuda-python")}
    if all(missing.values()):
        pytest.skip("; ".join(f"{kind}: {reason}" for kind, reason in missing.items()))
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=short", "-k", "not stand-in")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *SUITES],
        cwd=ROOT,
        env={**os.environ, OWN_PROCESS: "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout[-4000:]
    assert " passed" in ran.stdout
