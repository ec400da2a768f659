"""What a rung lost against the top: counts, flips, and classes that a mean would hide."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.bundle.manifest import Severity
from agent.verdict import Decision
from optimize.ladder import figures_of, flips_of, lost_classes
from optimize.outcomes import Outcome
from tests.kit.bundles import kit_manifest

SEVERITIES: dict[str, Severity] = {"good": "ok", "scratch": "major", "stain": "minor"}


def outcome(i: int, label: str, predicted: str | None, decision: str = "", group: str | None = None) -> Outcome:
    decided = decision or ("error" if predicted is None else "ok" if predicted == "good" else "defect")
    return Outcome(
        file=f"{i}.png",
        label=label,
        predicted=predicted,
        decision=Decision(decided),
        reason="",
        ms=None if predicted is None else 1.0,
        probability=None if predicted is None else 0.9,
        group=group,
        score=None if predicted is None else 0.1 if predicted == "good" else 0.9,
        severity=SEVERITIES[label],
    )


def parts(said: Sequence[tuple[str, str | None]], groups: Sequence[str] | None = None) -> list[Outcome]:
    return [outcome(i, label, word, group=groups[i] if groups else None) for i, (label, word) in enumerate(said)]


def right(**counts: int) -> list[tuple[str, str | None]]:
    return [(label, label) for label, count in counts.items() for _ in range(count)]


def test_a_rare_class_that_is_gone_is_found_though_the_mean_hardly_moves() -> None:
    """Planted: of 200 parts a rung loses all three stains, 1.5 points, and gets 3 scratches that the top had wrong."""
    top = parts([*right(good=150, scratch=44), *[("scratch", "good")] * 3, *right(stain=3)])
    own = parts([*right(good=150, scratch=47), *[("stain", "scratch")] * 3])

    found = figures_of(top, own, kit_manifest())

    assert found.drop_points == 0.0
    (lost,) = found.lost
    assert (lost.name, lost.before, lost.after, lost.n) == ("stain", 3, 0, 3)
    assert "none is left" in lost.sentence()


@pytest.mark.parametrize(("gone", "is_lost"), [(4, False), (5, True)])
def test_a_class_that_falls_by_more_than_chance_is_lost(gone: int, is_lost: bool) -> None:
    """Five to none is 1/32 one-sided, four to none 1/16."""
    top = parts(right(good=10, scratch=20))
    own = parts([*right(good=10, scratch=20 - gone), *[("scratch", "stain")] * gone])

    found = lost_classes(top, own, kit_manifest())

    assert [lost.name for lost in found] == ["scratch"] * is_lost
    if found:
        assert found[0].p_value == pytest.approx(1 / 32)


def test_losses_that_gains_make_up_for_are_no_lost_class() -> None:
    """Six lost and five won is a coin's fall."""
    top = parts([*right(scratch=10), *[("scratch", "stain")] * 5])
    own = parts([*right(scratch=4), *[("scratch", "stain")] * 6, *right(scratch=5)])

    assert lost_classes(top, own, kit_manifest()) == ()


def test_pictures_of_one_part_are_one_witness() -> None:
    """Eight views of one part that is lost prove no more than one would: the class fell, and is not called lost."""
    groups = ["a"] * 20 + [f"b{i}" for i in range(5)]
    top = parts(right(scratch=25), groups)
    own = parts([*[("scratch", "stain")] * 8, *right(scratch=17)], groups)

    found = figures_of(top, own, kit_manifest())

    assert found.lost == ()
    assert [(fall.name, fall.before, fall.after, fall.n, fall.p_value) for fall in found.fell] == [
        ("scratch", 25, 17, 25, 0.5)
    ]
    assert found.fell[0].sentence() == "finds less of scratch: 25 of 25 before, 17 now (p 0.5)"


EACH_ITS_OWN = [1] * 100


@pytest.mark.parametrize(
    ("sizes", "before", "after", "rule"),
    [
        (EACH_ITS_OWN, 6, 2, "half"),
        (EACH_ITS_OWN, 7, 3, "half"),
        (EACH_ITS_OWN, 10, 3, "proven"),
        (EACH_ITS_OWN, 5, 2, "half"),
        ([10] * 5, 50, 10, "half"),
        ([4] * 6, 24, 8, "half"),
        ([60, 2, 2, 2, 2], 68, 8, "half"),
        (EACH_ITS_OWN, 1, 0, "none"),
        (EACH_ITS_OWN, 2, 1, None),
        (EACH_ITS_OWN, 4, 2, None),
        (EACH_ITS_OWN, 7, 4, None),
        ([60, 2, 2, 2, 2], 68, 35, None),
    ],
)
def test_most_of_a_class_is_never_lost_without_a_word(
    sizes: list[int], before: int, after: int, rule: str | None
) -> None:
    """Half or less is left and three or more are gone: refused, however few groups there are to prove it by.

    What falls by less is told with its counts.
    """
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)][:before]
    top = parts(right(scratch=before), groups)
    own = parts([*[("scratch", "stain")] * (before - after), *right(scratch=after)], groups)

    found = figures_of(top, own, kit_manifest())

    assert [lost.rule for lost in found.lost] == ([] if rule is None else [rule])
    told = [fall.sentence() for fall in found.lost] + [fall.sentence() for fall in found.fell]
    assert len(told) == 1
    assert f"scratch: {before} of {before} before, {after} now" in told[0]


def test_a_class_of_few_parts_can_not_be_lost_for_want_of_witnesses() -> None:
    """Ten of twelve views of two parts, then one: two parts can prove nothing, so the views are counted."""
    groups = ["a"] * 6 + ["b"] * 6
    top = parts([*right(scratch=10), *[("scratch", "stain")] * 2], groups)
    own = parts([*right(scratch=1), *[("scratch", "stain")] * 11], groups)

    (lost,) = lost_classes(top, own, kit_manifest())

    assert (lost.before, lost.after) == (10, 1)
    assert lost.p_value == pytest.approx(1 / 512)


def test_escapes_never_look_safer_than_none_at_all() -> None:
    """With few parts the bound for none is wide; six escapes of the same parts must not lie below it."""
    groups = [f"g{i % 4}" for i in range(40)]
    none = figures_of(parts(right(scratch=40), groups), parts(right(scratch=40), groups), kit_manifest())
    said = [*right(scratch=38), *[("scratch", "good")] * 2]
    some = figures_of(parts(right(scratch=40), groups), parts(said, groups), kit_manifest())

    assert none.escape_upper_95 == pytest.approx(1 - 0.05 ** (1 / 4))
    assert none.escape_upper_95 is not None
    assert some.escape_upper_95 is not None
    assert some.escape_upper_95 >= none.escape_upper_95


def test_a_class_that_the_top_never_got_can_not_be_lost() -> None:
    """Nought of three stays nought of three."""
    top = own = parts([*right(good=5), *[("stain", "scratch")] * 3])

    assert lost_classes(top, own, kit_manifest()) == ()


def test_images_that_can_not_be_judged_count_as_wrong_and_are_no_escapes() -> None:
    """The line stops such a part."""
    top = parts(right(good=5, scratch=5))
    own = parts([*right(good=5), *[("scratch", None)] * 5])

    found = figures_of(top, own, kit_manifest())

    assert (found.unjudged, found.escapes, found.defects, found.drop_points) == (5, 0, 5, 50.0)
    assert found.failure.startswith("5.png: ")
    assert figures_of(own, own, kit_manifest()).failure == ""
    assert [lost.name for lost in found.lost] == ["scratch"]


def test_escapes_have_an_exact_bound() -> None:
    """None of 20 seen still allows 13.9 % (Clopper-Pearson, one-sided)."""
    top = parts(right(good=10, scratch=20))

    found = figures_of(top, top, kit_manifest())

    assert (found.escapes, found.defects) == (0, 20)
    assert found.escape_upper_95 == pytest.approx(1 - 0.05 ** (1 / 20))
    assert figures_of(parts(right(good=4)), parts(right(good=4)), kit_manifest()).escape_upper_95 is None


def test_the_drop_is_paired_and_has_an_interval() -> None:
    """Where both are wrong on the same pictures there is nothing between them."""
    said = [*right(good=50, scratch=40), *[("scratch", "stain")] * 10]

    found = figures_of(parts(said), parts(said), kit_manifest())

    assert (found.accuracy, found.drop_points, found.drop_95) == (0.9, 0.0, (0.0, 0.0))
    worse = figures_of(parts(right(good=50, scratch=50)), parts(said), kit_manifest())
    assert worse.drop_points == 10.0
    assert worse.drop_95 is not None
    assert 3 < worse.drop_95[0] < 10 < worse.drop_95[1] < 18


def test_what_flipped_is_named_the_worst_first() -> None:
    """An escape before a part that is called otherwise, and what was mended last."""
    top = [
        outcome(0, "scratch", "stain"),
        outcome(1, "stain", "stain"),
        outcome(2, "scratch", "scratch"),
        outcome(3, "good", "good"),
        outcome(4, "good", "good"),
    ]
    own = [
        outcome(0, "scratch", "scratch"),
        outcome(1, "stain", "scratch"),
        outcome(2, "scratch", "good"),
        outcome(3, "good", "good", "review"),
        outcome(4, "good", "good"),
    ]

    found = flips_of(top, own, kit_manifest())

    assert [(flip.file, flip.kind) for flip in found] == [
        ("2.png", "escape"),
        ("1.png", "broke"),
        ("3.png", "changed"),
        ("0.png", "mended"),
    ]
    assert figures_of(top, own, kit_manifest()).decisions_changed == 2
