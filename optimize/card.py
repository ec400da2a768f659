"""What is known of a trained model, in one JSON file beside it: data, recipe, curves, versions."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch

from agent import __version__
from optimize.curves import draw_training
from optimize.files import write_atomically

if TYPE_CHECKING:
    from optimize.train import TrainResult

__all__ = ["CardFiles", "report_from_result", "write_card"]

FORMAT = 1
SUFFIXES = ("json", "png", "attention.png")
NOT_RECIPE = frozenset({"weights", "tensorboard", "masks"})
"""Paths of this machine have no place in a card; of weights the sha256 is in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class CardFiles:
    """What lies beside a model.

    Attributes:
        card: recipe, data, curves and versions, as JSON.
        curves: the same to look at, a PNG.
        attention: where the network looked, a PNG; None for a network without spatial attention.
    """

    card: Path
    curves: Path
    attention: Path | None


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
                name: {"recall": recall, "support": sum(row), "in_train": count}
                for name, recall, row, count in zip(
                    result.classes, val.recalls, val.confusion, result.counts, strict=True
                )
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


def write_card(result: TrainResult, more: Mapping[str, Any] | None = None) -> CardFiles:
    """Write `MODEL.onnx.json`, `MODEL.onnx.png`, and where there is attention `MODEL.onnx.attention.png`.

    Args:
        result: what came out.
        more: what else is known of it, plain values; they stand beside the others, or in their place.

    Raises:
        ModelError: a file can't be written.
    """
    card = {
        "format": FORMAT,
        **report_from_result(result),
        "onnx": result.onnx.name,
        "input": dataclasses.asdict(result.config.spec),
        "recipe": {key: value for key, value in dataclasses.asdict(result.config).items() if key not in NOT_RECIPE},
        "data_sha256": result.data_sha256,
        "files": {split: list(files) for split, files in result.files.items()},
        "history": [dataclasses.asdict(record) for record in result.history],
        "versions": {
            "defect-opt": __version__,
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in (cv2, np, onnx, onnxruntime, torch)},
        },
        **(more or {}),
    }
    text = json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    beside = {suffix: result.onnx.with_name(f"{result.onnx.name}.{suffix}") for suffix in SUFFIXES}
    write_atomically(beside["json"], f"{text}\n".encode())
    write_atomically(beside["png"], draw_training(result))
    if result.attention is None:
        return CardFiles(beside["json"], beside["png"], None)
    write_atomically(beside["attention.png"], result.attention)
    return CardFiles(beside["json"], beside["png"], beside["attention.png"])
