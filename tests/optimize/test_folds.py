"""Folds: no group is divided, no fold judges what stopped it, and what can't be judged is said."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from optimize.dataset import Dataset, Sample
from optimize.errors import DataError
from optimize.folds import deal_folds, group_of, parts_of, pool


def parts(rows: Sequence[tuple[str, str | None, str | None, int]]) -> Dataset:
    """A set from (class, group, split, how many)."""
    samples = [
        Sample(path=Path(f"/nowhere/{i:04}-{j}.png"), file=f"{i:04}-{j}.png", label=label, split=split, group=group)
        for i, (label, group, split, n) in enumerate(rows)
        for j in range(n)
    ]
    classes = tuple(sorted({sample.label for sample in samples if sample.label}))
    return Dataset(root=Path("/nowhere"), samples=tuple(samples), classes=classes)


def two_classes(groups: int = 20, images: int = 3) -> Dataset:
    return parts([(label, f"{label}{i}", None, images) for label in ("dent", "ok") for i in range(groups)])


@pytest.mark.parametrize("count", [-1, 0, 1, 51])
def test_a_number_of_folds_that_makes_no_sense_is_refused(count: int) -> None:
    """One fold would judge what it was trained on."""
    with pytest.raises(DataError, match=f"cv: got {count} folds, expected 2 to 50"):
        deal_folds(two_classes(), count, 0)


def test_fewer_groups_than_folds_are_refused(tmp_path: Path) -> None:
    """A fold without images says nothing."""
    with pytest.raises(DataError, match="got 4 groups, expected at least one for each of 5 folds"):
        deal_folds(two_classes(groups=2), 5, 0)


def test_one_class_is_refused() -> None:
    """There is nothing to tell apart."""
    with pytest.raises(DataError, match="one class only"):
        deal_folds(parts([("ok", str(i), None, 2) for i in range(9)]), 3, 0)


def test_a_class_that_only_test_has_is_refused() -> None:
    """No network could learn it, and the figures would not show that."""
    rows = [(label, f"{label}{i}", "train", 2) for label in ("dent", "ok") for i in range(9)]

    with pytest.raises(DataError, match="pit has images in test only"):
        deal_folds(pool(parts([*rows, ("pit", "p", "test", 3)])), 3, 0)


def test_images_without_labels_are_refused() -> None:
    """A flat folder has no truth."""
    dataset = two_classes()
    unlabelled = dataclasses.replace(dataset.samples[0], label=None)

    with pytest.raises(DataError, match="has no label"):
        pool(dataclasses.replace(dataset, samples=(unlabelled, *dataset.samples[1:])))


def test_a_set_that_is_all_test_is_refused() -> None:
    """Cross-validation would use the test up."""
    with pytest.raises(DataError, match="every image is in test"):
        pool(parts([("ok", None, "test", 3), ("dent", None, "test", 3)]))


def test_test_is_left_alone_and_everything_else_is_taken() -> None:
    """Train, calib and val together are what folds are dealt of."""
    rows = [(label, None, split, 3) for label in ("dent", "ok") for split in ("train", "calib", "val", "test")]

    assert pool(parts(rows)).splits == {"train": 6, "calib": 6, "val": 6}


def test_every_image_is_judged_once_and_no_group_is_divided() -> None:
    """The rule that the figures rest on."""
    dataset = two_classes()

    folds = deal_folds(dataset, 5, 0)

    assert sorted(s.file for i in range(1, 6) for s in folds.judged(i)) == [s.file for s in dataset.samples]
    fold_of = {group_of(s): n for s, n in zip(dataset.samples, folds.numbers, strict=True)}
    assert [fold_of[group_of(s)] for s in dataset.samples] == list(folds.numbers)


def test_folds_hold_the_same_share_of_each_class() -> None:
    """A fold without a class can't be compared with one that has it."""
    rows = [("ok", f"ok{i}", None, 7) for i in range(50)] + [("dent", f"dent{i}", None, 2) for i in range(10)]

    folds = deal_folds(parts(rows), 5, 3)

    assert [Counter(s.label for s in folds.judged(i)) for i in range(1, 6)] == [{"ok": 70, "dent": 4}] * 5


def test_the_same_seed_gives_the_same_folds_and_another_does_not() -> None:
    """Whoever repeats a run must get the folds that were reported."""
    dealt = [deal_folds(two_classes(), 5, seed).numbers for seed in (1, 1, 2)]

    assert dealt[0] == dealt[1]
    assert dealt[0] != dealt[2]


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_what_a_fold_judges_neither_trains_nor_stops_its_network(fold: int) -> None:
    """Early stopping on the judged images flatters the fold."""
    folds = deal_folds(two_classes(), 5, 0)

    found = parts_of(folds, fold)

    groups = {split: {group_of(s) for s in found.take(split)} for split in ("train", "val")}
    judged = {group_of(s) for s in folds.judged(fold)}
    assert groups["train"] & groups["val"] == set()
    assert (groups["train"] | groups["val"]) & judged == set()
    assert len(groups["train"] | groups["val"] | judged) == 40
    assert min(found.take("val").counts.values()) > 0


def test_a_class_with_two_groups_keeps_one_in_training() -> None:
    """What stops the training must not take the last group that it could learn from."""
    rows = [("ok", f"ok{i}", None, 4) for i in range(20)] + [("pit", f"pit{i}", None, 5) for i in range(2)]
    folds = deal_folds(parts(rows), 4, 0)

    for fold in range(1, 5):
        assert parts_of(folds, fold).take("train").counts["pit"] >= 5
    assert len(folds.notices) == 1
    assert folds.notices[0].startswith("pit has 2 groups for 4 folds: folds ")
    assert folds.notices[0].endswith(" have none of it")


def test_a_class_with_one_group_trains_everywhere_and_is_judged_nowhere() -> None:
    """It can't be both; the user is told that nothing is known about it."""
    rows = [("ok", f"ok{i}", None, 4) for i in range(20)] + [("pit", "the one", None, 5)]

    folds = deal_folds(parts(rows), 4, 0)

    assert folds.judged(0) == tuple(s for s in folds.dataset.samples if s.label == "pit")
    assert "pit has one group (5 images): it is trained on, never judged" in folds.notices[0]
    assert all(parts_of(folds, fold).take("train").counts["pit"] == 5 for fold in range(1, 5))


def test_a_group_with_two_classes_stays_whole() -> None:
    """A good and a bad crop of one tile are one tile."""
    mixed = parts([(label, f"tile{i}", None, 2) for i in range(15) for label in ("dent", "ok")])

    folds = deal_folds(mixed, 5, 0)

    fold_of: dict[str, set[int]] = {}
    for sample, number in zip(mixed.samples, folds.numbers, strict=True):
        fold_of.setdefault(group_of(sample), set()).add(number)
    assert {len(numbers) for numbers in fold_of.values()} == {1}
