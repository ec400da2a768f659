"""Policy and Verdict: what we decide about a part, and why, in words.

`Policy.judge` is pure: the same inspection gives the same verdict. Anything that is not a sound result is `error`; a
score that is not a number is never compared with a limit.
"""

from __future__ import annotations

import dataclasses
import enum
import math

from agent.bundle.manifest import PolicySpec
from agent.config import PolicyConfig
from agent.errors import ConfigError
from agent.frame import Stamp
from agent.inspection import Finding, Inspection

__all__ = ["Decision", "Policy", "Verdict", "policy_limits"]


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
        top: the finding that decided; None for `error`.
        score: the defect score that was compared; None for `error`.
        threshold: the limit that it was compared with; None for `error`.
        decided: when.
        decide_ms: what deciding took.
    """

    decision: Decision
    reason: str
    inspection: Inspection
    top: Finding | None = None
    score: float | None = None
    threshold: float | None = None
    decided: Stamp
    decide_ms: float = 0.0


def policy_limits(config: PolicyConfig, default: PolicySpec) -> PolicySpec:
    """The bundle's decision limits, or the configuration's in their place.

    Raises:
        ConfigError: the two limits would stand the wrong way round.
    """
    defect_above = default.defect_above if config.defect_above is None else config.defect_above
    if config.review_above is not None and config.review_above > defect_above:
        raise ConfigError(
            f"policy.review_above: got {config.review_above}, expected at most policy.defect_above ({defect_above})",
            hint="give policy.defect_above too: an empty key keeps the bundle's limit",
        )
    review_above = min(default.review_above, defect_above) if config.review_above is None else config.review_above
    return PolicySpec(defect_above=defect_above, review_above=review_above)


class Policy:
    """Turns inspections into verdicts by two limits on the defect score.

    Args:
        limits: the bundle's defaults, or what the configuration put in their place.
    """

    def __init__(self, limits: PolicySpec) -> None:
        self.limits = limits

    def judge(self, inspection: Inspection) -> Verdict:
        """Decide. Never raises; never ok without a sound score."""
        decided = Stamp.now()
        fault = self._fault(inspection)
        if fault is not None:
            return Verdict(decision=Decision.ERROR, reason=fault, inspection=inspection, decided=decided)
        assert inspection.defect_score is not None
        score, top = inspection.defect_score, inspection.findings[0]
        decision, threshold, reason = self._compare(score, inspection.findings)
        if decision is not Decision.OK:
            top = next((f for f in inspection.findings if f.severity != "ok"), top)
        return Verdict(
            decision=decision,
            reason=reason,
            inspection=inspection,
            top=top,
            score=score,
            threshold=threshold,
            decided=decided,
            decide_ms=(Stamp.now().mono_ns - decided.mono_ns) / 1e6,
        )

    def _compare(self, score: float, findings: tuple[Finding, ...]) -> tuple[Decision, float, str]:
        worst = next((f for f in findings if f.severity != "ok"), None)
        seen = "defect" if worst is None else f"{worst.class_name} {worst.score:.2f}"
        high, low = self.limits.defect_above, self.limits.review_above
        if score >= high:
            return Decision.DEFECT, high, f"{seen}: defect score {score:.2f} reaches the limit {high:.2f}"
        if score >= low:
            return Decision.REVIEW, low, f"{seen}: defect score {score:.2f} between {low:.2f} and {high:.2f}"
        return Decision.OK, low, f"good: defect score {score:.2f} under {low:.2f}"

    @staticmethod
    def _fault(inspection: Inspection) -> str | None:
        if inspection.fault is not None:
            return f"{inspection.fault.stage}: {inspection.fault.reason}"
        if inspection.frame is None:
            return "capture: no frame and no reason why"
        if not inspection.findings or inspection.defect_score is None:
            return "decode: the model gave no result"
        if not math.isfinite(inspection.defect_score) or not 0 <= inspection.defect_score <= 1:
            return f"decode: the defect score is {inspection.defect_score}, not a number from 0 to 1"
        return None
