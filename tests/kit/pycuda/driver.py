"""`pycuda.driver` as PyCUDA 2026.1 has it: names and arguments from `names.json`, behaviour from its `cuda.hpp`.

What it takes over from there, because code that ignores it breaks on a device:

- its errors derive from `pycuda.driver.Error`, not from the builtins of the same names;
- an allocation needs a context that *PyCUDA* has pushed on this thread;
- freeing from a thread where the context is not current warns and leaks;
- `Context.detach` releases only on the thread that retained, and says nothing elsewhere;
- a clean-up that fails prints and does not raise.
"""

from __future__ import annotations

import json
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tests.kit.pycuda.gpu import CudaError, Gpu

__all__ = ["NAMES", "make_driver"]

NAMES: dict[str, Any] = json.loads(Path(__file__).with_name("names.json").read_text(encoding="utf-8"))

_LAUNCH_CODES = (701, 702, 703, 719)
_RUNTIME_CODES = (100, 209, 301, 600)


def make_driver(gpu: Gpu) -> types.ModuleType:
    """The module on one GPU; two of them share nothing."""
    module = types.ModuleType("pycuda.driver")
    errors = _errors()
    names = {**errors, **_Driver(gpu, errors).names()}
    for name, value in names.items():
        setattr(module, name, value)

    def missing(name: str) -> Any:
        if any(name in NAMES[kind] for kind in ("functions", "bases", "enums", "constants", "exceptions", "aliases")):
            raise NotImplementedError(f"pycuda.driver.{name}: PyCUDA has it, its stand-in does not")
        raise AttributeError(f"module 'pycuda.driver' has no attribute {name!r}")

    module.__getattr__ = missing  # type: ignore[method-assign]
    return module


def _errors() -> dict[str, type[Exception]]:
    root = type("Error", (Exception,), {"__module__": "pycuda._driver"})
    others = ("MemoryError", "LogicError", "LaunchError", "RuntimeError")
    return {"Error": root, **{name: type(name, (root,), {"__module__": "pycuda._driver"}) for name in others}}


class _Driver:
    """What the classes and functions of one module share: the GPU, the errors and PyCUDA's own context stacks."""

    def __init__(self, gpu: Gpu, errors: dict[str, type[Exception]]) -> None:
        self.gpu = gpu
        self.errors = errors

    def do(self, call: Any, *args: Any) -> Any:
        """A call whose failure is raised in PyCUDA's classes."""
        try:
            return call(*args)
        except CudaError as error:
            raise self.error(error) from None

    def clean_up(self, call: Any, *args: Any) -> None:
        """A call whose failure is printed."""
        try:
            call(*args)
        except CudaError as error:
            self.gpu.stderr.append(f"PyCUDA WARNING: a clean-up operation failed (dead context maybe?)\n{error}")

    def error(self, error: CudaError) -> Exception:
        kind = {2: "MemoryError", **dict.fromkeys(_LAUNCH_CODES, "LaunchError")}
        kind.update(dict.fromkeys(_RUNTIME_CODES, "RuntimeError"))
        return self.errors[kind.get(error.code, "LogicError")](str(error))

    def stack(self) -> list[Any]:
        return self.gpu.pushed.setdefault(threading.current_thread(), [])

    def top(self) -> Any:
        """The context PyCUDA takes for current; those that were detached are forgotten."""
        stack = self.stack()
        while stack and not stack[-1].is_valid:
            stack.pop()
        return stack[-1] if stack else None

    def ward(self) -> Any:
        """The context that a new object belongs to."""
        context = self.top()
        if context is None:
            raise self.errors["LogicError"](
                "explicit_context_dependent failed: invalid device context - no currently active context?"
            )
        return context

    def is_active(self, what: str, ward: Any) -> bool:
        """Whether an object of this context may be freed here; warns as PyCUDA does."""
        if self.top() is ward:
            return True
        if ward.is_valid and threading.get_ident() != ward.thread:
            warnings.warn(f"{what} in out-of-thread context could not be cleaned up", UserWarning, stacklevel=3)
        return False

    def names(self) -> dict[str, Any]:
        return {**_contexts(self), **_memory(self), **_streams(self), **_enums()}


def _contexts(driver: _Driver) -> dict[str, Any]:
    gpu, do = driver.gpu, driver.do

    class Context:
        def __init__(self, handle: int, device: int) -> None:
            self.handle = handle
            self.is_valid = True
            self.thread = threading.get_ident()
            self._device = device

        def push(self) -> None:
            _pop_current()
            do(gpu.ctx_push, self.handle)
            driver.stack().append(self)

        @staticmethod
        def pop() -> None:
            _pop_current()
            if not driver.stack():
                raise driver.errors["LogicError"](
                    "context::pop failed: invalid device context - cannot pop non-current context"
                )
            driver.stack().pop()
            if (below := driver.top()) is not None:
                do(gpu.ctx_push, below.handle)

        def detach(self) -> None:
            if not self.is_valid:
                raise driver.errors["LogicError"](
                    "context::detach failed: invalid device context - cannot detach from invalid context"
                )
            if driver.top() is self:
                driver.clean_up(gpu.primary_ctx_release, self._device)
            elif self.thread == threading.get_ident():
                driver.clean_up(gpu.ctx_push, self.handle)
                driver.clean_up(gpu.primary_ctx_release, self._device)
            self.is_valid = False

        @staticmethod
        def synchronize() -> None:
            do(gpu.ctx_synchronize)

        @staticmethod
        def get_current() -> Any:
            return driver.top()

    def _pop_current() -> None:
        if driver.stack():
            do(gpu.ctx_pop)

    class Device:
        def __init__(self, ordinal: int, /) -> None:
            self._ordinal = do(gpu.device_get, ordinal)

        @staticmethod
        def count() -> int:
            return int(do(gpu.device_get_count))

        def name(self) -> str:
            do(gpu.ask, "cuDeviceGetName")
            return gpu.name

        def compute_capability(self) -> tuple[int, int]:
            do(gpu.ask, "cuDeviceComputeCapability")
            return gpu.compute_capability

        def total_memory(self) -> int:
            do(gpu.ask, "cuDeviceTotalMem")
            return gpu.memory_bytes

        def get_attribute(self, attribute: str, /) -> int:
            do(gpu.ask, "cuDeviceGetAttribute")
            return int({"INTEGRATED": gpu.is_integrated, "CAN_MAP_HOST_MEMORY": gpu.can_map}[attribute])

        def retain_primary_context(self) -> Any:
            return Context(do(gpu.primary_ctx_retain, self._ordinal), self._ordinal)

    def init(flags: int = 0) -> None:
        do(gpu.init)

    def get_version() -> tuple[int, int, int]:
        return gpu.library_version

    def get_driver_version() -> int:
        return int(do(gpu.driver_get_version))

    return {
        "Context": Context,
        "Device": Device,
        "init": init,
        "get_version": get_version,
        "get_driver_version": get_driver_version,
    }


def _memory(driver: _Driver) -> dict[str, Any]:
    gpu, do = driver.gpu, driver.do

    class DeviceAllocation:
        _is_valid = False

        def __init__(self, address: int) -> None:
            self._address = address
            self._ward = driver.ward()
            self._is_valid = True

        def __int__(self) -> int:
            return self._address

        __index__ = __int__

        def free(self) -> None:
            if not self._is_valid:
                raise driver.errors["LogicError"]("device_allocation::free failed: invalid resource handle")
            if driver.is_active("device_allocation", self._ward):
                driver.clean_up(gpu.mem_free, self._address)
            self._is_valid = False

        def __del__(self) -> None:
            if self._is_valid:
                self.free()

    class PagelockedHostAllocation:
        _is_valid = False

        def __init__(self, address: int, shape: tuple[int, ...], typestr: str) -> None:
            self._address = address
            self._ward = driver.ward()
            self.__array_interface__ = {"version": 3, "typestr": typestr, "shape": shape, "data": (address, False)}
            self._is_valid = True

        def get_device_pointer(self) -> int:
            return int(do(gpu.mem_host_get_device_pointer, self._address))

        def free(self) -> None:
            if not self._is_valid:
                raise driver.errors["LogicError"]("pagelocked_host_allocation::free failed: invalid resource handle")
            if driver.is_active("pagelocked_host_allocation", self._ward):
                driver.clean_up(gpu.mem_free_host, self._address)
            self._is_valid = False

        def __del__(self) -> None:
            if self._is_valid:
                self.free()

    def mem_alloc(n_bytes: int, /) -> Any:
        return DeviceAllocation(do(gpu.mem_alloc, n_bytes))

    def mem_get_info() -> tuple[int, int]:
        free, total = do(gpu.mem_get_info)
        return free, total

    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        sides = (shape,) if isinstance(shape, int) else tuple(shape)
        kind = np.dtype(dtype)
        address = do(gpu.mem_host_alloc, int(np.prod(sides)) * kind.itemsize)
        return np.asarray(PagelockedHostAllocation(address, sides, kind.str))

    return {
        "DeviceAllocation": DeviceAllocation,
        "PagelockedHostAllocation": PagelockedHostAllocation,
        "HostAllocation": PagelockedHostAllocation,
        "mem_alloc": mem_alloc,
        "mem_get_info": mem_get_info,
        "pagelocked_empty": pagelocked_empty,
    }


def _streams(driver: _Driver) -> dict[str, Any]:
    gpu, do = driver.gpu, driver.do

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self._ward = driver.ward()
            self.handle = do(gpu.stream_create)

        def synchronize(self) -> None:
            do(gpu.stream_synchronize, self.handle)

        def __del__(self) -> None:
            handle = self.__dict__.pop("handle", None)
            if handle is not None and driver.is_active("stream", self._ward):
                driver.clean_up(gpu.stream_destroy, handle)

    def memcpy_htod_async(dest: int, src: Any, stream: Any = None) -> None:
        array = np.ascontiguousarray(src)
        do(gpu.memcpy_htod_async, int(dest), array.ctypes.data, array.nbytes, stream.handle if stream else 0)

    def memcpy_dtoh_async(dest: Any, src: int, stream: Any = None) -> None:
        do(gpu.memcpy_dtoh_async, dest.ctypes.data, int(src), dest.nbytes, stream.handle if stream else 0)

    return {"Stream": Stream, "memcpy_htod_async": memcpy_htod_async, "memcpy_dtoh_async": memcpy_dtoh_async}


def _enums() -> dict[str, Any]:
    made = {name: type(name, (), {member: member for member in NAMES["enums"][name]}) for name in ("device_attribute",)}
    flags = {"PORTABLE": 1, "DEVICEMAP": 2, "WRITECOMBINED": 4}
    return {**made, "host_alloc_flags": type("host_alloc_flags", (), flags)}
