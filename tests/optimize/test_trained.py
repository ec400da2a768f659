"""A trained network from its files: refused when they are not ours or do not belong together, else the same network."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from optimize.dataset import read_dataset
from optimize.errors import ModelError
from tests.kit.float_models import write_model, write_parts

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

import torch

from optimize.export import normalize
from optimize.networks.detectors.detector import Detector
from optimize.train import TrainConfig, train
from optimize.trained import checkpoint_of, cut_to, load_trained, save_trained
from tests.kit.living import classifier, detector, noise, trained_pair

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `defect-opt train` writes, with its checkpoint beside it."""
    folder = tmp_path_factory.mktemp("trained")
    parts = write_parts(folder / "parts", {"train": 4, "val": 2})
    out = folder / "model.onnx"
    train(TrainConfig(arch="tiny", epochs=1, batch=6, size_px=32, threads=1, lr=0.05), read_dataset(parts), out)
    return out


@pytest.fixture
def onnx(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copy(made, tmp_path / made.name)
    shutil.copytree(checkpoint_of(made).parent, tmp_path / f"{made.name}.train")
    return tmp_path / made.name


def refused(onnx: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_trained(onnx)
    assert caught.value.hint
    return caught.value


def test_a_file_without_its_checkpoint_is_refused_with_the_place_it_should_be(onnx: Path) -> None:
    """An ONNX file alone can't be trained on: its norms are folded."""
    checkpoint_of(onnx).unlink()

    assert str(checkpoint_of(onnx)) in refused(onnx).message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The plain mistake of a name."""
    assert "no such file" in refused(tmp_path / "none.onnx").message


def test_a_checkpoint_of_other_weights_is_refused(onnx: Path) -> None:
    """Else a network would be pruned that nobody has judged."""
    path = checkpoint_of(onnx)
    found = torch.load(path, weights_only=True)
    found["state"]["best_weights"]["features.layer1.0.weight"] += 0.3
    torch.save(found, path)

    assert "other weights" in refused(onnx).message


def test_a_checkpoint_of_another_architecture_is_refused(onnx: Path) -> None:
    """Two models in one folder, renamed."""
    path = checkpoint_of(onnx)
    found = torch.load(path, weights_only=True)
    found["run_of"]["arch"] = "resnet18"
    torch.save(found, path)

    assert "is of resnet18" in refused(onnx).message


def test_a_model_from_elsewhere_is_refused(onnx: Path) -> None:
    """Nobody knows how to build its network."""
    write_model(onnx)

    assert "network of ours" in refused(onnx).message


@pytest.mark.parametrize("part", ["onnx", "checkpoint"])
def test_a_truncated_file_is_refused(onnx: Path, part: str) -> None:
    """A copy over a broken line, a full disk."""
    path = onnx if part == "onnx" else checkpoint_of(onnx)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    assert str(path) in refused(onnx).message


def test_a_checkpoint_that_would_run_code_is_refused(onnx: Path) -> None:
    """A checkpoint comes by mail: it is read as tensors and plain values only."""
    torch.save({"format": 1, "run_of": {}, "state": {"best_weights": {}, "hook": print}}, checkpoint_of(onnx))

    assert "damaged" in refused(onnx).message


def test_a_checkpoint_whose_weights_are_too_wide_is_refused(onnx: Path) -> None:
    """Cutting makes networks narrower only: a wider one is another network."""
    path = checkpoint_of(onnx)
    found = torch.load(path, weights_only=True)
    weights = found["state"]["best_weights"]
    weights["features.layer2.0.weight"] = torch.zeros(24, 16, 3, 3)
    torch.save(found, path)

    assert "features.layer2.0.weight" in refused(onnx).message


def test_what_train_wrote_is_opened_as_it_was_trained(made: Path) -> None:
    """The weights are those of the best epoch, and the pictures' colour is known."""
    found = load_trained(made)
    weights = torch.load(checkpoint_of(made), weights_only=True)["state"]["best_weights"]

    assert (found.arch, found.task, found.classes) == ("tiny", "classify", ("ok", "scratch", "spot"))
    assert (found.spec.width_px, found.spec.height_px, found.channels) == (32, 32, 1)
    assert not found.network.training
    assert all(torch.equal(value, weights[name]) for name, value in found.network.state_dict().items())


def test_every_choice_of_the_recipe_is_built_again(tmp_path: Path) -> None:
    """Width, cut, gates and pooling stand in the checkpoint; the background is the class that is good."""
    network = classifier("resnet18", attention="se", until="layer1", width=0.25, channels=1)
    network.pooling, network.background = "both", 0
    recipe = {"width": "0.25", "until": "layer1", "attention": "se", "pooling": "both", "weights": "none"}
    out = tmp_path / "m.onnx"
    save_trained(
        trained_pair(network, "resnet18", recipe=recipe),
        out,
        noise(1).mean(3, keepdims=True).astype(np.uint8).repeat(3, 3),
    )
    found = load_trained(out)
    inputs = normalize(noise(2, channels=1))

    assert (found.channels, dict(found.recipe)) == (1, {"arch": "resnet18", **recipe})
    assert torch.equal(found.network(inputs), network(inputs))


def test_a_detector_is_opened_with_its_finest_level(tmp_path: Path) -> None:
    """Its priors depend on it."""
    network = detector("yolo-mobilenetv2", finest=16)
    out = tmp_path / "d.onnx"
    save_trained(trained_pair(network, "yolo-mobilenetv2", side_px=64, recipe={"finest": "16"}), out, noise(1, 64))
    found = load_trained(out)

    assert isinstance(found.network, Detector)
    assert found.network.strides == (16, 32)
    assert found.detection == network.spec(64, 64)


def test_weights_of_another_network_are_no_cut() -> None:
    """A layer that is missing is found out, not left at random."""
    weights = classifier("tiny").state_dict()
    del weights["features.layer3.0.weight"]

    with pytest.raises(ValueError, match=r"features\.layer3\.0\.weight"):
        cut_to(classifier("tiny"), weights)
