"""Parse and build an ONNX graph with the real TensorRT-RTX, without a GPU, and read which layers it runs in INT8.

Why TensorRT-RTX: its wheel (`pip install tensorrt-rtx`) parses and builds on a machine without a driver; `tensorrt`'s
does not install there. Its networks are strongly typed, as all of TensorRT 11's are, so what is INT8 in the plan is
INT8 because the Q/DQ nodes of the graph say so. Only execution needs a GPU.

The engine inspector needs a driver too, so the plan is read instead: it holds its layers as text, one line each,

    corrltn={ name="c1" output={"y"} input={"x" "w"} ...}
    fully_connected={ name="fc" output={"y"} input={"x" "w"} ...}
    tensor={ ... dims={ 16 4 3 3 } name="w" ... type=int8 }

That form is undocumented, so it is checked against the version that pyproject.toml pins, and `TrtError` says when
nothing was found in a plan.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["Int8Share", "PlanLayer", "TrtError", "build_plan", "int8_convs", "int8_share", "log_lines", "plan_layers"]

TENSOR = re.compile(r'tensor=\{[^\n]*? dims=\{ ([^}]*)\}[^\n]*?name="([^"]+)"[^\n]*? type=(\w+)')
LAYER = re.compile(r'\n\s*(?:corrltn|fully_connected)=\{ name="([^"]*)" output=\{[^}]*\} input=\{([^}]*)\}')
NUMBER = re.compile(r"_U\d+$")
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class TrtError(Exception):
    """TensorRT-RTX refused a graph, or its plan could not be read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanLayer:
    """A convolution or linear layer in a built plan.

    Attributes:
        name: the ONNX node's name (TensorRT puts a number behind it where it changed the layer; that is taken off).
        types: element types of its inputs: values first, then weights.
    """

    name: str
    types: tuple[str, ...]

    @property
    def is_int8(self) -> bool:
        """Whether both values and weights are INT8."""
        return len(self.types) >= 2 and self.types[:2] == ("int8", "int8")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Int8Share:
    """How many layers that the graph means to be INT8 are INT8 in the plan.

    Attributes:
        int8: those that are.
        meant: those whose values and weights both come from DequantizeLinear in the ONNX graph.
        floats: names of plan layers that compute in float; those meant to be float are among them.
    """

    int8: int
    meant: int
    floats: tuple[str, ...]


class _Log:
    """TensorRT takes one logger per process; ours is made once, keeps what it hears, and is cleared before each use."""

    lines: list[tuple[str, str]] = []  # noqa: RUF012  # one per process, on purpose
    logger: Any = None


def build_plan(graph: bytes) -> bytes:
    """Parse and build a graph.

    Args:
        graph: an ONNX file's bytes. A dynamic batch is built for 1.

    Returns:
        The serialized plan.

    Raises:
        ModuleNotFoundError: tensorrt-rtx is not installed.
        TrtError: the parser or builder refused it; the message has the node's name and TensorRT's own words.
    """
    trt, logger = _tensorrt()
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise TrtError("parser: " + "; ".join(f"{error.node_name()}: {error.desc()}" for error in errors))
    config = builder.create_builder_config()
    _add_profile(builder, network, config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "; ".join(text for severity, text in _Log.lines if severity in ("ERROR", "INTERNAL_ERROR"))
        raise TrtError(f"builder: {said or 'no plan, and not a word why'}")
    return bytes(plan)


def log_lines(severity: str) -> list[str]:
    """What TensorRT said with this severity (`WARNING`, `ERROR`, ...) during the last `build_plan`."""
    return [text for kind, text in _Log.lines if kind == severity]


def plan_layers(plan: bytes) -> tuple[PlanLayer, ...]:
    """The convolutions and linear layers of a plan, with the element types they read.

    Raises:
        TrtError: the plan holds no text that this reader knows.
    """
    text = plan.decode("latin-1")
    types = {name: kind.lower() for _dims, name, kind in TENSOR.findall(text)}
    if not types:
        raise TrtError("the plan holds no tensor descriptions: this TensorRT-RTX writes another form than 1.7.1 does")
    return tuple(
        PlanLayer(
            name=NUMBER.sub("", name),
            types=tuple(types.get(tensor, "?") for tensor in re.findall(r'"([^"]+)"', inputs)),
        )
        for name, inputs in LAYER.findall(text)
    )


def int8_share(graph: bytes) -> Int8Share:
    """Build a Q/DQ graph, and compare what is INT8 in the plan with what the graph means to be.

    Raises:
        ModuleNotFoundError: tensorrt-rtx is not installed.
        TrtError: TensorRT-RTX refused it, or its plan could not be read.
    """
    layers = plan_layers(build_plan(graph))
    return Int8Share(
        int8=sum(layer.is_int8 for layer in layers),
        meant=len(list(meant_layers(graph))),
        floats=tuple(layer.name for layer in layers if not layer.is_int8),
    )


def int8_convs(graph: bytes) -> tuple[int, int]:
    """INT8 layers in the plan, and layers meant to be: `trt_int8_convs` of `tools/bench` is their ratio.

    Raises:
        ModuleNotFoundError: tensorrt-rtx is not installed.
        TrtError: TensorRT-RTX refused it, or its plan could not be read.
    """
    share = int8_share(graph)
    return share.int8, share.meant


def meant_layers(graph: bytes) -> Iterator[str]:
    """Names of the layers whose values and weights both come from DequantizeLinear."""
    import onnx

    model = onnx.load_model_from_string(graph)
    makers: Mapping[str, onnx.NodeProto] = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        sources = [makers.get(name) for name in node.input[:2]]
        if node.op_type in CONVOLUTIONS and all(s is not None and s.op_type == "DequantizeLinear" for s in sources):
            yield node.name or node.output[0]


def _tensorrt() -> tuple[Any, Any]:
    """The module and this process's one logger, emptied."""
    import tensorrt_rtx as trt

    if _Log.logger is None:

        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                _Log.lines.append((str(severity).rpartition(".")[2], message))

        _Log.logger = Logger()
    _Log.lines.clear()
    return trt, _Log.logger


def _add_profile(builder: Any, network: Any, config: Any) -> None:
    """Give every dynamic dimension the size 1: only a batch may be dynamic here."""
    profile, is_dynamic = builder.create_optimization_profile(), False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 in shape:
            is_dynamic = True
            fixed = tuple(1 if side == -1 else side for side in shape)
            profile.set_shape(tensor.name, fixed, fixed, fixed)
    if is_dynamic:
        config.add_optimization_profile(profile)
