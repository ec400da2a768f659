"""A CUDA device through PyCUDA: the only import of pycuda.

What PyCUDA does that this module has to know (2026.1, `src/cpp/cuda.hpp`):

- it releases a primary context only on the thread that retained it, leaks it silently from any other, and leaves it
  current there: so a thread of ours, which then ends, retains and releases it (`_PrimaryContext`);
- memory and streams are freed only where their context is current, also by the garbage collector: so every object is
  kept in a table and dropped with the context pushed;
- a thread that ends with a context pushed aborts the process; and its push takes the context below off CUDA's stack
  until its pop puts it there again, which can fail: so ours is pushed once per thread, however deep the calls are;
- its errors derive from `pycuda.driver.Error`, and its `MemoryError` is not the builtin;
- a clean-up that fails is printed to stderr and not raised;
- it can't record CUDA graphs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import threading
import traceback
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

__all__ = ["PyCudaDevice"]

# CU_STREAM_NON_BLOCKING of cuda.h, for which PyCUDA has no name: other users' work on the default stream, which every
# ordinary stream waits for, does not hold ours up.
_NON_BLOCKING = 1


class PyCudaDevice:
    """See `agent.engines.device.Device`.

    Args:
        ordinal: the device's number, from 0.

    Raises:
        EngineError: PyCUDA is not installed or can't be loaded, there is no driver, no GPU, or not this one.
    """

    can_capture = False

    def __init__(self, ordinal: int = 0) -> None:
        self._driver: Any = _load()
        self.library = f"pycuda {_version()}"
        self._inside = threading.local()
        self._allocations: dict[int, Any] = {}
        self._hosts: list[_PageLocked] = []
        self._streams: dict[int, Any] = {}
        handle = self._find(ordinal)
        with self._words(f"GPU {ordinal}", "reading its properties"):
            self._read(handle)
        with self._words(self.name, "retaining its context"):
            self._primary: _PrimaryContext | None = _PrimaryContext(handle)

    def _find(self, ordinal: int) -> Any:
        driver = self._driver
        try:
            driver.init()
            count = driver.Device.count()
        except driver.Error as error:
            raise no_gpu(self.library, str(error)) from error
        if not count:
            raise no_gpu(self.library, "the driver counts none")
        if not 0 <= ordinal < count:
            raise no_such_gpu(ordinal, count)
        with self._words(f"GPU {ordinal}", "opening it"):
            return driver.Device(ordinal)

    def _read(self, handle: Any) -> None:
        attributes = self._driver.device_attribute
        major, minor = handle.compute_capability()
        self.name = str(handle.name())
        self.compute_capability = (int(major), int(minor))
        self.memory_bytes = int(handle.total_memory())
        self.is_integrated = bool(handle.get_attribute(attributes.INTEGRATED))
        self.can_map = bool(handle.get_attribute(attributes.CAN_MAP_HOST_MEMORY))
        self.cuda = ".".join(str(part) for part in self._driver.get_version()[:2])
        self.driver_cuda = cuda_version(self._driver.get_driver_version())

    def free_bytes(self) -> int:
        """See `Device.free_bytes`."""
        with self._doing("asking for its free memory"):
            return int(self._driver.mem_get_info()[0])

    def allocate(self, n_bytes: int) -> int:
        """See `Device.allocate`."""
        with self._doing("allocating memory", n_bytes, "device memory"):
            allocation = self._driver.mem_alloc(n_bytes)
            self._allocations[int(allocation)] = allocation
            return int(allocation)

    def free(self, address: int) -> None:
        """See `Device.free`."""
        if address in self._allocations:
            with self._doing("freeing memory"):
                self._allocations.pop(address).free()

    def host(self, n_bytes: int, *, mapped: bool = False) -> HostBuffer:
        """See `Device.host`."""
        if mapped and not self.can_map:
            raise call_failed(self.name, "mapping host memory", "this GPU can't")
        flags = self._driver.host_alloc_flags.DEVICEMAP if mapped else 0
        with self._doing("allocating page-locked memory", n_bytes, "page-locked host memory"):
            buffer = _PageLocked(self, self._driver.pagelocked_empty(n_bytes, np.uint8, mem_flags=flags))
            self._hosts.append(buffer)
            if mapped:
                self._map(buffer)
            return buffer

    def _map(self, buffer: _PageLocked) -> None:
        base: Any = buffer.array.base
        try:
            buffer.device_address = int(base.get_device_pointer())
        except self._driver.Error:
            self._hosts.remove(buffer)
            buffer.drop()
            raise

    def free_host(self, buffer: _PageLocked) -> None:
        """Give page-locked memory back; `_PageLocked.free` comes here."""
        if buffer in self._hosts:
            with self._doing("freeing page-locked memory"):
                self._hosts.remove(buffer)
                buffer.drop()

    def copy_in(self, address: int, source: HostBuffer, stream: int) -> None:
        """See `Device.copy_in`."""
        with self._doing("copying to the GPU"):
            self._driver.memcpy_htod_async(address, source.array, self._streams[stream])

    def copy_out(self, target: HostBuffer, address: int, stream: int) -> None:
        """See `Device.copy_out`."""
        with self._doing("copying from the GPU"):
            self._driver.memcpy_dtoh_async(target.array, address, self._streams[stream])

    def stream(self) -> int:
        """See `Device.stream`."""
        with self._doing("making a stream"):
            return self._make_stream()

    def _make_stream(self) -> int:
        """A frame of its own: the traceback of a later error must not hold the object, whose end is its release."""
        stream = self._driver.Stream(_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def release_stream(self, handle: int) -> None:
        """See `Device.release_stream`."""
        if handle in self._streams:
            with self._doing("ending a stream"):
                del self._streams[handle]  # PyCUDA has no other way: the last reference goes here, in the context

    def synchronize(self, stream: int) -> None:
        """See `Device.synchronize`."""
        with self._doing("waiting for it"):
            self._streams[stream].synchronize()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """See `Device.current`."""
        if self._primary is None:
            raise EngineError(f"{self.name}: is closed")
        if getattr(self._inside, "is_current", False):
            yield
            return
        with self._words(self.name, "making its context current"):
            self._primary.context.push()
        self._inside.is_current = True
        try:
            yield
        finally:
            self._inside.is_current = False
            with self._words(self.name, "leaving its context"):
                self._pop()

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """PyCUDA can't."""
        raise self._no_graphs(stream, work)

    def launch(self, graph: int, stream: int) -> None:
        """There is never a graph."""
        raise self._no_graphs(graph, stream)

    def release_graph(self, graph: int) -> None:
        """There is never a graph."""

    def _no_graphs(self, *_asked: object) -> EngineError:
        return EngineError(f"{self.library} can't record CUDA graphs", hint="take cuda-python, or go without")

    def close(self) -> None:
        """See `Device.close`."""
        if self._primary is None:
            return
        try:
            self._drop_all()
        except EngineError as error:
            closing_failed(error)
        finally:
            primary, self._primary = self._primary, None
            primary.release()
            # What could not be freed above ended with its context; the objects are harmless now.
            self._drop_references()

    def _drop_all(self) -> None:
        if not (self._allocations or self._hosts or self._streams):
            return
        try:
            self._drop_in_context()
        except EngineError:  # a fault of before may be reported at any call, once: what is left goes now
            self._drop_in_context()

    def _drop_in_context(self) -> None:
        with self._doing("freeing what is left"):
            with contextlib.suppress(self._driver.Error):  # what is still under way would write to freed memory
                self._driver.Context.synchronize()
            self._streams.clear()
            while self._hosts:
                self._hosts.pop().drop()
            for address in list(self._allocations):
                self._allocations.pop(address).free()

    def _drop_references(self) -> None:
        self._allocations.clear()
        self._hosts.clear()
        self._streams.clear()

    def _pop(self) -> None:
        """Take our context away; where that failed it is tried once more, for it must not stay on this thread."""
        driver = self._driver
        try:
            driver.Context.pop()
        except driver.Error as error:
            # The same method makes the context below ours current again; when that fails, ours is gone already.
            if "cuCtxPopCurrent" in str(error):
                driver.Context.pop()
            raise

    @contextlib.contextmanager
    def _doing(self, what: str, n_bytes: int = 0, kind: str = "") -> Iterator[None]:
        """The context is current; PyCUDA's errors become ours."""
        driver = self._driver
        is_inside = self._primary is not None and getattr(self._inside, "is_current", False)
        with contextlib.nullcontext() if is_inside else self.current():
            try:
                yield
            except driver.MemoryError as error:
                raise out_of_memory(self.name, n_bytes, self._free_or_none(), kind or what) from _alone(error)
            except driver.Error as error:
                raise call_failed(self.name, what, str(error)) from _alone(error)

    def _free_or_none(self) -> int | None:
        try:
            return int(self._driver.mem_get_info()[0])
        except self._driver.Error:
            return None

    @contextlib.contextmanager
    def _words(self, device: str, what: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise call_failed(device, what, str(error)) from _alone(error)


class _PageLocked:
    """One buffer; PyCUDA's allocation is the array's base."""

    def __init__(self, device: PyCudaDevice, array: NDArray[np.uint8]) -> None:
        self.array = array
        self.device_address: int | None = None
        self._device = device

    def free(self) -> None:
        """See `HostBuffer.free`."""
        self._device.free_host(self)

    def drop(self) -> None:
        """Free it, in the context."""
        base: Any = self.array.base
        self.array = np.empty(0, dtype=np.uint8)
        self.device_address = None
        base.free()


class _PrimaryContext:
    """The device's primary context, retained and released on a thread of its own.

    The thread waits between the two and owns nothing else. It ends with `release`, or with the process.
    """

    def __init__(self, handle: Any) -> None:
        self.context: Any = None
        self._refusals: list[Exception] = []
        self._is_held = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(handle,), name="cuda-context", daemon=True)
        self._thread.start()
        self._is_held.wait()
        if self._refusals:
            self._thread.join()
            raise self._refusals.pop()

    def _hold(self, handle: Any) -> None:
        try:
            self.context = handle.retain_primary_context()
        except Exception as error:  # raised on the thread that opened the device
            self._refusals.append(error)
            return
        finally:
            self._is_held.set()
        self._is_over.wait()
        self.context.detach()

    def release(self) -> None:
        """Release it and wait until that is done."""
        self._is_over.set()
        self._thread.join()


def _alone(error: Exception) -> Exception:
    """Without what its traceback's frames hold: a stream among it would outlive the call that ends it."""
    traceback.clear_frames(error.__traceback__)
    return error


def _load() -> Any:
    try:
        import pycuda.driver
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "pycuda":
            raise library_missing("PyCUDA") from error
        raise library_broken("PyCUDA", error) from error
    except Exception as error:  # a broken install raises what it likes
        raise library_broken("PyCUDA", error) from error
    return pycuda.driver


def _version() -> str:
    import pycuda

    known = getattr(pycuda, "VERSION_TEXT", None)
    if known:
        return str(known)
    try:
        return importlib.metadata.version("pycuda")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
