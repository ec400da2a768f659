"""Torchvision's SSD, SSDlite and RetinaNet, exported without their post-processing, are read as it reads them."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.bundle.boxes import BoxDecoder, Detections
from optimize.quantize.model import FloatModel, read_model
from optimize.quantize.parity import check_adoption
from optimize.quantize.priors import count_of
from optimize.recipe import DetectorRecipe, PreprocessRecipe

torch = pytest.importorskip("torch", reason="torchvision's detectors are PyTorch's")
detection = pytest.importorskip("torchvision.models.detection")

pytestmark = pytest.mark.torch

COLUMNS = 4
SIGNED = PreprocessRecipe(mean=(0.5,), std=(0.5,))
SCORE, IOU = 0.3, 0.45


def ssd300() -> tuple[Any, int]:
    return detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=COLUMNS), 300


def ssdlite320() -> tuple[Any, int]:
    return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=COLUMNS), 320


def retinanet() -> tuple[Any, int]:
    return detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=COLUMNS), 160


BUILDERS: dict[str, Callable[[], tuple[Any, int]]] = {
    "ssd": ssd300,
    "ssdlite": ssdlite320,
    "retinanet": retinanet,
}


class Raw(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Backbone and head, nothing decoded: what people export because NMS does not go into their runtime."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        """The head's two outputs."""
        out = self.model.head(list(self.model.backbone(x).values()))
        return out["bbox_regression"], out["cls_logits"]


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, int, Path]:
    """Form, the model, its input's side, and its export; weights are random, and made loud enough to find things."""
    torch.manual_seed(1)
    model, side = BUILDERS[request.param]()
    model.eval()
    path = tmp_path_factory.mktemp(request.param) / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Raw(model).eval(),
            (torch.zeros(1, 3, side, side),),
            str(path),
            input_names=["images"],
            output_names=["bbox_regression", "cls_logits"],
            opset_version=17,
            dynamo=False,
        )
    return request.param, model, side, path


@functools.cache
def adopted(path: Path, form: str, *, named: bool) -> FloatModel:
    """By shapes alone, or named in the recipe, which then says what it is fed as well."""
    if named:
        return read_model(path, None, classes=3, detector=DetectorRecipe(form=form))  # type: ignore[arg-type]
    return read_model(path, SIGNED, classes=3)


def raw_outputs(model: FloatModel, form: str, seed: int) -> tuple[Any, Any]:
    """Boxes (1, N, 4) and scores (1, N, COLUMNS) as a trained head gives them: most places empty, some sure."""
    assert model.detection is not None
    rng = np.random.default_rng(seed)
    count = model.detection.n_priors
    boxes = rng.normal(0, 1.0 if form != "retinanet" else 0.3, (1, count, 4)).astype(np.float32)
    scores = rng.normal(0, 1, (1, count, COLUMNS)).astype(np.float32) - (8 if form == "retinanet" else 0)
    if form != "retinanet":
        scores[..., 0] += 9
    sure = rng.choice(count, 150, replace=False)
    scores[0, sure, rng.integers(1, COLUMNS, 150)] += rng.uniform(8, 14, 150).astype(np.float32)
    return boxes, scores


def decoded(model: FloatModel, form: str, boxes: Any, scores: Any, **limits: Any) -> Detections:
    """By the agent's code, from what the adopted graph would give."""
    assert model.detection is not None
    spec = dataclasses.replace(model.detection, score_above=SCORE, max_findings=200, **limits)
    return BoxDecoder(spec, model.count)(boxes, scores[..., 1:] if form == "retinanet" else scores)


def anchors_of(model: Any, side: int) -> tuple[Any, list[int]]:
    """Its priors (N, 4) as corners, and how many each map has."""
    from torchvision.models.detection.image_list import ImageList

    picture = ImageList(torch.zeros(1, 3, side, side), [(side, side)])
    with torch.no_grad():
        maps = list(model.backbone(picture.tensors).values())
    return model.anchor_generator(picture, maps)[0], [int(m.shape[2] * m.shape[3]) * 9 for m in maps]


def theirs(model: Any, side: int, boxes: Any, scores: Any, nms_iou: float) -> dict[str, Any]:
    """Torchvision's own post-processing of the same numbers, best first."""
    model.score_thresh, model.nms_thresh, model.detections_per_img = SCORE, nms_iou, 200
    anchors, counts = anchors_of(model, side)
    head = {"bbox_regression": torch.from_numpy(boxes), "cls_logits": torch.from_numpy(scores)}
    if type(model).__name__ == "RetinaNet":
        head = {key: list(value.split(counts, dim=1)) for key, value in head.items()}
        anchors = list(anchors.split(counts))
    (found,) = model.postprocess_detections(head, [anchors], [(side, side)])
    order = np.argsort(-found["scores"].numpy(), kind="stable")
    return {key: value.numpy()[order] for key, value in found.items()}


@pytest.mark.parametrize("named", [False, True], ids=["by shapes", "by the recipe"])
def test_a_raw_head_is_recognized_and_computes_what_it_computed(
    exported: tuple[str, Any, int, Path], named: bool
) -> None:
    """Nobody should have to type in 8,732 priors."""
    form, _, side, path = exported

    model = adopted(path, form, named=named)

    assert model.detection is not None
    assert model.adoption is not None
    assert (model.adoption.form, model.count, model.task) == (form, 3, "detect")
    assert (model.detection.scale_xy, model.detection.scale_wh) == ((1, 1) if form == "retinanet" else (0.1, 0.2))
    assert model.detection.scores == ("sigmoid" if form == "retinanet" else "softmax")
    assert count_of(model.detection.levels) == {"ssd": 8732, "ssdlite": 3234}.get(form, model.detection.n_priors)
    noise = np.random.default_rng(3).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    check = check_adoption(model, [noise])
    assert check is not None
    assert check.max_relative < 1e-3


def test_boxes_are_torchvisions_before_suppression(exported: tuple[str, Any, int, Path]) -> None:
    """Priors, order, variances and rounding, to a thousandth of a pixel."""
    form, network, side, path = exported
    model = adopted(path, form, named=False)
    boxes, scores = raw_outputs(model, form, 5)

    ours = decoded(model, form, boxes, scores, nms_iou=1.0)
    reference = theirs(network, side, boxes, scores, 1.0)

    assert len(ours) == len(reference["scores"]) > 50
    assert ours.scores == pytest.approx(reference["scores"], abs=1e-5)
    assert np.abs(ours.boxes.clip(0, side) - reference["boxes"]).max() < 1e-3
    assert (ours.classes + 1).tolist() == reference["labels"].tolist()


def test_detections_are_torchvisions(exported: tuple[str, Any, int, Path]) -> None:
    """After suppression too; boxes over the edge are left out, as torchvision cuts them before it compares."""
    form, network, side, path = exported
    model = adopted(path, form, named=False)
    boxes, scores = raw_outputs(model, form, 6)
    placed = network.box_coder.decode_single(torch.from_numpy(boxes[0]), anchors_of(network, side)[0]).numpy()
    is_inside = ((placed >= 0) & (placed <= side)).all(axis=1)
    scores[0, ~is_inside, 1:] = -20

    ours = decoded(model, form, boxes, scores, nms_iou=IOU)
    reference = theirs(network, side, boxes, scores, IOU)

    assert len(ours) == len(reference["scores"]) > 20
    assert np.abs(ours.boxes - reference["boxes"]).max() < 1e-3
    assert (ours.classes + 1).tolist() == reference["labels"].tolist()
