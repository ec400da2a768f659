"""A CUDA device through NVIDIA's cuda-python: the only import of `cuda`.

It is the driver's API as it stands: every call gives its CUresult first, and nothing is freed by the garbage collector.
Packages of CUDA 12.6 and newer have it as `cuda.bindings.driver`, older ones as `cuda.cuda`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.engines.device import (
    HostBuffer,
    call_failed,
    closing_failed,
    cuda_version,
    library_broken,
    library_missing,
    no_gpu,
    no_such_gpu,
    out_of_memory,
)
from agent.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CudaPythonDevice"]

_LIBRARY = "cuda-python"


class CudaPythonDevice:
    """See `agent.engines.device.Device`.

    Args:
        ordinal: the device's number, from 0.

    Raises:
        EngineError: cuda-python is not installed or can't be loaded, there is no driver, no GPU, or not this one.
    """

    can_capture = True

    def __init__(self, ordinal: int = 0) -> None:
        self._cuda: Any = _load()
        self.library = f"{_LIBRARY} {_version()}"
        self.name = f"GPU {ordinal}"
        self._allocations: set[int] = set()
        self._hosts: dict[int, _PageLocked] = {}
        self._streams: dict[int, Any] = {}
        self._graphs: dict[int, Any] = {}
        self._handle = self._find(ordinal)
        self._read()
        self._context: Any = self._do("retaining its context", "cuDevicePrimaryCtxRetain", self._handle)

    def _find(self, ordinal: int) -> Any:
        try:
            (code,) = self._cuda.cuInit(0)
        except RuntimeError as error:  # no libcuda.so.1, or one without this function
            raise library_broken(_LIBRARY, error) from error
        if code:
            raise no_gpu(self.library, f"cuInit: {self._text(code)}")
        count = int(self._do("counting GPUs", "cuDeviceGetCount"))
        if not count:
            raise no_gpu(self.library, "the driver counts none")
        if not 0 <= ordinal < count:
            raise no_such_gpu(ordinal, count)
        return self._do("opening it", "cuDeviceGet", ordinal)

    def _read(self) -> None:
        cuda, what = self._cuda, "reading its properties"
        attributes = cuda.CUdevice_attribute

        def attribute(name: str) -> int:
            key = getattr(attributes, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(self._do(what, "cuDeviceGetAttribute", key, self._handle))

        self.name = bytes(self._do(what, "cuDeviceGetName", 256, self._handle)).split(b"\0")[0].decode()
        self.compute_capability = (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR"))
        self.memory_bytes = int(self._do(what, "cuDeviceTotalMem", self._handle))
        self.is_integrated = bool(attribute("INTEGRATED"))
        self.can_map = bool(attribute("CAN_MAP_HOST_MEMORY"))
        self.cuda = cuda_version(int(cuda.CUDA_VERSION))
        self.driver_cuda = cuda_version(int(self._do(what, "cuDriverGetVersion")))

    def free_bytes(self) -> int:
        """See `Device.free_bytes`."""
        with self.current():
            return int(self._do("asking for its free memory", "cuMemGetInfo")[0])

    def allocate(self, n_bytes: int) -> int:
        """See `Device.allocate`."""
        with self.current():
            address = int(self._take("device memory", n_bytes, "cuMemAlloc", n_bytes))
            self._allocations.add(address)
            return address

    def free(self, address: int) -> None:
        """See `Device.free`."""
        if address in self._allocations:
            with self.current():
                self._allocations.discard(address)
                self._do("freeing memory", "cuMemFree", address)

    def host(self, n_bytes: int, *, mapped: bool = False) -> HostBuffer:
        """See `Device.host`."""
        if mapped and not self.can_map:
            raise call_failed(self.name, "mapping host memory", "this GPU can't")
        flags = int(self._cuda.CU_MEMHOSTALLOC_DEVICEMAP) if mapped else 0
        with self.current():
            address = int(self._take("page-locked host memory", n_bytes, "cuMemHostAlloc", n_bytes, flags))
            buffer = _PageLocked(self, address, n_bytes)
            self._hosts[address] = buffer
            if mapped:
                buffer.device_address = self._mapped(buffer)
            return buffer

    def _mapped(self, buffer: _PageLocked) -> int:
        try:
            return int(self._do("mapping host memory", "cuMemHostGetDevicePointer", buffer.address, 0))
        except EngineError:
            self._drop_host(buffer)
            raise

    def free_host(self, buffer: _PageLocked) -> None:
        """Give page-locked memory back; `_PageLocked.free` comes here."""
        if buffer.address in self._hosts:
            with self.current():
                self._drop_host(buffer)

    def _drop_host(self, buffer: _PageLocked) -> None:
        del self._hosts[buffer.address]
        address = buffer.forget()
        self._do("freeing page-locked memory", "cuMemFreeHost", address)

    def copy_in(self, address: int, source: HostBuffer, stream: int) -> None:
        """See `Device.copy_in`."""
        array = source.array
        with self.current():
            self._do(
                "copying to the GPU",
                "cuMemcpyHtoDAsync",
                address,
                array.ctypes.data,
                array.nbytes,
                self._streams[stream],
            )

    def copy_out(self, target: HostBuffer, address: int, stream: int) -> None:
        """See `Device.copy_out`."""
        array = target.array
        with self.current():
            self._do(
                "copying from the GPU",
                "cuMemcpyDtoHAsync",
                array.ctypes.data,
                address,
                array.nbytes,
                self._streams[stream],
            )

    def stream(self) -> int:
        """See `Device.stream`."""
        flags = int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        with self.current():
            stream = self._do("making a stream", "cuStreamCreate", flags)
            self._streams[int(stream)] = stream
            return int(stream)

    def release_stream(self, handle: int) -> None:
        """See `Device.release_stream`."""
        if handle in self._streams:
            with self.current():
                self._do("ending a stream", "cuStreamDestroy", self._streams.pop(handle))

    def synchronize(self, stream: int) -> None:
        """See `Device.synchronize`."""
        with self.current():
            self._do("waiting for it", "cuStreamSynchronize", self._streams[stream])

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See `Device.current`."""
        if self._context is None:
            raise EngineError(f"{self.name}: is closed")
        self._do("making its context current", "cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._pop()

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """See `Device.capture`."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL  # other threads may allocate
        with self.current():
            handle = self._streams[stream]
            self._do("recording a graph", "cuStreamBeginCapture", handle, mode)
            try:
                work()
            except BaseException:
                self._end_quietly(handle)
                raise
            graph = self._do("recording a graph", "cuStreamEndCapture", handle)
            try:
                made = self._do("making a graph ready", self._instantiate(), graph, 0)
                self._graphs[int(made)] = made
                return int(made)
            finally:
                self._do("freeing a graph", "cuGraphDestroy", graph)

    def _end_quietly(self, handle: Any) -> None:
        """End a recording that failed: the stream is good for other work again, and the graph goes."""
        code, *rest = self._cuda.cuStreamEndCapture(handle)
        if not code and rest and int(rest[0]):
            self._cuda.cuGraphDestroy(rest[0])

    def _instantiate(self) -> str:
        """CUDA 11 had the call with flags under its longer name."""
        longer = "cuGraphInstantiateWithFlags"
        return longer if hasattr(self._cuda, longer) else "cuGraphInstantiate"

    def launch(self, graph: int, stream: int) -> None:
        """See `Device.launch`."""
        with self.current():
            self._do("launching a graph", "cuGraphLaunch", self._graphs[graph], self._streams[stream])

    def release_graph(self, graph: int) -> None:
        """See `Device.release_graph`."""
        if graph in self._graphs:
            with self.current():
                self._do("freeing a graph", "cuGraphExecDestroy", self._graphs.pop(graph))

    def close(self) -> None:
        """See `Device.close`."""
        if self._context is None:
            return
        try:
            self._drop_all()
            self._do("releasing its context", "cuDevicePrimaryCtxRelease", self._handle)
        except EngineError as error:
            closing_failed(error)
        finally:
            self._context = None

    def _drop_all(self) -> None:
        """Free what is left; a fault of before may be reported at any call, once: the rest is freed all the same."""
        failures: list[EngineError] = []
        with contextlib.suppress(EngineError), self.current():  # what is still under way would write to freed memory
            self._do("waiting for it", "cuCtxSynchronize")
        while len(failures) < 2 and (self._allocations or self._hosts or self._streams or self._graphs):
            try:
                with self.current():
                    self._drop_one()
            except EngineError as error:  # noqa: PERF203 - few, and only on closing
                failures.append(error)
        for failure in failures:
            closing_failed(failure)

    def _drop_one(self) -> None:
        if self._graphs:
            self._do("freeing a graph", "cuGraphExecDestroy", self._graphs.popitem()[1])
        elif self._streams:
            self._do("ending a stream", "cuStreamDestroy", self._streams.popitem()[1])
        elif self._hosts:
            self._drop_host(next(iter(self._hosts.values())))
        else:
            self._do("freeing memory", "cuMemFree", self._allocations.pop())

    def _pop(self) -> None:
        """Take our context away; a failure is tried once more, for it must not stay on this thread.

        A call may report an earlier fault and have done its work all the same: then the context below is another's.
        """
        try:
            self._do("leaving its context", "cuCtxPopCurrent")
        except EngineError:
            _, now = self._cuda.cuCtxGetCurrent()
            if int(now) == int(self._context):
                self._cuda.cuCtxPopCurrent()
            raise

    def _take(self, kind: str, n_bytes: int, name: str, *args: Any) -> Any:
        """An allocation: out of memory in words."""
        code, values = self._call(f"allocating {kind}", name, *args)
        if code == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            failed, free, _total = self._cuda.cuMemGetInfo()
            raise out_of_memory(self.name, n_bytes, None if failed else int(free), kind)
        if code:
            raise call_failed(self.name, f"allocating {kind}", f"{name}: {self._text(code)}")
        return values[0]

    def _do(self, what: str, name: str, *args: Any) -> Any:
        """One call of the driver: what it gives, or its refusal in words."""
        code, values = self._call(what, name, *args)
        if code:
            raise call_failed(self.name, what, f"{name}: {self._text(code)}")
        return values[0] if len(values) == 1 else tuple(values)

    def _call(self, what: str, name: str, *args: Any) -> tuple[Any, list[Any]]:
        """The code and the values of a call; a function that this driver lacks is a refusal, too."""
        try:
            code, *values = getattr(self._cuda, name)(*args)
        except RuntimeError as error:
            raise call_failed(self.name, what, f"{name}: {error}") from error
        return code, values

    def _text(self, code: Any) -> str:
        failed, text = self._cuda.cuGetErrorString(code)
        return f"CUresult {int(code)}" if failed or text is None else bytes(text).decode()


class _PageLocked:
    """One buffer at an address of the host."""

    def __init__(self, device: CudaPythonDevice, address: int, n_bytes: int) -> None:
        self.address = address
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))
        self.device_address: int | None = None
        self._device = device

    def free(self) -> None:
        """See `HostBuffer.free`."""
        self._device.free_host(self)

    def forget(self) -> int:
        """Show no memory any more; gives the address to free."""
        self.array = np.empty(0, dtype=np.uint8)
        self.device_address = None
        return self.address


def _load() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ModuleNotFoundError:
        pass
    except Exception as error:  # a broken install raises what it likes
        raise library_broken(_LIBRARY, error) from error
    try:
        return importlib.import_module("cuda.cuda")
    except ModuleNotFoundError as error:
        raise library_missing(_LIBRARY) from error
    except Exception as error:
        raise library_broken(_LIBRARY, error) from error


def _version() -> str:
    for name in ("cuda-bindings", "cuda-python"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of unknown version"
