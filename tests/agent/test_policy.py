"""The policy: `ok` only for a sound score under the limit; everything that is not a result is `error`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import Finding, PolicySpec
from agent.frame import Fault, Stage
from agent.inspection import BundleRef, Inspection
from agent.verdict import Decision, Policy
from tests.kit.frames import WHITE, frame_of, plain_image

LIMITS = PolicySpec(defect_above=0.5, review_above=0.2)
FRAME = frame_of(plain_image(WHITE))


def inspection(score: float | None, **changes: Any) -> Inspection:
    """An inspection of a picture that is good with 1 - score, else scratched."""
    known = score if score is not None and math.isfinite(score) else 0.5
    findings = [
        Finding(class_name="good", severity="ok", score=1 - known),
        Finding(class_name="scratch", severity="major", score=known),
    ]
    seen = Inspection(
        part=FRAME.part,
        frame=FRAME,
        fault=None,
        findings=tuple(sorted(findings, key=lambda f: -f.score)),
        defect_score=score,
        bundle=BundleRef(name="kit-1.0.0", digest="0" * 64),
        engine="none",
    )
    return dataclasses.replace(seen, **changes)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, -0.001, 1.001, 1e300])
def test_a_score_that_is_not_one_is_an_error(score: float) -> None:
    """NaN is under every limit and over none: compared, it would pass the part."""
    verdict = Policy(LIMITS).judge(inspection(score))

    assert verdict.decision is Decision.ERROR
    assert "not a number from 0 to 1" in verdict.reason
    assert (verdict.top, verdict.score, verdict.threshold) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"defect_score": None}, "the model gave no result"),
        ({"findings": ()}, "the model gave no result"),
        ({"frame": None}, "no frame"),
        ({"fault": Fault(part=FRAME.part, stage="infer", reason="the device is gone")}, "infer: the device is gone"),
        ({"fault": Fault(part=FRAME.part, stage="capture", reason="late"), "frame": None}, "capture: late"),
    ],
)
def test_an_inspection_without_a_result_is_an_error(changes: dict[str, Any], words: str) -> None:
    """Even when a good score stands beside the fault."""
    verdict = Policy(LIMITS).judge(inspection(0.0, **changes))

    assert verdict.decision is Decision.ERROR
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("score", "decision", "threshold"),
    [
        (0.0, Decision.OK, 0.2),
        (math.nextafter(0.2, 0), Decision.OK, 0.2),
        (0.2, Decision.REVIEW, 0.2),
        (math.nextafter(0.5, 0), Decision.REVIEW, 0.2),
        (0.5, Decision.DEFECT, 0.5),
        (1.0, Decision.DEFECT, 0.5),
    ],
)
def test_a_limit_belongs_to_the_worse_side(score: float, decision: Decision, threshold: float) -> None:
    """At the limit is over it."""
    verdict = Policy(LIMITS).judge(inspection(score))

    assert (verdict.decision, verdict.score, verdict.threshold) == (decision, score, threshold)


@pytest.mark.parametrize(
    ("limits", "score", "decision"),
    [
        (PolicySpec(defect_above=0.0, review_above=0.0), 0.0, Decision.DEFECT),
        (PolicySpec(defect_above=1.0, review_above=0.0), 0.0, Decision.REVIEW),
        (PolicySpec(defect_above=1.0, review_above=1.0), math.nextafter(1.0, 0), Decision.OK),
        (PolicySpec(defect_above=1.0, review_above=1.0), 1.0, Decision.DEFECT),
        (PolicySpec(defect_above=0.3, review_above=0.3), 0.3, Decision.DEFECT),
    ],
)
def test_limits_may_lie_at_the_ends_and_on_each_other(limits: PolicySpec, score: float, decision: Decision) -> None:
    """Equal limits leave no room for review; 0 passes nothing."""
    assert Policy(limits).judge(inspection(score)).decision is decision


UNIT = st.floats(0, 1)
STAGES: st.SearchStrategy[Stage] = st.sampled_from(["capture", "infer", "decode"])
ANY_FAULT = st.none() | st.builds(Fault, part=st.just(FRAME.part), stage=STAGES, reason=st.text(max_size=5))


@given(
    score=st.none() | UNIT | st.floats(),
    limits=st.tuples(UNIT, UNIT).map(sorted),
    fault=ANY_FAULT,
    has_frame=st.booleans(),
    has_findings=st.booleans(),
)
def test_ok_only_for_a_sound_score_under_the_review_limit(
    score: float | None, limits: list[float], fault: Fault | None, has_frame: bool, has_findings: bool
) -> None:
    """The one law, over everything that an inspection can be; and `judge` never raises."""
    seen = inspection(score, fault=fault, frame=FRAME if has_frame else None)
    seen = seen if has_findings else dataclasses.replace(seen, findings=())

    verdict = Policy(PolicySpec(review_above=limits[0], defect_above=limits[1])).judge(seen)

    sound = fault is None and has_frame and has_findings and score is not None and 0 <= score <= 1
    assert (verdict.decision is Decision.ERROR) == (not sound)
    assert (verdict.decision is Decision.OK) == (sound and score is not None and score < limits[0])
    assert (verdict.decision is Decision.DEFECT) == (sound and score is not None and score >= limits[1])
    assert verdict.reason
    assert verdict.inspection is seen


def test_a_flagged_part_is_named_by_its_defect_even_when_good_is_likelier() -> None:
    """`review: good 0.70` would help nobody at the line."""
    verdict = Policy(LIMITS).judge(inspection(0.3))

    assert verdict.top is not None
    assert verdict.top.class_name == "scratch"
    assert verdict.reason == "scratch 0.30: defect score 0.30 between 0.20 and 0.50"


def test_a_good_part_is_named_good() -> None:
    """With its score and the limit that it stayed under."""
    verdict = Policy(LIMITS).judge(inspection(0.05))

    assert verdict.top is not None
    assert verdict.top.class_name == "good"
    assert verdict.reason == "good: defect score 0.05 under 0.20"


def test_codes_and_qualities_are_those_of_the_registers() -> None:
    """A zeroed register never means ok; OPC quality bad for an error."""
    assert {decision.value: (decision.code, decision.quality) for decision in Decision} == {
        "ok": (1, 192),
        "defect": (2, 192),
        "review": (3, 64),
        "error": (4, 0),
    }
