"""The emitter for ONNX Runtime's CPU kernels, x86 and ARM: U8 activations (asymmetric), S8 weights per channel.

Calibration, ranges and Q/DQ placement are ONNX Runtime's `quantize_static`. Ours is what it can't know: which part
stays float, and that the camera's bytes are the first layer's quantized input already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from agent.errors import AgentError
from optimize.errors import ModelError
from optimize.quantize.byte_input import ByteInput, find_byte_input, join_byte_input
from optimize.quantize.fusion import HEAD_REASON, FloatLayer, Fusion, fuse
from optimize.quantize.graph import Graph, zones
from optimize.quantize.model import FloatModel, bytes_from_model

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["Method", "QuantizeOptions", "Quantized", "WeightBits", "quantize_cpu"]

MAX_CHUNK = 16
"""Pictures whose tensors are in memory at once: for a ResNet-18 at 224 px that is some 200 MB."""

Method = Literal["minmax", "percentile", "entropy"]
WeightBits = Literal[7, 8]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How ranges are found and how many bits weights get.

    Attributes:
        method: `minmax` keeps every value seen; `percentile` cuts rare ones off; `entropy` cuts where the histogram
            loses least information.
        percentile: share of values kept by `percentile`, in percent.
        weight_bits: 7 keeps sums of two products within 16 bits, so x86 CPUs without VNNI, which add them with
            saturation, give the same answers as all others; 8 is a little finer and only right with VNNI or on ARM.
    """

    method: Method = "minmax"
    percentile: float = 99.99
    weight_bits: WeightBits = 7


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantized:
    """An INT8 graph.

    Attributes:
        graph: its ONNX bytes; inputs and outputs as the float graph has them.
        fusion: what ONNX Runtime makes of it.
        warnings: what the user should know, one sentence each.
    """

    graph: bytes
    fusion: Fusion
    warnings: tuple[str, ...]

    @property
    def float_layers(self) -> tuple[FloatLayer, ...]:
        """Layers with weights that stay float, with the reason."""
        return self.fusion.float_layers


def quantize_cpu(
    model: FloatModel, tensors: Sequence[NDArray[np.uint8]], options: QuantizeOptions | None = None
) -> Quantized:
    """Make the INT8 graph for CPUs.

    Args:
        model: a checked float classifier.
        tensors: calibration pictures, each (1, height_px, width_px, 3) uint8 RGB, fitted as the device fits them.
        options: how; None takes the defaults.

    Returns:
        The INT8 graph. The same model, pictures and options give the same bytes.

    Raises:
        ModelError: ONNX Runtime can't optimize or quantize the graph.
    """
    options = options or QuantizeOptions()
    with _translated(model.path):
        prepared = _prepared(model)
    graph = Graph(prepared)
    places = zones(graph, model.logits)
    bytes_in = find_byte_input(graph, model.input.name)
    feed = _Feed(model.input.name, tensors)
    arguments = _arguments(options, bytes_in, in_float=places.preamble | places.head, nodes=graph.nodes)
    arguments["extra_options"] |= _chunks(options, len(feed))
    with _translated(model.path):
        emitted = _quantize_static(prepared, feed, arguments)
    joined = bytes_in is not None and join_byte_input(emitted, bytes_in)
    del emitted.metadata_props[:]
    emitted.metadata_props.extend(model.proto.metadata_props)
    data = bytes_from_model(emitted)
    with _translated(model.path):
        fusion = fuse(data, source=model.input.name, head=places.head)
    return Quantized(graph=data, fusion=fusion, warnings=tuple(_warnings(fusion, joined=joined)))


class _Feed:
    """Calibration pictures in the shape of ONNX Runtime's CalibrationDataReader; a range of them at a time."""

    def __init__(self, name: str, tensors: Sequence[NDArray[np.uint8]]) -> None:
        self._name = name
        self._tensors = tensors
        self.set_range(0, len(tensors))

    def __len__(self) -> int:
        return len(self._tensors)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        if self._next >= self._end:
            return None
        self._next += 1
        return {self._name: self._tensors[self._next - 1]}


def _prepared(model: FloatModel) -> onnx.ModelProto:
    """Fold constants and batch norms, infer shapes, name every node: what `quantize_static` wants to be given."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="defect-opt-") as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        source.write_bytes(bytes_from_model(model.proto))
        # Shapes are static here; the symbolic inference would only add sympy to what must be installed.
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        prepared = onnx.load(str(target))
    for index, node in enumerate(prepared.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return prepared


def _arguments(
    options: QuantizeOptions,
    bytes_in: ByteInput | None,
    *,
    in_float: frozenset[str],
    nodes: Sequence[onnx.NodeProto],
) -> dict[str, Any]:
    """The arguments of `quantize_static` beside the model and the pictures."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

    extra: dict[str, Any] = {"CalibPercentile": options.percentile} if options.method == "percentile" else {}
    if bytes_in is not None:
        exact = {"scale": np.array(bytes_in.scale, np.float32), "zero_point": np.array(bytes_in.zero_point, np.uint8)}
        extra["TensorQuantOverrides"] = {bytes_in.tensor: [exact]}
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    return {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "reduce_range": options.weight_bits == 7,
        "nodes_to_exclude": [node.name for node in nodes if node.output[0] in in_float],
        "calibrate_method": methods[options.method],
        "extra_options": extra,
    }


def _chunks(options: QuantizeOptions, count: int) -> dict[str, int]:
    """Histograms a few pictures at a time: ONNX Runtime would keep every tensor of every picture until the end."""
    if options.method == "minmax":
        return {}
    return {"CalibStridedMinMax": max(n for n in range(1, MAX_CHUNK + 1) if count % n == 0)}


def _quantize_static(model: onnx.ModelProto, feed: _Feed, arguments: dict[str, Any]) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization import quantize_static

    with tempfile.TemporaryDirectory(prefix="defect-opt-") as folder:
        source, target = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(source))
        # Its histogram calibrators print to standard output, where --json promises one document and nothing else.
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(str(source), str(target), feed, **arguments)
        return onnx.load(str(target))


def _warnings(fusion: Fusion, *, joined: bool) -> Iterator[str]:
    left = [layer.name for layer in fusion.float_layers if layer.why != HEAD_REASON]
    if left:
        yield f"{len(left)} layers outside the head stay float: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}"
    if not joined:
        yield (
            "the normalization is not (byte - z) * s with one whole z and one s for all channels, so the picture is "
            "converted to float and quantized again before the first layer; (x - 128) / 128 costs nothing"
        )
    elif not fusion.reads_bytes:
        yield "ONNX Runtime does not run the first layer on the camera's bytes"


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn what ONNX Runtime raises into a sentence about the model."""
    try:
        with warnings.catch_warnings():
            # Older releases use what onnx has deprecated since; the user can do nothing about it.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except AgentError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common root but this
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(
            f"{path}: ONNX Runtime can't quantize it ({type(error).__name__}: {first})",
            hint="`defect-opt inspect MODEL.onnx` shows what is in it",
        ) from error
