"""The ensemble: one file that says the mean of its members, is taken by `build`, and is refused when they differ."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from agent.bundle import open_bundle
from optimize.ensemble import cross_validation_of, merge_folds
from optimize.errors import ModelError
from optimize.quantize import read_model
from optimize.quantize.interpret import session_of
from tests.kit.commands import run_command
from tests.kit.float_models import CLASSES, SIDE, conv_classifier, picture, write_parts

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")
pytestmark = pytest.mark.torch


def members(folder: Path, count: int = 3) -> list[Path]:
    """Networks that differ in their heads: what lies before is the same, as with frozen layers."""
    paths = []
    for i in range(count):
        model = onnx.load_from_string(conv_classifier())
        for tensor in model.graph.initializer:
            if tensor.name in {"kernel", "bias"}:
                values = numpy_helper.to_array(tensor)
                noise = np.random.default_rng(i).normal(0, 0.05, values.shape).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
        paths.append(folder / f"{i}.onnx")
        onnx.save(model, paths[-1])
    return paths


def logits(path: Path, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    found = session_of(path.read_bytes()).run(["logits"], {"image": image})[0]
    return np.asarray(found, dtype=np.float32)


def test_one_network_is_no_ensemble(tmp_path: Path) -> None:
    """Nothing to take the mean of."""
    with pytest.raises(ModelError, match="got 1 networks, expected at least two"):
        merge_folds(members(tmp_path, 1), tmp_path / "out.onnx", [1.0])


def test_members_with_other_classes_are_refused(tmp_path: Path) -> None:
    """Their logits would be added class by class, whatever the classes are."""
    paths = members(tmp_path)
    model = onnx.load(paths[1])
    onnx.helper.set_model_props(model, {"classes": '["ok", "spot", "scratch"]'})
    onnx.save(model, paths[1])

    with pytest.raises(ModelError, match=r"1\.onnx: has classes"):
        merge_folds(paths, tmp_path / "out.onnx", [1.0] * 3)
    assert not (tmp_path / "out.onnx").exists()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """A fold whose file was damaged."""
    paths = members(tmp_path)
    paths[2].write_bytes(b"nothing")

    with pytest.raises(ModelError):
        merge_folds(paths, tmp_path / "out.onnx", [1.0] * 3)


def test_it_says_the_mean_of_what_its_members_say_at_their_temperatures(tmp_path: Path) -> None:
    """On a real picture, member by member."""
    paths, temperatures = members(tmp_path), [0.5, 1.0, 2.0]

    found = merge_folds(paths, tmp_path / "out.onnx", temperatures)

    image = picture("scratch", np.random.default_rng(5))[None]
    wanted = np.mean([logits(path, image) / t for path, t in zip(paths, temperatures, strict=True)], axis=0)
    assert logits(found.onnx, image) == pytest.approx(wanted, rel=1e-4)
    assert found.parity_max_relative < 1e-4


def test_what_all_members_share_is_computed_once(tmp_path: Path) -> None:
    """The normalization always; frozen layers too: an ensemble of heads costs little more than one network."""
    found = merge_folds(members(tmp_path), tmp_path / "out.onnx", [1.0] * 3)

    kinds = [node.op_type for node in onnx.load(found.onnx).graph.node]
    assert (kinds.count("Cast"), kinds.count("Conv"), kinds.count("Gemm")) == (1, 2 + 1, 3)
    assert found.shared > 0


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"accuracy": NaN}', "[" * 99_999])
def test_figures_that_are_none_are_passed_over(text: str) -> None:
    """A model from elsewhere may say what it likes; it must not break a build."""
    model = onnx.load_from_string(conv_classifier())
    onnx.helper.set_model_props(model, {"cross_validation": text})

    assert cross_validation_of(model) is None


def test_it_is_read_as_a_model_of_ours_and_the_same_members_give_the_same_bytes(tmp_path: Path) -> None:
    """Classes, input and roles are kept."""
    paths = members(tmp_path)
    first, again = (merge_folds(paths, tmp_path / f"{i}-out.onnx", [1.0] * 3) for i in range(2))

    model = read_model(first.onnx)
    assert model.classes == CLASSES
    assert (model.input.width_px, model.outputs.cam, model.outputs.embedding) == (SIDE, "cam", "embedding")
    assert model.arch == "ensemble of 3 conv_classifier"
    assert first.sha256 == again.sha256 == hashlib.sha256(first.onnx.read_bytes()).hexdigest()


def test_build_takes_it_keeps_its_temperature_and_says_that_val_flatters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All members but one were trained on each picture of val: it must not be what the temperature is fitted on."""
    monkeypatch.chdir(tmp_path)
    parts = write_parts(tmp_path / "parts", {"calib": 4, "val": 4})
    figures = {"accuracy": {"mean": 0.9}, "folds": 3}
    found = merge_folds(members(tmp_path), tmp_path / "m.onnx", [1.0, 1.5, 2.0], figures)

    ran = run_command(
        "optimize.cli.build", "--int8", "--model", found.onnx, "--data", parts, "--calib", parts, "--target", "cpu",
        "--json",
    )  # fmt: skip

    assert ran.code in {0, 1}, ran.err
    document = ran.json
    assert document["temperature"] == 1.0
    assert document["ece"]["n"] == 12
    assert document["ece"]["ece_before"] == document["ece"]["ece_after"]
    metrics = open_bundle(Path(document["bundle"])).manifest.metrics
    assert (metrics["calibration"], metrics["cross_validation"]) == (document["ece"], figures)
    assert any("its figures on val flatter" in warning for warning in document["warnings"])
