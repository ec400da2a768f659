"""Our own detectors' exports: what training wrote about them is what a build reads, and their head stays in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.bundle import InputSpec
from optimize.quantize.graph import Graph, zones
from optimize.quantize.model import FloatModel, read_model

torch = pytest.importorskip("torch", reason="our detectors are trained with PyTorch")

pytestmark = pytest.mark.torch

CLASSES = ("crazing", "patches", "scratches")
SPEC = InputSpec(width_px=96, height_px=64, resize="letterbox", pad_value=100, anchor="corner")


@pytest.fixture(scope="module", params=["yolo-lite0", "ssd-lite0"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FloatModel]:
    """A network with random weights, and its file as a build reads it."""
    from optimize.detect.export import export_detector
    from optimize.networks.detectors.detector import build_detector

    torch.manual_seed(0)
    network = build_detector(request.param, len(CLASSES)).eval()
    path: Path = tmp_path_factory.mktemp("own") / "m.onnx"
    detection = network.spec(SPEC.width_px, SPEC.height_px)
    export_detector(network, path, SPEC, detection, CLASSES, arch=request.param)
    return network, read_model(path)


def test_what_training_wrote_is_what_a_build_reads(exported: tuple[Any, FloatModel]) -> None:
    """Coding, priors and limits, the input's letterbox, classes without the background; nothing is changed."""
    network, model = exported

    assert model.detection == network.spec(SPEC.width_px, SPEC.height_px)
    assert (model.task, model.classes, model.count) == ("detect", CLASSES, 3)
    assert (model.input, model.adoption, model.notes) == (SPEC, None, ())
    assert model.heads == ("boxes", "scores")


def test_the_last_convolutions_belong_to_the_head(exported: tuple[Any, FloatModel]) -> None:
    """Two on each level, left in float: boxes are moved least by INT8 so."""
    network, model = exported
    graph = Graph(model.proto)

    found = zones(graph, model.heads)

    assert model.detection is not None
    assert len(found.output_layers) == 2 * len(model.detection.levels)
    inner = [node for node in graph.nodes if node.op_type == "Conv" and node.output[0] not in found.head]
    assert len(inner) > 20
    assert network.score_columns == (4 if model.detection.scores == "softmax" else 3)
