"""The last resort: an INT8 rung that breaks the budget is recovered while it rounds, and the row says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[train]'")

from agent.bundle import InputSpec, open_bundle
from optimize.ladder import LadderOptions, RungFile, assess, deploy
from optimize.trained import Trained, save_trained
from tests.kit.commands import Ran, run_command
from tests.kit.float_models import CLASSES, write_model, write_parts
from tests.kit.rungs import rung
from tests.kit.tiny_networks import pictures, trained, unequal

pytestmark = [pytest.mark.torch, pytest.mark.slow]

PLAIN = "targets: [cpu]\nquantize: {method: minmax, equalize: none, correction: none, max_float_layers: 0}\n"
"""Plain post-training quantization, without what would mend a network of unequal channels."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"), {"train": 1, "calib": 48, "val": 20, "test": 2})


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tells all classes apart in float; rounded with one scale per tensor it tells none."""
    path = tmp_path_factory.mktemp("top") / "top.onnx"
    known = Trained(
        path=path,
        sha256="",
        network=unequal(trained(), 1000),
        spec=InputSpec(width_px=32, height_px=32),
        classes=CLASSES,
        arch="tiny",
        channels=1,
        task="classify",
        recipe=MappingProxyType({"arch": "tiny"}),
    )
    return save_trained(known, path, pictures(16)).onnx


def climbed(folder: Path, *flags: object) -> Ran:
    (folder / "defect-opt.yaml").write_text(PLAIN, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run_command("optimize.cli.ladder", "--seconds", "0.1", "--keep-macs", *flags)


def test_an_int8_rung_that_lost_its_classes_is_recovered_and_its_row_says_so(
    tmp_path: Path, parts: Path, top: Path
) -> None:
    """Without a label; the float rung is deployed with its own weights, and a second run trains nothing again."""
    flags = ["--max-drop", "2", "--recover-epochs", "10", "--top", top, "--data", parts, "--work", tmp_path / "w"]

    ran = climbed(tmp_path, *flags, "--json")

    first, second = ran.json["rungs"]
    recovery = second["recovery"]
    assert first["recovery"] is None
    assert recovery["is_kept"], recovery["sentence"]
    assert recovery["drop_before"] > 30
    assert second["drop_points"] == recovery["drop_after"] < recovery["drop_before"] - 20
    assert "top-rounded-int8" in second["file"]
    assert "recovered while rounding, without a label" in recovery["sentence"]

    again = climbed(tmp_path, *flags)
    assert again.err.count("is there already") == 3
    assert next(line.split()[-1] for line in again.out.splitlines() if line.startswith("top-int8 ")) == "recovered"

    # Which of both is faster is this machine's affair; what would be written of the float one is not.
    first_bundle = next((tmp_path / "w" / "steps").glob("top-int8-*/top-1.0.0.defect"))
    files = [
        RungFile(name="top", path=top),
        RungFile(name="top-int8", path=Path(second["file"]), graph="cpu", made_from="top", first=first_bundle),
    ]
    bundle = deploy(rung("top"), files, tmp_path / "own.defect")
    assert bundle is not None
    own, made, learned = (open_bundle(path).graph("fp32") for path in (bundle, first_bundle, Path(second["file"])))
    assert own == made != learned


def test_it_can_be_switched_off(tmp_path: Path, parts: Path, top: Path) -> None:
    """Then the rung is judged as it was quantized."""
    ran = climbed(tmp_path, "--max-drop", "2", "--recover-epochs", "0", "--top", top, "--data", parts, "--json")

    assert ran.json["rungs"][1]["drop_points"] > 30
    assert ran.json["rungs"][1]["recovery"] is None
    assert "rounded" not in ran.err


def test_a_float_rung_is_deployed_as_it_was_judged(tmp_path: Path, parts: Path, top: Path) -> None:
    """At the same temperature: INT8 is ruined here, and the one fitted on it would send every part to a person.

    So figures that hang on that one go, and counts stay.
    """
    from optimize.dataset import read_dataset
    from optimize.recipe import Recipe

    flags = ["--max-drop", "2", "--recover-epochs", "0", "--top", top, "--data", parts, "--work", tmp_path / "w"]
    ran = climbed(tmp_path, *flags, "--json")
    assert ran.json["chosen"] == "top"

    files = [RungFile(name="judged", path=top), RungFile(name="deployed", path=Path(ran.json["bundle"]))]
    found = assess(files, read_dataset(parts), Recipe(), dataclasses.replace(LadderOptions(), seconds=0.05))

    assert found.rungs[1].decisions_changed == 0
    assert found.rungs[1].graph == "fp32"
    deployed, built = (open_bundle(Path(rung)).manifest for rung in (ran.json["bundle"], ran.json["rungs"][1]["file"]))
    assert deployed.temperature == found.rungs[0].temperature != built.temperature
    assert deployed.metrics["calibration"] == {"temperature": deployed.temperature}
    for kind in ("fp32", "int8"):
        kept = {key: built.metrics[kind][key] for key in ("n", "accuracy", "recall", "errors")}
        assert deployed.metrics[kind] == kept
        assert kept.keys() < built.metrics[kind].keys()


def test_a_network_from_elsewhere_can_not_be_recovered_and_that_is_said(tmp_path: Path, parts: Path) -> None:
    """It has no checkpoint; the ladder goes on."""
    write_model(tmp_path / "theirs.onnx", loudness=3000.0)

    ran = climbed(tmp_path, "--top", "theirs.onnx", "--data", parts, "--max-drop", "2", "--json")

    assert ran.code == 0, ran.err
    recovery = ran.json["rungs"][1]["recovery"]
    assert recovery["drop_after"] is None
    assert (
        "could not be recovered: theirs.onnx: is 'conv_classifier', no single network of ours" in recovery["sentence"]
    )
