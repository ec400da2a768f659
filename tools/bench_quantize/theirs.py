"""What a user would reach for: ONNX Runtime's `quantize_static` and NNCF's ONNX backend, on the same pictures.

Both get the graph as their documentation asks (`quant_pre_process` first) and quantize all of it. Their weights come
in two widths: 8 bits as by default, and reduced (7 bits), which their documentation advises for CPUs without VNNI.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench_quantize.sessions import open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["NncfSettings", "Unavailable", "make_nncf", "ort_percentile", "ort_static", "preprocessed", "quantize_nncf"]

NNCF_PACKAGES = ("nncf>=3.0,<4", "onnx>=1.17", "onnxruntime>=1.20", "numpy")
STRIDE = 16


class Unavailable(Exception):  # noqa: N818 - it says what is missing, and is no fault
    """A peer can't be measured here; the message is why."""


def preprocessed(graph: bytes) -> bytes:
    """The graph as ONNX Runtime's documentation asks for it: batch norms and constants folded, shapes inferred."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="bench-") as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        source.write_bytes(graph)
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        return target.read_bytes()


def ort_static(graph: bytes, tensors: Sequence[NDArray[Any]], *, reduce_range: bool) -> bytes:
    """`quantize_static` as it comes: one scale per tensor, min-max. U8S8, as its documentation advises on x86."""
    return _quantize_static(graph, tensors, {"reduce_range": reduce_range})


def ort_percentile(graph: bytes, tensors: Sequence[NDArray[Any]], *, reduce_range: bool, cut: bool = True) -> bytes:
    """`quantize_static` with a scale per channel; `cut` at percentile 99.99, else min-max."""
    from onnxruntime.quantization import CalibrationMethod

    arguments: dict[str, Any] = {"per_channel": True, "reduce_range": reduce_range}
    if cut:
        count = len(tensors)
        # In strides, or every tensor of every picture would be in memory at once.
        extra = {"CalibPercentile": 99.99, "CalibStridedMinMax": max(n for n in range(1, STRIDE + 1) if count % n == 0)}
        arguments |= {"calibrate_method": CalibrationMethod.Percentile, "extra_options": extra}
    return _quantize_static(graph, tensors, arguments)


def _quantize_static(graph: bytes, tensors: Sequence[NDArray[Any]], arguments: dict[str, Any]) -> bytes:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="bench-") as folder, _quiet():
        source, target = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(
            str(source), str(target), _Feed(graph, tensors), quant_format=QuantFormat.QDQ, **types, **arguments
        )
        return target.read_bytes()


class _Feed:
    """Pictures in the shape of ONNX Runtime's CalibrationDataReader."""

    def __init__(self, graph: bytes, tensors: Sequence[NDArray[Any]]) -> None:
        import onnx

        self._name = onnx.load_model_from_string(graph).graph.input[0].name
        self._tensors = tensors
        self.set_range(0, len(tensors))

    def __len__(self) -> int:
        return len(self._tensors)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        if self._next >= self._end:
            return None
        self._next += 1
        return {self._name: self._tensors[self._next - 1]}


def make_nncf(folder: Path) -> Path:
    """The Python of NNCF's own environment, made when it is absent: its pins must not touch ours.

    Raises:
        Unavailable: it can't be installed here.
    """
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        print(f"bench: installing NNCF into {folder} (once, 1 to 3 minutes)", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
            install = [str(python), "-m", "pip", "install", "--quiet", *NNCF_PACKAGES]
            subprocess.run(install, check=True, capture_output=True, text=True)
            subprocess.run([str(python), "-c", "import nncf, onnxruntime"], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise Unavailable(f"NNCF can't be installed here: {said[-1] if said else error}") from error
        (folder / "ready").touch()
    return python


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NncfSettings:
    """How `nncf.quantize` is called; as it stands here, its own defaults.

    Attributes:
        fast: its fast bias correction; False takes the full one.
        preset: `performance`, or `mixed` (asymmetric activations).
        overflow: `default` reduces the first layer's weights, `disable` none, `enable` all.
        ranges: `default` (means of each picture's extremes), or `minmax` (extremes over all).
        ignored: nodes that stay float.
    """

    fast: bool = True
    preset: str = "performance"
    overflow: str = "default"
    ranges: str = "default"
    ignored: tuple[str, ...] = ()


def quantize_nncf(python: Path, graph: bytes, tensors: Sequence[NDArray[Any]], settings: NncfSettings) -> bytes:
    """`nncf.quantize` on an ONNX graph, in NNCF's environment.

    Args:
        python: that environment's.
        graph: the float graph; NNCF gets its body alone, see `_body`.
        tensors: what is calibrated on.
        settings: how.

    Raises:
        Unavailable: it fails; the message is its last line.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        source, target, data = (Path(folder) / name for name in ("float.onnx", "int8.onnx", "calib.npy"))
        body = _body(graph, tensors)
        source.write_bytes(body.graph)
        np.save(data, np.stack(body.tensors))
        script = Path(__file__).with_name("nncf_run.py")
        words = [str(source), str(data), str(target), json.dumps(dataclasses.asdict(settings))]
        done = subprocess.run(
            [str(python), str(script), *words], capture_output=True, text=True, check=False, cwd=folder
        )
        if done.returncode or not target.is_file():
            said = done.stderr.strip().splitlines()
            raise Unavailable(f"NNCF fails: {said[-1] if said else done.returncode}")
        return _joined(body.preamble, target.read_bytes())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Body:
    """A classifier as PyTorch would export it: a normalized float input, one output; and what stood before it."""

    graph: bytes
    tensors: tuple[NDArray[np.float32], ...]
    preamble: bytes


def _body(graph: bytes, tensors: Sequence[NDArray[Any]]) -> _Body:
    """Cut off the conversion of bytes to a normalized picture, and outputs other than the logits.

    NNCF's full bias correction fails on graphs with either, and its default ranges clip the camera's bytes.
    """
    import onnx
    from onnx.utils import Extractor

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(_plainly_named(graph)))
    source, logits = model.graph.input[0].name, _logits(model)
    first = next(node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
    cut = first.input[0]
    preamble = bytes(Extractor(model).extract_model([source], [cut]).SerializeToString())
    body = Extractor(model).extract_model([cut], [logits])
    before = open_session(preamble, "exact")
    normalized = tuple(before.run(None, {source: tensor})[0] for tensor in tensors)
    return _Body(graph=bytes(body.SerializeToString()), tensors=normalized, preamble=preamble)


def _joined(preamble: bytes, body: bytes) -> bytes:
    """The preamble and a body that reads its output, as one graph."""
    import onnx

    first, second = onnx.load_model_from_string(preamble), onnx.load_model_from_string(body)
    nodes = [*first.graph.node, *second.graph.node]
    del second.graph.node[:]
    second.graph.node.extend(nodes)
    known = {tensor.name for tensor in second.graph.initializer}
    second.graph.initializer.extend(tensor for tensor in first.graph.initializer if tensor.name not in known)
    del second.graph.input[:]
    second.graph.input.extend(first.graph.input)
    return bytes(second.SerializeToString(deterministic=True))


def _logits(model: Any) -> str:
    names = [value.name for value in model.graph.output]
    return "logits" if "logits" in names else str(names[0])


def _plainly_named(graph: bytes) -> bytes:
    """The same graph without `:` in its tensors' names."""
    import onnx

    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace(":", "_") for name in names]
    for value in (*model.graph.initializer, *model.graph.value_info, *model.graph.input, *model.graph.output):
        value.name = value.name.replace(":", "_")
    return bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Any:
    """ONNX Runtime's quantizers print to standard output and warn about their own imports."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
