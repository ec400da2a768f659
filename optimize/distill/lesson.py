"""What a training run is given when a teacher teaches: its objective, and the pictures that nobody labelled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.dataset import Dataset, Sample, assign_splits, read_dataset
from optimize.distill.loss import FeatureMatch, Shares, distillation_loss
from optimize.distill.onnx_teacher import FileTeacher
from optimize.distill.teacher import Teacher, said
from optimize.errors import DataError, ModelError
from optimize.fingerprints import fingerprint
from optimize.networks.classifier import Classifier
from optimize.train.batches import Batch
from optimize.train.objective import LabelObjective, Objective
from optimize.trainset import VAL_SHARE, train_and_val

__all__ = ["DistillObjective", "TeacherLesson", "read_unlabelled"]

LEARNABLE = ("calib", "train")
"""Splits of a folder of unlabelled pictures that may be learned from; the others are to judge by."""

FEWEST = 8
"""Unlabelled pictures, where there is nothing else: some of them choose the epoch."""

SHOWN = 5


class DistillObjective:
    """A teacher's logits and features, and the labels where somebody gave them.

    Args:
        teacher: of the same classes in the same order.
        shares: what each part of the loss weighs.
        network: the student, on the device that it learns on.
        labels: what labels teach; None where there are none.

    Raises:
        ModelError: features are to be imitated, and the teacher gives none.
    """

    def __init__(self, teacher: Teacher, shares: Shares, network: Classifier, labels: LabelObjective | None) -> None:
        self._teacher, self._shares, self._labels = teacher, shares, labels
        self._match: FeatureMatch | None = None
        if shares.feature_weight:
            first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
            probe = torch.zeros(2, first.in_channels, 32, 32, device=first.weight.device)
            features = teacher(probe).features
            if features is None:
                raise ModelError(
                    "feature-weight: the teacher gives no features", hint="leave --feature-weight out, or train it anew"
                )
            self._match = FeatureMatch(network.head.in_features, features.shape[1]).to(first.weight.device)

    @property
    def beside(self) -> nn.Module | None:
        """See `optimize.train.objective.Objective`."""
        return self._match

    def teachable(self, network: Classifier) -> nn.Module:
        """See `optimize.train.objective.Objective`."""
        return _Said(network)

    def __call__(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """See `optimize.train.objective.Objective`."""
        (logits, features), taught = outputs, self._teacher(batch.inputs if batch.views is None else batch.views)
        distance = None
        if self._match is not None:
            assert taught.features is not None
            distance = self._match(features, taught.features)
        labels = None if self._labels is None else self._labels((logits, None), batch)
        return distillation_loss(logits, taught.logits, self._shares, labels=labels, features=distance)


class _Said(nn.Module):
    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return said(self.network, images)


class TeacherLesson:
    """A teacher, and what is learned from it beside the labelled images.

    Args:
        teacher: with its classes in the student's order.
        shares: what each part of the loss weighs.
        unlabelled: pictures whose labels, if any, count for nothing; None for none.
        is_labelled_too: whether there is a labelled set as well. Else the epoch is chosen by agreement with the
            teacher, on a part of the unlabelled pictures.

    Attributes:
        val: the pictures that choose the epoch, once `parts` was asked.
    """

    def __init__(
        self, teacher: FileTeacher, shares: Shares, unlabelled: Dataset | None, *, is_labelled_too: bool
    ) -> None:
        self._teacher, self._shares = teacher, shares
        self._unlabelled, self._is_labelled_too = unlabelled, is_labelled_too
        self._strange: frozenset[Path] = frozenset()
        self.val: Dataset | None = None

    @property
    def run_of(self) -> Mapping[str, str]:
        """See `optimize.train.objective.Lesson`."""
        shares = {key: str(value) for key, value in dataclasses.asdict(self._shares).items()}
        return {"teacher": self._teacher.digest[:16]} | shares

    def view_px(self, size_px: int) -> int | None:
        """See `optimize.train.objective.Lesson`: a teacher's own size, where it is larger than the student's."""
        return self._teacher.size_px if self._teacher.size_px > size_px else None

    def parts(self, dataset: Dataset, seed: int) -> tuple[Mapping[str, Dataset], tuple[str, ...]]:
        """See `optimize.train.objective.Lesson`."""
        if self._is_labelled_too:
            parts, notices = train_and_val(dataset, seed)
        else:
            parts, notices = _held_out(self._judged(dataset), seed)
        self.val = parts["val"]
        if not self._is_labelled_too or self._unlabelled is None:
            return parts, notices
        known = [sample for part in parts.values() for sample in part]
        tested = [sample for sample in dataset if sample.split == "test"]
        others, told = without_known(self._unlabelled, known, tested)
        self._strange = frozenset(sample.path for sample in others)
        train = dataclasses.replace(
            parts["train"], samples=parts["train"].samples + self._judged(others, dataset.classes).samples
        )
        return {**parts, "train": train}, notices + told

    def is_labelled(self, part: Dataset) -> NDArray[np.bool_]:
        """See `optimize.train.objective.Lesson`."""
        return np.array([self._is_labelled_too and sample.path not in self._strange for sample in part], dtype=np.bool_)

    def objective(self, network: Classifier, labels: LabelObjective) -> Objective:
        """See `optimize.train.objective.Lesson`."""
        is_heard = self._is_labelled_too and self._shares.label_weight > 0
        return DistillObjective(self._teacher, self._shares, network, labels if is_heard else None)

    def _judged(self, dataset: Dataset, classes: Sequence[str] | None = None) -> Dataset:
        """The pictures with the class that the teacher takes each for, to be dealt out and counted by."""
        names = tuple(classes or self._teacher.classes)
        if not len(dataset):
            return dataclasses.replace(dataset, classes=names)
        found = self._teacher.judge(dataset.samples).argmax(1)
        samples = tuple(
            dataclasses.replace(sample, label=self._teacher.classes[i], split="train")
            for sample, i in zip(dataset.samples, found.tolist(), strict=True)
        )
        return dataclasses.replace(dataset, samples=samples, classes=names)


def read_unlabelled(root: Path) -> Dataset:
    """Find pictures to learn from without their labels; opens none.

    Args:
        root: a folder as `optimize.dataset.read_dataset` reads it. Of one with splits, `train` and `calib` are taken.

    Raises:
        DataError: there are none.
    """
    dataset = read_dataset(root)
    if not dataset.splits:
        return dataset
    chosen = tuple(sample for sample in dataset if sample.split in LEARNABLE)
    if not chosen:
        found = ", ".join(f"{name} {count}" for name, count in dataset.splits.items())
        raise DataError(
            f"{root}: no image is in a split to learn from ({' or '.join(LEARNABLE)}; there are: {found})",
            hint="give a folder of fresh pictures from the line; val and test are to judge by",
        )
    return dataclasses.replace(dataset, samples=chosen)


def without_known(
    pictures: Dataset, known: Sequence[Sample], tested: Sequence[Sample]
) -> tuple[Dataset, tuple[str, ...]]:
    """Unlabelled pictures that are none of the labelled ones, by file, bytes or pixels (`optimize.fingerprints`).

    Args:
        pictures: to be learned from.
        known: labelled images that train or choose; they are left out here.
        tested: images of the test split; there must be none of them.

    Raises:
        DataError: images of the test split are among them, also where they were saved in another file format.
    """
    prints = [(sample, _prints(sample)) for sample in pictures]
    held, judged = ({each for sample in samples for each in _prints(sample)} for samples in (known, tested))
    found = [sample.file for sample, own in prints if own & judged]
    if found:
        raise DataError(
            f"{pictures.root}: {len(found)} of {len(pictures)} unlabelled images are in the test split: "
            f"{', '.join(found[:SHOWN])}{', ...' * (len(found) > SHOWN)}",
            hint="take them out of one of the two: taught on test pictures, test numbers are worth nothing",
        )
    kept = tuple(sample for sample, own in prints if not own & held)
    left_out = len(pictures) - len(kept)
    told = f"{left_out} of {len(pictures)} unlabelled images are labelled ones of train or val, and were left out"
    return dataclasses.replace(pictures, samples=kept), (told,) if left_out else ()


def _prints(sample: Sample) -> frozenset[str]:
    """None of a file that is no picture: whoever learns from it says so."""
    found = fingerprint(sample)
    return frozenset() if isinstance(found, str) else frozenset(found)


def _held_out(pictures: Dataset, seed: int) -> tuple[Mapping[str, Dataset], tuple[str, ...]]:
    """A part of unlabelled pictures chooses the epoch, by class and group as far as the teacher knows."""
    if len(pictures) < FEWEST:
        raise DataError(
            f"{pictures.root}: got {len(pictures)} unlabelled images, expected at least {FEWEST}",
            hint="give pictures from the line's own camera, good and bad ones; some of them choose the best epoch",
        )
    dealt = assign_splits(pictures, seed=seed, fractions={"train": 1 - VAL_SHARE, "val": VAL_SHARE})
    if set(dealt.splits) != {"train", "val"}:
        raise DataError(f"{pictures.root}: {len(pictures)} images in too few groups to keep some to choose by")
    told = f"{dealt.splits['val']} of {len(pictures)} images choose the epoch, by agreement with the teacher"
    return {name: dealt.take(name) for name in ("train", "val")}, (told,)
