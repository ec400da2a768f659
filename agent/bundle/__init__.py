"""The bundle: the contract between the workbench and the device. One file, refused if one byte differs.

`open_bundle` gives a `Bundle` whose bytes were all checked; `Preprocessor` and `fit` are the one way from a picture to
the graph's input; `decode_classification` the one way from its logits to findings, `BoxDecoder` the one from its boxes
and scores.
"""

from __future__ import annotations

from agent.bundle.archive import Bundle, open_bundle
from agent.bundle.boxes import BoxDecoder, Detections
from agent.bundle.decode import (
    Classification,
    Finding,
    decode_classification,
    findings_from_boxes,
    heatmap_from_cam,
)
from agent.bundle.detection import DetectionSpec, PriorLevel, Tiling
from agent.bundle.golden import Golden, golden_files, golden_name, golden_outputs, is_as_recorded
from agent.bundle.manifest import ClassSpec, InputSpec, Manifest, Outputs, PolicySpec
from agent.bundle.preprocess import Box, Placement, Preprocessor, Tensor, fit

__all__ = [
    "Box",
    "BoxDecoder",
    "Bundle",
    "ClassSpec",
    "Classification",
    "DetectionSpec",
    "Detections",
    "Finding",
    "Golden",
    "InputSpec",
    "Manifest",
    "Outputs",
    "Placement",
    "PolicySpec",
    "Preprocessor",
    "PriorLevel",
    "Tensor",
    "Tiling",
    "decode_classification",
    "findings_from_boxes",
    "fit",
    "golden_files",
    "golden_name",
    "golden_outputs",
    "heatmap_from_cam",
    "is_as_recorded",
    "open_bundle",
]
