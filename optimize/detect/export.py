"""From a trained detector to ONNX: bytes in, raw boxes and scores out; and the proof that both compute the same.

```text
image (1, H, W, 3) uint8 RGB ─ (x - 128) / 128 ─ backbone ─ pyramid ─ heads ┬ rows ─ Concat ─ boxes (1, N, 4)
                                                                            └ rows ─ Concat ─ scores (1, N, C)
```

No suppression and no priors inside: those are the agent's, in float. Of yolo the mean of each distance's distribution
is taken in the graph, behind the last convolutions, where the quantizer leaves everything in float.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from agent.bundle.detection import DetectionSpec, detection_to_json
from agent.bundle.manifest import InputSpec
from optimize.errors import ModelError
from optimize.export import (
    IR_VERSION,
    MAX_RELATIVE_DIFFERENCE,
    OPSET,
    Parity,
    normalize,
    write_input,
)
from optimize.files import write_atomically
from optimize.networks.detectors.detector import Detector
from optimize.networks.detectors.heads import BINS
from optimize.networks.onnx_graph import OnnxGraph
from optimize.structure import structure_of

__all__ = ["check_detector_parity", "detector_to_onnx", "export_detector"]


def export_detector(
    network: Detector, path: Path, spec: InputSpec, detection: DetectionSpec, classes: Sequence[str], *, arch: str
) -> str:
    """Write a trained detector as an ONNX file, whole or not at all.

    Args:
        network: a trained detector, for colour or grey; a grey one is made to take RGB (mean of the channels).
        path: the file to write.
        spec: the input's size and resize rule.
        detection: how the outputs are read.
        classes: names, in the order of the scores, the background not among them.
        arch: the detector's name, for the metadata.

    Returns:
        SHA-256 (hex) of the file.

    Raises:
        ModelError: the network holds an operator that can't be exported, or the file can't be written.
    """
    model = detector_to_onnx(network, spec, detection, classes, arch=arch)
    data = model.SerializeToString(deterministic=True)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def detector_to_onnx(
    network: Detector, spec: InputSpec, detection: DetectionSpec, classes: Sequence[str], *, arch: str
) -> onnx.ModelProto:
    """Translate a detector operator by operator; batch norm is folded into the convolution before it.

    Raises:
        ModelError: the network holds an operator that can't be exported.
    """
    graph = OnnxGraph()
    network = network.eval()
    maps = graph.translate_all(_Body(network), write_input(graph, spec), (spec.height_px, spec.width_px))
    boxes = _rows(graph, "boxes", maps[::2], network.head.columns)
    scores = _rows(graph, "scores", maps[1::2], network.score_columns)
    boxes = _expected(graph, boxes) if network.family == "yolo" else boxes
    n_priors = sum(level.count for level in detection.levels)
    shapes = {"boxes": [1, n_priors, 4], "scores": [1, n_priors, network.score_columns]}
    for found, name in ((boxes, "boxes"), (scores, "scores")):
        graph.nodes[[list(node.output) for node in graph.nodes].index([found])].output[0] = name
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            arch,
            [helper.make_tensor_value_info(spec.name, TensorProto.UINT8, [1, spec.height_px, spec.width_px, 3])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
            graph.initializers,
        ),
        producer_name="defect-opt",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    metadata = {
        "arch": arch,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "detection": json.dumps(detection_to_json(detection), sort_keys=True),
        "input": json.dumps(dataclasses.asdict(spec), sort_keys=True),
        "resize": spec.resize,
        "structure": structure_of(model),
        "task": "detect",
    }
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def check_detector_parity(network: Detector, path: Path, images: Iterable[NDArray[np.uint8]]) -> Parity:
    """Run the file and the network on the same pictures, and refuse a file that computes something else.

    Args:
        network: what was exported.
        path: the ONNX file.
        images: (H, W, 3) uint8 RGB, at the graph's size.

    Returns:
        The differences found; `max_abs` is of a score's logit.

    Raises:
        ModelError: an output differs by more than one part in a thousand, or there are no pictures.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    max_abs, max_relative, n = 0.0, 0.0, 0
    for n, image in enumerate(images, start=1):  # noqa: B007 - the last n is how many there were
        found = session.run(["boxes", "scores"], {name: image[None]})
        with torch.inference_mode():
            expected = [output.numpy() for output in network(_inputs(network, image))]
        for got, want in zip(found, expected, strict=True):
            difference = float(np.abs(got - want).max())
            max_relative = max(max_relative, difference / max(float(np.abs(want).max()), 1e-6))
        max_abs = max(max_abs, float(np.abs(found[1] - expected[1]).max()))
    # `not <=` also refuses NaN.
    if n == 0 or not max_relative <= MAX_RELATIVE_DIFFERENCE:
        raise ModelError(
            f"{path}: ONNX Runtime differs from torch by {max_relative:.2g} of the largest value on {n} pictures, "
            f"expected at most {MAX_RELATIVE_DIFFERENCE:g}",
            hint="report it with the architecture's name; the file must not be used",
        )
    return Parity(n=n, max_abs=max_abs, max_relative=max_relative)


class _Body(nn.Module):
    """The traced part, under its own names: pictures to the raw maps of all levels, boxes and scores in turn."""

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.features, self.pyramid, self.head = network.features, network.pyramid, network.head
        self._taps = network.taps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found, values = [], images
        for i, stage in enumerate(self.features):
            values = stage(values)
            if i in self._taps:
                found.append(values)
        return tuple(tensor for level in self.head(self.pyramid(found)) for tensor in level)


def _inputs(network: Detector, image: NDArray[np.uint8]) -> Tensor:
    inputs = normalize(image[None])
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return inputs.mean(1, keepdim=True) if first.in_channels == 1 else inputs


def _rows(graph: OnnxGraph, role: str, maps: Sequence[str], columns: int) -> str:
    """Each level's map (1, A columns, h, w) as rows (1, h w A, columns), one level after the other."""
    shape = graph.whole(f"{role}/shape", [1, -1, columns])
    rows = []
    for i, source in enumerate(maps):
        last = graph.add("Transpose", f"{role}/level{i}/transpose", [source], perm=[0, 2, 3, 1])
        rows.append(graph.add("Reshape", f"{role}/level{i}/rows", [last, shape]))
    return graph.add("Concat", f"{role}/concat", rows, axis=1)


def _expected(graph: OnnxGraph, logits: str) -> str:
    """(1, N, 4 bins) to the mean of each distribution, (1, N, 4)."""
    split = graph.add("Reshape", "boxes/split", [logits, graph.whole("boxes/split/shape", [1, -1, 4, BINS])])
    shares = graph.add("Softmax", "boxes/shares", [split], axis=3)
    bins = graph.constant("boxes/bins", np.arange(BINS, dtype=np.float32)[:, None])
    mean = graph.add("MatMul", "boxes/mean", [shares, bins])
    return graph.add("Reshape", "boxes/distances", [mean, graph.whole("boxes/distances/shape", [1, -1, 4])])
