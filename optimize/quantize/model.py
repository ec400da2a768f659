"""Opening a float ONNX file: what it takes, what it gives, which classes it knows; refused in one sentence if we can't.

What leaves here takes `(1, H, W, 3)` uint8 RGB, normalization inside, and gives `logits (1, C)`, optionally
`embedding (1, D)` and `cam (1, C, h, w)`; or, for a detector, `boxes` and `scores`; all float32. Its metadata name the
classes in output order. `defect-opt train` writes such graphs; others are taken in by `adopt`.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from agent.bundle.detection import DetectionSpec
from agent.bundle.manifest import Anchor, InputSpec, Outputs, Resize, Task
from agent.errors import BundleError
from optimize.errors import ModelError
from optimize.quantize.adopt import Adopted, Adoption, adopt
from optimize.quantize.graph import metadata_of, shape_of
from optimize.quantize.onnx_file import (
    EXPORT_HINT,
    MAX_IR_VERSION,
    OPSETS,
    bytes_from_model,
    check_standard,
    load_onnx,
    load_unchecked,
    model_from_bytes,
    onnx_library,
    refuse,
    shown,
    strip_comments,
)
from optimize.recipe import DetectorRecipe, PreprocessRecipe

if TYPE_CHECKING:
    import onnx

__all__ = [
    "EXPORT_HINT",
    "MAX_IR_VERSION",
    "OPSETS",
    "FloatModel",
    "bytes_from_model",
    "load_onnx",
    "model_from_bytes",
    "onnx_library",
    "read_model",
]

ALREADY_INT8 = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FloatModel:
    """A float classifier or detector that was checked, and taken in where it came from elsewhere.

    Attributes:
        path: where it was read.
        proto: the graph with inferred shapes, without the exporter's comments; treat as read-only.
        sha256: of the file's bytes, hex.
        input: what it takes.
        outputs: which output is what.
        classes: in output order; None when the file does not say.
        count: how many classes the logits or scores hold, without a background; 0 for a raw detection head, which does
            not say.
        arch: the network's name from the metadata, or None.
        task: `classify` or `detect`.
        heads: the outputs whose way back to the last convolutions is the head: the logits; boxes and scores; or every
            output of a raw detection head. Empty means the logits.
        notes: what was changed to take it in, one sentence each; empty for our own.
        adoption: how it was before; None for our own.
        detection: how a detector's boxes and scores are read; None for a classifier, and for a raw head.
    """

    path: Path
    proto: onnx.ModelProto
    sha256: str
    input: InputSpec
    outputs: Outputs
    classes: tuple[str, ...] | None
    count: int
    arch: str | None
    task: Task = "classify"
    heads: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    adoption: Adoption | None = None
    detection: DetectionSpec | None = None

    @property
    def logits(self) -> str:
        """The name of the logits output."""
        assert self.outputs.logits is not None
        return self.outputs.logits


def read_model(
    path: Path,
    preprocess: PreprocessRecipe | None = None,
    *,
    classes: int | None = None,
    detector: DetectorRecipe | None = None,
) -> FloatModel:
    """Open a float classifier or detector, take it in if it comes from elsewhere, and check all that later steps need.

    Args:
        path: an ONNX file, its weights inside or beside it.
        preprocess: what a float model from elsewhere was trained to be fed; None asks its metadata.
        classes: how many there are, where the caller knows and the file may not say.
        detector: how a detector is read; None leaves it to metadata and shapes.

    Raises:
        MissingExtra: onnx is not installed.
        ModelError: the file is not such a model; the message says what was found and what was expected.
    """
    model = load_unchecked(path)
    model = _inlined(path, model)
    _check_kind(path, model)
    check_standard(str(path), model)
    strip_comments(model)
    metadata = metadata_of(model)
    names = _classes(path, metadata)
    adopted = adopt(path, model, preprocess, classes if names is None else len(names), detector)
    if names is not None and adopted.count and len(names) != adopted.count:
        what = "logits" if adopted.task == "classify" else "scores"
        refuse(path, f"metadata classes: got {len(names)} names, the {what} hold {adopted.count} classes", EXPORT_HINT)
    return FloatModel(
        path=path,
        proto=adopted.proto,
        sha256=_digest(path),
        input=_input_spec(path, adopted),
        outputs=_outputs(path, adopted),
        classes=names,
        count=adopted.count,
        arch=metadata.get("arch"),
        task=adopted.task,
        heads=adopted.heads,
        notes=adopted.notes,
        adoption=adopted.adoption,
        detection=adopted.detection,
    )


def _inlined(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model's own functions, which PyTorch's exporter may leave in, written out as nodes."""
    if not model.functions:
        return model
    from onnx import inliner

    try:
        inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    except Exception as error:  # onnx's own, which have no common root but this
        raise ModelError(f"{path}: its functions can't be inlined ({error})", hint=EXPORT_HINT) from error
    return inlined


def _digest(path: Path) -> str:
    """SHA-256 of the file, and of the files beside it that hold its weights, by name."""
    onnx = onnx_library()
    digest = hashlib.sha256(path.read_bytes())
    bare = onnx.load(str(path), load_external_data=False)
    beside = {
        entry.value
        for tensor in bare.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    for name in sorted(beside):
        digest.update((path.parent / name).read_bytes())
    return digest.hexdigest()


def _check_kind(path: Path, model: onnx.ModelProto) -> None:
    found = ", ".join(sorted({node.op_type for node in model.graph.node} & ALREADY_INT8))
    if found:
        refuse(path, f"is quantized already (it has {found} nodes)", "give the float model it was made from")
    foreign = sorted({n.domain for n in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        refuse(path, f"uses operators outside the standard ({', '.join(foreign)})", EXPORT_HINT)


def _input_spec(path: Path, adopted: Adopted) -> InputSpec:
    value = adopted.proto.graph.input[0]
    _, height, width, _ = shape_of(adopted.proto, value.name) or (0, 0, 0, 0)
    how = adopted.preprocess
    rule: dict[str, Any] = (
        _resize_rule(path, metadata_of(adopted.proto))
        if how is None
        else {"resize": how.resize, "pad_value": how.pad_value, "anchor": how.anchor}
    )
    try:
        return InputSpec(name=value.name, height_px=int(height), width_px=int(width), **rule)
    except BundleError as error:
        raise ModelError(f"{path}: {error.message}", hint=EXPORT_HINT) from error


def _resize_rule(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """How pictures are fitted, from the metadata's `input` (a JSON object) or `resize`; stretched when neither says."""
    try:
        given = json.loads(metadata.get("input", "{}"))
        rule = {
            "resize": given.get("resize", metadata.get("resize", "stretch")),
            "pad_value": given.get("pad_value", 128),
            "anchor": given.get("anchor", "centre"),
        }
    except (ValueError, AttributeError):
        refuse(path, f"metadata input: got {shown(metadata['input'])}, expected a JSON object", EXPORT_HINT)
    for key, literal in (("resize", Resize), ("anchor", Anchor)):
        if rule[key] not in get_args(literal):
            known = ", ".join(get_args(literal))
            refuse(path, f"metadata {key}: got {shown(rule[key])}, expected one of {known}", EXPORT_HINT)
    if type(rule["pad_value"]) is not int:
        refuse(path, f"metadata pad_value: got {shown(rule['pad_value'])}, expected 0 to 255", EXPORT_HINT)
    return rule


def _outputs(path: Path, adopted: Adopted) -> Outputs:
    """Find the roles by name; a raw detection head has none yet."""
    model, names = adopted.proto, [value.name for value in adopted.proto.graph.output]
    if adopted.task == "detect":
        return Outputs(boxes="boxes", scores="scores") if adopted.heads == ("boxes", "scores") else Outputs()
    for name, rank in (("embedding", 2), ("cam", 4)):
        found = shape_of(model, name) if name in names else None
        wrong = found is None or len(found) != rank or (name == "cam" and found[1] != adopted.count)
        if name in names and wrong:
            wanted = "[1, D]" if name == "embedding" else f"[1, {adopted.count}, h, w]"
            refuse(path, f"output {name}: got {shown(found)}, expected {wanted}", EXPORT_HINT)
    return Outputs(
        logits=adopted.heads[0],
        embedding="embedding" if "embedding" in names else None,
        cam="cam" if "cam" in names else None,
    )


def _classes(path: Path, metadata: dict[str, str]) -> tuple[str, ...] | None:
    """From `classes` (a JSON list), or from `names` as Ultralytics writes it: {0: 'person', 1: 'car'}."""
    if "classes" not in metadata:
        return _numbered_names(metadata.get("names", ""))
    text = metadata["classes"]
    try:
        names: Any = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) != len(names):
        refuse(path, f"metadata classes: got {shown(text)}, expected a JSON list of names", EXPORT_HINT)
    return tuple(names)


def _numbered_names(text: str) -> tuple[str, ...] | None:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    if not isinstance(found, dict) or sorted(found) != list(range(len(found))) or not found:
        return None
    names = tuple(str(found[i]) for i in range(len(found)))
    return names if len(set(names)) == len(names) else None
