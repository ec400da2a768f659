"""A detector's scorecard: which defects were found, which parts would have been passed, which were stopped for nothing.

Three kinds of figures stand side by side. *map50* and *map50_95* tell how well boxes are drawn and ranked, and are
there to be compared with other people's; every finding counts for them. *Escapes, overkill and review* are of parts, by
the bundle's own limits, as a classifier's: a part escapes when it has a defect and is judged ok. *Box escapes* are of
outlined defects: one escapes when no finding that reaches the lower limit would have made anybody look there.

A picture that could not be judged was stopped: neither it nor its boxes escape. For map50 and FROC it found nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from agent.bundle.manifest import Severity
from optimize.outcomes import Unjudged

__all__ = ["Counts", "DetectedClass", "DetectionScorecard", "FrocPoint", "SizeCounts", "failure_of"]

Ends = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetectedClass:
    """One class.

    Attributes:
        severity: how bad it is.
        ap50: average precision at an overlap of 0.5; None when nothing of it is outlined.
        ap50_95: the mean over COCO's ten thresholds; None likewise.
        support: outlined boxes that count.
        escape_rate: share of them that no part was stopped for; None without any.
    """

    severity: Severity
    ap50: float | None
    ap50_95: float | None
    support: int
    escape_rate: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Defective parts and outlined boxes of one severity; a rate over nothing is None.

    Attributes:
        parts: pictures of this severity (of their worst defect).
        escapes: those judged ok.
        escape_rate: escapes / parts.
        escape_upper_95: it lies below this with 95 % confidence (Clopper-Pearson), for parts like these.
        escape_95: where it lies with 95 % confidence, by group.
        boxes: outlined boxes of this severity.
        box_escapes: those that no part was stopped for.
        box_escape_rate: box_escapes / boxes.
        box_escape_95: where it lies, by group.
        box_misses: those without a finding of their class and place (IoU 0.5) that reaches the lower limit.
        box_miss_rate: box_misses / boxes.
    """

    parts: int
    escapes: int
    escape_rate: float | None
    escape_upper_95: float | None
    escape_95: Ends | None
    boxes: int
    box_escapes: int
    box_escape_rate: float | None
    box_escape_95: Ends | None
    box_misses: int
    box_miss_rate: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SizeCounts:
    """Outlined boxes of one range of sizes.

    Attributes:
        low: smallest size, included.
        high: where it ends, not included; None is without end.
        boxes: how many there are.
        escapes: those that no part was stopped for.
        escape_rate: escapes / boxes.
        misses: those without a finding of their class and place.
        miss_rate: misses / boxes.
    """

    low: float
    high: float | None
    boxes: int
    escapes: int
    escape_rate: float
    misses: int
    miss_rate: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrocPoint:
    """One point of the FROC curve.

    Attributes:
        false_per_picture: no more false boxes than so.
        sensitivity: share of outlined defects that parts are stopped for at that limit.
        sensitivity_95: where it lies with 95 % confidence, by group.
    """

    false_per_picture: float
    sensitivity: float
    sensitivity_95: Ends | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DetectionScorecard:
    """What came out; truthy when every gate holds. A figure that nothing is known of is None, never 0.

    Attributes:
        n: pictures, those that could not be judged included.
        groups: parts that they show; each picture without a group is one.
        classes: the bundle's, in order.
        has_boxes: whether the set has outlined boxes; without, everything of boxes is None or empty.
        map50: mean average precision at an overlap of 0.5, COCO's protocol, over all findings.
        map50_95: the mean over COCO's ten thresholds.
        map_by_area: `map50_95` by COCO's `small`, `medium` and `large`.
        per_class: by class.
        defects: defective parts.
        escapes: those judged ok.
        escape_rate: escapes / defects, the same figure as a classifier's.
        escape_upper_95: it lies below this with 95 % confidence (Clopper-Pearson), for parts like these.
        goods: good parts.
        overkills: those judged defect.
        overkill_rate: overkills / goods.
        review_rate: share of pictures judged review.
        decisions: pictures by decision, all four.
        unjudged: pictures that could not be judged.
        by_severity: critical, major and minor, where there are any.
        boxes: outlined boxes that count.
        box_escapes: those that no part was stopped for.
        box_escape_rate: box_escapes / boxes.
        box_misses: those without a finding of their class and place.
        box_miss_rate: box_misses / boxes.
        size_unit: of `by_size`: `mm` where the pixel pitch is known, else `px`; of the longer side.
        by_size: by the longer side.
        by_area: by COCO's `small`, `medium` and `large`, where there are any; edges in square pixels.
        false_per_picture: false boxes that reach the lower limit, per picture.
        froc: the curve at LUNA16's seven points.
        froc_curve: all of it: false boxes per picture, share of defects.
        limit: the bundle's lower limit: what it passes lies below.
        p50_ms: median of preprocessing, inference and decoding; None when nothing was judged.
        p99_ms: 99th percentile of the same.
        intervals_95: figure to where it lies with 95 % confidence, by bootstrap over groups.
        notes: what this set can't tell, in words.
        failures: gates that do not hold, in words.
    """

    n: int
    groups: int
    classes: tuple[str, ...]
    has_boxes: bool = False
    map50: float | None = None
    map50_95: float | None = None
    map_by_area: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    per_class: Mapping[str, DetectedClass] = dataclasses.field(default_factory=dict)
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
    by_severity: Mapping[str, Counts] = dataclasses.field(default_factory=dict)
    boxes: int | None = None
    box_escapes: int | None = None
    box_escape_rate: float | None = None
    box_misses: int | None = None
    box_miss_rate: float | None = None
    size_unit: str
    by_size: tuple[SizeCounts, ...] = ()
    by_area: Mapping[str, SizeCounts] = dataclasses.field(default_factory=dict)
    false_per_picture: float | None = None
    froc: tuple[FrocPoint, ...] = ()
    froc_curve: tuple[tuple[float, float], ...] = ()
    limit: float
    p50_ms: float | None
    p99_ms: float | None
    intervals_95: Mapping[str, Ends]
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def overkill_per_1000(self) -> float | None:
        """Good parts judged defect, of 1,000; None without good parts."""
        return None if self.overkill_rate is None else 1000 * self.overkill_rate

    def gated(self, *, min_map50: float | None) -> DetectionScorecard:
        """The same with gates applied.

        Args:
            min_map50: smallest map50 that will do, 0 to 1; None sets no gate.
        """
        failure = failure_of(self.map50, min_map50)
        return self if failure is None else dataclasses.replace(self, failures=(*self.failures, failure))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`; `image_escape_rate` is `escape_rate`, by the name that says of what it is."""
        values = dataclasses.asdict(self)
        values["image_escape_rate"] = self.escape_rate
        values["overkill_per_1000"] = self.overkill_per_1000
        values["errors"] = values.pop("unjudged")
        times = {"p50": values.pop("p50_ms"), "p99": values.pop("p99_ms")}
        values["latency_ms"] = {key: None if value is None else round(value, 3) for key, value in times.items()}
        return values


def failure_of(map50: float | None, least: float | None) -> str | None:
    """A gate on map50 that does not hold, in words; a figure that nobody knows holds none."""
    if least is None or (map50 is not None and map50 >= least):
        return None
    return f"map50: got {'none' if map50 is None else f'{map50:.4f}'}, expected at least {least:.4f}"
