"""Float and INT8 on parts that no network saw, through the agent's own Inspector; differences are paired by group."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from agent.bundle import Bundle, open_bundle
from agent.bundle.preprocess import fit
from agent.config import EngineConfig
from optimize.build import build
from optimize.compare.units import image_boxes
from optimize.dataset import read_image
from optimize.detection_metrics import ImageBoxes, map50_statistic, mean_precision
from optimize.inputs import gather
from optimize.intervals import weighted_interval
from optimize.outcomes import group_of, judge_all
from optimize.pack import pack_bundle
from optimize.quantize.kept import KeptShare, kept_share
from optimize.recipe import ClassRecipe, Recipe
from tools.bench_quantize.figures import Figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimize.dataset import Dataset
    from optimize.outcomes import Outcome

__all__ = ["CRITICAL", "Scored", "built", "drop", "kept", "scored", "without_floor"]

Graph: TypeAlias = Literal["fp32", "cpu"]

CRITICAL = ("inclusion", "scratches")
"""Classes of NEU steel that the bench calls critical: holes of foreign matter and deep scratches tear in forming."""


FLOOR = 0.001
"""COCO's protocol takes a picture's best hundred detections whatever their score; on the line 0.01 is low enough, and
worth 1 point of mAP50 on val less."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One graph on the test split.

    Attributes:
        images: truth and findings of each picture.
        groups: of each.
        map50: with its interval by group.
        map50_95: without.
        ap50: by class.
        unjudged: pictures that could not be judged.
    """

    images: Sequence[ImageBoxes]
    groups: Sequence[str]
    map50: Figure
    map50_95: float
    ap50: Mapping[str, float | None]
    unjudged: int


def built(name: str, onnx: Path, data: Path, classes: Sequence[str], work: Path) -> Bundle:
    """The INT8 bundle, made by `defect-opt build`'s own code; kept, and made again when the model is another."""
    out = work / f"{name}-1.0.0.defect"
    note = out.with_suffix(".model.json")
    key = {"model": _sha256(onnx)}
    if out.is_file() and note.is_file() and json.loads(note.read_text(encoding="utf-8")) == key:
        return open_bundle(out)
    recipe = Recipe(
        name=name,
        model=onnx,
        data=data,
        calib=data,
        out=out,
        classes=tuple(ClassRecipe(name=c, severity="critical" if c in CRITICAL else "major") for c in classes),
    )
    bundle = build(gather(recipe)).bundle
    note.write_text(json.dumps(key), encoding="utf-8")
    return bundle


def without_floor(bundle: Bundle, work: Path) -> Bundle:
    """The same graphs in a bundle that lets findings of all but no score through: for mAP, not for a line."""
    manifest = bundle.manifest
    assert manifest.detection is not None
    bare = dataclasses.replace(
        manifest,
        name=f"{manifest.name}-map",
        detection=dataclasses.replace(manifest.detection, score_above=FLOOR),
        graphs={kind: file for kind, file in manifest.graphs.items() if kind in ("fp32", "cpu")},
        files={},
    )
    data = {file: bundle.graph(kind) for kind, file in bare.graphs.items()}
    return pack_bundle(work / f"{bare.name}-1.0.0.defect", bare, data)


def scored(bundle: Bundle, graph: Graph, test: Dataset) -> Scored:
    """Judge the test pictures with one of a bundle's graphs."""
    outcomes, _ = judge_all(bundle, test, EngineConfig(graph=graph))
    images = [image_boxes(outcome, bundle.manifest, are_all=True) for outcome in outcomes]
    names = bundle.manifest.class_names
    found = mean_precision(images, len(names))
    groups = [group_of(outcome) for outcome in outcomes]
    interval = weighted_interval(groups, map50_statistic(images, len(names)))
    assert found.map50 is not None
    assert found.map50_95 is not None
    return Scored(
        images=images,
        groups=groups,
        map50=Figure(
            value=found.map50,
            low=None if interval is None else interval.low,
            high=None if interval is None else interval.high,
        ),
        map50_95=found.map50_95,
        ap50={name: each.ap50 for name, each in zip(names, found.per_class, strict=True)},
        unjudged=sum(_is_unjudged(outcome) for outcome in outcomes),
    )


def drop(fp32: Scored, int8: Scored, n_classes: int) -> Figure:
    """mAP50 points lost, with an interval of the paired difference by group."""
    before, after = (map50_statistic(each.images, n_classes) for each in (fp32, int8))

    def lost(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(0.5 + (before(weights) - after(weights)) / 2)  # within 0 to 1, as the bootstrap wants it

    interval = weighted_interval(fp32.groups, lost)
    assert interval is not None
    value = float(before(np.ones((1, len(fp32.groups))))[0] - after(np.ones((1, len(fp32.groups))))[0])
    return Figure(value=100 * value, low=100 * (2 * interval.low - 1), high=100 * (2 * interval.high - 1))


def kept(bundle: Bundle, test: Dataset) -> KeptShare:
    """Which of the float graph's detections the CPU's INT8 graph still gives."""
    fp32, int8 = (list(_outputs(bundle, kind, test)) for kind in ("fp32", "cpu"))
    return kept_share(fp32, int8, spec=bundle.manifest.detection)


def _outputs(bundle: Bundle, kind: str, test: Dataset) -> Iterator[tuple[Any, Any]]:
    """Raw boxes and scores of each picture."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = bundle.graph(kind)
    run: Callable[..., Any] = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run
    outputs = bundle.manifest.outputs
    for sample in test:
        image = fit(read_image(sample.path), bundle.manifest.input)
        boxes, scores = run([outputs.boxes, outputs.scores], {bundle.manifest.input.name: image[None]})
        yield boxes, scores


def _is_unjudged(outcome: Outcome) -> bool:
    return outcome.decision.value == "error"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
