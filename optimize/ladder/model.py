"""A rung's file, opened: a float ONNX or a bundle, as a bundle that the agent's own code judges with.

A float ONNX becomes a draft bundle with the recipe's classes and limits, and with the temperature that a build would
fit on val, so that float rungs and bundles are judged by one rule.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.bundle import Bundle, Manifest, fit, open_bundle
from agent.bundle.manifest import Task
from agent.config import EngineConfig
from agent.engines import open_engine
from agent.errors import ImageError
from agent.profile import TimedGraph
from optimize.dataset import read_image
from optimize.ensemble import is_out_of_fold
from optimize.errors import OptimizeError
from optimize.inputs import GRAPH_FILES, classes_of
from optimize.pack import pack_bundle
from optimize.quantize.model import FloatModel, bytes_from_model, model_from_bytes, read_model
from optimize.quantize.summary import GraphSummary, summarize
from optimize.recipe import bundle_name
from optimize.structure import structure_of
from optimize.temperature import fit_temperature

if TYPE_CHECKING:
    from optimize.dataset import Dataset
    from optimize.recipe import Recipe

__all__ = ["RungFile", "RungModel", "open_rung", "task_of"]

DRAFT_VERSION = "draft"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RungFile:
    """One network of a ladder, before anything is known of it.

    Attributes:
        name: what it is called: `top`, `distilled`, `pruned-0.5`, `pruned-0.5-int8`.
        path: a float .onnx, or a .defect.
        graph: which graph of a bundle: `cpu` (INT8), `fp32`, or `auto` for the one that a CPU runs.
        made_from: the rung that it was made from; None for the top.
        first: the bundle that a recovered one took the place of, which holds the float rung's own weights; None where
            nothing was recovered.
    """

    name: str
    path: Path
    graph: str = "auto"
    made_from: str | None = None
    first: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RungModel:
    """The same, opened.

    Attributes:
        file: what was opened.
        sha256: of the file, hex.
        bundle: what judges.
        kind: which of its graphs: `cpu` or `fp32`.
        graph: the ONNX bytes of this graph.
        structure: its structure digest.
        summary: what is in it.
    """

    file: RungFile
    sha256: str
    bundle: Bundle
    kind: str
    graph: bytes
    structure: str
    summary: GraphSummary

    @property
    def name(self) -> str:
        """The rung's."""
        return self.file.name

    def engine_config(self, threads: int) -> EngineConfig:
        """What runs this graph."""
        return EngineConfig(graph="cpu" if self.kind == "cpu" else "fp32", threads=threads)

    def timed(self) -> TimedGraph:
        """As it is timed."""
        manifest = self.bundle.manifest
        return TimedGraph(
            file=self.name,
            structure=self.structure,
            graph=self.graph,
            spec=manifest.input,
            outputs=manifest.outputs,
            label="int8" if self.kind == "cpu" else "fp32",
        )


def task_of(path: Path, recipe: Recipe) -> Task:
    """What a rung's file does: it decides whether a set is read with its boxes.

    Raises:
        ModelError: the float model can't be used.
        BundleError: the bundle can't be used.
    """
    if path.suffix.lower() != ".onnx":
        return open_bundle(path).manifest.task
    return read_model(path, recipe.preprocess, classes=len(recipe.classes) or None, detector=recipe.detector).task


def open_rung(file: RungFile, recipe: Recipe, val: Dataset, folder: Path) -> RungModel:
    """Open a rung.

    Args:
        file: what to open.
        recipe: gives classes, limits and how a foreign float model is read.
        val: labelled images that a float classifier's temperature is fitted on.
        folder: where the draft bundle of a float model is written.

    Raises:
        OptimizeError: the file can't be used.
        BundleError: the bundle can't be used.
    """
    is_float = file.path.suffix.lower() == ".onnx"
    bundle = _drafted(file, recipe, val, folder) if is_float else open_bundle(file.path)
    kind = bundle.manifest.cpu_graph if file.graph == "auto" else file.graph
    if kind not in ("cpu", "fp32"):
        raise OptimizeError(f"{file.name}: graph: got {kind!r}, expected one that a CPU runs: cpu, fp32")
    graph = bundle.graph(kind)
    proto = model_from_bytes(f"{file.path}: {kind}", graph)
    return RungModel(
        file=file,
        sha256=hashlib.sha256(file.path.read_bytes()).hexdigest(),
        bundle=bundle,
        kind=kind,
        graph=graph,
        structure=structure_of(proto),
        summary=summarize(proto, len(graph)),
    )


def _drafted(file: RungFile, recipe: Recipe, val: Dataset, folder: Path) -> Bundle:
    """The float model as a bundle, with the recipe's words and the temperature that val asks for."""
    model = read_model(file.path, recipe.preprocess, classes=len(recipe.classes) or None, detector=recipe.detector)
    manifest = Manifest(
        name=bundle_name(file.name) or "rung",
        version=DRAFT_VERSION,
        task=model.task,
        input=model.input,
        classes=classes_of(recipe, model),
        outputs=model.outputs,
        graphs={"fp32": GRAPH_FILES["fp32"]},
        cpu_graph="fp32",
        policy=recipe.policy_spec(),
        detection=model.detection,
    )
    files = {GRAPH_FILES["fp32"]: bytes_from_model(model.proto)}
    path = folder / f"{bundle_name(file.name) or 'rung'}.defect"
    draft = pack_bundle(path, manifest, files)
    if model.task == "detect" or is_out_of_fold(model.proto):
        return draft
    return pack_bundle(path, dataclasses.replace(manifest, temperature=_temperature(draft, model, val)), files)


def _temperature(draft: Bundle, model: FloatModel, val: Dataset) -> float:
    """As `optimize.measured` fits it for a bundle, on the float graph's logits."""
    index = {name: i for i, name in enumerate(draft.manifest.class_names)}
    logits, labels = [], []
    engine = open_engine(draft, EngineConfig(graph="fp32", threads=1))
    try:
        for sample in val:
            with contextlib.suppress(ImageError):  # it is reported when it is judged
                found = engine.infer(fit(read_image(sample.path), model.input)[None])["logits"].reshape(-1)
                if np.isfinite(found).all() and sample.label in index:
                    logits.append(found)
                    labels.append(index[sample.label])
    finally:
        engine.close()
    return fit_temperature(np.array(logits, dtype=np.float64), np.array(labels)) if logits else 1.0
