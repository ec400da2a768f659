"""Policy and Verdict: what we decide about a part, and why, in words.

`Policy.judge` is pure: the same inspection gives the same verdict. Anything that is not a sound result is `error`; a
score that is not a number is never compared with a limit. A classifier's part is judged by its defect score, a
detector's by each of its findings: see `agent.counting`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import time
from collections.abc import Mapping, Sequence

from agent.bundle.manifest import Manifest, PolicySpec
from agent.config import PolicyConfig, ZoneConfig
from agent.counting import Counted, FindingCounter
from agent.errors import ConfigError
from agent.frame import Stamp
from agent.inspection import Finding, Inspection
from agent.zones import Zone, is_simple

__all__ = ["Decision", "Policy", "Verdict", "policy_from_config", "policy_limits"]


class Decision(enum.Enum):
    """The four answers, with their code for registers; 0 is kept free so that a zeroed register never means ok."""

    OK = "ok"
    DEFECT = "defect"
    REVIEW = "review"
    ERROR = "error"

    @property
    def code(self) -> int:
        """1 ok, 2 defect, 3 review, 4 error."""
        return _CODES[self]

    @property
    def quality(self) -> int:
        """OPC quality: 192 good, 64 uncertain, 0 bad."""
        return _QUALITIES[self]


_CODES = {Decision.OK: 1, Decision.DEFECT: 2, Decision.REVIEW: 3, Decision.ERROR: 4}
_QUALITIES = {Decision.OK: 192, Decision.DEFECT: 192, Decision.REVIEW: 64, Decision.ERROR: 0}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision about one part.

    Attributes:
        decision: one of four.
        reason: why, in words.
        inspection: what it rests on.
        findings: what is told of it, the foremost first: every class (classify); the findings that reach the lower
            limit that holds for them, each with its zone (detect). Empty for `error`.
        top: the finding that decided; None for `error`, and for a good part of a detector.
        score: the defect score that was compared (of a detector: of the finding that decided, else the highest that
            counts, else 0); None for `error`, and for a part that was not found in its picture (`review`).
        threshold: the limit that it was compared with; None where there is no score.
        zones: those of the policy, to be drawn.
        decided: when.
        decide_ms: what deciding took.
        late_ms: how long after its deadline it was decided; the fast outputs were told `error` then. None in time.
    """

    decision: Decision
    reason: str
    inspection: Inspection
    findings: tuple[Finding, ...] = ()
    top: Finding | None = None
    score: float | None = None
    threshold: float | None = None
    zones: tuple[Zone, ...] = ()
    decided: Stamp
    decide_ms: float = 0.0
    late_ms: float | None = None


def policy_limits(config: PolicyConfig | ZoneConfig, default: PolicySpec, where: str = "policy") -> PolicySpec:
    """The default decision limits, or the configuration's in their place.

    Args:
        config: of the policy, or of one of its zones.
        default: the bundle's limits; of a zone, the policy's.
        where: what the configuration calls it.

    Raises:
        ConfigError: the two limits would stand the wrong way round.
    """
    defect_above = default.defect_above if config.defect_above is None else config.defect_above
    if config.review_above is not None and config.review_above > defect_above:
        raise ConfigError(
            f"{where}.review_above: got {config.review_above}, expected at most {where}.defect_above ({defect_above})",
            hint=f"give {where}.defect_above too: an empty key keeps the limit that holds without it",
        )
    review_above = min(default.review_above, defect_above) if config.review_above is None else config.review_above
    return PolicySpec(defect_above=defect_above, review_above=review_above)


def policy_from_config(config: PolicyConfig, manifest: Manifest) -> Policy:
    """The policy of one bundle on one station: what every program that judges uses.

    Args:
        config: the station's; `PolicyConfig()` judges as the bundle does.
        manifest: of the bundle.

    Raises:
        ConfigError: limits the wrong way round; zones or a pixel pitch for a classifier, which has no boxes; a limit
            under the score from which the detector gives findings at all; a smallest size without a pixel pitch.
    """
    limits = policy_limits(config, manifest.policy)
    detection = manifest.detection
    if detection is None:
        for key, value in (("zones", config.zones), ("pixel_mm", config.pixel_mm)):
            if value:
                raise ConfigError(
                    f"policy.{key}: this bundle is a classifier, it judges the whole picture and finds no boxes",
                    hint=f"take policy.{key} out, or use a detector's bundle",
                )
        return Policy(limits)
    zones = tuple(_zone(zone, limits) for zone in config.zones)
    _check_reach("policy", config, detection.score_above)
    for zone in config.zones:
        _check_reach(f"policy.zones: {zone.name}", zone, detection.score_above)
    if config.pixel_mm is None and detection.pixel_mm is None:
        for zone in config.zones:
            if zone.min_size_mm:
                raise ConfigError(
                    f"policy.zones: {zone.name}: min_size_mm: got {zone.min_size_mm:g}, but nobody said how large a "
                    "pixel is",
                    hint="give policy.pixel_mm, one pixel of the frame in millimetres",
                )
    sizes = {c.name: c.min_size_mm for c in manifest.classes if c.min_size_mm is not None}
    return Policy(limits, zones=zones, min_sizes_mm=sizes)


def _zone(config: ZoneConfig, limits: PolicySpec) -> Zone:
    if config.box is not None:
        x, y, width, height = config.box
        points: tuple[tuple[float, float], ...] = (x, y), (x + width, y), (x + width, y + height), (x, y + height)
    else:
        points = tuple((point[0], point[1]) for point in config.polygon or ())
        if not is_simple(points):
            raise ConfigError(f"policy.zones: {config.name}: polygon: its edges cross or touch, or it has no area")
    return Zone(
        name=config.name,
        points=points,
        limits=policy_limits(config, limits, f"policy.zones: {config.name}"),
        min_size_mm=config.min_size_mm,
        is_ignored=config.ignore,
    )


def _check_reach(where: str, config: PolicyConfig | ZoneConfig, score_above: float) -> None:
    """A limit under the detector's own would promise what it can't keep; 0 means every part, found or not."""
    for key in ("defect_above", "review_above"):
        limit = getattr(config, key)
        if limit is not None and 0 < limit < score_above:
            raise ConfigError(
                f"{where}.{key}: got {limit:g}, but this bundle's detector gives no findings under {score_above:g}",
                hint=f"set it to {score_above:g} or more, or rebuild the bundle with a lower score_above",
            )


_DECISIONS = (Decision.OK, Decision.REVIEW, Decision.DEFECT)


class Policy:
    """Turns inspections into verdicts: by two limits on the defect score, or on each finding's where it lies.

    Make it with `policy_from_config`, which knows what a bundle needs.

    Args:
        limits: the bundle's defaults, or what the configuration put in their place.
        zones: with limits of their own (detect).
        min_sizes_mm: class to the size under which its findings are no defects (detect).
    """

    def __init__(
        self, limits: PolicySpec, *, zones: Sequence[Zone] = (), min_sizes_mm: Mapping[str, float] | None = None
    ) -> None:
        self.limits = limits
        self.zones = tuple(zones)
        self._counter = FindingCounter(limits, self.zones, min_sizes_mm or {})
        minded = [zone.limits for zone in self.zones if not zone.is_ignored]
        self._least_limit = min(each.review_above for each in (limits, *minded))

    def judge(self, inspection: Inspection) -> Verdict:
        """Decide. Never raises; never ok without a sound score."""
        decided = Stamp.now()
        if inspection.fault is None and inspection.not_found is not None:
            return Verdict(
                decision=Decision.REVIEW,
                reason=inspection.not_found,
                inspection=inspection,
                zones=self.zones,
                decided=decided,
            )
        fault = _fault(inspection) or _zone_fault(inspection, self.zones)
        if fault is not None:
            return Verdict(decision=Decision.ERROR, reason=fault, inspection=inspection, decided=decided)
        judge = self._judge_findings if inspection.task == "detect" else self._judge_score
        return judge(inspection, decided)

    def _judge_score(self, inspection: Inspection, decided: Stamp) -> Verdict:
        """A classifier's part: by its defect score."""
        assert inspection.defect_score is not None
        score, findings = inspection.defect_score, inspection.findings
        worst = next((f for f in findings if f.severity != "ok"), None)
        seen = "defect" if worst is None else f"{worst.class_name} {worst.score:.2f}"
        high, low = self.limits.defect_above, self.limits.review_above
        if score >= high:
            decision, threshold = Decision.DEFECT, high
            reason = f"{seen}: defect score {score:.2f} reaches the limit {high:.2f}"
        elif score >= low:
            decision, threshold = Decision.REVIEW, low
            reason = f"{seen}: defect score {score:.2f} between {low:.2f} and {high:.2f}"
        else:
            decision, threshold = Decision.OK, low
            reason = f"good: defect score {score:.2f} under {low:.2f}"
        top = findings[0] if decision is Decision.OK or worst is None else worst
        return Verdict(
            decision=decision,
            reason=reason,
            inspection=inspection,
            findings=findings,
            top=top,
            score=score,
            threshold=threshold,
            decided=decided,
            decide_ms=_since_ms(decided),
        )

    def _judge_findings(self, inspection: Inspection, decided: Stamp) -> Verdict:
        """A detector's part: by the finding that gives the worst decision."""
        counted = self._counter.count(inspection.findings)
        told = [one for one in counted if one.level > 0]
        # A limit of 0 asks for every part, found or not.
        least = (self.limits.review_above <= 0) + (self.limits.defect_above <= 0)
        deciding = told[0] if told and told[0].level >= least else None
        nearest = deciding or max(counted, key=lambda one: one.finding.score, default=None)
        decision = _DECISIONS[deciding.level if deciding else least]
        is_cut = decision is Decision.OK and 0 < inspection.cut_at >= self._least_limit
        limits = self.limits if nearest is None or (least and deciding is None) else nearest.limits
        threshold = limits.defect_above if decision is Decision.DEFECT else limits.review_above
        if deciding is not None:
            reason = _because(decision, deciding, more=len(told) - 1)
        else:
            reason = _without_finding(decision, nearest, uncounted=len(inspection.findings) - len(counted))
        if is_cut:
            decision, threshold = Decision.REVIEW, self._least_limit
            reason = (
                f"more was found than the {len(inspection.findings)} findings that are kept: others of a score up to "
                f"{inspection.cut_at:.2f} were not looked at"
            )
        return Verdict(
            decision=decision,
            reason=reason,
            inspection=inspection,
            findings=tuple(one.finding for one in told),
            top=None if deciding is None else deciding.finding,
            score=0.0 if nearest is None else nearest.finding.score,
            threshold=threshold,
            zones=self.zones,
            decided=decided,
            decide_ms=_since_ms(decided),
        )


def _since_ms(began: Stamp) -> float:
    return (time.monotonic_ns() - began.mono_ns) / 1e6


def _because(decision: Decision, deciding: Counted, *, more: int) -> str:
    high, low = deciding.limits.defect_above, deciding.limits.review_above
    compared = f"reaches the limit {high:.2f}" if decision is Decision.DEFECT else f"between {low:.2f} and {high:.2f}"
    others = f"; {more} more finding{'s' * (more > 1)}" if more else ""
    return f"{_described(deciding.finding)}: {compared}{others}"


def _without_finding(decision: Decision, nearest: Counted | None, *, uncounted: int) -> str:
    if decision is not Decision.OK:
        return f"no finding decides: the limit 0 makes every part a {decision.value}"
    if nearest is not None:
        return f"good: {_described(nearest.finding)} under {nearest.limits.review_above:.2f}"
    others = f" that counts ({uncounted} of no severity, too small or ignored)" if uncounted else ""
    return f"good: no finding{others}"


def _described(finding: Finding) -> str:
    size = "" if finding.size_mm is None else f", {finding.size_mm:.3g} mm"
    zone = "" if finding.zone is None else f", zone {finding.zone}"
    return f"{finding.class_name} {finding.score:.2f}{size}{zone}"


def _fault(inspection: Inspection) -> str | None:
    """Why there is no sound result; None when there is one."""
    if inspection.fault is not None:
        return f"{inspection.fault.stage}: {inspection.fault.reason}"
    if inspection.frame is None:
        return "capture: no frame and no reason why"
    # A detector may find nothing; a classifier always gives its classes.
    if inspection.defect_score is None or (inspection.task == "classify" and not inspection.findings):
        return "decode: the model gave no result"
    if not math.isfinite(inspection.defect_score) or not 0 <= inspection.defect_score <= 1:
        return f"decode: the defect score is {inspection.defect_score}, not a number from 0 to 1"
    if inspection.task == "detect":
        return next((fault for f in inspection.findings if (fault := _finding_fault(f)) is not None), None)
    return None


def _zone_fault(inspection: Inspection, zones: Sequence[Zone]) -> str | None:
    """Which zone was drawn for larger pictures: its limits would hold somewhere else, or nowhere."""
    assert inspection.frame is not None
    height, width = inspection.frame.image.shape[:2]
    for zone in zones:
        right, bottom = (max(point[axis] for point in zone.points) for axis in (0, 1))
        if right > width or bottom > height:
            return (
                f"policy.zones: {zone.name} reaches to {right:g}, {bottom:g}, but the picture has {width} x {height} "
                "px: give the zone in pixels of this camera's pictures"
            )
    return None


def _finding_fault(finding: Finding) -> str | None:
    numbers = (finding.score, *(finding.box_px or ()), *(() if finding.size_mm is None else (finding.size_mm,)))
    if finding.box_px is None or not all(map(math.isfinite, numbers)) or not 0 <= finding.score <= 1:
        return f"decode: a finding of {finding.class_name} with score {finding.score} and box {finding.box_px}"
    return None
