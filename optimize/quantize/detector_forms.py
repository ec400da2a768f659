"""The usual exports of detectors: told apart by the shapes of their outputs, and brought to boxes and scores.

```text
joined        one output (1, 4+C, N)               YOLOv8, YOLO11, YOLO12: box, then a score per class
objectness    one output (1, N, 5+C)               YOLOv5, YOLOX: box, objectness, then a score per class
rows          one output (1, N, 4+C)               RT-DETR: like `joined`, transposed; needs the number of classes
final         one output (1, K, 6)                 YOLOv10, YOLO26: box, score, class, behind a TopK or NMS
pair          (1, N, 4) and (1, N, C)              ours, SSD, RetinaNet, DETR
levels        two outputs or more, (1, A, h, w) or (1, A, h, w, B), of several sizes: a raw head, nothing decoded
```

Boxes and scores in one tensor would share one scale in INT8, and scores beside pixels round to nothing: they become two
outputs, `boxes` (1, N, 4) and `scores` (1, N, C). Boxes keep the coordinates that the model gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from optimize.quantize.graph import Graph
from optimize.quantize.onnx_file import add_constant, rename_tensor

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["KNOWN_FORMS", "DetectorForm", "Recognized", "doubt", "recognize", "separate", "separated"]

DetectorForm: TypeAlias = Literal["joined", "objectness", "rows", "final", "pair", "levels"]

KNOWN_FORMS = (
    "(1, 4+C, N) as YOLOv8; (1, N, 5+C) as YOLOv5 and YOLOX; (1, K, 6) behind a TopK or NMS; boxes (1, N, 4) with "
    "scores (1, N, C); raw heads of several sizes"
)

_GUESSED: Mapping[DetectorForm, int] = {"joined": 4, "rows": 4, "objectness": 5}
"""Forms whose boxes and numbers are told apart by their counts only, and what a box has beside its classes."""

MIN_SURPLUS = 2
"""Boxes for each number of a box, at least, where nobody says how many classes there are."""

Shapes: TypeAlias = "Mapping[str, tuple[int, ...]]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """A detector's outputs as they came.

    Attributes:
        form: which of the usual exports.
        outputs: their names; boxes before scores where they are two.
        classes: how many it tells apart; 0 where a raw head does not say.
        boxes: how many it gives; 0 of a raw head.
        columns: of the scores; one more than there are classes where a background has one. 0 of a raw head.
        first: the first column that stays: 1 where the background's is left out.
    """

    form: DetectorForm
    outputs: tuple[str, ...]
    classes: int
    boxes: int = 0
    columns: int = 0
    first: int = 0


def recognize(
    graph: Graph, shapes: Shapes, classes: int | None, wanted: tuple[DetectorForm, ...] = ()
) -> Recognized | None:
    """Tell the form by the outputs' shapes.

    Args:
        graph: to see whether a TopK or NMS lies before the output.
        shapes: every output's shape.
        classes: how many there are, where metadata or recipe say so.
        wanted: what it may be, where the recipe names it; empty for any.

    Returns:
        None when it is none of the forms, or contradicts the number of classes.
    """
    decoded = {name: shape for name, shape in shapes.items() if len(shape) == 3}
    raw = {name: shape for name, shape in shapes.items() if name not in decoded}
    found: Recognized | None
    if len(decoded) == 1 and (not raw or _levels(raw, classes) is not None):  # YOLOv5 may give its raw head as well
        ((name, shape),) = decoded.items()
        might = [f for f in _ones(graph, name, shape, classes) if not wanted or f.form in wanted]
        found = next((f for f in might if doubt(f, classes) is None), might[0] if might else None)
    elif len(shapes) == 2 and all(len(shape) == 3 for shape in shapes.values()):
        found = _pair(shapes, classes)
    else:
        found = _levels(shapes, classes)
    return found if found is None or not wanted or found.form in (*wanted, "levels") else None


def doubt(found: Recognized, classes: int | None) -> str | None:
    """Why one output can't be believed to be this form; None where it can.

    Which of its two sides counts the boxes is a guess: the usual exports have several boxes for each number of a box
    (RT-DETR on COCO 300 for 84, YOLOv8 8,400). Without a word on the number of classes fewer than two are doubted.

    Args:
        found: what `recognize` gave.
        classes: how many there are, where metadata or recipe say so.
    """
    if found.form not in _GUESSED:
        return None
    numbers = found.columns + _GUESSED[found.form]
    if found.boxes >= numbers * (MIN_SURPLUS if classes is None else 1):
        return None
    kinds = "1 class" if found.classes == 1 else f"{found.classes} classes"
    return f"{found.boxes} boxes of {kinds}: a box of {numbers} numbers would be too many for so few boxes"


def _ones(graph: Graph, name: str, shape: tuple[int, ...], classes: int | None) -> Iterator[Recognized]:
    """What one output may be, the likeliest first: six numbers behind a TopK are no row of one class."""
    _, height, width = shape
    kinds = {maker.op_type for tensor in graph.upstream([name]) if (maker := graph.maker(tensor))}
    candidates: list[tuple[DetectorForm, int, int]] = [
        ("joined", height - 4, width),
        ("rows", width - 4, height),
        ("objectness", width - 5, height),
    ]
    if height >= width:  # short rows stand upright
        candidates = candidates[1:] + candidates[:1] if width - 4 == classes else candidates[::-1]
    if width == 6 and classes is not None:
        at = 0 if kinds & {"TopK", "NonMaxSuppression"} else len(candidates)
        candidates.insert(at, ("final", classes, height))
    elif width == 6 and kinds & {"TopK", "NonMaxSuppression"}:
        return
    for form, count, boxes in candidates:
        if count >= 1 and classes in (None, count):
            yield Recognized(form=form, outputs=(name,), classes=count, boxes=boxes, columns=count)


def _pair(shapes: Shapes, classes: int | None) -> Recognized | None:
    def is_boxes(name: str) -> bool:
        rival = any(shape[2] == 4 for other, shape in shapes.items() if other != name)
        return shapes[name][2] == 4 and (not rival or any(word in name.lower() for word in ("box", "loc", "reg")))

    boxes = [name for name in shapes if is_boxes(name)]
    if len(boxes) != 1:
        return None
    scores = next(name for name in shapes if name != boxes[0])
    _, count, columns = shapes[scores]
    if count != shapes[boxes[0]][1] or classes not in (None, columns, columns - 1):
        return None
    return Recognized(form="pair", outputs=(boxes[0], scores), classes=classes or columns, boxes=count, columns=columns)


def _levels(shapes: Shapes, classes: int | None) -> Recognized | None:
    sizes = {shape[2:4] for shape in shapes.values()}
    if len(sizes) < 2 or not all(len(shape) in (4, 5) for shape in shapes.values()):
        return None
    return Recognized(form="levels", outputs=tuple(shapes), classes=classes or 0)


def separate(model: onnx.ModelProto, found: Recognized) -> tuple[str, ...]:
    """Make `boxes` and `scores` of the outputs; the graph is changed in place, shapes are to be inferred again.

    Returns:
        The outputs there are now: (`boxes`, `scores`), or those of a raw head as they came.
    """
    if found.form == "levels":
        return found.outputs
    if found.form == "pair":
        names = ("boxes", "scores")
        for old, new in zip(found.outputs, names, strict=True):
            rename_tensor(model, old, new)
        if found.first:
            rename_tensor(model, "scores", "scores.all")
            _cut(model, "scores.all", "scores", found.first, found.columns)
        return names
    for name in ("boxes", "scores"):  # whoever is called so already makes way
        rename_tensor(model, name, f"{name}.inner")
    source = found.outputs[0] if found.outputs[0] not in ("boxes", "scores") else f"{found.outputs[0]}.inner"
    _split(model, source, found)
    return "boxes", "scores"


def _split(model: onnx.ModelProto, source: str, found: Recognized) -> None:
    from onnx import TensorProto, helper

    nodes = model.graph.node
    if found.form == "joined":
        nodes.append(helper.make_node("Transpose", [source], ["split.rows"], name="split/rows", perm=[0, 2, 1]))
        source = "split.rows"
    _cut(model, source, "boxes", 0, 4)
    if found.form == "objectness":
        _cut(model, source, "split.objectness", 4, 5)
        _cut(model, source, "split.classes", 5, 5 + found.classes)
        nodes.append(helper.make_node("Mul", ["split.objectness", "split.classes"], ["scores"], name="split/scores"))
    elif found.form == "final":
        # One score and a class number become a score per class, nought for all but one.
        _cut(model, source, "split.score", 4, 5)
        _cut(model, source, "split.class", 5, 6)
        numbers = add_constant(model, "split.numbers", np.arange(found.classes, dtype=np.float32))
        nodes.append(helper.make_node("Round", ["split.class"], ["split.whole"], name="split/whole"))
        nodes.append(helper.make_node("Equal", ["split.whole", numbers], ["split.is"], name="split/is"))
        nodes.append(helper.make_node("Cast", ["split.is"], ["split.one"], name="split/one", to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", ["split.score", "split.one"], ["scores"], name="split/scores"))
    else:
        _cut(model, source, "scores", 4, 4 + found.classes)


def _cut(model: onnx.ModelProto, source: str, target: str, start: int, end: int) -> None:
    """A slice of the last axis."""
    from onnx import helper

    limits = [
        add_constant(model, f"{target}.{name}", np.array([value]))
        for name, value in (("start", start), ("end", end), ("axis", 2))
    ]
    model.graph.node.append(helper.make_node("Slice", [source, *limits], [target], name=f"split/{target}"))


def separated(found: Recognized, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """The same in numpy, from the outputs of the model as it came: what the parity check holds `separate` to."""
    values = [np.asarray(outputs[name], np.float64) for name in found.outputs]
    if found.form == "levels":
        return dict(zip(found.outputs, values, strict=True))
    if found.form == "pair":
        return {"boxes": values[0], "scores": values[1][..., found.first :]}
    rows = values[0].transpose(0, 2, 1) if found.form == "joined" else values[0]
    scores = rows[..., 4:]
    if found.form == "objectness":
        scores = rows[..., 4:5] * rows[..., 5:]
    elif found.form == "final":
        scores = rows[..., 4:5] * (np.rint(rows[..., 5:6]) == np.arange(found.classes))
    return {"boxes": rows[..., :4], "scores": scores}
