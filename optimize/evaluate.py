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

from agent.bundle import Bundle, Manifest
from agent.config import EngineConfig
from agent.engines import open_engine
from agent.errors import ImageError
from agent.frame import Fault, Frame, Part, Stamp
from agent.inspection import Inspector
from agent.verdict import Decision, Policy, Verdict
from optimize.dataset import Dataset, Sample, read_image
from optimize.errors import DataError
from optimize.intervals import Statistic, group_interval, mean_recall, mean_recall_reach, ratio, recall_counts
from optimize.progress import Progress, SilentProgress
from optimize.temperature import calibration_bins, calibration_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ClassScore", "Outcome", "Scorecard", "Unjudged", "check_labels", "evaluate", "score", "upper_bound"]

CONFIDENCE = 0.95
"""Of the one-sided bound on the escape rate."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one image.

    Attributes:
        file: the image, relative to its data set.
        label: its true class.
        predicted: the class with the highest probability; None when it could not be judged.
        decision: the policy's.
        reason: the policy's, in words.
        ms: preprocessing, inference and decoding together; None when it could not be judged.
        probability: of `predicted`; None when it could not be judged.
        group: the part that it shows, see `optimize.dataset.Sample`.
    """

    file: str
    label: str
    predicted: str | None
    decision: Decision
    reason: str
    ms: float | None
    probability: float | None = None
    group: str | None = None


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
class Unjudged:
    """An image that could not be judged.

    Attributes:
        file: the image, relative to its data set.
        reason: why, in words.
    """

    file: str
    reason: str


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
        bundle: what judges.
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
    engine = open_engine(bundle, config or EngineConfig())
    try:
        inspector = Inspector(bundle, engine)
        policy = Policy(bundle.manifest.policy)
        samples = (progress or SilentProgress()).track(dataset.samples, "judging images")
        outcomes = [_judge(i, sample, inspector, policy) for i, sample in enumerate(samples, start=1)]
    finally:
        engine.close()
    return score(outcomes, bundle.manifest), engine.name


def check_labels(dataset: Dataset, classes: Sequence[str]) -> None:
    """See that every image has a label that the model knows.

    Raises:
        DataError: with the images or labels that don't fit.
    """
    unlabelled = [sample.file for sample in dataset if sample.label is None]
    if unlabelled:
        raise DataError(
            f"{dataset.root}: {len(unlabelled)} images have no label, the first is {unlabelled[0]}",
            hint="put the images in a folder per class, or write splits.csv with file,class,split",
        )
    strange = sorted({str(label) for label in dataset.labels} - set(classes))
    if strange:
        raise DataError(
            f"{dataset.root}: got the classes {', '.join(strange)}, the model knows {', '.join(classes)}",
            hint="rename the folders (or the class column), or train and build with these classes",
        )


def score(outcomes: Sequence[Outcome], manifest: Manifest) -> Scorecard:
    """Count outcomes.

    Args:
        outcomes: at least one.
        manifest: gives the classes, and which of them are good.
    """
    classes = manifest.class_names
    index = {name: i for i, name in enumerate(classes)}
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for outcome in outcomes:
        if outcome.predicted is not None:
            confusion[index[outcome.label], index[outcome.predicted]] += 1
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
        groups=len({_group_of(outcome) for outcome in outcomes}),
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


def upper_bound(events: int, n: int, confidence: float = CONFIDENCE) -> float:
    """The one-sided Clopper-Pearson bound: the largest rate that these counts leave plausible.

    It is the p at which `events` or fewer of n would be seen with probability 1 - confidence, that is the `confidence`
    quantile of the Beta(events + 1, n - events) distribution (Clopper and Pearson, Biometrika 26, 1934; the beta form
    in NIST/SEMATECH e-Handbook of Statistical Methods, 7.2.4.1). Found by bisection, to 1e-12.

    Args:
        events: how often it happened, 0 to n.
        n: how often it could have happened, at least 1.
        confidence: between 0 and 1.

    Returns:
        Between events / n and 1.
    """
    if not 0 <= events <= n or n < 1 or not 0 < confidence < 1:
        raise ValueError(f"upper_bound: got {events} of {n} at {confidence}")
    if events == n:
        return 1.0
    low, high = events / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _incomplete_beta(middle, events + 1, n - events) < confidence:
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), for 0 < x < 1 (DLMF 8.17.22, with 8.17.4 for large x)."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    logarithm = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(logarithm) / a / _continued_fraction(x, a, b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + …)) of DLMF 8.17.22, by the modified Lentz method (DLMF 3.10(iii))."""
    fraction = c = 1.0
    d = 0.0
    for j in range(1, 10_000):
        m = j // 2
        if j % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _nonzero(1 + term * d)
        c = _nonzero(1 + term / c)
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return fraction


def _nonzero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300


def _judge(sequence: int, sample: Sample, inspector: Inspector, policy: Policy) -> Outcome:
    """One image the way that a part goes: what can't be read is a fault, and its verdict is error."""
    part = Part(id=sample.file, trigger="evaluate", sequence=sequence, triggered=Stamp.now())
    verdict = policy.judge(inspector.inspect(_frame(part, sample)))
    return _outcome(sample, verdict)


def _frame(part: Part, sample: Sample) -> Frame | Fault:
    try:
        image = read_image(sample.path)
    except ImageError as error:
        return Fault(part=part, stage="capture", reason=error.message)
    return Frame(
        part=part,
        image=image,
        camera="evaluate",
        source=sample.file,
        sequence=part.sequence,
        captured=Stamp.now(),
    )


def _outcome(sample: Sample, verdict: Verdict) -> Outcome:
    inspection = verdict.inspection
    judged = verdict.decision is not Decision.ERROR
    assert sample.label is not None
    return Outcome(
        file=sample.file,
        label=sample.label,
        predicted=inspection.findings[0].class_name if judged else None,
        decision=verdict.decision,
        reason=verdict.reason,
        ms=inspection.ms.preprocess + inspection.ms.infer + inspection.ms.decode if judged else None,
        probability=inspection.findings[0].score if judged else None,
        group=sample.group,
    )


def _group_of(outcome: Outcome) -> str:
    return outcome.group if outcome.group is not None else f"\0{outcome.file}"


@dataclasses.dataclass(frozen=True, slots=True)
class _Sums:
    """What a figure is made of: the group of each image, what it adds, and the figure from the sums."""

    groups: list[str]
    counts: NDArray[np.float64]
    statistic: Statistic
    reach: float | None = None


def _sums(outcomes: Sequence[Outcome], classes: Sequence[str], good: set[str]) -> dict[str, _Sums]:
    """By figure. An image that could not be judged is wrong, but says nothing of how sure the model is."""
    groups, number = [_group_of(o) for o in outcomes], {name: i for i, name in enumerate(classes)}
    is_right, is_good = np.array([(o.predicted == o.label, o.label in good) for o in outcomes]).T
    escaped = np.array([o.decision is Decision.OK for o in outcomes]) & ~is_good
    rejected = np.array([o.decision is Decision.DEFECT for o in outcomes]) & is_good
    one, targets = np.ones(len(outcomes)), np.array([number[o.label] for o in outcomes])
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
        "ece": _Sums([_group_of(o) for o in judged], bins, calibration_error),
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
        found = _ends(_Sums([_group_of(o) for o in own], counts, ratio))
        if found is not None:
            yield name, found


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
