"""A traced network's operators as ONNX nodes: what can be folded is folded, what is unknown is refused by name.

Beside the obvious, for integers:

```text
convolution ─ norm                    → one Conv
norm that stands alone (DenseNet)     → Conv of one weight per channel: what a quantizer knows, ReLU behind it and all
convolution ─ norm ─ hard sigmoid     → one Conv with weights / 6 and bias / 6 + 1/2, and Clip to [0, 1]
largest value of a map                → MaxPool of the map's size, which integers keep as it is
```
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from optimize.errors import ModelError

__all__ = ["OnnxGraph", "array_from_tensor"]

BINARY: Mapping[Any, str] = MappingProxyType(
    {
        operator.add: "Add",
        operator.iadd: "Add",
        torch.add: "Add",
        operator.mul: "Mul",
        operator.imul: "Mul",
        torch.mul: "Mul",
    }
)
OVER_CHANNELS: Mapping[str, str] = MappingProxyType({"mean": "ReduceMean", "amax": "ReduceMax"})
NOTHING = (nn.Dropout, nn.Dropout2d, nn.Identity)  # when a network is used


def array_from_tensor(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Its values as a contiguous array."""
    array: NDArray[np.float32] = np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32)
    return array


class OnnxGraph:
    """The nodes and weights of an ONNX graph as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[str, NDArray[np.float32]] = {}

    def add(self, kind: str, name: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        """Add a node; gives the name of its output."""
        output = output or f"{name}:0"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, name: str, value: NDArray[np.float32] | np.float32) -> str:
        """Add weights, once under one name; gives that name.

        Raises:
            ModelError: the name has other values already: a module is used twice, and folded differently.
        """
        values = np.asarray(value, dtype=np.float32)
        if name not in self._constants:
            self._constants[name] = values
            self.initializers.append(numpy_helper.from_array(values, name))
        elif not np.array_equal(self._constants[name], values):
            raise ModelError(f"network: can't export {name}: it is used twice, with other layers behind it")
        return name

    def translate(self, features: nn.Module, inputs: str, picture: Sequence[int]) -> str:
        """Add a feature extractor.

        Args:
            features: takes one tensor and gives one.
            inputs: the tensor it reads here, RGB; a grey network is made to take the mean of the channels.
            picture: (height, width) in pixels.

        Returns:
            The name of its output.

        Raises:
            ModelError: it holds an operator that can't be exported.
        """
        return self.translate_all(features, inputs, picture)[0]

    def translate_all(self, features: nn.Module, inputs: str, picture: Sequence[int]) -> tuple[str, ...]:
        """The same for one that gives several tensors, in a flat tuple; the names of its outputs.

        Raises:
            ModelError: it holds an operator that can't be exported.
        """
        return _Translation(self, fx.symbolic_trace(features), picture).run(inputs)

    def whole(self, name: str, values: Sequence[int]) -> str:
        """Add whole numbers, such as a shape; gives their name."""
        self.initializers.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One use of a module.

    Attributes:
        node: in the traced network.
        module_name: whose weights carry its name, once.
        name: of this use of it.
        inputs: the tensor that it reads.
    """

    node: fx.Node
    module_name: str
    name: str
    inputs: str


class _Translation:
    """One traced network on its way into a graph."""

    def __init__(self, graph: OnnxGraph, traced: fx.GraphModule, picture: Sequence[int]) -> None:
        self.graph, self.nodes = graph, list(traced.graph.nodes)
        self.modules = dict(traced.named_modules())
        self.calls: Counter[str] = Counter()
        self.value_of: dict[fx.Node, str] = {}
        convolutions = [node for node in self.nodes if isinstance(self._module(node), nn.Conv2d)]
        self.first = convolutions[0] if convolutions else None
        self.norm_of = {node: norm for node in convolutions if (norm := self._only_reader(node, nn.BatchNorm2d))}
        self.gate_of = {
            node: gate
            for node in convolutions
            if (gate := self._only_reader(self.norm_of.get(node, node), nn.Hardsigmoid))
        }
        first = self._module(self.first) if self.first else None
        channels = first.in_channels if isinstance(first, nn.Conv2d) else 3
        with torch.no_grad():
            ShapeProp(traced).propagate(torch.zeros(1, channels, *picture))

    def run(self, inputs: str) -> tuple[str, ...]:
        for node in self.nodes:
            if node.op == "placeholder":
                self.value_of[node] = inputs
            elif node.op == "output":
                found = node.args[0]
                return tuple(self._value(node, each) for each in (found if isinstance(found, tuple) else (found,)))
            elif node.op == "call_module":
                self.value_of[node] = self._call_module(node)
            else:
                self.value_of[node] = self._call(node)
        raise ModelError("network: has no output")

    def _module(self, node: fx.Node | None) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node is not None and node.op == "call_module" else None

    def _only_reader(self, node: fx.Node, kind: type[nn.Module]) -> fx.Node | None:
        """The node that alone reads this one, if it is of a kind."""
        readers = list(node.users)
        return readers[0] if len(readers) == 1 and isinstance(self._module(readers[0]), kind) else None

    def _value(self, node: fx.Node, argument: Any) -> str:
        if not isinstance(argument, fx.Node):
            raise ModelError(f"network: can't export {node.op} {node.target} of {argument!r}")
        return self.value_of[argument]

    def _call(self, node: fx.Node) -> str:
        """A function or method."""
        name = f"features/{node.name}"
        if node.op == "call_function" and node.target in BINARY and not node.kwargs:
            return self.graph.add(BINARY[node.target], name, [self._value(node, a) for a in node.args])
        if node.target is torch.cat and node.args[1:] == (1,) and isinstance(node.args[0], Sequence):
            parts = [self._value(node, part) for part in node.args[0]]
            return self.graph.add("Concat", name, parts, axis=1) if len(parts) > 1 else parts[0]
        is_over_channels = node.op == "call_method" and node.args[1:] == (1,) and node.kwargs == {"keepdim": True}
        if is_over_channels and node.target in OVER_CHANNELS:
            kind = OVER_CHANNELS[str(node.target)]
            return self.graph.add(kind, name, [self._value(node, node.args[0])], axes=[1], keepdims=1)
        raise ModelError(f"network: can't export {node.op} {node.target}")

    def _call_module(self, node: fx.Node) -> str:
        module, source = self._module(node), node.args[0]
        inputs = self._value(node, source)
        is_taken_in = node in self.norm_of.values() or (isinstance(module, nn.ZeroPad2d) and self._is_padding(node))
        if is_taken_in or isinstance(module, NOTHING):
            return inputs
        name = f"features/{node.target}"
        self.calls[name] += 1
        label = name if self.calls[name] == 1 else f"{name}_{self.calls[name] - 1}"
        write = next((write for kind, write in WRITERS.items() if type(module) is kind), None)
        if write is None:
            raise ModelError(f"network: can't export {name} ({type(module).__name__})")
        return write(self, _Call(node=node, module_name=name, name=label, inputs=inputs))

    def _is_padding(self, node: fx.Node) -> bool:
        """Whether only convolutions read it, which take the zeros in."""
        return all(isinstance(self._module(user), nn.Conv2d) for user in node.users)

    def conv(self, call: _Call) -> str:
        conv = self._module(call.node)
        assert isinstance(conv, nn.Conv2d)
        norm = self._module(self.norm_of.get(call.node))
        weight, bias = _folded(conv, norm if isinstance(norm, nn.BatchNorm2d) else None)
        if call.node in self.gate_of:
            weight, bias = weight / 6, bias / 6 + 0.5
        if call.node is self.first and conv.in_channels == 1:
            # Grey to RGB: the mean of three channels, inside the convolution.
            weight = np.repeat(weight / 3, 3, axis=1)
        parameters = self._parameters(call.module_name, weight, bias)
        attributes: dict[str, Any] = {
            "kernel_shape": _pair(conv.kernel_size),
            "strides": _pair(conv.stride),
            "dilations": _pair(conv.dilation),
            "group": conv.groups,
        }
        return self.graph.add(
            "Conv", call.name, [call.inputs, *parameters], **attributes, pads=self._pads(conv, call.node)
        )

    def _parameters(self, name: str, weight: NDArray[Any], bias: NDArray[Any]) -> list[str]:
        values = {"weight": weight, "bias": bias}
        return [self.graph.constant(f"{name}.{key}", value.astype(np.float32)) for key, value in values.items()]

    def _pads(self, conv: nn.Conv2d, node: fx.Node) -> list[int]:
        """ONNX's order (top, left, bottom, right); zeros that a module before it adds are counted in."""
        top, left = _pair(conv.padding)
        pads = [top, left, top, left]
        source = node.args[0]
        before = self._module(source) if isinstance(source, fx.Node) else None
        if isinstance(before, nn.ZeroPad2d):
            more_left, more_right, more_top, more_bottom = before.padding
            pads = [a + b for a, b in zip(pads, (more_top, more_left, more_bottom, more_right), strict=True)]
        return pads

    def norm(self, call: _Call) -> str:
        norm = self._module(call.node)
        assert isinstance(norm, nn.BatchNorm2d)
        scale, shift = _affine(norm)
        parameters = self._parameters(call.module_name, scale[:, None, None, None], shift)
        attributes: dict[str, Any] = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
        attributes["group"] = norm.num_features
        return self.graph.add("Conv", call.name, [call.inputs, *parameters], **attributes)

    def relu(self, call: _Call) -> str:
        return self.graph.add("Relu", call.name, [call.inputs])

    def relu6(self, call: _Call) -> str:
        return self._clip(call, 6)

    def _clip(self, call: _Call, highest: float) -> str:
        limits = {"min": 0.0, "max": highest}
        names = [self.graph.constant(f"{call.module_name}.{key}", np.float32(value)) for key, value in limits.items()]
        return self.graph.add("Clip", call.name, [call.inputs, *names])

    def hard_sigmoid(self, call: _Call) -> str:
        if call.node in self.gate_of.values():
            return self._clip(call, 1)
        return self.graph.add("HardSigmoid", call.name, [call.inputs], alpha=1 / 6, beta=0.5)

    def hard_swish(self, call: _Call) -> str:
        gate = self.graph.add("HardSigmoid", f"{call.name}.gate", [call.inputs], alpha=1 / 6, beta=0.5)
        return self.graph.add("Mul", call.name, [call.inputs, gate])

    def pool(self, call: _Call) -> str:
        pool = self._module(call.node)
        assert isinstance(pool, nn.MaxPool2d | nn.AvgPool2d)
        is_odd = pool.ceil_mode or _pair(getattr(pool, "dilation", 1)) != [1, 1]
        if is_odd or (isinstance(pool, nn.AvgPool2d) and (_pair(pool.padding) != [0, 0] or pool.divisor_override)):
            raise ModelError(f"network: can't export {call.name} ({pool})")
        attributes: dict[str, Any] = {
            "kernel_shape": _pair(pool.kernel_size),
            "strides": _pair(pool.stride),
            "pads": _pair(pool.padding) * 2,
        }
        kind = "MaxPool" if isinstance(pool, nn.MaxPool2d) else "AveragePool"
        return self.graph.add(kind, call.name, [call.inputs], **attributes)

    def upsample(self, call: _Call) -> str:
        up = self._module(call.node)
        assert isinstance(up, nn.Upsample)
        if up.mode != "nearest" or up.size is not None or up.scale_factor is None:
            raise ModelError(f"network: can't export {call.name} ({up})")
        factors = up.scale_factor if isinstance(up.scale_factor, tuple) else (up.scale_factor,) * 2
        scales = self.graph.constant(f"{call.module_name}.scales", np.array([1, 1, *factors], dtype=np.float32))
        # Of whole factors, these two are the same everywhere; TensorRT and ONNX Runtime both know them.
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.graph.add("Resize", call.name, [call.inputs, "", scales], **how)

    def mean(self, call: _Call) -> str:
        self._check_global(call)
        return self.graph.add("GlobalAveragePool", call.name, [call.inputs])

    def highest(self, call: _Call) -> str:
        self._check_global(call)
        source = call.node.args[0]
        assert isinstance(source, fx.Node)
        size = [int(n) for n in source.meta["tensor_meta"].shape[2:]]
        return self.graph.add("MaxPool", call.name, [call.inputs], kernel_shape=size, strides=[1, 1], pads=[0] * 4)

    def _check_global(self, call: _Call) -> None:
        pool = self._module(call.node)
        if _pair(getattr(pool, "output_size", 0)) != [1, 1]:
            raise ModelError(f"network: can't export {call.name} ({pool})")


WRITERS: Mapping[type[nn.Module], Callable[[_Translation, _Call], str]] = MappingProxyType(
    {
        nn.Conv2d: _Translation.conv,
        nn.BatchNorm2d: _Translation.norm,
        nn.ReLU: _Translation.relu,
        nn.ReLU6: _Translation.relu6,
        nn.Hardsigmoid: _Translation.hard_sigmoid,
        nn.Hardswish: _Translation.hard_swish,
        nn.MaxPool2d: _Translation.pool,
        nn.AvgPool2d: _Translation.pool,
        nn.Upsample: _Translation.upsample,
        nn.AdaptiveAvgPool2d: _Translation.mean,
        nn.AdaptiveMaxPool2d: _Translation.highest,
    }
)
"""What writes a module."""


def _affine(norm: nn.BatchNorm2d) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a batch norm multiplies with and adds, by channel."""
    mean, variance, gamma, beta = (
        array_from_tensor(tensor).astype(np.float64)
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        if tensor is not None
    )
    scale = gamma / np.sqrt(variance + norm.eps)
    return scale, beta - mean * scale


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight and bias of convolution and batch norm in one, computed in float64."""
    weight = array_from_tensor(conv.weight).astype(np.float64)
    bias = np.zeros(conv.out_channels) if conv.bias is None else array_from_tensor(conv.bias).astype(np.float64)
    if norm is not None:
        scale, shift = _affine(norm)
        weight, bias = weight * scale[:, None, None, None], bias * scale + shift
    return weight, bias


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(v) for v in value]
