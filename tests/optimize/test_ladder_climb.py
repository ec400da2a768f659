"""Making rungs: each step once, again only when what it reads changed, and never from a half-written file."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.errors import ModelError, OptimizeError
from optimize.ladder import PlannedRung, RungFile, climb, content_digest, file_digest


class Copying:
    """A step that copies its source and adds a word, and counts how often it is done."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.done: list[Path] = []

    def __call__(self, source: Path, folder: Path) -> Path:
        self.done.append(folder)
        out = folder / "model.onnx"
        out.write_bytes(source.read_bytes() + self.word.encode())
        return out


@pytest.fixture
def top(tmp_path: Path) -> RungFile:
    (tmp_path / "top.onnx").write_bytes(b"top")
    return RungFile(name="top", path=tmp_path / "top.onnx")


def plan(first: Copying, second: Copying, **reads: str) -> list[PlannedRung]:
    return [
        PlannedRung(name="a", source="top", make=first, reads=reads),
        PlannedRung(name="b", source="a", make=second, reads={}),
    ]


def test_a_rung_from_one_that_does_not_come_before_is_refused(tmp_path: Path, top: RungFile) -> None:
    """Before anything is made."""
    step = Copying("x")
    with pytest.raises(OptimizeError, match="b is made from a, which does not come before it"):
        climb(top, plan(step, step)[1:], tmp_path)
    with pytest.raises(OptimizeError, match="two rungs are called a"):
        climb(top, [*plan(step, step)[:1], *plan(step, step)[:1]], tmp_path)
    assert step.done == []


def test_a_step_that_makes_no_file_is_refused(tmp_path: Path, top: RungFile) -> None:
    """Nor may it give a file that lies elsewhere: it would not be there as it was made."""
    for made in (tmp_path / "none.onnx", top.path):
        step = [PlannedRung(name="a", source="top", make=lambda *_, made=made: made, reads={})]
        with pytest.raises(OptimizeError, match="expected a file that it wrote into"):
            climb(top, step, tmp_path / "work")


def test_a_top_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    """In one sentence."""
    with pytest.raises(OptimizeError, match="can't be read"):
        climb(RungFile(name="top", path=tmp_path / "none"), plan(Copying("x"), Copying("y")), tmp_path)


def test_a_full_disk_is_named_with_what_helps_and_no_half_file_is_left(tmp_path: Path, top: RungFile) -> None:
    """The step's own words would name a flag that the ladder does not have."""

    def fill(_: Path, folder: Path) -> Path:
        (folder / "model.onnx.train").mkdir()
        (folder / "model.onnx.train" / "checkpoint.pt.partial").write_bytes(b"half")
        (folder / "log").write_bytes(b"kept")
        try:
            with Path("/dev/full").open("wb") as full:
                full.write(b"x")
        except OSError as error:
            raise ModelError("model.onnx: can't be written", hint="choose another --out") from error
        return folder / "model.onnx"

    with pytest.raises(OptimizeError, match="no space left") as caught:
        climb(top, [PlannedRung(name="a", source="top", make=fill, reads={})], tmp_path / "work")

    assert "--work" in str(caught.value.hint)
    assert "free" in str(caught.value.hint)
    left = [path.name for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert left == ["log"]


def test_what_is_in_a_folder_is_known_by_names_and_bytes(tmp_path: Path) -> None:
    """One more picture, or one that was changed, is another folder; where it lies does not matter."""
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "sub" / "1.png").write_bytes(b"one")
    first = content_digest(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert content_digest(tmp_path / "b") == first

    (tmp_path / "b" / "2.png").write_bytes(b"two")
    second = content_digest(tmp_path / "b")
    (tmp_path / "b" / "2.png").write_bytes(b"TWO")

    assert len({first, second, content_digest(tmp_path / "b")}) == 3
    assert content_digest(tmp_path / "b" / "2.png") == file_digest(tmp_path / "b" / "2.png")


def test_a_second_climb_makes_nothing_again(tmp_path: Path, top: RungFile) -> None:
    """An interrupted ladder goes on where it was."""
    first, second = Copying("1"), Copying("2")

    made = climb(top, plan(first, second), tmp_path / "work")
    again = climb(top, plan(first, second), tmp_path / "work")

    assert made == again
    assert [len(first.done), len(second.done)] == [1, 1]
    assert made[2].path.read_bytes() == b"top12"
    assert [rung.made_from for rung in made] == [None, "top", "a"]


def test_what_reads_something_else_is_made_again_and_what_follows_too(tmp_path: Path, top: RungFile) -> None:
    """The second step's settings are the same, but its source is not."""
    first, second = Copying("1"), Copying("2")
    climb(top, plan(first, second), tmp_path / "work")

    other = Copying("3")
    made = climb(top, plan(other, second, flags="--epochs 3"), tmp_path / "work")

    assert [len(other.done), len(second.done)] == [1, 2]
    assert made[2].path.read_bytes() == b"top32"


def test_another_source_with_the_same_result_keeps_what_follows(tmp_path: Path, top: RungFile) -> None:
    """By content: a step that gives the same bytes changes nothing behind it."""
    first, second = Copying("1"), Copying("2")
    climb(top, plan(first, second), tmp_path / "work")
    climb(top, plan(first, second, flags="--quiet"), tmp_path / "work")

    assert [len(first.done), len(second.done)] == [2, 1]


def test_a_step_that_a_power_cut_left_is_done_again(tmp_path: Path, top: RungFile) -> None:
    """Its file is there, but nothing says that it is whole; its folder keeps what the step keeps there."""
    first, second = Copying("1"), Copying("2")
    made = climb(top, plan(first, second), tmp_path / "work")
    (made[1].path.parent / "step.json").unlink()
    (made[1].path.parent / "checkpoint").write_text("half way", encoding="utf-8")

    climb(top, plan(first, second), tmp_path / "work")

    assert first.done[0] == first.done[1]
    assert (made[1].path.parent / "checkpoint").exists()


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 2}', '{"version": 1, "file": "none", "sha256": "0"}'])
def test_a_damaged_record_is_not_believed(tmp_path: Path, top: RungFile, damage: str) -> None:
    """The step is done again."""
    first, second = Copying("1"), Copying("2")
    made = climb(top, plan(first, second), tmp_path / "work")
    (made[1].path.parent / "step.json").write_text(damage, encoding="utf-8")

    climb(top, plan(first, second), tmp_path / "work")

    assert len(first.done) == 2


def test_a_result_that_was_changed_by_hand_is_made_again(tmp_path: Path, top: RungFile) -> None:
    """It would be judged under a name that it does not deserve."""
    first, second = Copying("1"), Copying("2")
    made = climb(top, plan(first, second), tmp_path / "work")
    made[1].path.write_bytes(b"something else")

    assert climb(top, plan(first, second), tmp_path / "work")[1].path.read_bytes() == b"top1"
