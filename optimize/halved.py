"""TensorRT's graph in FP16, held against the float32 one that it was made of; or the reason why there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.errors import ModelError
from optimize.progress import Progress, SilentProgress
from optimize.quantize.graph import Graph
from optimize.quantize.half import halve, magnitudes
from optimize.quantize.interpret import Interpreter, session_of
from optimize.quantize.onnx_file import model_from_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ByOperator", "Halved", "halved"]

PICTURES = 8
"""Pictures that show how far values reach, and what FP16 changes."""

LOW_SNR_DB = 25.0
"""Below it FP16 changes a score by more than INT8 does in a good network; 31 to 67 dB were seen on ours."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Halved:
    """The graph `trt16`, or why there is none.

    Attributes:
        graph: its ONNX bytes; None where FP16 can't hold the network: TensorRT then takes `trt`.
        snr_db: how far its outputs lie from those of `trt`, the worst output; None without a graph.
        in_float32: nodes that stay float32, to the reason in words.
        warnings: what the user should know, one sentence each.
    """

    graph: bytes | None
    snr_db: float | None
    in_float32: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for the report."""
        snr = None if self.snr_db is None else round(self.snr_db, 1)
        return {"made": self.graph is not None, "snr_db": snr, "in_float32": dict(self.in_float32)}


def halved(graph: bytes, pictures: Sequence[NDArray[np.uint8]], progress: Progress | None = None) -> Halved:
    """Make it, and compute both on some pictures with ONNX Runtime.

    ONNX Runtime's CPU kernels compute FP16 in float32, and a whole graph even without rounding between two of them: an
    overflow would not be seen. So the FP16 graph is run operator by operator, and each result is rounded to FP16. A GPU
    rounds less often, as it joins a convolution with the quantizer behind it. Not seen here: what a GPU rounds within
    an operator, such as a sum in FP16.

    Args:
        graph: TensorRT's Q/DQ graph in float32.
        pictures: calibration pictures, each (1, height_px, width_px, 3) uint8 RGB.
        progress: hears where we are.
    """
    (progress or SilentProgress()).step("writing TensorRT's graph in FP16")
    some = [pictures[int(i)] for i in np.unique(np.linspace(0, len(pictures) - 1, PICTURES).round().astype(int))]
    try:
        made = halve(graph, magnitudes(graph, some))
        snr = _snr_db(graph, made.graph, some)
    except ModelError as error:
        return _none(error.message)
    if snr is None:
        return _none("FP16 gives values that are no numbers")
    warnings = () if snr >= LOW_SNR_DB else (f"TensorRT's graph in FP16 lies {snr:.1f} dB from its float32 form",)
    return Halved(graph=made.graph, snr_db=snr, in_float32=made.in_float32, warnings=warnings)


def _none(why: str) -> Halved:
    told = f"no FP16 form of TensorRT's graph, which makes it slower on TensorRT 10 and 11: {why}"
    return Halved(graph=None, snr_db=None, in_float32={}, warnings=(told,))


class ByOperator:
    """Runs a graph operator by operator, each result in the type that the graph states.

    Args:
        graph: the bytes of an ONNX file with one input.
    """

    def __init__(self, graph: bytes) -> None:
        self._graph = Graph(model_from_bytes("TensorRT's graph in FP16", graph))
        self._run = Interpreter(self._graph).run
        self._last = {name: i for i, node in enumerate(self._graph.nodes) for name in node.input}

    def run(self, names: Sequence[str], picture: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """The named outputs."""
        values: dict[str, NDArray[Any]] = {self._graph.inputs()[0].name: picture}
        for i, node in enumerate(self._graph.nodes):
            outputs = self._run(node, [values.get(name) for name in node.input])
            values.update(zip((name for name in node.output if name), outputs, strict=True))
            for name in node.input:
                if self._last[name] == i and name not in names:
                    values.pop(name, None)
        return [values[name] for name in names]


def _snr_db(graph: bytes, half: bytes, pictures: Sequence[NDArray[np.uint8]]) -> float | None:
    """Signal over difference of the worst output in decibels; None where one is no number."""
    single, rounded = session_of(graph), ByOperator(half)
    source = single.get_inputs()[0].name
    names = [output.name for output in single.get_outputs()]
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for picture in pictures:
        pairs = zip(single.run(names, {source: picture}), rounded.run(names, picture), strict=True)
        for place, (expected, found) in enumerate(pairs):
            signal[place] += float(np.square(expected, dtype=np.float64).sum())
            noise[place] += float(np.square(expected.astype(np.float64) - found).sum())
    if not np.isfinite(noise).all():
        return None
    tiny = np.finfo(np.float64).tiny
    return float(10 * np.log10(np.maximum(signal, tiny) / np.maximum(noise, 1e-12 * signal + tiny)).min())
