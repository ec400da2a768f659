"""The bench's own detector: its file has the form that customers' exporters write, and its training can learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from optimize.quantize.graph import Graph, zones
from optimize.quantize.kept import decode_v8

torch = pytest.importorskip("torch", reason="the bench's detector is trained with PyTorch")
yolo = pytest.importorskip("tools.bench_models.yolo")

pytestmark = pytest.mark.torch

SIDE = 64
CELLS = (SIDE // 8) ** 2 + (SIDE // 16) ** 2 + (SIDE // 32) ** 2


@pytest.fixture(scope="module")
def detector() -> Any:
    torch.manual_seed(0)
    return yolo.Detector(len(yolo.CLASSES)).eval()


def test_the_file_gives_what_torch_gives_in_the_usual_form(detector: Any) -> None:
    """Boxes in pixels and scores from 0 to 1 in one output, as customers have it."""
    picture = np.random.default_rng(1).uniform(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)

    session = onnxruntime.InferenceSession(yolo.export(detector, SIDE), providers=["CPUExecutionProvider"])
    (found,) = session.run(["output0"], {"images": picture})

    with torch.no_grad():
        expected = yolo.Exported(detector, SIDE)(torch.from_numpy(picture)).numpy()
    assert found.shape == (1, 4 + len(yolo.CLASSES), CELLS)
    assert np.abs(found - expected).max() < 1e-3
    assert decode_v8(found)[1].max() < 0.5


def test_its_head_is_found(detector: Any) -> None:
    """Two output layers on each of three levels, and the fixed mean, in the graph that torch writes."""
    model = onnx.load_model_from_string(yolo.export(detector, SIDE))
    graph = Graph(onnx.shape_inference.infer_shapes(model, data_prop=True))

    found = zones(graph, graph.outputs)

    convolutions = [node.output[0] for node in graph.nodes if node.op_type == "Conv"]
    assert len(found.output_layers) == 6
    assert len([name for name in convolutions if name in found.head]) == 7
    assert not [n for n in graph.nodes if n.op_type == "Relu" and n.output[0] in found.head]


def test_cells_learn_the_defect_that_they_lie_in() -> None:
    """A cell outside never does, however well its box fits; the best one is asked for its overlap as a score."""
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0], [60.0, 60.0]])
    boxes = torch.tensor([[0.0, 0.0, 16.0, 8.0], [0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 16.0, 16.0]])
    scores = torch.full((3, 2), 0.1)
    truth = torch.tensor([[1.0, 0.0, 0.0, 16.0, 16.0]])
    padded = [torch.cat([t, t[-1:].expand(10, -1)]) for t in (scores, boxes, points)]

    cells, defects, wanted = yolo.assign(*padded, truth)

    assert cells.tolist() == [0, 1]
    assert defects.tolist() == [0, 0]
    assert wanted[1].item() == pytest.approx(1.0)
    assert wanted[0].item() == pytest.approx(0.5**6)


@pytest.mark.parametrize("distance", [0.0, 2.25, 13.9])
def test_the_distribution_is_learned_as_its_mean(distance: float) -> None:
    """The loss is least where the two bins around the distance share it so that the mean is right."""
    logits = torch.zeros(1, 4, yolo.BINS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        yolo.distribution_loss(logits, torch.full((1, 4), distance)).sum().backward()
        optimizer.step()

    mean = (logits.detach().softmax(-1) @ torch.arange(yolo.BINS, dtype=torch.float32))[0]

    assert mean.numpy() == pytest.approx(np.full(4, distance), abs=0.1)
