"""What a detector's findings decide: severity, size and zone; nothing passes because a number is missing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import ClassSpec, DetectionSpec, Finding, Manifest, Outputs, PolicySpec
from agent.bundle.manifest import Severity
from agent.config import PolicyConfig, ZoneConfig
from agent.errors import ConfigError
from agent.inspection import BundleRef, Inspection
from agent.verdict import Decision, Policy, Verdict, policy_from_config
from tests.kit.bundles import kit_manifest
from tests.kit.frames import WHITE, frame_of, plain_image

FRAME = frame_of(plain_image(WHITE, width=640, height=512))
CLASSES = (
    ClassSpec(name="scratch", severity="major", min_size_mm=2.0),
    ClassSpec(name="crack", severity="critical"),
    ClassSpec(name="dust", severity="minor"),
    ClassSpec(name="screw", severity="ok"),
)
SEVERITIES: dict[str, Severity] = {c.name: c.severity for c in CLASSES}


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "task": "detect",
        "outputs": Outputs(boxes="boxes", scores="scores"),
        "classes": CLASSES,
        "detection": DetectionSpec(boxes="corners", score_above=0.05, pixel_mm=0.1),
        "policy": PolicySpec(defect_above=0.5, review_above=0.2),
    }
    return kit_manifest(**{**fields, **changes})


def policy(*zones: ZoneConfig, **keys: Any) -> Policy:
    return policy_from_config(PolicyConfig(zones=zones, **keys), manifest())


def found(
    name: str, score: float, box: tuple[float, float, float, float] = (100, 100, 40, 30), *, size_mm: Any = ...
) -> Finding:
    """A finding whose size is that of its box at 0.1 mm per pixel, unless another is given."""
    size = max(box[2:]) * 0.1 if size_mm is ... else size_mm
    return Finding(class_name=name, severity=SEVERITIES[name], score=score, box_px=box, size_mm=size)


def inspection(*findings: Finding, **changes: Any) -> Inspection:
    scores = [f.score for f in findings if f.severity != "ok"]
    seen = Inspection(
        part=FRAME.part,
        frame=FRAME,
        fault=None,
        task="detect",
        findings=findings,
        defect_score=max(scores, default=0.0),
        bundle=BundleRef(name="kit-1.0.0", digest="0" * 64),
        engine="none",
    )
    return dataclasses.replace(seen, **changes)


def judged(*findings: Finding, zones: tuple[ZoneConfig, ...] = (), **keys: Any) -> Verdict:
    return policy(*zones, **keys).judge(inspection(*findings))


# Bad input


@pytest.mark.parametrize(
    ("cut_at", "decision"),
    [(0.0, Decision.OK), (0.19, Decision.OK), (0.2, Decision.REVIEW), (0.78, Decision.REVIEW)],
)
def test_a_part_is_not_passed_when_findings_that_could_count_were_left_out(cut_at: float, decision: Decision) -> None:
    """A hundred findings where they do not count must not hide one where it does."""
    everywhere = zone("fixture", (0, 0, 180, 200), ignore=True)
    crowd = [found("scratch", 0.9, (10, 10, 20, 20)) for _ in range(100)]

    verdict = policy(everywhere, review_above=0.2).judge(inspection(*crowd, cut_at=cut_at))

    assert verdict.decision is decision
    if decision is Decision.REVIEW:
        assert verdict.reason == (
            "more was found than the 100 findings that are kept: others of a score up to "
            f"{cut_at:.2f} were not looked at"
        )


def test_the_strictest_zone_decides_whether_findings_left_out_could_count() -> None:
    """It may lie where they are."""
    strict = zone("seal", (0, 0, 180, 200), review_above=0.05, defect_above=0.5)

    assert policy(strict, review_above=0.2).judge(inspection(cut_at=0.1)).decision is Decision.REVIEW
    assert policy(review_above=0.2).judge(inspection(cut_at=0.1)).decision is Decision.OK


@pytest.mark.parametrize(
    "changes",
    [
        {"score": math.nan},
        {"score": math.inf},
        {"score": -0.1},
        {"score": 1.1},
        {"box_px": None},
        {"box_px": (0, math.nan, 5, 5)},
        {"box_px": (0, 0, math.inf, 5)},
        {"size_mm": math.nan},
    ],
)
def test_a_finding_that_is_none_is_an_error(changes: dict[str, Any]) -> None:
    """NaN is under every limit, and in no zone; beside a good finding too."""
    broken = dataclasses.replace(found("scratch", 0.1), **changes)

    verdict = policy().judge(inspection(found("dust", 0.1), broken, defect_score=0.1))

    assert verdict.decision is Decision.ERROR
    assert "a finding of scratch" in verdict.reason
    assert (verdict.findings, verdict.top, verdict.score) == ((), None, None)


def test_an_inspection_without_a_score_is_an_error() -> None:
    """No finding is a result only when the detector was asked."""
    assert policy().judge(inspection(defect_score=None)).decision is Decision.ERROR


def test_a_classifier_without_findings_is_still_an_error() -> None:
    """Only a detector may find nothing."""
    assert policy().judge(inspection(task="classify")).decision is Decision.ERROR


def test_a_zone_that_was_drawn_for_a_larger_picture_is_an_error() -> None:
    """Its limits would hold somewhere else, or nowhere: after a camera was changed, say."""
    seal = ZoneConfig(name="seal", polygon=((500, 10), (641, 10), (500, 200)), defect_above=0.9)

    verdict = judged(zones=(seal,))

    assert verdict.decision is Decision.ERROR
    assert "seal reaches to 641, 200, but the picture has 640 x 512 px" in verdict.reason
    edge = ZoneConfig(name="seal", box=(0, 0, 640, 512))
    assert judged(zones=(edge,)).decision is Decision.OK


def refusal(*zones: ZoneConfig, of: Manifest | None = None, **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        policy_from_config(PolicyConfig(zones=zones, **keys), of or manifest())
    return caught.value.message


def zone(name: str = "seal", box: tuple[float, ...] | None = (0, 0, 200, 200), **keys: Any) -> ZoneConfig:
    return ZoneConfig(name=name, box=box, **keys)


@pytest.mark.parametrize("keys", [{"zones": (zone(),)}, {"pixel_mm": 0.1}])
def test_a_classifier_takes_no_zones_and_no_pitch(keys: dict[str, Any]) -> None:
    """It has no boxes: the station refuses to start, rather than judge the whole picture as if it were the zone."""
    with pytest.raises(ConfigError, match="this bundle is a classifier"):
        policy_from_config(PolicyConfig(**keys), kit_manifest())


def test_limits_that_the_detector_can_not_keep_are_refused() -> None:
    """It gives no findings under its own score: such a limit would look stricter than it is."""
    assert "policy.review_above: got 0.02, but this bundle's detector gives no findings under 0.05" in refusal(
        review_above=0.02
    )
    assert "policy.zones: seal.review_above: got 0.01" in refusal(zone(review_above=0.01))


def test_a_smallest_size_needs_a_pitch() -> None:
    """Of a zone it is the user's word, which would do nothing."""
    unknown = manifest(detection=DetectionSpec(boxes="corners"))

    assert "nobody said how large a pixel is" in refusal(zone(min_size_mm=1.0), of=unknown)
    assert policy_from_config(PolicyConfig(zones=(zone(min_size_mm=1.0),), pixel_mm=0.2), unknown).zones


def test_a_zones_limits_stand_the_right_way_round() -> None:
    """The policy's upper limit holds where the zone has none of its own."""
    assert "expected at most policy.zones: seal.defect_above (0.5)" in refusal(zone(review_above=0.7))


@pytest.mark.parametrize(
    "points",
    [
        ((0, 0), (10, 10), (10, 0), (0, 10)),
        ((0, 0), (10, 0), (20, 0)),
        ((0, 0), (10, 0), (10, 10), (10, 0), (0, 10)),
        ((5, 5), (5, 5), (5, 5)),
    ],
)
def test_a_polygon_that_crosses_itself_is_refused(points: tuple[tuple[float, float], ...]) -> None:
    """Its inside would be a matter of opinion."""
    assert "its edges cross or touch, or it has no area" in refusal(ZoneConfig(name="seal", polygon=points))


# Severity and limits


def test_no_finding_is_a_good_part() -> None:
    """The majority on a line."""
    verdict = judged()

    assert (verdict.decision, verdict.reason) == (Decision.OK, "good: no finding")
    assert (verdict.score, verdict.threshold, verdict.top, verdict.findings) == (0.0, 0.2, None, ())


@pytest.mark.parametrize(
    ("score", "decision", "threshold", "reason"),
    [
        (0.19, Decision.OK, 0.2, "good: crack 0.19, 4 mm under 0.20"),
        (0.2, Decision.REVIEW, 0.2, "crack 0.20, 4 mm: between 0.20 and 0.50"),
        (0.5, Decision.DEFECT, 0.5, "crack 0.50, 4 mm: reaches the limit 0.50"),
    ],
)
def test_a_limit_belongs_to_the_worse_side(score: float, decision: Decision, threshold: float, reason: str) -> None:
    """At the limit is over it."""
    verdict = judged(found("crack", score))

    assert (verdict.decision, verdict.threshold, verdict.reason) == (decision, threshold, reason)
    assert verdict.score == score
    assert (verdict.top is None) == (decision is Decision.OK)
    assert len(verdict.findings) == (decision is not Decision.OK)


def test_what_is_no_defect_does_not_count() -> None:
    """A screw that is where it belongs."""
    verdict = judged(found("screw", 0.99))

    assert verdict.decision is Decision.OK
    assert verdict.reason == "good: no finding that counts (1 of no severity, too small or ignored)"


def test_the_worst_decision_comes_first_then_severity_then_score() -> None:
    """The foremost finding is the one that the person at the line should look for."""
    verdict = judged(
        found("dust", 0.99), found("scratch", 0.6), found("crack", 0.55), found("scratch", 0.7), found("crack", 0.3)
    )

    assert [(f.class_name, f.score) for f in verdict.findings] == [
        ("crack", 0.55),
        ("scratch", 0.7),
        ("scratch", 0.6),
        ("dust", 0.99),
        ("crack", 0.3),
    ]
    assert verdict.top is verdict.findings[0]
    assert verdict.reason == "crack 0.55, 4 mm: reaches the limit 0.50; 4 more findings"


def test_only_findings_that_reach_their_lower_limit_are_told() -> None:
    """The rest stays in the inspection."""
    verdict = judged(found("crack", 0.3), found("crack", 0.1), found("screw", 0.9))

    assert [f.score for f in verdict.findings] == [0.3]
    assert len(verdict.inspection.findings) == 3


@pytest.mark.parametrize(
    ("keys", "decision"),
    [({"review_above": 0.0}, Decision.REVIEW), ({"review_above": 0.0, "defect_above": 0.0}, Decision.DEFECT)],
)
def test_a_limit_of_zero_passes_no_part(keys: dict[str, Any], decision: Decision) -> None:
    """Whoever wants every part looked at gets that, found or not."""
    verdict = judged(**keys)

    assert verdict.decision is decision
    assert "the limit 0" in verdict.reason
    assert verdict.threshold == 0.0


# Sizes


@pytest.mark.parametrize(
    ("size_mm", "decision"),
    [(1.99, Decision.OK), (2.0, Decision.DEFECT), (None, Decision.DEFECT), (9, Decision.DEFECT)],
)
def test_what_is_too_small_is_no_defect_and_what_is_unknown_is(size_mm: float | None, decision: Decision) -> None:
    """A part is never passed because a number is missing."""
    assert judged(found("scratch", 0.9, size_mm=size_mm)).decision is decision


def test_sizes_are_per_class() -> None:
    """A crack of any size counts."""
    assert judged(found("crack", 0.9, size_mm=0.01)).decision is Decision.DEFECT


# Zones

STRICT = zone("seal", (90, 90, 20, 20), defect_above=0.3, review_above=0.1)
LENIENT = zone("rim", (0, 0, 400, 400), defect_above=0.9, review_above=0.8)
IGNORED = zone("label", (90, 90, 100, 100), ignore=True)


@pytest.mark.parametrize(
    ("zones", "box", "decision", "name"),
    [
        ((), (100, 100, 5, 5), Decision.REVIEW, None),
        ((STRICT,), (100, 100, 5, 5), Decision.DEFECT, "seal"),
        ((STRICT,), (105, 105, 50, 50), Decision.DEFECT, "seal"),
        ((STRICT,), (110, 90, 50, 50), Decision.REVIEW, None),
        ((STRICT,), (200, 200, 5, 5), Decision.REVIEW, None),
        ((LENIENT,), (100, 100, 5, 5), Decision.OK, None),
        ((LENIENT,), (390, 390, 20, 20), Decision.REVIEW, None),
        ((STRICT, LENIENT), (100, 100, 5, 5), Decision.DEFECT, "seal"),
        ((LENIENT, STRICT), (100, 100, 5, 5), Decision.DEFECT, "seal"),
        ((IGNORED,), (100, 100, 5, 5), Decision.OK, None),
        ((IGNORED,), (90, 90, 100, 100), Decision.OK, None),
        ((IGNORED,), (90, 90, 101, 100), Decision.REVIEW, None),
        ((IGNORED, STRICT), (100, 100, 5, 5), Decision.OK, None),
        ((IGNORED, STRICT), (85, 95, 20, 5), Decision.DEFECT, "seal"),
    ],
)
def test_the_strictest_place_that_a_finding_lies_in_decides(
    zones: tuple[ZoneConfig, ...], box: tuple[float, float, float, float], decision: Decision, name: str | None
) -> None:
    """Around the zones the policy's limits hold, also for the part of a finding that sticks out of a lenient zone."""
    verdict = judged(found("crack", 0.4, box), zones=zones)

    assert verdict.decision is decision
    assert (verdict.top.zone if verdict.top else None) == name


def test_a_zone_has_its_own_smallest_size() -> None:
    """0 counts all; a larger one than the class's lets more pass there, and only there."""
    small, large = found("scratch", 0.9, size_mm=1.0), found("crack", 0.9, size_mm=3.0)
    everywhere = (0.0, 0.0, 400.0, 400.0)

    assert judged(small).decision is Decision.OK
    assert judged(small, zones=(zone("seal", everywhere, min_size_mm=0.0),)).decision is Decision.DEFECT
    assert judged(large, zones=(zone("rim", everywhere, min_size_mm=5.0),)).decision is Decision.OK


def test_too_small_for_one_zone_is_not_too_small_for_the_next() -> None:
    """It counts by the places where it counts."""
    zones = (zone("rim", (0, 0, 400, 400), min_size_mm=5.0), zone("seal", (90, 90, 50, 50), min_size_mm=1.0))

    verdict = judged(found("crack", 0.9, size_mm=3.0), zones=zones)

    assert verdict.decision is Decision.DEFECT
    assert verdict.top is not None
    assert verdict.top.zone == "seal"


def test_the_zone_is_told_in_words() -> None:
    """Class, score, size, zone."""
    verdict = judged(found("crack", 0.4), zones=(STRICT,))

    assert verdict.reason == "crack 0.40, 4 mm, zone seal: reaches the limit 0.30"
    assert (verdict.score, verdict.threshold) == (0.4, 0.3)


def test_a_polygon_is_a_zone() -> None:
    """A hollow one too: what lies in its notch is not in it."""
    horseshoe = ((0, 0), (300, 0), (300, 300), (200, 300), (200, 100), (100, 100), (100, 300), (0, 300))
    zones = (ZoneConfig(name="shoe", polygon=horseshoe, defect_above=0.1, review_above=0.05),)

    assert judged(found("crack", 0.15, (120, 150, 50, 50)), zones=zones).decision is Decision.OK
    assert judged(found("crack", 0.15, (120, 90, 50, 50)), zones=zones).decision is Decision.DEFECT
    assert judged(found("crack", 0.15, (20, 150, 50, 50)), zones=zones).decision is Decision.DEFECT


# The one law

UNIT = st.floats(0, 1)
BOXES = st.tuples(st.floats(0, 300), st.floats(0, 300), st.floats(0, 200), st.floats(0, 200))
FINDINGS = st.builds(found, st.sampled_from(sorted(SEVERITIES)), UNIT, BOXES, size_mm=st.none() | st.floats(0, 5))


@given(findings=st.lists(FINDINGS, max_size=6), limits=st.tuples(UNIT, UNIT).map(sorted))
def test_without_zones_a_part_is_good_exactly_when_nothing_that_counts_reaches_the_limit(
    findings: list[Finding], limits: list[float]
) -> None:
    """Over everything that a detector can find; the same inspection gives the same verdict."""
    judge = Policy(PolicySpec(review_above=limits[0], defect_above=limits[1]), min_sizes_mm={"scratch": 2.0}).judge
    seen = inspection(*findings)
    counted = [
        f.score
        for f in findings
        if f.severity != "ok" and not (f.class_name == "scratch" and f.size_mm is not None and f.size_mm < 2)
    ]
    worst = max(counted, default=0.0)

    verdict = judge(seen)

    expected = Decision.DEFECT if worst >= limits[1] else Decision.REVIEW if worst >= limits[0] else Decision.OK
    assert verdict.decision is expected
    assert verdict.inspection is seen
    assert len(verdict.findings) == sum(score >= limits[0] for score in counted)
    again = judge(seen)
    assert (again.reason, again.findings) == (verdict.reason, verdict.findings)


@given(findings=st.lists(FINDINGS, max_size=5), box=BOXES.map(lambda b: (*b[:2], b[2] + 1, b[3] + 1)))
def test_a_stricter_zone_never_passes_more(findings: list[Finding], box: tuple[float, ...]) -> None:
    """Wherever it lies."""
    order = [Decision.OK, Decision.REVIEW, Decision.DEFECT]
    strict = zone("seal", box, defect_above=0.3, review_above=0.1)

    without, with_zone = judged(*findings).decision, judged(*findings, zones=(strict,)).decision

    assert order.index(with_zone) >= order.index(without)
