"""`data check`: what must not be in a data set is found, and what only looks like it is left alone."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from optimize.cli import main
from optimize.data_check import DataCheck, check_data, report_json
from optimize.dataset import Dataset, Sample, read_dataset
from optimize.progress import SilentProgress
from optimize.synthetic import write_parts
from tests.kit.pictures import encoded, textured
from tests.kit.surfaces import crop, steel, write_pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _check(folder: Path) -> DataCheck:
    return check_data(read_dataset(folder), SilentProgress())


def _verdicts(check: DataCheck) -> dict[str, str]:
    return {c.name: c.verdict for c in check.checks}


def _text(check: DataCheck, name: str) -> str:
    return next(c.text for c in check.checks if c.name == name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (encoded(textured(), ".jpg")[:-40], "truncated"),
        (b"not a picture at all", "not a picture"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_reason_and_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, reason: str
) -> None:
    """A set that silently shrinks gives numbers about another set."""
    write_pictures(tmp_path, {"ok/a.jpg": textured(seed=1), "ok/broken.jpg": content})

    assert main(["data", "check", str(tmp_path)]) == 1
    assert re.search(
        rf"fail +readable +1 of 2 pictures can't be read: ok/broken.jpg \(.*{reason}", capsys.readouterr().out
    )


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff"])
def test_a_set_without_one_readable_picture_is_still_reported(tmp_path: Path, content: bytes) -> None:
    """Nothing to compare is no reason to fall over."""
    check = _check(write_pictures(tmp_path, {"ok/a.jpg": content}))

    assert _verdicts(check)["readable"] == "fail"
    assert len(check.findings.unreadable) == 1


def test_an_empty_folder_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 and one sentence, not a check that passed."""
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "no image found" in capsys.readouterr().err


def test_pictures_of_one_pixel_and_of_one_grey_level_are_counted_and_match_nothing(tmp_path: Path) -> None:
    """There is no texture to compare, and no division by zero."""
    flat = np.full((60, 60, 3), 100, np.uint8)
    check = _check(
        write_pictures(
            tmp_path,
            {
                "train/ok/dot.png": np.zeros((1, 1, 3), np.uint8),
                "test/ok/dot.png": np.ones((1, 1, 3), np.uint8),
                "train/ok/flat.png": flat,
                "test/ok/flat.png": flat + 1,
            },
        )
    )

    assert len(check.findings.pictures) == 4
    assert [list(check.findings.exact), list(check.findings.near), list(check.findings.overlaps)] == [[], [], []]


def test_a_copy_in_another_format_across_splits_is_a_leak(tmp_path: Path) -> None:
    """The pixels count, not the bytes of the file."""
    image = crop(steel(1), 0, 0)
    check = _check(
        write_pictures(tmp_path, {"train/ok/a.png": image, "test/ok/b.bmp": image, "test/ok/c.png": steel(2)})
    )

    assert _verdicts(check)["exact copies"] == "fail"
    assert report_json(check)["exact_duplicates"] == [
        {
            "files": ["test/ok/b.bmp", "train/ok/a.png"],
            "classes": ["ok", "ok"],
            "splits": ["test", "train"],
            "leak": True,
        }
    ]


def test_a_copy_within_one_split_is_a_warning(tmp_path: Path) -> None:
    """It wastes a picture, but no number becomes too good."""
    image = crop(steel(1), 0, 0)
    check = _check(
        write_pictures(tmp_path, {"train/ok/a.png": image, "train/ok/b.png": image, "test/ok/c.png": steel(2)})
    )

    assert _verdicts(check)["exact copies"] == "warn"
    assert check.verdict == "warn"


def test_one_picture_under_two_classes_fails_and_names_both(tmp_path: Path) -> None:
    """A model can't learn both, and an evaluation counts one of them as wrong for ever."""
    image = crop(steel(1), 0, 0)
    check = _check(write_pictures(tmp_path, {"train/ok/a.png": image, "train/pit/b.png": image}))

    assert _verdicts(check)["labels"] == "fail"
    assert "train/ok/a.png [ok] = train/pit/b.png [pit]" in _text(check, "labels")


@pytest.mark.parametrize("gain", [0.55, 1.4])
def test_another_exposure_of_one_scene_across_splits_is_a_leak(tmp_path: Path, gain: float) -> None:
    """Bursts at several exposures are what the magnetic tiles are made of."""
    scene = crop(steel(1), 0, 0)
    brighter = np.clip(scene * gain, 0, 255).astype(np.uint8)
    check = _check(
        write_pictures(tmp_path, {"train/ok/a.jpg": scene, "test/ok/b.jpg": brighter, "test/ok/c.jpg": steel(2)})
    )

    assert [check.findings.files((p.first, p.second)) for p in check.findings.near] == [
        ["test/ok/b.jpg", "train/ok/a.jpg"]
    ]
    assert _verdicts(check)["near copies"] == "fail"


@pytest.mark.parametrize(("left", "top"), [(60, 0), (0, 95), (110, 45), (130, 130), (40, 140)])
def test_a_shifted_crop_across_splits_is_a_leak_with_its_shift_and_share(tmp_path: Path, left: int, top: int) -> None:
    """The defect of the trade: crops of one strip in train and in test."""
    surface = steel(3)
    files = {"train/ok/a.png": crop(surface, 0, 0), "test/ok/b.png": crop(surface, left, top)}
    check = _check(
        write_pictures(tmp_path, {**files, **{f"val/ok/{i}.png": crop(steel(10 + i), 0, 0) for i in range(4)}})
    )

    assert _verdicts(check)["overlapping crops"] == "fail"
    (found,) = report_json(check)["overlaps"]
    assert found.pop("correlation") > 0.9
    assert found.pop("peak") > 5
    assert found == {
        "files": ["test/ok/b.png", "train/ok/a.png"],
        "class": "ok",
        "splits": ["test", "train"],
        "leak": True,
        "shift_px": [-left, -top],
        "share": round((200 - left) * (200 - top) / 200**2, 3),
    }


def test_crops_of_different_sizes_from_large_pictures_are_found(tmp_path: Path) -> None:
    """Surfaces are compared at one scale for the whole set, whatever each picture's size is."""
    surface = steel(4, 900, 900)
    files = {"train/ok/a.png": surface[:600, :620], "test/ok/b.png": surface[200:760, 150:750]}
    found = report_json(_check(write_pictures(tmp_path, files)))["overlaps"]

    assert len(found) == 1
    assert abs(found[0]["shift_px"][0] + 150) <= 3
    assert abs(found[0]["shift_px"][1] + 200) <= 3


def test_pictures_that_may_share_a_surface_are_no_leak(tmp_path: Path) -> None:
    """Crops within a split, in train and calib, or of one group that stays together, make no number better."""
    surface = steel(5)
    rows = [("a", "train", "g1"), ("b", "train", "g1"), ("c", "calib", "g2"), ("d", "test", "g3")]
    crops = [crop(surface, 0, 0), crop(surface, 50, 0), crop(surface, 0, 60), crop(steel(6), 0, 0)]
    write_pictures(tmp_path, {f"{name}.png": picture for (name, _, _), picture in zip(rows, crops, strict=True)})
    table = "file,class,split,group\n" + "".join(f"{name}.png,ok,{split},{group}\n" for name, split, group in rows)
    (tmp_path / "splits.csv").write_text(table)

    check = _check(tmp_path)

    assert {tuple(o["splits"]) for o in report_json(check)["overlaps"]} == {("train", "calib")}
    assert _verdicts(check)["overlapping crops"] == "warn"


def test_without_splits_crops_of_one_surface_are_named_and_leak_nowhere(tmp_path: Path) -> None:
    """They are what has to go into one group before the set is divided."""
    surface = steel(7)
    check = _check(write_pictures(tmp_path, {"ok/a.png": crop(surface, 0, 0), "ok/b.png": crop(surface, 90, 30)}))

    assert len(check.findings.overlaps) == 1
    assert _verdicts(check)["overlapping crops"] == "warn"
    assert "group" in next(c.remedy for c in check.checks if c.name == "overlapping crops")


def test_different_parts_in_one_fixture_are_not_taken_for_one_part(tmp_path: Path) -> None:
    """On a line every picture shows the same frame; if that were evidence, every set would leak."""
    fixture = np.zeros((200, 200, 3), np.uint8)
    cv2.rectangle(fixture, (15, 15), (185, 185), (90, 90, 90), 6)
    cv2.circle(fixture, (100, 100), 60, (70, 70, 70), 8)
    for i in range(60):
        part: NDArray[np.uint8] = np.asarray(cv2.add(crop(steel(100 + i), 0, 0), fixture), dtype=np.uint8)
        write_pictures(tmp_path, {f"{('train', 'test')[i % 2]}/ok/{i}.png": part})

    check = _check(tmp_path)

    assert [*check.findings.near, *check.findings.overlaps] == []
    assert _verdicts(check)["overlapping crops"] == "ok"


def test_a_class_that_shows_one_pattern_everywhere_is_said_to_be_beyond_telling_apart(tmp_path: Path) -> None:
    """Parts with the same print, moved a little: hundreds of false leaks would hide a true one."""
    pattern = steel(8, 420, 420)
    rng = np.random.default_rng(0)
    for i in range(40):
        left, top = (int(v) for v in rng.integers(0, 60, 2))
        noise = rng.normal(0, 6, (200, 200, 3))
        part = np.clip(crop(pattern, left, top) + noise, 0, 255).astype(np.uint8)
        write_pictures(tmp_path, {f"{('train', 'test')[i % 2]}/ok/{i}.png": part})

    check = _check(tmp_path)

    assert check.findings.alike == ("ok",)
    assert _verdicts(check)["told apart"] == "warn"


def test_thin_and_unbalanced_classes_are_named_with_what_is_missing(tmp_path: Path) -> None:
    """A gate on three pictures says nothing."""
    files = {f"train/ok/{i}.png": textured(seed=i) for i in range(60)}
    files |= {f"test/ok/{i}.png": textured(seed=100 + i) for i in range(20)}
    files |= {f"train/pit/{i}.png": textured(seed=200 + i) for i in range(3)}
    check = _check(write_pictures(tmp_path, files))

    assert _text(check, "classes") == "pit has 3 in train (at least 50); pit has 0 in test (at least 20)"
    assert _text(check, "balance") == "ok has 20.0 times as many pictures as pit (60 and 3, train)"
    assert _text(check, "splits") == "train 63, test 20; no val"
    assert "1,000 to 5,000 are usual, 10,000 and more where safety depends on it" in _text(check, "size")
    assert {_verdicts(check)[name] for name in ("classes", "balance", "splits", "size")} == {"warn"}


def test_pictures_that_are_nearly_black_or_of_mixed_kinds_are_named(tmp_path: Path) -> None:
    """12 bits saved in 16 without a shift look black to the model."""
    dark: NDArray[np.uint8] = np.asarray(crop(steel(9), 0, 0) // 20, dtype=np.uint8)
    mixed = _check(write_pictures(tmp_path / "mixed", {"ok/a.png": steel(1), "ok/b.png": textured(seed=1)}))
    black = _check(write_pictures(tmp_path / "black", {"ok/a.png": dark}))

    assert _text(mixed, "form") == "2 sizes (400x400, 64x48), 1 of them in colour"
    assert _text(black, "form").startswith("1 pictures are nearly black: ok/a.png")


def test_the_projects_own_parts_are_clean(tmp_path: Path) -> None:
    """Brushed and cast metal resembles itself; a check that cries wolf is switched off."""
    write_parts(tmp_path, {"train": 120, "val": 40, "test": 40}, seed=3, size_px=128)

    check = _check(tmp_path)

    assert [list(check.findings.exact), list(check.findings.near), list(check.findings.overlaps)] == [[], [], []]
    assert check.findings.alike == ()


def test_json_has_the_keys_that_its_help_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The help is the documentation; one JSON document and nothing else on standard output."""
    write_pictures(tmp_path, {"ok/a.png": steel(1)})
    with pytest.raises(SystemExit):
        main(["data", "check", "--help"])
    documented = capsys.readouterr().out

    assert main(["data", "check", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [key for key in document if not re.search(rf"\b{key}\b", documented)] == []
    assert document["classes"] == {"ok": {"all": 1}}


def test_the_contact_sheet_shows_each_class_and_the_pairs(tmp_path: Path) -> None:
    """A person sees in a second what a table does not say."""
    surface = steel(11)
    data = write_pictures(
        tmp_path / "d", {"train/ok/a.png": crop(surface, 0, 0), "test/ok/b.png": crop(surface, 60, 60)}
    )
    one, two = tmp_path / "new" / "with.png", tmp_path / "without.png"

    assert main(["data", "check", str(data), "--contact-sheet", str(one)]) == 1
    (data / "test/ok/b.png").write_bytes(encoded(crop(steel(12), 0, 0), ".png"))
    assert main(["data", "check", str(data), "--contact-sheet", str(two)]) == 0

    with_pairs, without = cv2.imread(str(one)), cv2.imread(str(two))
    assert with_pairs is not None
    assert without is not None
    assert with_pairs.shape[0] > without.shape[0]
    assert without.std() > 10


@pytest.mark.parametrize("name", ["sheet.xyz", "folder"])
def test_a_contact_sheet_that_cannot_be_written_is_the_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """One sentence, no traceback."""
    write_pictures(tmp_path / "d", {"ok/a.png": steel(1)})
    (tmp_path / "folder").mkdir()

    assert main(["data", "check", str(tmp_path / "d"), "--contact-sheet", str(tmp_path / name)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def _shuffled(dataset: Dataset, seed: int) -> Dataset:
    """The same files with their splits dealt out at random, and nobody knowing of groups."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    samples = tuple(
        Sample(path=s.path, file=s.file, label=s.label, split=dataset.samples[k].split)
        for s, k in zip(dataset.samples, order, strict=True)
    )
    return Dataset(root=dataset.root, samples=samples, classes=dataset.classes)


def _of_class(dataset: Dataset, label: str) -> Dataset:
    samples = tuple(s for s in dataset.samples if s.label == label)
    return Dataset(root=dataset.root, samples=samples, classes=(label,))


def _recall(check: DataCheck, group_of: Mapping[str, str | None]) -> float:
    """Of the pictures with a mate of their group in another split: how many stand in a pair with one of their group."""
    pictures = check.findings.pictures
    members: dict[str | None, set[str | None]] = defaultdict(set)
    for picture in pictures:
        members[group_of[picture.sample.file]].add(picture.sample.split)
    divided = {p.sample.file for p in pictures if len(members[group_of[p.sample.file]]) > 1}
    paired = [check.findings.files((p.first, p.second)) for p in (*check.findings.near, *check.findings.overlaps)]
    found = {file for pair in paired if group_of[pair[0]] == group_of[pair[1]] for file in pair}
    assert len(divided) > 50
    return len(divided & found) / len(divided)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("label", ["inclusion", "pitted_surface"])
def test_steel_that_was_divided_at_random_is_caught(neu: Path, label: str) -> None:
    """Published 99 % come from such splits; the groups of the set's own README are the truth."""
    dataset = _of_class(read_dataset(neu), label)

    check = check_data(_shuffled(dataset, 0), SilentProgress())

    assert _verdicts(check)["overlapping crops"] == "fail"
    assert _recall(check, {s.file: s.group for s in dataset.samples}) >= 0.85


@pytest.mark.shared
@pytest.mark.slow
def test_exposures_of_one_tile_that_were_divided_at_random_are_caught(magnetic_tile: Path) -> None:
    """Same scene, six exposures: brightness must not hide it."""
    dataset = _of_class(read_dataset(magnetic_tile), "blowhole")

    check = check_data(_shuffled(dataset, 0), SilentProgress())

    assert _recall(check, {s.file: s.group for s in dataset.samples}) >= 0.85


@pytest.mark.shared
@pytest.mark.slow
def test_splits_by_tile_are_clean_for_their_defect_classes(magnetic_tile: Path) -> None:
    """The set was divided by tile; ground surfaces of one kind must not be taken for one tile."""
    dataset = read_dataset(magnetic_tile)
    for label in ("blowhole", "crack", "break"):
        check = check_data(_of_class(dataset, label), SilentProgress())

        assert [*check.findings.exact, *check.findings.near, *check.findings.overlaps] == []


@pytest.mark.shared
@pytest.mark.slow
def test_what_is_left_in_the_steel_splits_really_is_one_surface(neu: Path) -> None:
    """Its README says overlaps share a group; smaller ones do not, and each that we name can be seen with the eye."""
    with (neu / "splits.csv").open(newline="") as file:
        group_of = {row["file"]: row["group"] for row in csv.DictReader(file)}

    check = check_data(_of_class(read_dataset(neu), "crazing"), SilentProgress())

    pairs = [check.findings.files((p.first, p.second)) for p in check.findings.overlaps]
    assert ["images/crazing_100.jpg", "images/crazing_102.jpg"] in pairs
    assert [pair for pair in pairs if group_of[pair[0]] == group_of[pair[1]]] == []
    assert min(p.correlation for p in check.findings.overlaps) > 0.8
