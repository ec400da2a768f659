"""From outcomes to a detector's scorecard, see `optimize.detection_card`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agent.binomial import upper_bound
from agent.bundle import Bundle, Finding, Manifest
from agent.config import EngineConfig
from agent.verdict import Decision
from optimize.dataset import Dataset
from optimize.detection_card import Counts, DetectedClass, DetectionScorecard, Ends, FrocPoint, SizeCounts
from optimize.detection_metrics import (
    AREAS,
    FALSE_PER_PICTURE,
    BoxRecords,
    ImageBoxes,
    MeanPrecision,
    box_records,
    froc_curve,
    map50_statistic,
    mean_precision,
    sensitivities,
)
from optimize.intervals import Interval, group_interval, ratio, weighted_interval, weighted_intervals
from optimize.outcomes import Outcome, Unjudged, counter_of, group_of, judge_all
from optimize.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BoxFates", "box_fates", "evaluate_detector", "image_boxes", "score_detections"]

SIZE_EDGES = {"mm": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0), "px": (0.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)}
"""Where ranges of the longer side begin; the last is without end."""


def evaluate_detector(
    bundle: Bundle, dataset: Dataset, config: EngineConfig | None = None, *, progress: Progress | None = None
) -> tuple[DetectionScorecard, list[Outcome], str]:
    """Judge images as the device would.

    Args:
        bundle: a detector.
        dataset: images with boxes (`optimize.box_readers`), or with labels only.
        config: engine, graph and threads; None takes the defaults.
        progress: hears what is judged.

    Returns:
        The scorecard, what became of each image, and the engine in words.

    Raises:
        DataError: an image without label and boxes, or a class that the bundle does not know.
        EngineError: the graph can't be run.
    """
    outcomes, engine = judge_all(bundle, dataset, config, progress=progress)
    return score_detections(outcomes, bundle.manifest), outcomes, engine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoxFates:
    """What became of each outlined box that counts.

    Attributes:
        records: scores of the findings that count, by box; see `optimize.detection_metrics`.
        classes: (B,) class numbers.
        sides: (B,) the longer side in pixels.
        areas: (B,) square pixels.
        escaped: (B,) no finding that reaches the lower limit made anybody look there.
        missed: (B,) none of its class and place does; a picture that could not be judged misses nothing.
    """

    records: BoxRecords
    classes: NDArray[np.int64]
    sides: NDArray[np.float64]
    areas: NDArray[np.float64]
    escaped: NDArray[np.bool_]
    missed: NDArray[np.bool_]


def score_detections(outcomes: Sequence[Outcome], manifest: Manifest) -> DetectionScorecard:
    """Count outcomes.

    Args:
        outcomes: at least one, with a detector's findings; all with boxes, or none.
        manifest: gives classes, severities, limits and the pixel pitch.
    """
    card = _of_parts(outcomes, manifest)
    fates = box_fates(outcomes, manifest) if all(o.boxes is not None for o in outcomes) else None
    card = dataclasses.replace(card, by_severity=dict(_severities(outcomes, manifest, fates)))
    if fates is not None:
        card = _with_boxes(card, outcomes, manifest, fates)
    return dataclasses.replace(card, notes=tuple(_notes(card)))


def _of_parts(outcomes: Sequence[Outcome], manifest: Manifest) -> DetectionScorecard:
    """What became of whole parts."""
    n, groups = len(outcomes), [group_of(o) for o in outcomes]
    is_bad = np.array([o.severity != "ok" for o in outcomes], dtype=np.bool_)
    escaped = is_bad & np.array([o.decision is Decision.OK for o in outcomes])
    rejected = ~is_bad & np.array([o.decision is Decision.DEFECT for o in outcomes])
    defects, goods, escapes, overkills = (int(of.sum()) for of in (is_bad, ~is_bad, escaped, rejected))
    decisions = Counter(o.decision for o in outcomes)
    taken = [o.ms for o in outcomes if o.ms is not None]
    intervals = {
        "escape_rate": _ends(group_interval(groups, _columns(escaped, is_bad), ratio)),
        "overkill_rate": _ends(group_interval(groups, _columns(rejected, ~is_bad), ratio)),
    }
    return DetectionScorecard(
        n=n,
        groups=len(set(groups)),
        classes=manifest.class_names,
        defects=defects,
        escapes=escapes,
        escape_rate=_share(escapes, defects),
        escape_upper_95=upper_bound(escapes, defects) if defects else None,
        goods=goods,
        overkills=overkills,
        overkill_rate=_share(overkills, goods),
        review_rate=decisions[Decision.REVIEW] / n,
        decisions={decision.value: decisions[decision] for decision in Decision},
        unjudged=tuple(Unjudged(file=o.file, reason=o.reason) for o in outcomes if o.decision is Decision.ERROR),
        size_unit=_unit(manifest),
        limit=manifest.policy.review_above,
        p50_ms=float(np.percentile(taken, 50)) if taken else None,
        p99_ms=float(np.percentile(taken, 99)) if taken else None,
        intervals_95={key: found for key, found in intervals.items() if found is not None},
    )


def image_boxes(outcome: Outcome, classes: Sequence[str], findings: Sequence[Finding] | None = None) -> ImageBoxes:
    """What was outlined and what was found on one image, as arrays.

    Args:
        outcome: of the image.
        classes: in the order of the class numbers.
        findings: which of its findings; None for all.
    """
    number = {name: i for i, name in enumerate(classes)}
    truth, found = outcome.boxes or (), [f for f in (outcome.findings if findings is None else findings) if f.box_px]
    corners = [(x, y, x + w, y + h) for x, y, w, h in (f.box_px for f in found if f.box_px is not None)]
    return ImageBoxes(
        truth=np.array([(b.left, b.top, b.right, b.bottom) for b in truth], dtype=np.float64).reshape(-1, 4),
        truth_classes=np.array([number[b.class_name] for b in truth], dtype=np.int64),
        is_ignored=np.array([b.is_ignored for b in truth], dtype=np.bool_),
        found=np.array(corners, dtype=np.float64).reshape(-1, 4),
        scores=np.array([f.score for f in found], dtype=np.float64),
        found_classes=np.array([number[f.class_name] for f in found], dtype=np.int64),
    )


def box_fates(outcomes: Sequence[Outcome], manifest: Manifest) -> BoxFates:
    """See what became of each outlined box, by the findings that the bundle's policy counts.

    Args:
        outcomes: with boxes.
        manifest: gives classes, severities, limits and smallest sizes.
    """
    counter = counter_of(manifest)
    assert counter is not None  # a detector
    counted = [[one.finding for one in counter.count(o.findings)] for o in outcomes]
    images = [image_boxes(o, manifest.class_names, found) for o, found in zip(outcomes, counted, strict=True)]
    records = box_records(images)
    truth = [images[i].truth[k] for i, k in zip(records.images, records.places, strict=True)]
    sides = np.array([(b[2] - b[0], b[3] - b[1]) for b in truth], dtype=np.float64).reshape(-1, 2)
    judged = np.array([o.decision is not Decision.ERROR for o in outcomes], dtype=np.bool_)[records.images]
    limit = manifest.policy.review_above
    return BoxFates(
        records=records,
        classes=np.array([images[i].truth_classes[k] for i, k in zip(records.images, records.places, strict=True)]),
        sides=sides.max(axis=1),
        areas=sides.prod(axis=1),
        escaped=judged & (records.stopped < limit),
        missed=judged & (records.found < limit),
    )


def _with_boxes(
    card: DetectionScorecard, outcomes: Sequence[Outcome], manifest: Manifest, fates: BoxFates
) -> DetectionScorecard:
    images = [image_boxes(o, manifest.class_names) for o in outcomes]
    groups, n_classes = [group_of(o) for o in outcomes], len(manifest.classes)
    means, n = mean_precision(images, n_classes), len(fates.escaped)
    one = np.ones(n, dtype=np.bool_)
    intervals = {
        "map50": weighted_interval(groups, map50_statistic(images, n_classes)),
        "box_escape_rate": _box_interval(groups, fates, fates.escaped, one),
        "box_miss_rate": _box_interval(groups, fates, fates.missed, one),
    }
    alarms = int((fates.records.false_scores >= card.limit).sum())
    return dataclasses.replace(
        card,
        has_boxes=True,
        map50=means.map50,
        map50_95=means.map50_95,
        map_by_area=means.map_by_area,
        per_class=dict(_per_class(manifest, means, fates)),
        boxes=n,
        box_escapes=int(fates.escaped.sum()),
        box_escape_rate=_share(int(fates.escaped.sum()), n),
        box_misses=int(fates.missed.sum()),
        box_miss_rate=_share(int(fates.missed.sum()), n),
        by_size=tuple(_by_size(manifest, fates)),
        by_area=dict(_by_area(fates)),
        false_per_picture=alarms / card.n,
        froc=tuple(_froc(groups, fates.records)),
        froc_curve=froc_curve(fates.records),
        intervals_95={**card.intervals_95, **{k: e for k, v in intervals.items() if (e := _ends(v)) is not None}},
    )


def _severities(
    outcomes: Sequence[Outcome], manifest: Manifest, fates: BoxFates | None
) -> Iterator[tuple[str, Counts]]:
    groups, passed = [group_of(o) for o in outcomes], np.array([o.decision is Decision.OK for o in outcomes])
    for severity in ("critical", "major", "minor"):
        own = np.array([o.severity == severity for o in outcomes])
        parts, escapes = int(own.sum()), int((own & passed).sum())
        boxes, escaped, missed, ends = 0, 0, 0, None
        if fates is not None:
            mine = np.array([manifest.classes[k].severity == severity for k in fates.classes], dtype=np.bool_)
            boxes, escaped, missed = (int((mine & of).sum()) for of in (mine, fates.escaped, fates.missed))
            ends = _ends(_box_interval(groups, fates, fates.escaped & mine, mine)) if boxes else None
        if parts or boxes:
            yield (
                severity,
                Counts(
                    parts=parts,
                    escapes=escapes,
                    escape_rate=_share(escapes, parts),
                    escape_upper_95=upper_bound(escapes, parts) if parts else None,
                    escape_95=_ends(group_interval(groups, _columns(own & passed, own), ratio)),
                    boxes=boxes,
                    box_escapes=escaped,
                    box_escape_rate=_share(escaped, boxes),
                    box_escape_95=ends,
                    box_misses=missed,
                    box_miss_rate=_share(missed, boxes),
                ),
            )


def _per_class(manifest: Manifest, means: MeanPrecision, fates: BoxFates) -> Iterator[tuple[str, DetectedClass]]:
    for k, (cls, entry) in enumerate(zip(manifest.classes, means.per_class, strict=True)):
        own = fates.classes == k
        yield (
            cls.name,
            DetectedClass(
                severity=cls.severity,
                ap50=entry.ap50,
                ap50_95=entry.ap50_95,
                support=entry.support,
                escape_rate=_share(int((own & fates.escaped).sum()), int(own.sum())),
            ),
        )


def _by_size(manifest: Manifest, fates: BoxFates) -> Iterator[SizeCounts]:
    unit = _unit(manifest)
    pitch = 1.0 if manifest.detection is None or manifest.detection.pixel_mm is None else manifest.detection.pixel_mm
    sizes, edges = fates.sides * pitch, SIZE_EDGES[unit]
    for low, high in itertools.zip_longest(edges, edges[1:]):
        own = (sizes >= low) & (sizes < (np.inf if high is None else high))
        if own.any():
            yield _sized(low, high, own, fates)


def _by_area(fates: BoxFates) -> Iterator[tuple[str, SizeCounts]]:
    names = [name for name in AREAS if name != "all"]
    for name in names:
        low, high = AREAS[name]
        own = (fates.areas >= low) & ((fates.areas < high) | (name == names[-1]))
        if own.any():
            yield name, _sized(low, None if name == names[-1] else high, own, fates)


def _sized(low: float, high: float | None, own: NDArray[np.bool_], fates: BoxFates) -> SizeCounts:
    n, escapes, misses = (int((own & of).sum()) for of in (own, fates.escaped, fates.missed))
    return SizeCounts(
        low=low, high=high, boxes=n, escapes=escapes, escape_rate=escapes / n, misses=misses, miss_rate=misses / n
    )


def _froc(groups: Sequence[str], records: BoxRecords) -> Iterator[FrocPoint]:
    if not len(records.stopped):
        return
    values = sensitivities(records, np.ones((1, records.n_images)))[0].tolist()
    found = weighted_intervals(groups, functools.partial(sensitivities, records))
    for at, value, interval in zip(FALSE_PER_PICTURE, values, found, strict=True):
        yield FrocPoint(false_per_picture=at, sensitivity=value, sensitivity_95=_ends(interval))


def _notes(card: DetectionScorecard) -> Iterator[str]:
    if not card.has_boxes:
        yield "this set has labels but no boxes: only what became of whole parts is known, nothing of where defects are"
    elif not card.boxes:
        yield "no box of this set counts: nothing is known of how well defects are found"
    if not card.goods:
        yield "this set has no good parts: nothing is known of overkill"
    if not card.defects:
        yield "this set has no defective parts: nothing is known of escapes"


def _box_interval(
    groups: Sequence[str], fates: BoxFates, events: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> Interval | None:
    """Of a share of boxes; those of one picture, and pictures of one part, are drawn together."""
    if not len(counted):
        return None
    return group_interval([groups[i] for i in fates.records.images], _columns(events, counted), ratio)


def _columns(events: NDArray[np.bool_], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.column_stack([events, counted]).astype(np.float64)


def _ends(found: Interval | None) -> Ends | None:
    return None if found is None else found.ends()


def _unit(manifest: Manifest) -> str:
    return "px" if manifest.detection is None or manifest.detection.pixel_mm is None else "mm"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
