"""What a teacher is worth: the same small student on labels alone and distilled, over three seeds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.crossval import logits_of
from optimize.ladder import climb
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


def gain_part(
    trainer: Trainer, neu: Dataset, weights: Path, work: Path, *, is_quick: bool
) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Train both of each seed on the same pictures for as long, from scratch; judge test."""
    top, test = neu_top(trainer, neu, weights, is_quick=is_quick), neu.take("test")
    rows, gains = [], []
    for seed in SEEDS[: 1 if is_quick else None]:
        # As `tools/bench methods` trains it, so that the same training does for both.
        config = TrainConfig(arch="tiny", size_px=64, epochs=1 if is_quick else 10, seed=seed, lr=0.05)
        alone = trainer(f"net-tiny-none-{seed}", config, neu, test)
        _, taught = climb(top, [distilled("top", config, neu)], work / f"gain-{seed}")
        logits = logits_of(taught.path, test.samples, config.spec)
        accuracy = float(np.mean(logits.argmax(axis=1) == np.asarray(test.targets)))
        gains.append(100 * (accuracy - alone.accuracy))
        row = {"seed": seed, "labels_alone": round(alone.accuracy, 4), "distilled": round(accuracy, 4)}
        rows.append({"part": "gain", "student": config.arch, **row, "gain_points": round(gains[-1], 2)})
    figure = dataclasses.replace(
        seeds_figure(gains),
        why=f"points of accuracy on test, {len(gains)} seeds: {', '.join(f'{g:+.1f}' for g in gains)}",
    )
    return {"distill_gain": figure}, rows
