"""A detector from elsewhere, by the command line to a bundle: judged by the detections that INT8 keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.bundle import open_bundle
from tests.kit import detectors
from tests.kit.commands import Ran, run_command
from tests.kit.float_models import write_parts

RECIPE = """preprocess: {mean: 0.5, std: 0.5}
quantize: {cpu_graph: int8}
classes: [{name: ok, severity: ok}, {name: scratch, severity: major}, {name: spot, severity: major}]
"""


def build_detector(tmp_path: Path, *more: str) -> Ran:
    """The command in an empty folder, on unlabelled pictures."""
    data = write_parts(tmp_path / "parts", {"calib": 8, "val": 4})
    (tmp_path / "m.onnx").write_bytes(detectors.v8_like().SerializeToString())
    (tmp_path / "defect-opt.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        return run_command("optimize.cli.build", "--int8", "--model", "m.onnx", "--data", data, "--calib", data, *more)


def test_a_detector_is_packed_and_says_what_it_keeps(tmp_path: Path) -> None:
    """No labels are needed, and the device is told that it must decode boxes."""
    ran = build_detector(tmp_path, "--json")

    assert ran.code == 0, ran.err
    manifest = open_bundle(tmp_path / "m-1.0.0.defect").manifest
    assert (manifest.task, manifest.outputs.boxes, manifest.outputs.scores) == ("detect", "boxes", "scores")
    assert ran.json["targets"]["cpu"]["kept"]["total"] > 0
    assert ran.json["adoption"]["max_relative"] < 1e-3


def test_no_next_step_is_named_that_a_detector_can_not_take(tmp_path: Path) -> None:
    """`evaluate` judges classes only."""
    ran = build_detector(tmp_path)

    assert ran.code == 0, ran.err
    assert "detections kept" in ran.out
    assert "Next:" not in ran.out
