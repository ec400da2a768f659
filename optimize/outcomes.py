"""What a bundle makes of each labelled image, through the agent's own Inspector and Policy.

An image that can't be judged is never dropped: its outcome is an error, as the line stops such a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from agent.bundle import Bundle, Finding, Manifest
from agent.bundle.manifest import Severity
from agent.config import EngineConfig, PolicyConfig
from agent.counting import FindingCounter
from agent.engines import open_engine
from agent.errors import ImageError
from agent.frame import Fault, Frame, Part, Stamp
from agent.inspection import Inspector
from agent.verdict import Decision, Policy, Verdict, policy_from_config
from optimize.dataset import Dataset, LabelledBox, Sample, read_image
from optimize.errors import DataError
from optimize.progress import Progress, SilentProgress

__all__ = ["RANK", "Outcome", "Unjudged", "check_labels", "counter_of", "group_of", "judge_all"]

RANK: Mapping[Severity, int] = MappingProxyType({"ok": 0, "minor": 1, "major": 2, "critical": 3})
"""How bad each severity is."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one image.

    Attributes:
        file: the image, relative to its data set.
        label: its true class; None on a set with boxes that says nothing of the whole image.
        predicted: the class with the highest probability (classify), that of the finding that decided (detect); None
            where nothing was found, or when it could not be judged.
        decision: the policy's.
        reason: the policy's, in words.
        ms: preprocessing, inference and decoding together; None when it could not be judged.
        probability: of `predicted`; None likewise.
        group: the part that it shows, see `optimize.dataset.Sample`.
        score: the defect score: 1 - P(good) (classify), the highest score of a finding that counts, 0 without one
            (detect); None when it could not be judged.
        findings: every class with its probability (classify), every finding in pixels of the frame, also those that
            the policy does not count (detect); none when it could not be judged.
        boxes: what was outlined; None in a set without boxes.
        severity: how bad the part is: the worst of its label's class and of its boxes that are not ignored; `ok`
            without either.
    """

    file: str
    label: str | None
    predicted: str | None
    decision: Decision
    reason: str
    ms: float | None
    probability: float | None = None
    group: str | None = None
    score: float | None = None
    findings: tuple[Finding, ...] = ()
    boxes: tuple[LabelledBox, ...] | None = None
    severity: Severity


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unjudged:
    """An image that could not be judged.

    Attributes:
        file: the image, relative to its data set.
        reason: why, in words.
    """

    file: str
    reason: str


def judge_all(
    bundle: Bundle, dataset: Dataset, config: EngineConfig | None = None, *, progress: Progress | None = None
) -> tuple[list[Outcome], str]:
    """Judge images as the device would, with the bundle's own limits.

    Args:
        bundle: what judges.
        dataset: images with labels or boxes, of the split that is meant.
        config: engine, graph and threads; None takes the defaults.
        progress: hears what is judged.

    Returns:
        An outcome for each image, in order, and the engine in words.

    Raises:
        DataError: an image without label and boxes, or a class that the bundle does not know and that is not ok-like.
        EngineError: the graph can't be run.
    """
    severities = _severities(dataset, bundle.manifest)
    engine = open_engine(bundle, config or EngineConfig())
    try:
        inspector = Inspector(bundle, engine)
        policy = policy_from_config(PolicyConfig(), bundle.manifest)
        samples = (progress or SilentProgress()).track(dataset.samples, "judging images")
        verdicts = [_judge(i, sample, inspector, policy) for i, sample in enumerate(samples, start=1)]
    finally:
        engine.close()
    counter = counter_of(bundle.manifest)
    outcomes = [
        _outcome(sample, verdict, severity, counter)
        for sample, verdict, severity in zip(dataset, verdicts, severities, strict=True)
    ]
    return outcomes, engine.name


def counter_of(manifest: Manifest) -> FindingCounter | None:
    """Tells which findings count by the bundle's own limits; None for a classifier."""
    if manifest.task != "detect":
        return None
    sizes = {c.name: c.min_size_mm for c in manifest.classes if c.min_size_mm is not None}
    return FindingCounter(manifest.policy, (), sizes)


def group_of(outcome: Outcome) -> str:
    """The part that an image shows; an image without one is its own (a NUL keeps its name apart from any group's)."""
    return outcome.group if outcome.group is not None else f"\0{outcome.file}"


def check_labels(dataset: Dataset, classes: Sequence[str]) -> None:
    """See that every image has a label that the model knows.

    Raises:
        DataError: with the images or labels that don't fit.
    """
    unlabelled = [sample.file for sample in dataset if sample.label is None]
    if unlabelled:
        raise _unlabelled(dataset, unlabelled)
    strange = {str(label) for label in dataset.labels} - set(classes)
    if strange:
        raise _strange(dataset, strange, classes)


def _severities(dataset: Dataset, manifest: Manifest) -> list[Severity]:
    """How bad each part is."""
    from optimize.inputs import severity_by_name

    known: dict[str, Severity] = {c.name: c.severity for c in manifest.classes}
    unlabelled = [s.file for s in dataset if s.label is None and s.boxes is None]
    if unlabelled:
        raise _unlabelled(dataset, unlabelled)
    found: list[Severity] = []
    strange: set[str] = set()
    for sample in dataset:
        names = [box.class_name for box in sample.boxes or ()]
        strange.update(name for name in names if name not in known)
        if sample.label is not None and sample.label not in known and severity_by_name(sample.label) != "ok":
            strange.add(sample.label)
        counted = [box.class_name for box in sample.boxes or () if not box.is_ignored]
        worst = [known.get(name, "ok") for name in [*counted, *([sample.label] if sample.label else [])]]
        found.append(max(worst, key=RANK.__getitem__, default="ok"))
    if strange:
        raise _strange(dataset, strange, manifest.class_names)
    return found


def _unlabelled(dataset: Dataset, files: Sequence[str]) -> DataError:
    return DataError(
        f"{dataset.root}: {len(files)} images have no label, the first is {files[0]}",
        hint="put the images in a folder per class, or write splits.csv with file,class,split",
    )


def _strange(dataset: Dataset, names: set[str], classes: Sequence[str]) -> DataError:
    return DataError(
        f"{dataset.root}: got the classes {', '.join(sorted(names))}, the model knows {', '.join(classes)}",
        hint="rename the folders (or the class column), or train and build with these classes",
    )


def _judge(sequence: int, sample: Sample, inspector: Inspector, policy: Policy) -> Verdict:
    """One image the way that a part goes: what can't be read is a fault, and its verdict is error."""
    part = Part(id=sample.file, trigger="evaluate", sequence=sequence, triggered=Stamp.now())
    verdict = policy.judge(inspector.inspect(_frame(part, sample)))
    # The pictures of a whole set, and what was drawn over them, would not fit in memory.
    return dataclasses.replace(verdict, inspection=dataclasses.replace(verdict.inspection, frame=None, heatmap=None))


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


def _outcome(sample: Sample, verdict: Verdict, severity: Severity, counter: FindingCounter | None) -> Outcome:
    inspection = verdict.inspection
    judged = verdict.decision is not Decision.ERROR
    top = verdict.top if counter is not None else next(iter(inspection.findings), None)
    score = inspection.defect_score
    if counter is not None:
        score = max((one.finding.score for one in counter.count(inspection.findings)), default=0.0)
    return Outcome(
        file=sample.file,
        label=sample.label,
        predicted=top.class_name if judged and top is not None else None,
        decision=verdict.decision,
        reason=verdict.reason,
        ms=inspection.ms.preprocess + inspection.ms.infer + inspection.ms.decode if judged else None,
        probability=top.score if judged and top is not None else None,
        group=sample.group,
        score=score if judged else None,
        findings=inspection.findings if judged else (),
        boxes=sample.boxes,
        severity=severity,
    )
