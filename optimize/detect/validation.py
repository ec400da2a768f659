"""How a detector in training does on `val`: average precision by the COCO protocol, by the agent's own decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agent.bundle.boxes import BoxDecoder, Detections
from agent.bundle.manifest import InputSpec
from agent.bundle.preprocess import Placement, Preprocessor
from optimize.detect.pictures import BoxPictures, Truth
from optimize.detect.result import BoxValidation
from optimize.detection_metrics import ImageBoxes, mean_precision
from optimize.export import normalize
from optimize.networks.detectors.detector import Detector

__all__ = ["validate"]


def validate(
    network: Detector, pictures: BoxPictures, spec: InputSpec, classes: Sequence[str], *, channels: int
) -> BoxValidation:
    """Find the defects of labelled pictures, and count.

    Args:
        network: in evaluation mode.
        pictures: at least one box among them.
        spec: the input that they are fitted to.
        classes: names, in the order of the scores.
        channels: 3, or 1 for a grey network, which sees the first channel.
    """
    decoder = BoxDecoder(network.spec(spec.width_px, spec.height_px), len(classes))
    preprocess, device = Preprocessor(spec), next(network.parameters()).device
    images = []
    with torch.inference_mode():
        for image, truth in zip(pictures.images, pictures.truths, strict=True):
            tensor, placement = preprocess(np.ascontiguousarray(image[:, :, ::-1]))
            boxes, scores = network(normalize(tensor[..., :channels]).to(device))
            images.append(_compared(decoder(boxes.cpu().numpy(), scores.cpu().numpy()), placement, truth))
    found = mean_precision(images, len(classes), by_area=False)
    return BoxValidation(
        map50=found.map50 or 0.0,
        map50_95=found.map50_95 or 0.0,
        ap50={name: each.ap50 for name, each in zip(classes, found.per_class, strict=True)},
        support={name: each.support for name, each in zip(classes, found.per_class, strict=True)},
    )


def _compared(detections: Detections, placement: Placement, truth: Truth) -> ImageBoxes:
    """Detections in pixels of the image beside its truth."""
    corners = []
    for left, top, right, bottom in detections.boxes.tolist():
        x, y, width, height = placement.to_image((left, top, right - left, bottom - top))
        corners.append((x, y, x + width, y + height))
    return ImageBoxes(
        truth=truth.boxes,
        truth_classes=truth.classes,
        is_ignored=truth.is_ignored,
        found=np.array(corners, dtype=np.float64).reshape(-1, 4),
        scores=detections.scores.astype(np.float64),
        found_classes=detections.classes,
    )
