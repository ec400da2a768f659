"""What a random split would have claimed: the same network, judged on images whose surface it saw in training."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.dataset import assign_splits
from optimize.intervals import group_interval, mean_recall
from optimize.train_config import TrainConfig
from tools.bench_quantize.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optimize.dataset import Dataset
    from tools.bench_methods.trainings import Judged, Trainer

__all__ = ["leak_part", "without_groups"]

FRACTIONS = {"train": 0.7, "val": 0.12, "test": 0.18}
SIZE_PX, EPOCHS, SEED = 64, 10, 0


def leak_part(
    trainer: Trainer, sets: Mapping[str, tuple[Dataset, Dataset]], *, is_quick: bool
) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Train twice on each set: split by image, and by the groups that `data split` finds.

    Args:
        trainer: trains.
        sets: name to the set without groups, and the same with the groups that were found.
        is_quick: one epoch.
    """
    config = TrainConfig(arch="resnet18", size_px=SIZE_PX, epochs=1 if is_quick else EPOCHS, lr=0.05)
    checks: dict[str, Figure] = {}
    rows: list[dict[str, Any]] = []
    for name, (alone, grouped) in sets.items():
        found = {}
        for how, dataset in (("random", alone), ("leak-free", grouped)):
            dealt = assign_splits(dataset, seed=SEED, fractions=FRACTIONS)
            found[how] = trainer(f"leak-{name}-{how}", config, dealt, dealt.take("test"))
        figure = _difference(found["random"], found["leak-free"])
        rows.append(_row(name, found, figure))
        if name == "neu-det":
            checks["leak_points"] = figure
    return checks, rows


def _difference(random: Judged, honest: Judged) -> Figure:
    """Points of macro recall that the random split claims too much; the two test sets are drawn independently."""
    values, halves = [], []
    for judged in (random, honest):
        interval = group_interval(judged.groups, _counts(judged), mean_recall)
        values.append(judged.macro_recall())
        halves.append((interval.high - interval.low) / 2 if interval else float("nan"))
    value, half = 100 * (values[0] - values[1]), 100 * math.hypot(*halves)
    why = "macro recall on test, random split less leak-free split, one seed; independent intervals added in squares"
    return Figure(value=value, low=value - half, high=value + half, why=why)


def _counts(judged: Judged) -> np.ndarray:
    support = np.eye(len(judged.classes))[judged.targets]
    return np.concatenate([support * judged.right[:, None], support], axis=1)


def _row(name: str, found: Mapping[str, Judged], figure: Figure) -> dict[str, Any]:
    honest = found["leak-free"]
    return {
        "part": "leak",
        "set": name,
        "network": "resnet18, half width, from scratch",
        "random": round(found["random"].macro_recall(), 4),
        "leak_free": round(honest.macro_recall(), 4),
        "random_accuracy": round(found["random"].accuracy, 4),
        "leak_free_accuracy": round(honest.accuracy, 4),
        "points": round(figure.value or 0.0, 2),
        "n": [len(judged.files) for judged in found.values()],
        "groups": len(set(honest.groups)),
        "minutes": [round(judged.seconds / 60, 1) for judged in found.values()],
    }


def without_groups(dataset: Dataset) -> Dataset:
    """The images and their classes only."""
    samples = tuple(dataclasses.replace(s, split=None, group=None) for s in dataset.samples)
    return dataclasses.replace(dataset, samples=samples)
