"""A detector's scorecard: counted by hand from outcomes made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agent.binomial import upper_bound
from agent.bundle import ClassSpec, DetectionSpec, Finding, Manifest, Outputs, PolicySpec
from agent.bundle.manifest import Severity
from agent.verdict import Decision
from optimize.dataset import LabelledBox
from optimize.detection_card import failure_of
from optimize.detection_metrics import ImageBoxes, box_records, froc_curve, sensitivities
from optimize.detection_picture import worst_misses
from optimize.detection_score import box_fates, score_detections
from optimize.outcomes import RANK, Outcome
from tests.kit.bundles import kit_manifest

SEVERITY: dict[str, Severity] = {"crack": "critical", "dent": "major", "stain": "minor"}
LIMIT = 0.3


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "task": "detect",
        "classes": tuple(ClassSpec(name=name, severity=severity) for name, severity in SEVERITY.items()),
        "outputs": Outputs(boxes="boxes", scores="scores"),
        "detection": DetectionSpec(boxes="corners"),
        "policy": PolicySpec(defect_above=0.6, review_above=LIMIT),
    }
    return kit_manifest(**{**fields, **changes})


def labelled(name: str, *edges: float, is_ignored: bool = False) -> LabelledBox:
    left, top, right, bottom = edges
    return LabelledBox(class_name=name, left=left, top=top, right=right, bottom=bottom, is_ignored=is_ignored)


def finding(name: str, score: float, *edges: float, size_mm: float | None = None) -> Finding:
    x0, y0, x1, y1 = edges
    box = (x0, y0, x1 - x0, y1 - y0)
    return Finding(class_name=name, severity=SEVERITY[name], score=score, box_px=box, size_mm=size_mm)


def outcome(
    file: str,
    boxes: Sequence[LabelledBox] | None,
    findings: Sequence[Finding] = (),
    *,
    is_error: bool = False,
    severity: Severity | None = None,
    group: str | None = None,
) -> Outcome:
    """Judged as the manifest's limits have it."""
    score = max((f.score for f in findings), default=0.0)
    decision = Decision.DEFECT if score >= 0.6 else Decision.REVIEW if score >= LIMIT else Decision.OK
    return Outcome(
        file=file,
        label=None,
        predicted=None,
        decision=Decision.ERROR if is_error else decision,
        reason="because",
        ms=None if is_error else 2.0,
        group=group,
        score=None if is_error else score,
        findings=() if is_error else tuple(findings),
        boxes=None if boxes is None else tuple(boxes),
        severity=severity if severity is not None else _worst(boxes or ()),
    )


def _worst(boxes: Sequence[LabelledBox]) -> Severity:
    found: list[Severity] = ["ok", *(SEVERITY[b.class_name] for b in boxes if not b.is_ignored)]
    return max(found, key=RANK.__getitem__)


def image(truth: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> ImageBoxes:
    """Truth as left, top, right, bottom; found with a score behind; all of one class."""
    t, f = np.array(truth, dtype=np.float64).reshape(-1, 4), np.array(found, dtype=np.float64).reshape(-1, 5)
    return ImageBoxes(
        truth=t,
        truth_classes=np.zeros(len(t), np.int64),
        is_ignored=np.zeros(len(t), np.bool_),
        found=f[:, :4],
        scores=f[:, 4],
        found_classes=np.zeros(len(f), np.int64),
    )


@pytest.mark.parametrize(
    ("found", "is_stopped", "is_found"),
    [
        ((0, 0, 10, 10), True, True),
        ((0, 0, 10, 5), True, True),  # IoU 0.5
        ((0, 0, 10, 4.9), True, False),  # IoU under 0.5, over 0.1
        ((4, 4, 5, 5), True, False),  # IoU 0.01, its centre within
        ((-30, -30, 10, 10), False, False),  # IoU 0.06, its centre outside
        ((-10, -10, 10, 10), True, False),  # IoU 0.25
        ((9.5, 0, 40, 10), False, False),
    ],
)
def test_a_finding_on_a_defect_stops_its_part(found: tuple[float, ...], is_stopped: bool, is_found: bool) -> None:
    """Who looks at the part there sees the defect; mAP asks for more."""
    records = box_records([image([(0, 0, 10, 10)], [(*found, 0.8)])])

    assert records.stopped.tolist() == [0.8 if is_stopped else -np.inf]
    assert records.found.tolist() == [0.8 if is_found else -np.inf]
    assert records.false_scores.tolist() == ([] if is_stopped else [0.8])


def test_froc_is_read_at_the_lowest_limit_that_keeps_the_rate() -> None:
    """Four defects and four false boxes in two pictures, counted by hand; equal scores fall together."""
    truth = [(0, 0, 10, 10), (20, 0, 30, 10)]
    far = (100, 100, 110, 110)
    first = image(truth, [(*truth[0], 0.9), (*far, 0.8), (*truth[1], 0.5)])
    second = image(truth, [(*truth[0], 0.7), (*far, 0.6), (*far, 0.5), (*far, 0.2)])
    records = box_records([first, second])

    found = sensitivities(records, np.ones((1, 2)), (0.0, 0.25, 0.5, 1.0, 1.5, 8.0))

    # False boxes per picture: 0.8 costs 0.5, 0.6 costs 1, 0.5 costs 1.5 (and brings a defect), 0.2 costs 2.
    assert found[0].tolist() == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert froc_curve(records)[-1] == (2.0, 0.75)
    assert froc_curve(records)[0] == (0.0, 0.25)
    assert sensitivities(records, np.array([[2.0, 0.0]]), (8.0,))[0].tolist() == [1.0]


def test_a_set_without_boxes_gives_figures_of_parts_only() -> None:
    """And says so: a zero would read as a measured zero."""
    card = score_detections([outcome("a", None, severity="major"), outcome("b", None, severity="ok")], manifest())

    assert (card.map50, card.box_escape_rate, card.false_per_picture, card.froc) == (None, None, None, ())
    assert (card.escape_rate, card.overkill_rate) == (1.0, 0.0)
    assert "only what became of whole parts is known" in card.notes[0]


def test_a_set_without_good_parts_says_nothing_of_overkill() -> None:
    """NEU has none; an overkill of 0 would be an invention."""
    card = score_detections([outcome("a", [labelled("dent", 0, 0, 9, 9)])], manifest())

    assert (card.overkill_rate, card.overkill_per_1000, card.goods) == (None, None, 0)
    assert any("no good parts" in note for note in card.notes)
    assert card.to_json()["overkill_rate"] is None


def test_what_could_not_be_judged_does_not_escape_and_finds_nothing() -> None:
    """The line stops such a part; for map50 it is wrong."""
    right = outcome("a", [labelled("dent", 0, 0, 9, 9)], [finding("dent", 0.9, 0, 0, 9, 9)])
    failed = outcome("b", [labelled("dent", 0, 0, 9, 9)], is_error=True)

    card = score_detections([right, failed], manifest())

    assert (card.escapes, card.box_escapes, card.box_misses, card.boxes) == (0, 0, 0, 2)
    assert card.map50 == pytest.approx(51 / 101)
    assert card.froc[-1].sensitivity == 0.5
    assert [entry.file for entry in card.unjudged] == ["b"]


def test_every_figure_is_what_counting_by_hand_gives() -> None:
    """Two kinds of escapes, by severity: parts that were passed, and defects that nobody would have looked at."""
    crack, dent = labelled("crack", 0, 0, 20, 20), labelled("dent", 100, 100, 200, 140)
    outcomes = [
        outcome(
            "found", [crack, dent], [finding("crack", 0.9, 0, 0, 20, 20), finding("dent", 0.4, 100, 100, 200, 140)]
        ),
        # Stopped for a dent that is called a stain; the crack is overlooked.
        outcome(
            "half", [crack, dent], [finding("stain", 0.7, 100, 100, 200, 140), finding("crack", 0.2, 0, 0, 20, 20)]
        ),
        outcome("passed", [crack], [finding("crack", 0.29, 0, 0, 20, 20)]),
        outcome("elsewhere", [dent], [finding("dent", 0.5, 0, 0, 20, 20)]),
        outcome("good", []),
        outcome("overkill", [], [finding("stain", 0.61, 0, 0, 20, 20)]),
    ]

    card = score_detections(outcomes, manifest())

    assert (card.n, card.defects, card.goods, card.boxes) == (6, 4, 2, 6)
    assert (card.escapes, card.escape_rate) == (1, 0.25)
    assert card.escape_upper_95 == pytest.approx(upper_bound(1, 4))
    assert (card.overkills, card.overkill_rate, card.overkill_per_1000) == (1, 0.5, 500.0)
    assert card.decisions == {"ok": 2, "defect": 3, "review": 1, "error": 0}
    assert (card.box_escapes, card.box_misses) == (3, 4)
    critical, major = card.by_severity["critical"], card.by_severity["major"]
    assert (critical.parts, critical.escapes, critical.boxes, critical.box_escapes, critical.box_misses) == (
        3,
        1,
        3,
        2,
        2,
    )
    assert (major.parts, major.escapes, major.boxes, major.box_escapes, major.box_misses) == (1, 0, 3, 1, 2)
    assert "minor" not in card.by_severity
    assert card.false_per_picture == pytest.approx(2 / 6)
    assert card.per_class["stain"].ap50 is None
    assert card.per_class["crack"].ap50 == pytest.approx(1.0)
    assert [(row.low, row.high, row.boxes, row.escapes, row.misses) for row in card.by_size] == [
        (16, 32, 3, 2, 2),
        (64, 128, 3, 1, 2),
    ]
    assert {name: row.boxes for name, row in card.by_area.items()} == {"small": 3, "medium": 3}
    assert card.to_json()["image_escape_rate"] == card.to_json()["escape_rate"] == 0.25


def test_sizes_are_in_millimetres_where_the_pitch_is_known() -> None:
    """What escapes by size is what a customer asks for, and pixels say nothing to him."""
    spec = DetectionSpec(boxes="corners", pixel_mm=0.05)

    card = score_detections([outcome("a", [labelled("dent", 0, 0, 30, 10)])], manifest(detection=spec))

    assert card.size_unit == "mm"
    assert [(row.low, row.high) for row in card.by_size] == [(1.0, 2.0)]


def test_findings_that_the_policy_does_not_count_stop_nothing() -> None:
    """Smaller than the class's least size: the part was passed, so its box escapes; for map50 it was found."""
    classes = tuple(ClassSpec(name=name, severity=s, min_size_mm=1.0) for name, s in SEVERITY.items())
    small = outcome("a", [labelled("dent", 0, 0, 9, 9)], [finding("dent", 0.9, 0, 0, 9, 9, size_mm=0.5)])

    card = score_detections([small], manifest(classes=classes))

    assert card.box_escapes == 1
    assert card.map50 == pytest.approx(1.0)


def test_ignored_boxes_are_neither_missed_nor_false() -> None:
    """A crowd that is found is no false alarm, one that is not found is no escape."""
    crowd = labelled("dent", 0, 0, 50, 50, is_ignored=True)
    outcomes = [outcome("a", [crowd], [finding("dent", 0.9, 0, 0, 20, 20)]), outcome("b", [crowd])]

    card = score_detections(outcomes, manifest())

    assert (card.boxes, card.box_escape_rate, card.map50, card.false_per_picture) == (0, None, None, 0.0)
    assert any("no box of this set counts" in note for note in card.notes)


def test_pictures_of_one_part_are_one_part_in_every_interval() -> None:
    """Twenty pictures of two parts are not twenty parts: the intervals must be wider."""
    box = labelled("dent", 0, 0, 9, 9)
    hit, miss = [finding("dent", 0.9, 0, 0, 9, 9)], list[Finding]()
    single = [outcome(f"{i}", [box], hit if i % 2 else miss) for i in range(20)]
    grouped = [outcome(f"{i}", [box], hit if i % 2 else miss, group=f"{i % 4}") for i in range(20)]

    alone, together = score_detections(single, manifest()), score_detections(grouped, manifest())

    for key in ("map50", "escape_rate", "box_escape_rate"):
        width = [card.intervals_95[key][1] - card.intervals_95[key][0] for card in (alone, together)]
        assert width[1] > width[0] + 0.1, key
    assert together.froc[0].sensitivity_95 == (0.0, 1.0)


def test_a_gate_on_an_unknown_figure_does_not_hold() -> None:
    """Nobody may pass a gate by leaving the boxes out."""
    card = score_detections([outcome("a", None, severity="major")], manifest())

    assert card
    assert card.gated(min_map50=None)
    assert not card.gated(min_map50=0.1)
    assert card.gated(min_map50=0.1).failures == ("map50: got none, expected at least 0.1000",)
    assert failure_of(0.5, 0.5) is None
    assert failure_of(0.4, 0.5) == "map50: got 0.4000, expected at least 0.5000"


def test_the_worst_misses_come_first() -> None:
    """Passed parts, then critical ones, then large ones: what a person should look at first."""
    stop = [finding("stain", 0.9, 300, 300, 310, 310)]
    outcomes = [
        outcome("stopped", [labelled("dent", 0, 0, 50, 50)], stop),
        outcome("stopped, critical", [labelled("crack", 0, 0, 5, 5)], stop),
        outcome("found", [labelled("dent", 0, 0, 50, 50)], [finding("dent", 0.9, 0, 0, 50, 50)]),
        outcome("passed", [labelled("stain", 0, 0, 5, 5)]),
        outcome("stopped, larger", [labelled("dent", 0, 0, 90, 90)], stop),
    ]

    worst = worst_misses(outcomes, box_fates(outcomes, manifest()), manifest())

    assert [outcomes[i].file for i in worst] == ["passed", "stopped, critical", "stopped, larger", "stopped"]
