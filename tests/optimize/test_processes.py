"""One run in two processes: `torchrun` and gloo, as on two GPUs or two machines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch

from tests.kit.float_models import write_parts

pytestmark = [pytest.mark.torch, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_two(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "--master-port", str(free_port())]
    command += ["-m", "optimize", "train", "--out", str(out), "--json", "--ledger", str(out.parent / "ledger.jsonl")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=600, check=False, cwd=ROOT, env=environment
    )


def test_two_processes_train_one_network_and_one_of_them_speaks(tmp_path: Path) -> None:
    """One JSON document, one model, both saw half of every batch; the run can be resumed."""
    parts = write_parts(tmp_path / "parts", {"train": 8, "val": 4})
    arguments = ("--data", str(parts), "--arch", "tiny", "--size", "32", "--batch", "8", "--threads", "1")

    first = in_two(tmp_path / "m.onnx", *arguments, "--epochs", "3", "--patience", "1")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    again = in_two(tmp_path / "m.onnx", *arguments, "--epochs", "3", "--patience", "1")

    assert report["epochs"] >= 1
    assert report["val"]["n"] == 12
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["resumed_at"] == report["epochs"]
    assert json.loads(again.stdout)["sha256"] == report["sha256"]


def test_gradients_are_averaged_over_the_processes(tmp_path: Path) -> None:
    """Two processes with half a batch each step as one with the whole batch does, where no batch norm sees a half only.

    The tiny network has batch norms, so equality is checked on the engine itself: a linear layer under `Processes`.
    """
    script = tmp_path / "step.py"
    script.write_text(
        "import os, numpy as np, torch\n"
        "from optimize.train.processes import open_processes\n"
        "with open_processes('cpu') as processes:\n"
        "    torch.manual_seed(0)\n"
        "    layer = torch.nn.Linear(3, 1, bias=False)\n"
        "    joined = processes.joined(layer)\n"
        "    inputs = torch.arange(12.0).reshape(4, 3)\n"
        "    mine = inputs[processes.share(np.arange(4)).tolist()]\n"
        "    joined(mine).mean().backward()\n"
        "    told = processes.told(np.array([7.0 + processes.rank]))\n"
        "    line = f'{processes.rank} {layer.weight.grad.tolist()} {told.tolist()}'\n"
        "    os.write(1, (line + chr(10)).encode())\n"  # one write: the other process speaks at the same time
        "os._exit(0)\n"  # as optimize/__main__.py does, for its reason
    )
    command = [*TORCHRUN, "--master-port", str(free_port())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    found = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path, env=environment
    )

    assert found.returncode == 0, found.stderr
    expected = torch.arange(12.0).reshape(4, 3).mean(0).tolist()
    assert sorted(found.stdout.split("\n"))[1:] == [f"{rank} {[expected]} [7.0]" for rank in (0, 1)]
