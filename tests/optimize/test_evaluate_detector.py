"""`defect-opt evaluate` of a detector: a real one that finds bright spots, on real pictures with planted truth."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from agent.bundle import Bundle
from agent.verdict import Decision
from optimize.box_readers import read_boxes, read_labels
from optimize.dataset import read_dataset
from optimize.errors import DataError
from optimize.evaluate import judge_all
from tests.kit.bundles import make_bundle
from tests.kit.commands import run_command
from tests.kit.spots import dark_picture, make_detector, plant

COMMAND = "optimize.cli.evaluate"
SPOTS = {
    # picture: what is planted (kind, box, score); what is outlined beside it is in `TRUTH`
    "both": [("scratch", (10, 10, 20, 8), 0.9), ("stain", (50, 40, 10, 10), 0.6)],
    "faint": [("scratch", (10, 10, 20, 8), 0.25)],
    "hidden": [],
    "good": [("mark", (30, 30, 10, 10), 0.9)],
    "overkill": [("stain", (5, 5, 8, 8), 0.8)],
}
TRUTH = {
    "both": [("scratch", (10, 10, 20, 8)), ("stain", (50, 40, 10, 10))],
    "faint": [("scratch", (10, 10, 20, 8))],
    "hidden": [("scratch", (40, 30, 20, 8))],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_detector(tmp_path)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three defective parts, two good ones."""
    root = tmp_path / "parts"
    root.mkdir()
    splits, boxes = ["file,class,split"], ["file,class,xmin,ymin,xmax,ymax"]
    for name, spots in SPOTS.items():
        picture = dark_picture(64, 64)
        for kind, box, level in spots:
            plant(picture, kind, box, level)
        cv2.imwrite(str(root / f"{name}.png"), picture)
        truth = TRUTH.get(name, [])
        splits.append(f"{name}.png,{truth[0][0] if truth else 'ok'},test")
        boxes += [f"{name}.png,{kind},{x},{y},{x + w},{y + h}" for kind, (x, y, w, h) in truth]
    (root / "splits.csv").write_text("\n".join(splits) + "\n")
    (root / "boxes.csv").write_text("\n".join(boxes) + "\n")
    return root


def test_a_class_that_the_detector_does_not_know_is_refused(bundle: Bundle, parts: Path) -> None:
    """It could never be found, and would count as missed without a word."""
    text = (parts / "boxes.csv").read_text().replace("stain", "dent")
    (parts / "boxes.csv").write_text(text)

    with pytest.raises(DataError) as caught:
        judge_all(bundle, read_boxes(parts))

    assert "got the classes dent, the model knows scratch, stain, mark" in caught.value.message


def test_images_without_label_and_boxes_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    """There is no truth to compare with."""
    (tmp_path / "flat").mkdir()
    cv2.imwrite(str(tmp_path / "flat" / "a.png"), dark_picture(64, 64))

    with pytest.raises(DataError, match=r"1 images have no label, the first is a\.png"):
        judge_all(bundle, read_dataset(tmp_path / "flat"))


def test_every_image_gets_its_outcome(bundle: Bundle, parts: Path) -> None:
    """Findings in pixels of the picture, the score that was compared, the truth with its severity."""
    (parts / "hidden.png").write_bytes(b"no picture")

    outcomes, engine = judge_all(bundle, read_boxes(parts))

    assert "onnxruntime" in engine
    by_file = {Path(o.file).stem: o for o in outcomes}
    assert {name: o.decision for name, o in by_file.items()} == {
        "both": Decision.DEFECT,
        "faint": Decision.REVIEW,
        "good": Decision.OK,
        "hidden": Decision.ERROR,
        "overkill": Decision.DEFECT,
    }
    assert [o.severity for o in outcomes] == ["major", "major", "ok", "major", "ok"]
    both = by_file["both"]
    assert both.findings[0].box_px == pytest.approx((10, 10, 20, 8), abs=0.01)
    assert both.predicted == "scratch"
    assert both.score == pytest.approx(0.9, abs=0.01)
    assert by_file["good"].findings[0].class_name == "mark"
    assert by_file["good"].score == 0.0
    assert (by_file["hidden"].score, by_file["hidden"].findings) == (None, ())


def test_the_command_gives_every_figure(bundle: Bundle, parts: Path, tmp_path: Path) -> None:
    """The keys that DESIGN.md promises, and numbers that can be counted in the fixture."""
    done = run_command(
        COMMAND, str(bundle.path), "--data", str(parts), "--json", "--ledger", str(tmp_path / "ledger.jsonl")
    )

    assert done.code == 0, done.err
    card = done.json
    assert (card["n"], card["split"], card["boxes"]) == (5, "test", 4)
    assert (card["escapes"], card["image_escape_rate"], card["escape_rate"]) == (1, 1 / 3, 1 / 3)
    assert (card["overkill_rate"], card["overkill_per_1000"], card["review_rate"]) == (0.5, 500, 0.2)
    assert (card["box_escapes"], card["box_misses"]) == (1, 1)
    assert card["per_class"]["stain"]["ap50"] == pytest.approx(0.5)  # overkill's false one ranks before it
    assert card["per_class"]["scratch"]["ap50"] == pytest.approx(67 / 101)
    assert card["per_class"]["mark"]["ap50"] is None
    assert card["map50"] == pytest.approx((0.5 + 67 / 101) / 2)
    assert 0 < card["map50_95"] <= card["map50"]
    assert card["escape_upper_95"] > 1 / 3
    assert card["test_uses"]["before"] == 0


def test_the_tables_are_read_by_people(bundle: Bundle, parts: Path) -> None:
    """Every section is there, and a gate that does not hold ends the command with 1."""
    done = run_command(COMMAND, str(bundle.path), "--data", str(parts), "--min-map50", "0.9")

    assert done.code == 1
    for words in (
        "1 of 3 defective parts judged ok (33.33%)",
        "1 of 4 outlined defects have no finding over the limit on them (25.0%)",
        "1 of 2 good parts judged defect, 500.0 of 1,000",
        "false boxes per picture",
        "16 to 32 px, longer side",
        "FAILED: map50: got 0.58",
    ):
        assert words in done.out


def test_the_picture_shows_the_miss(bundle: Bundle, parts: Path, tmp_path: Path) -> None:
    """One row of misses under the curve."""
    out = tmp_path / "misses.png"

    done = run_command(COMMAND, str(bundle.path), "--data", str(parts), "--picture", str(out))

    assert done.code == 0, done.err
    picture = cv2.imread(str(out))
    assert picture is not None
    assert picture.shape[1] == 1024
    red = (picture == (40, 40, 220)).all(axis=2)
    assert red[520:].sum() > 200  # the frame of the overlooked scratch


def test_a_set_with_labels_only_gives_figures_of_parts(bundle: Bundle, parts: Path) -> None:
    """And says that it does; a picture of misses is refused."""
    (parts / "boxes.csv").unlink()

    done = run_command(COMMAND, str(bundle.path), "--data", str(parts))

    assert done.code == 0, done.err
    assert "1 of 3 defective parts judged ok" in done.out
    assert "labels but no boxes" in done.out
    assert "map50" not in done.out
    refused = run_command(COMMAND, str(bundle.path), "--data", str(parts), "--picture", "x.png")
    assert refused.code == 2
    assert "has no boxes" in refused.err


@pytest.mark.parametrize(
    ("is_detector", "option", "words"),
    [
        (True, ("--min-accuracy", "0.5"), "--min-accuracy: is for a classifier"),
        (True, ("--confusion", "x.png"), "--confusion: is for a classifier"),
        (False, ("--min-map50", "0.5"), "--min-map50: is for a detector"),
        (False, ("--picture", "x.png"), "--picture: is for a detector"),
        (True, ("--min-map50", "65"), "--min-map50: got 65, expected 0 to 1"),
        (True, ("--picture", "no/such/folder/x.png"), "can't be written"),
    ],
)
def test_options_of_the_other_kind_are_refused(
    tmp_path: Path, parts: Path, is_detector: bool, option: tuple[str, str], words: str
) -> None:
    """A gate that is overlooked would seem to hold."""
    bundle = (make_detector if is_detector else make_bundle)(tmp_path / "one.defect")

    done = run_command(COMMAND, str(bundle.path), "--data", str(parts), *option)

    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_classifier_judges_a_set_of_boxes_by_the_whole_picture(tmp_path: Path) -> None:
    """The class of the largest box is the label, a picture without any is of the one ok class."""
    bundle, root = make_bundle(tmp_path), tmp_path / "yolo"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    (root / "data.yaml").write_text("names: [scratch, stain]\n")
    for name, label in (("a", "0 0.5 0.5 0.2 0.2\n"), ("b", ""), ("c", "1 0.5 0.5 0.2 0.2\n")):
        cv2.imwrite(str(root / "images" / f"{name}.png"), dark_picture(64, 64))
        (root / "labels" / f"{name}.txt").write_text(label)

    done = run_command(COMMAND, str(bundle.path), "--data", str(root), "--json")

    assert done.code == 0, done.err
    card = done.json
    assert {name: entry["support"] for name, entry in card["per_class"].items()} == {
        "good": 1,
        "scratch": 1,
        "stain": 1,
    }
    assert read_labels(root).counts == {"ok": 1, "scratch": 1, "stain": 1}
