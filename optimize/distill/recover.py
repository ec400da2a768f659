"""Bring a damaged network back to what its teacher says, on pictures that nobody labelled.

```text
pictures ─┬ held out ─ fitted, not augmented ─────────── agreement of student and teacher ─ best epoch kept
          └ the rest ─ augment ─┬ network ─ logits, features ┐
                                └ teacher ─ logits, features ┴ divergence ─ step, running average of the weights
```

What a network was before it is damaged (pruned, quantized) is its best teacher: it says for each picture what the
labels can't, how sure it was and what it would have taken it for instead. The start counts as an epoch: what comes
back never agrees less with the teacher than what was given.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agent.bundle import fit
from optimize.augment import augment
from optimize.distill.loss import FeatureMatch, Shares, box_divergence, confidence, distillation_loss, divergence
from optimize.distill.recover_config import RecoverConfig
from optimize.distill.teacher import Taught, Teacher, said
from optimize.errors import DataError, ModelError
from optimize.export import normalize
from optimize.networks.classifier import Classifier
from optimize.networks.detectors.detector import Detector
from optimize.progress import Progress
from optimize.train.learner import Learner, StepProgress
from optimize.train.stages import decayed

__all__ = ["Agreement", "RecoverProgress", "RecoverRecord", "Recovered", "agreement", "recover", "tell_epochs"]

N = TypeVar("N", Classifier, Detector)

FEWEST = 8
"""Pictures below which nothing can be held out and still be learned from."""

BATCH = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a network says what its teacher says.

    Attributes:
        n: pictures.
        same: how many of them both take for the same class; of a detector the share of its priors, weighed by how sure
            the teacher is of them, summed over the pictures.
        divergence: KL(teacher || student) at temperature 1, in nats per picture; of a detector `box_divergence`.
    """

    n: int
    same: float
    divergence: float

    @property
    def share(self) -> float:
        """Of the pictures, 0 to 1."""
        return self.same / self.n

    def is_better_than(self, other: Agreement) -> bool:
        """More pictures decided alike; where that differs by one at most, which is chance, the closer one."""
        if abs(self.same - other.same) > 1:
            return self.same > other.same
        return self.divergence < other.divergence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoverRecord:
    """One pass over the pictures.

    Attributes:
        epoch: from 1.
        size_px: width and height of the pictures.
        lr: learning rate at its end.
        loss: mean over the steps, on augmented pictures.
        found: agreement of the averaged weights on the pictures held out.
        seconds: wall time.
    """

    epoch: int
    size_px: int
    lr: float
    loss: float
    found: Agreement
    seconds: float


RecoverProgress: TypeAlias = StepProgress[RecoverRecord]
"""Where a recovery is; given to the caller after each step."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recovered(Generic[N]):
    """What came back.

    Attributes:
        network: of the best epoch, in evaluation mode, on the CPU; the one that was given is as far as the last step.
        before: agreement with the teacher as it was given, on the pictures held out.
        after: the same of what came back; never worse.
        best_epoch: from 1; 0 where no epoch was better than the start.
        history: one record per epoch.
        n_train: pictures that were learned from.
        n_held_out: pictures that the epoch was chosen by.
        stopped: `finished`, `patience` or `minutes`.
        seconds: wall time of all epochs.
    """

    network: N
    before: Agreement
    after: Agreement
    best_epoch: int
    history: tuple[RecoverRecord, ...]
    n_train: int
    n_held_out: int
    stopped: str
    seconds: float


def recover(
    network: N,
    teacher: Teacher,
    images: Sequence[NDArray[np.uint8]],
    config: RecoverConfig,
    progress: Callable[[RecoverProgress], None] | None = None,
    *,
    labels: NDArray[np.int64] | None = None,
) -> Recovered[N]:
    """Fine-tune a network until it agrees with its teacher as well as it can.

    Args:
        network: a classifier or a detector, on the device to train on; it is trained in place.
        teacher: what it should agree with.
        images: each (H, W, 3) uint8 RGB, any size; at least `FEWEST`. No picture of a test split may be among them.
        config: the recipe.
        progress: called after each step.
        labels: (len(images),) class numbers of a classifier, -1 where nobody knows; None uses none.

    Returns:
        The network of the epoch that agreed best on pictures held out. The same arguments on the same machine give the
        same weights.

    Raises:
        DataError: too few pictures, or labels that do not go with them.
        ModelError: the teacher does not speak of the same classes or priors, or has no features where some are wanted.
        OptimizeError: the loss is no number any more.
    """
    if len(images) < FEWEST:
        raise DataError(
            f"recover: got {len(images)} picture{'s' * (len(images) != 1)}, expected at least {FEWEST}",
            hint="give pictures from the line's own camera, good and bad ones; labels are not needed",
        )
    if labels is not None and (labels.shape != (len(images),) or isinstance(network, Detector)):
        raise DataError(f"recover: labels: got shape {labels.shape}, expected one class for each of {len(images)}")
    torch.manual_seed(config.seed)
    return _Recovery(network, teacher, images, config, labels).run(progress or (lambda _: None))


def tell_epochs(progress: Progress, epochs: int) -> Callable[[RecoverProgress], None]:
    """Say after each epoch how far the network agrees with its teacher.

    Args:
        progress: hears it.
        epochs: how many there are at most.
    """

    def tell(told: RecoverProgress) -> None:
        if told.record is not None:
            found = told.record.found
            progress.step(
                f"epoch {told.epoch:>3}/{epochs}  loss {told.loss:.4f}  agrees on {found.share:.2%} of "
                f"{found.n} pictures held out, divergence {found.divergence:.4f}"
            )

    return tell


def agreement(network: Classifier | Detector, teacher: Teacher, pictures: NDArray[np.uint8]) -> Agreement:
    """How far a network says what its teacher says.

    Args:
        network: in evaluation mode.
        teacher: what it should agree with.
        pictures: (n, S, S, C) uint8 at the network's size, with as many channels as it takes.

    Raises:
        ModelError: they do not speak of the same classes or priors.
    """
    device, same, apart = next(network.parameters()).device, 0.0, 0.0
    for start in range(0, len(pictures), BATCH):
        inputs = normalize(pictures[start : start + BATCH]).to(device)
        with torch.no_grad():
            taught, found = teacher(inputs), network(inputs)
            scores = found[1] if isinstance(network, Detector) else found
            _check_shape(scores, taught)
            alike = (scores.argmax(-1) == taught.logits.argmax(-1)).float()
            if isinstance(network, Detector):
                sure = confidence(taught.logits, has_background=network.family == "ssd")
                alike = (sure * alike).sum(1) / sure.sum(1).clamp_min(1e-6)
            same += float(alike.sum())
            apart += float(_distance(network, found, taught, temperature=1.0)) * len(inputs)
    return Agreement(n=len(pictures), same=same, divergence=apart / len(pictures))


class _Recovery(Generic[N]):
    def __init__(
        self,
        network: N,
        teacher: Teacher,
        images: Sequence[NDArray[np.uint8]],
        config: RecoverConfig,
        labels: NDArray[np.int64] | None,
    ) -> None:
        self._config, self._teacher, self._images, self._labels = config, teacher, images, labels
        self._device = next(network.parameters()).device
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        self._channels = first.in_channels
        order = np.random.default_rng(config.seed).permutation(len(images))
        n_held_out = max(2, round(config.held_out * len(images)))
        self._train, held_out = np.sort(order[n_held_out:]), np.sort(order[:n_held_out])
        self._held_out = np.stack([self._fitted(images[i]) for i in held_out.tolist()])
        network.to(memory_format=torch.channels_last).eval()
        self._before = agreement(network, teacher, self._held_out)
        self._match = self._feature_match(network)
        self._network: N = network
        parameters = [*network.parameters(), *(self._match.parameters() if self._match else ())]
        groups = list(decayed(parameters, 1.0, config.weight_decay))
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=config.peak_lr)
        else:
            optimizer = torch.optim.SGD(groups, lr=config.peak_lr, momentum=0.9, nesterov=True)
        self._learner: Learner[N] = Learner(network, config, optimizer, word="recover")

    def run(self, progress: Callable[[RecoverProgress], None]) -> Recovered[N]:
        history: list[RecoverRecord] = []
        after, stopped = self._before, None
        self._learner.keep(0)
        while stopped is None:
            history.append(self._epoch(history, progress))
            if history[-1].found.is_better_than(after):
                after = history[-1].found
                self._learner.keep(len(history))
            stopped = self._learner.stopped(len(history))
        return Recovered(
            network=self._learner.best(),
            before=self._before,
            after=after,
            best_epoch=self._learner.best_epoch,
            history=tuple(history),
            n_train=len(self._train),
            n_held_out=len(self._held_out),
            stopped=stopped,
            seconds=self._learner.seconds,
        )

    def _epoch(self, history: Sequence[RecoverRecord], progress: Callable[[RecoverProgress], None]) -> RecoverRecord:
        begin, number, config = time.monotonic(), len(history) + 1, self._config
        order = np.random.default_rng([config.seed, number]).permutation(self._train)
        parts = np.array_split(order, max(1, min(round(len(order) / config.batch), len(order) // 2)))
        self._network.train()
        passed = self._learner.epoch(
            history,
            parts,
            lambda part: self._loss(part, number),
            lambda done, loss: progress(StepProgress(done=done, epoch=number, loss=loss)),
        )
        found = agreement(self._learner.averaged, self._teacher, self._held_out)
        seconds = time.monotonic() - begin
        self._learner.seconds += seconds
        record = RecoverRecord(
            epoch=number, size_px=config.size, lr=passed.lr, loss=passed.loss, found=found, seconds=seconds
        )
        done = self._learner.position / config.schedule
        progress(StepProgress(done=done, epoch=number, loss=passed.loss, record=record))
        return record

    def _loss(self, part: NDArray[np.int64], number: int) -> Tensor:
        pictures = np.stack([self._augmented(i, number) for i in part.tolist()])
        inputs = normalize(pictures).to(self._device)
        taught, config = self._teacher(inputs), self._config
        if isinstance(self._network, Detector):
            return _distance(self._network, self._network(inputs), taught, temperature=config.temperature)
        logits, pooled = said(self._network, inputs)
        distance = None
        if self._match is not None:
            assert taught.features is not None
            distance = self._match(pooled, taught.features)
        shares = Shares(
            temperature=config.temperature, label_weight=config.label_weight, feature_weight=config.feature_weight
        )
        return distillation_loss(
            logits, taught.logits, shares, labels=self._label_loss(logits, part), features=distance
        )

    def _label_loss(self, logits: Tensor, part: NDArray[np.int64]) -> Tensor | None:
        if self._labels is None:
            return None
        targets = torch.from_numpy(self._labels[part]).to(self._device)
        each = nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-1)
        return each / len(part)

    def _feature_match(self, network: N) -> FeatureMatch | None:
        if not self._config.feature_weight:
            return None
        if isinstance(network, Detector):
            raise ModelError("recover: feature-weight: a detector's features are not compared", hint="leave it at 0")
        taught = self._teacher(normalize(self._held_out[:2]).to(self._device))
        if taught.features is None:
            raise ModelError(
                "recover: feature-weight: the teacher gives no features", hint="set it to 0, or take another teacher"
            )
        return FeatureMatch(network.head.in_features, taught.features.shape[1]).to(self._device)

    def _augmented(self, image: int, number: int) -> NDArray[np.uint8]:
        """One picture at the network's size; what it became depends on seed, epoch and picture only."""
        picture, _ = augment(
            self._images[image][:, :, : self._channels],
            self._config.size,
            self._config.augmentation,
            np.random.default_rng([self._config.seed, number, image]),
            is_letterbox=self._config.spec.resize == "letterbox",
        )
        return picture

    def _fitted(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """As the device sees it, in the network's channels."""
        return fit(np.ascontiguousarray(image[:, :, ::-1]), self._config.spec)[:, :, : self._channels]


def _check_shape(scores: Tensor, taught: Taught) -> None:
    if scores.shape != taught.logits.shape:
        raise ModelError(
            f"recover: the teacher gives {tuple(taught.logits.shape)} logits, the network {tuple(scores.shape)}",
            hint="recover with a teacher of the same classes, in the same order, and for a detector of the same priors",
        )


def _distance(
    network: Classifier | Detector, found: Tensor | tuple[Tensor, Tensor], taught: Taught, *, temperature: float
) -> Tensor:
    """Logits against logits, or boxes and scores against boxes and scores."""
    if isinstance(found, Tensor):
        return divergence(found, taught.logits, temperature)
    assert isinstance(network, Detector)
    if taught.boxes is None:
        raise ModelError("recover: the teacher gives no boxes", hint="a detector is recovered by a detector")
    wanted = (taught.boxes, taught.logits)
    return box_divergence(found, wanted, temperature=temperature, has_background=network.family == "ssd")
