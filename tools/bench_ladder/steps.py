"""The steps between rungs, as the commands do them, with what decides each as text."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

from optimize.build import build
from optimize.distill import Shares, Source, distill, open_teacher
from optimize.inputs import gather
from optimize.ladder import PlannedRung
from optimize.prune.files import PruneConfig, prune_file
from optimize.recipe import ClassRecipe, QuantizeRecipe, Recipe
from tools.bench_frame import say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from optimize.dataset import Dataset
    from optimize.train import Progress
    from optimize.train_config import TrainConfig
    from tools.bench_methods.trainings import Judged

__all__ = ["distilled", "int8_of", "ladder_recipe", "pruned", "with_checkpoint"]


def with_checkpoint(judged: Judged) -> Path:
    """A trained network with its checkpoint where `prune` looks for it."""
    wanted = judged.onnx.with_name(f"{judged.onnx.name}.train") / "checkpoint.pt"
    if not wanted.is_file():
        newest = max(judged.onnx.parent.glob("train-*/checkpoint.pt"), key=lambda path: path.stat().st_mtime)
        wanted.parent.mkdir(exist_ok=True)
        shutil.copyfile(newest, wanted)
    return judged.onnx


def ladder_recipe(dataset: Dataset, ok: str | None = None) -> Recipe:
    """Classes and limits that all rungs are judged with."""
    classes = tuple(ClassRecipe(name=name, severity="ok" if name == ok else "major") for name in dataset.classes)
    return Recipe(name="ladder", data=dataset.root, calib=dataset.root, classes=classes)


def distilled(
    source: str,
    config: TrainConfig,
    dataset: Dataset,
    shares: Shares | None = None,
    *,
    unlabelled: Dataset | None = None,
) -> PlannedRung:
    """A smaller network that learns what the one above says, of other pictures too where there are some."""
    weighed = shares or Shares()

    def make(teacher: Path, folder: Path) -> Path:
        result = distill(
            config,
            open_teacher([teacher]),
            weighed,
            Source(labelled=dataset, unlabelled=unlabelled),
            folder / "model.onnx",
            _told("distilled"),
        )
        return result.student.onnx

    told = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("weights", "masks")}
    reads = {"config": str(told), "shares": str(weighed)}
    if unlabelled is not None:
        reads["unlabelled"] = str(len(unlabelled))
    return PlannedRung(name="distilled", source=source, make=make, reads=reads)


def pruned(source: str, config: PruneConfig, root: Path) -> PlannedRung:
    """The same network with fewer channels, recovered from calibration pictures without labels."""

    def make(model: Path, folder: Path) -> Path:
        out = folder / "model.onnx"
        say(f"pruning {source} to {config.keep_macs:g} of its multiplications")
        found = prune_file(model, root, out, config, data=root)
        say(f"pruned: {found.to_json()['macs']}")
        return out

    return PlannedRung(
        name=f"pruned-{config.keep_macs:g}", source=source, make=make, reads={"config": str(config), "root": root.name}
    )


def int8_of(sources: Sequence[str], recipe: Recipe) -> list[PlannedRung]:
    """An INT8 bundle of each."""

    def make(model: Path, folder: Path) -> Path:
        out = folder / "ladder-1.0.0.defect"
        say(f"quantizing {model}")
        forced = QuantizeRecipe(cpu_graph="int8")
        build(gather(dataclasses.replace(recipe, model=model, out=out, quantize=forced, targets=("cpu",))))
        return out

    reads = {"recipe": str(dataclasses.replace(recipe, data=None, calib=None))}
    return [PlannedRung(name=f"{s}-int8", source=s, make=make, reads=reads, graph="cpu") for s in sources]


def _told(name: str) -> Callable[[Progress], None]:
    def show(progress: Progress) -> None:
        if (record := progress.record) is not None:
            say(f"{name}: epoch {record.epoch}, val accuracy {record.val_accuracy:.4f}")

    return show
