"""Trainings that are done once: a network is kept with what it said to the images that judge it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.dataset import Dataset, data_digest
from optimize.files import write_atomically
from optimize.folds import group_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimize.train_config import TrainConfig

__all__ = ["Judged", "Trainer", "judged_by"]

NO_RECIPE = frozenset({"threads", "weights", "masks"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """A network, and its logits on images that it never saw.

    Attributes:
        name: of the training.
        onnx: its file.
        classes: in the order of the logits.
        files: the judging images.
        groups: of each.
        targets: (N,) class numbers.
        logits: (N, C).
        val_accuracy: what it was chosen by.
        epochs: that were trained.
        seconds: that they took.
        parameters: weights.
    """

    name: str
    onnx: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    groups: tuple[str, ...]
    targets: NDArray[np.int64]
    logits: NDArray[np.float64]
    val_accuracy: float
    val_balanced_recall: float
    epochs: int
    seconds: float
    parameters: int

    @property
    def right(self) -> NDArray[np.float64]:
        """(N,) 1 where the class is right."""
        return np.asarray(self.logits.argmax(axis=1) == self.targets, dtype=np.float64)

    @property
    def accuracy(self) -> float:
        """Share right."""
        return float(self.right.mean())

    def macro_recall(self, classes: list[int] | None = None) -> float:
        """Mean recall of some classes, of all by default."""
        return float(np.mean([self.right[self.targets == c].mean() for c in classes or np.unique(self.targets)]))


class Trainer:
    """Trains what is not there yet.

    Args:
        work: what is kept between runs; a training that was stopped goes on from its last epoch.
        threads: for each training.
    """

    def __init__(self, work: Path, threads: int) -> None:
        self._work, self._threads = work, threads

    def __call__(self, name: str, config: TrainConfig, dataset: Dataset, judge: Dataset) -> Judged:
        """Train on a set's `train` and `val`, judge on another's images.

        Args:
            name: of the folder it is kept in.
            config: the recipe.
            dataset: to train on.
            judge: all of its images judge.
        """
        from optimize.crossval import logits_of
        from optimize.train import Progress, train

        folder = self._work / name
        key = _key(config, dataset, judge)
        kept = _kept(folder / "judged.json", key)
        if kept is None:
            _say(f"{name}: training")
            started = time.monotonic()

            def show(progress: Progress) -> None:
                if progress.record is not None:
                    r = progress.record
                    spent = time.monotonic() - started
                    val = f"{r.val_accuracy:.3f} / {r.val_balanced_recall:.3f}"
                    _say(f"{name}: epoch {r.epoch}, val {val}, {spent:.0f} s")

            config = dataclasses.replace(config, threads=self._threads)
            result = train(config, dataset, folder / "model.onnx", show, workdir=folder / f"train-{key[:12]}")
            logits = logits_of(folder / "model.onnx", judge.samples, config.spec)
            kept = {
                "key": key,
                "logits": [[float(f"{value:.6g}") for value in row] for row in logits],
                "val_accuracy": result.val.accuracy,
                "val_balanced_recall": result.val.balanced_recall,
                "epochs": len(result.history),
                "seconds": result.seconds,
                "parameters": result.parameters,
            }
            write_atomically(folder / "judged.json", json.dumps(kept).encode())
        found = Judged(
            name=name,
            onnx=folder / "model.onnx",
            classes=dataset.classes,
            files=tuple(s.file for s in judge),
            groups=tuple(group_of(s) for s in judge),
            targets=np.asarray(judge.targets, dtype=np.int64),
            logits=np.array(kept["logits"], dtype=np.float64),
            **{k: kept[k] for k in ("val_accuracy", "val_balanced_recall", "epochs", "seconds", "parameters")},
        )
        _say(f"{name}: accuracy {found.accuracy:.4f}, macro recall {found.macro_recall():.4f}")
        return found


def judged_by(found: Judged, onnx: Path, samples: Dataset, spec: Any) -> Judged:
    """The same images, judged by another file (its INT8 graph)."""
    from optimize.crossval import logits_of

    return dataclasses.replace(found, onnx=onnx, logits=logits_of(onnx, samples.samples, spec))


def _key(config: TrainConfig, dataset: Dataset, judge: Dataset) -> str:
    """Changes when images do, or what the recipe says beyond its defaults."""
    usual = dataclasses.asdict(type(config)())
    recipe = {k: str(v) for k, v in dataclasses.asdict(config).items() if v != usual[k] and k not in NO_RECIPE}
    text = json.dumps(
        [recipe, config.weights is not None, config.masks is not None, data_digest(dataset), data_digest(judge)],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path, key: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["key"] == key else None


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
