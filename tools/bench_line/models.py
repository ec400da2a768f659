"""The bench's models: convolutions with fixed weights, as many as cost what was asked for on this machine."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.bundle import ClassSpec, DetectionSpec, InputSpec, Manifest, Outputs, PolicySpec
from agent.bundle.detection import PriorLevel, detection_to_json
from optimize.pack import pack_bundle
from optimize.quantize import QuantizeOptions, Quantizer, read_model
from tools.bench_quantize.speed import latencies_ms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tools.bench_line.frames import BgrImage

__all__ = ["Model", "Precision", "Task", "fitted_model", "float_graph", "save_bundle", "tiny_model"]

Task = Literal["classify", "detect"]
Precision = Literal["fp32", "int8"]

SIDE_PX = 160
TINY_PX = 32
CHANNELS = 32
STRIDE = 4
CLASSES = (("good", "ok"), ("scratch", "major"), ("stain", "minor"))
DETECTED = (("scratch", "major"), ("stain", "minor"))
FOUND = (205, 826, 1234)
"""Priors whose score is high whatever is seen: a detector that finds three defects has something to decode."""

TRIED_LAYERS = (1, 17)
"""Two lengths whose costs give the cost of a layer; more layers are then computed, not tried."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model of the bench.

    Attributes:
        task: what it does.
        precision: of `graph`.
        asked_ms: what one inference was to cost.
        layers: convolutions that this takes here.
        graph: ONNX bytes, uint8 (1, side_px, side_px, 3) RGB in.
        side_px: of its input.
    """

    task: Task
    precision: Precision
    asked_ms: float
    layers: int
    graph: bytes
    side_px: int = SIDE_PX

    @property
    def name(self) -> str:
        """As the rows call it."""
        return f"{self.task} {self.precision} {self.asked_ms:g} ms"


def fitted_model(task: Task, precision: Precision, asked_ms: float, frames: Sequence[BgrImage], work: Path) -> Model:
    """A model whose inference costs about so much on one core of this machine.

    Args:
        task: classifier or detector.
        precision: `int8` is our own quantization of the same graph.
        asked_ms: milliseconds.
        frames: pictures of the bench; they calibrate INT8 and are run to measure.
        work: kept here between runs, so that every run measures the same model.
    """
    kept = work / f"{task}-{precision}-{asked_ms:g}ms.onnx"
    if not kept.is_file():
        layers = _layers_for(task, precision, asked_ms, frames, work)
        kept.write_bytes(_graph(task, precision, layers, frames, work))
    graph = kept.read_bytes()
    layers = sum(node.op_type in {"Conv", "QLinearConv"} for node in onnx.load_model_from_string(graph).graph.node)
    return Model(task=task, precision=precision, asked_ms=asked_ms, layers=layers, graph=graph)


def tiny_model() -> Model:
    """A classifier of microseconds: for soaks, in which the agent itself is what runs."""
    return Model(task="classify", precision="fp32", asked_ms=0.0, layers=0, graph=_tiny_graph(), side_px=TINY_PX)


def _tiny_graph() -> bytes:
    constants = {"head": np.zeros((len(CLASSES), 3)), "bias": np.array([6.0, 0.0, 0.0])}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["mean", "head", "bias"], ["logits"], transB=1),
    ]
    return _serialized(nodes, {"logits": [1, len(CLASSES)]}, constants, {}, side_px=TINY_PX)


def _layers_for(task: Task, precision: Precision, asked_ms: float, frames: Sequence[BgrImage], work: Path) -> int:
    graphs = {str(n): _graph(task, precision, n, frames, work) for n in TRIED_LAYERS}
    tensors = [fitted(frame) for frame in frames[:4]]
    few, many = (statistics.median(times) for times in latencies_ms(graphs, tensors, rounds=30).values())
    each = max((many - few) / (TRIED_LAYERS[1] - TRIED_LAYERS[0]), 1e-3)
    return max(1, round(TRIED_LAYERS[0] + (asked_ms - few) / each))


def _graph(task: Task, precision: Precision, layers: int, frames: Sequence[BgrImage], work: Path) -> bytes:
    graph = float_graph(task, layers)
    if precision == "fp32":
        return graph
    source = work / f".{task}-{layers}.onnx"
    source.write_bytes(graph)
    model = read_model(source)
    # How good the numbers are does not matter here, only what they cost.
    options = QuantizeOptions(method="minmax", equalize="none", correction="none")
    tensors = [fitted(frame) for frame in frames[:8]]
    integer = Quantizer(model, tensors, options).quantize("cpu", is_fitted=False).graph
    source.unlink()
    return integer


def fitted(frame: BgrImage) -> NDArray[np.uint8]:
    """A picture as the graph takes it: (1, SIDE_PX, SIDE_PX, 3) uint8 RGB."""
    from agent.bundle.preprocess import fit

    return fit(frame, InputSpec(width_px=SIDE_PX, height_px=SIDE_PX))[None]


def float_graph(task: Task, layers: int) -> bytes:
    """A stem of stride 4, so many 3 x 3 convolutions with ReLU, and the task's head; the same bytes every time."""
    rng = np.random.default_rng(9)
    constants: dict[str, Any] = {"half": np.float32(128)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "half"], ["centred"]),
        helper.make_node("Div", ["centred", "half"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["layer0"], perm=[0, 3, 1, 2]),
    ]
    before = 3
    for i in range(layers + 1):
        shape = (CHANNELS, before, 4, 4) if i == 0 else (CHANNELS, before, 3, 3)
        constants[f"weights{i}"] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        way: dict[str, Any] = {"strides": [STRIDE, STRIDE]} if i == 0 else {"pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [f"layer{i}", f"weights{i}"], [f"conv{i}"], **way))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [f"layer{i + 1}"]))
        before = CHANNELS
    head = _classifier_head if task == "classify" else _detector_head
    more, outputs = head(f"layer{layers + 1}", constants, rng)
    metadata = {"classes": json.dumps([spec.name for spec in _classes(task)])}
    if task == "detect":
        metadata["detection"] = json.dumps(detection_to_json(_detection()))
    return _serialized([*nodes, *more], outputs, constants, metadata)


def _classifier_head(
    features: str, constants: dict[str, Any], rng: np.random.Generator
) -> tuple[list[onnx.NodeProto], dict[str, list[int]]]:
    constants["head"] = rng.standard_normal((len(CLASSES), CHANNELS)) * 0.01
    constants["bias"] = np.array([6.0, 0.0, 0.0])  # nearly all parts are good, as on a line
    nodes = [
        helper.make_node("GlobalAveragePool", [features], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head", "bias"], ["logits"], transB=1),
    ]
    return nodes, {"logits": [1, len(CLASSES)]}


def _detector_head(
    features: str, constants: dict[str, Any], rng: np.random.Generator
) -> tuple[list[onnx.NodeProto], dict[str, list[int]]]:
    count, classes = (SIDE_PX // STRIDE) ** 2, len(DETECTED)
    constants["weights_boxes"] = rng.standard_normal((4, CHANNELS, 1, 1)) * 0.01
    constants["bias_boxes"] = np.full(4, 2.0)
    constants["weights_scores"] = rng.standard_normal((classes, CHANNELS, 1, 1)) * 0.01
    scores = np.full((1, count, classes), -6.0)
    scores[0, FOUND, 0] = -1.0  # 0.27: found, told, and under the limits, so that the part stays good
    constants["scores_base"] = scores
    nodes = []
    for name, width in (("boxes", 4), ("scores", classes)):
        inputs = [features, f"weights_{name}", *(["bias_boxes"] if name == "boxes" else [])]
        nodes += [
            helper.make_node("Conv", inputs, [f"{name}_map"]),
            helper.make_node("Transpose", [f"{name}_map"], [f"{name}_last"], perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", [f"{name}_last", f"{name}_shape"], ["boxes" if width == 4 else "scores_seen"]),
        ]
        constants[f"{name}_shape"] = np.array([1, count, width], dtype=np.int64)
    nodes.append(helper.make_node("Add", ["scores_seen", "scores_base"], ["scores"]))
    return nodes, {"boxes": [1, count, 4], "scores": [1, count, classes]}


def _serialized(
    nodes: Sequence[onnx.NodeProto],
    outputs: dict[str, list[int]],
    constants: dict[str, Any],
    metadata: dict[str, str],
    side_px: int = SIDE_PX,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "bench_line",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, side_px, side_px, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [
            numpy_helper.from_array(value if value.dtype == np.int64 else value.astype(np.float32), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _classes(task: Task) -> tuple[ClassSpec, ...]:
    named = CLASSES if task == "classify" else DETECTED
    return tuple(ClassSpec(name=name, severity=severity) for name, severity in named)  # type: ignore[arg-type]


def _detection() -> DetectionSpec:
    side = SIDE_PX // STRIDE
    level = PriorLevel(rows=side, columns=side, step_x_px=STRIDE, step_y_px=STRIDE, sizes_px=((STRIDE, STRIDE),))
    return DetectionSpec(boxes="distances", scores="sigmoid", levels=(level,))


def save_bundle(model: Model, path: Path) -> Path:
    """Write the model as a bundle that a station runs."""
    kind = "cpu" if model.precision == "int8" else "fp32"
    is_detector = model.task == "detect"
    manifest = Manifest(
        name="bench-line",
        version="1.0.0",
        task=model.task,
        input=InputSpec(width_px=model.side_px, height_px=model.side_px),
        classes=_classes(model.task),
        outputs=Outputs(boxes="boxes", scores="scores") if is_detector else Outputs(logits="logits"),
        graphs={kind: f"model.{kind}.onnx"},
        cpu_graph=kind,
        policy=PolicySpec(defect_above=0.5, review_above=0.4),
        detection=_detection() if is_detector else None,
    )
    pack_bundle(path, manifest, {f"model.{kind}.onnx": model.graph})
    return path
