"""A detector's training run between two epochs; all that changes is in `state`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.detect.config import DetectConfig
from optimize.detect.losses import DetectionLoss
from optimize.detect.pictures import BoxBatches, BoxPictures
from optimize.detect.result import BoxValidation, DetectProgress, DetectRecord
from optimize.detect.validation import validate
from optimize.networks.detectors.detector import Detector, build_detector
from optimize.pretrained import Pretrained
from optimize.train.learner import Learner
from optimize.train.losses import class_weights
from optimize.train.processes import device_of
from optimize.train.stages import decayed, first_awake, freeze

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
        self._device = device_of(config.device)
        self.network = self._fresh_network(pretrained)
        self._n_frozen = first_awake(self.network, config.freeze_until, config.arch)
        self.learner = Learner(
            self.network, config, torch.optim.AdamW(list(_groups(self.network, config)), lr=config.peak_lr)
        )
        self.counts = _counts(pictures, len(classes))
        weights = torch.from_numpy(class_weights(self.counts, config.class_weights)).to(self._device)
        self._loss = DetectionLoss(self.network, weights)
        self._batches = BoxBatches(config, pictures, self.channels)
        self.cpu_seconds = 0.0
        self.history: list[DetectRecord] = []
        self.best: BoxValidation | None = None

    @property
    def stopped(self) -> str | None:
        """Why the run is over, or None."""
        return self.learner.stopped(len(self.history))

    def epoch(self, progress: Callable[[DetectProgress], None]) -> DetectProgress:
        """Train on every image once, then see how the averaged weights do on `val`.

        Args:
            progress: told after each step.

        Returns:
            What is to be told of the whole epoch, once it is kept.
        """
        begin, cpu_begin, number = time.monotonic(), time.process_time(), len(self.history) + 1
        order = np.random.default_rng([self.config.seed, number]).permutation(len(self.pictures.images))
        # Two pictures at least: a level of one place has no spread for a norm to see in a single one.
        parts = np.array_split(order, max(1, min(round(len(order) / self.config.batch), len(order) // 2)))
        size_px = self.learner.size_px
        freeze(self.network, self._n_frozen)

        def loss_of(part: NDArray[np.int64]) -> torch.Tensor:
            batch = self._batches.make(part, size_px, number)
            return self._loss(batch.inputs.to(self._device), batch.truths)

        passed = self.learner.epoch(
            self.history,
            parts,
            loss_of,
            lambda done, loss: progress(DetectProgress(done=done, epoch=number, loss=loss)),
        )
        found = validate(self.learner.averaged, self.val, self.config.spec, self.classes, channels=self.channels)
        seconds = time.monotonic() - begin
        self.learner.seconds += seconds
        self.cpu_seconds += time.process_time() - cpu_begin
        record = DetectRecord(
            epoch=number,
            position=self.learner.position,
            size_px=size_px,
            lr=passed.lr,
            train_loss=passed.loss,
            map50=found.map50,
            map50_95=found.map50_95,
            seconds=seconds,
        )
        self.history.append(record)
        if self.best is None or found.map50 > self.best.map50:
            self.best = found
            self.learner.keep(number)
        done = self.learner.position / self.config.schedule
        return DetectProgress(done=done, epoch=number, loss=record.train_loss, record=record)

    def state(self) -> dict[str, Any]:
        """All that changes from epoch to epoch, as tensors and plain values."""
        return self.learner.state() | {
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "history": [dataclasses.asdict(record) for record in self.history],
            "cpu_seconds": self.cpu_seconds,
        }

    def restore(self, state: Mapping[str, Any] | None) -> int:
        """Go to where a state was taken; gives the epochs done by then, 0 without a state."""
        if state is not None:
            self.learner.restore(state)
            self.best = None if state["best"] is None else BoxValidation(**state["best"])
            self.history = [DetectRecord(**record) for record in state["history"]]
            self.cpu_seconds = state["cpu_seconds"]
        return len(self.history)

    def _fresh_network(self, pretrained: Pretrained | None) -> Detector:
        config = self.config
        network = build_detector(config.arch, len(self.classes), in_channels=self.channels, finest=config.finest)
        if pretrained is not None:
            self.notices += pretrained.copy_to(network).notice
        return network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _counts(pictures: BoxPictures, n_classes: int) -> NDArray[np.int64]:
    """Boxes of each class that are to be found."""
    every = [truth.classes[~truth.is_ignored] for truth in pictures.truths]
    return np.bincount(np.concatenate(every), minlength=n_classes)


def _groups(network: Detector, config: DetectConfig) -> Iterator[dict[str, Any]]:
    """Backbone and rest, each with and without decay; norms and biases do not decay."""
    parts = ((config.features_lr, [network.features]), (1.0, [network.pyramid, network.head]))
    for factor, modules in parts:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        yield from decayed(parameters, factor, config.weight_decay)
