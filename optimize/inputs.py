"""What a build reads, opened and checked before any work is done."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent.bundle import ClassSpec, Manifest
from agent.bundle.manifest import NAME_PATTERN, Severity
from agent.errors import BundleError
from optimize.box_readers import has_boxes, read_boxes
from optimize.calibration import Calibration, Selection, pick_calibration
from optimize.dataset import Dataset, Sample, read_dataset
from optimize.errors import DataError, ModelError, OptimizeError, RecipeError
from optimize.evaluate import check_labels
from optimize.progress import Progress, SilentProgress
from optimize.quantize import FloatModel, read_model
from optimize.quantize.model import onnx_library
from optimize.recipe import RECIPE_FILE, DetectorRecipe, Recipe, bundle_name

__all__ = ["GRAPH_FILES", "Inputs", "classes_of", "draft_manifest", "gather", "known_boxes", "severity_by_name"]

OK_NAMES = frozenset({"ok", "good", "nodefect", "normal"})
"""Class names (letters only, lower case) that mean a good part, where the recipe says nothing."""

GRAPH_FILES = {
    "fp32": "model.fp32.onnx",
    "cpu": "model.cpu.onnx",
    "trt": "model.trt.onnx",
    "trt16": "model.trt16.onnx",
}
"""Kind of graph to its name in a bundle. A CPU runs the first two; a device compiles one of the others."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that a build reads, checked before any work is done.

    Attributes:
        recipe: what should be done.
        model: the float classifier or detector.
        classes: in output order, with severities.
        name: the bundle's.
        out: the bundle to write.
        calibration: pictures that ranges are read off.
        val: pictures for measuring; labelled for a classifier, with boxes for a detector where the set has any.
        warnings: what the user should know, one sentence each.
    """

    recipe: Recipe
    model: FloatModel
    classes: tuple[ClassSpec, ...]
    name: str
    out: Path
    calibration: Calibration
    val: Dataset
    warnings: tuple[str, ...] = ()


def gather(recipe: Recipe, *, progress: Progress | None = None) -> Inputs:
    """Open and check all that a build needs.

    Args:
        recipe: the recipe with the command line's words put in.
        progress: hears what is read.

    Raises:
        MissingExtra: onnx is not installed.
        OptimizeError: something is missing, or can't be used as given.
    """
    progress = progress or SilentProgress()
    onnx_library()  # without it nothing can be built, whatever else is missing
    path = _given(recipe.model, "model", "--model model.onnx")
    progress.step(f"reading {path.name}")
    model = read_model(path, recipe.preprocess, classes=len(recipe.classes) or None, detector=recipe.detector)
    _check_packable(model)
    classes = classes_of(recipe, model)
    name = _name(recipe, path)
    out = _out(recipe, name)
    val = _read(_given(recipe.val or recipe.data, "val or data", "--data DIR"), model).take("val")
    if model.task == "classify":
        check_labels(val, [c.name for c in classes])
    calibration = _calibration(recipe, model, classes, val, progress)
    inputs = Inputs(
        recipe=recipe,
        model=model,
        classes=classes,
        name=name,
        out=out,
        calibration=calibration,
        val=val,
        warnings=(*_warnings(recipe, model, classes, val), *calibration.warnings),
    )
    try:
        draft_manifest(inputs)
    except BundleError as error:  # limits that contradict each other are found out before the work
        text = error.message.removeprefix("manifest.json: ")
        raise RecipeError(
            f"{RECIPE_FILE}: {text}", hint=f"change policy, detector or classes in {RECIPE_FILE}"
        ) from error
    return inputs


def draft_manifest(inputs: Inputs) -> Manifest:
    """The manifest as far as it is known before anything is measured."""
    return Manifest(
        name=inputs.name,
        version=inputs.recipe.version,
        task=inputs.model.task,
        input=inputs.model.input,
        classes=inputs.classes,
        outputs=inputs.model.outputs,
        graphs=GRAPH_FILES,
        cpu_graph="cpu",
        policy=inputs.recipe.policy_spec(),
        detection=inputs.model.detection,
    )


def known_boxes(val: Dataset, classes: Sequence[ClassSpec]) -> bool:
    """Whether a detector can be judged by this set: it has boxes, of classes that the model knows.

    Raises:
        DataError: some of the boxes' classes are the model's, others are not.
    """
    named = {box.class_name for sample in val for box in sample.boxes or ()}
    known = {c.name for c in classes}
    if named & known and named - known:
        raise DataError(
            f"{val.root}: got boxes of {', '.join(sorted(named - known))}, the model knows {', '.join(sorted(known))}",
            hint="rename the boxes' classes, or train and build with these classes",
        )
    return bool(named & known)


def severity_by_name(name: str) -> Severity:
    """`ok` for names like ok, good, no_defect, normal (whatever their case and separators), else `major`."""
    letters = "".join(character for character in name.lower() if character.isalpha())
    return "ok" if letters in OK_NAMES else "major"


def _read(path: Path, model: FloatModel) -> Dataset:
    """A set with the boxes that it has, where boxes are what the model gives."""
    return read_boxes(path) if model.task == "detect" and has_boxes(path) else read_dataset(path)


def _given(path: Path | None, key: str, flag: str) -> Path:
    if path is None:
        raise RecipeError(f"{key}: not given", hint=f"add {flag}, or the key to {RECIPE_FILE} here")
    return path


def _check_packable(model: FloatModel) -> None:
    """A raw head can be read and quantized, but a bundle's graph gives boxes and scores."""
    if model.task == "detect" and model.outputs.boxes is None:
        raise ModelError(
            f"{model.path}: gives a raw detection head of {len(model.heads)} outputs, expected boxes and scores",
            hint="export it with the decoding inside",
        )


def _name(recipe: Recipe, model: Path) -> str:
    """The bundle's name: as given, else from --out, else from the model's file."""
    if recipe.name:
        return recipe.name
    stem = recipe.out.stem.removesuffix(f"-{recipe.version}") if recipe.out else model.stem
    allowed = bundle_name(stem)
    if not allowed:
        raise RecipeError(f"name: can't be made of {stem!r}", hint=f"add --name NAME, of the form {NAME_PATTERN}")
    return allowed


def classes_of(recipe: Recipe, model: FloatModel) -> tuple[ClassSpec, ...]:
    """Names from the model, severities from the recipe, or by name.

    Raises:
        RecipeError: nobody says which classes there are, or model and recipe contradict each other.
    """
    given = {entry.name: entry.severity for entry in recipe.classes}
    if model.classes is None and not given:
        raise RecipeError(
            f"{model.path}: does not say which classes its {model.count} outputs are",
            hint=f"list them in output order under `classes` in {RECIPE_FILE}",
        )
    names = model.classes or tuple(given)
    if model.count not in (0, len(names)):  # a raw detection head does not say
        raise RecipeError(
            f"{RECIPE_FILE}: classes: got {len(names)}, {model.path} has {model.count} outputs",
            hint="list the classes in the order of the outputs",
        )
    strange = sorted(set(given) - set(names))
    if strange:
        raise RecipeError(
            f"{RECIPE_FILE}: classes: got {', '.join(strange)}, {model.path} knows {', '.join(names)}",
            hint="write each name as the model has it",
        )
    smallest = {entry.name: entry.min_size_mm for entry in recipe.classes if entry.min_size_mm is not None}
    _check_sizes(model, smallest)
    return tuple(
        ClassSpec(name=name, severity=given.get(name) or severity_by_name(name), min_size_mm=smallest.get(name))
        for name in names
    )


def _check_sizes(model: FloatModel, smallest: Mapping[str, float]) -> None:
    if not smallest:
        return
    if model.task == "classify":
        raise RecipeError(f"{RECIPE_FILE}: classes: min_size_mm: {model.path} is a classifier and knows no sizes")
    if model.detection is None or model.detection.pixel_mm is None:
        raise RecipeError(
            f"{RECIPE_FILE}: classes: min_size_mm of {', '.join(smallest)}: nobody says how large a pixel is",
            hint=f"write detector: {{pixel_mm: …}} in {RECIPE_FILE}: millimetres on the part per pixel of the camera",
        )


def _out(recipe: Recipe, name: str) -> Path:
    out = recipe.out or Path(f"{name}-{recipe.version}.defect")
    if out.is_dir():
        raise OptimizeError(f"{out}: is a folder", hint=f"--out takes a file, such as {out / name}.defect")
    if out.suffix != ".defect":
        raise OptimizeError(f"--out: got {out}, expected a file that ends in .defect", hint=f"--out {out}.defect")
    if not out.absolute().parent.is_dir():
        raise OptimizeError(f"{out}: its folder does not exist", hint=f"mkdir -p {out.absolute().parent}")
    return out


def _calibration(
    recipe: Recipe, model: FloatModel, classes: Sequence[ClassSpec], val: Dataset, progress: Progress
) -> Calibration:
    return pick_calibration(
        _calibration_set(recipe, model),
        test=_test_samples(recipe, model),
        val=val.samples,
        classes=[c.name for c in classes] if model.task == "classify" else (),
        selection=Selection(
            limit=recipe.quantize.images, seed=recipe.seed, sampler=recipe.quantize.sampler, model=model
        ),
        progress=progress,
    )


def _calibration_set(recipe: Recipe, model: FloatModel) -> Dataset:
    if recipe.calib is not None:
        return _read(recipe.calib, model).take("calib")
    if recipe.data is not None and "calib" in (dataset := _read(recipe.data, model)).splits:
        return dataset.take("calib")
    raise DataError(
        "calib: not given, and the data have no calib split",
        hint=f"add --calib DIR, or the key to {RECIPE_FILE}: 100 to 500 pictures from the line's own camera",
    )


def _test_samples(recipe: Recipe, model: FloatModel) -> Iterator[Sample]:
    """Every picture of a test split in any folder that was named."""
    roots = dict.fromkeys(path.resolve() for path in (recipe.data, recipe.val, recipe.calib) if path is not None)
    for root in roots:
        dataset = _read(root, model)
        if "test" in dataset.splits:
            yield from dataset.take("test")


def _warnings(recipe: Recipe, model: FloatModel, classes: Sequence[ClassSpec], val: Dataset) -> Iterator[str]:
    if model.task == "classify":
        if recipe.detector != DetectorRecipe():
            yield f"{RECIPE_FILE}: detector: {model.path.name} is a classifier, the section says nothing about it"
        yield from _data_warnings(val, classes)
        return
    boxes = Counter(box.class_name for sample in val for box in sample.boxes or ())
    if not boxes:
        yield "val has no boxes: INT8 is judged by the float model's detections that it keeps, and nobody judges those"
    elif not known_boxes(val, classes):
        yield f"val's boxes are of {', '.join(sorted(boxes))}, which the model does not know: there will be no mAP"
    elif missing := [c.name for c in classes if not boxes[c.name] and c.severity != "ok"]:
        yield f"no val box shows {', '.join(missing)}: the figures say nothing about them"


def _data_warnings(val: Dataset, classes: Sequence[ClassSpec]) -> Iterator[str]:
    counted = val.counts
    missing = [c.name for c in classes if not counted.get(c.name)]
    if missing:
        yield f"no val image shows {', '.join(missing)}: the drop says nothing about them"
    if len(val) < 100:
        yield f"only {len(val)} val images: one of them is {100 / len(val):.1f} points of accuracy"
