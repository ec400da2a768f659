"""Taking a float model from elsewhere in: what it was fed goes into its graph, its outputs become ours.

```text
any float classifier or detector       opset 11 to the newest, NCHW or NHWC, batch and size fixed or open
  → opset 13 to 20                     what INT8 and the devices can do
  → one picture of one size            batch 1; Reshapes that hold another batch follow
  → logits, or boxes and scores        see `endings` and `detector_forms`
  → what boxes and scores mean         see `readings`
  → bytes in, normalization inside     see `normalize`; from the recipe's `preprocess`, or the model's metadata
```

Nothing is guessed: a float model whose preprocessing nobody says is refused. What was done stands in the notes;
`parity.check_adoption` holds the result to the model as it came, and `detector_parity` the reading of a detector to
what is to be seen, on real pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.bundle.detection import DetectionSpec
from agent.bundle.manifest import Task
from optimize.errors import ModelError
from optimize.quantize.detector_forms import KNOWN_FORMS, Recognized, doubt, recognize, separate
from optimize.quantize.endings import ACTIVATION_NOTES, Ending, find_ending, is_vector, write_logits
from optimize.quantize.graph import Graph, metadata_of, opset_of, shape_of
from optimize.quantize.normalize import write_front
from optimize.quantize.onnx_file import (
    EXPORT_HINT,
    check_standard,
    convert_opset,
    drop_unread,
    refuse,
    rename_tensor,
)
from optimize.quantize.picture_input import (
    Layout,
    Picture,
    find_picture,
    find_preprocess,
    fix_shapes,
    with_shapes,
)
from optimize.quantize.readings import SHAPES_OF, Reading, choose_reading
from optimize.recipe import RECIPE_FILE, DetectorForm, DetectorRecipe, PreprocessRecipe

if TYPE_CHECKING:
    import onnx

__all__ = ["Adopted", "Adoption", "adopt"]


NAMES_OF: Mapping[str, DetectorForm] = {"joined": "yolov8", "rows": "centre", "objectness": "yolov5"}
"""What the recipe calls the forms that are told by their counts alone."""

MIN_IR_VERSION = 7
"""What opset 13 came with. Before 4 every initializer had to be listed as an input, and so was none to be folded."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """How the model was before, and what its inputs and outputs mean: all that a parity check needs.

    Attributes:
        original: the file as ONNX bytes, weights inside.
        input: its input.
        layout: `nchw` or `nhwc` floats; `bytes` for (1, H, W, 3) uint8 RGB, which needs no preprocessing.
        batch: how many pictures it takes at a time.
        channels: 1 or 3.
        preprocess: what it was trained to be fed; None for `bytes`.
        ending: of a classifier.
        detector: of a detector.
        form: whose export a detector is; `auto` for a raw head, and for a classifier.
        is_own: a detector's own metadata say how it is read.
    """

    original: bytes
    input: str
    layout: Layout
    batch: int
    channels: int
    preprocess: PreprocessRecipe | None
    ending: Ending | None
    detector: Recognized | None
    form: DetectorForm = "auto"
    is_own: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adopted:
    """A graph that takes one picture of bytes.

    Attributes:
        proto: the graph, shapes inferred.
        task: `classify` or `detect`.
        heads: its outputs that the task is read from: the logits; boxes and scores; or all of a raw head.
        count: how many classes; 0 where a raw head does not say.
        preprocess: what the picture is fitted by; None where the graph's metadata say it.
        detection: how a detector's boxes and scores are read; None for a classifier, and for a raw head.
        adoption: None when the graph is as it came.
        notes: what was changed, one sentence each.
    """

    proto: onnx.ModelProto
    task: Task
    heads: tuple[str, ...]
    count: int
    preprocess: PreprocessRecipe | None
    detection: DetectionSpec | None
    adoption: Adoption | None
    notes: tuple[str, ...]


def adopt(
    path: Path,
    model: onnx.ModelProto,
    given: PreprocessRecipe | None,
    classes: int | None,
    reads: DetectorRecipe | None = None,
) -> Adopted:
    """Turn a checked float graph into one that takes bytes.

    Args:
        path: what messages call it.
        model: the graph; it is changed.
        given: the recipe's `preprocess`; None asks the model's metadata.
        classes: how many there are, where metadata or recipe say so.
        reads: the recipe's `detector`; None leaves all to metadata and shapes.

    Raises:
        ModelError: the graph can't be taken in; the message says what was found and what was expected.
    """
    reads = reads or DetectorRecipe()
    original, opset = _serialized(path, model), opset_of(model)
    model.ir_version = max(model.ir_version, MIN_IR_VERSION)
    model = convert_opset(path, model)
    notes = [] if opset_of(model) == opset else [f"opset {opset} was converted to {opset_of(model)}"]
    picture = find_picture(path, model, given)
    how, why = find_preprocess(path, model, picture, given, reads.form)
    model = fix_shapes(path, model, picture, how)
    if picture.batch not in (None, 1):
        notes.append(f"the batch of {picture.batch} became 1")
    model, heads, ending, detector, reading = _read_outputs(path, model, picture, classes, reads)
    notes += [why] if why else []
    notes += _output_notes(ending, detector, reading)
    if how is not None:
        notes += _bytes_in(model, picture, how)
        model = _finished(path, model)
    elif detector is not None or (ending is not None and ending.at):
        model = _finished(path, model)
    adoption = Adoption(
        original=original,
        input=picture.name,
        layout=picture.layout,
        batch=picture.batch or 1,
        channels=picture.channels,
        preprocess=how,
        ending=ending,
        detector=detector,
        form="auto" if reading is None else reading.form,
        is_own=reading is not None and reading.is_own,
    )
    count = ending.count if ending is not None else detector.classes if detector is not None else 0
    return Adopted(
        proto=model,
        task="detect" if detector is not None else "classify",
        heads=heads,
        count=count,
        preprocess=how,
        detection=None if reading is None else reading.spec,
        adoption=adoption if notes else None,
        notes=tuple(notes),
    )


def _serialized(path: Path, model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString())
    except ValueError as error:  # protobuf ends at 2 GB
        raise ModelError(f"{path}: is larger than 2 GB, which no ONNX file can be", hint=EXPORT_HINT) from error


def _read_outputs(
    path: Path, model: onnx.ModelProto, picture: Picture, classes: int | None, reads: DetectorRecipe
) -> tuple[onnx.ModelProto, tuple[str, ...], Ending | None, Recognized | None, Reading | None]:
    """Tell classifier from detector, and make the outputs ours; those that are nothing to us are dropped."""
    shapes = {v.name: _whole(shape_of(model, v.name)) for v in model.graph.output}
    if _looks_like_a_classifier(shapes):
        ending = find_ending(path, model, shapes)
        if picture.layout == "bytes" and not ending.at and len(shapes[ending.output]) == 2:
            return model, (ending.output,), ending, None, None
        shape = shapes[ending.output]
        write_logits(model, ending, shape)
        others = [name for name, rank in (("embedding", 2), ("cam", 4)) if len(shapes.get(name, ())) == rank]
        _declare(model, ("logits", *others))
        return model, ("logits",), ending, None, None
    graph = Graph(model)
    detector = recognize(graph, shapes, classes, SHAPES_OF[reads.form])
    if detector is None:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        said = "" if classes is None else f" for {classes} classes"
        kind = "classifier or detector" if reads.form == "auto" else f"{reads.form} (detector.form in {RECIPE_FILE})"
        refuse(path, f"outputs: got {listed}, no form of a {kind}{said} that is known", _forms_hint(classes))
    if reads.form == "auto" and (why := doubt(detector, classes)) is not None:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        named = NAMES_OF[detector.form]
        refuse(
            path,
            f"outputs: got {listed}, which as a detector ({named}) would be {why}",
            f"write `detector: {{form: {named}}}` in {RECIPE_FILE} if it is one; else {_forms_hint(classes)}",
        )
    if detector.form == "levels":
        return model, separate(model, detector), None, detector, None
    reading = choose_reading(path, graph, detector, _size(model, picture), reads, metadata_of(model).get("detection"))
    heads = separate(model, reading.found)
    _declare(model, heads)
    return model, heads, None, reading.found, reading


def _size(model: onnx.ModelProto, picture: Picture) -> tuple[int, int]:
    """Width and height of the input in pixels."""
    shape = _whole(shape_of(model, picture.name))
    return (shape[3], shape[2]) if picture.layout == "nchw" else (shape[2], shape[1])


def _forms_hint(classes: int | None) -> str:
    named = (
        f" (a (1, K, 6) needs the classes listed in {RECIPE_FILE})"
        if classes is None
        else " (a background that has a score counts as a class)"
    )
    return f"known are logits (1, C), and of detectors {KNOWN_FORMS}{named}"


def _looks_like_a_classifier(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """A vector among the outputs, and beside it nothing but an activation map."""
    if not any(is_vector(shape) for shape in shapes.values()):
        return False
    return "logits" in shapes or not any(len(shape) == 3 and not is_vector(shape) for shape in shapes.values())


def _whole(shape: tuple[int | str, ...] | None) -> tuple[int, ...]:
    return tuple(int(side) for side in shape or ())


def _declare(model: onnx.ModelProto, outputs: tuple[str, ...]) -> None:
    """Name the outputs; shapes follow when they are inferred again."""
    from onnx import TensorProto, helper

    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    drop_unread(model)


def _output_notes(ending: Ending | None, detector: Recognized | None, reading: Reading | None) -> list[str]:
    if ending is not None:
        return [ACTIVATION_NOTES[ending.activation]] if ending.at else []
    notes = []
    if detector is not None and detector.form not in ("levels", "pair"):
        notes.append(f"the one output {detector.outputs[0]} became boxes and scores ({detector.form})")
    if detector is not None and detector.first:
        notes.append("the first column of the scores is the background and was left out")
    if reading is not None and not reading.is_own and reading.found.outputs != ("boxes", "scores"):
        priors = f" from {reading.spec.n_priors} priors" if reading.spec.levels else ""
        notes.append(f"read as {reading.form}: boxes are {reading.spec.boxes}{priors}, scores {reading.spec.scores}")
    return notes


def _bytes_in(model: onnx.ModelProto, picture: Picture, how: PreprocessRecipe) -> tuple[str, ...]:
    """Put the normalization in front; the input is called `image`."""
    from onnx import TensorProto, helper

    width, height = _size(model, picture)
    rename_tensor(model, picture.name, "preprocess.normalized")
    rename_tensor(model, "image", "image.inner")
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, [1, height, width, 3]))
    return write_front(
        model,
        source="image",
        tensor="preprocess.normalized",
        channels=picture.channels,
        layout=picture.layout,
        how=how,
    )


def _finished(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes again, and the standard again: the graph has become another."""
    import onnx

    drop_unread(model)
    picture = model.graph.input[0]
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    taken = Picture(name=picture.name, layout="bytes", channels=3, batch=1, width_px=None, height_px=None)
    model = with_shapes(path, model, taken)
    check_standard(str(path), onnx.shape_inference.infer_shapes(model))
    return model
