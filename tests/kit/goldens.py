"""Bundles with golden pictures, whose references are what the graphs themselves give; and with graphs for TensorRT."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from agent.bundle import Bundle, Golden, golden_files, golden_name, golden_outputs
from agent.engines.onnxrt import OnnxRuntimeEngine
from tests.kit.bundles import kit_manifest, make_bundle
from tests.kit.models import classifier

__all__ = ["COLOURS", "confused_classifier", "golden_bundle", "qdq_classifier", "tensorrt_bundle"]

COLOURS = {"good": (255, 255, 255), "scratch": (0, 0, 0), "stain": (255, 0, 0)}
"""RGB of the kit's classes."""


def golden_bundle(
    path: Path,
    *,
    graph: bytes | None = None,
    reference: bytes | None = None,
    count: int = 12,
    labels: Sequence[str] = tuple(COLOURS),
    **changes: Any,
) -> Bundle:
    """A classifier's bundle with `count` goldens, in turn of each label.

    Args:
        path: the file, or a folder.
        graph: ONNX bytes of all graphs; the colour classifier when None.
        reference: what gave the goldens' outputs at the build, if not the graphs: then the engine answers otherwise.
        count: how many goldens.
        labels: of the goldens.
        **changes: fields of `Manifest`, and `files`.
    """
    files = dict(changes.pop("files", {}))
    manifest = kit_manifest(**changes)
    model = classifier() if graph is None else graph
    graphs = {kind: files.get(name, model) for kind, name in manifest.graphs.items()}
    engines = {
        kind: OnnxRuntimeEngine(reference or data, threads=1, label=kind, spec=manifest.input, outputs=manifest.outputs)
        for kind, data in graphs.items()
        if kind != "trt16"
    }
    goldens = []
    for i in range(count):
        label = labels[i % len(labels)]
        image = _picture(label, i, manifest.input.width_px, manifest.input.height_px)
        outputs = {kind: golden_outputs(engine.infer(image[None]), manifest) for kind, engine in engines.items()}
        goldens.append(Golden(file=golden_name(i), label=label, image=image, outputs=outputs))
    for engine in engines.values():
        engine.close()
    return make_bundle(path, graph=graph, files={**files, **golden_files(goldens)}, **changes)


def tensorrt_bundle(path: Path, *, count: int = 12, **changes: Any) -> Bundle:
    """A bundle with the Q/DQ graph for TensorRT, too."""
    graphs = {"fp32": "model.fp32.onnx", "cpu": "model.cpu.onnx", "trt": "model.trt.onnx"}
    files = {"model.trt.onnx": qdq_classifier()}
    return golden_bundle(path, count=count, graphs=graphs, files=files, **changes)


@functools.cache
def confused_classifier() -> bytes:
    """The colour classifier with good and scratch exchanged: white is a scratch, black is good."""
    model = onnx.load_model_from_string(classifier())
    for entry in model.graph.initializer:
        if entry.name in {"head", "head_cam"}:
            entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry)[[1, 0, 2]], entry.name))
    data = model.SerializeToString()
    assert isinstance(data, bytes)
    return data


@functools.cache
def qdq_classifier() -> bytes:
    """The colour classifier with Q/DQ pairs before its convolution, symmetric S8, weights per channel."""
    model = onnx.load_model_from_string(classifier())
    graph = model.graph
    conv = next(node for node in graph.node if node.op_type == "Conv")
    (weights,) = [entry for entry in graph.initializer if entry.name == conv.input[1]]
    values = numpy_helper.to_array(weights)
    scale = np.abs(values).max(axis=(1, 2, 3)) / 127
    constants = {
        "q.scale": np.float32(1 / 127),
        "q.zero": np.int8(0),
        "w.int8": np.rint(values / scale[:, None, None, None]).astype(np.int8),
        "w.scale": scale.astype(np.float32),
        "w.zero": np.zeros(len(scale), np.int8),
    }
    place = list(graph.node).index(conv)
    added = [
        helper.make_node("QuantizeLinear", [conv.input[0], "q.scale", "q.zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "q.scale", "q.zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w.int8", "w.scale", "w.zero"], ["w.dq"], axis=0),
    ]
    for offset, node in enumerate(added):
        graph.node.insert(place + offset, node)
    conv.input[0], conv.input[1] = "dq", "w.dq"
    graph.initializer.remove(weights)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    assert isinstance(data, bytes)
    return data


def _picture(label: str, seed: int, width: int, height: int) -> Any:
    """Near the label's colour, and no two alike."""
    noise = np.random.default_rng(seed).integers(-20, 20, (height, width, 3))
    return np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
