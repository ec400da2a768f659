"""Detectors: their priors lie where their outputs say, and the exported file computes what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

import torch

from agent.bundle.boxes import BoxDecoder
from agent.bundle.detection import detection_from_json
from agent.bundle.manifest import InputSpec
from optimize.detect.export import check_detector_parity, export_detector
from optimize.detect.losses import DetectionLoss, iou, prior_boxes
from optimize.detect.pictures import Truth, visible
from optimize.errors import OptimizeError
from optimize.networks.detectors import DETECTORS
from optimize.networks.detectors.detector import Detector, build_detector

pytestmark = pytest.mark.torch

SIZE = 64
FAMILIES = ("yolo-mobilenetv2", "ssd-mobilenetv2")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _truth(*boxes: tuple[float, float, float, float], classes: tuple[int, ...] = (), ignored: bool = False) -> Truth:
    return Truth(
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        classes=np.array(classes or (0,) * len(boxes), dtype=np.int64),
        is_ignored=np.full(len(boxes), ignored),
    )


@pytest.mark.parametrize("arch", sorted(DETECTORS))
def test_there_is_a_prior_for_every_output(arch: str) -> None:
    """One prior more or less would shift every box behind it."""
    network = build_detector(arch, 3).eval()
    with torch.inference_mode():
        boxes, scores = network(torch.zeros(1, 3, SIZE, SIZE))
    count = sum(level.count for level in network.levels(SIZE, SIZE))
    assert boxes.shape == (1, count, 4)
    assert scores.shape == (1, count, network.score_columns)
    assert network.score_columns == 3 + (network.family == "ssd")


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("finest", [4, 8, 16])
def test_the_finest_level_is_chosen(arch: str, finest: int) -> None:
    """Defects of a few pixels need a finer level."""
    network = build_detector(arch, 2, finest=finest)
    assert network.strides[0] == finest
    assert network(torch.zeros(2, 3, SIZE, SIZE))[0].shape[1] == sum(x.count for x in network.levels(SIZE, SIZE))


@pytest.mark.parametrize(("arch", "channels"), [("yolo-mobilenetv2", 1), ("ssd-mobilenetv2", 3), ("yolo-lite0", 3)])
def test_the_file_computes_what_the_network_does(tmp_path: Path, arch: str, channels: int) -> None:
    """With statistics as after training; and it says how its outputs are read."""
    network = build_detector(arch, 2, in_channels=channels)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_()
            module.get_buffer("running_var").uniform_(0.5, 2)
    path, spec, detection = tmp_path / "m.onnx", InputSpec(width_px=SIZE, height_px=SIZE), network.spec(SIZE, SIZE)
    export_detector(network, path, spec, detection, ("pit", "scratch"), arch=arch)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(2)]
    parity = check_detector_parity(network, path, images)
    assert parity.n == 2
    assert parity.max_relative < 1e-3
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["task"] == "detect"
    assert detection_from_json(json.loads(metadata["detection"]), "detection") == detection


@pytest.mark.parametrize("arch", FAMILIES)
def test_training_and_device_mean_the_same_box(arch: str) -> None:
    """What the loss calls a perfect answer, the agent decodes to exactly that box."""
    network = build_detector(arch, 2)
    spec = network.spec(SIZE, SIZE)
    priors = prior_boxes(spec.levels)
    box = torch.tensor([[10.0, 14.0, 41.0, 33.0]])
    at = int(iou(box, torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)).argmax())
    boxes = np.zeros((1, len(priors), 4), dtype=np.float32)
    scores = np.full((1, len(priors), network.score_columns), -12.0, dtype=np.float32)
    boxes[0, at] = _coded(network, box, priors[at : at + 1])
    scores[0, :, 0] = 12.0 if network.family == "ssd" else -12.0
    scores[0, at] = -12.0
    scores[0, at, -1] = 12.0
    found = BoxDecoder(spec, 2)(boxes, scores)
    assert found.classes.tolist() == [1]
    assert np.allclose(found.boxes, box.numpy(), atol=1e-3)


def _coded(network: Detector, box: torch.Tensor, prior: torch.Tensor) -> np.ndarray:
    """From the papers: FCOS's distances, or SSD's deltas with variances 0.1 and 0.2."""
    x0, y0, x1, y1 = box[0].tolist()
    px, py, pw, ph = prior[0].tolist()
    if network.family == "yolo":
        return np.array([(px - x0) / pw, (py - y0) / ph, (x1 - px) / pw, (y1 - py) / ph])
    centre = ((x0 + x1) / 2 - px) / pw / 0.1, ((y0 + y1) / 2 - py) / ph / 0.1
    return np.array([*centre, np.log((x1 - x0) / pw) / 0.2, np.log((y1 - y0) / ph) / 0.2])


@pytest.mark.parametrize("arch", FAMILIES)
def test_good_parts_teach_silence(arch: str) -> None:
    """Most parts of a line are good: pictures without a box must push scores down, not be left out."""
    network = build_detector(arch, 2)
    loss = DetectionLoss(network, torch.ones(2))(torch.randn(2, 3, SIZE, SIZE), [_truth(), _truth()])
    assert float(loss.detach()) > 0
    torch.autograd.backward(loss)
    grown = _gradients(network.head.scores, "bias")
    if network.family == "yolo":
        assert all(float(gradient.min()) > 0 for gradient in grown)
    else:
        background = torch.cat([gradient.view(-1, 3)[:, 0] for gradient in grown])
        assert float(background.sum()) < 0


@pytest.mark.parametrize("arch", FAMILIES)
def test_what_is_ignored_changes_nothing(arch: str) -> None:
    """A box that nobody must find is no false alarm when it is found: its places are not judged."""
    network = build_detector(arch, 2).eval()
    pictures = torch.randn(1, 3, SIZE, SIZE)
    loss = DetectionLoss(network, torch.ones(2))
    everywhere = (0.0, 0.0, float(SIZE), float(SIZE))
    assert float(loss(pictures, [_truth()]).detach()) > 0
    spared = float(loss(pictures, [_truth(everywhere, ignored=True)]).detach())
    assert spared == pytest.approx(0, abs=1e-6) or network.family == "ssd"
    assert spared <= float(loss(pictures, [_truth()]).detach())


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("side", [1.0, 3.0, 60.0])
def test_every_box_has_an_answer(arch: str, side: float) -> None:
    """A speck between the places, and one over the whole picture, teach as well: the boxes' loss reaches the head."""
    network = build_detector(arch, 2)
    box = (2.0, 2.0, 2.0 + side, 2.0 + side)
    torch.autograd.backward(DetectionLoss(network, torch.ones(2))(torch.randn(2, 3, SIZE, SIZE), [_truth(box)] * 2))
    assert any(float(g.abs().sum()) > 0 for g in _gradients(network.head.boxes, "weight"))


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_scratch_across_a_patch_is_taught_too(arch: str) -> None:
    """In a crowd, places answer for one box, others for the other: with the scratch, somewhere its class gets more."""
    network = build_detector(arch, 2)
    pictures = torch.randn(2, 3, SIZE, SIZE)
    patch, scratch = (8, 8, 56, 56), (20, 26, 44, 38)
    with_both = _score_gradients(network, pictures, _truth(patch, scratch, classes=(0, 1)))
    alone = _score_gradients(network, pictures, _truth(patch, classes=(0,)))
    assert float((with_both - alone)[:, -1].min()) < -1e-5


def _score_gradients(network: Detector, pictures: torch.Tensor, truth: Truth) -> torch.Tensor:
    """What each prior's logits are told: (N P, columns)."""
    maps: list[torch.Tensor] = []

    def keep(_: object, __: object, found: torch.Tensor) -> None:
        found.retain_grad()
        maps.append(found)

    hooks = [conv.register_forward_hook(keep) for conv in network.head.scores]
    torch.autograd.backward(DetectionLoss(network, torch.ones(2))(pictures, [truth] * len(pictures)))
    for hook in hooks:
        hook.remove()
    rows = [m.grad.permute(0, 2, 3, 1).reshape(-1, network.score_columns) for m in maps if m.grad is not None]
    return torch.cat(rows)


def _gradients(convolutions: torch.nn.ModuleList, name: str) -> list[torch.Tensor]:
    found = [dict(conv.named_parameters())[name].grad for conv in convolutions]
    return [gradient for gradient in found if gradient is not None]


def test_a_crop_cuts_boxes_and_lets_go_of_what_is_hardly_there() -> None:
    """A sliver of a defect is neither to be found nor a false alarm; one outside is gone."""
    seen = visible(_truth((-10, 5, 10, 25), (-18, 5, 2, 25), (-30, 0, -5, 9), (10, 10, 11, 40)), 64)
    assert seen.boxes.tolist() == [[0, 5, 10, 25], [0, 5, 2, 25], [10, 10, 11, 40]]
    assert seen.is_ignored.tolist() == [False, True, True]


def test_no_such_detector() -> None:
    """The error names those that there are."""
    with pytest.raises(OptimizeError, match="yolo-lite0"):
        build_detector("yolo-lite9", 2)
