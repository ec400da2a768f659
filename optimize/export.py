"""From a trained network to ONNX: bytes in, logits, embedding and activation maps out; and the proof that both agree.

The graph is written operator by operator, with names from the network, instead of by torch's exporter: batch norm is
folded, nothing depends on the torch version, and the same weights give the same bytes. `torch.fx` gives the order of
the operators, `optimize.networks.onnx_graph` writes them; one that is not known there is refused by name.

```text
image (1, H, W, 3) uint8 RGB ─ Cast ─ Transpose ─ Sub 128 ─ Mul 1/128 ─ features ┬ pool ─ flatten ┬ embedding (1, D)
                                                                                 │                └ Gemm ─ logits (1, C)
                                                                                 └ Conv 1x1 ─ cam (1, C, h, w)
```

With `(value - 128) / 128` the camera's bytes are the first layer's quantized input: scale 1/128, zero point 128.
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
from torch import nn

from agent.bundle.manifest import InputSpec
from optimize.errors import ModelError
from optimize.files import write_atomically
from optimize.networks.classifier import Classifier
from optimize.networks.onnx_graph import OnnxGraph, array_from_tensor
from optimize.structure import structure_of

__all__ = [
    "IR_VERSION",
    "MAX_RELATIVE_DIFFERENCE",
    "OPSET",
    "Parity",
    "check_parity",
    "export_onnx",
    "normalize",
    "onnx_from_network",
    "write_input",
]

OPSET = 17
IR_VERSION = 8  # the IR of opset 17: every ONNX Runtime since 1.12 and TensorRT since 8.5 read it
MAX_RELATIVE_DIFFERENCE = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far ONNX Runtime and torch are apart on real pictures.

    Attributes:
        n: how many pictures were compared.
        max_abs: largest difference of a logit.
        max_relative: largest difference of any output, in parts of that output's largest value.
    """

    n: int
    max_abs: float
    max_relative: float


def normalize(images: NDArray[np.uint8]) -> torch.Tensor:
    """Bytes to what a network takes, exactly as the exported graph does it.

    Args:
        images: (N, H, W, C) uint8, RGB or grey.

    Returns:
        (N, C, H, W) float32 in [-1, 1), channels last in memory.
    """
    values = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 128) / 128
    return values.contiguous(memory_format=torch.channels_last)


def export_onnx(network: Classifier, path: Path, spec: InputSpec, classes: Sequence[str], *, arch: str) -> str:
    """Write a trained network as an ONNX file, whole or not at all.

    Args:
        network: a trained network, for colour or grey; a grey one is made to take RGB (mean of the channels).
        path: the file to write.
        spec: the input's size and resize rule.
        classes: names, in the order of the logits.
        arch: the network's name, for the metadata.

    Returns:
        SHA-256 (hex) of the file.

    Raises:
        ModelError: the network holds an operator that can't be exported, or the file can't be written.
    """
    data = onnx_from_network(network, spec, classes, arch=arch).SerializeToString(deterministic=True)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def onnx_from_network(network: Classifier, spec: InputSpec, classes: Sequence[str], *, arch: str) -> onnx.ModelProto:
    """Translate a network operator by operator; batch norm is folded into the convolution before it.

    Raises:
        ModelError: the network holds an operator that can't be exported.
    """
    graph = OnnxGraph()
    picture = (spec.height_px, spec.width_px)
    _write_head(graph, graph.translate(network.features, write_input(graph, spec), picture), network)
    outputs = _output_shapes(network, spec)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            arch,
            [helper.make_tensor_value_info(spec.name, TensorProto.UINT8, [1, spec.height_px, spec.width_px, 3])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            graph.initializers,
        ),
        producer_name="defect-opt",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    metadata = {
        "arch": arch,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "input": json.dumps(dataclasses.asdict(spec), sort_keys=True),
        "resize": spec.resize,
        "structure": structure_of(model),
        "task": "classify",
    }
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def check_parity(network: Classifier, path: Path, images: Iterable[NDArray[np.uint8]]) -> Parity:
    """Run the file and the network on the same pictures, and refuse a file that computes something else.

    Args:
        network: what was exported.
        path: the ONNX file.
        images: (H, W, 3) uint8 RGB, at the graph's size.

    Returns:
        The differences found.

    Raises:
        ModelError: an output differs by more than one part in a thousand, or there are no pictures.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    max_abs, max_relative, n = 0.0, 0.0, 0
    for n, image in enumerate(images, start=1):  # noqa: B007 - the last n is how many there were
        found = session.run(["logits", "embedding", "cam"], {name: image[None]})
        expected = _reference(network, image)
        for got, want in zip(found, expected, strict=True):
            difference = float(np.abs(got - want).max())
            max_relative = max(max_relative, difference / max(float(np.abs(want).max()), 1e-6))
        max_abs = max(max_abs, float(np.abs(found[0] - expected[0]).max()))
    # `not <=` also refuses NaN.
    if n == 0 or not max_relative <= MAX_RELATIVE_DIFFERENCE:
        raise ModelError(
            f"{path}: ONNX Runtime differs from torch by {max_relative:.2g} of the largest value on {n} pictures, "
            f"expected at most {MAX_RELATIVE_DIFFERENCE:g}",
            hint="report it with the architecture's name; the file must not be used",
        )
    return Parity(n=n, max_abs=max_abs, max_relative=max_relative)


def _reference(network: Classifier, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Logits, embedding and map of one (H, W, 3) picture, by torch."""
    inputs = normalize(image[None])
    if _first_convolution(network).in_channels == 1:
        inputs = inputs.mean(1, keepdim=True)
    with torch.inference_mode():
        outputs = (network(inputs), network.embed(inputs), network.activation_map(inputs))
    return [output.numpy() for output in outputs]


def _first_convolution(network: nn.Module) -> nn.Conv2d:
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))


def _output_shapes(network: Classifier, spec: InputSpec) -> dict[str, list[int]]:
    blank = np.full((spec.height_px, spec.width_px, 3), 128, dtype=np.uint8)
    shapes = [list(output.shape) for output in _reference(network, blank)]
    return dict(zip(("logits", "embedding", "cam"), shapes, strict=True))


def write_input(graph: OnnxGraph, spec: InputSpec) -> str:
    """Add `(image - 128) / 128`, channels first; the Cast stands first because TensorRT transposes no UINT8."""
    values = graph.add("Cast", "input/cast", [spec.name], to=TensorProto.FLOAT)
    values = graph.add("Transpose", "input/transpose", [values], perm=[0, 3, 1, 2])
    values = graph.add("Sub", "input/sub", [values, graph.constant("input/offset", np.float32(128))])
    return graph.add("Mul", "input/mul", [values, graph.constant("input/scale", np.float32(1 / 128))])


def _write_head(graph: OnnxGraph, features: str, network: Classifier) -> None:
    """Add pooling, the linear layer, and the same weights once more on each place of the feature map."""
    weight, bias = (array_from_tensor(tensor) for tensor in network.places())
    pooled = graph.add("GlobalAveragePool", "head/pool", [features])
    graph.add("Flatten", "head/flatten", [pooled], output="embedding", axis=1)
    kernel = graph.constant("cam/weight", weight[:, :, None, None])
    if network.pooling == "mean":
        parameters = [graph.constant("head/weight", weight), graph.constant("head/bias", bias)]
        graph.add("Gemm", "head/linear", ["embedding", *parameters], output="logits", transB=1)
        graph.add("Conv", "cam/conv", [features, kernel], output="cam", kernel_shape=[1, 1])
        return
    graph.add("Conv", "cam/conv", [features, kernel], output="cam", kernel_shape=[1, 1])
    evidence = graph.add("GlobalMaxPool", "head/peak", ["cam"])
    if network.pooling == "both":
        mean = graph.add("GlobalAveragePool", "head/mean", ["cam"])
        both = graph.add("Add", "head/both", [evidence, mean])
        evidence = graph.add("Mul", "head/half", [both, graph.constant("head/share", np.float32(0.5))])
    flat = graph.add("Flatten", "head/flat", [evidence], axis=1)
    graph.add("Add", "head/add", [flat, graph.constant("head/bias", bias)], output="logits")
