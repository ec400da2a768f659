"""The bundle: the contract between the workbench and the device. One file, refused if one byte differs.

`open_bundle` gives a `Bundle` whose bytes were all checked; `Preprocessor` and `fit` are the one way from a picture to
the graph's input; `decode_classification` the one way from its logits to findings.
"""

from __future__ import annotations

from agent.bundle.archive import Bundle, open_bundle
from agent.bundle.decode import Classification, Finding, decode_classification, heatmap_from_cam
from agent.bundle.golden import Golden, golden_files, golden_name
from agent.bundle.manifest import ClassSpec, InputSpec, Manifest, Outputs, PolicySpec
from agent.bundle.preprocess import Box, Placement, Preprocessor, Tensor, fit

__all__ = [
    "Box",
    "Bundle",
    "ClassSpec",
    "Classification",
    "Finding",
    "Golden",
    "InputSpec",
    "Manifest",
    "Outputs",
    "Placement",
    "PolicySpec",
    "Preprocessor",
    "Tensor",
    "decode_classification",
    "fit",
    "golden_files",
    "golden_name",
    "heatmap_from_cam",
    "open_bundle",
]
