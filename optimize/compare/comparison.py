"""Two or more models on the same units: limits, misses, bounds, tests and the recommendation. Pure."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle.manifest import Task
from optimize.compare.decision import Choice, Contender, Question, choose, noun_of
from optimize.compare.limits import Curve, allowed_at, common_rate, curve_of, limit_at, rate_at
from optimize.compare.paired import escape_upper, holm, net_by_group, paired_p, smallest_difference
from optimize.compare.timing import Latency
from optimize.compare.units import Counted, Judged, Unit, Units
from optimize.intervals import group_interval, ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Comparison", "ModelResult", "Operating", "compare", "operate"]

USELESS_OVERKILL = 0.5
"""Share of good parts from which a limit is no limit that a line would run at."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operating:
    """At which limits the models are compared.

    Attributes:
        limits: by model.
        rate: the common overkill (or false boxes per picture); None where each stands at its own limit.
        source: where the limits come from, in words: `val`, `test`, `own`.
        allowed: how many good parts (or false boxes) that rate is there; None where each stands at its own limit.
        exposures: of so many good parts (or pictures).
    """

    limits: Mapping[str, float]
    rate: float | None
    source: str
    allowed: int | None = None
    exposures: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """One model at its limit.

    Attributes:
        name: of the model.
        task: what it does.
        n: units that count.
        missed: those of them that pass.
        escape_rate: missed / n.
        escape_95: where the escape rate lies with 95 % confidence, two-sided, by group.
        escape_upper_95: it lies below this with 95 % confidence, one-sided.
        overkill_rate: good parts that are stopped; None without good parts.
        false_boxes_per_image: findings that overlap no box, per picture; None where the unit is the part.
        limit: what its defect score (or a finding's score) must reach to be stopped.
        own_limit: what its own policy has there.
        unjudged: images that it could not judge; they count as stopped.
        map50: mAP at IoU 0.5; None for a classifier, and on a set without boxes.
        latency: on this machine; None when it could not be timed.
        curve: every other limit.
    """

    name: str
    task: Task
    n: int
    missed: int
    escape_rate: float
    escape_95: tuple[float, float]
    escape_upper_95: float
    overkill_rate: float | None
    false_boxes_per_image: float | None
    limit: float
    own_limit: float
    unjudged: int
    map50: float | None
    latency: Latency | None
    curve: Curve

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        left_out = {"curve", "latency"}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        latency = self.latency
        values["latency_ms"] = None if latency is None else round(latency.median, 3)
        values["latency_quartiles_ms"] = None if latency is None else [round(latency.low, 3), round(latency.high, 3)]
        return values | {"escape_95": list(self.escape_95)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came out.

    Attributes:
        unit: part or box.
        severity: which defects count.
        n: units that count.
        groups: parts, lots or strips that they are of.
        exposures: good parts, or pictures where the unit is the box.
        operating: at which limits, and where these come from.
        models: in the order in which they were given.
        choice: the recommendation.
        smallest_difference: from how many fewer missed on the recommended model would have been shown better than the
            next one; None where these parts could have shown nothing.
        notes: what whoever decides should know, one sentence each.
    """

    unit: Unit
    severity: Counted
    n: int
    groups: int
    exposures: int
    operating: Operating
    models: tuple[ModelResult, ...]
    choice: Choice
    smallest_difference: int | None
    notes: tuple[str, ...]

    @property
    def noun(self) -> str:
        """What is counted, in words."""
        return noun_of(self.unit, self.severity, self.n)

    @property
    def rate(self) -> float | None:
        """The common overkill (or false boxes per picture); None where each stands at its own limit."""
        return self.operating.rate

    @property
    def limits_from(self) -> str:
        """Where the limits come from."""
        return self.operating.source

    @property
    def allowance(self) -> str | None:
        """What every model may do at its limit, in words; None where each stands at its own limit."""
        at, among = self.operating, "" if self.limits_from == "the same images" else f" of {self.limits_from}"
        if at.allowed is None:
            return None
        most = f"at most {at.allowed}" if at.allowed else "none"
        if self.unit == "box":
            boxes = "false box" if at.allowed == 1 else "false boxes"
            most = most if at.allowed else "no"
            return f"{most} {boxes} on {_counted(at.exposures, 'picture')}{among}"
        return f"{most} of {_counted(at.exposures, 'good part')}{among}"

    @property
    def limits_text(self) -> str:
        """How each model's limit was set, in one plain sentence."""
        them = "both" if len(self.models) == 2 else "all"
        if self.allowance is None:
            return "No part is good here, so each model has the limit of its own policy."
        if self.unit == "box":
            return f"Each model's limit is set so that {them} show equally many false boxes: {self.allowance}."
        return f"Each model's limit is set so that {them} reject the same share of good parts: {self.allowance}."

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "recommended": self.choice.name,
            "reason": self.choice.reason,
            "is_shown": self.choice.is_shown,
            "p_value": self.choice.p_value,
            "against": self.choice.against,
            "unit": self.unit,
            "severity": self.severity,
            "n": self.n,
            "groups": self.groups,
            "common_rate": self.rate,
            "limits_from": self.limits_from,
            "limits_allow": self.operating.allowed,
            "limits_of": self.operating.exposures,
            "smallest_difference": self.smallest_difference,
            "models": [model.to_json() for model in self.models],
            "notes": list(self.notes),
        }


def operate(units: Units, reference: Units | None, rate: float | None, source: str) -> Operating:
    """Choose each model's limit.

    Args:
        units: what is compared; gives the models' own limits where there is nothing to set others by.
        reference: what the limits are chosen on; None leaves every model at its own.
        rate: overkill as a share of good parts (or false boxes per picture); None takes the largest that a model's own
            limit costs there.
        source: what the reference is called.
    """
    if reference is None or not reference.exposures:
        return Operating(limits={j.name: j.own_limit for j in units.judged}, rate=None, source="own")
    if rate is None:
        rate = common_rate(reference.judged, reference.exposures)
    limits = {j.name: limit_at(j.alarms, reference.exposures, rate, j.floor) for j in reference.judged}
    exposures = reference.exposures
    return Operating(limits=limits, rate=rate, source=source, allowed=allowed_at(rate, exposures), exposures=exposures)


def compare(
    units: Units,
    operating: Operating,
    *,
    latency: Mapping[str, Latency | None] | None = None,
    map50: Mapping[str, float | None] | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Count what each model misses at its limit, and recommend one.

    Args:
        units: at least one that counts, of two or more models with different names.
        operating: their limits.
        latency: by model.
        map50: by model.
        notes: what is known already.
    """
    latency, map50 = latency or {}, map50 or {}
    missed = {j.name: j.scores < operating.limits[j.name] for j in units.judged}
    models = tuple(
        _model(units, j, operating.limits[j.name], latency.get(j.name), map50.get(j.name)) for j in units.judged
    )
    choice = _choice(units, operating, models, missed)
    pair = sorted((choice.name, choice.against), key=lambda name: int(missed[name].sum()))
    smallest = smallest_difference(net_by_group(missed[pair[0]], missed[pair[1]], units.groups))
    return Comparison(
        unit=units.unit,
        severity=units.counted,
        n=len(units.groups),
        groups=len(set(units.groups)),
        exposures=units.exposures,
        operating=operating,
        models=models,
        choice=choice,
        smallest_difference=smallest,
        notes=(*notes, *_notes(units, models, choice, smallest)),
    )


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _choice(
    units: Units, operating: Operating, models: Sequence[ModelResult], missed: Mapping[str, NDArray[np.bool_]]
) -> Choice:
    question = Question(
        n=len(units.groups),
        unit=units.unit,
        counted=units.counted,
        p_values=_p_values(units, missed),
        is_equal=operating.rate is not None,
    )
    contenders = [
        Contender(name=m.name, missed=m.missed, latency=m.latency, map50=m.map50, unjudged=m.unjudged) for m in models
    ]
    return choose(contenders, question)


def _model(units: Units, judged: Judged, limit: float, latency: Latency | None, map50: float | None) -> ModelResult:
    missed = judged.scores < limit
    counts = np.column_stack([missed, np.ones(len(missed))]).astype(np.float64)
    interval = group_interval(units.groups, counts, ratio)
    assert interval is not None
    rate = rate_at(judged.alarms, units.exposures, limit) if units.exposures else None
    return ModelResult(
        name=judged.name,
        task=judged.task,
        n=len(missed),
        missed=int(missed.sum()),
        escape_rate=float(missed.mean()),
        escape_95=interval.ends(),
        escape_upper_95=escape_upper(missed, units.groups),
        overkill_rate=rate if units.unit == "part" else None,
        false_boxes_per_image=rate if units.unit == "box" else None,
        limit=limit,
        own_limit=judged.own_limit,
        unjudged=judged.unjudged,
        map50=map50,
        latency=latency,
        curve=curve_of(units, judged),
    )


def _p_values(units: Units, missed: Mapping[str, NDArray[np.bool_]]) -> dict[tuple[str, str], float]:
    """Holm over all pairs: which one is best is seen on the same units, so none of the pairs was chosen before."""
    pairs = list(itertools.combinations(missed, 2))
    raised = holm({pair: paired_p(net_by_group(missed[pair[0]], missed[pair[1]], units.groups)) for pair in pairs})
    return raised | {(second, first): p for (first, second), p in raised.items()}


def _notes(units: Units, models: Sequence[ModelResult], choice: Choice, smallest: int | None) -> Iterator[str]:
    noun, n = noun_of(units.unit, units.counted, len(units.groups)), len(units.groups)
    yield from _own_limit(units, next(model for model in models if model.name == choice.name))
    if any((model.overkill_rate or 0) >= USELESS_OVERKILL for model in models):
        yield "at these limits most good parts are rejected, which says little: give --overkill 0.05, or another share"
    if smallest is None:
        yield f"these {n} {noun} are too few to show any difference between {choice.name} and {choice.against}"
    else:
        yield (
            f"these {n} {noun} can show a difference of {smallest} missed or more between {choice.name} and "
            f"{choice.against} (two-sided, 5 %)"
        )
    if (apart := _rates_apart(units, models)) is not None:
        yield f"{apart}: the limits did not carry over, so a part of the difference may be theirs"
    if units.has_groups:
        yield f"tests and bounds are by group: {len(set(units.groups))} groups"
    if len(models) > 2:
        yield "p-values are raised for looking at all pairs (Holm)"


def _own_limit(units: Units, chosen: ModelResult) -> Iterator[str]:
    """What the recommended bundle does as it was built, where the comparison had it stand elsewhere."""
    judged = next(judged for judged in units.judged if judged.name == chosen.name)
    missed = int((judged.scores < chosen.own_limit).sum())
    if missed == chosen.missed:
        return
    own = f"{chosen.name} stands at {chosen.limit:.3f} here; with its own review_above, {chosen.own_limit:g}, it"
    if missed > chosen.missed:
        setting = max(math.floor(1000 * chosen.limit) / 1000, judged.floor)
        yield f"{own} misses {missed}: set policy.review_above to {setting:g} on the device, or build it with that"
        return
    rate = rate_at(judged.alarms, units.exposures, chosen.own_limit)
    costs = f"shows {rate:.2f} false boxes per picture" if units.unit == "box" else f"rejects {rate:.2%} of good parts"
    yield f"{own} misses {missed} and {costs}"


def _rates_apart(units: Units, models: Sequence[ModelResult]) -> str | None:
    """In words, where limits that were to give one rate gave others, by more than two standard errors."""
    rates = {m.name: m.overkill_rate if units.unit == "part" else m.false_boxes_per_image for m in models}
    counts = [round((rate or 0.0) * units.exposures) for rate in rates.values()]
    if max(counts) - min(counts) <= 2 * math.sqrt(max(counts) + min(counts)):
        return None
    is_box = units.unit == "box"
    shown = ", ".join(
        f"{name} {rate or 0.0:.2f}" if is_box else f"{name} {rate or 0.0:.2%}" for name, rate in rates.items()
    )
    return f"{'false boxes per picture' if is_box else 'overkill'} is not the same here ({shown})"
