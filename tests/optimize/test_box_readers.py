"""Boxes as people have them: what is refused with which words, and that every form says the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import pytest

from optimize.box_readers import has_boxes, read_boxes
from optimize.box_readers.sizes import picture_size
from optimize.dataset import LabelledBox, data_digest
from optimize.errors import DataError
from tests.kit.commands import run_command
from tests.kit.pictures import textured

NEU = Path(__file__).resolve().parents[3] / "shared" / "data" / "neu-det"
WIDTH, HEIGHT = 64, 48


def pictures(root: Path, *files: str) -> Path:
    for i, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), textured(WIDTH, HEIGHT, seed=i))
    return root


def written(root: Path, files: Mapping[str, str]) -> Path:
    for file, text in files.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def voc(*boxes: tuple[Any, ...], size: tuple[int, int] = (WIDTH, HEIGHT), filename: str = "lies") -> str:
    """Boxes as name, xmin, ymin, xmax, ymax[, difficult]."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult[0] if difficult else 0}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1, *difficult in boxes
    )
    head = f"<filename>{filename}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>{head}{objects}</annotation>"


def coco(**changes: Any) -> str:
    whole: dict[str, Any] = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 7, "name": "scratch"}, {"id": 9, "name": "dent"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 10, 20]},
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": [5, 5, 4, 4], "iscrowd": 1},
        ],
    }
    return json.dumps({**whole, **changes})


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_boxes(path)
    assert caught.value.hint or "not" in caught.value.message
    return caught.value


def box(name: str, *edges: float, is_ignored: bool = False) -> LabelledBox:
    left, top, right, bottom = edges
    return LabelledBox(class_name=name, left=left, top=top, right=right, bottom=bottom, is_ignored=is_ignored)


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ((0, 0, 66.5, 10), "leads 2.5 px out of the picture (64 x 48 px)"),
        ((-3, 0, 10, 10), "leads 3 px out of the picture"),
        ((0, 0, 10, 50), "leads 2 px out of the picture"),
        ((10, 5, 10, 20), "has no area"),
        ((20, 5, 10, 20), "has no area"),
        ((0, 0, "nan", 10), "expected finite numbers"),
        ((0, 0, "inf", 10), "expected finite numbers"),
        ((64, 0, 65, 10), "out of the picture"),
    ],
)
def test_a_box_that_cannot_be_is_named(tmp_path: Path, edges: tuple[Any, ...], words: str) -> None:
    """One silent NaN ends a training after hours; a box outside is the trace of a picture that was scaled."""
    pictures(tmp_path, "a.png")

    error = refused(written(tmp_path, {"a.xml": voc(("scratch", 1, 1, 5, 5), ("scratch", *edges))}))
    assert "a.xml: object 2" in error.message
    assert words in error.message

    (tmp_path / "a.xml").unlink()
    text = f"file,class,xmin,ymin,xmax,ymax\na.png,scratch,{','.join(map(str, edges))}\n"
    error = refused(written(tmp_path, {"boxes.csv": text}))
    assert "boxes.csv: line 2" in error.message
    assert words in error.message


def test_an_edge_up_to_a_pixel_outside_is_cut(tmp_path: Path) -> None:
    """Tools count from 0 or from 1, and round."""
    pictures(tmp_path, "a.png")
    written(tmp_path, {"a.xml": voc(("scratch", -1, 0, 65, 48.5))})

    assert read_boxes(tmp_path).samples[0].boxes == (box("scratch", 0, 0, 64, 48),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not well-formed XML"),
        (voc(("scratch", 1, 1, 5, 5))[:-30], "not well-formed XML"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>', "document type"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
        ("<annotation>" + "<a>" * 60 + "</a>" * 60 + "</annotation>", "elements deep"),
        (voc(("", 1, 1, 5, 5)), "object 1: class: got ''"),
        (voc(("scratch", "", 1, 5, 5)), "object 1: bndbox/xmin: got '', expected a number"),
        (voc(("scratch", "one", 1, 5, 5)), "bndbox/xmin: got 'one', expected a number"),
        ("<annotation><object><name>dent</name></object></annotation>", "object 1 (dent): has no bndbox"),
        (voc(("scratch", 1, 1, 5, 5), size=(128, 96)), "made on a picture of 128 x 96 px, but the picture has 64 x 48"),
    ],
)
def test_an_xml_that_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    """Entities are refused before they are expanded: a few hundred bytes of them can fill any memory."""
    pictures(tmp_path, "images/a.png")

    error = refused(written(tmp_path, {"annotations/a.xml": text}))

    assert "a.xml" in error.message
    assert words in error.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None}, "images: is missing, expected a list"),
        ({"annotations": [{"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 1, 2, 2]}]}, "which no image has"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}]}, "which no category has"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2]}]}, "expected [x, y, width"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 0, 2]}]}, "has no area"),
        (
            {"annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, "2", 2]}]},
            "expected [x, y, width",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2]}] * 2},
            "annotations[1]: id: 5 stands there twice",
        ),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]}, "categories[1]: id: 7 stands there twice"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "a"}]}, "two have the same name"),
        ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]}, "images[1]: id: 1 stands"),
        ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}]}, "is images[0] already"),
        ({"images": [{"id": 1, "file_name": "../a.png"}]}, "leads out of the folder"),
        ({"images": [{"id": 1, "file_name": "/etc/a.png"}]}, "leads out of the folder"),
        ({"images": [{"id": 1, "file_name": "c.png"}]}, "there is no such picture"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 64}]}, "a picture of 48 x 64 px"),
    ],
)
def test_a_coco_file_that_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Ids that stand twice would give boxes to the wrong picture."""
    pictures(tmp_path, "a.png", "b.png")

    error = refused(written(tmp_path, {"coco.json": coco(**changes)}))

    assert "coco.json" in error.message
    assert words in error.message


@pytest.mark.parametrize(
    ("text", "words"),
    [(coco()[:-20], "not JSON"), ('{"images": [], "images": [], "annotations": []}', "stands there twice")],
)
def test_a_damaged_coco_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    """A download that broke off."""
    pictures(tmp_path, "a.png", "b.png")

    assert words in refused(written(tmp_path, {"coco.json": text})).message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", "class: got 2, expected 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class: got -1, expected 0 to 1"),
        ("0 0.5 0.5 0.1", "got 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "got 6 numbers"),
        ("0 32 24 10 10", "expected parts of the picture"),
        ("0 nan 0.5 0.1 0.1", "expected parts of the picture"),
        ("0 0.5 0.5 0.0 0.1", "has no area"),
        ("0 0.95 0.5 0.3 0.1", "px out of the picture"),
        ("scratch 0.5 0.5 0.1 0.1", "expected numbers"),
    ],
)
def test_a_yolo_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, words: str) -> None:
    """A class number beyond the names would be trained as nothing."""
    pictures(tmp_path, "images/a.png")

    error = refused(written(tmp_path, {"data.yaml": "names: [scratch, dent]\n", "labels/a.txt": f"\n{line}\n"}))

    assert "a.txt: line 2" in error.message
    assert words in error.message


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"labels/a.txt": "0 0.5 0.5 0.1 0.1"}, "nothing says what their numbers mean"),
        ({"data.yaml": "names: [a, a]\n", "labels/a.txt": ""}, "expected names that differ"),
        ({"data.yaml": "names: [a, b]\nnc: 3\n", "labels/a.txt": ""}, "nc: got 3"),
        ({"data.yaml": "names: [a, b\n", "labels/a.txt": ""}, "not YAML"),
        ({"data.yaml": "names: [a, b]\ntrain: elsewhere\n", "labels/a.txt": ""}, "no images in such a folder"),
        ({"data.yaml": "names: [a, b]\ntrain: /etc\n", "labels/a.txt": ""}, "no images in such a folder"),
        ({"data.yaml": "names: [a, b]\n", "labels/a.txt": "", "labels/z.txt": ""}, "z.txt: there is no picture"),
    ],
)
def test_a_yolo_set_that_cannot_be_used_says_why(tmp_path: Path, files: dict[str, str], words: str) -> None:
    """Each of them came from a real export."""
    pictures(tmp_path, "images/a.png")

    assert words in refused(written(tmp_path, files)).message


@pytest.mark.parametrize(
    ("files", "form"),
    [
        ({"images/a.xml": voc(("scratch", 2, 3, 12, 23))}, "Pascal VOC"),
        ({"data.yaml": "names: [scratch]\n", "labels/a.txt": "0 0.5 0.5 0.1 0.1\n"}, "YOLO"),
        ({"boxes.csv": "file,class,xmin,ymin,xmax,ymax\nimages/a.png,scratch,2,3,12,23\n"}, "boxes.csv"),
    ],
)
def test_an_image_that_nobody_speaks_of_is_never_a_good_part(tmp_path: Path, files: dict[str, str], form: str) -> None:
    """A forgotten annotation would teach the detector that the defect is none."""
    pictures(tmp_path, "images/a.png", "images/b.png")

    error = refused(written(tmp_path, files))

    assert f"1 images have no annotation ({form}), the first is images/b.png" in error.message
    assert error.hint is not None
    assert "splits.csv" in error.hint


def test_a_defect_without_a_box_is_refused(tmp_path: Path) -> None:
    """The table says scratch, and nothing is outlined: as a good part it would teach to pass scratches."""
    pictures(tmp_path, "a.png", "b.png")
    written(tmp_path, {"a.xml": voc(("scratch", 2, 3, 12, 23)), "b.xml": voc()})
    written(tmp_path, {"splits.csv": "file,class,split\na.png,scratch,train\nb.png,scratch,test\n"})

    assert "1 images have no box and a class that is not ok, the first is b.png (scratch)" in refused(tmp_path).message


def test_good_parts_are_listed_by_the_table_of_splits(tmp_path: Path) -> None:
    """They are the majority on a line, and nobody writes empty XML files for them."""
    pictures(tmp_path, "a.png", "b.png", "c.png")
    written(tmp_path, {"a.xml": voc(("scratch", 2, 3, 12, 23)), "c.xml": voc(("dent", 2, 3, 12, 23))})
    written(tmp_path, {"splits.csv": "file,class,split,group\na.png,scratch,train,1\nb.png,ok,test,2\n"})

    found = read_boxes(tmp_path)

    assert [(s.file, s.label, s.split, s.group) for s in found] == [
        ("a.png", "scratch", "train", "1"),
        ("b.png", "ok", "test", "2"),
    ]
    assert [s.boxes for s in found] == [(box("scratch", 2, 3, 12, 23),), ()]
    assert found.classes == ("scratch",)
    assert found.ignored == ("c.png",)
    assert read_boxes(tmp_path / "splits.csv") == found
    assert read_boxes(tmp_path, has_splits=False).splits == {}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.xml": voc(), "z.xml": voc()}, "z.xml: there is no picture z.* for it"),
        ({"a.xml": voc(), "annotations/a.xml": voc()}, "belongs to a.png, as"),
        (
            {"boxes.csv": "file,class,xmin,ymin,xmax,ymax\n../a.png,x,1,1,2,2\n"},
            "line 2: file: '../a.png' leads out of",
        ),
        ({"boxes.csv": "file,class,xmin,ymin,xmax,ymax\nz.png,x,1,1,2,2\n"}, "line 2: z.png: no such file"),
        ({"boxes.csv": "file,class,xmin,ymin,xmax,ymax\na.png,x,1,1,2\n"}, "line 2: has more or fewer cells"),
        ({"boxes.csv": "file,class,xmin,ymin,xmax,ymax\na.png,x,1,1,two,2\n"}, "expected four numbers"),
        ({"boxes.csv": "file,class,xmin,ymin\na.png,x,1,1\n"}, "line 1: got the columns"),
        ({"a.xml": voc()}, "no box on any of 1 images"),
        ({"notes.txt": "nothing"}, "nothing outlines defects"),
    ],
)
def test_a_set_that_cannot_be_used_says_why(tmp_path: Path, files: dict[str, str], words: str) -> None:
    """What is missing is named, with where it was looked for."""
    pictures(tmp_path, "a.png")

    assert words in refused(written(tmp_path, files)).message


def test_two_pictures_of_one_stem_are_not_guessed_between(tmp_path: Path) -> None:
    """The boxes of one would be learned on the other."""
    pictures(tmp_path, "left/a.png", "right/a.png")

    error = refused(written(tmp_path, {"annotations/a.xml": voc(("dent", 1, 1, 5, 5))}))

    assert "may mean left/a.png and right/a.png" in error.message


def test_an_annotation_never_takes_a_picture_of_another_split(tmp_path: Path) -> None:
    """Both splits have an image 1, and that of train is missing."""
    pictures(tmp_path, "train/images/2.png", "val/images/1.png")
    files = {"train/annotations/1.xml": voc(("dent", 1, 1, 5, 5)), "train/annotations/2.xml": voc(("dent", 1, 1, 5, 5))}

    assert "1.xml: there is no picture 1.*" in refused(written(tmp_path, files)).message


def _voc_splits(root: Path) -> None:
    for split in ("train", "validation"):
        pictures(root, f"{split}/images/{split}.png")
        written(root, {f"{split}/annotations/{split}.xml": voc(("dent", 8, 12, 24, 36))})


def _voc_image_sets(root: Path) -> None:
    pictures(root, "JPEGImages/train.png", "JPEGImages/validation.png", "JPEGImages/other.png")
    written(root, {f"Annotations/{name}.xml": voc(("dent", 8, 12, 24, 36)) for name in ("train", "validation")})
    written(root, {"ImageSets/Main/train.txt": "train\n", "ImageSets/Main/val.txt": "validation  1\n\n"})
    written(root, {"ImageSets/Main/dent_train.txt": "train 1\n", "ImageSets/Main/trainval.txt": "train\nvalidation\n"})


def _coco_splits(root: Path) -> None:
    for split, name in (("train", "instances_train2017.json"), ("validation", "instances_val2017.json")):
        pictures(root, f"{split}/{split}.png")
        image = {"id": 1, "file_name": f"{split}.png", "width": WIDTH, "height": HEIGHT}
        note = {"id": 1, "image_id": 1, "category_id": 9, "bbox": [8, 12, 16, 24]}
        written(root, {f"annotations/{name}": coco(images=[image], annotations=[note])})


def _coco_beside(root: Path) -> None:
    for split, folder in (("train", "train"), ("validation", "valid")):
        pictures(root, f"{folder}/{split}.png")
        note = {"id": 1, "image_id": 1, "category_id": 9, "bbox": [8, 12, 16, 24]}
        text = coco(images=[{"id": 1, "file_name": f"{split}.png"}], annotations=[note])
        written(root, {f"{folder}/_annotations.coco.json": text})


def _yolo_splits(root: Path) -> None:
    written(root, {"data.yaml": "names: {0: scratch, 1: dent}\ntrain: ../train/images\nval: ../valid/images\n"})
    for split, folder in (("train", "train"), ("validation", "valid")):
        pictures(root, f"{folder}/images/{split}.png")
        written(root, {f"{folder}/labels/{split}.txt": "1 0.25 0.5 0.25 0.5\n"})


def _yolo_lists(root: Path) -> None:
    pictures(root, "images/train.png", "images/validation.png")
    written(
        root,
        {f"labels/{name}.txt": "1 0.125 0.25 0.375 0.25 0.375 0.75 0.125 0.75\n" for name in ("train", "validation")},
    )
    written(root, {"data.yaml": "path: /data/far/away\nnames: [scratch, dent]\ntrain: train.txt\nval: val.txt\n"})
    written(root, {"train.txt": "./images/train.png\n", "val.txt": "images/validation.png\n"})


@pytest.mark.parametrize("make", [_voc_splits, _voc_image_sets, _coco_splits, _coco_beside, _yolo_splits, _yolo_lists])
def test_every_form_says_the_same(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """The same two pictures with the same box in train and val, as six tools lay them out."""
    make(tmp_path)

    assert has_boxes(tmp_path)
    found = read_boxes(tmp_path)

    assert [(s.path.stem, s.split, s.label, s.boxes) for s in found] == [
        ("train", "train", "dent", (box("dent", 8, 12, 24, 36),)),
        ("validation", "val", "dent", (box("dent", 8, 12, 24, 36),)),
    ]
    assert found.classes == ("dent",)


def test_what_is_ignored_and_what_is_empty_is_kept(tmp_path: Path) -> None:
    """Crowds and difficult boxes are neither found nor false; images without boxes are good parts."""
    pictures(tmp_path, "c/a.png", "c/b.png", "v/a.png", "v/b.png")
    written(tmp_path, {"c/all.json": coco(), "v/a.xml": voc(("scratch", 2, 3, 12, 23), ("dent", 5, 5, 9, 9, 1))})
    written(tmp_path, {"v/b.xml": voc()})

    for form in ("c", "v"):
        first, second = read_boxes(tmp_path / form)
        assert first.boxes == (box("scratch", 2, 3, 12, 23), box("dent", 5, 5, 9, 9, is_ignored=True))
        assert (first.label, second.label, second.boxes) == ("scratch", None, ())


def test_a_file_of_boxes_may_be_given_by_itself(tmp_path: Path) -> None:
    """Two label files beside one folder of images, and one of them is meant."""
    pictures(tmp_path, "a.png", "b.png")
    written(tmp_path, {"one.json": coco(), "annotations/two.json": coco(), "data.yaml": "names: [dent]\n"})
    written(tmp_path, {"a.txt": "0 0.5 0.5 0.5 0.5\n", "b.txt": ""})
    rows = "file,class,xmin,ymin,xmax,ymax\na.png,bump,1,1,9,9\nb.png,,,,,\n"
    written(tmp_path, {"labels.csv": rows})

    assert read_boxes(tmp_path / "one.json").classes == ("dent", "scratch")
    assert read_boxes(tmp_path / "annotations" / "two.json").classes == ("dent", "scratch")
    assert read_boxes(tmp_path / "data.yaml").classes == ("dent",)
    assert read_boxes(tmp_path / "labels.csv").classes == ("bump",)
    assert "is in" in refused(tmp_path).message


def test_a_folder_of_classes_has_no_boxes(tmp_path: Path) -> None:
    """`evaluate` asks before it reads."""
    assert not has_boxes(pictures(tmp_path, "ok/a.png", "scratch/b.png"))


def test_boxes_are_part_of_what_a_data_set_is(tmp_path: Path) -> None:
    """A corrected box makes another data set; the ledger would else count two as one."""
    pictures(tmp_path, "a.png")
    digests = {data_digest(read_boxes(written(tmp_path, {"a.xml": voc(("dent", x, 1, 20, 20))}))) for x in (1, 2)}

    assert len(digests) == 2


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
def test_sizes_come_from_the_header(tmp_path: Path, suffix: str) -> None:
    """Thousands of pictures are asked for their size before a training."""
    path = pictures(tmp_path, f"a{suffix}") / f"a{suffix}"

    assert picture_size(path) == (WIDTH, HEIGHT)
    path.write_bytes(path.read_bytes()[:20])
    assert picture_size(path) is None


@pytest.mark.shared
def test_neu_is_read_whole() -> None:
    """1,530 images, 3,577 boxes, 166 of them of another class than the image's."""
    found = read_boxes(NEU)

    boxes = [(b, s) for s in found for b in s.boxes or ()]
    assert (len(found), len(boxes), sum(b.class_name != s.label for b, s in boxes)) == (1530, 3577, 166)
    assert found.splits == {"train": 990, "calib": 90, "val": 180, "test": 270}
    assert len({s.group for s in found}) == 406 + 89 + 157 + 205
    assert found.classes == ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def test_a_set_of_boxes_is_checked_and_divided_by_its_labels(tmp_path: Path) -> None:
    """`data check` and `data split` see the largest box's class, and `ok` for good parts; the table reads the boxes."""
    root = tmp_path / "set"
    for i in range(12):
        pictures(root, f"images/{i:02d}.png")
        cv2.imwrite(str(root / "images" / f"{i:02d}.png"), textured(WIDTH, HEIGHT, seed=i))
        name = ("dent", "scratch", "")[i % 3]
        written(root, {f"annotations/{i:02d}.xml": voc((name, 8, 12, 24, 36)) if name else voc()})
    table = tmp_path / "splits.csv"

    checked = run_command("optimize.cli.data", "check", root, "--json")
    divided = run_command("optimize.cli.data", "split", root, "--out", table, "--json")

    assert checked.json["n"] == 12
    assert {name: counts["all"] for name, counts in checked.json["classes"].items()} == {
        "dent": 4,
        "ok": 4,
        "scratch": 4,
    }
    assert divided.code in (0, 1), divided.err
    found = read_boxes(table)
    assert (len(found), found.classes) == (12, ("dent", "scratch"))
    assert sum(sample.boxes == () and sample.label == "ok" for sample in found) == 4
    assert sum(found.splits.values()) == 12


def test_labels_beside_their_pictures_without_names_are_not_overlooked(tmp_path: Path) -> None:
    """They would count for nothing, and every defect for a good part."""
    pictures(tmp_path, "a.png")
    written(tmp_path, {"a.txt": "0 0.5 0.5 0.1 0.1\n"})

    assert has_boxes(tmp_path)
    assert "nothing says what their numbers mean" in refused(tmp_path).message
    (tmp_path / "a.txt").write_text("taken on a Monday\n")
    assert not has_boxes(tmp_path)


def test_a_set_of_good_parts_only_is_read_where_it_may_be(tmp_path: Path) -> None:
    """Nothing can be learned from it, but its false alarms can be counted."""
    pictures(tmp_path, "a.png")
    written(
        tmp_path, {"boxes.csv": "file,class,xmin,ymin,xmax,ymax\n", "splits.csv": "file,class,split\na.png,ok,test\n"}
    )

    assert "no box on any" in refused(tmp_path).message
    assert [sample.boxes for sample in read_boxes(tmp_path, needs_boxes=False)] == [()]


@pytest.mark.parametrize(
    ("files", "words", "remedy"),
    [
        ({"boxes.csv": "file,class,left,top,right,bottom\n"}, "expected file,class,xmin", "name the columns"),
        ({"a.txt": "0 x 0.5 0.1 0.1\n", "classes.txt": "pit\n"}, "expected numbers", "class number, centre x"),
        ({"a.txt": b"0 0.5 0.5 0.1 0.1\xff\n", "classes.txt": "pit\n"}, "can't be read as UTF-8", "save it"),
        ({"a.xml": "<annotation>" * 99}, "elements deep", "export it again"),
        ({}, "nothing outlines defects", "add boxes.csv"),
    ],
)
def test_a_refusal_says_what_to_do(tmp_path: Path, files: dict[str, str | bytes], words: str, remedy: str) -> None:
    """Whoever is refused wants to know what to type next."""
    pictures(tmp_path, "a.png")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(DataError) as caught:
        read_boxes(tmp_path)

    assert words in caught.value.message
    assert remedy in (caught.value.hint or "")
