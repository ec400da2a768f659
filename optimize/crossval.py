"""Cross-validation: K networks, each judged once on images of parts that it never saw.

```text
all images but test ─ K folds by group ─┬ fold 1: train (inner train, inner val) ─ ONNX ─ logits of fold 1 ┐
                                        ├ …                                                                ├ out of fold
                                        └ fold K: train (inner train, inner val) ─ ONNX ─ logits of fold K ┘
```

What is judged is the exported file, on pictures fitted by the device's own code: the logits are those a device would
get. Each fold's result is written when it is there, so a run that was killed trains no fold twice; a fold that was on
its way goes on from `train`'s checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle.manifest import InputSpec
from agent.bundle.preprocess import fit
from agent.errors import ImageError
from optimize.dataset import Dataset, Sample, data_digest, read_image
from optimize.errors import OptimizeError
from optimize.folds import Folds, deal_folds, parts_of, pool
from optimize.quantize.interpret import session_of
from optimize.train_config import TrainConfig
from optimize.trainset import refuse_broken

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimize.train import EpochRecord, Progress, TrainResult

__all__ = ["CrossValidation", "FoldProgress", "FoldResult", "cross_validate", "logits_of"]

FORMAT = 1
REMEDY = "add --fresh to start anew, or give another --out"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoldProgress:
    """Where a cross-validation is; given to the caller after each step.

    Attributes:
        fold: the fold that is trained, from 1.
        count: how many folds there are.
        done: share of the whole, 0 to 1.
        seconds_left: by what this run did so far; None before anything is known.
        epoch: of the running fold.
        loss: of the last step.
        record: the finished epoch, at its end only.
    """

    fold: int
    count: int
    done: float
    seconds_left: float | None
    epoch: int
    loss: float
    record: EpochRecord | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldResult:
    """One fold's network, and what it says to the images it never saw.

    Attributes:
        fold: from 1.
        onnx: its exported file.
        sha256: of that file.
        files: the images that it judged.
        logits: (N, C) float64, by file.
        epochs: how many it trained.
        best_epoch: whose weights were kept, chosen on the inner val.
        stopped: `finished`, `patience` or `minutes`.
        train: the images that it was trained on.
        val: the images that stopped it.
        seconds: of its training.
        was_there: it came from an earlier run.
    """

    fold: int
    onnx: Path
    sha256: str
    files: tuple[str, ...]
    logits: NDArray[np.float64]
    epochs: int
    best_epoch: int
    stopped: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    seconds: float
    was_there: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossValidation:
    """What all folds said.

    Attributes:
        config: the recipe; a fold's seed is its seed plus the fold's number.
        folds: who judged what.
        data_sha256: over the images of all folds, see `optimize.dataset.data_digest`.
        results: by fold.
        notices: what the user should know, in sentences.
    """

    config: TrainConfig
    folds: Folds
    data_sha256: str
    results: tuple[FoldResult, ...]
    notices: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.folds.dataset.classes

    @property
    def judged(self) -> tuple[tuple[Sample, int], ...]:
        """Every image that was judged, with its fold, in the order of `logits`."""
        sample_of = {sample.file: sample for sample in self.folds.dataset.samples}
        return tuple((sample_of[file], result.fold) for result in self.results for file in result.files)

    @property
    def logits(self) -> NDArray[np.float64]:
        """(N, C): for each judged image what the one network said that never saw its group."""
        return np.concatenate([result.logits for result in self.results])

    @property
    def targets(self) -> NDArray[np.int64]:
        """(N,) the class number of each judged image."""
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number[str(sample.label)] for sample, _ in self.judged], dtype=np.int64)


def cross_validate(
    config: TrainConfig,
    dataset: Dataset,
    folder: Path,
    count: int,
    progress: Callable[[FoldProgress], None] | None = None,
    *,
    is_fresh: bool = False,
) -> CrossValidation:
    """Train and judge every fold, or what an earlier run left to do.

    Args:
        config: the recipe; `minutes` is for all folds together.
        dataset: a whole set; its test split is left alone.
        folder: where each fold has its own, `fold1` to `foldK`.
        count: how many folds.
        progress: called after each step.
        is_fresh: forget what is there.

    Raises:
        DataError: images, labels or groups that can't be dealt out or trained on.
        OptimizeError: the folder holds folds of another run, or a fold can't be trained.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptimizeError(
            "train: --cv runs in one process, its folds one after another", hint="start it without torchrun"
        )
    folds = deal_folds(pool(dataset), count, config.seed)
    _check_readable(folds.dataset)
    digest = data_digest(folds.dataset)
    places = [_Place(folder / f"fold{i}", _run_of(config, digest, count, i)) for i in range(1, count + 1)]
    if is_fresh:
        for place in places:
            place.forget()
    there = {i: found for i, place in enumerate(places, start=1) if (found := place.load(i)) is not None}
    clock = _Clock(count, len(there), progress or (lambda _: None))
    results = []
    for i, place in enumerate(places, start=1):
        if i not in there:
            there[i] = _trained(_fold_config(config, count, i), folds, place, i, clock, is_fresh=is_fresh)
            place.save(there[i])
            clock.finish()
        results.append(there[i])
    return CrossValidation(
        config=config, folds=folds, data_sha256=digest, results=tuple(results), notices=folds.notices
    )


def logits_of(onnx: Path, samples: tuple[Sample, ...], spec: InputSpec) -> NDArray[np.float64]:
    """What a file says to images, as a device would see them.

    Args:
        onnx: the model.
        samples: the images.
        spec: the model's input.

    Returns:
        (N, C) float64.

    Raises:
        ImageError: an image can't be read.
        OptimizeError: the file can't be run, or a logit is not finite.
    """
    session = session_of(onnx.read_bytes(), is_optimized=True)
    rows = [session.run(["logits"], {spec.name: fit(read_image(s.path), spec)[None]})[0][0] for s in samples]
    logits = np.array(rows, dtype=np.float64)
    if not np.isfinite(logits).all():
        file = samples[int(np.argmin(np.isfinite(logits).all(axis=1)))].file
        raise OptimizeError(f"{onnx}: gives logits that are not finite for {file}", hint="--fresh, with a lower --lr")
    return logits


class _Clock:
    """Share done and time left, over all folds; folds that were there already take no time."""

    def __init__(self, count: int, there: int, progress: Callable[[FoldProgress], None]) -> None:
        self._count, self._finished, self._there = count, there, there
        self._progress, self._started = progress, time.monotonic()
        self._first: float | None = None

    def step(self, fold: int, where: Progress) -> None:
        """Pass on what `train` says."""
        self._first = where.done if self._first is None else self._first  # a resumed fold begins in its middle
        done = (self._finished + where.done) / self._count
        gained = self._finished + where.done - self._there - self._first
        left = self._count - self._finished - where.done
        taken = time.monotonic() - self._started
        self._progress(
            FoldProgress(
                fold=fold,
                count=self._count,
                done=min(done, 1.0),
                seconds_left=taken / gained * left if gained > 0 else None,
                epoch=where.epoch,
                loss=where.loss,
                record=where.record,
            )
        )

    def finish(self) -> None:
        """A fold is done."""
        self._finished += 1


class _Place:
    """A fold's folder: its network, `train`'s checkpoint, and the result once it is there."""

    def __init__(self, folder: Path, run_of: Mapping[str, str]) -> None:
        self.onnx, self._result, self._run_of = folder / "model.onnx", folder / "fold.json", dict(run_of)

    def forget(self) -> None:
        """Remove the result; the checkpoint is `train`'s to forget."""
        self._result.unlink(missing_ok=True)

    def save(self, found: FoldResult) -> None:
        """Write the result, whole or not at all."""
        from optimize.files import write_atomically

        values = {key: getattr(found, key) for key in _KEPT} | {key: list(getattr(found, key)) for key in _LISTS}
        document = {"format": FORMAT, "run_of": self._run_of, **values, "logits": found.logits.tolist()}
        write_atomically(self._result, (json.dumps(document, ensure_ascii=False) + "\n").encode())

    def load(self, fold: int) -> FoldResult | None:
        """What an earlier run left; None when the fold must be trained, or its remains can't be read.

        Raises:
            OptimizeError: it is of another run; what differs is named.
        """
        try:
            raw: Any = json.loads(self._result.read_bytes())
            run_of, values = dict(raw["run_of"]), {key: raw[key] for key in _KEPT}
            logits = np.array(raw["logits"], dtype=np.float64)
            lists: dict[str, Any] = {key: tuple(raw[key]) for key in _LISTS}
            sha256 = hashlib.sha256(self.onnx.read_bytes()).hexdigest()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        for key in sorted(self._run_of):
            if run_of.get(key) != self._run_of[key]:
                raise OptimizeError(
                    f"{self._result}: is of a run with {key} {run_of.get(key)}, this one has {self._run_of[key]}",
                    hint=REMEDY,
                )
        if sha256 != values["sha256"] or logits.ndim != 2 or len(logits) != len(lists["files"]):
            return None
        return FoldResult(fold=fold, onnx=self.onnx, logits=logits, was_there=True, **lists, **values)


_KEPT = ("sha256", "epochs", "best_epoch", "stopped", "seconds")
"""Fields of a result that are written as they are."""

_LISTS = ("files", "train", "val")
"""Fields that are lists of files: who judged, taught and stopped can be checked from outside."""


def _trained(
    config: TrainConfig, folds: Folds, place: _Place, fold: int, clock: _Clock, *, is_fresh: bool
) -> FoldResult:
    from optimize.train import train

    parts, judged = parts_of(folds, fold), folds.judged(fold)
    found: TrainResult = train(config, parts, place.onnx, lambda p: clock.step(fold, p), is_fresh=is_fresh)
    return FoldResult(
        fold=fold,
        onnx=place.onnx,
        sha256=found.sha256,
        files=tuple(sample.file for sample in judged),
        logits=logits_of(place.onnx, judged, config.spec),
        epochs=len(found.history),
        best_epoch=found.best_epoch,
        stopped=found.stopped,
        train=tuple(found.files["train"]),
        val=tuple(found.files["val"]),
        seconds=found.seconds,
    )


def _fold_config(config: TrainConfig, count: int, fold: int) -> TrainConfig:
    """The recipe of one fold: its share of the time, and a seed of its own, so that the spread holds chance too."""
    return dataclasses.replace(
        config,
        seed=config.seed + fold,
        minutes=None if config.minutes is None else config.minutes / count,
        tensorboard=None if config.tensorboard is None else config.tensorboard / f"fold{fold}",
    )


def _run_of(config: TrainConfig, digest: str, count: int, fold: int) -> dict[str, str]:
    """What a finished fold must agree on; where it ran and how many threads it had may change."""
    recipe = dataclasses.asdict(config) | {"size_px": config.size, "epochs": config.schedule, "lr": config.peak_lr}
    for key in ("threads", "device", "tensorboard"):
        recipe.pop(key, None)
    if isinstance(config.weights, Path):
        recipe["weights"] = hashlib.sha256(_read(config.weights)).hexdigest()[:16]
    return {key: str(value) for key, value in recipe.items()} | {
        "images": digest[:16],
        "folds": str(count),
        "fold": str(fold),
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OptimizeError(f"weights: {path} can't be read ({error.strerror})") from error


def _check_readable(dataset: Dataset) -> None:
    """See that every image can be read: not after an hour, when its fold is judged."""
    broken = []
    for sample in dataset:
        try:
            read_image(sample.path)
        except ImageError as error:  # noqa: PERF203 - all broken ones are to be named
            broken.append(error.message)
    refuse_broken(dataset, broken)
