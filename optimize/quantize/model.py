"""Opening a float ONNX file: what it takes, what it gives, which classes it knows; refused in one sentence if we can't.

A float graph takes `(1, H, W, 3)` uint8 RGB, normalization inside, and gives `logits (1, C)`, optionally
`embedding (1, D)` and `cam (1, C, h, w)`, all float32. Its metadata name the classes in output order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from agent.bundle.manifest import InputSpec, Outputs, Resize
from agent.errors import BundleError, MissingExtra
from optimize.errors import ModelError
from optimize.quantize.graph import Graph, metadata_of, opset_of, shape_of

if TYPE_CHECKING:
    import onnx

__all__ = ["FloatModel", "bytes_from_model", "load_onnx", "model_from_bytes", "onnx_library", "read_model"]

OPSETS = (13, 20)
"""Per-channel DequantizeLinear came with 13; ONNX Runtime 1.17, the oldest on our devices, ends at 20."""

MAX_IR_VERSION = 9
"""The newest ONNX file format that ONNX Runtime 1.17 opens; up to opset 20 nothing of the newer ones is needed."""

ALREADY_INT8 = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"})
EXPORT_HINT = "export it again with `defect-opt train`, or from PyTorch with torch.onnx.export(..., opset_version=17)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FloatModel:
    """A float classifier that was checked.

    Attributes:
        path: where it was read.
        proto: the graph with inferred shapes, without the exporter's comments; treat as read-only.
        sha256: of the file's bytes, hex.
        input: what it takes.
        outputs: which output is what.
        classes: in output order; None when the file does not say.
        count: how many classes the logits hold.
        arch: the network's name from the metadata, or None.
    """

    path: Path
    proto: onnx.ModelProto
    sha256: str
    input: InputSpec
    outputs: Outputs
    classes: tuple[str, ...] | None
    count: int
    arch: str | None

    @property
    def logits(self) -> str:
        """The name of the logits output."""
        assert self.outputs.logits is not None
        return self.outputs.logits


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file and check it against the standard.

    Raises:
        MissingExtra: onnx is not installed.
        ModelError: the file can't be read, is no ONNX, or breaks the standard.
    """
    model = _load(path)
    _check_standard(str(path), model)
    return model


def _load(path: Path) -> onnx.ModelProto:
    library = onnx_library()
    try:
        model: onnx.ModelProto = library.load(str(path))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file", hint="give the float .onnx file") from error
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # protobuf's and onnx's own, which have no common root but this
        raise ModelError(f"{path}: is no ONNX model", hint="give the float .onnx file") from error
    if not model.graph.node:
        raise ModelError(f"{path}: is no ONNX model (it has no nodes)", hint="give the float .onnx file")
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
    _check_standard(source, model)
    return model


def read_model(path: Path) -> FloatModel:
    """Open a float classifier and check all that the later steps rely on.

    Raises:
        MissingExtra: onnx is not installed.
        ModelError: the file is not such a model; the message says what was found and what was expected.
    """
    model = _load(path)
    import onnx

    _check_kind(path, model)
    _check_standard(str(path), model)
    spec = _input_spec(path, model)
    _strip_comments(model)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    outputs, count = _outputs(path, model)
    metadata = metadata_of(model)
    return FloatModel(
        path=path,
        proto=model,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        input=spec,
        outputs=outputs,
        classes=_classes(path, metadata, count),
        count=count,
        arch=metadata.get("arch"),
    )


def bytes_from_model(model: onnx.ModelProto) -> bytes:
    """Write a graph in a file format that old devices open; the same graph gives the same bytes."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, MAX_IR_VERSION)
    del copy.graph.value_info[:]
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


def _check_standard(source: str, model: onnx.ModelProto) -> None:
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError, ValueError, RuntimeError, …
        raise ModelError(f"{source}: breaks the ONNX standard ({_first_line(error)})", hint=EXPORT_HINT) from error


def _check_kind(path: Path, model: onnx.ModelProto) -> None:
    found = ", ".join(sorted({node.op_type for node in model.graph.node} & ALREADY_INT8))
    if found:
        _refuse(path, f"is quantized already (it has {found} nodes)", "give the float model it was made from")
    foreign = sorted({n.domain for n in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        _refuse(path, f"uses operators outside the standard ({', '.join(foreign)})", EXPORT_HINT)
    opset = opset_of(model)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        _refuse(path, f"opset: got {opset}, expected {OPSETS[0]} to {OPSETS[1]}", EXPORT_HINT)


def _input_spec(path: Path, model: onnx.ModelProto) -> InputSpec:
    import onnx

    inputs = Graph(model).inputs()
    if len(inputs) != 1:
        _refuse(path, f"inputs: got {[v.name for v in inputs]}, expected one, the picture", EXPORT_HINT)
    value = inputs[0]
    shape = shape_of(model, value.name) or ()
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    got = f"input {value.name}: got {list(shape)} {kind}, expected [1, H, W, 3] uint8 (RGB, normalization inside)"
    if kind == "float" and len(shape) == 4 and shape[1] in (1, 3):
        _refuse(
            path,
            f"{got}; this is a float NCHW model from elsewhere, which this release can't take in yet",
            "`defect-opt train` exports what is expected; or put Cast, normalization and Transpose in front of it",
        )
    is_picture = len(shape) == 4 and (shape[0], shape[3]) == (1, 3) and all(isinstance(side, int) for side in shape)
    if kind != "uint8" or not is_picture:
        _refuse(path, got, EXPORT_HINT)
    height, width = int(shape[1]), int(shape[2])
    rule = _resize_rule(path, metadata_of(model))
    try:
        return InputSpec(name=value.name, height_px=height, width_px=width, **rule)
    except BundleError as error:
        raise ModelError(f"{path}: {error.message}", hint=EXPORT_HINT) from error


def _resize_rule(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """How pictures are fitted, from the metadata's `input` (a JSON object) or `resize`; stretched when neither says."""
    try:
        given = json.loads(metadata.get("input", "{}"))
        rule = {
            "resize": given.get("resize", metadata.get("resize", "stretch")),
            "pad_value": given.get("pad_value", 128),
        }
    except (ValueError, AttributeError):
        _refuse(path, f"metadata input: got {_shown(metadata['input'])}, expected a JSON object", EXPORT_HINT)
    if rule["resize"] not in get_args(Resize):
        known = ", ".join(get_args(Resize))
        _refuse(path, f"metadata resize: got {_shown(rule['resize'])}, expected one of {known}", EXPORT_HINT)
    if type(rule["pad_value"]) is not int:
        _refuse(path, f"metadata pad_value: got {_shown(rule['pad_value'])}, expected 0 to 255", EXPORT_HINT)
    return rule


def _outputs(path: Path, model: onnx.ModelProto) -> tuple[Outputs, int]:
    """Find the roles by name; a lone output is the logits whatever its name."""
    names = [value.name for value in model.graph.output]
    logits = "logits" if "logits" in names else names[0] if len(names) == 1 else None
    if logits is None:
        _refuse(path, f"outputs: got {names}, expected one named logits", "name the (1, classes) output `logits`")
    shape = shape_of(model, logits)
    if shape is None or len(shape) != 2 or shape[0] != 1 or not isinstance(shape[1], int) or shape[1] < 2:
        _refuse(path, f"output {logits}: got {_shown(shape)}, expected [1, C] with two classes or more", EXPORT_HINT)
    count = shape[1]
    for name, rank in (("embedding", 2), ("cam", 4)):
        found = shape_of(model, name) if name in names else None
        if name in names and (found is None or len(found) != rank or (name == "cam" and found[1] != count)):
            wanted = "[1, D]" if name == "embedding" else f"[1, {count}, h, w]"
            _refuse(path, f"output {name}: got {_shown(found)}, expected {wanted}", EXPORT_HINT)
    return Outputs(
        logits=logits,
        embedding="embedding" if "embedding" in names else None,
        cam="cam" if "cam" in names else None,
    ), count


def _classes(path: Path, metadata: dict[str, str], count: int) -> tuple[str, ...] | None:
    if "classes" not in metadata:
        return None
    text = metadata["classes"]
    try:
        names: Any = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) != len(names):
        _refuse(path, f"metadata classes: got {_shown(text)}, expected a JSON list of names", EXPORT_HINT)
    if len(names) != count:
        _refuse(path, f"metadata classes: got {len(names)} names, the logits hold {count} classes", EXPORT_HINT)
    return tuple(names)


def _strip_comments(model: onnx.ModelProto) -> None:
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


def _refuse(path: Path, problem: str, hint: str) -> NoReturn:
    raise ModelError(f"{path}: {problem}", hint=hint)


def _shown(value: object) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
