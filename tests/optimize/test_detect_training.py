"""`defect-opt train --task detect`: it learns, goes on where it was stopped, and refuses what it can't use."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from optimize.box_readers import read_boxes  # noqa: E402
from optimize.cli import main  # noqa: E402
from optimize.detect.config import DetectConfig  # noqa: E402
from optimize.detect.training import train_detector  # noqa: E402
from optimize.errors import DataError, OptimizeError, RecipeError  # noqa: E402
from optimize.recipe import read_recipe  # noqa: E402
from tests.kit.boxes import write_box_set  # noqa: E402

pytestmark = pytest.mark.torch

QUICK = DetectConfig(arch="yolo-mobilenetv2", size_px=96, threads=1, batch=4, epochs=1)


@pytest.mark.parametrize("arch", ["yolo-mobilenetv2", "ssd-mobilenetv2"])
def test_a_detector_learns_squares_from_bars(tmp_path: Path, arch: str) -> None:
    """From scratch, in seconds: where the defects are, and which."""
    dataset = read_boxes(write_box_set(tmp_path / "set", n=32))
    config = dataclasses.replace(QUICK, arch=arch, epochs=24, lr=3e-3, average=0.9)
    result = train_detector(config, dataset, tmp_path / "m.onnx")
    assert result.val.map50 > 0.5
    assert result.empty == 3
    assert result.parity.max_relative < 1e-3
    assert result.classes == ("pit", "scratch")


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Ctrl-C after the first of two epochs, then the same command again."""
    dataset = read_boxes(write_box_set(tmp_path / "set", n=12))
    config = dataclasses.replace(QUICK, epochs=2)
    whole = train_detector(config, dataset, tmp_path / "whole.onnx")

    def stop(told: object) -> None:
        if getattr(told, "record", None) is None and getattr(told, "epoch", 0) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_detector(config, dataset, tmp_path / "cut.onnx", stop)
    assert not (tmp_path / "cut.onnx").exists()
    again = train_detector(config, dataset, tmp_path / "cut.onnx")
    assert again.resumed_at == 1
    assert again.sha256 == whole.sha256


def test_a_detector_that_finds_nothing_yet_says_so(tmp_path: Path) -> None:
    """One epoch from scratch at a rate of nearly nought: whoever builds INT8 of it waits for nothing."""
    dataset = read_boxes(write_box_set(tmp_path / "set", n=8))
    result = train_detector(dataclasses.replace(QUICK, lr=1e-9), dataset, tmp_path / "m.onnx")
    assert any("on val it finds next to nothing yet" in notice for notice in result.notices)


def test_another_recipe_does_not_go_on_with_this_checkpoint(tmp_path: Path) -> None:
    """What differs is named, with the way out."""
    dataset = read_boxes(write_box_set(tmp_path / "set", n=8))
    train_detector(QUICK, dataset, tmp_path / "m.onnx")
    with pytest.raises(OptimizeError, match="seed"):
        train_detector(dataclasses.replace(QUICK, seed=1), dataset, tmp_path / "m.onnx")


def test_the_command_writes_model_card_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One JSON document on standard output; the card says what went in."""
    monkeypatch.chdir(tmp_path)
    folder = write_box_set(tmp_path / "set", n=8)
    words = ["train", "--task", "detect", "--data", str(folder), "--arch", "ssd-mobilenetv2", "--out", "m.onnx"]
    assert main([*words, "--epochs", "1", "--size", "96", "--batch", "4", "--threads", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["task"] == "detect"
    assert set(told["val"]["per_class"]) == {"pit", "scratch"}
    card = json.loads((tmp_path / "m.onnx.json").read_text())
    assert card["recipe"]["arch"] == "ssd-mobilenetv2"
    assert len(card["files"]["train"]) == 9
    assert (tmp_path / "m.onnx.png").read_bytes()[:4] == b"\x89PNG"


def test_a_preview_shows_boxes_and_trains_nothing(tmp_path: Path) -> None:
    """People look before they spend an hour."""
    folder = write_box_set(tmp_path / "set", n=8)
    words = ["train", "--task", "detect", "--data", str(folder), "--preview", str(tmp_path / "p.png")]
    assert main([*words, "--size", "96"]) == 0
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--masks", "m"], "masks: is for a classifier"),
        (["--cv", "5"], "cv: is for a classifier"),
        (["--size", "100"], "expected a multiple of 32"),
        (["--finest", "5"], "a stride of 5 px"),
        (["--arch", "yolo-lite"], "expected one of yolo-lite0"),
        (["--freeze-until", "block2"], "got no published weights"),
        (["--tile-overlap", "0.9"], "expected 0 to 0.5"),
    ],
)
def test_a_wrong_flag_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    """Exit 2, no traceback, nothing trained."""
    folder = write_box_set(tmp_path / "set", n=8)
    out = ["--out", str(tmp_path / "m.onnx")]
    assert main(["train", "--task", "detect", "--data", str(folder), *out, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_classifier_refuses_a_detectors_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flag that would do nothing is not swallowed."""
    folder = write_box_set(tmp_path / "set", n=8)
    assert main(["train", "--data", str(folder), "--tile", "64"]) == 2
    assert "tile: is for a detector" in capsys.readouterr().err


def test_two_processes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would train the whole and write the same file."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = write_box_set(tmp_path / "set", n=8)
    assert main(["train", "--task", "detect", "--data", str(folder), "--out", str(tmp_path / "m.onnx")]) == 2
    assert "a detector trains in one process" in capsys.readouterr().err


def test_a_class_without_a_box_in_train_is_refused(tmp_path: Path) -> None:
    """It could never be found, and nobody would know before the line runs."""
    folder = write_box_set(tmp_path / "set", n=8)
    lines = (folder / "boxes.csv").read_text().splitlines()
    splits = {row.split(",")[0]: row.split(",")[2] for row in (folder / "splits.csv").read_text().splitlines()[1:]}
    kept = [line for line in lines if ",scratch," not in line or splits.get(line.split(",")[0]) == "val"]
    (folder / "boxes.csv").write_text("\n".join(kept) + "\n")
    table = (folder / "splits.csv").read_text().replace(",scratch,train,", ",ok,train,")
    (folder / "splits.csv").write_text(table)
    with pytest.raises(DataError, match="train has no box of scratch"):
        train_detector(QUICK, read_boxes(folder), tmp_path / "m.onnx")


def test_tiles_are_learned_and_told_to_the_device(tmp_path: Path) -> None:
    """The model's file says at which scale it wants to look."""
    import onnx

    dataset = read_boxes(write_box_set(tmp_path / "set", n=8, side_px=256))
    config = dataclasses.replace(QUICK, tile_px=128, tile_overlap=0.25)
    train_detector(config, dataset, tmp_path / "m.onnx")
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(metadata["detection"])["tiling"] == {"tile_px": 128, "overlap": 0.25, "with_whole": True}
    assert np.isfinite(json.loads(metadata["detection"])["score_above"])


@pytest.mark.parametrize(
    ("words", "said", "remedy"),
    [
        (["--arch", "yolo-lite0"], "arch: yolo-lite0 is a detector", "add --task detect"),
        (
            ["--task", "detect", "--arch", "tiny"],
            "arch: tiny is a classifier",
            "or leave --task detect out",
        ),
        (["--task", "detect", "--arch", "resnet18"], "arch: resnet18 is a classifier", "take --arch yolo-resnet18"),
    ],
)
def test_a_network_of_the_other_task_says_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str, remedy: str
) -> None:
    """The customer copied the name from the list of the other task."""
    assert main(["train", "--data", str(tmp_path), *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert remedy in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "detect", "--data", "nowhere"], "nowhere: no such folder"),
        (["--task", "detect", "--data", "bare"], "nothing outlines defects"),
        (["--task", "detect", "--data", "set", "--masks", "m"], "masks: is for a classifier"),
        (["--task", "detect", "--data", "set", "--finest", "5"], "a stride of 5 px"),
        (["--task", "detect", "--data", "set", "--weights", "nowhere.whl"], "nowhere.whl: no such file"),
        (["--task", "detect", "--data", "goods"], "no box on any of"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "set", "--weights", "nowhere.whl"], "nowhere.whl: no such file"),
        (["--data", "set", "--arch", "ssd-lite0"], "ssd-lite0 is a detector"),
        (["--data", "goods"], "one class"),
        (["--data", "set", "--out", "set"], "out: set is a folder"),
    ],
)
def test_a_mistake_is_told_before_torch_is_loaded(tmp_path: Path, words: list[str], said: str) -> None:
    """Loading it takes seconds, on the customer's time."""
    write_box_set(tmp_path / "set", n=8)
    write_box_set(tmp_path / "goods", n=8)
    (tmp_path / "goods" / "boxes.csv").write_text("file,class,xmin,ymin,xmax,ymax\n")
    table = (tmp_path / "goods" / "splits.csv").read_text()
    (tmp_path / "goods" / "splits.csv").write_text(table.replace(",scratch,", ",ok,").replace(",pit,", ",ok,"))
    shutil.copytree(tmp_path / "set", tmp_path / "bare", ignore=shutil.ignore_patterns("*.csv"))
    code = "import sys\nfrom optimize.cli import main\ncode = main(sys.argv[1:])\nprint(code, 'torch' in sys.modules)"

    told = subprocess.run(
        [sys.executable, "-c", code, "train", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert said in told.stderr
    assert told.stdout == "2 False\n"


def test_tiles_are_as_large_as_the_recipe_allows(tmp_path: Path) -> None:
    """What is trained can be built, and what can be built can be trained."""
    for tile_px in (32, 16_384):
        (tmp_path / "defect-opt.yaml").write_text(f"detector: {{tile_px: {tile_px}}}\n")
        assert read_recipe(tmp_path).detector.tile_px == DetectConfig(tile_px=tile_px).tile_px
    for tile_px in (31, 16_385):
        (tmp_path / "defect-opt.yaml").write_text(f"detector: {{tile_px: {tile_px}}}\n")
        with pytest.raises(RecipeError):
            read_recipe(tmp_path)
        with pytest.raises(OptimizeError, match="tile: got"):
            DetectConfig(tile_px=tile_px)
