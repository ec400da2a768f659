"""Cross-validation: every image judged once by a stranger, no fold trained twice, and planted label faults found."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from optimize.dataset import read_dataset
from optimize.errors import DataError, OptimizeError
from tests.kit.commands import Ran, run_command
from tests.kit.float_models import picture, write_parts

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

from optimize.crossval import CrossValidation, FoldProgress, cross_validate
from optimize.crossval_report import predictions_csv, report_of
from optimize.train import TrainConfig

pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "optimize.cli.train"
QUICK = TrainConfig(arch="tiny", epochs=2, batch=8, size_px=32, threads=1, lr=0.05)
RECIPE = ("--arch", "tiny", "--size", 32, "--batch", 8, "--threads", 1, "--lr", 0.05, "--epochs", 2)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three classes on grey noise: 36 images outside test."""
    return write_parts(tmp_path / "parts", {"train": 9, "val": 3, "test": 2})


def crossed(parts: Path, folder: Path, config: TrainConfig = QUICK, **options: Any) -> CrossValidation:
    return cross_validate(config, read_dataset(parts), folder, 3, **options)


def commanded(parts: Path, out: Path, *more: object) -> Ran:
    return run_command(COMMAND, "--data", parts, "--out", out, *RECIPE, "--cv", 3, *more)


def test_images_that_cannot_be_read_are_named_before_a_fold_is_trained(parts: Path, tmp_path: Path) -> None:
    """Not after an hour, when their fold is judged."""
    for name in ("train_ok_000.png", "val_spot_002.png"):
        (parts / "images" / name).write_bytes(b"")

    with pytest.raises(DataError, match="2 of 36 images can't be used") as caught:
        crossed(parts, tmp_path / "cv")

    assert "val_spot_002.png" in caught.value.message
    assert not (tmp_path / "cv").exists()


@pytest.mark.parametrize("count", [1, 0, -2, 37])
def test_a_number_of_folds_that_makes_no_sense_is_the_users_mistake(parts: Path, tmp_path: Path, count: int) -> None:
    """One sentence, exit 2."""
    ran = run_command(COMMAND, "--data", parts, "--out", tmp_path / "m.onnx", *RECIPE, "--cv", count)

    assert ran.code == 2
    assert "folds" in ran.err
    assert "Traceback" not in ran.err


def test_test_is_never_opened(parts: Path, tmp_path: Path) -> None:
    """Broken files there must go unnoticed, and all other images are judged once."""
    for path in (parts / "images").glob("test_*.png"):
        path.write_bytes(b"")

    found = crossed(parts, tmp_path / "cv")

    assert sorted(sample.file for sample, _ in found.judged) == sorted(
        sample.file for sample in read_dataset(parts) if sample.split != "test"
    )
    assert found.logits.shape == (36, 3)


def test_finished_folds_are_kept_and_an_interrupted_one_goes_on(parts: Path, tmp_path: Path) -> None:
    """And the end is the same as without the interruption."""
    whole = crossed(parts, tmp_path / "whole")

    def stop(where: FoldProgress) -> None:
        if (where.fold, where.epoch) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crossed(parts, tmp_path / "cut", progress=stop)
    steps: list[FoldProgress] = []
    resumed = crossed(parts, tmp_path / "cut", progress=steps.append)

    assert [result.was_there for result in resumed.results] == [True, False, False]
    assert [(steps[0].fold, steps[0].epoch), steps[-1].done] == [(2, 2), 1.0]
    assert [result.sha256 for result in resumed.results] == [result.sha256 for result in whole.results]
    assert np.array_equal(resumed.logits, whole.logits)


def test_after_kill_9_the_same_command_trains_no_finished_fold_again(parts: Path, tmp_path: Path) -> None:
    """A power cut at night: what was finished is used, the rest is done."""
    out = tmp_path / "m.onnx"
    code = "import sys; from optimize.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "train", "--data", parts, "--out", out, *RECIPE, "--cv", 3]
    with subprocess.Popen([str(w) for w in words], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("fold 2/3  epoch   1/"):
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = (tmp_path / "m.onnx.cv/fold1/model.onnx").stat().st_mtime_ns

    ran = commanded(parts, out)

    assert ran.code == 0
    assert "1 of 3 folds were there from an earlier run" in ran.out
    assert "fold 1/3" not in ran.err
    assert (tmp_path / "m.onnx.cv/fold1/model.onnx").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"format": 1'])
def test_a_damaged_result_is_made_again_from_the_checkpoint(parts: Path, tmp_path: Path, damage: bytes) -> None:
    """Its network was trained to the end: only judging is repeated."""
    first = crossed(parts, tmp_path / "cv")
    (tmp_path / "cv/fold2/fold.json").write_bytes(damage)
    (tmp_path / "cv/fold3/model.onnx").write_bytes(b"not the model")

    again = crossed(parts, tmp_path / "cv")

    assert [result.was_there for result in again.results] == [True, False, False]
    assert np.array_equal(again.logits, first.logits)


@pytest.mark.parametrize(("key", "value"), [("lr", 0.01), ("seed", 4), ("patience", 3)])
def test_folds_of_another_recipe_are_refused(parts: Path, tmp_path: Path, key: str, value: float) -> None:
    """A mean over folds of two recipes is the figure of none."""
    crossed(parts, tmp_path / "cv")

    with pytest.raises(OptimizeError, match=f"is of a run with {key}") as caught:
        crossed(parts, tmp_path / "cv", dataclasses.replace(QUICK, **{key: value}))  # type: ignore[arg-type]

    assert "--fresh" in str(caught.value.hint)
    fresh = crossed(parts, tmp_path / "cv", dataclasses.replace(QUICK, **{key: value}), is_fresh=True)  # type: ignore[arg-type]
    assert not any(result.was_there for result in fresh.results)


def test_the_logits_are_those_of_the_exported_file_on_the_devices_pictures(parts: Path, tmp_path: Path) -> None:
    """What is reported is what a device would see."""
    from agent.bundle.preprocess import fit
    from optimize.dataset import read_image
    from optimize.quantize.interpret import session_of

    found = crossed(parts, tmp_path / "cv")

    (sample, fold), logits = found.judged[0], found.logits[0]
    session = session_of((tmp_path / f"cv/fold{fold}/model.onnx").read_bytes())
    expected = session.run(["logits"], {"image": fit(read_image(sample.path), QUICK.spec)[None]})[0][0]
    assert logits == pytest.approx(expected, abs=1e-4)


def test_each_fold_names_what_taught_stopped_and_judged_it(parts: Path, tmp_path: Path) -> None:
    """An auditor can check from the files alone that no group is on two sides."""
    found = cross_validate(QUICK, read_dataset(parts), tmp_path / "cv", 2)

    group_of = {sample.file: sample.group or sample.file for sample in read_dataset(parts)}
    for result in found.results:
        kept = json.loads((tmp_path / "cv" / f"fold{result.fold}" / "fold.json").read_text())
        groups = [{group_of[file] for file in kept[role]} for role in ("train", "val", "files")]
        assert all(groups)
        assert not groups[0] & groups[1]
        assert not (groups[0] | groups[1]) & groups[2]


def test_the_report_counts_what_the_predictions_say(parts: Path, tmp_path: Path) -> None:
    """One confusion over all folds, recounted from the CSV by hand."""
    report = report_of(crossed(parts, tmp_path / "cv"))

    rows = list(csv.DictReader(predictions_csv(report).decode().splitlines()))
    document = report.to_json()
    assert len(rows) == document["n"] == 36
    assert document["accuracy"]["overall"] == pytest.approx(sum(r["class"] == r["predicted"] for r in rows) / 36)
    by_fold = [[r["class"] == r["predicted"] for r in rows if r["fold"] == str(i)] for i in (1, 2, 3)]
    shares = [sum(fold) / len(fold) for fold in by_fold]
    assert document["accuracy"]["mean"] == pytest.approx(np.mean(shares))
    assert document["accuracy"]["spread"] == pytest.approx(np.std(shares, ddof=1))
    for i, truth in enumerate(document["classes"]):
        for j, seen in enumerate(document["classes"]):
            counted = sum((r["class"], r["predicted"]) == (truth, seen) for r in rows)
            assert document["confusion"][i][j] == counted
    assert sum(float(rows[0][f"probability {name}"]) for name in document["classes"]) == pytest.approx(1, abs=1e-5)


def test_without_a_good_class_there_is_no_escape_rate(tmp_path: Path) -> None:
    """NEU knows defects only: every part is a defect, and none passes."""
    write_parts(tmp_path / "set", {"train": 9}, classes=("scratch", "spot"))

    document = report_of(crossed(tmp_path / "set", tmp_path / "cv")).to_json()

    assert document["escape_rate"] is None
    assert document["overkill_rate"] is None


def test_the_command_writes_its_files_and_finds_planted_label_faults(tmp_path: Path) -> None:
    """The whole way, with two labels swapped in a set that is easy to learn."""
    parts = write_parts(tmp_path / "parts", {"train": 20})
    text = (parts / "splits.csv").read_text()
    swapped = text.replace("train_ok_003.png,ok", "train_ok_003.png,spot")
    swapped = swapped.replace("train_spot_005.png,spot", "train_spot_005.png,scratch")
    (parts / "splits.csv").write_text(swapped)

    ran = commanded(parts, tmp_path / "m.onnx", "--epochs", 30, "--json")

    assert ran.code == 0
    document = ran.json
    planted = {"images/train_ok_003.png": "ok", "images/train_spot_005.png": "spot"}
    found = {fault["file"]: fault["suggested"] for fault in document["label_faults"]}
    assert planted.items() <= found.items()
    assert document["accuracy"]["overall"] >= 0.8
    assert document["ece"].keys() == {"before", "after", "after_unseen", "interval_95"}
    assert list(document["per_class"]) == sorted(
        document["per_class"], key=lambda name: document["per_class"][name]["groups"]
    )
    files = document["files"]
    assert json.loads(Path(files["report"]).read_text("utf-8")) == document
    for key in ("picture", "labels"):
        assert cv2.imread(files[key]) is not None
    assert "time left" in ran.err or " left" in ran.err


def test_pictures_of_one_part_are_judged_by_one_fold(tmp_path: Path) -> None:
    """Else the network has seen the part, and every figure is better than it is."""
    rows, random = ["file,class,group"], np.random.default_rng(0)
    for part in range(18):
        label = ("ok", "scratch", "spot")[part % 3]
        for shot in range(3):
            file = f"{part}-{shot}.png"
            assert cv2.imwrite(str(tmp_path / file), picture(label, random))
            rows.append(f"{file},{label},part{part}")
    (tmp_path / "splits.csv").write_text("\n".join(rows))

    document = report_of(crossed(tmp_path, tmp_path / "cv")).to_json()

    assert (document["n"], document["groups"]) == (54, 18)
    assert document["accuracy"]["groups"] == 18
