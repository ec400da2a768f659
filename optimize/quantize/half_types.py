"""Which inputs and outputs of ONNX operators may be FP16, as the standard says it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from optimize.errors import ModelError
from optimize.quantize.graph import opset_of
from optimize.quantize.onnx_file import onnx_library

if TYPE_CHECKING:
    import onnx

__all__ = ["HALF", "HALF_OPSET", "SINGLE", "Types", "raised"]

SINGLE, HALF = 1, 10
"""TensorProto's FLOAT and FLOAT16, which the standard fixes."""

HALF_OPSET = 19
"""The first in which a quantizer's scale may be FP16; TensorRT 10.0's parser reads up to 20."""


def raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in an opset whose quantizers take FP16; itself when it is in one.

    Raises:
        ModelError: onnx can't convert it.
    """
    if opset_of(model) >= HALF_OPSET:
        return model
    from onnx import version_converter

    metadata = list(model.metadata_props)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            converted: onnx.ModelProto = version_converter.convert_version(model, HALF_OPSET)
        onnx_library().checker.check_model(converted)
    except Exception as error:  # ConvertError, RuntimeError, ValidationError, …
        text = str(error).partition("\n")[0][:120]
        raise ModelError(
            f"opset {opset_of(model)} can't be converted to {HALF_OPSET} ({text})",
            hint="export the float graph in opset 19 or 20",
        ) from error
    del converted.metadata_props[:]
    converted.metadata_props.extend(metadata)
    return converted


class Types:
    """What a graph's tensors and operators say about FP16.

    Args:
        model: with inferred types.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._opset = opset_of(model)
        graph = model.graph
        self._kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        self._kinds.update({tensor.name: tensor.data_type for tensor in graph.initializer})

    def is_float(self, name: str) -> bool:
        """Whether a tensor is float32.

        Raises:
            ModelError: nobody knows.
        """
        if not name:
            return False
        if name not in self._kinds:
            raise ModelError(f"tensor {name}: its type can't be told")
        return bool(self._kinds[name] == SINGLE)

    def takes_half(self, node: onnx.NodeProto, slot: int) -> bool:
        """Whether an input may be FP16."""
        return self._allowed(node, self._variable(node, slot, is_output=False))

    def gives_half(self, node: onnx.NodeProto, slot: int) -> bool:
        """Whether an output is FP16 when the node computes in FP16."""
        if node.op_type == "Cast":
            return True
        if node.op_type == "ConstantOfShape":  # without a value it gives float32 zeros
            return any(attribute.name == "value" for attribute in node.attribute)
        variable = self._variable(node, slot, is_output=True)
        follows = {self._variable(node, i, is_output=False) for i in range(len(node.input))}
        return variable in follows and self._allowed(node, variable)

    def retarget(self, node: onnx.NodeProto, kind: int) -> None:
        """Change the attributes that name a float type."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == SINGLE:
                attribute.i = kind
            elif node.op_type == "ConstantOfShape" and attribute.name == "value" and kind == HALF:
                self._halve(attribute)

    @staticmethod
    def _halve(attribute: onnx.AttributeProto) -> None:
        import numpy as np
        from onnx import numpy_helper

        if attribute.t.data_type == SINGLE:
            value = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))

    def _variable(self, node: onnx.NodeProto, slot: int, *, is_output: bool) -> str:
        """The standard's name for the type of an input or output, such as `T`, or a type such as `tensor(float)`."""
        schema = self._schema(node)
        formal = schema.outputs if is_output else schema.inputs
        return str(formal[min(slot, len(formal) - 1)].type_str)

    def _allowed(self, node: onnx.NodeProto, variable: str) -> bool:
        constraints = self._schema(node).type_constraints
        found = next((c.allowed_type_strs for c in constraints if c.type_param_str == variable), ())
        return "tensor(float16)" in found

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema:
        from onnx import defs

        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ModelError(f"{node.name} ({node.op_type}): has a graph inside, whose types are not changed")
        try:
            return defs.get_schema(node.op_type, self._opset, node.domain)
        except Exception as error:  # defs.SchemaError is not public in all versions
            raise ModelError(f"{node.domain}:{node.op_type}: is no operator of the standard") from error
