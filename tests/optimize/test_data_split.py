"""`data split`: what shows one part stays together, every picture has one split, nothing is overwritten unasked."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.cli import main
from optimize.data_split import Grouping, SplitPlan, group_pictures, plan_splits
from optimize.dataset import SPLITS, Dataset, Sample, read_dataset
from optimize.errors import DataError
from optimize.progress import SilentProgress
from tests.kit.pictures import encoded, textured
from tests.kit.surfaces import crop, steel, write_pictures
from tools.bench_methods.splits import split_figures

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 120
HALVES = "train=0.5,test=0.5"
_SPLITS_OF_SIX = ("train", "train", "train", "test", "val", "val")


def _piece(surface: NDArray[np.uint8], left: int = 0, top: int = 0) -> NDArray[np.uint8]:
    return crop(surface, left, top, SIDE)


def _parts(folder: Path, count: int = 12, first_seed: int = 100) -> Path:
    """Pictures of as many different parts, in two classes."""
    files = {f"{('ok', 'pit')[i % 2]}/{i}.png": _piece(steel(first_seed + i, SIDE, SIDE)) for i in range(count)}
    return write_pictures(folder, files)


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def _evidence(folder: Path, *, across: bool | None = None) -> dict[frozenset[str], str]:
    """Each linked pair of files with what links it."""
    dataset = read_dataset(folder, has_splits=False)
    found = group_pictures(dataset, SilentProgress(), is_across_classes=across)
    return {
        frozenset(dataset.samples[i].file for i in (link.pair.first, link.pair.second)): link.evidence
        for link in found.links
    }


@pytest.mark.parametrize(
    "fractions",
    ["", "train", "train=0.5", "train=0.5,tst=0.5", "train=x,test=0.5", "train=1.5,test=-0.5", "train=0.5,train=0.5"],
)
def test_shares_that_make_no_whole_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fractions: str
) -> None:
    """Exit 2 and a sentence; no table is left behind."""
    data, out = _parts(tmp_path / "d", 4), tmp_path / "out.csv"

    try:
        code = main(["data", "split", str(data), "--out", str(out), "--fractions", fractions])
    except SystemExit as stopped:
        code = int(str(stopped.code))

    assert (code, out.exists()) == (2, False)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.txt", "out", "folder.csv"])
def test_what_is_no_table_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Before minutes of work, not after."""
    (tmp_path / "folder.csv").mkdir()

    assert main(["data", "split", str(_parts(tmp_path / "d", 4)), "--out", str(tmp_path / name)]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_table_that_exists_is_written_over_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody's splits are the ground under all figures that were measured on them."""
    data, out = _parts(tmp_path / "d", 4), tmp_path / "out.csv"
    out.write_text("mine")
    command = ["data", "split", str(data), "--out", str(out), "--fractions", HALVES]

    assert main(command) == 2
    assert out.read_text() == "mine"
    assert "--force" in capsys.readouterr().err

    assert main([*command, "--force"]) == 0
    assert len(_rows(out)) == 4


def test_a_table_is_never_written_over_the_one_it_is_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its groups would be lost, force or not."""
    data = _parts(tmp_path / "d", 4)
    assert main(["data", "split", str(data), "--out", str(tmp_path / "one.csv")]) == 0
    before = (tmp_path / "one.csv").read_bytes()

    assert main(["data", "split", str(tmp_path / "one.csv"), "--out", str(tmp_path / "one.csv"), "--force"]) == 2
    assert "is what the splits are made from" in capsys.readouterr().err
    assert (tmp_path / "one.csv").read_bytes() == before


def test_one_picture_under_two_classes_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stays in one split, but one of its labels is wrong."""
    data = write_pictures(
        _parts(tmp_path / "d", 4), {"ok/same.png": _piece(steel(99)), "dent/same.png": _piece(steel(99))}
    )

    assert main(["data", "split", str(data), "--out", str(tmp_path / "out.csv"), "--json"]) == 0

    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any("one picture under two classes: dent/same.png (dent) and ok/same.png (ok)" in text for text in warnings)


def test_a_picture_that_cannot_be_read_stops_the_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody knows what it shows, so nobody knows where it may go."""
    data = write_pictures(_parts(tmp_path / "d", 4), {"ok/broken.jpg": encoded(textured(), ".jpg")[:-40]})

    assert main(["data", "split", str(data), "--out", str(tmp_path / "out.csv")]) == 2
    assert "ok/broken.jpg" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_pictures_without_a_class_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to deal by."""
    write_pictures(tmp_path / "d", {"a.png": _piece(steel(1)), "b.png": _piece(steel(2))})

    assert main(["data", "split", str(tmp_path / "d"), "--out", str(tmp_path / "out.csv")]) == 2
    assert "a.png has no label" in capsys.readouterr().err


def test_a_name_that_no_table_can_hold_is_said_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set that cannot be read back as it was planned is not a plan."""
    data = write_pictures(_parts(tmp_path / "d", 4), {"ok/two\nlines.png": _piece(steel(1))})

    assert main(["data", "split", str(data), "--out", str(tmp_path / "new" / "out.csv")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("by", ["lot", "nonsense"])
def test_a_column_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str) -> None:
    """Silently splitting by nothing would leak what the user knows about."""
    data = _parts(tmp_path / "d", 4)

    assert main(["data", "split", str(data), "--out", str(tmp_path / "out.csv"), "--by", by]) == 2
    assert by in capsys.readouterr().err


def test_each_pair_says_what_links_it(tmp_path: Path) -> None:
    """A person has to be able to check it."""
    one, two, three, four = (steel(seed) for seed in range(1, 5))
    noise = np.random.default_rng(0).normal(0, 2, (SIDE, SIDE, 3))
    files = {
        "ok/copy-a.png": _piece(one),
        "ok/copy-b.bmp": _piece(one),
        "ok/near-a.png": _piece(two),
        "ok/near-b.png": np.clip(_piece(two) + noise, 0, 255).astype(np.uint8),
        "ok/light-a.png": _piece(three),
        "ok/light-b.png": np.clip(_piece(three, 5, 3) * 0.6, 0, 255).astype(np.uint8),
        "ok/crop-a.png": _piece(four),
        "ok/crop-b.png": _piece(four, 60, 30),
        "ok/alone.png": _piece(steel(9)),
    }

    found = _evidence(write_pictures(tmp_path, files))

    assert found == {
        frozenset({"ok/copy-a.png", "ok/copy-b.bmp"}): "copy",
        frozenset({"ok/near-a.png", "ok/near-b.png"}): "near copy",
        frozenset({"ok/light-a.png", "ok/light-b.png"}): "exposure",
        frozenset({"ok/crop-a.png", "ok/crop-b.png"}): "overlap",
    }


@pytest.mark.parametrize(("across", "expected"), [(True, ["overlap"]), (False, [])])
def test_crops_of_one_surface_in_two_classes_are_linked_where_classes_are_compared(
    tmp_path: Path, across: bool, expected: list[str]
) -> None:
    """A defect and the good metal beside it are one part."""
    surface = steel(5)
    write_pictures(tmp_path, {"ok/a.png": _piece(surface), "pit/b.png": _piece(surface, 50, 20)})

    assert list(_evidence(tmp_path, across=across).values()) == expected


def _bursts(folder: Path, gap: int, *, parts: int = 14, dark: Sequence[int] = ()) -> Path:
    """Bursts of four frames per part; between parts the number jumps by `gap`; dark frames show nothing."""
    number = 100
    files: dict[str, NDArray[np.uint8]] = {}
    for part in range(parts):
        surface = steel(300 + part, SIDE, SIDE)
        for shot in range(4):
            gain = 0.5 + 0.2 * shot
            picture = np.clip(surface * gain, 0, 255).astype(np.uint8)
            if shot == 3 and part in dark:
                picture = np.full_like(surface, 20 + part)
            files[f"ok/exp{shot}_num_{number}.png"] = picture
            number += 2 if shot < 3 else gap
    return write_pictures(folder, files)


def test_a_frame_too_dark_to_recognise_joins_the_burst_that_its_number_belongs_to(tmp_path: Path) -> None:
    """Pictures prove what numbers mean here; then numbers speak for the pictures that show nothing."""
    dataset = read_dataset(_bursts(tmp_path, 300, dark=(2, 7)))

    found = group_pictures(dataset, SilentProgress())

    assert [(rule.pattern, rule.gap) for rule in found.rules] == [("exp*_num_#", 2)]
    assert sorted(found.sizes.values()) == [4] * 14


def test_numbers_that_only_count_files_link_nothing(tmp_path: Path) -> None:
    """Most sets are numbered 1, 2, 3, ...; reading bursts out of that would make one group of everything."""
    dataset = read_dataset(_bursts(tmp_path, 2, dark=(2, 7)))

    found = group_pictures(dataset, SilentProgress())

    assert found.rules == []
    assert max(found.sizes.values()) == 4


def test_the_datas_own_parts_and_lots_stay_together(tmp_path: Path) -> None:
    """What the line knows counts for as much as what pictures show; the coarser column where it is asked for."""
    data = _parts(tmp_path / "d", 12)
    files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    lines = [f"{f},{f.partition('/')[0]},p{i // 2},l{i // 6}" for i, f in enumerate(files)]
    (data / "splits.csv").write_text("\n".join(["file,class,part,lot", *lines]))
    command = ["data", "split", str(data), "--fractions", HALVES]

    assert main([*command, "--out", str(tmp_path / "part.csv")]) == 0
    assert main([*command, "--out", str(tmp_path / "lot.csv"), "--by", "lot"]) == 0
    assert main([*command, "--out", str(tmp_path / "none.csv"), "--by", "none"]) == 0

    counts = [len({row["group"] for row in _rows(tmp_path / f"{n}.csv").values()}) for n in ("part", "lot", "none")]
    assert counts == [6, 2, 12]


def test_present_splits_are_overlooked_even_where_they_divide_a_part(tmp_path: Path) -> None:
    """Mending such a set is what the command is for."""
    surface = steel(6)
    files = {"train/ok/a.png": _piece(surface), "test/ok/b.png": _piece(surface, 40, 10)}
    data = write_pictures(tmp_path / "d", {**files, "train/pit/c.png": _piece(steel(7))})

    assert main(["data", "split", str(data), "--out", str(tmp_path / "o.csv"), "--fractions", HALVES]) == 0

    rows = _rows(tmp_path / "o.csv")
    assert rows["train/ok/a.png"]["group"] == rows["test/ok/b.png"]["group"]
    assert rows["train/ok/a.png"]["split"] == rows["test/ok/b.png"]["split"]


def test_a_split_that_is_kept_keeps_its_pictures_and_what_shows_their_surface_joins_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures on it stay comparable, and stop being too good."""
    surface = steel(8)
    files = {"test/ok/a.png": _piece(surface), "train/ok/b.png": _piece(surface, 40, 10)}
    files |= {f"{('train', 'test')[i % 2]}/ok/{i}.png": _piece(steel(20 + i)) for i in range(6)}
    data = write_pictures(tmp_path / "d", files)

    command = ["data", "split", str(data), "--keep", "test", "--fractions", "train=0.6,val=0.4"]
    assert main([*command, "--out", str(tmp_path / "o.csv")]) == 0

    tested = {file for file, row in _rows(tmp_path / "o.csv").items() if row["split"] == "test"}
    assert tested == {f for f in files if f.startswith("test/")} | {"train/ok/b.png"}
    assert "1 images joined test" in capsys.readouterr().out


def test_two_splits_that_share_a_surface_cannot_both_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused in words, naming the two pictures."""
    surface = steel(8)
    write_pictures(tmp_path / "d", {"test/ok/a.png": _piece(surface), "val/ok/b.png": _piece(surface, 40, 10)})
    command = ["data", "split", str(tmp_path / "d"), "--out", str(tmp_path / "o.csv")]

    assert main([*command, "--keep", "test", "--keep", "val"]) == 2
    assert "test/ok/a.png (test) and val/ok/b.png (val) show one surface" in capsys.readouterr().err
    assert main([*command, "--keep", "calib"]) == 2
    assert "calib" in capsys.readouterr().err


def _grouping(groups: Sequence[int], labels: Sequence[str]) -> Grouping:
    """A set with groups as given, without pictures."""
    samples = tuple(
        Sample(path=Path(f"{i:03}.png"), file=f"{i:03}.png", label=label, group=str(group))
        for i, (group, label) in enumerate(zip(groups, labels, strict=True))
    )
    dataset = Dataset(root=Path(), samples=samples, classes=tuple(sorted(set(labels))))
    return Grouping(
        dataset=dataset, pictures=(), links=(), rules=(), alike=(), is_across_classes=True, seconds=0.0
    )  # fmt: skip


@settings(max_examples=60)
@given(
    images=st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=1, max_size=80),
    seed=st.integers(0, 99),
)
def test_no_group_is_ever_divided_and_every_image_has_one_split(images: list[tuple[int, str]], seed: int) -> None:
    """Whatever groups look like, also where they hold several classes; and the same seed decides the same."""
    grouping = _grouping([group for group, _ in images], [label for _, label in images])

    plan = plan_splits(grouping, seed=seed)

    splits: dict[str | None, set[str | None]] = defaultdict(set)
    for sample in plan.dataset.samples:
        splits[sample.group].add(sample.split)
    assert {len(found) for found in splits.values()} == {1}
    assert {s.split for s in plan.dataset.samples} <= set(SPLITS)
    assert [s.file for s in plan.dataset.samples] == [s.file for s in grouping.dataset.samples]
    assert plan_splits(grouping, seed=seed).dataset == plan.dataset


def test_a_rare_defect_reaches_every_split_though_its_groups_are_full_of_good_pictures() -> None:
    """A split that judges without one fray tile says nothing of fray."""
    groups = [g for g in range(6) for _ in range(16)] + list(range(6, 106))
    labels = (["fray"] * 4 + ["ok"] * 12) * 6 + ["ok"] * 100

    plan = plan_splits(_grouping(groups, labels), fractions={"train": 0.7, "val": 0.12, "test": 0.18})

    assert [n for n, _ in plan.counts("fray").values()] == [16, 4, 4]


def test_a_class_with_too_few_groups_is_named_with_its_counts() -> None:
    """Three parts can't fill four splits, and one part in test is an anecdote."""
    plan = plan_splits(_grouping([0, 0, 1, *range(2, 42)], ["fray"] * 3 + ["ok"] * 40))

    assert any(w.startswith("fray has only 2 groups: none in ") for w in plan.warnings)


@pytest.fixture
def plan(tmp_path: Path) -> SplitPlan:
    """Twelve parts, one of them three times."""
    surface = steel(50)
    data = _parts(tmp_path / "d", 12)
    write_pictures(data, {f"ok/x{i}.png": _piece(surface, 30 * i, 10 * i) for i in range(3)})
    return plan_splits(group_pictures(read_dataset(data), SilentProgress()), seed=3)


def test_no_linked_pair_is_divided(plan: SplitPlan) -> None:
    """The point of it all, on pictures."""
    splits = [sample.split for sample in plan.dataset.samples]

    assert len(plan.grouping.links) >= 2
    assert [x for x in plan.grouping.links if splits[x.pair.first] != splits[x.pair.second]] == []


def test_the_same_seed_writes_the_same_bytes_and_the_data_folder_stays_as_it_is(tmp_path: Path) -> None:
    """A table can be made again by whoever has the pictures; they may lie on a share that is read-only."""
    data = _parts(tmp_path / "d", 12)
    before = sorted(path.name for path in data.rglob("*"))
    for name in ("one", "two"):
        assert main(["data", "split", str(data), "--seed", "5", "--out", str(tmp_path / name / "s.csv")]) == 0

    assert (tmp_path / "one/s.csv").read_bytes() == (tmp_path / "two/s.csv").read_bytes()
    assert sorted(path.name for path in data.rglob("*")) == before
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["s.csv"]


def test_a_table_that_lies_elsewhere_is_read_as_the_data_set_that_it_divides(tmp_path: Path) -> None:
    """`--data splits-1.csv` is all that a training needs."""
    data = _parts(tmp_path / "d", 12)
    assert main(["data", "split", str(data), "--out", str(tmp_path / "s.csv"), "--fractions", HALVES]) == 0

    read = read_dataset(tmp_path / "s.csv")

    assert read.root == data.resolve()
    assert [s.file for s in read.samples] == [s.file for s in read_dataset(data).samples]
    assert sorted(read.splits) == ["test", "train"]
    assert all(s.path.is_file() for s in read.samples)


def test_a_table_beside_its_pictures_is_an_ordinary_splits_csv(tmp_path: Path) -> None:
    """Without a root, so that the folder can be moved."""
    data = _parts(tmp_path / "d", 4)
    assert main(["data", "split", str(data), "--out", str(data / "splits.csv"), "--fractions", HALVES]) == 0

    assert next(iter(_rows(data / "splits.csv").values())).keys() == {"file", "class", "split", "group"}
    assert sorted(read_dataset(data).splits) == ["test", "train"]


_TABLES: Mapping[str, str] = {
    "leads out of": "file,class,split,root\n../x.png,ok,train,{data}\n",
    "expected one folder": "file,class,split,root\nok/0.png,ok,train,{data}\npit/1.png,pit,train,/\n",
    "no such folder": "file,class,split,root\nok/0.png,ok,train,/nowhere/at/all\n",
    "no such file": "file,class,split\nok/0.png,ok,train\n",
}


@pytest.mark.parametrize("reason", _TABLES)
def test_a_table_whose_files_lie_outside_its_one_root_is_refused(tmp_path: Path, reason: str) -> None:
    """A root says where; nothing in the rows may lead out of it."""
    data = _parts(tmp_path / "d", 4)
    (tmp_path / "s.csv").write_text(_TABLES[reason].format(data=data))

    with pytest.raises(DataError, match=reason):
        read_dataset(tmp_path / "s.csv")


def test_the_splits_csv_of_a_folder_never_leads_out_of_it(tmp_path: Path) -> None:
    """Who unpacks a foreign data set must not read pictures of his own from elsewhere."""
    data = _parts(tmp_path / "d", 4)
    other = write_pictures(tmp_path / "other", {"secret.png": _piece(steel(1))})
    (data / "splits.csv").write_text(f"file,class,split,root\nsecret.png,ok,train,{other}\n")

    with pytest.raises(DataError, match="no such file"):
        read_dataset(data)


def test_classes_that_cannot_be_told_apart_are_said_to_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1: the table is there, but nobody should trust it unread."""
    pattern = steel(8, 200, 200)
    rng = np.random.default_rng(0)
    for i in range(40):
        left, top = (int(v) for v in rng.integers(0, 40, 2))
        part = np.clip(_piece(pattern, left, top) + rng.normal(0, 6, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        write_pictures(tmp_path / "d", {f"ok/{i}.png": part})

    assert main(["data", "split", str(tmp_path / "d"), "--out", str(tmp_path / "s.csv")]) == 1
    assert "MAY LEAK" in capsys.readouterr().out


def test_json_has_the_keys_that_its_help_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The help is the documentation; one JSON document and nothing else on standard output."""
    surface = steel(1)
    write_pictures(_parts(tmp_path / "d", 6), {"ok/a.png": _piece(surface), "ok/b.png": _piece(surface, 20, 20)})
    with pytest.raises(SystemExit):
        main(["data", "split", "--help"])
    documented = capsys.readouterr().out

    assert main(["data", "split", str(tmp_path / "d"), "--out", str(tmp_path / "s.csv"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    keys = {*document, *document["links"][0]}
    assert [key for key in keys if not re.search(rf"\b{key}\b", documented)] == []
    assert document["largest"]["n"] == 2
    assert sum(split["n"] for split in document["splits"].values()) == 8


def test_the_lines_show_counts_evidence_and_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a person reads before trusting it."""
    surface = steel(1)
    write_pictures(_parts(tmp_path / "d", 6), {"ok/a.png": _piece(surface), "ok/b.png": _piece(surface, 40, 20)})

    assert main(["data", "split", str(tmp_path / "d"), "--out", str(tmp_path / "s.csv"), "--fractions", HALVES]) == 0

    shown = capsys.readouterr().out
    assert "8 pictures in 7 groups" in shown
    assert re.search(r"overlap +1 ", shown)
    assert f"Next: defect-opt train --data {tmp_path / 's.csv'}" in shown


def test_the_contact_sheet_shows_linked_pairs_and_the_largest_group(tmp_path: Path) -> None:
    """A person sees in a second whether a link is real."""
    surface = steel(1)
    data = write_pictures(_parts(tmp_path / "d", 4), {f"ok/b{i}.png": _piece(surface, 30 * i) for i in range(3)})
    sheet = tmp_path / "new" / "links.png"

    assert main(["data", "split", str(data), "--out", str(tmp_path / "s.csv"), "--contact-sheet", str(sheet)]) == 0

    drawn = cv2.imread(str(sheet))
    assert drawn is not None
    assert drawn.shape[0] > 2 * 128
    assert drawn.std() > 10


def test_the_benchs_figures_count_pairs_as_they_say(tmp_path: Path) -> None:
    """One pair found and known, one found that the column lacks (too small for it), one in the column that is none."""
    one, two = steel(1), steel(2)
    pictures = [_piece(one), _piece(one, 20), _piece(two), _piece(two, 60, 30), _piece(steel(3)), _piece(steel(4))]
    write_pictures(tmp_path, {f"{name}.png": p for name, p in zip("abcdef", pictures, strict=True)})
    rows = [
        f"{name}.png,ok,{split},{group}" for name, split, group in zip("abcdef", _SPLITS_OF_SIX, "112344", strict=True)
    ]
    (tmp_path / "splits.csv").write_text("\n".join(["file,class,split,group", *rows]))

    figures = split_figures(tmp_path)

    shares = {name: figures[name]["value"] for name in ("recall", "precision", "precision_direct")}
    assert shares == {"recall": 0.5, "precision": 1.0, "precision_direct": 0.5}
    assert figures["control"] == {"links": 2, "mirrored": 0, "value": 1.0}
    assert (figures["groups"], figures["column_groups"], figures["largest"]) == (4, 4, 2)


def _recall(root: Path, label: str) -> float:
    """Of the pairs of one group in the set's own column, how many are put together without it."""
    with_column = read_dataset(root, has_splits=False)
    column = {s.file: s.group for s in with_column.samples}
    bare = read_dataset(root, has_splits=False, group_by="")
    part = Dataset(root=root, samples=tuple(s for s in bare.samples if s.label == label), classes=(label,))
    found = [(column[s.file], s.group) for s in group_pictures(part, SilentProgress()).dataset.samples]
    pairs = [(a[1] == b[1]) for i, a in enumerate(found) for b in found[i + 1 :] if a[0] == b[0]]
    return sum(pairs) / len(pairs)


@pytest.mark.shared
@pytest.mark.slow
def test_exposures_of_one_tile_are_put_together(magnetic_tile: Path) -> None:
    """Six exposures of one tile, shifted by hand, some of them nearly black."""
    assert _recall(magnetic_tile, "blowhole") >= 0.9


@pytest.mark.shared
@pytest.mark.slow
def test_crops_of_one_strip_are_put_together(neu: Path) -> None:
    """The set's own column was made by another search."""
    assert _recall(neu, "inclusion") >= 0.9
