"""TensorRT: a plan that was compiled on this device, run on its GPU.

The buffers are allocated once. One inference is: picture into page-locked memory, copy it to the GPU, run, copy back,
wait.
Before each one the outputs are filled with NaN, on the host and on the GPU: a run that says it is done and wrote
nothing leaves no numbers, which is an `error`, and not the last part's answer.
Where the GPU shares its memory with the CPU (every Jetson) both copies can be left out (`mapped`), and where the CUDA
library can record, the steps are recorded once and launched as one CUDA graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import re
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle import InputSpec, Outputs, Tensor
from agent.engines.device import Device, HostBuffer, out_of_memory
from agent.engines.trt_api import TensorRt
from agent.errors import EngineError
from agent.log import log_event

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PlanRefused", "TensorRtEngine", "is_same"]

log = logging.getLogger("agent.engines.trt")

_REBUILD = "rebuild the bundle with `defect-opt build`: its graph and its manifest do not belong together"
_COMPILE = "compile it on this device: defect-agent build-engine --config FILE"
_OTHER_GPU = re.compile(r"incompatible device|compute capability|expecting compute", re.IGNORECASE)
_OTHER_VERSION = re.compile(r"version tag|library version|serialized engine version|lean runtime", re.IGNORECASE)
_NO_MEMORY = re.compile(r"out of memory|cudaErrorMemoryAllocation|OutOfMemory", re.IGNORECASE)
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8}
_UNWRITTEN = 0xFF
"""Each byte of an output before a run: in FP32 and FP16 alike it makes a NaN."""
_SAME = 1e-2  # of the largest value: kernels may add in another order from run to run, a stale output is far off


class PlanRefused(EngineError):  # noqa: N818 - says what it is
    """A plan that TensorRT does not take here: of another version, for another GPU, or damaged."""


@dataclasses.dataclass(slots=True)
class _Tensor:
    """One input or output: where it lies on the GPU, and on the host."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int = 0
    buffer: HostBuffer | None = None

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_mapped(self) -> bool:
        return self.buffer is not None and self.buffer.device_address is not None

    @property
    def values(self) -> NDArray[Any]:
        """The host's view of it; only valid until the buffer is freed."""
        assert self.buffer is not None
        return self.buffer.array.view(self.dtype).reshape(self.shape)


class TensorRtEngine:
    """One plan on one GPU; the device is the engine's from now on, and closed with it.

    Args:
        plan: what `build_plan` made, of this TensorRT and for this GPU.
        api: TensorRT.
        device: an open device; where the constructor raises it is still the caller's.
        label: precision in words for the name, `int8`.
        spec: the one input, as the manifest has it.
        outputs: which output is what.
        mapped: input and outputs lie in host memory that the GPU sees, and nothing is copied.
        dla_core: the DLA core that the plan was built for.

    Attributes:
        identity: see `OpenedEngine`; who knows what the plan was compiled for says it here.

    Raises:
        PlanRefused: the plan is of another TensorRT, for another GPU, or damaged.
        EngineError: out of memory, inputs or outputs that are not the manifest's, or a failure of the GPU.
    """

    kind = "trt"

    def __init__(
        self,
        plan: bytes,
        *,
        api: TensorRt,
        device: Device,
        label: str,
        spec: InputSpec,
        outputs: Outputs,
        mapped: bool = False,
        dla_core: int | None = None,
    ) -> None:
        self._api, self._device = api, device
        self._shape = (1, spec.height_px, spec.width_px, 3)
        self._lock = threading.Lock()
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._tensors: dict[str, _Tensor] = {}
        self._stream, self._graph = 0, 0
        self._input = spec.name
        self._roles = {role: name for role, name in dataclasses.asdict(outputs).items() if name is not None}
        self.notes: tuple[str, ...] = ()
        self.name = f"{api.name} {device.name} {label}"
        self.identity: Mapping[str, str] = {"kind": self.kind}
        try:
            with device.current():
                self._load(plan, dla_core)
                self._describe()
                self._allocate(mapped=mapped)
                self._record()
        except BaseException:
            self._free()
            raise
        self.name += self._ways(mapped=mapped)

    def infer(self, tensor: Tensor) -> Mapping[str, NDArray[np.float32]]:
        """Run the plan once; see `Engine.infer`. Calls from several threads wait for one another."""
        with self._lock:
            if self._context is None:
                raise EngineError(f"{self.name}: is closed")
            if tensor.shape != self._shape or tensor.dtype != np.uint8:
                raise EngineError(f"{self.name}: got {tensor.shape} {tensor.dtype}, expected {self._shape} uint8")
            return self._run(tensor, self._graph)

    def close(self) -> None:
        """Free what it holds, and close the device; `infer` raises afterwards. May be called twice."""
        with self._lock:
            try:
                self._free()
            finally:
                self._device.close()

    def _load(self, plan: bytes, dla_core: int | None) -> None:
        api = self._api
        api.log.errors()  # what was said before is not about this plan
        with self._foreign("TensorRT can't start on this GPU"):
            self._runtime = api.module.Runtime(api.log)
            # A version-compatible plan carries its own runtime. We compiled it here: it is trusted as a library is.
            self._runtime.engine_host_code_allowed = True
            if dla_core is not None:
                self._runtime.DLA_core = dla_core
        with self._foreign("the plan can't be loaded"):
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._refusal(len(plan))
        with self._foreign("the plan can't be made ready"):
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._no_context()

    def _refusal(self, n_bytes: int) -> EngineError:
        words = self._said()
        if _NO_MEMORY.search(words):
            return out_of_memory(self._device.name, n_bytes, self._free_bytes(), "device memory for the plan's weights")
        if _OTHER_GPU.search(words):
            capability = ".".join(map(str, self._device.compute_capability))
            here = f"this one is {self._device.name}, compute capability {capability}"
            return PlanRefused(f"the engine was compiled for another GPU; {here} ({words})", hint=_COMPILE)
        if _OTHER_VERSION.search(words):
            return PlanRefused(
                f"the engine was compiled by another TensorRT; here is {self._api.name} ({words})", hint=_COMPILE
            )
        return PlanRefused(
            f"the engine is damaged: {self._api.name} can't read its {n_bytes} bytes ({words})", hint=_COMPILE
        )

    def _no_context(self) -> EngineError:
        words = self._said()
        if not _NO_MEMORY.search(words):
            return EngineError(f"{self.name}: the plan can't be made ready ({words})", hint=f"{_COMPILE} --rebuild")
        newer = self._api.has("ICudaEngine.device_memory_size_v2")
        asked = int(self._engine.device_memory_size_v2 if newer else self._engine.device_memory_size)
        return out_of_memory(
            self._device.name, asked, self._free_bytes(), "device memory for the plan's intermediate results"
        )

    def _describe(self) -> None:
        """The plan's inputs and outputs by name, checked against the manifest."""
        engine, modes = self._engine, self._api.module.TensorIOMode
        with self._foreign("the plan's inputs and outputs can't be read"):
            names = [str(engine.get_tensor_name(i)) for i in range(engine.num_io_tensors)]
            inputs = [name for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        if inputs != [self._input]:
            raise EngineError(f"{self.name}: the plan's inputs are {inputs}, expected ['{self._input}']", hint=_REBUILD)
        self._set_shape()
        for name in names:
            self._tensors[name] = self._tensor(name)
        for role, name in self._roles.items():
            if name not in self._tensors or name == self._input:
                found = sorted(set(names) - {self._input})
                raise EngineError(f"{self.name}: the plan has no output {name} ({role}); it has {found}", hint=_REBUILD)
        self._check_types()

    def _set_shape(self) -> None:
        with self._foreign("the plan's input can't be set"):
            got = tuple(self._engine.get_tensor_shape(self._input))
            fits = len(got) == len(self._shape) and all(g in (-1, w) for g, w in zip(got, self._shape, strict=True))
            if fits and -1 in got:
                fits = bool(self._context.set_input_shape(self._input, self._shape))
        if not fits:
            raise EngineError(
                f"{self.name}: the plan's input {self._input} is {list(got)}, expected {list(self._shape)}",
                hint=_REBUILD,
            )

    def _tensor(self, name: str) -> _Tensor:
        module = self._api.module
        with self._foreign(f"the plan's tensor {name} can't be read"):
            shape = tuple(int(side) for side in self._context.get_tensor_shape(name))
            kind = str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]
            is_plain = self._engine.get_tensor_format(name) == module.TensorFormat.LINEAR
            is_on_gpu = self._engine.get_tensor_location(name) == module.TensorLocation.DEVICE
        if any(side < 1 for side in shape) or not is_plain or not is_on_gpu or kind not in _NUMPY:
            raise EngineError(
                f"{self.name}: the plan's tensor {name} is {list(shape)} {kind}, expected a fixed shape, "
                "FLOAT, HALF or UINT8, in the plain order, on the GPU",
                hint=_REBUILD,
            )
        return _Tensor(name, shape, np.dtype(_NUMPY[kind]))

    def _check_types(self) -> None:
        if self._tensors[self._input].dtype != np.uint8:
            raise EngineError(
                f"{self.name}: the plan's input {self._input} is {self._tensors[self._input].dtype}, expected uint8",
                hint=_REBUILD,
            )
        for role, name in self._roles.items():
            if self._tensors[name].dtype == np.uint8:
                raise EngineError(
                    f"{self.name}: the plan's output {name} ({role}) is uint8, expected float32", hint=_REBUILD
                )

    def _allocate(self, *, mapped: bool) -> None:
        """Memory for every tensor, also for outputs that nobody asked for: TensorRT writes them all."""
        self._stream = self._device.stream()
        for tensor in self._tensors.values():
            if mapped:
                tensor.buffer = self._device.host(tensor.n_bytes, mapped=True)
                tensor.address = tensor.buffer.device_address or 0
            else:
                tensor.address = self._device.allocate(tensor.n_bytes)
                tensor.buffer = self._device.host(tensor.n_bytes)
            with self._foreign(f"the plan's tensor {tensor.name} can't be placed"):
                if not self._context.set_tensor_address(tensor.name, tensor.address):
                    raise EngineError(f"{self.name}: the plan's tensor {tensor.name} can't be placed ({self._said()})")

    def _record(self) -> None:
        """Record a CUDA graph, and keep it only if it gives what the plain way gives.

        TensorRT wants one plain run before the recording. A graph that reads an old picture, or leaves its outputs
        unwritten, would pass every part alike: so another picture comes between, and each run spoils the outputs first.
        """
        if not self._device.can_capture:
            return
        bright = np.random.default_rng(0).integers(128, 256, self._shape, dtype=np.uint8)
        expected = self._run(bright, 0)
        dark = self._run(np.zeros_like(bright), 0)
        try:
            self._graph = self._device.capture(self._stream, self._enqueue)
            got = self._run(bright, self._graph)
        except EngineError as error:
            self._forget_graph(f"no CUDA graph: {error.message}")
            self._renew_stream()
            self._run(bright, 0)  # the plain way must still work
            return
        if not all(is_same(got[role], expected[role]) for role in expected):
            self._forget_graph("no CUDA graph: the recorded one gives other results than the plain way")
        elif all(is_same(dark[role], expected[role]) for role in expected):
            self._forget_graph("no CUDA graph: the model says the same to both test pictures, so it can't be proven")

    def _forget_graph(self, why: str) -> None:
        with contextlib.suppress(EngineError):
            self._device.release_graph(self._graph)
        self._graph = 0
        self.notes += (why,)
        log_event(log, "no_cuda_graph", logging.WARNING, engine=self.name, reason=why)

    def _renew_stream(self) -> None:
        """Take another stream: the one where a recording failed may still be recording."""
        with contextlib.suppress(EngineError):
            self._device.release_stream(self._stream)
        self._stream = self._device.stream()

    def _outputs(self) -> list[_Tensor]:
        return [self._tensors[name] for name in dict.fromkeys(self._roles.values())]

    def _run(self, tensor: Tensor, graph: int) -> dict[str, NDArray[np.float32]]:
        np.copyto(self._tensors[self._input].values, tensor)
        for output in self._outputs():
            assert output.buffer is not None
            output.buffer.array.fill(_UNWRITTEN)
        with self._device.current():
            if graph:
                self._device.launch(graph, self._stream)
            else:
                self._enqueue()
            self._device.synchronize(self._stream)
        return {role: self._tensors[name].values.astype(np.float32) for role, name in self._roles.items()}

    def _enqueue(self) -> None:
        """Give the stream one inference: copy the picture and the unwritten outputs, run, copy back.

        The GPU's outputs are spoiled too: else what a run has left unwritten there would be copied back as its result.
        """
        device, stream, outputs = self._device, self._stream, self._outputs()
        for tensor in (self._tensors[self._input], *outputs):
            if tensor.buffer is not None and not tensor.is_mapped:
                device.copy_in(tensor.address, tensor.buffer, stream)
        with self._foreign("inference failed"):
            is_running = self._context.execute_async_v3(stream)
        if not is_running:
            raise EngineError(f"{self.name}: inference failed ({self._said()})")
        for tensor in outputs:
            if tensor.buffer is not None and not tensor.is_mapped:
                device.copy_out(tensor.buffer, tensor.address, stream)

    def _free(self) -> None:
        """Give everything back, whatever state it is in and whatever fails; what is left goes with the device."""
        with contextlib.suppress(EngineError), self._device.current():
            if self._stream:
                with contextlib.suppress(EngineError):  # nothing may be under way when its memory goes
                    self._device.synchronize(self._stream)
            self._drop()
        self._drop()  # where the context can't be made current any more

    def _drop(self) -> None:
        self._context = None  # in this order: each lives on the next
        self._engine = None
        self._runtime = None
        device, tensors, stream, graph = self._device, self._tensors, self._stream, self._graph
        self._tensors, self._stream, self._graph = {}, 0, 0
        with contextlib.suppress(EngineError):
            device.release_graph(graph)
        for tensor in tensors.values():
            with contextlib.suppress(EngineError):
                device.free(tensor.address)
            if tensor.buffer is not None:
                with contextlib.suppress(EngineError):
                    tensor.buffer.free()
        with contextlib.suppress(EngineError):
            device.release_stream(stream)

    def _ways(self, *, mapped: bool) -> str:
        ways = [*(["mapped memory"] if mapped else []), *(["CUDA graph"] if self._graph else [])]
        return f", {', '.join(ways)}" if ways else ""

    def _said(self) -> str:
        """TensorRT's own words since the last time."""
        return "; ".join(self._api.log.errors())[:500] or "TensorRT gives no reason"

    def _free_bytes(self) -> int | None:
        try:
            return self._device.free_bytes()
        except EngineError:
            return None

    @contextlib.contextmanager
    def _foreign(self, what: str) -> Iterator[None]:
        """TensorRT's exceptions, which have no common root, become ours."""
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            words = "; ".join([f"{type(error).__name__}: {lines[0][:300]}", *self._api.log.errors()])
            raise EngineError(f"{self.name}: {what} ({words})") from error


def is_same(got: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether two outputs say the same, up to the order in which kernels add; what is no number says nothing."""
    scale = float(np.max(np.abs(expected), initial=0.0))
    return math.isfinite(scale) and bool(np.allclose(got, expected, rtol=0.0, atol=_SAME * scale + 1e-6))
