"""What is known of a trained model, in one JSON file beside it: data, recipe, curves, versions."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch

from agent import __version__
from optimize.curves import draw_training
from optimize.export import write_atomically

if TYPE_CHECKING:
    from optimize.train import TrainResult

__all__ = ["report_from_result", "write_card"]

FORMAT = 1


def report_from_result(result: TrainResult) -> dict[str, Any]:
    """The JSON document of `defect-opt train --json`."""
    val = result.val
    return {
        "arch": result.config.arch,
        "classes": list(result.classes),
        "epochs": len(result.history),
        "best_epoch": result.best_epoch,
        "stopped": result.stopped,
        "val": {
            "n": sum(map(sum, val.confusion)),
            "accuracy": val.accuracy,
            "balanced_recall": val.balanced_recall,
            "loss": val.loss,
            "per_class": {
                name: {"recall": recall, "support": sum(row)}
                for name, recall, row in zip(result.classes, val.recalls, val.confusion, strict=True)
            },
            "confusion": [list(row) for row in val.confusion],
        },
        "parity_max_abs": result.parity.max_abs,
        "parity_max_relative": result.parity.max_relative,
        "parameters": result.parameters,
        "size_bytes": result.size_bytes,
        "seconds": round(result.seconds, 1),
        "resumed_at": result.resumed_at,
        "weights": _origin(result),
        "onnx": str(result.onnx),
        "sha256": result.sha256,
        "notices": list(result.notices),
    }


def _origin(result: TrainResult) -> dict[str, str] | None:
    """The published weights that the run started from; None from scratch."""
    origin = result.origin
    return None if origin is None else dataclasses.asdict(origin)


def write_card(result: TrainResult) -> tuple[Path, Path]:
    """Write `MODEL.onnx.json` and `MODEL.onnx.png` beside the model.

    Returns:
        Both paths.

    Raises:
        ModelError: a file can't be written.
    """
    card = {
        "format": FORMAT,
        **report_from_result(result),
        "onnx": result.onnx.name,
        "input": dataclasses.asdict(result.config.spec),
        "recipe": {key: value for key, value in dataclasses.asdict(result.config).items() if key != "weights"},
        "data_sha256": result.data_sha256,
        "files": {split: list(files) for split, files in result.files.items()},
        "history": [dataclasses.asdict(record) for record in result.history],
        "versions": {
            "defect-opt": __version__,
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in (cv2, np, onnx, onnxruntime, torch)},
        },
    }
    text = json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    as_json, as_png = (result.onnx.with_name(f"{result.onnx.name}.{suffix}") for suffix in ("json", "png"))
    write_atomically(as_json, f"{text}\n".encode())
    write_atomically(as_png, draw_training(result))
    return as_json, as_png
