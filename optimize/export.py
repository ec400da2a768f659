"""From a trained network to ONNX: bytes in, logits, embedding and activation maps out; and the proof that both agree.

The graph is written operator by operator, with names from the network, instead of by torch's exporter: batch norm is
folded, nothing depends on the torch version, and the same weights give the same bytes. `torch.fx` gives the order of
the operators; an operator that is not known here is refused by name.

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
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from agent.bundle.manifest import InputSpec
from optimize.errors import ModelError
from optimize.networks.classifier import Classifier

__all__ = ["Parity", "check_parity", "export_onnx", "normalize", "onnx_from_network", "write_atomically"]

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
    graph = _Graph()
    features = graph.translate(network.features, graph.normalized(spec))
    graph.head(features, network.head)
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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, or as it was before, even when the power fails.

    Raises:
        ModelError: the file can't be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: can't be written ({error.strerror})", hint="choose another --out") from error


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


class _Graph:
    """The nodes and weights of an ONNX graph as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def normalized(self, spec: InputSpec) -> str:
        """Add `(image - 128) / 128`, channels first; the Cast stands first because TensorRT transposes no UINT8."""
        values = self._add("Cast", "input/cast", [spec.name], to=TensorProto.FLOAT)
        values = self._add("Transpose", "input/transpose", [values], perm=[0, 3, 1, 2])
        values = self._add("Sub", "input/sub", [values, self._constant("input/offset", np.float32(128))])
        return self._add("Mul", "input/mul", [values, self._constant("input/scale", np.float32(1 / 128))])

    def head(self, features: str, head: nn.Linear) -> None:
        """Add pooling, the linear layer, and the same weights once more on each place of the feature map."""
        weight, bias = _array(head.weight), _array(head.bias)
        pooled = self._add("GlobalAveragePool", "head/pool", [features])
        self._add("Flatten", "head/flatten", [pooled], output="embedding", axis=1)
        parameters = [self._constant("head/weight", weight), self._constant("head/bias", bias)]
        self._add("Gemm", "head/linear", ["embedding", *parameters], output="logits", transB=1)
        kernel = self._constant("cam/weight", weight[:, :, None, None])
        self._add("Conv", "cam/conv", [features, kernel], output="cam", kernel_shape=[1, 1])

    def translate(self, features: nn.Module, inputs: str) -> str:
        """Add the feature extractor; gives the name of its output."""
        traced = fx.symbolic_trace(features)
        modules = dict(traced.named_modules())
        value_of: dict[fx.Node, str] = {}
        is_first = True
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                value_of[node] = inputs
            elif node.op == "output":
                return value_of[node.args[0]]
            elif node.op == "call_function" and node.target is operator.add:
                value_of[node] = self._add("Add", f"features/{node.name}", [value_of[arg] for arg in node.args])
            elif node.op == "call_module" and _is_folded(node, modules):
                value_of[node] = value_of[node.args[0]]
            elif node.op == "call_module":
                value_of[node] = self._module(node, modules, value_of[node.args[0]], is_first=is_first)
                is_first = is_first and not isinstance(modules[node.target], nn.Conv2d)
            else:
                raise ModelError(f"network: can't export {node.op} {node.target}")
        raise ModelError("network: has no output")

    def _module(self, node: fx.Node, modules: dict[str, nn.Module], inputs: str, *, is_first: bool) -> str:
        name, module = f"features/{node.target}", modules[str(node.target)]
        if isinstance(module, nn.Conv2d):
            weight, bias = _folded(module, _norm_behind(node, modules))
            if is_first and module.in_channels == 1:
                # Grey to RGB: the mean of three channels, inside the convolution.
                weight = np.repeat(weight / np.float32(3), 3, axis=1)
            parameters = [self._constant(f"{name}.weight", weight), self._constant(f"{name}.bias", bias)]
            attributes = _convolution_attributes(module) | {"pads": _pads(module, node, modules)}
            return self._add("Conv", name, [inputs, *parameters], **attributes)
        if isinstance(module, nn.ReLU6):
            limits = [self._constant(f"{name}.{key}", np.float32(value)) for key, value in (("min", 0), ("max", 6))]
            return self._add("Clip", name, [inputs, *limits])
        if isinstance(module, nn.ReLU):
            return self._add("Relu", name, [inputs])
        if isinstance(module, nn.MaxPool2d):
            return self._add("MaxPool", name, [inputs], **_pool_attributes(module))
        raise ModelError(f"network: can't export {name} ({type(module).__name__})")

    def _add(self, kind: str, name: str, inputs: list[str], *, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{name}:0"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def _constant(self, name: str, value: NDArray[np.float32] | np.float32) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32)
    return array


def _norm_behind(node: fx.Node, modules: dict[str, nn.Module]) -> nn.BatchNorm2d | None:
    """The batch norm that alone reads this convolution, if there is one."""
    users = list(node.users)
    behind = modules.get(str(users[0].target)) if len(users) == 1 else None
    return behind if isinstance(behind, nn.BatchNorm2d) else None


def _is_folded(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a convolution takes this module in: a batch norm behind it, or zeros around what only it reads."""
    module = modules[str(node.target)]
    if isinstance(module, nn.ZeroPad2d):
        return all(isinstance(modules.get(str(user.target)), nn.Conv2d) for user in node.users)
    return isinstance(module, nn.BatchNorm2d)


def _pads(conv: nn.Conv2d, node: fx.Node, modules: dict[str, nn.Module]) -> list[int]:
    """ONNX's order (top, left, bottom, right); zeros that a module before it adds are counted in."""
    top, left = _pair(conv.padding)
    pads = [top, left, top, left]
    source = node.args[0]
    before = modules.get(str(source.target)) if isinstance(source, fx.Node) else None
    if isinstance(before, nn.ZeroPad2d):
        more_left, more_right, more_top, more_bottom = before.padding
        pads = [a + b for a, b in zip(pads, (more_top, more_left, more_bottom, more_right), strict=True)]
    return pads


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of convolution and batch norm in one, computed in float64."""
    weight = _array(conv.weight).astype(np.float64)
    bias = np.zeros(conv.out_channels) if conv.bias is None else _array(conv.bias).astype(np.float64)
    if norm is not None:
        mean, variance, gamma, beta = (
            _array(tensor).astype(np.float64)
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            if tensor is not None
        )
        scale = gamma / np.sqrt(variance + norm.eps)
        weight, bias = weight * scale[:, None, None, None], (bias - mean) * scale + beta
    return weight.astype(np.float32), bias.astype(np.float32)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(v) for v in value]


def _convolution_attributes(conv: nn.Conv2d) -> dict[str, Any]:
    return {
        "kernel_shape": _pair(conv.kernel_size),
        "strides": _pair(conv.stride),
        "dilations": _pair(conv.dilation),
        "group": conv.groups,
    }


def _pool_attributes(pool: nn.MaxPool2d) -> dict[str, Any]:
    return {
        "kernel_shape": _pair(pool.kernel_size),
        "strides": _pair(pool.stride),
        "pads": _pair(pool.padding) * 2,
    }
