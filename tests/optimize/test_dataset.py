"""What a folder of images may look like, what is refused with which words, and how splits are dealt."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ImageError
from optimize.dataset import SPLITS, Dataset, Sample, assign_splits, data_digest, read_dataset, read_image
from optimize.errors import DataError
from tests.kit.pictures import encoded, textured, write_pictures


def with_csv(root: Path, text: str, *, files: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    write_pictures(root, files)
    (root / "splits.csv").write_text(text, encoding="utf-8")
    return root


def refused(root: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_dataset(root)
    return caught.value


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A typing error is the most frequent mistake."""
    error = refused(tmp_path / "nowhere")

    assert "nowhere: no such folder" in error.message


def test_a_folder_without_images_says_what_was_expected(tmp_path: Path) -> None:
    """Someone may have pointed one folder too high or too low."""
    (tmp_path / "notes.txt").write_text("no picture")

    error = refused(tmp_path)

    assert "no image found (1 other files)" in error.message
    assert error.hint is not None
    assert ".png" in error.hint


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name,class,split\na.png,ok,train\n", 1, "expected file,class,split"),
        ("", 1, "expected file,class,split"),
        ("file,class,split\n../a.png,ok,train\n", 2, "leads out of"),
        ("file,class,split\nx/../../a.png,ok,train\n", 2, "leads out of"),
        ("file,class,split\n..\\a.png,ok,train\n", 2, "leads out of"),
        ("file,class,split\n/etc/passwd,ok,train\n", 2, "leads out of"),
        ("file,class,split\nC:/a.png,ok,train\n", 2, "leads out of"),
        ("file,class,split\n,ok,train\n", 2, "expected a path"),
        ("file,class,split\na\x07.png,ok,train\n", 2, "expected a path"),
        ("file,class,split\na.png,,train\n", 2, "class: is empty"),
        ("file,class,split\na.png,ok,train\nb.png,ok,validation\n", 3, "did you mean val?"),
        ("file,class,split\na.png,ok,\n", 2, "expected one of train, calib, val, test"),
        ("file,class,split\na.png,ok,train\nb.png,ok\n", 3, "more or fewer cells"),
        ("file,class,split\na.png,ok,train,more\n", 2, "more or fewer cells"),
        ("file,class,split\na.png,ok,train\nb.png,ok,val\na.png,ok,test\n", 4, "stands in line 2 already"),
        ("file,class,split\na.png,ok,train\n./a.png,ok,val\n", 3, "stands in line 2 already"),
        ("file,class,split\na.png,ok,train\nmissing.png,ok,val\ngone.png,ok,val\n", 3, "(and 1 more)"),
        ("file,class,split,group\na.png,ok,train,7\nb.png,ok,test,7\n", 3, "a part lies in one split"),
        ("file,class,split,lot\na.png,ok,train,7\nb.png,ok,test,7\n", 3, "group '7' is in test here and in train"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    """A set that lost rows without a word would give wrong numbers, and a path must not leave the folder."""
    error = refused(with_csv(tmp_path, text))

    assert f"splits.csv: line {line}:" in error.message
    assert words in error.message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"file,class,split\n\x00.png,ok,train\n", bytes(range(256))])
def test_a_csv_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    """Saved as UTF-16 by a spreadsheet, or another file altogether."""
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "splits.csv").write_bytes(content)

    assert "splits.csv" in refused(tmp_path).message


@given(content=st.binary(max_size=200))
def test_no_bytes_in_splits_csv_raise_anything_but_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Users must never see a traceback from the csv module."""
    root = tmp_path_factory.mktemp("set")
    (root / "splits.csv").write_bytes(b"file,class,split\n" + content)

    with pytest.raises(DataError):
        read_dataset(root)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    """Their label is unknown, and leaving them out silently would lose data."""
    write_pictures(tmp_path, ["ok/a.png", "dent/b.png", "c.png"])

    error = refused(tmp_path)

    assert "1 images lie beside the class folders, the first is c.png" in error.message


def test_split_folders_beside_other_folders_are_refused(tmp_path: Path) -> None:
    """`train` beside `scratch`: either reading would be a guess."""
    write_pictures(tmp_path, ["train/ok/a.png", "scratch/b.png"])

    assert "['train'] beside ['scratch']" in refused(tmp_path).message


def test_an_image_directly_in_a_split_folder_among_classes_is_refused(tmp_path: Path) -> None:
    """It would be without a label."""
    write_pictures(tmp_path, ["train/ok/a.png", "train/b.png"])

    assert "train/b.png" in refused(tmp_path).message


def test_a_class_name_that_the_bundle_can_not_hold_is_refused(tmp_path: Path) -> None:
    """Found now, not after an hour of training."""
    write_pictures(tmp_path, [f"{'x' * 81}/a.png", "ok/b.png"])

    assert "80 printable characters" in refused(tmp_path).message


@pytest.mark.parametrize(
    "content", [b"", encoded(textured(), ".jpg")[:-200], b"not a picture", encoded(textured(), ".png")[:100]]
)
def test_a_broken_image_is_refused_when_it_is_read(tmp_path: Path, content: bytes) -> None:
    """Half a picture must not be learned from; listing the folder does not open it."""
    (tmp_path / "a.png").write_bytes(content)

    sample = read_dataset(tmp_path).samples[0]

    with pytest.raises(ImageError, match=r"a\.png"):
        read_image(sample.path)


@pytest.mark.parametrize(
    "image",
    [
        np.full((1, 1, 3), 200, dtype=np.uint8),
        np.full((5, 7), 200 * 256 + 17, dtype=np.uint16),
        np.full((5, 7, 4), 200, dtype=np.uint8),
        np.full((5, 7), 200, dtype=np.uint8),
    ],
    ids=["1x1", "16-bit grey", "alpha", "8-bit grey"],
)
def test_every_kind_of_picture_becomes_8_bit_bgr(tmp_path: Path, image: np.ndarray) -> None:
    """The device sees it so, hence training must too."""
    (tmp_path / "a.png").write_bytes(encoded(image))

    read = read_image(tmp_path / "a.png")

    assert np.array_equal(np.full((*image.shape[:2], 3), 200, dtype=np.uint8), read)


def test_a_folder_per_class_gives_labels_and_no_splits(tmp_path: Path) -> None:
    """The layout that most people have; folders below a class folder belong to it."""
    write_pictures(tmp_path, ["scratch/b.png", "ok/a.JPG", "ok/monday/c.tiff"])

    dataset = read_dataset(tmp_path)

    assert dataset.classes == ("ok", "scratch")
    assert [(s.file, s.label, s.split) for s in dataset] == [
        ("ok/a.JPG", "ok", None),
        ("ok/monday/c.tiff", "ok", None),
        ("scratch/b.png", "scratch", None),
    ]
    assert dataset.targets == (0, 0, 1)
    assert dataset.take("val") is dataset


def test_split_folders_give_splits(tmp_path: Path) -> None:
    """The layout of most published sets."""
    write_pictures(tmp_path, ["train/ok/a.png", "train/dent/b.png", "val/ok/c.png", "test/dent/d.png"])

    dataset = read_dataset(tmp_path)

    assert dataset.splits == {"train": 2, "val": 1, "test": 1}
    assert [s.file for s in dataset.take("test")] == ["test/dent/d.png"]
    assert dataset.take("val").classes == ("dent", "ok")
    assert dataset.take("val").counts == {"dent": 0, "ok": 1}


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    """Enough for calibration; asking for targets says what to do."""
    dataset = read_dataset(write_pictures(tmp_path, ["b.png", "a.png"]))

    assert dataset.labels == (None, None)
    assert dataset.classes == ()
    with pytest.raises(DataError, match=r"a\.png: has no label"):
        _ = dataset.targets


def test_files_that_are_no_images_are_named_and_left_out(tmp_path: Path) -> None:
    """Folders collect such things; an archive from a Mac doubles every name."""
    write_pictures(tmp_path, ["ok/a.png", "bad/b.png"])
    for name in (".DS_Store", "ok/Thumbs.db", "ok/._a.png", "readme.txt", "__MACOSX/ok/a.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    dataset = read_dataset(tmp_path)

    assert dataset.classes == ("bad", "ok")
    assert len(dataset) == 2
    assert dataset.ignored == (".DS_Store", "ok/._a.png", "ok/Thumbs.db", "readme.txt")


@pytest.mark.parametrize(
    "text",
    [
        "file,class,split,group\na.png,ok,train,1\nb.png,dent,val,2\n",
        "\ufefffile,class,split,part\r\na.png,ok,train,1\r\nb.png,dent,val,2\r\n",
        "file;class;split;lot\na.png;ok;train;1\nb.png;dent;val;2\n",
        'file, class, split, group, note\n"a.png", ok, train, 1, "x, y"\nb.png, dent, val, 2,\n',
    ],
    ids=["plain", "Excel, part", "semicolons, lot", "spaces, another column"],
)
def test_spreadsheets_write_csv_in_many_ways(tmp_path: Path, text: str) -> None:
    """Byte order mark, CRLF, semicolons, spaces and columns of one's own are all fine."""
    dataset = read_dataset(with_csv(tmp_path, text.replace('"a.png", ok, train, 1, "x, y"', "a.png, ok, train, 1, x")))

    assert [(s.file, s.label, s.split, s.group) for s in dataset] == [
        ("a.png", "ok", "train", "1"),
        ("b.png", "dent", "val", "2"),
    ]


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    """An empty set must not reach training, calibration or a report."""
    dataset = read_dataset(with_csv(tmp_path, "file,class,split\na.png,ok,train\nb.png,dent,train\n"))

    with pytest.raises(DataError, match=r"no image is in the split 'calib' \(there are: train 2\)"):
        dataset.take("calib")
    with pytest.raises(DataError, match="expected one of train, calib, val, test"):
        dataset.take("training")


def synthetic(sizes: list[tuple[str, int]]) -> Dataset:
    """A set of groups, each of one class; nothing is on disk."""
    samples = [
        Sample(path=Path(f"{g:04}_{i:03}.png"), file=f"{g:04}_{i:03}.png", label=label, group=f"g{g}")
        for g, (label, size) in enumerate(sizes)
        for i in range(size)
    ]
    classes = tuple(sorted({label for label, _ in sizes}))
    return Dataset(root=Path(), samples=tuple(samples), classes=classes)


groups = st.lists(st.tuples(st.sampled_from(["ok", "dent", "scratch"]), st.integers(1, 12)), min_size=1, max_size=40)


@given(sizes=groups, seed=st.integers(0, 5))
def test_no_group_is_ever_divided(sizes: list[tuple[str, int]], seed: int) -> None:
    """One physical part in two splits makes every number better than it is."""
    dealt = assign_splits(synthetic(sizes), seed=seed)

    splits_of = defaultdict(set)
    for sample in dealt:
        splits_of[sample.group].add(sample.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert all(sample.split in SPLITS for sample in dealt)


def test_splits_are_near_their_shares_in_every_class() -> None:
    """Stratified: a rare class is in every split when it has groups enough."""
    dataset = synthetic([("ok", 1)] * 400 + [("dent", 4)] * 20 + [("fray", 1)] * 7)

    dealt = assign_splits(dataset, seed=3, fractions={"train": 0.7, "val": 0.15, "test": 0.15})

    counts = {split: dealt.take(split).counts for split in ("train", "val", "test")}
    assert counts["train"] == {"dent": 56, "fray": 5, "ok": 280}
    assert counts["val"] == {"dent": 12, "fray": 1, "ok": 60}
    assert counts["test"] == {"dent": 12, "fray": 1, "ok": 60}


def test_the_same_seed_deals_the_same_and_another_does_not() -> None:
    """Whoever has the set and the seed has the splits; the order of the samples does not matter."""
    dataset = synthetic([("ok", 2)] * 30 + [("dent", 3)] * 30)
    shuffled = Dataset(root=dataset.root, samples=dataset.samples[::-1], classes=dataset.classes)

    splits = [
        {s.file: s.split for s in assign_splits(which, seed=seed)}
        for which, seed in ((dataset, 1), (dataset, 1), (shuffled, 1), (dataset, 2))
    ]

    assert splits[0] == splits[1] == splits[2]
    assert splits[0] != splits[3]


@pytest.mark.parametrize("fractions", [{"train": 0.5}, {"train": 0.5, "eval": 0.5}, {"train": 1.5, "val": -0.5}])
def test_shares_that_make_no_sense_are_refused(fractions: dict[str, float]) -> None:
    """Half of the images would be in no split."""
    with pytest.raises(DataError, match="that add up to 1"):
        assign_splits(synthetic([("ok", 3)]), seed=0, fractions=fractions)


def test_the_digest_changes_with_a_pixel_a_label_and_a_split(tmp_path: Path) -> None:
    """It stands in the bundle's provenance: the same digest, the same data."""
    rows = "file,class,split\na.png,ok,train\nb.png,dent,val\n"
    before = data_digest(read_dataset(with_csv(tmp_path, rows)))
    again = data_digest(read_dataset(tmp_path))
    (tmp_path / "splits.csv").write_text(rows.replace("val", "test"))
    other_split = data_digest(read_dataset(tmp_path))
    (tmp_path / "splits.csv").write_text(rows.replace("dent", "pit"))
    other_label = data_digest(read_dataset(tmp_path))
    with_csv(tmp_path, rows, files=("b.png", "a.png"))
    other_pixels = data_digest(read_dataset(tmp_path))

    assert before == again
    assert len({before, other_split, other_label, other_pixels}) == 4


def test_reading_a_set_needs_no_torch() -> None:
    """Calibration and evaluation run where torch is not installed."""
    code = "import sys, optimize.dataset, optimize.networks; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.shared
def test_neu_has_the_splits_that_its_readme_states(neu: Path) -> None:
    """The real set, with strips of steel that must stay together."""
    dataset = read_dataset(neu)

    assert dataset.splits == {"train": 990, "calib": 90, "val": 180, "test": 270}
    assert set(Counter(dataset.take("test").labels).values()) == {45}
    assert "README.md" in dataset.ignored
