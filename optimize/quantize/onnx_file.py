"""The door to ONNX files: read, checked, converted, written; what onnx raises becomes a sentence about the file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from agent.errors import MissingExtra
from optimize.errors import ModelError
from optimize.quantize.graph import Graph, opset_of
from optimize.structure import stamp_structure

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = [
    "EXPORT_HINT",
    "MAX_IR_VERSION",
    "OLDEST_OPSET",
    "OPSETS",
    "add_constant",
    "bytes_from_model",
    "check_standard",
    "convert_opset",
    "drop_unread",
    "load_onnx",
    "load_unchecked",
    "model_from_bytes",
    "onnx_library",
    "open_session",
    "refuse",
    "rename_tensor",
    "run_session",
    "shown",
    "strip_comments",
]

OPSETS = (13, 20)
"""Per-channel DequantizeLinear came with 13; ONNX Runtime 1.17, the oldest on our devices, ends at 20."""

OLDEST_OPSET = 11
"""The oldest that is converted; what came before differs in too many operators to be taken over unseen."""

MAX_IR_VERSION = 9
"""The newest ONNX file format that ONNX Runtime 1.17 opens; up to opset 20 nothing of the newer ones is needed."""

EXPORT_HINT = "export it again with `defect-opt train`, or from PyTorch with torch.onnx.export(..., opset_version=17)"


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file and check it against the standard.

    Raises:
        MissingExtra: onnx is not installed.
        ModelError: the file can't be read, is no ONNX, or breaks the standard.
    """
    model = load_unchecked(path)
    check_standard(str(path), model)
    return model


def load_unchecked(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, with the weights that lie in files beside it.

    Raises:
        MissingExtra: onnx is not installed.
        ModelError: the file, or one beside it, can't be read, or is no ONNX.
    """
    library = onnx_library()
    try:
        model: onnx.ModelProto = library.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file", hint="give the float .onnx file") from error
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # protobuf's and onnx's own, which have no common root but this
        raise ModelError(f"{path}: is no ONNX model", hint="give the float .onnx file") from error
    if not model.graph.node:
        raise ModelError(f"{path}: is no ONNX model (it has no nodes)", hint="give the float .onnx file")
    try:
        library.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # FileNotFoundError, ValidationError, ValueError, …
        raise ModelError(
            f"{path}: its weights lie in a file beside it, which can't be read ({_first_line(error)})",
            hint="copy all files of the export, or export with external_data=False",
        ) from error
    return model


def model_from_bytes(source: str, data: bytes) -> onnx.ModelProto:
    """The same from bytes.

    Args:
        source: what messages call it.
        data: a whole ONNX file.

    Raises:
        MissingExtra: onnx is not installed.
        ModelError: the bytes are no ONNX, or break the standard.
    """
    library = onnx_library()
    try:
        model: onnx.ModelProto = library.load_model_from_string(data)
    except Exception as error:  # protobuf's and onnx's own, which have no common root but this
        raise ModelError(f"{source}: is no ONNX model") from error
    check_standard(source, model)
    return model


def bytes_from_model(model: onnx.ModelProto) -> bytes:
    """Write a graph in a file format that old devices open, with its structure digest; same graph, same bytes."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, MAX_IR_VERSION)
    del copy.graph.value_info[:]
    stamp_structure(copy)
    return bytes(copy.SerializeToString(deterministic=True))


def onnx_library() -> Any:
    """The onnx package, or how to get it.

    Raises:
        MissingExtra: onnx is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the Python package {error.name} is not installed, and reading ONNX files needs it",
            hint="pip install -e '.[optimize]' in the checkout of defect-agent",
        ) from error
    return onnx


def check_standard(source: str, model: onnx.ModelProto) -> None:
    """See that a graph keeps to the ONNX standard, shapes included.

    Raises:
        ModelError: it does not; `source` is what the message calls it.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError, ValueError, RuntimeError, …
        raise ModelError(f"{source}: breaks the ONNX standard ({_first_line(error)})", hint=EXPORT_HINT) from error


def convert_opset(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in the nearest opset that devices and INT8 can do; itself when it is in one already.

    Raises:
        ModelError: onnx can't convert it.
    """
    from onnx import version_converter

    opset = opset_of(model)
    if OPSETS[0] <= opset <= OPSETS[1]:
        return model
    newest = onnx_library().defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        refuse(path, f"opset: got {opset}, expected {OLDEST_OPSET} to {newest}", EXPORT_HINT)
    target = min(max(opset, OPSETS[0]), OPSETS[1])
    metadata = list(model.metadata_props)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            spelled_out = _without_newer(model, target) if opset > target else model
            converted: onnx.ModelProto = version_converter.convert_version(spelled_out, target)
        onnx_library().checker.check_model(converted, full_check=True)
    except Exception as error:  # ConvertError, RuntimeError, ValidationError, …
        refuse(path, f"opset {opset} can't be converted to {target} ({_first_line(error)})", EXPORT_HINT)
    del converted.metadata_props[:]
    converted.metadata_props.extend(metadata)
    return converted


def _without_newer(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """Operators that the target does not know yet, such as Swish (24), written out as the standard defines them."""
    import onnx
    from onnx import defs, inliner

    first: dict[str, int] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            first[schema.name] = min(schema.since_version, first.get(schema.name, schema.since_version))
    newer = sorted({node.op_type for node in model.graph.node if first.get(node.op_type, 0) > target})
    if not newer:
        return model
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for node in whole.graph.node:
        if node.op_type in newer:  # the inliner writes no defaults
            attributes = defs.get_schema(node.op_type, opset_of(model)).attributes.values()
            given = {attribute.name for attribute in node.attribute}
            node.attribute.extend(a.default_value for a in attributes if a.default_value.name and a.name not in given)
    functions = [("", name) for name in newer]
    inlined: onnx.ModelProto = inliner.inline_selected_functions(whole, functions, inline_schema_functions=True)
    return inlined


def open_session(source: str, data: bytes, *, optimized: bool = True) -> Any:
    """Open a graph in ONNX Runtime, on the CPU.

    Args:
        source: what messages call it.
        data: a whole ONNX file.
        optimized: False runs every node as it stands, also those that would be joined and cover up a mistake.

    Raises:
        ModelError: ONNX Runtime can't run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would print is raised as well
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common root but this
        raise ModelError(
            f"{source}: ONNX Runtime {onnxruntime.__version__} can't run it ({_first_line(error)})", hint=EXPORT_HINT
        ) from error


def run_session(
    source: str, session: Any, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run what `open_session` opened; the arrays by output.

    Raises:
        ModelError: ONNX Runtime refuses, or fails while it runs.
    """
    try:
        return dict(zip(outputs, session.run(list(outputs), dict(feeds)), strict=True))
    except Exception as error:  # onnxruntime's exceptions have no common root but this
        raise ModelError(
            f"{source}: ONNX Runtime failed on a picture ({_first_line(error)})", hint=EXPORT_HINT
        ) from error


def strip_comments(model: onnx.ModelProto) -> None:
    """Take out what exporters write for their debuggers: stack traces with paths of the exporting machine."""
    model.doc_string = ""
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        if hasattr(node, "metadata_props"):
            del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        if hasattr(value, "metadata_props"):
            del value.metadata_props[:]


def rename_tensor(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give a tensor another name wherever it is made, read or declared; whoever has the name already makes way.

    Graph inputs and outputs are renamed with it; sub-graphs are not looked into.
    """
    if old == new:
        return
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    declared = (*model.graph.input, *model.graph.output, *model.graph.initializer, *model.graph.value_info)
    names |= {value.name for value in declared}
    if new in names:
        free = next(f"{new}_{i}" for i in range(1, len(names) + 2) if f"{new}_{i}" not in names)
        rename_tensor(model, new, free)
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in declared:
        if value.name == old:
            value.name = new


def add_constant(model: onnx.ModelProto, name: str, values: NDArray[Any] | float) -> str:
    """Add an initializer, float32 unless the values are whole numbers (int64).

    Returns:
        Its name: the wanted one, with a number where that is taken.
    """
    from onnx import numpy_helper

    taken = {tensor.name for tensor in model.graph.initializer}
    free = next(n for n in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 1))) if n not in taken)
    array = np.asarray(values)
    kind = np.int64 if array.dtype.kind in "iu" else np.float32
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype=kind), free))
    return free


def drop_unread(model: onnx.ModelProto) -> None:
    """Remove nodes and initializers that no output depends on any more."""
    graph = Graph(model)
    inside = {name for node in model.graph.node for name in _read_inside(node)}
    needed = graph.upstream((*graph.outputs, *inside))
    nodes = [node for node in model.graph.node if any(name in needed for name in node.output)]
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)


def _read_inside(node: onnx.NodeProto) -> set[str]:
    """What a node's sub-graphs read; empty for all but If, Loop and Scan."""
    found: set[str] = set()
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for child in inner.node:
                found |= {*child.input, *_read_inside(child)}
    return found


def refuse(path: Path, problem: str, hint: str) -> NoReturn:
    """Raise the `ModelError` that says what is wrong with a file."""
    raise ModelError(f"{path}: {problem}", hint=hint)


def shown(value: object) -> str:
    """A value for a message, cut off where it is long."""
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    # onnx's C++ code begins with the place of its assertion, which is on nobody's machine.
    return re.sub(r"^/\S+: adapt: Assertion `\w+` failed: ", "", lines[0])[:200] if lines else type(error).__name__
