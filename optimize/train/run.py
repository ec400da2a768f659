"""A training run between two epochs; all that changes is in `state`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.errors import DataError
from optimize.inputs import severity_by_name
from optimize.networks import build_network, resolve_width
from optimize.networks.classifier import Classifier
from optimize.pretrained import Pretrained
from optimize.train.batches import Batches
from optimize.train.learner import Learner
from optimize.train.objective import LabelObjective, Lesson, Objective
from optimize.train.processes import Processes
from optimize.train.result import EpochRecord, Progress
from optimize.train.sampling import draw_epoch
from optimize.train.stages import StagePlan, decayed, freeze, optimizer_of
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
        lesson: what teaches beside the labels; None for nothing.

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
        lesson: Lesson | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.pictures, self.val, self.classes = config, pictures, val, classes
        self._processes = processes
        self.channels = 1 if pictures.is_grey and val.is_grey else 3
        self.background = next((i for i, name in enumerate(classes) if severity_by_name(name) == "ok"), None)
        self.notices: tuple[str, ...] = ()
        self.network = self._fresh_network(pretrained)
        self._plan = StagePlan(self.network, config)
        self.counts = self._counted(np.arange(len(pictures.targets)))
        # By what an epoch shows, not by what there is: the balanced sampler has evened the classes out already. Where
        # nothing is labelled there are no counts, and nothing reads the weights.
        shown = self._counted(draw_epoch(pictures.targets, config.sampler, np.random.default_rng(0)))
        labels = LabelObjective(config, np.maximum(shown, 1), self.background, processes.device)
        self.loss = labels.by_class
        self._objective: Objective = labels if lesson is None else lesson.objective(self.network, labels)
        self.learner = Learner(self.network, config, self._optimizer())
        self._batches = Batches(
            config,
            pictures,
            n_classes=len(classes),
            channels=self.channels,
            background=self.background,
            view_px=None if lesson is None else lesson.view_px(config.size),
        )
        self.history: list[EpochRecord] = []
        self.best = Validation(loss=math.inf, confusion=())
        self.last, self._top_recall = self.best, 0.0
        if len(pictures.targets) < 2 * processes.count:
            raise DataError(
                f"train: {len(pictures.targets)} images are too few for {processes.count} processes",
                hint="start fewer; each needs two images per step",
            )

    def _counted(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """(C,) how often these positions show each class, as far as somebody labelled them."""
        if self.pictures.is_labelled is not None:
            images = images[self.pictures.is_labelled[images]]
        return np.bincount(self.pictures.targets[images], minlength=len(self.classes))

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer, beside = optimizer_of(self.network, self.config), self._objective.beside
        for group in decayed(list(beside.parameters()) if beside else (), 1.0, self.config.weight_decay):
            optimizer.add_param_group(group)
        return optimizer

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
        return self.learner.stopped(len(self.history))

    def epoch(self, progress: Callable[[Progress], None]) -> Progress:
        """Train on every image once, then see how the averaged weights do on `val`.

        Args:
            progress: told after each step.

        Returns:
            What is to be told of the whole epoch, once it is kept.
        """
        begin, number = time.monotonic(), len(self.history) + 1
        random = np.random.default_rng([self.config.seed, number])
        order = draw_epoch(self.pictures.targets, self.config.sampler, random)
        steps = min(round(len(order) / self.config.batch), len(order) // (2 * self._processes.count))
        parts = np.array_split(order, max(1, steps))
        size_px = self.config.window_px or self.learner.size_px
        freeze(self.network, self._plan.frozen(number), with_norms=self.config.freeze_norms)
        joined = self._processes.joined(self._objective.teachable(self.network))

        def loss_of(part: NDArray[np.int64]) -> torch.Tensor:
            batch = self._batches.make(self._processes.share(part), size_px, number, random)
            batch = batch.on(self._processes.device)
            return self._objective(joined(batch.inputs), batch)

        passed = self.learner.epoch(
            self.history, parts, loss_of, lambda done, loss: progress(Progress(done=done, epoch=number, loss=loss))
        )
        found, seconds = self._validated(time.monotonic() - begin)
        self.learner.seconds += seconds
        record = EpochRecord(
            epoch=number,
            position=self.learner.position,
            size_px=size_px,
            lr=passed.lr,
            train_loss=passed.loss,
            val_loss=found.loss,
            val_accuracy=found.accuracy,
            val_balanced_recall=found.balanced_recall,
            seconds=seconds,
        )
        self.history.append(record)
        self.last = found
        self._keep_best(found, number)
        done = self.learner.position / self.config.schedule
        return Progress(done=done, epoch=number, loss=record.train_loss, record=record)

    def state(self) -> dict[str, Any]:
        """All that changes from epoch to epoch, as tensors and plain values."""
        beside = self._objective.beside
        return self.learner.state() | {
            **({} if beside is None else {"beside": beside.state_dict()}),
            "top_recall": self._top_recall,
            "best": dataclasses.asdict(self.best),
            "history": [dataclasses.asdict(record) for record in self.history],
        }

    def restore(self, state: Mapping[str, Any] | None) -> int:
        """Go to where a state was taken; gives the epochs done by then, 0 without a state."""
        if state is not None:
            self.learner.restore(state)
            if self._objective.beside is not None:
                self._objective.beside.load_state_dict(state["beside"])
            self.best, self._top_recall = Validation(**state["best"]), state["top_recall"]
            self.history = [EpochRecord(**record) for record in state["history"]]
        return len(self.history)

    def _validated(self, seconds: float) -> tuple[Validation, float]:
        """How the first process's average does on `val`, and the epoch's seconds; the same in every process."""
        n = len(self.classes)
        numbers = np.zeros(n * n + 2)
        if self._processes.is_first:
            found = validate(self.learner.averaged, self.val, channels=self.channels, n_classes=n)
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
        self.best = found
        self.learner.keep(number)


def _channels_last(network: Classifier) -> Classifier:
    """Keep weights as oneDNN wants them; `Module.to` lays 1x1 convolutions out otherwise, which changes last bits."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network
