"""The whole run: a teacher and pictures in, a small network out, and how far both agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agent.bundle import InputSpec
from optimize.dataset import Dataset
from optimize.distill.lesson import TeacherLesson
from optimize.distill.loss import Shares
from optimize.distill.onnx_teacher import FileTeacher, open_teacher
from optimize.errors import DataError
from optimize.export import normalize
from optimize.ledger import Entry, FileUse, training_entry
from optimize.places import refuse_overwriting
from optimize.train import Progress, TrainConfig, TrainResult, train
from optimize.trainset import fitted_pictures
from optimize.validation import Validation

__all__ = ["Comparison", "DistillResult", "Source", "distill", "distill_entry"]

AS_FED_LOSS = 0.01
"""Accuracy that a teacher may lose by the student's resize rule before we say so."""

POOR = 0.6
"""A teacher that is right less often on `val` is named: a student learns its mistakes too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Teacher and student on the pictures that chose the epoch.

    Attributes:
        n: how many pictures.
        same: how many of them both take for the same class, each fed as its own device would feed it.
        teacher: the teacher's figures by the labels; None where there are none.
        as_fed: the same of what the teacher says of pictures as it saw them in training, by the student's resize rule.
    """

    n: int
    same: int
    teacher: Validation | None
    as_fed: Validation | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DistillResult:
    """What came out.

    Attributes:
        student: as of any training. Without labels its figures on `val` are agreement with the teacher.
        teacher: who taught.
        shares: what each part of the loss weighed.
        compared: teacher and student on `val`.
        labelled: pictures that were learned from with their labels.
        unlabelled: pictures that were learned from without.
    """

    student: TrainResult
    teacher: FileTeacher
    shares: Shares
    compared: Comparison
    labelled: int
    unlabelled: int

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know, in sentences."""
        told, compared = self.student.notices, self.compared
        if compared.teacher and compared.teacher.accuracy < POOR:
            text = (
                f"the teacher is right on {compared.teacher.accuracy:.2%} of val only, and its mistakes are taught as "
                "well: train a better one first, or raise --label-weight"
            )
            told = (*told, text)
        if self.student.parameters > self.teacher.parameters:
            text = (
                f"the student has {self.student.parameters:,} weights, more than its teacher's "
                f"{self.teacher.parameters:,}: nothing gets smaller by it"
            )
            told = (*told, text)
        if compared.teacher and compared.as_fed:
            lost = compared.teacher.accuracy - compared.as_fed.accuracy
            if lost > AS_FED_LOSS:
                text = (
                    f"the teacher is {100 * lost:.1f} points worse on the student's pictures "
                    f"({self.student.config.resize}) than on its own: its own resize rule would teach more"
                )
                told = (*told, text)
        return told

    def report(self) -> dict[str, Any]:
        """Plain values, for the card and `--json`."""
        compared, has_labels = self.compared, self.compared.teacher is not None
        return {
            "teacher": {
                "files": [file.name for file in self.teacher.files],
                "sha256": list(self.teacher.sha256),
                "val": _figures(compared.teacher),
                "val_as_fed": _figures(compared.as_fed),
            },
            "agreement": {"n": compared.n, "same": compared.same, "share": compared.same / compared.n},
            "distillation": {
                **dataclasses.asdict(self.shares),
                "labelled": self.labelled,
                "unlabelled": self.unlabelled,
                "chosen_by": "labels" if has_labels else "agreement with the teacher",
            },
            "notices": list(self.notices),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a student learns from.

    Attributes:
        labelled: a labelled set; its own `train` and `val` are taken. None learns from the others alone, and chooses
            the epoch by agreement with the teacher.
        unlabelled: more pictures; their labels, if any, count for nothing.
    """

    labelled: Dataset | None = None
    unlabelled: Dataset | None = None

    def __post_init__(self) -> None:
        if not self.labelled and not self.unlabelled:
            raise DataError("distill: got no images", hint="--data DIR with labels, --unlabelled DIR, or both")


def distill(
    config: TrainConfig,
    teacher: FileTeacher,
    shares: Shares,
    source: Source,
    out: Path,
    progress: Callable[[Progress], None] | None = None,
    *,
    workdir: Path | None = None,
    is_fresh: bool = False,
) -> DistillResult:
    """Train a student as `optimize.train.train` does, but to say what its teacher says.

    Args:
        config: the student's recipe.
        teacher: who teaches; its classes may stand in any order.
        shares: what labels, logits and features weigh.
        source: what to learn from.
        out: the ONNX file to write.
        progress: called after each step.
        workdir: where the checkpoint is; `OUT.train` beside the file by default.
        is_fresh: forget a checkpoint that is there.

    Returns:
        What came out; the file is written. The same arguments give the same bytes, interrupted or not.

    Raises:
        DataError: images, labels or splits that can't be learned from.
        ModelError: the teacher knows other classes, or gives no features where some are wanted.
        OptimizeError: the loss is no number any more, the checkpoint belongs to another run, or `out` is a teacher.
    """
    refuse_overwriting(out, teacher.files, "teacher")
    is_labelled = source.labelled is not None
    whole = source.labelled or source.unlabelled
    assert whole is not None
    if not is_labelled:
        whole = dataclasses.replace(whole, classes=teacher.classes)
    teacher = teacher.for_classes(whole.classes)
    lesson = TeacherLesson(teacher, shares, source.unlabelled, is_labelled_too=is_labelled)
    result = train(config, whole, out, progress, workdir=workdir, is_fresh=is_fresh, lesson=lesson)
    assert lesson.val is not None
    labelled = sum(result.counts)
    return DistillResult(
        student=result,
        teacher=teacher,
        shares=shares,
        compared=_compared(result, teacher, lesson.val, has_labels=is_labelled),
        labelled=labelled,
        unlabelled=len(result.files["train"]) - labelled,
    )


def _compared(result: TrainResult, teacher: FileTeacher, val: Dataset, *, has_labels: bool) -> Comparison:
    said = teacher.judge(val.samples)
    student = open_teacher([result.onnx]).for_classes(teacher.classes).judge(val.samples)
    same = int((said.argmax(1) == student.argmax(1)).sum())
    if not has_labels:
        return Comparison(n=len(val), same=same, teacher=None, as_fed=None)
    fitted = fitted_pictures(val, _shown_to(teacher, result.config))
    fed = [teacher(normalize(image[None])).logits.softmax(-1) for image in fitted.images]
    return Comparison(
        n=len(val),
        same=same,
        teacher=_validation(said, fitted.targets),
        as_fed=_validation(torch.cat(fed).numpy().astype(np.float64), fitted.targets),
    )


def _shown_to(teacher: FileTeacher, config: TrainConfig) -> InputSpec:
    """How the teacher saw pictures in training: at its own size where that is larger, by the student's resize rule."""
    side_px = max(teacher.size_px, config.size)
    return dataclasses.replace(config.spec, width_px=side_px, height_px=side_px)


def _validation(shares: NDArray[np.float64], targets: NDArray[np.int64]) -> Validation:
    n = shares.shape[1]
    confusion = np.zeros((n, n), dtype=np.int64)
    np.add.at(confusion, (targets, shares.argmax(1)), 1)
    loss = -np.log(np.maximum(shares[np.arange(len(targets)), targets], 1e-12)).mean()
    return Validation(loss=float(loss), confusion=tuple(tuple(int(count) for count in row) for row in confusion))


def _figures(found: Validation | None) -> Mapping[str, float] | None:
    if found is None:
        return None
    return {"accuracy": found.accuracy, "balanced_recall": found.balanced_recall, "loss": found.loss}


def distill_entry(result: DistillResult, data: Path | None, unlabelled: Path | None) -> Entry:
    """The ledger's line of `defect-opt distill`.

    Args:
        result: what came out.
        data: the labelled folder, as it was given.
        unlabelled: the other one.
    """
    entry = training_entry(result.student, data or unlabelled or Path())
    teachers = zip(result.teacher.files, result.teacher.sha256, strict=True)
    used = tuple(FileUse(path=str(path), sha256=sha256) for path, sha256 in teachers)
    figures = {**entry.figures, "agreement": result.compared.same / result.compared.n}
    return dataclasses.replace(entry, command="distill", inputs=entry.inputs + used, figures=figures)
