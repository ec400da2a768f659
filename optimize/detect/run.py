"""A detector's training run between two epochs; all that changes is in `state`."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from optimize.detect.config import DetectConfig
from optimize.detect.losses import DetectionLoss
from optimize.detect.pictures import BoxBatches, BoxPictures
from optimize.detect.result import BoxValidation, DetectProgress, DetectRecord
from optimize.detect.validation import validate
from optimize.errors import OptimizeError
from optimize.networks.detectors.detector import Detector, build_detector
from optimize.pretrained import Pretrained
from optimize.train.losses import class_weights
from optimize.train.schedule import Schedule

__all__ = ["Run"]


class Run:
    """Trains a detector epoch by epoch.

    Args:
        config: the recipe.
        pictures: to train on.
        val: to choose by.
        classes: names, in the order of the scores.
        pretrained: published weights of the backbone; None starts from scratch.

    Raises:
        OptimizeError: the recipe does not fit the network.
    """

    def __init__(
        self,
        config: DetectConfig,
        pictures: BoxPictures,
        val: BoxPictures,
        classes: tuple[str, ...],
        pretrained: Pretrained | None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.pictures, self.val, self.classes = config, pictures, val, classes
        self.notices: tuple[str, ...] = ()
        self.channels = 1 if pictures.is_grey and val.is_grey else 3
        self._device = _device(config)
        self._schedule = Schedule(config)
        self.network = self._fresh_network(pretrained)
        self.averaged = copy.deepcopy(self.network).eval()
        self._n_frozen = _n_frozen(self.network, config)
        self._optimizer = torch.optim.AdamW(list(_groups(self.network, config)), lr=config.peak_lr)
        self.counts = _counts(pictures, len(classes))
        weights = torch.from_numpy(class_weights(self.counts, config.class_weights)).to(self._device)
        self._loss = DetectionLoss(self.network, weights)
        self._batches = BoxBatches(config, pictures, self.channels)
        self.position, self.seconds, self.cpu_seconds = 0.0, 0.0, 0.0
        self.history: list[DetectRecord] = []
        self.best: BoxValidation | None = None
        self.best_epoch = 0
        self._best_weights: dict[str, torch.Tensor] = {}

    @property
    def stopped(self) -> str | None:
        """Why the run is over, or None."""
        if self.position >= self.config.schedule:
            return "minutes" if len(self.history) < self.config.schedule else "finished"
        return "patience" if len(self.history) - self.best_epoch >= self.config.patience else None

    def epoch(self, progress: Callable[[DetectProgress], None]) -> None:
        """Train on every image once, then see how the averaged weights do on `val`."""
        begin, cpu_begin, number = time.monotonic(), time.process_time(), len(self.history) + 1
        order = np.random.default_rng([self.config.seed, number]).permutation(len(self.pictures.images))
        # Two pictures at least: a level of one place has no spread for a norm to see in a single one.
        parts = np.array_split(order, max(1, min(round(len(order) / self.config.batch), len(order) // 2)))
        size_px = self._schedule.size_px(self.position)
        advance = self._schedule.advance(self.position, self.history, self.seconds)
        _teach(self.network, self._n_frozen)
        total, lr = 0.0, 0.0
        for i, part in enumerate(parts):
            lr = self._set_lr(self.position + advance * (i + 1) / len(parts))
            loss = self._step(part, size_px, number, steps_done=(number - 1) * len(parts) + i)
            total += loss
            done = (self.position + advance * (i + 1) / len(parts)) / self.config.schedule
            progress(DetectProgress(done=min(done, 1.0), epoch=number, loss=loss))
        self.position = min(self.position + advance, float(self.config.schedule))
        found = validate(self.averaged, self.val, self.config.spec, self.classes, channels=self.channels)
        seconds = time.monotonic() - begin
        self.seconds += seconds
        self.cpu_seconds += time.process_time() - cpu_begin
        record = DetectRecord(
            epoch=number,
            position=self.position,
            size_px=size_px,
            lr=lr,
            train_loss=total / len(parts),
            map50=found.map50,
            map50_95=found.map50_95,
            seconds=seconds,
        )
        self.history.append(record)
        if self.best is None or found.map50 > self.best.map50:
            self.best, self.best_epoch = found, number
            self._best_weights = {key: value.clone() for key, value in self.averaged.state_dict().items()}
        done = self.position / self.config.schedule
        progress(DetectProgress(done=done, epoch=number, loss=record.train_loss, record=record))

    def best_network(self) -> Detector:
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
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "history": [dataclasses.asdict(record) for record in self.history],
            "position": self.position,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }

    def restore(self, state: Mapping[str, Any] | None) -> int:
        """Go to where a state was taken; gives the epochs done by then, 0 without a state."""
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.averaged.load_state_dict(state["averaged"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._best_weights, self.best_epoch = state["best_weights"], state["best_epoch"]
            self.best = None if state["best"] is None else BoxValidation(**state["best"])
            self.history = [DetectRecord(**record) for record in state["history"]]
            self.position, self.seconds = state["position"], state["seconds"]
            self.cpu_seconds = state["cpu_seconds"]
        return len(self.history)

    def _fresh_network(self, pretrained: Pretrained | None) -> Detector:
        config = self.config
        network = build_detector(config.arch, len(self.classes), in_channels=self.channels, finest=config.finest)
        if pretrained is not None:
            self.notices += pretrained.copy_to(network).notice
        return network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _step(self, images: NDArray[np.int64], size_px: int, number: int, *, steps_done: int) -> float:
        """One step of the optimizer; gives the loss."""
        batch = self._batches.make(images, size_px, number)
        loss = self._loss(batch.inputs.to(self._device), batch.truths)
        value = float(loss.item())
        if not math.isfinite(value):
            raise OptimizeError(
                f"train: the loss became {value} in epoch {number}",
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


def _device(config: DetectConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise OptimizeError("device: got cuda, and torch sees none", hint="add --device cpu")
    is_gpu = config.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if is_gpu else "cpu")


def _counts(pictures: BoxPictures, n_classes: int) -> NDArray[np.int64]:
    """Boxes of each class that are to be found."""
    every = [truth.classes[~truth.is_ignored] for truth in pictures.truths]
    return np.bincount(np.concatenate(every), minlength=n_classes)


def _n_frozen(network: Detector, config: DetectConfig) -> int:
    if config.freeze_until is None:
        return 0
    if config.freeze_until not in network.stages:
        raise OptimizeError(
            f"freeze-until: {config.arch} has no stage {config.freeze_until!r}",
            hint=f"its stages are {', '.join(network.stages)}",
        )
    return network.stages.index(config.freeze_until) + 1


def _teach(network: Detector, n_frozen: int) -> None:
    """Put a network into training, all but its first stages, which keep weights and statistics."""
    network.train()
    for i, stage in enumerate(network.features.children()):
        stage.train(i >= n_frozen)
        for parameter in stage.parameters():
            parameter.requires_grad_(i >= n_frozen)


def _groups(network: Detector, config: DetectConfig) -> Iterator[dict[str, Any]]:
    """Backbone and rest, each with and without decay; norms and biases do not decay."""
    parts = ((config.features_lr, [network.features]), (1.0, [network.pyramid, network.head]))
    for factor, modules in parts:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        weights = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        for members, decay in ((weights, config.weight_decay), (others, 0.0)):
            yield {"params": members, "weight_decay": decay, "factor": factor}
