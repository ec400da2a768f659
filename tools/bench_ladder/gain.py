"""What a teacher is worth: the same small student on labels alone and distilled, over three seeds.

Twice. On a line few pictures are labelled and the others lie there: every fifth training picture keeps its label,
teacher and student learn from these labels alone, and the distilled student also from what its teacher says of the
other pictures (`distill_gain`). And where every picture is labelled, so that the labels tell as much as the teacher
does (rows only). Both students of a seed take as many steps, from scratch.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.crossval import logits_of
from optimize.ladder import RungFile, climb
from optimize.train_config import TrainConfig
from tools.bench_ladder.neu import neu_top
from tools.bench_ladder.steps import distilled
from tools.bench_methods.figures import seeds_figure

if TYPE_CHECKING:
    from pathlib import Path

    from optimize.dataset import Dataset
    from tools.bench_methods.trainings import Trainer
    from tools.bench_quantize.figures import Figure

__all__ = ["gain_part"]

SEEDS = (0, 1, 2)
EPOCHS = 10
FEW = 5
"""One picture in so many has a label."""


def gain_part(
    trainer: Trainer, neu: Dataset, weights: Path, work: Path, *, is_quick: bool
) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Train both of each seed; judge test."""
    few, others = _few(neu)
    teacher_config = TrainConfig(arch="efficientnet-lite0", weights=weights, epochs=1 if is_quick else 3 * FEW)
    teacher = trainer("few-lite0", teacher_config, few, neu.take("test"))
    top = RungFile(name="top", path=teacher.onnx)
    rows: list[dict[str, Any]] = [{"part": "gain", "labels": "a fifth", "teacher": round(teacher.accuracy, 4)}]
    figure, told = _gains("a fifth", trainer, top, few, others, work, is_quick=is_quick)
    rows += told
    _, told = _gains(
        "all", trainer, neu_top(trainer, neu, weights, is_quick=is_quick), neu, None, work, is_quick=is_quick
    )
    return {"distill_gain": figure}, rows + told


def _few(neu: Dataset) -> tuple[Dataset, Dataset]:
    """The set with every fifth picture of `train` in each class, and the other ones of `train`."""
    train = sorted((s for s in neu if s.split == "train"), key=lambda s: (s.label, s.file))
    kept = set(train[::FEW])
    labelled = tuple(s for s in neu if s.split != "train" or s in kept)
    others = tuple(s for s in train if s not in kept)
    return dataclasses.replace(neu, samples=labelled), dataclasses.replace(neu, samples=others)


def _gains(
    labels: str,
    trainer: Trainer,
    top: RungFile,
    labelled: Dataset,
    others: Dataset | None,
    work: Path,
    *,
    is_quick: bool,
) -> tuple[Figure, list[dict[str, Any]]]:
    test, rows, gains = labelled.take("test"), [], []
    repeats, name = (1, "all") if others is None else (FEW, "few")
    for seed in SEEDS[: 1 if is_quick else None]:
        config = TrainConfig(arch="tiny", size_px=64, epochs=1 if is_quick else EPOCHS, seed=seed, lr=0.05)
        longer = dataclasses.replace(config, epochs=repeats * config.schedule)
        alone = trainer(f"{name}-tiny-{seed}", longer, labelled, test)
        _, taught = climb(top, [distilled("top", config, labelled, unlabelled=others)], work / f"gain-{name}-{seed}")
        logits = logits_of(taught.path, test.samples, config.spec)
        accuracy = float(np.mean(logits.argmax(axis=1) == np.asarray(test.targets)))
        gains.append(100 * (accuracy - alone.accuracy))
        row = {"labels_alone": round(alone.accuracy, 4), "distilled": round(accuracy, 4)}
        rows.append({"part": "gain", "labels": labels, "seed": seed, **row, "gain_points": round(gains[-1], 2)})
    told = f"points of accuracy on test, {labels} labelled, {len(gains)} seeds: {', '.join(f'{g:+.1f}' for g in gains)}"
    return dataclasses.replace(seeds_figure(gains), why=told), rows
