"""Train a small network, so that the same seed gives the same weights, interrupted or not.

```text
pictures (uint8, in memory) ─ augment ─ mix ─ network ─ weighted cross-entropy ─ SGD, warm-up and cosine
                                                 └ running average of the weights ─ val after each epoch ─ best one kept
```

Everything random in an epoch comes from (seed, epoch, image); the state after each epoch is in one checkpoint, written
whole or not at all. So a run that was killed goes on where it was, and ends with the same bytes.

What is kept is the running average of the weights at the best epoch on `val`: by balanced recall (the mean of the
classes' recalls: a rare defect counts as much as the many good parts); where that differs by one image only, which is
chance, by loss. `test` is never opened.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.augment import augment
from optimize.checkpoint import Checkpoint
from optimize.dataset import Dataset, data_digest
from optimize.errors import OptimizeError
from optimize.export import Parity, check_parity, export_onnx, normalize, write_atomically
from optimize.networks import build_network
from optimize.networks.classifier import Classifier
from optimize.pretrained import Pretrained, WeightsOrigin, read_weights, scratch_notice
from optimize.train_config import TrainConfig
from optimize.trainset import Pictures, fitted_pictures, raw_pictures, train_and_val
from optimize.validation import Validation, validate

__all__ = ["EpochRecord", "Progress", "TrainConfig", "TrainResult", "train"]

PARITY_PICTURES = 16
WARM_UP = 0.1  # share of the schedule over which the learning rate rises


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One pass over the training images.

    Attributes:
        epoch: from 1.
        position: where in the schedule it ended, of `config.schedule`; more than `epoch` when time was short.
        size_px: width and height of the training pictures.
        lr: learning rate at its end.
        train_loss: mean loss, on augmented and mixed pictures.
        val_loss: mean cross-entropy on `val`.
        val_accuracy: share right on `val`.
        val_balanced_recall: what the best epoch is chosen by.
        seconds: wall time.
    """

    epoch: int
    position: float
    size_px: int
    lr: float
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_balanced_recall: float
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is; given to the caller after each step.

    Attributes:
        done: share of the schedule, 0 to 1.
        epoch: the running epoch, from 1.
        loss: of the last step.
        record: the finished epoch, at its end only.
    """

    done: float
    epoch: int
    loss: float
    record: EpochRecord | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What came out.

    Attributes:
        config: the recipe.
        classes: in the order of the logits.
        onnx: the exported model.
        sha256: of that file.
        size_bytes: of that file.
        parameters: weights of the network.
        history: one record per epoch.
        best_epoch: whose weights were kept, from 1.
        val: how they did.
        parity: how far ONNX Runtime and torch are apart.
        stopped: `finished`, `patience` or `minutes`.
        data_sha256: over the train and val images, see `optimize.dataset.data_digest`.
        files: the images that were used, by split.
        notices: what the user should know, in sentences.
        seconds: wall time of all epochs, those before an interruption too.
        resumed_at: the epoch that an earlier run had reached, 0 for a fresh start.
        origin: the published weights that it started from; None from scratch.
    """

    config: TrainConfig
    classes: tuple[str, ...]
    onnx: Path
    sha256: str
    size_bytes: int
    parameters: int
    history: tuple[EpochRecord, ...]
    best_epoch: int
    val: Validation
    parity: Parity
    stopped: str
    data_sha256: str
    files: Mapping[str, tuple[str, ...]]
    notices: tuple[str, ...]
    seconds: float
    resumed_at: int
    origin: WeightsOrigin | None


def train(
    config: TrainConfig,
    dataset: Dataset,
    out: Path,
    progress: Callable[[Progress], None] | None = None,
    *,
    workdir: Path | None = None,
    is_fresh: bool = False,
) -> TrainResult:
    """Train on `train`, stop and choose on `val`, export, and prove that the file computes the same.

    Args:
        config: the recipe.
        dataset: a whole set; its own `train` and `val` are taken. Without `val`, a part of `train` becomes it.
        out: the ONNX file to write.
        progress: called after each step.
        workdir: where the checkpoint is; `OUT.train` beside the file by default.
        is_fresh: forget a checkpoint that is there.

    Returns:
        What came out; the file is written.

    Raises:
        DataError: images, labels or splits that can't be trained on.
        ModelError: the published weights can't be used.
        OptimizeError: the loss is no number any more, or the checkpoint belongs to another run.
    """
    if out.is_dir():
        raise OptimizeError(f"out: {out} is a folder, expected a file", hint=f"--out {out / 'model.onnx'}")
    pretrained = None if config.weights is None else read_weights(config.weights, config.arch)
    parts, notices = train_and_val(dataset, config.seed)
    digest = data_digest(dataclasses.replace(dataset, samples=parts["train"].samples + parts["val"].samples))
    folder = workdir or out.with_name(f"{out.name}.train")
    checkpoint = Checkpoint(folder / "checkpoint.pt", _run_of(config, digest, pretrained))
    if is_fresh:
        checkpoint.forget()
    with _threads(config.threads):
        pictures, val = raw_pictures(parts["train"], config.size), fitted_pictures(parts["val"], config.spec)
        run = _Run(config, pictures, val, dataset.classes, pretrained)
        resumed_at = run.restore(checkpoint.load())
        while run.stopped is None:
            run.epoch(progress or (lambda _: None))
            checkpoint.save(run.state())
        sha256, parity = _export(run, out, folder / "unproven.onnx")
    return TrainResult(
        config=config,
        classes=dataset.classes,
        onnx=out,
        sha256=sha256,
        size_bytes=out.stat().st_size,
        parameters=sum(parameter.numel() for parameter in run.network.parameters()),
        history=tuple(run.history),
        best_epoch=run.best_epoch,
        val=run.best,
        parity=parity,
        stopped=run.stopped,
        data_sha256=digest,
        files={name: tuple(sample.file for sample in part) for name, part in parts.items()},
        notices=notices + scratch_notice(config),
        seconds=run.seconds,
        resumed_at=resumed_at,
        origin=pretrained.origin if pretrained else None,
    )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads; 0 leaves what it chose, one per core unless OMP_NUM_THREADS says otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _export(run: _Run, out: Path, unproven: Path) -> tuple[str, Parity]:
    """Write the best network; the file appears under its name only when ONNX Runtime has agreed with torch."""
    network = run.best_network()
    sha256 = export_onnx(network, unproven, run.config.spec, run.classes, arch=run.config.arch)
    parity = check_parity(network, unproven, run.val.images[:PARITY_PICTURES])
    write_atomically(out, unproven.read_bytes())
    unproven.unlink()
    return sha256, parity


class _Run:
    """A training run between two epochs; all that changes is in `state`."""

    def __init__(
        self,
        config: TrainConfig,
        pictures: Pictures,
        val: Pictures,
        classes: tuple[str, ...],
        pretrained: Pretrained | None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.pictures, self.val, self.classes = config, pictures, val, classes
        self.channels = 1 if pictures.is_grey and val.is_grey else 3
        self.network = _channels_last(build_network(config.arch, len(classes), in_channels=self.channels))
        if pretrained is not None:
            pretrained.copy_to(self.network)
        self.averaged = copy.deepcopy(self.network).eval()
        self.optimizer = _optimizer(self.network, config)
        counts = np.bincount(pictures.targets, minlength=len(classes))
        # Inverse frequency, with a mean of 1 over the images: a rare class weighs as much as a frequent one.
        self.class_weights = torch.from_numpy((len(pictures.targets) / (len(classes) * counts)).astype(np.float32))
        self.position, self.seconds = 0.0, 0.0
        self.history: list[EpochRecord] = []
        self.best = Validation(loss=math.inf, confusion=())
        self.best_epoch, self.top_recall = 0, 0.0
        self.best_weights: dict[str, torch.Tensor] = {}

    @property
    def stopped(self) -> str | None:
        """Why the run is over, or None."""
        if self.position >= self.config.schedule:
            return "minutes" if len(self.history) < self.config.schedule else "finished"
        return "patience" if len(self.history) - self.best_epoch >= self.config.patience else None

    def epoch(self, progress: Callable[[Progress], None]) -> None:
        """Train on every image once, then see how the averaged weights do on `val`."""
        begin, number = time.monotonic(), len(self.history) + 1
        random = np.random.default_rng([self.config.seed, number])
        order = random.permutation(len(self.pictures.targets))
        batches = np.array_split(order, max(1, round(len(order) / self.config.batch)))
        size_px, advance = self._size_at(self.position), self._advance()
        total, lr = 0.0, 0.0
        for i, batch in enumerate(batches):
            lr = self._set_lr(self.position + advance * i / len(batches))
            loss = self._step(*self._batch(batch, size_px, number, random), steps_done=(number - 1) * len(batches) + i)
            total += loss
            done = (self.position + advance * (i + 1) / len(batches)) / self.config.schedule
            progress(Progress(done=min(done, 1.0), epoch=number, loss=loss))
        self.position = min(self.position + advance, float(self.config.schedule))
        found = validate(self.averaged, self.val, channels=self.channels, n_classes=len(self.class_weights))
        seconds = time.monotonic() - begin
        self.seconds += seconds
        self.history.append(
            EpochRecord(
                epoch=number,
                position=self.position,
                size_px=size_px,
                lr=lr,
                train_loss=total / len(batches),
                val_loss=found.loss,
                val_accuracy=found.accuracy,
                val_balanced_recall=found.balanced_recall,
                seconds=seconds,
            )
        )
        self._keep_best(found, number)
        done = self.position / self.config.schedule
        progress(Progress(done=done, epoch=number, loss=total / len(batches), record=self.history[-1]))

    def best_network(self) -> Classifier:
        """The averaged network of the best epoch."""
        self.averaged.load_state_dict(self.best_weights)
        return self.averaged

    def state(self) -> dict[str, Any]:
        """All that changes from epoch to epoch, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_weights": self.best_weights,
            "best_epoch": self.best_epoch,
            "top_recall": self.top_recall,
            "best": dataclasses.asdict(self.best),
            "history": [dataclasses.asdict(record) for record in self.history],
            "position": self.position,
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any] | None) -> int:
        """Go to where a state was taken; gives the epochs done by then, 0 without a state."""
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.averaged.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best_weights, self.best_epoch = state["best_weights"], state["best_epoch"]
            self.best, self.top_recall = Validation(**state["best"]), state["top_recall"]
            self.history = [EpochRecord(**record) for record in state["history"]]
            self.position, self.seconds = state["position"], state["seconds"]
        return len(self.history)

    def _keep_best(self, found: Validation, number: int) -> None:
        top = max(self.top_recall, found.balanced_recall)
        is_near_top, was_near_top = (v.balanced_recall >= top - found.one_image for v in (found, self.best))
        self.top_recall = top
        if not is_near_top or (was_near_top and found.loss >= self.best.loss):
            return
        self.best, self.best_epoch = found, number
        self.best_weights = {key: value.clone() for key, value in self.averaged.state_dict().items()}

    def _batch(
        self, batch: NDArray[np.int64], size_px: int, epoch: int, random: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented, normalized and mixed pictures, and their targets as probabilities."""
        pictures = np.stack(
            [
                augment(
                    self.pictures.images[i][:, :, : self.channels],
                    size_px,
                    self.config.augmentation,
                    np.random.default_rng([self.config.seed, epoch, int(i)]),
                )
                for i in batch
            ]
        )
        inputs = normalize(pictures)
        numbers = torch.from_numpy(self.pictures.targets[batch])
        targets = torch.nn.functional.one_hot(numbers, len(self.class_weights)).float()
        if self.config.mixup > 0 and random.random() < 0.5:
            return _mixed(inputs, targets, float(random.beta(self.config.mixup, self.config.mixup)))
        return inputs, targets

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor, *, steps_done: int) -> float:
        """One step of the optimizer; gives the loss."""
        self.network.train()
        logits = self.network(inputs)
        loss = torch.nn.functional.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.config.label_smoothing
        )
        value = float(loss.item())
        if not math.isfinite(value):
            raise OptimizeError(
                f"train: the loss became {value} in epoch {len(self.history) + 1}",
                hint=f"use a lower learning rate, for example --lr {self.config.peak_lr / 4:g} --fresh",
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        # The average is young at first: it must forget the random start faster than it will forget later.
        keep = min(self.config.average, (1 + steps_done) / (10 + steps_done))
        with torch.no_grad():
            for mean, new in zip(self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True):
                if mean.dtype.is_floating_point:
                    mean.lerp_(new, 1 - keep)
                else:
                    mean.copy_(new)
        return value

    def _set_lr(self, position: float) -> float:
        """Linear warm-up, then a cosine to 0 (Loshchilov and Hutter, "SGDR", ICLR 2017)."""
        share = position / self.config.schedule
        rising = share / WARM_UP
        falling = 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
        lr = self.config.peak_lr * (rising if share < WARM_UP else falling)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _size_at(self, position: float) -> int:
        """Training size: small first, in multiples of 32 as the networks' strides want it."""
        small = max(32, round(0.75 * self.config.size / 32) * 32)
        is_small = position < self.config.small_until * self.config.schedule and small < self.config.size
        return small if is_small else self.config.size

    def _advance(self) -> float:
        """How far the next epoch goes in the schedule: 1, or more when the time budget asks for it."""
        left = self.config.schedule - self.position
        if self.config.minutes is None or not self.history:
            return min(1.0, left)
        seconds_left = 60 * self.config.minutes - self.seconds
        per_area = self.seconds / sum(record.size_px**2 for record in self.history)
        positions = np.arange(self.position, self.config.schedule)
        seconds_needed = per_area * sum(self._size_at(position) ** 2 for position in positions)
        if seconds_left <= seconds_needed / left:
            return left
        return min(left, max(1.0, seconds_needed / seconds_left))


def _run_of(config: TrainConfig, digest: str, pretrained: Pretrained | None) -> dict[str, str]:
    """What a checkpoint must agree on; what only ends a run sooner or later, or makes it faster, may change."""
    recipe = dataclasses.asdict(config) | {"size_px": config.size, "epochs": config.schedule, "lr": config.peak_lr}
    recipe["weights"] = pretrained.origin.sha256[:16] if pretrained else "none"
    for key in ("minutes", "patience", "threads"):
        del recipe[key]
    return {key: str(value) for key, value in recipe.items()} | {"images": digest[:16]}


def _channels_last(network: Classifier) -> Classifier:
    """Keep weights as oneDNN wants them: a quarter faster on a CPU (measured: 25.4 against 20.7 pictures/s)."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _mixed(inputs: torch.Tensor, targets: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each picture and its target with another of the batch (Zhang et al., "mixup", ICLR 2018)."""
    return torch.lerp(inputs.flip(0), inputs, share), torch.lerp(targets.flip(0), targets, share)


def _optimizer(network: Classifier, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; norms and biases do not decay."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.peak_lr, momentum=0.9, nesterov=True)
