"""GPUs that are not here, one per library that the agent can drive one with: PyCUDA's stand-in on a driver written in
Python, and the real PyCUDA and the real cuda-python on a `libcuda.so.1` written in C.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, Literal

from agent.engines.device import Device, open_device
from tests.kit.libcuda import LibCuda, missing_for, on_libcuda
from tests.kit.pycuda import Gpu, installed

__all__ = ["KINDS", "OWN_PROCESS", "Machine", "machine", "why_not"]

OWN_PROCESS = "DEFECT_AGENT_TEST_LIBCUDA"
"""Set in a process of which `libcuda.so.1` may become a part: PyTorch, for one, then takes the stand-in for a GPU."""

KINDS = ("stand-in pycuda", "pycuda", "cuda-python")


@dataclasses.dataclass(slots=True)
class Machine:
    """A machine with a GPU, and the account of what was taken from it."""

    prefer: Literal["pycuda", "cuda-python"]
    ledger: Gpu | LibCuda

    def open(self, ordinal: int = 0) -> Device:
        """The device as the agent opens it."""
        return open_device(self.prefer, ordinal)

    @property
    def live(self) -> dict[str, int]:
        """What is held now."""
        return self.ledger.live

    @property
    def n_calls(self) -> int:
        """How many calls of the driver were made."""
        return len(self.ledger.calls) if isinstance(self.ledger, Gpu) else self.ledger.n_calls

    @property
    def n_reclaimed(self) -> int:
        """How many things nobody gave back before their context ended."""
        return len(self.ledger.reclaimed) if isinstance(self.ledger, Gpu) else self.ledger.n_reclaimed

    @property
    def torn(self) -> int:
        """How many copies were still under way when their memory was freed."""
        return self.ledger.torn

    def fail(self, *, at: int = 0, call: str = "", code: int = 719) -> None:
        """Let the call of this number from now on fail once, or every call of this name."""
        number = self.n_calls + at if at else 0
        if isinstance(self.ledger, Gpu):
            self.ledger.fail_at, self.ledger.fail_call, self.ledger.fail_code = number, call, code
        else:
            self.ledger.fail(at=number, call=call, code=code)

    @contextlib.contextmanager
    def other_user(self) -> Iterator[None]:
        """Something else in this process uses the primary context: it has retained it, and it is current here."""
        if self.prefer == "cuda-python":
            with _driver_user():
                yield
            return
        with _pycuda_user():
            yield
        # PyCUDA leaves a primary context that it has released on CUDA's stack of the thread.
        if isinstance(self.ledger, Gpu):
            self.ledger.ctx_pop()
        else:
            self.ledger.library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


@contextlib.contextmanager
def machine(kind: str, *, count: int = 1, memory_bytes: int = 1 << 30, is_integrated: bool = True) -> Iterator[Machine]:
    """One of `KINDS`; the caller asks `why_not` first."""
    if kind == "stand-in pycuda":
        with installed(count=count, memory_bytes=memory_bytes, is_integrated=is_integrated) as gpu:
            yield Machine("pycuda", gpu)
        return
    with on_libcuda(count=count, memory_bytes=memory_bytes, is_integrated=is_integrated) as library:
        yield Machine("pycuda" if kind == "pycuda" else "cuda-python", library)


def why_not(kind: str) -> str | None:
    """Why this kind can't be here; `None` when it can."""
    if kind == "stand-in pycuda":
        return None
    if OWN_PROCESS not in os.environ:
        return "its driver would stay in this process for all others to find (tests/contracts/test_cuda_libraries.py)"
    return missing_for(kind)


@contextlib.contextmanager
def _pycuda_user() -> Iterator[None]:
    import pycuda.driver as cuda

    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    memory = cuda.mem_alloc(64)
    yield
    cuda.mem_get_info()  # raises when its context is gone
    memory.free()
    context.pop()
    context.detach()


@contextlib.contextmanager
def _driver_user() -> Iterator[None]:
    from tests.kit.libcuda import driver_api

    cuda: Any = driver_api()
    cuda.cuInit(0)
    _, context = cuda.cuDevicePrimaryCtxRetain(0)
    cuda.cuCtxPushCurrent(context)
    _, memory = cuda.cuMemAlloc(64)
    yield
    assert int(cuda.cuMemFree(memory)[0]) == 0
    cuda.cuCtxPopCurrent()
    cuda.cuDevicePrimaryCtxRelease(0)
