"""Scorecard: what a bundle does on labelled images, through the agent's own Inspector and Policy.

The numbers of a report come from the code that runs on the device: the same decoder, the same engine, the same limits.
An image that can't be judged is never dropped: it counts as wrong, and (as the line stops such a part) not as escaped.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.binomial import CONFIDENCE, upper_bound
from agent.bundle import Bundle, Manifest
from agent.config import EngineConfig
from agent.verdict import Decision
from optimize.dataset import Dataset
from optimize.intervals import Statistic, group_interval, mean_recall, mean_recall_reach, ratio, recall_counts
from optimize.outcomes import Outcome, Unjudged, check_labels, group_of, judge_all
from optimize.progress import Progress
from optimize.temperature import calibration_bins, calibration_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "ClassScore",
    "Outcome",
    "Scorecard",
    "Unjudged",
    "check_labels",
    "evaluate",
    "judge_all",
    "score",
    "upper_bound",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class.

    Attributes:
        precision: of the images called so, the share that are; None when none was called so.
        recall: of the images that are so, the share called so; None when there are none.
        support: images that are so.
    """

    precision: float | None
    recall: float | None
    support: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scorecard:
    """What came out; truthy when every gate holds.

    A rate whose denominator is empty is None, never 0: a set without good parts says nothing about overkill.

    Attributes:
        n: images, those that could not be judged included.
        accuracy: share of images whose most probable class is their label.
        classes: the bundle's classes, in the order of `confusion`.
        per_class: by class.
        confusion: rows are the truth, columns the most probable class; images that could not be judged are in none.
        defects: images of classes that are not ok.
        escapes: those of them judged ok.
        escape_rate: escapes / defects.
        escape_upper_95: the escape rate lies below this with 95 % confidence (Clopper-Pearson), for images like these.
        goods: images of ok classes.
        overkills: those of them judged defect.
        overkill_rate: overkills / goods.
        review_rate: share of images judged review.
        decisions: images by decision, all four.
        unjudged: images that could not be judged.
        p50_ms: median of preprocessing, inference and decoding; None when nothing was judged.
        p99_ms: 99th percentile of the same.
        failures: gates that do not hold, in words.
        groups: parts that the images show; each image without a group is one.
        balanced_recall: mean recall of the classes that have images.
        ece: expected calibration error of the most probable class, over the images that were judged.
        intervals_95: figure to where it lies with 95 % confidence, by bootstrap over groups.
        recall_95: the same for the recall of each class that has images.
    """

    n: int
    accuracy: float
    classes: tuple[str, ...]
    per_class: Mapping[str, ClassScore]
    confusion: tuple[tuple[int, ...], ...]
    defects: int
    escapes: int
    escape_rate: float | None
    escape_upper_95: float | None
    goods: int
    overkills: int
    overkill_rate: float | None
    review_rate: float
    decisions: Mapping[str, int]
    unjudged: tuple[Unjudged, ...]
    p50_ms: float | None
    p99_ms: float | None
    failures: tuple[str, ...] = ()
    groups: int = 0
    balanced_recall: float | None = None
    ece: float | None = None
    intervals_95: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    recall_95: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return not self.failures

    def gated(self, *, min_accuracy: float | None) -> Scorecard:
        """The same with gates applied.

        Args:
            min_accuracy: smallest accuracy that will do, 0 to 1; None sets no gate.
        """
        failures = list(self.failures)
        if min_accuracy is not None and self.accuracy < min_accuracy:
            failures.append(f"accuracy: got {self.accuracy:.4f}, expected at least {min_accuracy:.4f}")
        return dataclasses.replace(self, failures=tuple(failures))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        values = dataclasses.asdict(self)
        values["errors"] = values.pop("unjudged")
        values["latency_ms"] = {"p50": _rounded(values.pop("p50_ms")), "p99": _rounded(values.pop("p99_ms"))}
        values["confusion"] = [list(row) for row in self.confusion]
        values["classes"] = list(self.classes)
        values["failures"] = list(self.failures)
        values["decisions"] = dict(self.decisions)
        values["errors"] = [dataclasses.asdict(entry) for entry in self.unjudged]
        return values


def evaluate(
    bundle: Bundle, dataset: Dataset, config: EngineConfig | None = None, *, progress: Progress | None = None
) -> tuple[Scorecard, str]:
    """Judge labelled images as the device would.

    Args:
        bundle: a classifier; for a detector see `optimize.detection_card`.
        dataset: labelled images, of the split that is meant.
        config: engine, graph and threads; None takes the defaults.
        progress: hears what is judged.

    Returns:
        The scorecard, and the engine in words.

    Raises:
        DataError: an image has no label, or a label is no class of the bundle.
        EngineError: the graph can't be run.
    """
    check_labels(dataset, bundle.manifest.class_names)
    outcomes, engine = judge_all(bundle, dataset, config, progress=progress)
    return score(outcomes, bundle.manifest), engine


def score(outcomes: Sequence[Outcome], manifest: Manifest) -> Scorecard:
    """Count outcomes.

    Args:
        outcomes: at least one, each with a label.
        manifest: gives the classes, and which of them are good.
    """
    classes = manifest.class_names
    index = {name: i for i, name in enumerate(classes)}
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for outcome in outcomes:
        if outcome.predicted is not None:
            confusion[index[_label_of(outcome)], index[outcome.predicted]] += 1
    good = {c.name for c in manifest.classes if c.severity == "ok"}
    counted = Counter((outcome.label in good, outcome.decision) for outcome in outcomes)
    n, goods = len(outcomes), sum(outcome.label in good for outcome in outcomes)
    escapes, overkills = counted[False, Decision.OK], counted[True, Decision.DEFECT]
    decisions = Counter(outcome.decision for outcome in outcomes)
    taken = [outcome.ms for outcome in outcomes if outcome.ms is not None]
    sums = _sums(outcomes, classes, good)
    return Scorecard(
        n=n,
        accuracy=int(np.trace(confusion)) / n,
        classes=classes,
        per_class=_per_class(outcomes, classes, confusion),
        groups=len({group_of(outcome) for outcome in outcomes}),
        balanced_recall=_value(sums["balanced_recall"]),
        ece=_value(sums["ece"]),
        intervals_95={key: found for key, entry in sums.items() if (found := _ends(entry)) is not None},
        recall_95=dict(_recall_intervals(outcomes, classes)),
        confusion=tuple(tuple(int(value) for value in row) for row in confusion),
        defects=n - goods,
        escapes=escapes,
        escape_rate=_share(escapes, n - goods),
        escape_upper_95=upper_bound(escapes, n - goods) if n > goods else None,
        goods=goods,
        overkills=overkills,
        overkill_rate=_share(overkills, goods),
        review_rate=decisions[Decision.REVIEW] / n,
        decisions={decision.value: decisions[decision] for decision in Decision},
        unjudged=tuple(Unjudged(file=o.file, reason=o.reason) for o in outcomes if o.decision is Decision.ERROR),
        p50_ms=float(np.percentile(taken, 50)) if taken else None,
        p99_ms=float(np.percentile(taken, 99)) if taken else None,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Sums:
    """What a figure is made of: the group of each image, what it adds, and the figure from the sums."""

    groups: list[str]
    counts: NDArray[np.float64]
    statistic: Statistic
    reach: float | None = None


def _sums(outcomes: Sequence[Outcome], classes: Sequence[str], good: set[str]) -> dict[str, _Sums]:
    """By figure. An image that could not be judged is wrong, but says nothing of how sure the model is."""
    groups, number = [group_of(o) for o in outcomes], {name: i for i, name in enumerate(classes)}
    is_right, is_good = np.array([(o.predicted == o.label, o.label in good) for o in outcomes]).T
    escaped = np.array([o.decision is Decision.OK for o in outcomes]) & ~is_good
    rejected = np.array([o.decision is Decision.DEFECT for o in outcomes]) & is_good
    one, targets = np.ones(len(outcomes)), np.array([number[_label_of(o)] for o in outcomes])
    judged = [o for o in outcomes if o.probability is not None]
    sure = np.array([o.probability or 0.0 for o in judged])
    bins = calibration_bins(sure, np.array([o.predicted == o.label for o in judged], dtype=np.bool_))
    return {
        "accuracy": _Sums(groups, np.column_stack([is_right, one]), ratio),
        "balanced_recall": _Sums(
            groups, recall_counts(targets, is_right, len(classes)), mean_recall, mean_recall_reach(groups, targets)
        ),
        "escape_rate": _Sums(groups, np.column_stack([escaped, ~is_good]).astype(np.float64), ratio),
        "overkill_rate": _Sums(groups, np.column_stack([rejected, is_good]).astype(np.float64), ratio),
        "ece": _Sums([group_of(o) for o in judged], bins, calibration_error),
    }


def _value(sums: _Sums) -> float | None:
    value = float(sums.statistic(sums.counts.sum(axis=0, keepdims=True))[0]) if len(sums.groups) else math.nan
    return value if math.isfinite(value) else None


def _ends(sums: _Sums) -> tuple[float, float] | None:
    """The interval of a figure, by group."""
    if not sums.groups:
        return None
    found = group_interval(sums.groups, sums.counts, sums.statistic, reach=sums.reach)
    return None if found is None else found.ends()


def _per_class(outcomes: Sequence[Outcome], classes: Sequence[str], confusion: Any) -> dict[str, ClassScore]:
    support = Counter(outcome.label for outcome in outcomes)
    return {
        name: ClassScore(
            precision=_share(int(confusion[i, i]), int(confusion[:, i].sum())),
            recall=_share(int(confusion[i, i]), support[name]),
            support=support[name],
        )
        for i, name in enumerate(classes)
    }


def _recall_intervals(outcomes: Sequence[Outcome], classes: Sequence[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    for name in classes:
        own = [o for o in outcomes if o.label == name]
        counts = np.array([(o.predicted == name, 1) for o in own], dtype=np.float64).reshape(-1, 2)
        found = _ends(_Sums([group_of(o) for o in own], counts, ratio))
        if found is not None:
            yield name, found


def _label_of(outcome: Outcome) -> str:
    assert outcome.label is not None, outcome.file  # `check_labels` saw to it
    return outcome.label


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
