"""The structure digest: what decides how long a graph takes, without the values of its weights.

A device is timed once per structure (`agent.profile`): a network that is trained longer, or again with another seed,
keeps its timing; one that lost a channel does not. The device has no `onnx`, so the digest stands in the file's
metadata as `structure`, which ONNX Runtime gives back.

What counts: the operators in order with their attributes and how they are wired, the operator set, inputs and outputs
with dtype and shape, dtype and shape of every constant. Whole numbers of 64 bits are sizes, axes and places, so their
values count too. Names do not count, nor does other metadata, nor any other constant's value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["KEY", "stamp_structure", "structure_of"]

KEY = "structure"
"""The metadata key."""

VERSION = 1
"""Part of what is hashed: another way to describe a graph never gives a digest that meant something else."""

MAX_VALUES = 4096
"""Longer constants of 64-bit numbers are tables, not sizes."""


def structure_of(model: onnx.ModelProto) -> str:
    """The digest of a graph's structure.

    Args:
        model: any ONNX model; its weights need not be loaded.

    Returns:
        SHA-256, hex.
    """
    opsets = sorted([entry.domain.replace("ai.onnx", ""), entry.version] for entry in model.opset_import)
    described = [VERSION, opsets, *_graph(model.graph, {})]
    return hashlib.sha256(json.dumps(described, separators=(",", ":")).encode()).hexdigest()


def stamp_structure(model: onnx.ModelProto) -> None:
    """Write the digest into the model's metadata, in place of one that is there."""
    others = [entry for entry in model.metadata_props if entry.key != KEY]
    digest = structure_of(model)
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, digest


def _graph(graph: onnx.GraphProto, outer: dict[str, Any]) -> Iterator[Any]:
    """Plain values; a tensor is called by the place where it first comes up."""
    names: dict[str, Any] = dict(outer)
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def number(name: str) -> Any:
        if not name:
            return None  # an optional input that is left out
        if name not in names:
            names[name] = f"{len(outer)}.{len(names)}"
            if name in constants:
                return [names[name], _tensor(constants[name])]
        return names[name]

    yield [[number(v.name), _value(v)] for v in graph.input if v.name not in constants]
    for node in graph.node:
        reads = [number(name) for name in node.input]
        attributes = sorted(([a.name, *_attribute(a, names)] for a in node.attribute), key=lambda entry: str(entry[0]))
        yield [node.domain, node.op_type, reads, [number(name) for name in node.output], attributes]
    yield [[number(v.name), _value(v)] for v in graph.output]


def _value(value: onnx.ValueInfoProto) -> list[Any]:
    tensor = value.type.tensor_type
    return [tensor.elem_type, [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]]


def _attribute(attribute: onnx.AttributeProto, names: dict[str, Any]) -> Iterator[Any]:
    yield attribute.type
    if attribute.HasField("t"):
        yield _tensor(attribute.t)
    elif attribute.HasField("g"):
        yield list(_graph(attribute.g, names))
    elif attribute.graphs:
        yield [list(_graph(inner, names)) for inner in attribute.graphs]
    else:
        yield [attribute.i, attribute.f, attribute.s.hex(), list(attribute.ints), list(attribute.floats)]
        yield [text.hex() for text in attribute.strings]


def _tensor(tensor: onnx.TensorProto) -> list[Any]:
    from onnx import TensorProto, numpy_helper

    described = [tensor.data_type, list(tensor.dims)]
    is_inside = tensor.data_location != TensorProto.EXTERNAL
    if tensor.data_type == TensorProto.INT64 and is_inside:
        values = numpy_helper.to_array(tensor)
        if values.size <= MAX_VALUES:
            described.append(values.reshape(-1).tolist())
    return described
