"""What is compared: each model's word on the parts (or labelled boxes) that count, and its false alarms.

A *part* counts when its truth is severe enough; a good part that is stopped is overkill. Where a set has no good parts
and every model is a detector, the unit is the labelled *box*, missed when no finding would stop the part for it; a
finding that is at no box is a false one. Both rules are those of FROC in `optimize.detection_metrics.found_boxes`.

Scores are such that a unit is stopped when its score reaches the limit: +inf is stopped always (it could not be judged,
and the line stops such a part), -inf never (nothing was found there).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from agent.bundle import Manifest
from agent.bundle.manifest import Severity, Task
from agent.verdict import Decision
from optimize.detection_metrics import ImageBoxes, box_records
from optimize.outcomes import RANK, counter_of, group_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimize.outcomes import Outcome

__all__ = [
    "ALWAYS",
    "NEVER",
    "Counted",
    "Judged",
    "Unit",
    "Units",
    "Verdicts",
    "box_units",
    "image_boxes",
    "part_units",
]

Unit = Literal["part", "box"]
Counted = Literal["critical", "all"]
"""Which defects count: the critical ones, or all where no class is critical."""

ALWAYS, NEVER = float("inf"), float("-inf")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """One model's outcomes.

    Attributes:
        name: as it is called in the comparison.
        manifest: of its bundle.
        outcomes: of the same images in the same order for every model.
    """

    name: str
    manifest: Manifest
    outcomes: Sequence[Outcome]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """One model's word.

    Attributes:
        name: of the model.
        task: what it does.
        scores: (U,) float64, of the units that count, higher is worse.
        alarms: (F,) float64, of the good parts; of the false boxes where the unit is the box.
        own_limit: what its own policy passes lies below this.
        floor: a detector gives no findings below this, so no limit can be lower.
        unjudged: images that it could not judge.
    """

    name: str
    task: Task
    scores: NDArray[np.float64]
    alarms: NDArray[np.float64]
    own_limit: float
    floor: float = 0.0
    unjudged: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What every model was asked.

    Attributes:
        unit: part or box.
        counted: which defects count.
        groups: (U,) the part, lot or strip of each unit; boxes of one picture are of one group.
        exposures: what false alarms are divided by: good parts, or pictures where the unit is the box.
        images: how many pictures there are.
        judged: by model.
    """

    unit: Unit
    counted: Counted
    groups: tuple[str, ...]
    exposures: int
    images: int
    judged: tuple[Judged, ...]

    @property
    def has_groups(self) -> bool:
        """Whether some units hang together."""
        return len(set(self.groups)) < len(self.groups)


def part_units(verdicts: Sequence[Verdicts], counted: Counted) -> Units:
    """Take every picture as one part.

    Args:
        verdicts: of at least one model.
        counted: which defects count.
    """
    truth = _truth([v.outcomes for v in verdicts])
    outcomes = verdicts[0].outcomes
    counts = [i for i, severity in enumerate(truth) if _does_count(severity, counted)]
    goods = [i for i, severity in enumerate(truth) if severity == "ok"]
    scores = [np.array([_score(o, _floor(v.manifest)) for o in v.outcomes], dtype=np.float64) for v in verdicts]
    return Units(
        unit="part",
        counted=counted,
        groups=tuple(group_of(outcomes[i]) for i in counts),
        exposures=len(goods),
        images=len(outcomes),
        judged=tuple(_judged(v, own[counts], own[goods]) for v, own in zip(verdicts, scores, strict=True)),
    )


def box_units(verdicts: Sequence[Verdicts], counted: Counted) -> Units:
    """Take every labelled box as one unit.

    A picture that could not be judged stops the part, so its boxes do not escape, and it shows no false one.

    Args:
        verdicts: of detectors, on a set with boxes.
        counted: which defects count.
    """
    outcomes = verdicts[0].outcomes
    severity_of = {c.name: c.severity for v in verdicts for c in v.manifest.classes}
    owners: list[int] = []
    judged = []
    for v in verdicts:
        records = box_records([image_boxes(o, v.manifest, are_all=False) for o in v.outcomes])
        named = [(outcomes[i].boxes or ())[k].class_name for i, k in zip(records.images, records.places, strict=True)]
        counts = np.array([_does_count(severity_of[name], counted) for name in named], dtype=np.bool_)
        owners = records.images[counts].tolist()
        is_error = np.array([v.outcomes[i].decision is Decision.ERROR for i in owners], dtype=np.bool_)
        judged.append(_judged(v, np.where(is_error, ALWAYS, records.stopped[counts]), records.false_scores))
    return Units(
        unit="box",
        counted=counted,
        groups=tuple(group_of(outcomes[i]) for i in owners),
        exposures=len(outcomes),
        images=len(outcomes),
        judged=tuple(judged),
    )


def image_boxes(outcome: Outcome, manifest: Manifest, *, are_all: bool) -> ImageBoxes:
    """One picture's boxes and findings as arrays, classes by their number in the manifest.

    Args:
        outcome: of a detector; one that could not be judged has no findings.
        manifest: of its bundle.
        are_all: also findings that the policy does not count, as mAP wants them.
    """
    number = {name: i for i, name in enumerate(manifest.class_names)}
    truth, findings, counter = outcome.boxes or (), outcome.findings, counter_of(manifest)
    if not are_all:
        findings = () if counter is None else tuple(one.finding for one in counter.count(findings))
    placed = [(f, f.box_px) for f in findings if f.box_px is not None]
    return ImageBoxes(
        truth=_corners((b.left, b.top, b.right, b.bottom) for b in truth),
        truth_classes=np.array([number[b.class_name] for b in truth], dtype=np.int64),
        is_ignored=np.array([b.is_ignored for b in truth], dtype=np.bool_),
        found=_corners((x, y, x + w, y + h) for _, (x, y, w, h) in placed),
        scores=np.array([f.score for f, _ in placed], dtype=np.float64),
        found_classes=np.array([number[f.class_name] for f, _ in placed], dtype=np.int64),
    )


def _judged(verdicts: Verdicts, scores: NDArray[np.float64], alarms: NDArray[np.float64]) -> Judged:
    return Judged(
        name=verdicts.name,
        task=verdicts.manifest.task,
        scores=scores,
        alarms=alarms,
        own_limit=verdicts.manifest.policy.review_above,
        floor=_floor(verdicts.manifest),
        unjudged=sum(o.decision is Decision.ERROR for o in verdicts.outcomes),
    )


def _truth(by_model: Sequence[Sequence[Outcome]]) -> list[Severity]:
    """How bad each part is: the worst that any model's classes make of its label and its boxes."""
    return [max((o.severity for o in same), key=RANK.__getitem__) for same in zip(*by_model, strict=True)]


def _does_count(severity: Severity, counted: Counted) -> bool:
    return severity == "critical" if counted == "critical" else severity != "ok"


def _floor(manifest: Manifest) -> float:
    return 0.0 if manifest.detection is None else manifest.detection.score_above


def _score(outcome: Outcome, floor: float) -> float:
    if outcome.decision is Decision.ERROR or outcome.score is None:
        return ALWAYS
    return outcome.score if outcome.score >= floor else NEVER


def _corners(boxes: Iterable[tuple[float, float, float, float]]) -> NDArray[np.float64]:
    return np.array(list(boxes), dtype=np.float64).reshape(-1, 4)
