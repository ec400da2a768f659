"""Networks and attention from scratch, over three seeds: what differs, and what the spread covers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.train_config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from optimize.dataset import Dataset
    from tools.bench_methods.trainings import Judged, Trainer

__all__ = ["CONTENDERS", "networks_part", "networks_table"]

SEEDS = (0, 1, 2)
SIZE_PX, EPOCHS = 64, 10

CONTENDERS: Mapping[str, tuple[str, str]] = {
    "plain CNN (tiny)": ("tiny", "none"),
    "ResNet-18, half width": ("resnet18", "none"),
    "ResNet-18 + SE": ("resnet18", "se"),
    "ResNet-18 + CBAM": ("resnet18", "cbam"),
    "DenseNet, small": ("densenet-small", "none"),
}


def networks_part(trainer: Trainer, neu: Dataset, *, is_quick: bool) -> list[dict[str, Any]]:
    """Train each contender with each seed, in the same recipe; gives the rows."""
    found: dict[str, list[Judged]] = {name: [] for name in CONTENDERS}
    for seed in SEEDS[: 1 if is_quick else None]:
        for name, (arch, attention) in CONTENDERS.items():
            config = TrainConfig(
                arch=arch,
                attention=attention,  # type: ignore[arg-type]
                size_px=SIZE_PX,
                epochs=1 if is_quick else EPOCHS,
                seed=seed,
                lr=0.05,
            )
            found[name].append(trainer(f"net-{arch}-{attention}-{seed}", config, neu, neu.take("test")))
    return [_row(name, judged) for name, judged in found.items()]


def _row(name: str, judged: Sequence[Judged]) -> dict[str, Any]:
    accuracies = [j.accuracy for j in judged]
    return {
        "part": "networks",
        "network": name,
        "seeds": len(judged),
        "test_accuracy": [round(a, 4) for a in accuracies],
        "mean": round(float(np.mean(accuracies)), 4),
        "spread": round(float(np.std(accuracies, ddof=1)), 4) if len(judged) > 1 else None,
        "parameters": judged[0].parameters,
        "minutes": round(sum(j.seconds for j in judged) / 60, 1),
    }


def networks_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table, and for each pair of neighbours whether the spread covers the difference."""
    yield f"From scratch on NEU, {SIZE_PX} px, {EPOCHS} epochs, the same recipe; accuracy on test over the seeds:"
    yield "| network | weights | mean | spread (sd) | seeds | beside ResNet-18 |"
    yield "| --- | ---: | ---: | ---: | --- | --- |"
    base = next((row for row in rows if row["network"] == "ResNet-18, half width"), None)
    for row in rows:
        seeds = ", ".join(f"{a:.3f}" for a in row["test_accuracy"])
        spread = "-" if row["spread"] is None else f"{row['spread']:.3f}"
        claim = _claim(row, base)
        yield f"| {row['network']} | {row['parameters']:,} | {row['mean']:.3f} | {spread} | {seeds} | {claim} |"


def _claim(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> str:
    """A difference is claimed where every seed of one is on the same side of every seed of the other."""
    if base is None or row is base:
        return ""
    mine, theirs = row["test_accuracy"], base["test_accuracy"]
    difference = 100 * (row["mean"] - base["mean"])
    if min(mine) > max(theirs) or max(mine) < min(theirs):
        return f"{difference:+.1f} points"
    return f"({difference:+.1f}: within the spread, no claim)"
