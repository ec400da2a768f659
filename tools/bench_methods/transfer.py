"""Transfer against scratch: how many images per class ImageNet weights are worth."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from optimize.folds import group_of
from optimize.train_config import TrainConfig
from tools.bench_methods.figures import gain_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optimize.dataset import Dataset, Sample
    from tools.bench_methods.trainings import Judged, Trainer
    from tools.bench_quantize.figures import Figure

__all__ = ["transfer_part", "write_plot"]

SIZE_PX = 96
EPOCHS: Mapping[int, int] = {25: 20, 50: 12, 100: 8, 1000: 5}
"""Images per class (1000: all there are) to passes: fewer images, more passes, so that none starves for steps."""

SCRATCH_LR, TRANSFER_LR = 0.05, 0.02


def transfer_part(
    trainer: Trainer, neu: Dataset, weights: Path, plot: Path, *, is_quick: bool
) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """The same network on more and more images, with ImageNet weights and without."""
    test = neu.take("test")
    rows, checks = [], {}
    for per_class, epochs in EPOCHS.items():
        part = _fewer(neu, per_class)
        passes = 1 if is_quick else epochs
        transfer = TrainConfig(
            arch="efficientnet-lite0", size_px=SIZE_PX, epochs=passes, weights=weights, lr=TRANSFER_LR
        )
        scratch = dataclasses.replace(transfer, weights=None, lr=SCRATCH_LR)
        pair = [
            trainer(f"transfer-{name}-{per_class}", config, part, test)
            for name, config in (("imagenet", transfer), ("scratch", scratch))
        ]
        rows.append(_row(pair, part, passes))
        if per_class == 50:
            checks["transfer_gain_50"] = gain_figure(*pair, why="points on test, paired by group; one seed")
        if is_quick and per_class >= 50:
            break
    write_plot(rows, plot)
    return checks, rows


def _fewer(neu: Dataset, per_class: int) -> Dataset:
    """So many training images of each class, whole groups first come; `val` stays as it is."""
    by_class: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in neu.take("train"):
        by_class[str(sample.label)][group_of(sample)].append(sample)
    chosen: list[Sample] = []
    for groups in by_class.values():
        order = np.random.default_rng(7).permutation(len(groups))
        members = [sample for i in order for sample in list(groups.values())[i]]
        chosen += members[:per_class]
    kept = (*chosen, *neu.take("val").samples)
    return dataclasses.replace(neu, samples=tuple(sorted(kept, key=lambda s: s.file)))


def _row(pair: Sequence[Judged], part: Dataset, epochs: int) -> dict[str, Any]:
    imagenet, scratch = pair
    return {
        "part": "transfer",
        "per_class": len(part.take("train")) // len(part.classes),
        "epochs": epochs,
        "imagenet": round(imagenet.accuracy, 4),
        "scratch": round(scratch.accuracy, 4),
        "gain_points": round(100 * (imagenet.accuracy - scratch.accuracy), 2),
        "minutes": [round(j.seconds / 60, 1) for j in pair],
    }


def write_plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The learning curve: accuracy on test over images per class (log scale)."""
    width, height, left, top, right, bottom = 760, 480, 70, 50, 40, 70
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    xs = np.log([row["per_class"] for row in rows])
    low, high = float(xs.min()), max(float(xs.max()), float(xs.min()) + 1e-6)

    def at(x: float, share: float) -> tuple[int, int]:
        along = left + (x - low) / (high - low) * (width - left - right)
        return round(along), round(height - bottom - share * (height - top - bottom))

    def write(text: str, x: int, y: int, colour: tuple[int, int, int] = (60, 60, 60)) -> None:
        cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)

    write(f"EfficientNet-Lite0 on NEU, {SIZE_PX} px: accuracy on test", left, 26)
    for i in range(6):
        y = at(low, i / 5)[1]
        cv2.line(canvas, (left, y), (width - right, y), (225, 225, 225), 1)
        write(f"{i / 5:.1f}", left - 40, y + 5)
    for x, row in zip(xs, rows, strict=True):
        write(str(row["per_class"]), at(x, 0)[0] - 10, height - bottom + 22)
    write("training images per class (log scale)", left + 200, height - 16)
    for name, colour in (("imagenet", (60, 140, 30)), ("scratch", (190, 120, 40))):
        points = np.array([at(x, row[name]) for x, row in zip(xs, rows, strict=True)], dtype=np.int32)
        cv2.polylines(canvas, [points], isClosed=False, color=colour, thickness=2, lineType=cv2.LINE_AA)
        for (px, py), row in zip(points.tolist(), rows, strict=True):
            cv2.circle(canvas, (px, py), 4, colour, -1, cv2.LINE_AA)
            write(f"{row[name]:.3f}", px - 18, py - 10 if name == "imagenet" else py + 20, colour)
    write("from ImageNet weights", width - 230, height - bottom - 40, (60, 140, 30))
    write("from scratch", width - 230, height - bottom - 20, (190, 120, 40))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), canvas)
