"""The whole ladder: a teacher, a student, pruned networks and INT8, made by the commands that a user has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimize.quantize import read_model
from tests.kit.commands import Ran, run_command
from tests.kit.float_models import write_model, write_parts

pytestmark = [pytest.mark.torch, pytest.mark.slow]

COMMAND = "optimize.cli.ladder"
RECIPE = "targets: [cpu]\nquantize: {method: minmax, equalize: none, correction: none, max_float_layers: 0}\n"


def climbed(folder: Path, *flags: object) -> Ran:
    (folder / "defect-opt.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run_command(COMMAND, "--seconds", "0.1", *flags)


def test_float_distilled_pruned_int8_and_resumed(tmp_path: Path) -> None:
    """Each rung is made from the one that it names; a second run makes none again, another flag what it decides."""
    pytest.importorskip("torch_pruning")
    parts = write_parts(tmp_path / "parts", {"train": 6, "calib": 8, "val": 4})
    top = write_model(tmp_path / "large.onnx")
    flags = ["--top", top, "--data", parts, "--work", tmp_path / "w", "--student", "tiny", "--keep-macs", "0.6"]
    flags += ["--distill", "--epochs 1 --size 32 --batch 6 --threads 1"]
    quick = ["--prune", "--recover-epochs 0 --importance norm --threads 1"]

    ran = climbed(tmp_path, *flags, *quick, "--json")

    assert ran.code in (0, 1), ran.err
    rungs = {rung["name"]: rung for rung in ran.json["rungs"]}
    assert list(rungs) == ["top", "distilled", "pruned-0.6", "top-int8", "distilled-int8", "pruned-0.6-int8"]
    assert {name: rung["made_from"] for name, rung in rungs.items()} == {
        "top": None,
        "distilled": "top",
        "pruned-0.6": "distilled",
        "top-int8": "top",
        "distilled-int8": "distilled",
        "pruned-0.6-int8": "pruned-0.6",
    }
    assert rungs["pruned-0.6"]["macs"] < 0.8 * rungs["distilled"]["macs"]
    assert read_model(Path(rungs["pruned-0.6"]["file"])).arch == "tiny"
    assert json.loads((tmp_path / "w" / "ladder.json").read_text(encoding="utf-8"))["rungs"] == ran.json["rungs"]

    again = climbed(tmp_path, *flags, *quick, "--json")
    assert again.err.count("is there already") == 5
    other = climbed(tmp_path, *flags, "--prune", "--recover-epochs 0 --importance norm --threads 1 --seed 1", "--json")
    assert "distilled: is there already" in other.err
    assert "pruned-0.6: from distilled" in other.err
