"""Magnetic tiles: weighted loss against plain, and what escapes at five percent overkill.

`tile_escape` is read where at most five percent of the good test images lie above the limit, the usual way to compare
networks. Such a limit is known only afterwards: what a limit that was set on the good images of `calib` and `val` gives
on `test` stands in the rows (`preset_escape`, `preset_overkill`), with counts by class.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.augment import Augmentation
from optimize.train_config import TrainConfig
from tools.bench_methods.figures import rate_figure
from tools.bench_quantize.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from optimize.dataset import Dataset
    from tools.bench_methods.trainings import Judged, Trainer

__all__ = ["OK", "best_config", "tile_part"]

OK = "ok"
OVERKILL = 0.05
SEEDS = (0, 1)


def tile_part(
    trainer: Trainer, tile: Dataset, weights: Path, *, is_quick: bool
) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Train the pairs and the best recipe, judge `calib`, `val` and `test`."""
    judge = dataclasses.replace(tile, samples=tuple(s for s in tile if s.split != "train"))
    is_test = np.array([s.split == "test" for s in judge])
    best = [
        trainer(f"tile-best-{seed}", best_config(weights, tile, seed, is_quick=is_quick), tile, judge)
        for seed in SEEDS[: 1 if is_quick else None]
    ]
    pairs = []
    for seed in SEEDS[: 1 if is_quick else None]:
        plain = _plain(weights, seed, is_quick=is_quick)
        weighted = dataclasses.replace(plain, class_weights="inverse")
        pairs.append(
            tuple(
                trainer(f"tile-{name}-{seed}", config, tile, judge)
                for name, config in (("plain", plain), ("weighted", weighted))
            )
        )
    rows = [_row(network, is_test) for network in [network for pair in pairs for network in pair] + best]
    ok = best[0].targets == best[0].classes.index(OK)
    flagged = [_score(network) > _limit(network, is_test) for network in best]
    checks = {
        "tile_weighted_gain": _weighted_gain(pairs, is_test),
        "tile_escape": _rate(best, [~f for f in flagged], is_test & ~ok),
        "tile_overkill": _rate(best, flagged, is_test & ok),
    }
    return checks, rows


def _plain(weights: Path, seed: int, *, is_quick: bool) -> TrainConfig:
    """Fine-tuned, with nothing for rare classes."""
    return TrainConfig(
        arch="efficientnet-lite0",
        weights=weights,
        until="block10",
        freeze_until="block2",
        size_px=160,
        resize="letterbox",
        epochs=1 if is_quick else 8,
        seed=seed,
        class_weights="none",
        augmentation=Augmentation(min_area=0.7),
    )


def best_config(weights: Path, tile: Dataset, seed: int, *, is_quick: bool) -> TrainConfig:
    """What cross-validation on train, calib and val chose; see the dated results."""
    return TrainConfig(
        arch="efficientnet-lite0",
        weights=weights,
        until="block10",
        freeze_until="block4",
        freeze_norms=True,
        size_px=96 if is_quick else 320,
        window_px=64 if is_quick else 192,
        resize="letterbox",
        epochs=1 if is_quick else 6,
        batch=8,
        optimizer="adamw",
        lr=3e-3,
        features_lr=0.1,
        weight_decay=1e-2,
        clip=5.0,
        label_smoothing=0.0,
        class_weights="sqrt",
        pooling="peak",
        masks=tile.root / "masks",
        seed=seed,
        augmentation=Augmentation(angle=8, light=0.6, blur=0, noise=0.3, cutout=0),
    )


def _score(judged: Judged) -> NDArray[np.float64]:
    """(N,) log odds of any defect."""
    ok = judged.classes.index(OK)
    others = np.delete(judged.logits, ok, axis=1)
    top = others.max(axis=1)
    return np.asarray(top + np.log(np.exp(others - top[:, None]).sum(axis=1)) - judged.logits[:, ok])


def _limit(judged: Judged, chosen: NDArray[np.bool_]) -> float:
    """The lowest limit that at most five percent of the good among the chosen images lie above."""
    good = np.sort(_score(judged)[chosen & (judged.targets == judged.classes.index(OK))])[::-1]
    return float(good[int(OVERKILL * len(good))])


def _rate(judged: Sequence[Judged], hits: Sequence[NDArray[np.bool_]], among: NDArray[np.bool_]) -> Figure:
    """Percent of some images, mean over the seeds, with its interval by group."""
    counts = ", ".join(f"{int((found & among).sum())} of {int(among.sum())}" for found in hits)
    groups = [group for group, counted in zip(judged[0].groups, among, strict=True) if counted]
    mean = np.mean([found[among] for found in hits], axis=0)
    why = f"{counts} by seed, {len(set(groups))} groups; limit read on test"
    return rate_figure(groups, mean, np.ones(len(mean)), why=why, scale=100.0)


def _weighted_gain(pairs: Sequence[Sequence[Judged]], is_test: NDArray[np.bool_]) -> Figure:
    """Points of macro recall over the defect classes, weighted less plain: mean over seeds, resampled by group."""
    first = pairs[0][0]
    defects = [i for i, name in enumerate(first.classes) if name != OK]
    names = {name: i for i, name in enumerate(dict.fromkeys(np.array(first.groups)[is_test]))}
    numbers = np.array([names[group] for group in np.array(first.groups)[is_test]])

    def sums(judged: Judged) -> NDArray[np.float64]:
        """(groups, classes, 2): hits and images."""
        found = np.zeros((len(names), len(first.classes), 2))
        np.add.at(found, (numbers, judged.targets[is_test], 0), judged.right[is_test])
        np.add.at(found, (numbers, judged.targets[is_test], 1), 1.0)
        return found[:, defects]

    def recall(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R, classes, 2) to (R,): classes that were not drawn say nothing."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.nanmean(drawn[..., 0] / drawn[..., 1], axis=1))

    tables = [[sums(judged) for judged in pair] for pair in pairs]
    draws = np.random.default_rng(6).multinomial(len(names), np.full(len(names), 1 / len(names)), size=2000)

    def gain(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        each = [
            recall(np.tensordot(weights, weighted, 1)) - recall(np.tensordot(weights, plain, 1))
            for plain, weighted in tables
        ]
        return np.asarray(100 * np.mean(each, axis=0))

    low, high = np.nanpercentile(gain(draws.astype(float)), (2.5, 97.5))
    why = f"points of macro recall over {len(defects)} defect classes on test, {len(pairs)} seeds"
    return Figure(value=float(gain(np.ones((1, len(names))))[0]), low=float(low), high=float(high), why=why)


def _row(judged: Judged, is_test: NDArray[np.bool_]) -> dict[str, Any]:
    score, ok = _score(judged), judged.targets == judged.classes.index(OK)
    good = np.sort(score[is_test & ok])[::-1]
    own_limit = good[int(OVERKILL * len(good))]
    flagged, preset = score > own_limit, score > _limit(judged, ~is_test)
    recalls, found = {}, {}
    for number, name in enumerate(judged.classes):
        mine = is_test & (judged.targets == number)
        groups = len({g for g, m in zip(judged.groups, mine, strict=True) if m})
        recalls[name] = round(float(judged.right[mine].mean()), 3)
        found[name] = (
            f"{int(flagged[mine].sum())} of {int(mine.sum())} flagged ({int(preset[mine].sum())} by the preset limit), "
            f"{groups} groups"
        )
    defects = [i for i, name in enumerate(judged.classes) if name != OK]
    test = dataclasses.replace(judged, targets=judged.targets[is_test], logits=judged.logits[is_test])
    return {
        "part": "tile",
        "network": judged.name,
        "macro_recall_defects": round(test.macro_recall(defects), 4),
        "escape": round(float((~flagged)[is_test & ~ok].mean()), 4),
        "overkill": round(float(flagged[is_test & ok].mean()), 4),
        "preset_escape": round(float((~preset)[is_test & ~ok].mean()), 4),
        "preset_overkill": round(float(preset[is_test & ok].mean()), 4),
        "recalls": recalls,
        "flagged": found,
        "epochs": judged.epochs,
        "minutes": round(judged.seconds / 60, 1),
    }
