"""NEU steel: the whole ladder, and pruning alone, judged on 20 fixed views of each test image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.augment import Augmentation
from optimize.files import write_atomically
from optimize.ladder import Budget, LadderOptions, RungFile, assess, climb, draw_ladder
from optimize.prune.files import PruneConfig
from optimize.train_config import TrainConfig
from tools.bench_frame import say
from tools.bench_ladder.steps import distilled, int8_of, ladder_recipe, pruned, with_checkpoint
from tools.bench_ladder.views import OnViews, speedup

if TYPE_CHECKING:
    from pathlib import Path

    from optimize.dataset import Dataset
    from optimize.ladder import Ladder
    from tools.bench_methods.trainings import Trainer
    from tools.bench_quantize.figures import Figure

    Found = tuple[dict[str, Figure], list[dict[str, Any]]]

__all__ = ["neu_top", "prune_part", "rungs_part", "student"]

MAX_DROP = 0.75
KEEP = (0.7, 0.5)


def neu_top(trainer: Trainer, neu: Dataset, weights: Path, *, is_quick: bool) -> RungFile:
    """The best float network on NEU, as `tools/bench methods` trains it."""
    config = TrainConfig(arch="efficientnet-lite0", weights=weights, epochs=1 if is_quick else 6)
    return RungFile(name="top", path=with_checkpoint(trainer("neu-lite0", config, neu, neu.take("test"))))


def student(weights: Path, *, is_quick: bool) -> TrainConfig:
    """Its first two thirds, at a third of the pixels."""
    return TrainConfig(
        arch="efficientnet-lite0",
        weights=weights,
        until="block10",
        freeze_until="block2",
        size_px=128,
        epochs=1 if is_quick else None,
        augmentation=Augmentation(min_area=0.6),
    )


def rungs_part(trainer: Trainer, neu: Dataset, weights: Path, work: Path, *, is_quick: bool) -> Found:
    """Float, distilled, pruned, INT8; the rung that val chooses within the budget is judged on the views."""
    top, recipe = neu_top(trainer, neu, weights, is_quick=is_quick), ladder_recipe(neu)
    cuts = [pruned("distilled", _prune(share, is_quick=is_quick), neu.root) for share in KEEP]
    plan = [distilled("top", student(weights, is_quick=is_quick), neu), *cuts]
    plan += int8_of(["top", *(planned.name for planned in plan)], recipe)
    files = climb(top, plan, work / "ladder-neu")
    say("judging the rungs on val")
    ladder = assess(files, neu, recipe, LadderOptions(budget=Budget(max_drop=MAX_DROP), seconds=20, with_sheets=False))
    write_atomically(work / "ladder-neu.png", draw_ladder(ladder))
    chosen = next(file for file in files if file.name == (ladder.choice.name or ladder.choice.nearest))
    views = _views(neu, is_quick=is_quick)
    say("judging the rungs on the views of test")
    right = {file.name: views.right(file) for file in files}
    ratio, _, _ = speedup(top, chosen)
    checks = {"ladder_speedup": ratio, "ladder_drop": views.drop(right["top"], right[chosen.name], why=chosen.name)}
    rows = rows_of("rungs", ladder)
    for row in rows:
        row["views_accuracy"] = round(float(right[row["rung"]].mean()), 4)
        row["views_drop"] = views.drop(right["top"], right[row["rung"]]).to_json()
    return checks, rows


def prune_part(trainer: Trainer, neu: Dataset, weights: Path, work: Path, *, is_quick: bool) -> Found:
    """Half the multiplications of the top alone, recovered from the unlabelled calibration pictures."""
    top = neu_top(trainer, neu, weights, is_quick=is_quick)
    files = climb(top, [pruned("top", _prune(0.5, is_quick=is_quick), neu.root)], work / "prune-neu")
    views = _views(neu, is_quick=is_quick)
    before, after = (views.right(file) for file in files)
    ratio, first, second = speedup(*files)
    row = {
        "part": "prune",
        "views_before": round(float(before.mean()), 4),
        "views_after": round(float(after.mean()), 4),
        "ms_before": round(first, 3),
        "ms_after": round(second, 3),
    }
    return {"prune_drop": views.drop(before, after), "prune_speedup": ratio}, [row]


def rows_of(part: str, ladder: Ladder) -> list[dict[str, Any]]:
    """One row a rung: what it keeps, as counts, and what it costs."""
    return [
        {
            "part": part,
            "rung": rung.name,
            "chosen": rung.name == ladder.choice.name,
            "accuracy": round(rung.accuracy, 4),
            "drop_points": round(rung.drop_points, 2),
            "recall": [f"{count.name} {count.words()}" for count in rung.recall],
            "escapes": f"{rung.escapes}/{rung.defects}",
            "changed": rung.decisions_changed,
            "lost": [lost.name for lost in rung.lost],
            "macs": rung.macs,
            "mb": round(rung.size_mb, 2),
            "ms": None if rung.latency is None else round(rung.latency.p50_ms, 2),
            "speedup": None if (times := ladder.speedup(rung)) is None else round(times, 2),
        }
        for rung in ladder.rungs
    ]


def _prune(share: float, *, is_quick: bool) -> PruneConfig:
    return PruneConfig(keep_macs=share, recover_epochs=1 if is_quick else None, threads=1)


def _views(neu: Dataset, *, is_quick: bool) -> OnViews:
    return OnViews(neu.root, neu.classes, **({"each": 2, "limit": 24} if is_quick else {}))
