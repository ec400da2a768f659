"""A training run between two epochs; all that changes is in `state`."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from optimize.errors import DataError, OptimizeError
from optimize.inputs import severity_by_name
from optimize.networks import build_network, resolve_width
from optimize.networks.classifier import Classifier
from optimize.pretrained import Pretrained
from optimize.train.batches import Batch, Batches
from optimize.train.losses import ClassLoss, place_loss
from optimize.train.processes import Processes
from optimize.train.result import EpochRecord, Progress
from optimize.train.sampling import draw_epoch
from optimize.train.schedule import Schedule
from optimize.train.stages import StagePlan, freeze, optimizer_of
from optimize.train_config import TrainConfig
from optimize.trainset import Pictures
from optimize.validation import Validation, validate

__all__ = ["Run"]

AT_FIRST = -5.0
"""Log odds of a defect before anything is learned, where peaks decide: 0.7 %."""


class Run:
    """Trains a network epoch by epoch.

    Args:
        config: the recipe.
        pictures: to train on.
        val: to choose by, at the network's size.
        classes: names, in the order of the logits.
        pretrained: published weights to start from; None starts from scratch.
        processes: who else works on it.

    Raises:
        DataError: fewer images than the processes need.
        OptimizeError: the recipe does not fit the network.
    """

    def __init__(
        self,
        config: TrainConfig,
        pictures: Pictures,
        val: Pictures,
        classes: tuple[str, ...],
        pretrained: Pretrained | None,
        processes: Processes,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.pictures, self.val, self.classes = config, pictures, val, classes
        self._processes, self._schedule = processes, Schedule(config)
        self.channels = 1 if pictures.is_grey and val.is_grey else 3
        self.background = next((i for i, name in enumerate(classes) if severity_by_name(name) == "ok"), None)
        self.notices: tuple[str, ...] = ()
        self.network = self._fresh_network(pretrained)
        self.averaged = copy.deepcopy(self.network).eval()
        self._plan, self._optimizer = StagePlan(self.network, config), optimizer_of(self.network, config)
        self.counts = np.bincount(pictures.targets, minlength=len(classes))
        shown = pictures.targets[draw_epoch(pictures.targets, config.sampler, np.random.default_rng(0))]
        # By what an epoch shows, not by what there is: the balanced sampler has evened the classes out already.
        self.loss = ClassLoss(config, np.bincount(shown, minlength=len(classes)), processes.device)
        self._batches = Batches(
            config, pictures, n_classes=len(classes), channels=self.channels, background=self.background
        )
        self.position, self.seconds = 0.0, 0.0
        self.history: list[EpochRecord] = []
        self.best = Validation(loss=math.inf, confusion=())
        self.last, self.best_epoch, self._top_recall = self.best, 0, 0.0
        self._best_weights: dict[str, torch.Tensor] = {}
        if len(pictures.targets) < 2 * processes.count:
            raise DataError(
                f"train: {len(pictures.targets)} images are too few for {processes.count} processes",
                hint="start fewer; each needs two images per step",
            )

    def _fresh_network(self, pretrained: Pretrained | None) -> Classifier:
        config = self.config
        network = build_network(
            config.arch,
            len(self.classes),
            in_channels=self.channels,
            width=resolve_width(config.arch, config.width, is_pretrained=pretrained is not None),
            attention=config.attention,
            until=config.until,
        )
        if pretrained is not None:
            self.notices += pretrained.copy_to(network).notice
        network.pooling, network.background = config.pooling, self.background
        if config.pooling != "mean" and self.background is not None:
            # The strongest of hundreds of places: without a start far below 0 every picture begins as a defect.
            with torch.no_grad():
                network.head.bias.fill_(AT_FIRST)[self.background] = 0
        return _channels_last(network).to(self._processes.device)

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
        order = draw_epoch(self.pictures.targets, self.config.sampler, random)
        steps = min(round(len(order) / self.config.batch), len(order) // (2 * self._processes.count))
        parts = np.array_split(order, max(1, steps))
        size_px = self.config.window_px or self._schedule.size_px(self.position)
        advance = self._schedule.advance(self.position, self.history, self.seconds)
        freeze(self.network, self._plan.frozen(number), with_norms=self.config.freeze_norms)
        joined = self._processes.joined(_Teachable(self.network, with_map=self.config.masks is not None))
        total, lr = 0.0, 0.0
        for i, part in enumerate(parts):
            lr = self._set_lr(self.position + advance * i / len(parts))
            batch = self._batches.make(self._processes.share(part), size_px, number, random)
            loss = self._step(joined, batch, steps_done=(number - 1) * len(parts) + i)
            total += loss
            done = (self.position + advance * (i + 1) / len(parts)) / self.config.schedule
            progress(Progress(done=min(done, 1.0), epoch=number, loss=loss))
        self.position = min(self.position + advance, float(self.config.schedule))
        found, seconds = self._validated(time.monotonic() - begin)
        self.seconds += seconds
        record = EpochRecord(
            epoch=number,
            position=self.position,
            size_px=size_px,
            lr=lr,
            train_loss=total / len(parts),
            val_loss=found.loss,
            val_accuracy=found.accuracy,
            val_balanced_recall=found.balanced_recall,
            seconds=seconds,
        )
        self.history.append(record)
        self.last = found
        self._keep_best(found, number)
        done = self.position / self.config.schedule
        progress(Progress(done=done, epoch=number, loss=record.train_loss, record=record))

    def best_network(self) -> Classifier:
        """The averaged network of the best epoch, on the CPU."""
        self.averaged.load_state_dict(self._best_weights)
        return self.averaged.cpu()

    def state(self) -> dict[str, Any]:
        """All that changes from epoch to epoch, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best_weights": self._best_weights,
            "best_epoch": self.best_epoch,
            "top_recall": self._top_recall,
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
            self._optimizer.load_state_dict(state["optimizer"])
            self._best_weights, self.best_epoch = state["best_weights"], state["best_epoch"]
            self.best, self._top_recall = Validation(**state["best"]), state["top_recall"]
            self.history = [EpochRecord(**record) for record in state["history"]]
            self.position, self.seconds = state["position"], state["seconds"]
        return len(self.history)

    def _validated(self, seconds: float) -> tuple[Validation, float]:
        """How the first process's average does on `val`, and the epoch's seconds; the same in every process."""
        n = len(self.classes)
        numbers = np.zeros(n * n + 2)
        if self._processes.is_first:
            found = validate(self.averaged, self.val, channels=self.channels, n_classes=n)
            numbers[:-2] = np.asarray(found.confusion, dtype=np.float64).ravel()
            numbers[-2:] = found.loss, seconds
        numbers = self._processes.told(numbers)
        rows = tuple(tuple(int(count) for count in row) for row in numbers[:-2].reshape(n, n))
        return Validation(loss=float(numbers[-2]), confusion=rows), float(numbers[-1])

    def _keep_best(self, found: Validation, number: int) -> None:
        top = max(self._top_recall, found.balanced_recall)
        is_near_top, was_near_top = (v.balanced_recall >= top - found.one_image for v in (found, self.best))
        self._top_recall = top
        if not is_near_top or (was_near_top and found.loss >= self.best.loss):
            return
        self.best, self.best_epoch = found, number
        self._best_weights = {key: value.clone() for key, value in self.averaged.state_dict().items()}

    def _step(self, joined: nn.Module, batch: Batch, *, steps_done: int) -> float:
        """One step of the optimizer; gives the loss."""
        device = self._processes.device
        logits, maps = joined(batch.inputs.to(device))
        targets = batch.targets.to(device)
        loss = self.loss(logits, targets)
        if maps is not None and batch.masks is not None:
            taught = place_loss(maps, targets, batch.masks.to(device), self.background, self.loss.weights)
            loss = loss + self.config.mask_weight * taught
        value = float(loss.item())
        if not math.isfinite(value):
            raise OptimizeError(
                f"train: the loss became {value} in epoch {len(self.history) + 1}",
                hint=f"use a lower learning rate, for example --lr {self.config.peak_lr / 4:g} --fresh",
            )
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self._optimizer.step()
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
        lr = self._schedule.lr(position)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        return lr


class _Teachable(nn.Module):
    """Logits, and when masks teach places, the map that they come from: from one pass, for the processes' engine."""

    def __init__(self, network: Classifier, *, with_map: bool) -> None:
        super().__init__()
        self.network, self._with_map = network, with_map

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self._with_map:
            return self.network(images), None
        maps = self.network.mapped(self.network.features(images))
        return self.network.pooled(maps), maps + self.network.places()[1][:, None, None]


def _channels_last(network: Classifier) -> Classifier:
    """Keep weights as oneDNN wants them: a quarter faster on a CPU (measured: 25.4 against 20.7 pictures/s)."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network
