"""TensorRT's Q/DQ graph with FP16 where it has float32: what a strongly typed build of TensorRT 10 and 11 takes.

There every layer computes in the types that the graph states, so a Q/DQ graph whose rest is float32 runs that rest in
float32, at half the speed. Here the rest becomes FP16: constants, casts, and the scales of the quantizers, for a
DequantizeLinear gives what its scale is (that is so from opset 19 on, and the graph is raised to it). The input stays
uint8, and the outputs come back as float32.

What FP16 can't hold stays float32, with casts around it, and is named with its reason:

- what lies behind the last matrix product: little work, and boxes in pixels need more than FP16's eleven bits (half a
  pixel at 600);
- tensors that reach beyond its range on calibration pictures, sums on the way to a mean among them, and constants;
- a constant that would become 0, such as the 1e-12 that guards a division, and what follows up to the next layer;
- a layer with a scale so small that FP16 rounds it, or the weights' steps, to something else. It still multiplies in
  INT8: only what it gives is float32.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.errors import ModelError
from optimize.quantize.graph import COMPUTE, Graph, is_float, shape_of
from optimize.quantize.half_types import HALF, SINGLE, Types, raised
from optimize.quantize.interpret import session_of
from optimize.quantize.onnx_file import bytes_from_model, model_from_bytes

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["HalfGraph", "halve", "magnitudes"]

LARGEST = 65504.0
"""FP16's largest number."""

MARGIN = 2.0
"""Pictures of the line may reach further than those of the calibration."""

SCALE_ERROR = 2.0**-9
"""How far FP16 may move a scale, relatively: half a step in 256, below what rounding to steps does anyway."""

SMALLEST_SCALE = 2.0**-16
"""Below it, 1/scale is beyond FP16's range, and so is what FP16's eleven bits hold of the scale itself."""

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
MEANS = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})

TAIL = "behind the last matrix product: little work, and boxes in pixels need more than FP16's eleven bits"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HalfGraph:
    """A Q/DQ graph in FP16.

    Attributes:
        graph: its ONNX bytes; uint8 in, float32 out, as the graph that it was made of.
        in_float32: name of each node that stays float32 for its numbers, to the reason in words; those behind the last
            matrix product are not listed.
    """

    graph: bytes
    in_float32: Mapping[str, str]


def magnitudes(graph: bytes, pictures: Sequence[NDArray[np.uint8]]) -> Mapping[str, float]:
    """The largest magnitude of every float32 tensor over some pictures.

    Args:
        graph: a graph with one input.
        pictures: each as the graph takes it.

    Raises:
        ModelError: the graph can't be run.
    """
    import onnx

    model = _inferred(model_from_bytes("the Q/DQ graph", graph))
    source = model.graph.input[0].name
    names = sorted({name for node in model.graph.node for name in node.output if name and is_float(model, name)})
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    session = session_of(bytes_from_model(model))
    found = dict.fromkeys(names, 0.0)
    for picture in pictures:
        for name, values in zip(names, session.run(names, {source: picture}), strict=True):
            found[name] = max(found[name], float(np.abs(values).max(initial=0.0)))
    return found


def halve(graph: bytes, largest: Mapping[str, float] | None = None) -> HalfGraph:
    """Write the FP16 form.

    Args:
        graph: TensorRT's Q/DQ graph, float32 where it is not INT8.
        largest: each float tensor's largest magnitude, from `magnitudes`; without it only constants are looked at.

    Raises:
        ModelError: the graph holds something whose type can't be changed, such as a sub-graph or a foreign operator.
    """
    model = _inferred(raised(model_from_bytes("the Q/DQ graph", graph)))
    index = Graph(model)
    kept = _Kept(index, largest or {})
    reasons = kept.reasons()
    halved = _Writer(index, frozenset(reasons) | frozenset(kept.tail()), kept.zero_channels).model()
    del halved.metadata_props[:]
    halved.metadata_props.extend(model.metadata_props)
    return HalfGraph(
        graph=bytes_from_model(halved),
        in_float32={_name(node): reasons[_key(node)] for node in index.nodes if _key(node) in reasons},
    )


def _name(node: onnx.NodeProto) -> str:
    """What messages call a node."""
    return str(node.name or node.output[0])


def _key(node: onnx.NodeProto) -> str:
    """Names may be missing or stand twice; an output's can't."""
    return str(node.output[0])


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


class _Kept:
    """Which nodes stay float32, by their first output."""

    def __init__(self, graph: Graph, largest: Mapping[str, float]) -> None:
        self._graph = graph
        self._largest = largest
        self.zero_channels: dict[str, NDArray[np.bool_]] = {}

    def tail(self) -> Iterator[str]:
        """Nodes behind the last matrix product."""
        compute = [node for node in self._graph.nodes if node.op_type in COMPUTE]
        ahead = self._graph.upstream(name for node in compute for name in node.input)
        behind = self._graph.downstream(name for node in compute for name in node.output)
        for node in self._graph.nodes:
            if node.op_type not in COMPUTE and node.output[0] in behind and not set(node.output) & ahead:
                yield _key(node)

    def reasons(self) -> dict[str, str]:
        """Those that FP16 can't hold, with the reason in words."""
        found: dict[str, str] = {}
        for node in self._graph.nodes:
            if node.op_type == QUANTIZE:
                found.update((key, why) for key, why in self._scale(node))
            elif node.op_type == DEQUANTIZE:
                found.update((key, why) for key, why in self._reach(node) if key != _key(node))
            else:
                found.update((key, why) for key, why in itertools.chain(self._constants(node), self._reach(node)))
        return found

    def _scale(self, node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
        """A quantizer whose scale, or whose weights' steps, FP16 would change: it and the layers that read it."""
        scale = self._graph.constant(node.input[1])
        if scale is None:
            raise ModelError(f"{_name(node)}: its scale is not constant, which TensorRT does not take")
        wrong = ~_holds(scale)
        values = self._graph.constant(node.input[0])
        if values is not None:
            dead = _dead_channels(values, scale, node)
            if dead.any():
                self.zero_channels[node.input[1]] = dead
            wrong = wrong & ~dead
            is_moved = not wrong.any() and not _same_steps(values, np.where(dead, np.float32(1), scale), node)
        else:
            is_moved = False
        if not wrong.any() and not is_moved:
            return
        why = "FP16 would move its weights to other steps"
        if not is_moved:
            why = f"a scale of {float(scale.reshape(-1)[wrong.reshape(-1)].min()):.3g} has too few digits in FP16"
        if values is None:
            yield _key(node), why
        for pair in self._graph.readers(node.output[0]):
            yield from ((_key(reader), why) for reader in self._graph.readers(pair.output[0]))

    def _constants(self, node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
        for name in node.input:
            value = self._graph.constant(name)
            if value is None or value.dtype != np.float32 or not value.size:
                continue
            size = np.abs(value)
            if size.max() > LARGEST and np.isfinite(size.max()):
                yield _key(node), f"a constant of {float(size.max()):.3g} is beyond FP16's largest number, {LARGEST:g}"
            is_gone = (size > 0) & (_in_type(size, HALF) == 0)
            if node.op_type not in COMPUTE and is_gone.any():
                why = f"a constant of {float(size[is_gone].max()):.3g} would be 0 in FP16"
                yield from ((key, why) for key in self._up_to_the_next_layer(node))

    def _up_to_the_next_layer(self, node: onnx.NodeProto) -> Iterator[str]:
        waiting, seen = [node], set[str]()
        while waiting:
            here = waiting.pop()
            if _key(here) in seen or here.op_type in COMPUTE or here.op_type == QUANTIZE:
                continue
            seen.add(_key(here))
            yield _key(here)
            waiting.extend(reader for name in here.output for reader in self._graph.readers(name))

    def _reach(self, node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
        for name in node.output:
            reach = self._largest.get(name, 0.0)
            if reach * MARGIN > LARGEST:
                why = f"{name} reaches {reach:.3g} on calibration pictures, FP16 ends at {LARGEST:g}"
                yield _key(node), why
                yield from ((_key(reader), why) for reader in self._graph.readers(name))
            total = reach * self._summands(node) if node.op_type in MEANS else 0.0
            if total * MARGIN > LARGEST:
                yield _key(node), f"the sum on the way to its mean reaches {total:.3g}, FP16 ends at {LARGEST:g}"

    def _summands(self, node: onnx.NodeProto) -> float:
        """How many values make one of a mean."""
        before, after = (shape_of(self._graph.model, name) for name in (node.input[0], node.output[0]))
        return _size(before) / max(_size(after), 1)


def _size(shape: Iterable[int | str] | None) -> int:
    return int(np.prod([side for side in shape or () if isinstance(side, int)]))


def _holds(scale: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which scales FP16 holds well enough."""
    with np.errstate(over="ignore"):
        kept = scale.astype(np.float16).astype(np.float32)
    near = np.abs(kept - scale) <= SCALE_ERROR * scale
    return np.asarray(near & (scale >= SMALLEST_SCALE) & np.isfinite(kept))


def _steps(values: NDArray[np.float32], scale: NDArray[np.float32], node: onnx.NodeProto) -> NDArray[np.float32]:
    """What QuantizeLinear makes of constant weights, zero point 0."""
    if scale.ndim:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        sides = [1] * values.ndim
        sides[axis] = -1
        scale = scale.reshape(sides)
    return np.asarray(np.clip(np.rint(values / scale), -128, 127))


def _dead_channels(values: NDArray[np.float32], scale: NDArray[np.float32], node: onnx.NodeProto) -> NDArray[np.bool_]:
    """Channels whose weights are all 0: any scale will do for them."""
    if not scale.ndim:
        return np.asarray(~values.any())
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    return np.asarray(~values.any(axis=others))


def _same_steps(values: NDArray[np.float32], scale: NDArray[np.float32], node: onnx.NodeProto) -> bool:
    """Whether the weights stand on the same steps when they and their scale are FP16."""
    with np.errstate(over="ignore"):
        half_values, half_scale = values.astype(np.float16), scale.astype(np.float16)
    seen = _steps(half_values.astype(np.float32), half_scale.astype(np.float32), node)
    return bool(np.array_equal(seen, _steps(values, scale, node)))


class _Writer:
    """Writes the graph anew, each node in its type, with casts between the types.

    Quantizers of weights and all dequantizers are written where they are first read, in the type of their reader: a
    cast behind a dequantizer would keep its layer from running in INT8.
    """

    def __init__(self, graph: Graph, single: frozenset[str], zero_channels: Mapping[str, NDArray[np.bool_]]) -> None:
        self._graph = graph
        self._single = single
        self._zero_channels = zero_channels
        self._types = Types(graph.model)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._there: dict[tuple[str, int], str] = {}

    def model(self) -> onnx.ModelProto:
        import onnx

        for value in self._graph.inputs():
            self._there[value.name, value.type.tensor_type.elem_type] = value.name
        for node in self._graph.nodes:
            if node.op_type in ("Constant", DEQUANTIZE) or self._is_weight_quantizer(node):
                continue
            self._write(node)
        for name in self._graph.outputs:
            self._finish(name)
        result = onnx.ModelProto()
        result.CopyFrom(self._graph.model)
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        result.graph.node.extend(self._nodes)
        result.graph.initializer.extend(self._constants.values())
        return result

    def _is_weight_quantizer(self, node: onnx.NodeProto) -> bool:
        return node.op_type == QUANTIZE and self._graph.constant(node.input[0]) is not None

    def _type_of(self, node: onnx.NodeProto) -> int:
        """Float type of a node; a quantizer reads what there is."""
        if _key(node) in self._single:
            return SINGLE
        if node.op_type == QUANTIZE and (node.input[0], HALF) not in self._there:
            return SINGLE if (node.input[0], SINGLE) in self._there else HALF
        return HALF

    def _write(self, node: onnx.NodeProto) -> None:
        import onnx

        kind = self._type_of(node)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for slot, name in enumerate(node.input):
            if self._graph.constant(name) is not None or self._types.is_float(name):
                wanted = kind if self._types.takes_half(node, slot) else SINGLE
                copy.input[slot] = self._as(name, wanted if node.op_type != "Cast" else self._any(name, kind))
        for slot, name in enumerate(node.output):
            if name and self._types.is_float(name):
                made = kind if self._types.gives_half(node, slot) else SINGLE
                copy.output[slot] = self._made(name, made)
        self._types.retarget(copy, kind)
        self._nodes.append(copy)

    def _any(self, name: str, kind: int) -> int:
        """The type that a cast's input has already."""
        return next((t for t in (kind, HALF, SINGLE) if (name, t) in self._there), kind)

    def _made(self, name: str, kind: int) -> str:
        """The name of an output; a graph's own output keeps its name for float32."""
        shown = f"{name}/float16" if name in self._graph.outputs and kind == HALF else name
        self._there[name, kind] = shown
        return shown

    def _as(self, name: str, kind: int) -> str:
        """A tensor in a type: as it is there, written, or cast."""
        value = self._graph.constant(name)
        if value is not None and value.dtype != np.float32:
            return self._constant(name, value)
        if (name, kind) not in self._there:
            maker = self._graph.maker(name)
            if value is not None:
                self._there[name, kind] = self._constant(self._free_name(name, kind), _in_type(value, kind))
            elif maker is not None and maker.op_type == DEQUANTIZE:
                self._there[name, kind] = self._dequantized(maker, kind)
            else:
                self._there[name, kind] = self._cast(name, kind, self._free_name(name, kind))
        return self._there[name, kind]

    def _free_name(self, name: str, kind: int) -> str:
        """The name itself when no other type has it."""
        taken = name in self._there.values() or self._graph.maker(name) is not None or name in self._constants
        return f"{name}/{'float16' if kind == HALF else 'float32'}" if taken else name

    def _cast(self, name: str, kind: int, shown: str) -> str:
        from onnx import helper

        source = self._there[name, HALF if kind == SINGLE else SINGLE]
        self._nodes.append(helper.make_node("Cast", [source], [shown], name=f"{shown}/cast", to=kind))
        return shown

    def _dequantized(self, node: onnx.NodeProto, kind: int) -> str:
        quantizer = self._graph.maker(node.input[0])
        source = node.input[0]
        if quantizer is not None and self._is_weight_quantizer(quantizer):
            source = self._pair(quantizer, kind, [self._as(quantizer.input[0], kind)])
        elif self._graph.constant(source) is not None:
            source = self._as(source, kind)
        return self._pair(node, kind, [source])

    def _pair(self, node: onnx.NodeProto, kind: int, source: list[str]) -> str:
        """One half of a pair of quantizers in a type; both types' scales are the same number."""
        import onnx

        shown = node.output[0] if kind == HALF else f"{node.output[0]}/float32"
        if shown not in {name for one in self._nodes for name in one.output}:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = _name(node) if kind == HALF else f"{_name(node)}/float32"
            copy.output[0] = shown
            copy.input[:] = [*source, self._scale(node, kind), *(self._as(name, kind) for name in node.input[2:])]
            self._nodes.append(copy)
        return shown

    def _scale(self, node: onnx.NodeProto, kind: int) -> str:
        name = node.input[1]
        if (name, kind) not in self._there:
            value = self._graph.constant(name)
            if value is None:
                raise ModelError(f"{_name(node)}: its scale is not constant, which TensorRT does not take")
            value = np.where(self._zero_channels.get(name, np.False_), np.float32(1), value)
            if bool(_holds(value).all()):
                value = value.astype(np.float16)
            shown = self._free_name(name, kind)
            self._there[name, kind] = self._constant(shown, _in_type(value, kind))
        return self._there[name, kind]

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def _finish(self, name: str) -> None:
        """A graph's output as float32 under its own name."""
        if self._types.is_float(name) and (name, SINGLE) not in self._there:
            maker = self._graph.maker(name)
            if maker is not None and maker.op_type == DEQUANTIZE:
                raise ModelError(f"{name}: the graph gives a quantizer's output as it is, expected a layer behind it")
            self._there[name, SINGLE] = self._cast(name, SINGLE, name)


def _in_type(value: NDArray[Any], kind: int) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return value.astype(np.float16 if kind == HALF else np.float32)
