"""What a cross-validation found: figures with spread and interval, one confusion over all folds, calibration, labels.

Two kinds of uncertainty stand side by side. The *spread* is the standard deviation over folds: what another division,
another seed would have given. The *interval* is by group, over all judged images: what other parts would have given.

Escapes and overkill are judged as a bundle's policy would with its default limits: passed is what has a defect score
under `review_above`, rejected what reaches `defect_above`, at the one temperature.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle.manifest import PolicySpec
from optimize.crossval import CrossValidation
from optimize.folds import group_of
from optimize.inputs import severity_by_name
from optimize.intervals import Interval, Statistic, group_interval, mean_recall, mean_recall_reach, ratio, recall_counts
from optimize.label_faults import MANY, LabelFault, find_label_faults
from optimize.temperature import (
    HIGHEST,
    LOWEST,
    calibration_bins,
    calibration_error,
    expected_calibration_error,
    fit_temperature,
    probabilities,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Calibration", "ClassFigure", "CrossReport", "Figure", "FoldFigure", "predictions_csv", "report_of"]

FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure over all folds.

    Attributes:
        mean: over the folds that have it.
        spread: standard deviation over those folds (n - 1); None with one.
        overall: over all judged images at once.
        interval: of `overall`, by group; None where nothing can be said.
    """

    mean: float
    spread: float | None
    overall: float
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "mean": self.mean,
            "spread": self.spread,
            "overall": self.overall,
            "interval_95": None if self.interval is None else self.interval.to_json(),
            "groups": None if self.interval is None else self.interval.groups,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigure:
    """One class over all folds.

    Attributes:
        name: of the class.
        is_ok: whether it is a good part.
        recall: share of its images that were found; None when none was judged.
        precision: share of the images called so that are; None when none was called so.
        images: judged.
        groups: that they are of.
        interval: of the recall, by group.
    """

    name: str
    is_ok: bool
    recall: float | None
    precision: float | None
    images: int
    groups: int
    interval: Interval | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoldFigure:
    """One fold.

    Attributes:
        fold: from 1.
        n: images judged.
        accuracy: share right.
        balanced_recall: mean recall of the classes that it has.
        escape_rate: share of defective parts passed; None without defects, or without an ok class.
        overkill_rate: share of good parts rejected; None without good parts.
        temperature: fitted on its own images.
        epochs: trained.
        best_epoch: kept.
        stopped: `finished`, `patience` or `minutes`.
        train_images: trained on.
        val_images: that stopped it.
        seconds: of its training.
        onnx: its network.
        sha256: of that file.
    """

    fold: int
    n: int
    accuracy: float
    balanced_recall: float
    escape_rate: float | None
    overkill_rate: float | None
    temperature: float
    epochs: int
    best_epoch: int
    stopped: str
    train_images: int
    val_images: int
    seconds: float
    onnx: str
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How sure the folds are, and how right.

    Attributes:
        temperature: the one that fits all out-of-fold logits best.
        before: expected calibration error of the raw probabilities.
        after: at the temperature, on the images that it was fitted on.
        after_unseen: each fold at a temperature fitted on the other folds.
        interval: of `after`, by group.
        bins: how often, how sure and how right, for each bin: (3, BINS), at the temperature.
        bins_before: the same for the raw probabilities.
    """

    temperature: float
    before: float
    after: float
    after_unseen: float
    interval: Interval | None
    bins: NDArray[np.float64]
    bins_before: NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossReport:
    """All that a cross-validation found.

    Attributes:
        found: the folds and their logits.
        figures: `accuracy`, `balanced_recall`, and, where a class is ok, `escape_rate` and `overkill_rate`.
        folds: by fold.
        classes: the rarest first, by groups, then images.
        confusion: counts over all folds; one row per true class, one column per predicted class, in class order.
        calibration: sure against right.
        probabilities: (N, C) at the one temperature.
        label_faults: labels that the folds disagree with.
    """

    found: CrossValidation
    figures: Mapping[str, Figure]
    folds: tuple[FoldFigure, ...]
    classes: tuple[ClassFigure, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: Calibration
    probabilities: NDArray[np.float64]
    label_faults: tuple[LabelFault, ...]

    @property
    def groups(self) -> int:
        """Of the judged images."""
        return len({group_of(sample) for sample, _ in self.found.judged})

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know, in sentences."""
        n, disagreed = len(self.found.logits), len(self.label_faults)
        if disagreed <= MANY * n:
            return (*self.found.notices, *self._doubtful_temperatures())
        many = (
            f"the folds disagree with {disagreed} of {n} labels: they are not good enough to accuse a label; train "
            "better first (more epochs, a larger network, published weights)"
        )
        return (*self.found.notices, *self._doubtful_temperatures(), many)

    def _doubtful_temperatures(self) -> tuple[str, ...]:
        """A temperature at the end of its range says that the fold's images did not determine it."""
        folds = [str(fold.fold) for fold in self.folds if not LOWEST * 1.01 < fold.temperature < HIGHEST * 0.99]
        if not folds:
            return ()
        return (f"the temperature of fold {', '.join(folds)} is at the end of its range: trust no probability there",)

    def to_json(self) -> dict[str, Any]:
        """The JSON document of `defect-opt train --cv`, as far as it is known here."""
        found, calibration = self.found, self.calibration
        figures = {key: figure.to_json() for key, figure in self.figures.items()}
        return {
            "format": FORMAT,
            "arch": found.config.arch,
            "folds": found.folds.count,
            "seed": found.config.seed,
            "n": len(found.logits),
            "groups": self.groups,
            "classes": list(found.classes),
            "data_sha256": found.data_sha256,
            **{key: figures.get(key) for key in ("accuracy", "balanced_recall", "escape_rate", "overkill_rate")},
            "per_class": {entry.name: _class_json(entry) for entry in self.classes},
            "confusion": [list(row) for row in self.confusion],
            "temperature": calibration.temperature,
            "ece": {
                "before": calibration.before,
                "after": calibration.after,
                "after_unseen": calibration.after_unseen,
                "interval_95": None if calibration.interval is None else calibration.interval.to_json(),
            },
            "per_fold": [dataclasses.asdict(fold) for fold in self.folds],
            "label_faults": [fault.to_json() for fault in self.label_faults],
            "notices": list(self.notices),
        }


def report_of(found: CrossValidation) -> CrossReport:
    """Count, and put spreads and intervals beside the counts."""
    logits, targets = found.logits, found.targets
    fold_of = np.array([fold for _, fold in found.judged])
    samples = tuple(sample for sample, _ in found.judged)
    calibration = _calibration(logits, targets, fold_of, samples)
    chances = probabilities(logits, calibration.temperature)
    counts = _counts(chances, targets, found.classes)
    groups = [group_of(sample) for sample in samples]
    reach = mean_recall_reach(groups, targets)
    figures = {
        key: _figure(matrix, statistic, fold_of, groups, reach if key == "balanced_recall" else None)
        for key, (matrix, statistic) in counts.items()
        if np.isfinite(statistic(matrix.sum(axis=0, keepdims=True))[0])
    }
    predicted = chances.argmax(axis=1)
    confusion = _confusion(predicted, targets, len(found.classes))
    return CrossReport(
        found=found,
        figures=figures,
        folds=tuple(_fold(found, i, counts, fold_of) for i in range(found.folds.count)),
        classes=_classes(found.classes, predicted, targets, groups),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        calibration=calibration,
        probabilities=chances,
        label_faults=find_label_faults(samples, chances, targets, found.classes),
    )


def predictions_csv(report: CrossReport) -> bytes:
    """One line per judged image: file, class, group, fold, predicted, and the probability of each class."""
    found, text = report.found, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"probability {name}" for name in found.classes]
    writer.writerow(["file", "class", "group", "fold", "predicted", *names])
    for (sample, fold), row in zip(found.judged, report.probabilities, strict=True):
        predicted = found.classes[int(row.argmax())]
        chances = [f"{value:.6f}" for value in row]
        writer.writerow([sample.file, sample.label, sample.group or "", fold, predicted, *chances])
    return text.getvalue().encode()


def _confusion(predicted: NDArray[np.int64], targets: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    confusion = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(confusion, (targets, predicted), 1)
    return confusion


def _counts(
    chances: NDArray[np.float64], targets: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, tuple[NDArray[np.float64], Statistic]]:
    """For each figure what each image adds to its sums, and the figure from the sums."""
    one, is_right = np.ones(len(targets)), chances.argmax(axis=1) == targets
    counts: dict[str, tuple[NDArray[np.float64], Statistic]] = {
        "accuracy": (np.column_stack([is_right, one]), ratio),
        "balanced_recall": (recall_counts(targets, is_right, len(classes)), mean_recall),
    }
    is_ok = np.array([severity_by_name(name) == "ok" for name in classes])
    if is_ok.any() and not is_ok.all():
        score, defective, limits = chances[:, ~is_ok].sum(axis=1), ~is_ok[targets], PolicySpec()
        escaped = defective & (score < limits.review_above)
        rejected = ~defective & (score >= limits.defect_above)
        counts["escape_rate"] = (np.column_stack([escaped, defective]).astype(np.float64), ratio)
        counts["overkill_rate"] = (np.column_stack([rejected, ~defective]).astype(np.float64), ratio)
    return counts


def _figure(
    matrix: NDArray[np.float64],
    statistic: Statistic,
    fold_of: NDArray[np.int64],
    groups: Sequence[str],
    reach: float | None,
) -> Figure:
    sums = np.stack([matrix[fold_of == fold].sum(axis=0) for fold in sorted(set(fold_of.tolist()))])
    values = statistic(sums)
    values = values[np.isfinite(values)]
    return Figure(
        mean=float(values.mean()),
        spread=float(values.std(ddof=1)) if len(values) > 1 else None,
        overall=float(statistic(matrix.sum(axis=0, keepdims=True))[0]),
        interval=group_interval(groups, matrix, statistic, reach=reach),
    )


def _fold(
    found: CrossValidation,
    i: int,
    counts: Mapping[str, tuple[NDArray[np.float64], Statistic]],
    fold_of: NDArray[np.int64],
) -> FoldFigure:
    result, chosen = found.results[i], fold_of == i + 1
    values = {
        key: float(statistic(matrix[chosen].sum(axis=0, keepdims=True))[0])
        for key, (matrix, statistic) in counts.items()
    }
    rates = {key: value if np.isfinite(value) else None for key, value in values.items()}
    return FoldFigure(
        fold=result.fold,
        n=len(result.files),
        accuracy=values["accuracy"],
        balanced_recall=values["balanced_recall"],
        escape_rate=rates.get("escape_rate"),
        overkill_rate=rates.get("overkill_rate"),
        temperature=fit_temperature(result.logits, found.targets[chosen]),
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        stopped=result.stopped,
        train_images=len(result.train),
        val_images=len(result.val),
        seconds=round(result.seconds, 1),
        onnx=str(result.onnx),
        sha256=result.sha256,
    )


def _classes(
    classes: Sequence[str], predicted: NDArray[np.int64], targets: NDArray[np.int64], groups: Sequence[str]
) -> tuple[ClassFigure, ...]:
    confusion, made = _confusion(predicted, targets, len(classes)), []
    for i, name in enumerate(classes):
        of_class = targets == i
        own = [group for group, mine in zip(groups, of_class.tolist(), strict=True) if mine]
        right = (predicted[of_class] == i).astype(np.float64)
        recalled = np.column_stack([right, np.ones(len(own))])
        hits, images, called = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
        made.append(
            ClassFigure(
                name=name,
                is_ok=severity_by_name(name) == "ok",
                recall=hits / images if images else None,
                precision=hits / called if called else None,
                images=images,
                groups=len(set(own)),
                interval=group_interval(own, recalled, ratio) if own else None,
            )
        )
    return tuple(sorted(made, key=lambda entry: (entry.groups, entry.images, entry.name)))


def _calibration(
    logits: NDArray[np.float64], targets: NDArray[np.int64], fold_of: NDArray[np.int64], samples: Sequence[Any]
) -> Calibration:
    temperature = fit_temperature(logits, targets)
    unseen = np.empty_like(logits)
    for fold in set(fold_of.tolist()):
        others = fold_of != fold
        unseen[~others] = probabilities(logits[~others], fit_temperature(logits[others], targets[others]))
    before, after = probabilities(logits), probabilities(logits, temperature)
    sides = {}
    for name, chances in (("before", before), ("after", after), ("unseen", unseen)):
        sides[name] = (chances.max(axis=1), chances.argmax(axis=1) == targets)
    counts = calibration_bins(*sides["after"])
    return Calibration(
        temperature=temperature,
        before=expected_calibration_error(*sides["before"]),
        after=expected_calibration_error(*sides["after"]),
        after_unseen=expected_calibration_error(*sides["unseen"]),
        interval=group_interval([group_of(sample) for sample in samples], counts, calibration_error),
        bins=counts.sum(axis=0).reshape(3, -1),
        bins_before=calibration_bins(*sides["before"]).sum(axis=0).reshape(3, -1),
    )


def _class_json(entry: ClassFigure) -> dict[str, Any]:
    interval = None if entry.interval is None else entry.interval.to_json()
    return {
        "recall": entry.recall,
        "interval_95": interval,
        "precision": entry.precision,
        "support": entry.images,
        "groups": entry.groups,
    }
