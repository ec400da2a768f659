"""What a detector's numbers mean: whose export it is, how its boxes and scores are coded, what it was fed.

```text
form        told by                                             boxes                     scores
yolov5      (1, N, 5+C)                                         centre, px                objectness * class
yolov8      (1, 4+C, N)                                         centre, px                0 to 1
yolov10     (1, K, 6) behind a TopK                             corners, px               one class each
yolox       (1, N, 5+C), N = the cells of strides 8, 16, 32     deltas; centre behind an Exp   objectness * class
ssd         8,732 at 300 x 300                                  deltas, 0.1 and 0.2       softmax, background first
ssdlite     3,234 at 320 x 320 (or as many at another size)     deltas, 0.1 and 0.2       softmax, background first
retinanet   9 per place of strides 8 to 128                     deltas, 1 and 1           sigmoid
corners     any other pair of boxes and scores                  corners, px
```

Our own models say it themselves, in their metadata `detection`. Of others the recipe's `detector.form` goes before
shapes and graph. A reading is a claim: `detector_parity` holds it to calibration pictures.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.bundle.detection import (
    DetectionSpec,
    PriorLevel,
    ScoreCoding,
    Tiling,
    detection_from_json,
)
from agent.errors import BundleError
from optimize.errors import ModelError
from optimize.quantize.detector_forms import DetectorForm as Shape
from optimize.quantize.detector_forms import Recognized
from optimize.quantize.graph import Graph
from optimize.quantize.onnx_file import EXPORT_HINT, refuse
from optimize.quantize.priors import count_of, retinanet_levels, ssd300_levels, ssdlite_levels, yolox_levels
from optimize.recipe import RECIPE_FILE, DetectorForm, DetectorRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SHAPES_OF", "Reading", "choose_reading", "priors_of", "with_limits"]

SHAPES_OF: Mapping[DetectorForm, tuple[Shape, ...]] = {
    "auto": (),
    "yolov5": ("objectness",),
    "yolov8": ("joined", "rows"),
    "yolov10": ("final",),
    "yolox": ("objectness",),
    "ssd": ("pair",),
    "ssdlite": ("pair",),
    "retinanet": ("pair",),
    "corners": ("pair", "joined", "rows", "objectness", "final"),
    "centre": ("pair", "joined", "rows", "objectness", "final"),
}
"""Which outputs a form may have."""

PRIOR_FORMS: tuple[DetectorForm, ...] = ("yolox", "ssd", "ssdlite", "retinanet")

SCALES: Mapping[DetectorForm, tuple[float, float]] = {"ssd": (0.1, 0.2), "ssdlite": (0.1, 0.2)}
"""SSD's variances; the others' offsets are not scaled."""

LAYOUT = frozenset({"Reshape", "Transpose", "Concat", "Slice", "Split", "Squeeze", "Unsqueeze", "Identity"}) | {
    *("Flatten", "Gather", "GatherElements", "GatherND", "Cast", "Tile", "Expand", "TopK", "ReduceMax", "Max", "Pad")
}
"""Operators that move values, or choose among them: behind a Sigmoid they still give 0 to 1."""


DECODED_HINT = f"name another detector.form in {RECIPE_FILE}, or export it with the decoding inside (form: corners)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a detector is read.

    Attributes:
        form: whose export it is; never `auto`.
        spec: for the bundle.
        found: its outputs, with the column that the background takes.
        is_own: the model's own metadata say it: nothing was guessed.
    """

    form: DetectorForm
    spec: DetectionSpec
    found: Recognized
    is_own: bool


def choose_reading(
    path: Path, graph: Graph, found: Recognized, size: tuple[int, int], how: DetectorRecipe, own: str | None
) -> Reading:
    """Say what the outputs mean.

    Args:
        path: what messages call the model.
        graph: the graph as it came.
        found: its outputs; no raw head.
        size: width and height of the input in pixels.
        how: the recipe's section.
        own: the model's metadata `detection`, where it has them.

    Raises:
        ModelError: recipe, metadata and outputs contradict each other.
    """
    if own is not None:
        if (how.form, how.scores) != ("auto", "auto"):
            refuse(
                path,
                "says itself how its boxes and scores are read, and the recipe has detector.form or detector.scores",
                f"take both out of {RECIPE_FILE}: they are for detectors from elsewhere",
            )
        return _own_reading(path, found, how, own)
    form = how.form if how.form != "auto" else _tell(graph, found, size)
    levels = priors_of(form, size)
    is_raw = form in PRIOR_FORMS and (form != "yolox" or not _has_exp(graph, found))
    if is_raw and form == "ssd" and not levels:
        refuse(path, f"priors of ssd are known at 300 x 300 px, it takes {size[0]} x {size[1]}", DECODED_HINT)
    if is_raw and count_of(levels) != found.boxes:
        refuse(
            path,
            f"gives {found.boxes} boxes, a {form} of {size[0]} x {size[1]} px has {count_of(levels)}",
            DECODED_HINT,
        )
    scores, found = _scores(path, graph, found, form, how)
    boxes: Any = "deltas" if is_raw else "corners" if form in ("yolov10", "corners") else "centre"
    scale = SCALES.get(form, (1.0, 1.0)) if is_raw else (1.0, 1.0)
    spec = DetectionSpec(
        boxes=boxes,
        scores=scores,
        levels=levels if is_raw else (),
        scale_xy=scale[0],
        scale_wh=scale[1],
        nms_iou=1.0 if form == "yolov10" else DetectionSpec(boxes="corners").nms_iou,  # it suppressed them itself
    )
    return Reading(form=form, spec=with_limits(path, spec, how), found=found, is_own=False)


def with_limits(path: Path, spec: DetectionSpec, how: DetectorRecipe) -> DetectionSpec:
    """The recipe's limits in place of the model's own.

    Raises:
        ModelError: they don't go together.
    """
    given: dict[str, Any] = {
        key: value
        for key in ("score_above", "nms_iou", "max_findings", "vote_iou", "pixel_mm")
        if (value := getattr(how, key)) is not None
    }
    try:
        if how.tile_px is not None:
            given["tiling"] = Tiling(tile_px=how.tile_px, overlap=how.tile_overlap, with_whole=how.tile_with_whole)
        return dataclasses.replace(spec, **given)
    except BundleError as error:
        raise ModelError(f"{path}: {error.message}", hint=f"see `detector` in {RECIPE_FILE}") from error


def priors_of(form: DetectorForm, size: tuple[int, int]) -> tuple[PriorLevel, ...]:
    """A form's priors at an input size; none where it has no such size, or no priors."""
    width, height = size
    if form == "ssd":
        return ssd300_levels() if size == (300, 300) else ()
    if form == "yolox":
        return yolox_levels(width, height) if min(size) >= 32 else ()
    if form == "ssdlite":
        return ssdlite_levels(width, height)
    return retinanet_levels(width, height) if form == "retinanet" else ()


def _own_reading(path: Path, found: Recognized, how: DetectorRecipe, own: str) -> Reading:
    """From the metadata that our own exports carry."""
    try:
        spec = detection_from_json(json.loads(own), f"{path}: metadata detection")
    except ValueError:
        refuse(path, "metadata detection: is no JSON", EXPORT_HINT)
    except BundleError as error:
        raise ModelError(error.message, hint=error.hint or EXPORT_HINT) from error
    columns = found.columns - (spec.scores == "softmax")
    if spec.levels and spec.n_priors != found.boxes:
        got = f"has {spec.n_priors} priors, the model gives {found.boxes} boxes"
        refuse(path, f"metadata detection: {got}", EXPORT_HINT)
    found = dataclasses.replace(found, classes=columns)
    return Reading(form="corners", spec=with_limits(path, spec, how), found=found, is_own=True)


def _tell(graph: Graph, found: Recognized, size: tuple[int, int]) -> DetectorForm:
    """Whose export it is, by shapes and by what the graph computes."""
    if found.form == "objectness":
        return "yolox" if found.boxes == count_of(priors_of("yolox", size)) else "yolov5"
    if found.form == "joined":
        return "yolov8"
    if found.form == "final":
        return "yolov10"
    if found.form == "rows":
        return "centre"
    if not _has_exp(graph, found):  # a decoded size is an exponential
        for form in PRIOR_FORMS[1:]:
            if count_of(priors_of(form, size)) == found.boxes:
                return form
    return "corners"


def _has_exp(graph: Graph, found: Recognized) -> bool:
    """Whether sizes were taken out of their logarithms inside the graph."""
    makers = (graph.maker(name) for name in graph.upstream(found.outputs[:1]))
    return any(node is not None and node.op_type == "Exp" for node in makers)


def _scores(
    path: Path, graph: Graph, found: Recognized, form: DetectorForm, how: DetectorRecipe
) -> tuple[ScoreCoding, Recognized]:
    """How the scores are coded, and the outputs without the background's column where it is of no use."""
    if found.form != "pair":
        return ("probability" if how.scores == "auto" else how.scores), found
    ends = set(_activations(graph, found.outputs[1], set()))
    has_more = found.columns == found.classes + 1  # the caller knows how many classes there are
    if how.scores != "auto":
        coding: ScoreCoding = how.scores
    elif ends <= {"Sigmoid", "Softmax"} and ends:
        coding = "probability"
    else:
        coding = "softmax" if form in ("ssd", "ssdlite") or (has_more and form != "retinanet") else "sigmoid"
    if coding == "softmax":
        if found.columns < 2:
            refuse(path, "its scores have one column, which a softmax makes 1 everywhere", EXPORT_HINT)
        return coding, dataclasses.replace(found, classes=found.columns - 1)
    if has_more or (coding == "probability" and "Softmax" in ends):
        # A softmax that is 1 in all must have a background to say nothing with; it comes first, as in SSD.
        return coding, dataclasses.replace(found, classes=found.columns - 1, first=1)
    return coding, found


def _activations(graph: Graph, tensor: str, seen: set[str]) -> Iterator[str]:
    """The operators that end all ways to a tensor, seen through what only moves values; `?` for anything else."""
    if tensor in seen:
        return
    seen.add(tensor)
    node = graph.maker(tensor)
    if node is None:
        yield "?"
    elif node.op_type in ("Sigmoid", "Softmax"):
        yield str(node.op_type)
    elif node.op_type in LAYOUT or node.op_type == "Mul":
        moved: Sequence[str] = node.input if node.op_type in ("Concat", "Mul", "Max") else node.input[:1]
        for name in moved:
            yield from _activations(graph, name, seen)
    elif node.op_type in ("Equal", "Not", "And"):  # nought or one
        yield "Sigmoid"
    else:
        yield "?"
