"""ONNX Runtime on the CPU: the only import of onnxruntime in the agent."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.board import Board
from agent.bundle import InputSpec, Outputs, Tensor
from agent.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GraphFacts", "OnnxRuntimeEngine", "facts_of_graph", "facts_of_runtime"]

_REBUILD = "rebuild the bundle with `defect-opt build`: its graph and its manifest do not belong together"
_ERRORS_ONLY = 3


class OnnxRuntimeEngine:
    """One graph in one session.

    Args:
        graph: the ONNX model's bytes.
        threads: CPU threads of one inference.
        label: precision in words for the name, `int8` or `fp32`.
        spec: the one input, as the manifest has it.
        outputs: which output is what; those that are None are not computed unless another needs them.

    Raises:
        EngineError: the model can't be loaded, or its input or outputs are not the manifest's.
    """

    kind = "onnxruntime"

    def __init__(self, graph: bytes, *, threads: int, label: str, spec: InputSpec, outputs: Outputs) -> None:
        import onnxruntime

        self._input = spec.name
        self._shape = (1, spec.height_px, spec.width_px, 3)
        roles = {role: name for role, name in dataclasses.asdict(outputs).items() if name is not None}
        self._roles, self._names = tuple(roles), list(roles.values())
        self._session: Any = _session(onnxruntime, graph, threads)
        _check_input(self._session, spec.name, self._shape)
        _check_outputs(self._session, roles)
        self.name = f"onnxruntime {onnxruntime.__version__} CPU {label}, {threads} thread{'s' * (threads > 1)}"
        self.identity: Mapping[str, str] = {
            "kind": self.kind,
            "graph": label,
            "threads": str(threads),
            **facts_of_runtime(),
        }

    def infer(self, tensor: Tensor) -> Mapping[str, NDArray[np.float32]]:
        """Run the graph once; see `Engine.infer`."""
        if self._session is None:
            raise EngineError(f"{self.name}: is closed")
        if tensor.shape != self._shape or tensor.dtype != np.uint8:
            raise EngineError(f"{self.name}: got {tensor.shape} {tensor.dtype}, expected {self._shape} uint8")
        try:
            values = self._session.run(self._names, {self._input: tensor})
        except Exception as error:  # onnxruntime's exceptions have no common root but this
            raise EngineError(f"{self.name}: inference failed ({_first_line(error)})") from error
        return dict(zip(self._roles, values, strict=True))

    def close(self) -> None:
        """Free the session; `infer` raises afterwards."""
        self._session = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """What a graph says about itself, where no manifest does.

    Attributes:
        spec: its one input.
        outputs: the outputs that bear the name of a role, as `defect-opt` writes them.
        metadata: its own, key to text.
    """

    spec: InputSpec
    outputs: Outputs
    metadata: Mapping[str, str]


def facts_of_graph(graph: bytes) -> GraphFacts:
    """Ask a graph for its input, outputs and metadata.

    Args:
        graph: the ONNX model's bytes.

    Raises:
        EngineError: it can't be loaded, or takes something else than one picture of a fixed size.
    """
    import onnxruntime

    session = _session(onnxruntime, graph, 1)
    found = session.get_inputs()
    shape = tuple(found[0].shape) if found else ()
    is_picture = len(shape) == 4 and shape[3] == 3 and all(isinstance(side, int) for side in shape[1:])
    if len(found) != 1 or not is_picture or found[0].type != "tensor(uint8)":
        got = ", ".join(f"{entry.name} {list(entry.shape)} {entry.type}" for entry in found)
        raise EngineError(
            f"the model takes {got or 'nothing'}, expected one picture [1, height, width, 3] tensor(uint8)",
            hint="make a bundle of it with `defect-opt build`",
        )
    given = {entry.name for entry in session.get_outputs()}
    roles = [field.name for field in dataclasses.fields(Outputs) if field.name in given]
    return GraphFacts(
        spec=InputSpec(name=found[0].name, height_px=shape[1], width_px=shape[2]),
        outputs=Outputs(**{role: role for role in roles}),
        metadata=dict(session.get_modelmeta().custom_metadata_map),
    )


def facts_of_runtime() -> dict[str, str]:
    """What an inference's answers and speed depend on beside graph and threads: ONNX Runtime, and the processor."""
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__, **_processor()}


def _processor() -> dict[str, str]:
    """The architecture, and the board's model, of a PC its processor's; not the kernel, which every update changes."""
    machine = platform.machine()
    board = Board().words().partition(f", {machine} {platform.system()} ")[0]
    return {"machine": machine, "board": board}


def _session(onnxruntime: Any, graph: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    # Threads that spin between parts burn a core that the camera and the journal need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common root but this
        raise EngineError(
            f"the model can't be loaded by onnxruntime {onnxruntime.__version__} ({_first_line(error)})",
            hint="rebuild the bundle, or update onnxruntime if the model is newer than it",
        ) from error
    # The wrapper keeps the graph's bytes for a session on other providers, which there never is: as much memory again
    # as the weights take.
    session.disable_fallback()
    session._model_bytes = None  # noqa: SLF001
    _give_memory_back()
    return session


def _give_memory_back() -> None:
    """Let the C library return what loading a graph took and freed: 13 of 45 MB for MobileNetV2 in float32."""
    with contextlib.suppress(OSError, AttributeError):  # musl has no such call
        ctypes.CDLL(None).malloc_trim(0)


def _check_input(session: Any, name: str, shape: tuple[int, int, int, int]) -> None:
    found = session.get_inputs()
    if [entry.name for entry in found] != [name]:
        raise EngineError(f"the model's inputs are {[e.name for e in found]}, expected ['{name}']", hint=_REBUILD)
    got = tuple(found[0].shape)
    fits = len(got) == len(shape) and all(
        isinstance(side, str) or side is None or side == expected for side, expected in zip(got, shape, strict=True)
    )
    if not fits or found[0].type != "tensor(uint8)":
        raise EngineError(
            f"the model's input {name} is {list(got)} {found[0].type}, expected {list(shape)} tensor(uint8), RGB",
            hint=_REBUILD,
        )


def _check_outputs(session: Any, roles: Mapping[str, str]) -> None:
    found = {entry.name: entry.type for entry in session.get_outputs()}
    for role, name in roles.items():
        if name not in found:
            raise EngineError(f"the model has no output {name} ({role}); it has {sorted(found)}", hint=_REBUILD)
        if found[name] != "tensor(float)":
            raise EngineError(f"the model's output {name} is {found[name]}, expected tensor(float)", hint=_REBUILD)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"
