"""`defect-opt prune`: what it refuses, and a network's way from training to half its multiplications."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from optimize.dataset import read_dataset
from tests.kit.commands import Ran, run_command
from tests.kit.float_models import write_parts

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")
pytest.importorskip("torch_pruning", reason="needs torch-pruning: pip install -e '.[train]'")

from optimize.train import TrainConfig, train
from optimize.trained import checkpoint_of, load_trained

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and `model.onnx` that was trained on them."""
    folder = tmp_path_factory.mktemp("prune")
    parts = write_parts(folder / "parts", {"train": 4, "calib": 4, "val": 2, "test": 1})
    config = TrainConfig(arch="tiny", epochs=1, batch=6, size_px=32, threads=1, lr=0.05)
    train(config, read_dataset(parts), folder / "model.onnx")
    return folder


def prune(folder: Path, *arguments: object) -> Ran:
    return run_command("optimize.cli.prune", *arguments, "--threads", 1, "--ledger", folder / "ledger.jsonl")


def refused(ran: Ran) -> str:
    assert ran.code == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err
    return ran.err


def test_what_is_missing_is_named_with_a_whole_command(folder: Path) -> None:
    """Nobody knows the flags by heart."""
    err = refused(prune(folder, folder / "model.onnx"))

    assert "--calib DIR and --out OUT.onnx missing" in err
    assert "defect-opt prune MODEL.onnx --calib DIR --out OUT.onnx" in err


def test_the_model_itself_is_never_overwritten(folder: Path) -> None:
    """Its accuracy is what everything is compared with."""
    model, link = folder / "model.onnx", folder / "link.onnx"
    link.hardlink_to(model)
    before = model.read_bytes()

    for out in (model, folder / "parts" / ".." / "model.onnx", link):
        err = refused(prune(folder, model, "--calib", folder / "parts", "--out", out))
        assert "is the model itself" in err
        assert "would be lost" in err

    link.unlink()
    assert model.read_bytes() == before


def test_a_model_without_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    """What is missing is named, and what to do."""
    shutil.copy(folder / "model.onnx", tmp_path)
    err = refused(prune(folder, tmp_path / "model.onnx", "--calib", folder / "parts", "--out", tmp_path / "out.onnx"))

    assert "checkpoint" in err
    assert not (tmp_path / "out.onnx").exists()


def test_a_test_picture_among_the_pictures_is_refused(folder: Path, tmp_path: Path) -> None:
    """Recovered on test pictures, test numbers are worth nothing."""
    calib = tmp_path / "calib"
    calib.mkdir()
    for path in (folder / "parts" / "images").glob("*_0*.png"):
        shutil.copy(path, calib)
    model, out = folder / "model.onnx", tmp_path / "out.onnx"
    err = refused(prune(folder, model, "--calib", calib, "--data", folder / "parts", "--out", out))

    assert "are in the test split" in err
    assert not out.exists()


def test_nothing_to_do_is_refused(folder: Path, tmp_path: Path) -> None:
    """All multiplications kept, no pattern asked for."""
    arguments = ("--calib", folder / "parts", "--keep-macs", 1, "--out", tmp_path / "out.onnx")

    assert "nothing to do" in refused(prune(folder, folder / "model.onnx", *arguments))


def test_a_network_is_halved_recovered_proven_and_can_be_made_sparse_from_there(folder: Path, tmp_path: Path) -> None:
    """The way that a user goes: both files stand, the second one was made of the first one's checkpoint."""
    half, sparse = tmp_path / "half.onnx", tmp_path / "sparse.onnx"
    arguments = ("--calib", folder / "parts", "--recover-epochs", 1, "--keep-macs", 0.5, "--out", half, "--json")
    ran = prune(folder, folder / "model.onnx", *arguments)
    told = ran.json

    assert ran.code == 0
    assert told["macs"]["kept"] <= 0.5
    assert told["parameters"]["after"] < told["parameters"]["before"]
    assert told["size_bytes"]["after"] == half.stat().st_size < told["size_bytes"]["before"]
    assert set(told["latency_ms"]) == {"before", "after"}
    assert (told["pictures"], len(told["tried"]), len(told["rounds"])) == (12, 3, 1)
    assert told["rounds"][0]["recovered"]["n"] == told["agreement"]["n"] == 12
    assert told["parity"]["max_relative"] < 1e-3
    assert "agrees on" in ran.err
    assert load_trained(half).sha256 == told["onnx_sha256"]

    more = ("--model", half, "--calib", folder / "parts", "--recover-epochs", 1, "--keep-macs", 1, "--sparsity", "2:4")
    text = prune(folder, *more, "--out", sparse)

    assert text.code == 0, text.err
    assert "2:4 pattern in 6 of" in text.out
    assert f"Next: defect-opt build --int8 --model {sparse}" in text.out
    assert checkpoint_of(sparse).is_file()
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["command"] for line in lines] == ["prune", "prune"]
    assert lines[1]["inputs"][0]["sha256"] == told["onnx_sha256"]
