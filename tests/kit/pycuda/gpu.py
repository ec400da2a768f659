"""A CUDA driver whose device memory is host memory: what PyCUDA's stand-in stands on.

It does what the driver API's manual says where it matters to the agent: a context stack per thread, a primary context
that is counted, memory that is bounded, copies to the host that arrive when their stream is synchronized. Every call is
counted and can be made to fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["CudaError", "Gpu"]

WORDS = {
    1: "invalid argument",
    2: "out of memory",
    3: "initialization error",
    100: "no CUDA-capable device is detected",
    101: "invalid device ordinal",
    201: "invalid device context",
    400: "invalid resource handle",
    700: "an illegal memory access was encountered",
    719: "unspecified launch failure",
}


class CudaError(Exception):
    """A call that did not return CUDA_SUCCESS."""

    def __init__(self, routine: str, code: int, words: str = "") -> None:
        super().__init__(f"{routine} failed: {WORDS[code]}{f' - {words}' if words else ''}")
        self.code = code


@dataclasses.dataclass(slots=True)
class _Block:
    kind: str
    n_bytes: int
    memory: ctypes.Array[ctypes.c_char]
    context: int


@dataclasses.dataclass(slots=True)
class Gpu:
    """One GPU with its driver, and the account of all that was taken from it.

    Attributes:
        fail_at: the call of this number (from 1) fails once; 0 for none. A call that releases something still does
            its work, as the driver does when it reports an earlier, asynchronous error.
        fail_call: every call of this name fails: `cuMemAlloc`.
        fail_code: with this CUresult.
        library_version: the CUDA that PyCUDA was built for.
        calls: the names of the calls made, in order.
        torn: how many copies were still under way when their memory was freed.
        pushed: PyCUDA's own stack of each thread.
        stderr: what PyCUDA printed there.
        reclaimed: what was still held when its context ended, and so was freed by the driver and by nobody else.
    """

    name: str = "Orin"
    compute_capability: tuple[int, int] = (8, 7)
    memory_bytes: int = 1 << 30
    is_integrated: bool = True
    can_map: bool = True
    count: int = 1
    driver_version: int = 12060
    library_version: tuple[int, int, int] = (12, 6, 0)
    fail_at: int = 0
    fail_call: str = ""
    fail_code: int = 719
    calls: list[str] = dataclasses.field(default_factory=list)
    pushed: dict[threading.Thread, list[Any]] = dataclasses.field(default_factory=dict)
    reclaimed: list[str] = dataclasses.field(default_factory=list)
    torn: int = 0
    stderr: list[str] = dataclasses.field(default_factory=list)
    _is_initialized: bool = False
    _contexts: dict[int, int] = dataclasses.field(default_factory=dict)  # handle -> times retained
    _blocks: dict[int, _Block] = dataclasses.field(default_factory=dict)
    _streams: dict[int, int] = dataclasses.field(default_factory=dict)  # handle -> context
    _pending: dict[int, list[tuple[int, int, int]]] = dataclasses.field(default_factory=dict)
    _stacks: dict[threading.Thread, list[int]] = dataclasses.field(default_factory=dict)  # contexts, the current last
    _numbers: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(0x1000, 0x10))
    _lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)

    @property
    def live(self) -> dict[str, int]:
        """What is held now, in words, with its bytes (contexts: times retained); empty when all was given back.

        A thread's context stack ends with the thread; a thread that ends with a context on PyCUDA's own stack makes
        the real one abort the process, so that is kept.
        """
        held = {f"{block.kind} at {address:#x}": block.n_bytes for address, block in self._blocks.items()}
        held.update({f"stream {handle:#x}": 1 for handle in self._streams})
        held.update({f"context {handle:#x}": times for handle, times in self._contexts.items() if times})
        alive = {thread: stack for thread, stack in self._stacks.items() if thread.is_alive()}
        held.update({f"context stack of {thread.name}": len(stack) for thread, stack in alive.items() if stack})
        held.update({f"PyCUDA's stack of {thread.name}": len(stack) for thread, stack in self.pushed.items() if stack})
        return held

    @property
    def free_bytes(self) -> int:
        """What `cuMemGetInfo` says is free."""
        return self.memory_bytes - sum(block.n_bytes for block in self._blocks.values() if block.kind == "memory")

    @property
    def current(self) -> int:
        """The context that is current on this thread; 0 for none."""
        stack = self._stacks.get(threading.current_thread())
        return stack[-1] if stack else 0

    def init(self) -> None:
        with self._call("cuInit"):
            if not self.count:
                raise CudaError("cuInit", 100)
            self._is_initialized = True

    def driver_get_version(self) -> int:
        with self._call("cuDriverGetVersion", needs_init=False):
            return self.driver_version

    def device_get_count(self) -> int:
        with self._call("cuDeviceGetCount"):
            return self.count

    def device_get(self, ordinal: int) -> int:
        with self._call("cuDeviceGet"):
            if not 0 <= ordinal < self.count:
                raise CudaError("cuDeviceGet", 101)
            return ordinal

    def ask(self, routine: str) -> None:
        """A question about the device whose answer stands in a field."""
        with self._call(routine):
            pass

    def primary_ctx_retain(self, device: int) -> int:
        with self._call("cuDevicePrimaryCtxRetain"):
            handle = 0xC0 + device
            self._contexts[handle] = self._contexts.get(handle, 0) + 1
            return handle

    def primary_ctx_release(self, device: int) -> None:
        with self._call("cuDevicePrimaryCtxRelease", releases=True):
            handle = 0xC0 + device
            if not self._contexts.get(handle):
                raise CudaError("cuDevicePrimaryCtxRelease", 201)
            self._contexts[handle] -= 1
            if not self._contexts[handle]:
                self._reclaim(handle)

    def ctx_push(self, context: int) -> None:
        with self._call("cuCtxPushCurrent"):
            if not self._contexts.get(context):
                raise CudaError("cuCtxPushCurrent", 201)
            self._stacks.setdefault(threading.current_thread(), []).append(context)

    def ctx_pop(self) -> int:
        with self._call("cuCtxPopCurrent"):
            if not self.current:
                raise CudaError("cuCtxPopCurrent", 201)
            return self._stacks[threading.current_thread()].pop()

    def ctx_synchronize(self) -> None:
        with self._call("cuCtxSynchronize", in_context=True):
            for stream in list(self._pending):
                self._drain(stream)

    def mem_get_info(self) -> tuple[int, int]:
        with self._call("cuMemGetInfo", in_context=True):
            return self.free_bytes, self.memory_bytes

    def mem_alloc(self, n_bytes: int) -> int:
        with self._call("cuMemAlloc", in_context=True):
            if n_bytes <= 0:
                raise CudaError("cuMemAlloc", 1)
            if n_bytes > self.free_bytes:
                raise CudaError("cuMemAlloc", 2)
            return self._block("memory", n_bytes)

    def mem_free(self, address: int) -> None:
        self._give_back("cuMemFree", address)

    def mem_host_alloc(self, n_bytes: int) -> int:
        with self._call("cuMemHostAlloc", in_context=True):
            return self._block("host memory", n_bytes)

    def mem_free_host(self, address: int) -> None:
        self._give_back("cuMemFreeHost", address)

    def mem_host_get_device_pointer(self, address: int) -> int:
        with self._call("cuMemHostGetDevicePointer", in_context=True):
            if not self.can_map or address not in self._blocks:
                raise CudaError("cuMemHostGetDevicePointer", 1)
            return address

    def stream_create(self) -> int:
        with self._call("cuStreamCreate", in_context=True):
            handle = next(self._numbers)
            self._streams[handle] = self.current
            return handle

    def stream_destroy(self, stream: int) -> None:
        with self._call("cuStreamDestroy", in_context=True, releases=True):
            if self._streams.pop(stream, None) is None:  # what it was given is still under way
                raise CudaError("cuStreamDestroy", 400)

    def stream_synchronize(self, stream: int) -> None:
        with self._call("cuStreamSynchronize", in_context=True):
            if stream and stream not in self._streams:
                raise CudaError("cuStreamSynchronize", 400)
            self._drain(stream)

    def memcpy_htod_async(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        with self._call("cuMemcpyHtoDAsync", in_context=True):
            self._check_copy("cuMemcpyHtoDAsync", target, n_bytes, stream)
            ctypes.memmove(target, source, n_bytes)

    def memcpy_dtoh_async(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        """The bytes arrive when the stream is synchronized: who reads before that reads what was there."""
        with self._call("cuMemcpyDtoHAsync", in_context=True):
            self._check_copy("cuMemcpyDtoHAsync", source, n_bytes, stream)
            self._pending.setdefault(stream, []).append((target, source, n_bytes))

    @contextlib.contextmanager
    def _call(
        self, routine: str, *, needs_init: bool = True, in_context: bool = False, releases: bool = False
    ) -> Iterator[None]:
        with self._lock:
            self.calls.append(routine)
            fails = len(self.calls) == self.fail_at or routine == self.fail_call
            if fails and not releases:
                raise CudaError(routine, self.fail_code)
            if needs_init and routine != "cuInit" and not self._is_initialized:
                raise CudaError(routine, 3)
            if in_context and not self._contexts.get(self.current):
                raise CudaError(routine, 201)
            yield
            if fails:
                raise CudaError(routine, self.fail_code)

    def _block(self, kind: str, n_bytes: int) -> int:
        memory = ctypes.create_string_buffer(n_bytes)
        address = ctypes.addressof(memory)
        self._blocks[address] = _Block(kind, n_bytes, memory, self.current)
        return address

    def _give_back(self, routine: str, address: int) -> None:
        with self._call(routine, in_context=True, releases=True):
            block = self._blocks.pop(address, None)
            if block is None:
                raise CudaError(routine, 1)
            self._forget(address, block.n_bytes)

    def _check_copy(self, routine: str, address: int, n_bytes: int, stream: int) -> None:
        if stream and stream not in self._streams:
            raise CudaError(routine, 400)
        if not any(start <= address and address + n_bytes <= start + b.n_bytes for start, b in self._blocks.items()):
            raise CudaError(routine, 1)

    def _drain(self, stream: int) -> None:
        for target, source, n_bytes in self._pending.pop(stream, []):
            ctypes.memmove(target, source, n_bytes)

    def _forget(self, address: int, n_bytes: int) -> None:
        """Drop the copies under way that touch memory which goes: on a device they would write to it afterwards."""
        for stream, copies in self._pending.items():
            kept = [copy for copy in copies if not any(address <= at < address + n_bytes for at in copy[:2])]
            self.torn += len(copies) - len(kept)
            self._pending[stream] = kept

    def _reclaim(self, context: int) -> None:
        blocks = [address for address, block in self._blocks.items() if block.context == context]
        for address in blocks:
            self._forget(address, self._blocks[address].n_bytes)
        streams = [handle for handle, owner in self._streams.items() if owner == context]
        self.reclaimed += [f"{self._blocks.pop(address).kind} at {address:#x}" for address in blocks]
        self.reclaimed += [f"stream {handle:#x}" for handle in streams if self._streams.pop(handle)]
