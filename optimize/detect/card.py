"""What is known of a trained detector, in one JSON file and one picture beside it."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from agent import __version__
from optimize.curves import RECALL, TRAIN_LOSS, VAL_LOSS, Curve, draw_curves
from optimize.detect.result import DetectResult
from optimize.files import write_atomically

__all__ = ["DetectorFiles", "report_from_detector", "write_detector_card"]

FORMAT = 1
NOT_RECIPE = frozenset({"weights", "tensorboard"})
"""Paths of this machine have no place in a card; of weights the sha256 is in it."""

BARS_WIDTH, NAME_WIDTH, FIRST_BAR = 600, 150, 80


@dataclasses.dataclass(frozen=True, slots=True)
class DetectorFiles:
    """What lies beside a model.

    Attributes:
        card: recipe, data, curves and versions, as JSON.
        curves: the same to look at, a PNG.
    """

    card: Path
    curves: Path


def report_from_detector(result: DetectResult) -> dict[str, Any]:
    """The JSON document of `defect-opt train --task detect --json`."""
    val = result.val
    return {
        "task": "detect",
        "arch": result.config.arch,
        "classes": list(result.classes),
        "epochs": len(result.history),
        "best_epoch": result.best_epoch,
        "stopped": result.stopped,
        "val": {
            "map50": val.map50,
            "map50_95": val.map50_95,
            "per_class": {
                name: {"ap50": val.ap50[name], "support": val.support[name], "in_train": count}
                for name, count in zip(result.classes, result.counts, strict=True)
            },
        },
        "good_parts_in_train": result.empty,
        "parity_max_abs": result.parity.max_abs,
        "parity_max_relative": result.parity.max_relative,
        "parameters": result.parameters,
        "size_bytes": result.size_bytes,
        "seconds": round(result.seconds, 1),
        "cpu_seconds": round(result.cpu_seconds, 1),
        "resumed_at": result.resumed_at,
        "weights": None if result.origin is None else dataclasses.asdict(result.origin),
        "onnx": str(result.onnx),
        "sha256": result.sha256,
        "notices": list(result.notices),
    }


def write_detector_card(result: DetectResult) -> DetectorFiles:
    """Write `MODEL.onnx.json` and `MODEL.onnx.png`.

    Raises:
        ModelError: a file can't be written.
    """
    card = {
        "format": FORMAT,
        **report_from_detector(result),
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
    }
    text = json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    beside = {suffix: result.onnx.with_name(f"{result.onnx.name}.{suffix}") for suffix in ("json", "png")}
    write_atomically(beside["json"], f"{text}\n".encode())
    canvas = np.hstack([_curves(result), _bars(result)])
    write_atomically(beside["png"], bytes(cv2.imencode(".png", canvas)[1].tobytes()))
    return DetectorFiles(beside["json"], beside["png"])


def _curves(result: DetectResult) -> NDArray[np.uint8]:
    history = result.history
    top = max(record.train_loss for record in history)
    curves = (
        Curve("mAP50 on val", [record.map50 for record in history], RECALL),
        Curve("mAP50-95 on val", [record.map50_95 for record in history], VAL_LOSS),
        Curve("loss in training", [record.train_loss / top for record in history], TRAIN_LOSS),
    )
    title = f"{result.config.arch}: {len(history)} epochs, best {result.best_epoch}"
    return draw_curves(title, result.best_epoch, curves, top=top)


def _bars(result: DetectResult) -> NDArray[np.uint8]:
    """AP50 of each class, the rarest first."""
    height = _curves(result).shape[0]
    canvas = np.full((height, BARS_WIDTH, 3), 255, dtype=np.uint8)
    _write(canvas, f"val: mAP50 {result.val.map50:.1%}, mAP50-95 {result.val.map50_95:.1%}", (20, 28), size=0.55)
    _write(canvas, "AP50 by class, the rarest in training first", (20, 50))
    order = sorted(range(len(result.classes)), key=lambda i: result.counts[i])
    step = max(min((height - FIRST_BAR - 20) // len(order), 40), 6)
    for row, i in enumerate(order):
        y = FIRST_BAR + row * step
        ap = result.val.ap50[result.classes[i]]
        if step >= 14:
            plain = result.classes[i].encode("ascii", "replace").decode()[:18]
            _write(canvas, plain, (6, y + step // 2 + 4))
        right = NAME_WIDTH + round((ap or 0) * (BARS_WIDTH - NAME_WIDTH - 160))
        cv2.rectangle(canvas, (NAME_WIDTH, y), (max(right, NAME_WIDTH + 1), y + step - 3), RECALL, -1)
        if step >= 14:
            said = "no box in val" if ap is None else f"{ap:.1%}"
            _write(canvas, f"{said}  {result.counts[i]} in train", (right + 8, y + step // 2 + 4))
    return canvas


def _write(canvas: NDArray[np.uint8], text: str, at: tuple[int, int], *, size: float = 0.42) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (60, 60, 60), 1, cv2.LINE_AA)
