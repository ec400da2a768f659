"""`defect-opt inspect`: what is in a file, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.bundle import Outputs
from optimize.quantize import Quantizer, read_model
from tests.kit.bundles import make_bundle
from tests.kit.commands import run_command
from tests.kit.float_models import FIRST, SECOND, SIDE, write_model
from tests.optimize.test_quantize import pictures

COMMAND = "optimize.cli.inspect"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is no ONNX model"), (b"hello", "is no ONNX model"), (b"PK\x03\x04 a zip", "a.bin: ")],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    """Whatever somebody drags in."""
    (tmp_path / "a.bin").write_bytes(content)

    ran = run_command(COMMAND, tmp_path / "a.bin")

    assert ran.code == 2
    assert expected in ran.err
    assert "Traceback" not in ran.err


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """One sentence."""
    assert run_command(COMMAND, tmp_path / "a.onnx").code == 2


def test_weights_and_multiplications_are_what_counting_by_hand_gives(tmp_path: Path) -> None:
    """Sizes and speeds are promised by these numbers."""
    path = write_model(tmp_path / "m.onnx")
    cells = (SIDE // 2) ** 2

    graph = run_command(COMMAND, path, "--json").json["graphs"]["model"]

    first, second, head = FIRST * 3 * 25, SECOND * FIRST * 9, 3 * SECOND
    assert graph["macs"] == cells * (first + second + head) + head
    assert graph["parameters"] == first + second + SECOND + head + head + 3
    assert (graph["layers"], graph["int8_layers"], graph["int8_share"]) == (4, 0, 0.0)
    assert graph["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [1, SIDE, SIDE, 3]}]
    assert [port["name"] for port in graph["outputs"]] == ["logits", "embedding", "cam"]
    assert (graph["opset"], graph["nodes"]["Conv"], graph["size_bytes"]) == (17, 3, path.stat().st_size)
    assert graph["metadata"]["arch"] == "conv_classifier"


def test_every_graph_of_a_bundle_is_shown_with_its_int8_share(tmp_path: Path) -> None:
    """How much of the work an INT8 graph really does in INT8."""
    path = write_model(tmp_path / "m.onnx")
    int8 = Quantizer(read_model(path), pictures(8)).quantize("cpu").graph
    files = {"model.fp32.onnx": path.read_bytes(), "model.cpu.onnx": int8}
    outputs = Outputs(logits="logits", embedding="embedding", cam="cam")
    bundle = make_bundle(tmp_path, files=files, outputs=outputs)

    graphs = run_command(COMMAND, bundle.path, "--json").json["graphs"]
    text = run_command(COMMAND, bundle.path).out

    assert set(graphs) == {"cpu", "fp32"}
    assert graphs["cpu"]["int8_layers"] == 2
    biases = FIRST + 3  # quantization gives a bias to the two layers that had none, to correct their means with
    assert graphs["cpu"]["parameters"] == graphs["fp32"]["parameters"] + biases
    assert graphs["cpu"]["macs"] == graphs["fp32"]["macs"]
    assert 0.9 < graphs["cpu"]["int8_share"] < 1
    assert "INT8 share" in text
    assert ": fp32" in text
