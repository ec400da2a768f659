"""Training: what it refuses, that it repeats itself to the byte, and that being killed costs at most an epoch."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from optimize.cli import train as command
from optimize.dataset import read_dataset, read_image
from optimize.errors import DataError, OptimizeError
from optimize.trainset import fitted_pictures, raw_pictures, train_and_val
from tests.kit.float_models import write_parts
from tests.kit.pictures import encoded, textured, write_pictures

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch

from agent.console import Program
from optimize.checkpoint import Checkpoint
from optimize.train import Progress, TrainConfig, TrainResult, train
from optimize.validation import Validation

pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Program(name="defect-opt", description="", commands=("optimize.cli.train",), version="0")
QUICK = TrainConfig(arch="tiny", epochs=3, batch=8, size_px=32, threads=1, lr=0.05)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three classes on grey noise, with splits."""
    return write_parts(tmp_path / "parts", {"train": 8, "val": 4, "test": 4})


def trained(parts: Path, out: Path, config: TrainConfig = QUICK, *, is_fresh: bool = False) -> TrainResult:
    return train(config, read_dataset(parts), out, is_fresh=is_fresh)


def refused(parts: Path, out: Path, config: TrainConfig = QUICK) -> OptimizeError:
    with pytest.raises(OptimizeError) as caught:
        trained(parts, out, config)
    assert not out.exists()
    return caught.value


def stop_after(epochs: int) -> Callable[[Progress], None]:
    """As if someone pressed Ctrl-C in the middle of the next epoch."""

    def progress(where: Progress) -> None:
        if where.epoch > epochs:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arch": "resnet5000"}, "expected one of resnet18"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"batch": 1}, "batch: got 1"),
        ({"size_px": 16}, "size: got 16"),
        ({"size_px": 100_000}, "size: got 100000"),
        ({"seed": -1}, "seed: got -1"),
        ({"lr": 0.0}, "lr: got 0.0"),
        ({"lr": math.nan}, "lr: got nan"),
        ({"minutes": 0.0}, "minutes: got 0.0"),
        ({"minutes": math.nan}, "minutes: got nan"),
        ({"patience": 0}, "patience: got 0"),
        ({"threads": -1}, "threads: got -1"),
        ({"label_smoothing": 1.0}, "label-smoothing: got 1.0"),
        ({"stage_lr": 0.0}, "stage-lr: got 0.0"),
        ({"class_weights": "cubic"}, "class-weights: got 'cubic', expected one of none, sqrt, inverse, effective"),
        ({"focal_gamma": 3.0}, "is of the focal loss"),
        ({"mask_weight": 3.0}, "there are no masks"),
        ({"window_px": 64}, "without masks"),
        ({"freeze_norms": True}, "no statistics to keep"),
        ({"average": 1.0}, "ema: got 1.0"),
        ({"attention": "transformer"}, "attention: got 'transformer', expected one of none, se, cbam"),
        ({"freeze_until": "block3"}, "would freeze random ones"),
        ({"unfreeze_every": 2}, "nothing is frozen"),
        ({"logit_adjustment": 1.0}, "so do the class weights"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, object], words: str) -> None:
    """Before an image is read."""
    with pytest.raises(OptimizeError, match=words):
        TrainConfig(**change)  # type: ignore[arg-type]


def test_one_class_is_refused(tmp_path: Path) -> None:
    """Good parts alone teach no difference."""
    write_pictures(tmp_path / "set", ["ok/a.png", "ok/b.png", "ok/c.png"])

    assert "one class only (ok)" in refused(tmp_path / "set", tmp_path / "m.onnx").message


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    """A flat folder is for calibration."""
    write_pictures(tmp_path / "set", [f"{i}.png" for i in range(20)])

    assert "has no label" in refused(tmp_path / "set", tmp_path / "m.onnx").message


def test_a_set_without_train_is_refused(tmp_path: Path) -> None:
    """The splits that are there are named."""
    write_parts(tmp_path / "set", {"test": 2, "val": 2})

    assert "no image is in the split 'train'" in refused(tmp_path / "set", tmp_path / "m.onnx").message


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    """It could never be recognized, and dividing by its count would be infinite."""
    write_pictures(tmp_path / "set", ["train/ok/a.png", "train/dent/b.png", "val/ok/c.png", "test/pit/d.png"])

    assert "train has no image of pit" in refused(tmp_path / "set", tmp_path / "m.onnx").message


def test_unreadable_images_are_named_together(parts: Path, tmp_path: Path) -> None:
    """Not one per attempt."""
    (parts / "images/train_ok_000.png").write_bytes(b"")
    (parts / "images/train_spot_003.png").write_bytes(encoded(textured())[:-50])

    error = refused(parts, tmp_path / "m.onnx")

    assert "2 of 24 images can't be used" in error.message
    assert "train_ok_000.png" in error.message
    assert "train_spot_003.png" in error.message


def test_a_loss_that_is_no_number_ends_training_with_a_remedy(parts: Path, tmp_path: Path) -> None:
    """Going on would write a model of NaN."""
    error = refused(parts, tmp_path / "m.onnx", dataclasses.replace(QUICK, lr=100.0, weight_decay=1e20))

    assert "the loss became" in error.message
    assert error.hint is not None
    assert "--lr 25" in error.hint


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_trained(parts: Path, tmp_path: Path) -> None:
    """Not after the first epoch, which may be an hour."""
    (tmp_path / "file").write_bytes(b"")
    seen: list[Progress] = []

    with pytest.raises(OptimizeError, match="can't be written"):
        train(QUICK, read_dataset(parts), tmp_path / "file" / "m.onnx", seen.append)

    assert not seen


def test_an_image_of_test_is_never_opened(parts: Path, tmp_path: Path) -> None:
    """What was looked at is no test any more; broken files there must go unnoticed."""
    for path in (parts / "images").glob("test_*.png"):
        path.write_bytes(b"")

    result = trained(parts, tmp_path / "m.onnx")

    assert {split: len(files) for split, files in result.files.items()} == {"train": 24, "val": 12}


def test_without_val_a_part_of_train_becomes_it_and_groups_stay_whole(tmp_path: Path) -> None:
    """Stopping needs images that were not trained on; the user is told."""
    rows = ["file,class,split,group"]
    for i in range(60):
        label = ("ok", "dent")[i % 2]
        write_pictures(tmp_path, [f"{i}.png"])
        rows.append(f"{i}.png,{label},{'test' if i >= 48 else 'train'},{label}{i // 6}")
    (tmp_path / "splits.csv").write_text("\n".join(rows))

    chosen, notices = train_and_val(read_dataset(tmp_path), seed=0)

    groups = {split: {sample.group for sample in part} for split, part in chosen.items()}
    assert groups["train"] & groups["val"] == set()
    assert len(groups["train"] | groups["val"]) == 16
    assert min(chosen["val"].counts.values()) > 0
    assert "has no val split" in notices[0]


def test_too_few_images_for_a_val_of_their_own_are_refused(tmp_path: Path) -> None:
    """Two images cannot both teach and check."""
    write_pictures(tmp_path / "set", ["ok/a.png", "dent/b.png"])

    with pytest.raises(DataError, match="too few"):
        train_and_val(read_dataset(tmp_path / "set"), seed=0)


def test_training_learns_what_can_be_learned(parts: Path, tmp_path: Path) -> None:
    """The whole way: weights, best epoch, file, parity."""
    result = trained(parts, tmp_path / "m.onnx", dataclasses.replace(QUICK, epochs=30, batch=12))

    assert result.val.accuracy >= 0.9
    assert result.history[result.best_epoch - 1].val_balanced_recall == result.val.balanced_recall
    assert result.val.balanced_recall >= max(record.val_balanced_recall for record in result.history) - 1.01 / 12
    assert result.stopped == "finished"
    assert result.parity.max_relative < 1e-4
    assert result.classes == ("ok", "scratch", "spot")


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv2"])
def test_the_large_networks_train_and_export_too(parts: Path, tmp_path: Path, arch: str) -> None:
    """One epoch is enough to see that nothing of theirs is missing."""
    result = trained(parts, tmp_path / "m.onnx", dataclasses.replace(QUICK, arch=arch, epochs=1))

    assert result.parity.max_relative < 1e-3


def test_the_same_seed_gives_the_same_file_and_another_does_not(parts: Path, tmp_path: Path) -> None:
    """Whoever repeats a run must get the model that was released."""
    sha = [
        trained(parts, tmp_path / f"{i}.onnx", dataclasses.replace(QUICK, seed=seed)).sha256
        for i, seed in enumerate((1, 1, 2))
    ]

    assert sha[0] == sha[1]
    assert sha[0] != sha[2]


def test_an_interrupted_run_ends_as_one_that_was_not(parts: Path, tmp_path: Path) -> None:
    """Same weights, same history: nothing random hangs on what came before."""
    whole = trained(parts, tmp_path / "whole.onnx")
    with pytest.raises(KeyboardInterrupt):
        train(QUICK, read_dataset(parts), tmp_path / "cut.onnx", stop_after(1))

    resumed = trained(parts, tmp_path / "cut.onnx")

    assert resumed.resumed_at == 1
    assert resumed.sha256 == whole.sha256
    assert [r.train_loss for r in resumed.history] == [r.train_loss for r in whole.history]


def command_line(parts: Path, out: Path, *more: str) -> list[str]:
    code = "import sys; from tests.optimize.test_train import PROGRAM; sys.exit(PROGRAM.main())"
    recipe = ["--arch", "tiny", "--size", "32", "--batch", "8", "--threads", "1", "--epochs", "4", "--lr", "0.05"]
    return [sys.executable, "-c", code, "train", "--data", str(parts), "--out", str(out), *recipe, *more]


def test_kill_9_and_the_same_command_end_as_an_uninterrupted_run(parts: Path, tmp_path: Path) -> None:
    """A power cut at night: in the morning the same command goes on, and the file is the same to the byte."""
    out = tmp_path / "killed.onnx"
    with subprocess.Popen(command_line(parts, out), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch   2/"):
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()

    finished = subprocess.run(command_line(parts, out, "--json"), cwd=ROOT, capture_output=True, text=True, check=True)
    whole = trained(parts, tmp_path / "whole.onnx", dataclasses.replace(QUICK, epochs=4))

    report = json.loads(finished.stdout)
    assert report["resumed_at"] >= 1
    assert report["sha256"] == whole.sha256


def test_fresh_forgets_what_an_earlier_run_did(parts: Path, tmp_path: Path) -> None:
    """For who changed the images and wants no remains."""
    trained(parts, tmp_path / "m.onnx")

    again = trained(parts, tmp_path / "m.onnx", is_fresh=True)

    assert again.resumed_at == 0


def test_a_finished_run_is_not_trained_again(parts: Path, tmp_path: Path) -> None:
    """The same command once more costs seconds and gives the same file."""
    first = trained(parts, tmp_path / "m.onnx")

    again = trained(parts, tmp_path / "m.onnx")

    assert again.resumed_at == len(first.history)
    assert again.sha256 == first.sha256


@pytest.mark.parametrize(("key", "value"), [("lr", 0.01), ("epochs", 5), ("seed", 4), ("size_px", 64)])
def test_a_checkpoint_of_another_recipe_is_refused(parts: Path, tmp_path: Path, key: str, value: float) -> None:
    """Half of one recipe and half of another is a model that nobody can make again."""
    trained(parts, tmp_path / "m.onnx")

    with pytest.raises(OptimizeError, match=f"is of a run with {key}") as caught:
        trained(parts, tmp_path / "m.onnx", dataclasses.replace(QUICK, **{key: value}))  # type: ignore[arg-type]

    assert "--fresh" in str(caught.value.hint)


def test_a_checkpoint_of_other_images_is_refused(parts: Path, tmp_path: Path) -> None:
    """One picture was replaced since."""
    trained(parts, tmp_path / "m.onnx")
    (parts / "images/train_ok_000.png").write_bytes(encoded(textured(32, 32)))

    with pytest.raises(OptimizeError, match="is of a run with images"):
        trained(parts, tmp_path / "m.onnx")


class Boom:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (os.mkdir, ("boom",))


def hostile() -> bytes:
    buffer = io.BytesIO()
    torch.save({"format": 1, "run_of": {}, "state": Boom()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", hostile()], ids=["empty", "noise", "hostile"])
def test_a_damaged_or_hostile_checkpoint_is_refused_and_runs_no_code(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come from a shared disk."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(content)

    with pytest.raises(OptimizeError, match="is damaged, or no checkpoint"):
        Checkpoint(tmp_path / "checkpoint.pt", {}).load()
    assert not (tmp_path / "boom").exists()


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    """A disk that was full."""
    path = tmp_path / "checkpoint.pt"
    Checkpoint(path, {}).save({"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-300])

    with pytest.raises(OptimizeError, match="is damaged"):
        Checkpoint(path, {}).load()


def test_patience_ends_a_run_that_no_longer_gets_better(parts: Path, tmp_path: Path) -> None:
    """And the best epoch is what is kept."""
    result = trained(parts, tmp_path / "m.onnx", dataclasses.replace(QUICK, epochs=500, patience=2, lr=1e-9))

    assert result.stopped == "patience"
    assert len(result.history) == result.best_epoch + 2


def test_a_time_budget_shortens_the_schedule_and_still_ends_it(parts: Path, tmp_path: Path) -> None:
    """The rest of the schedule runs faster, so that the learning rate has fallen when the time is up."""
    result = trained(parts, tmp_path / "m.onnx", dataclasses.replace(QUICK, epochs=100_000, minutes=0.02))

    assert result.stopped == "minutes"
    assert len(result.history) < 100_000
    assert result.history[-1].position == 100_000


def test_rare_classes_weigh_as_much_as_frequent_ones(tmp_path: Path) -> None:
    """34 good parts for one defect: accuracy would be content with calling everything good."""
    write_parts(tmp_path / "set", {"train": 20, "val": 4})
    rows = (tmp_path / "set/splits.csv").read_text().splitlines()
    kept = [row for row in rows if not (",spot,train" in row and int(row.split("_")[-1][:3]) >= 3)]
    (tmp_path / "set/splits.csv").write_text("\n".join(kept))

    result = trained(tmp_path / "set", tmp_path / "m.onnx", dataclasses.replace(QUICK, epochs=30))

    assert result.val.recalls[2] is not None
    assert result.val.recalls[2] >= 0.75


def test_balanced_recall_counts_classes_not_images() -> None:
    """90 of 90 good ones and 1 of 10 defects is no success; a class without images says nothing."""
    val = Validation(loss=1.0, confusion=((90, 0, 0), (9, 1, 0), (0, 0, 0)))

    assert val.accuracy == 0.91
    assert val.recalls == (1.0, 0.1, None)
    assert val.balanced_recall == pytest.approx(0.55)


def test_val_pictures_are_those_that_the_device_sees(parts: Path) -> None:
    """Fitted by the agent's own code, whatever their size."""
    from agent.bundle.preprocess import Preprocessor

    part = read_dataset(parts).take("val")
    spec = dataclasses.replace(QUICK, size_px=48).spec

    found = fitted_pictures(part, spec)

    image = read_image(part.samples[0].path)
    assert np.array_equal(Preprocessor(spec)(image)[0][0], found.images[0])
    assert found.is_grey


def test_large_pictures_are_kept_no_larger_than_training_needs(tmp_path: Path) -> None:
    """A thousand pictures of 12 megapixels do not fit in memory."""
    (tmp_path / "ok").mkdir()
    (tmp_path / "ok/a.png").write_bytes(encoded(textured(900, 100)))
    (tmp_path / "ok/b.png").write_bytes(encoded(textured(100, 60)))

    kept = raw_pictures(read_dataset(tmp_path), size_px=64)

    assert [image.shape for image in kept.images] == [(100, 128, 3), (60, 100, 3)]
    assert not kept.is_grey


def run_command(*arguments: str) -> int:
    return PROGRAM.main(["train", *arguments])


def test_json_prints_one_document_and_nothing_else(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts read it; progress goes to stderr."""
    out = tmp_path / "model.onnx"

    code = run_command(*command_line(parts, out, "--json")[4:])

    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert code == 0
    assert report["arch"] == "tiny"
    assert report["classes"] == ["ok", "scratch", "spot"]
    assert report["epochs"] == 4
    assert report["val"]["per_class"]["spot"]["support"] == 4
    assert report["size_bytes"] == out.stat().st_size
    assert report["parity_max_abs"] < 1e-3
    assert "epoch   4/4" in printed.err


def test_a_card_and_a_picture_lie_beside_the_model(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was trained on what, for an auditor; curves and confusion, for the eye."""
    out = tmp_path / "model.onnx"

    run_command(*command_line(parts, out)[4:])

    card = json.loads((tmp_path / "model.onnx.json").read_text())
    assert card["recipe"]["seed"] == 0
    assert len(card["history"]) == 4
    assert len(card["files"]["train"]) == 24
    assert card["versions"]["torch"] == torch.__version__
    picture = cv2.imread(str(tmp_path / "model.onnx.png"))
    assert picture is not None
    assert picture.std() > 10
    assert "scratch" in capsys.readouterr().out


def test_the_command_lists_its_networks(capsys: pytest.CaptureFixture[str]) -> None:
    """To choose by; needs no images."""
    assert run_command("--arch", "list") == 0
    assert run_command("--arch", "list", "--json") == 0

    text = capsys.readouterr().out
    assert "mobilenetv2" in text
    names = [card["name"] for card in json.loads(text[text.index("[") :])]
    assert {"resnet18", "mobilenetv2", "efficientnet-lite0", "tiny", "densenet121", "vgg16-bn"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--data DIR is missing"),
        (("--data", "nowhere"), "nowhere: no such folder"),
        (("--data", "nowhere", "--arch", "vgg"), "arch: got 'vgg'"),
        (("--data", "nowhere", "--epochs", "0"), "epochs: got 0"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for what the user can mend."""
    assert run_command(*arguments) == 2

    printed = capsys.readouterr()
    assert words in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_help_has_an_example() -> None:
    """`--help` is the manual."""
    assert "defect-opt train --data NEU --arch resnet18" in command.EPILOG
