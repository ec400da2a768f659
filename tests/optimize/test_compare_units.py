"""From outcomes to what is compared: parts, boxes, false ones, and what could not be judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from agent.bundle import ClassSpec, DetectionSpec, Finding, Manifest, Outputs
from agent.bundle.manifest import Severity
from agent.verdict import Decision
from optimize.compare import Verdicts, box_units, part_units
from optimize.compare.units import ALWAYS, NEVER
from optimize.dataset import LabelledBox
from optimize.outcomes import Outcome
from tests.kit.bundles import kit_manifest

CLASSES = (
    ClassSpec(name="good", severity="ok"),
    ClassSpec(name="crack", severity="critical", min_size_mm=1.0),
    ClassSpec(name="stain", severity="minor"),
)
SEVERITIES: dict[str, Severity] = {c.name: c.severity for c in CLASSES}


def detector() -> Manifest:
    return kit_manifest(
        task="detect",
        classes=CLASSES,
        outputs=Outputs(boxes="boxes", scores="scores"),
        detection=DetectionSpec(boxes="corners", score_above=0.1),
    )


def classifier() -> Manifest:
    return kit_manifest(classes=tuple(dataclasses.replace(c, min_size_mm=None) for c in CLASSES))


def outcome(
    *,
    severity: Severity = "ok",
    score: float | None = 0.0,
    file: str = "a.png",
    group: str | None = None,
    findings: Sequence[Finding] = (),
    boxes: Sequence[LabelledBox] | None = None,
) -> Outcome:
    return Outcome(
        file=file,
        label=None,
        predicted=None,
        decision=Decision.ERROR if score is None else Decision.REVIEW,
        reason="because",
        ms=None,
        group=group,
        score=score,
        findings=tuple(findings),
        boxes=None if boxes is None else tuple(boxes),
        severity=severity,
    )


def box(name: str, left: float, *, side: float = 10, is_ignored: bool = False) -> LabelledBox:
    return LabelledBox(class_name=name, left=left, top=0, right=left + side, bottom=side, is_ignored=is_ignored)


def finding(name: str, left: float, score: float, *, side: float = 10, size_mm: float | None = None) -> Finding:
    return Finding(
        class_name=name, severity=SEVERITIES[name], score=score, box_px=(left, 0, side, side), size_mm=size_mm
    )


def verdicts(manifest: Manifest, *outcomes: Outcome, name: str = "m") -> Verdicts:
    return Verdicts(name=name, manifest=manifest, outcomes=outcomes)


def test_only_critical_parts_count_and_only_good_ones_are_overkill() -> None:
    """A stained part is neither: it is no critical escape, and to stop it is no overkill."""
    found = part_units(
        [
            verdicts(
                classifier(),
                outcome(severity="critical", score=0.9),
                outcome(severity="minor", score=0.8),
                outcome(severity="ok", score=0.7),
                outcome(severity="critical", score=0.6),
            )
        ],
        "critical",
    )

    assert found.judged[0].scores.tolist() == [0.9, 0.6]
    assert found.judged[0].alarms.tolist() == [0.7]
    assert (found.exposures, found.images, len(found.groups)) == (1, 4, 2)


def test_where_no_class_is_critical_all_defects_count() -> None:
    """Stains too."""
    found = part_units([verdicts(classifier(), outcome(severity="minor", score=0.8), outcome())], "all")

    assert (found.judged[0].scores.tolist(), found.judged[0].alarms.tolist()) == ([0.8], [0.0])


def test_a_part_is_as_bad_as_the_worst_that_any_model_calls_it() -> None:
    """A classifier knows the label only, a detector the boxes: the part is the same."""
    found = part_units(
        [
            verdicts(classifier(), outcome(severity="minor", score=0.3), name="by label"),
            verdicts(detector(), outcome(severity="critical", score=0.8), name="by box"),
        ],
        "critical",
    )

    assert [j.scores.tolist() for j in found.judged] == [[0.3], [0.8]]


def test_what_could_not_be_judged_is_always_stopped() -> None:
    """Defective or good: the line stops it, and it is counted."""
    found = part_units(
        [verdicts(classifier(), outcome(severity="critical", score=None), outcome(score=None))], "critical"
    )

    assert found.judged[0].scores.tolist() == [ALWAYS]
    assert found.judged[0].alarms.tolist() == [ALWAYS]
    assert found.judged[0].unjudged == 2


def test_a_detector_without_a_finding_is_stopped_at_no_limit() -> None:
    """Its score of 0 is no score: no limit that can be set makes it stop the part."""
    found = part_units([verdicts(detector(), outcome(severity="critical", score=0.0))], "critical")

    assert found.judged[0].scores.tolist() == [NEVER]
    assert found.judged[0].floor == 0.1


def test_parts_without_a_group_stand_for_themselves() -> None:
    """And those of one group stand together."""
    bad = [outcome(severity="critical", file=f"{i}.png", group="g" if i < 2 else None) for i in range(4)]
    found = part_units([verdicts(classifier(), *bad)], "critical")

    assert len(set(found.groups)) == 3
    assert found.has_groups


def test_a_box_is_found_by_what_overlaps_it_whatever_it_is_called() -> None:
    """The part is stopped all the same, as `evaluate` counts it too; the best of the findings decides."""
    picture = outcome(
        boxes=[box("crack", 0), box("crack", 100)],
        findings=[finding("stain", 1, 0.7), finding("crack", 2, 0.4), finding("crack", 125, 0.9)],
    )
    found = box_units([verdicts(detector(), picture)], "critical")

    assert found.judged[0].scores.tolist() == [0.7, NEVER]
    assert found.judged[0].alarms.tolist() == [0.9]
    assert (found.unit, found.exposures) == ("box", 1)


def test_a_finding_on_a_box_that_does_not_count_is_no_false_one() -> None:
    """A stain that is there, and a crowd that nobody outlined one by one."""
    picture = outcome(
        boxes=[box("stain", 0), box("crack", 50, is_ignored=True)],
        findings=[finding("stain", 0, 0.7), finding("crack", 50, 0.8), finding("crack", 90, 0.3)],
    )
    found = box_units([verdicts(detector(), picture)], "critical")

    assert found.judged[0].scores.size == 0
    assert found.judged[0].alarms.tolist() == [0.3]


def test_findings_that_the_policy_does_not_count_neither_find_nor_alarm() -> None:
    """Of a good class, or smaller than their class must be."""
    picture = outcome(
        boxes=[box("crack", 0)],
        findings=[
            finding("good", 0, 0.9),
            finding("crack", 0, 0.8, size_mm=0.5),
            finding("crack", 50, 0.8, size_mm=0.5),
            finding("crack", 0, 0.3, size_mm=1.5),
        ],
    )
    found = box_units([verdicts(detector(), picture)], "critical")

    assert (found.judged[0].scores.tolist(), found.judged[0].alarms.tolist()) == ([0.3], [])


def test_boxes_of_one_picture_are_of_one_group() -> None:
    """They were taken under one light, of one part: they are not independent."""
    pictures = [outcome(file=f"{i}.png", boxes=[box("crack", 0), box("crack", 40)]) for i in range(3)]
    found = box_units([verdicts(detector(), *pictures)], "critical")

    assert (len(found.groups), len(set(found.groups)), found.has_groups) == (6, 3, True)


def test_a_picture_that_could_not_be_judged_misses_no_box_and_shows_no_false_one() -> None:
    """The part is stopped; and the other pictures keep their place."""
    pictures = [
        outcome(score=None, boxes=[box("crack", 0)]),
        outcome(boxes=[box("crack", 0)], findings=[finding("crack", 0, 0.6)]),
    ]
    found = box_units([verdicts(detector(), *pictures)], "critical")

    assert found.judged[0].scores.tolist() == [ALWAYS, 0.6]
    assert found.judged[0].alarms.size == 0
    assert found.judged[0].unjudged == 1


@pytest.mark.parametrize("count", [1, 3])
def test_every_model_is_asked_the_same(count: int) -> None:
    """Units are in one order for all, whatever each of them found."""
    pictures = [
        [
            outcome(file="a.png", boxes=[box("crack", 0)], findings=[finding("crack", 0, 0.1 * (m + 2))]),
            outcome(file="b.png", boxes=[box("crack", 0)]),
        ]
        for m in range(count)
    ]
    found = box_units([verdicts(detector(), *p, name=str(m)) for m, p in enumerate(pictures)], "critical")

    assert [len(j.scores) for j in found.judged] == [2] * count
    assert [j.scores[0] for j in found.judged] == pytest.approx([0.1 * (m + 2) for m in range(count)])
