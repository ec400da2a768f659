"""One CUDA device behind a few calls: memory, copies, streams. PyCUDA or cuda-python does the work.

Nothing above this module knows which. Each call makes the device's primary context current on the thread that calls and
takes it away again, so the agent lives with other users of CUDA in the same process (TensorRT's runtime API, PyTorch,
a camera's decoder), which share that context.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from agent.errors import EngineError
from agent.log import log_event

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Device", "HostBuffer", "LibraryMissing", "OutOfDeviceMemory", "open_device"]

log = logging.getLogger("agent.engines.device")

GPU_NOT_FREED = "gpu_not_freed"

_INSTALL = (
    "on a Jetson `tools/install-device` builds PyCUDA against JetPack's CUDA; elsewhere `pip install pycuda` or "
    "`pip install cuda-python`, in the agent's environment"
)


class HostBuffer(Protocol):
    """Page-locked memory of the host, which the device reads and writes without a detour."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """Its bytes: (n,) uint8; empty after `free`."""
        ...

    @property
    def device_address(self) -> int | None:
        """The same memory as the device sees it, where it was asked for as mapped; `None` otherwise."""
        ...

    def free(self) -> None:
        """Give the memory back; views of `array` are invalid afterwards. Twice is fine."""
        ...


class Device(Protocol):
    """One CUDA device and its primary context; every call works from every thread.

    Every method raises `EngineError` with the device, what failed and the driver's words. What was not given back is
    freed by `close`.
    """

    @property
    def name(self) -> str:
        """The driver's name of it: `Orin`."""
        ...

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(8, 7) for an Orin."""
        ...

    @property
    def cuda(self) -> str:
        """The CUDA version that the library was built for: `12.6`."""
        ...

    @property
    def driver_cuda(self) -> str:
        """The newest CUDA version that the driver can do: `12.6`. It is not the driver's own version."""
        ...

    @property
    def memory_bytes(self) -> int:
        """All its memory; on a Jetson that is the board's."""
        ...

    @property
    def is_integrated(self) -> bool:
        """Whether it shares its memory with the CPU, as every Jetson does."""
        ...

    @property
    def can_map(self) -> bool:
        """Whether `host(…, mapped=True)` works."""
        ...

    @property
    def can_capture(self) -> bool:
        """Whether the library can record a CUDA graph."""
        ...

    @property
    def library(self) -> str:
        """What does the work: `pycuda 2026.1`."""
        ...

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        ...

    def allocate(self, n_bytes: int) -> int:
        """Device memory; gives its address.

        Raises:
            OutOfDeviceMemory: there is not so much.
        """
        ...

    def free(self, address: int) -> None:
        """Give `allocate`'s memory back. Twice is fine."""
        ...

    def host(self, n_bytes: int, *, mapped: bool = False) -> HostBuffer:
        """Page-locked host memory.

        Args:
            n_bytes: its size.
            mapped: the device shall see it too, so that nothing needs to be copied.

        Raises:
            OutOfDeviceMemory: there is not so much.
        """
        ...

    def copy_in(self, address: int, source: HostBuffer, stream: int) -> None:
        """Copy the whole buffer to the device, asynchronously: leave it alone until `synchronize`."""
        ...

    def copy_out(self, target: HostBuffer, address: int, stream: int) -> None:
        """Fill the whole buffer from the device, asynchronously: it is there after `synchronize`."""
        ...

    def stream(self) -> int:
        """A new stream of its own order; gives its handle."""
        ...

    def release_stream(self, handle: int) -> None:
        """End a stream. Twice is fine."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until all that the stream was given is done."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """The context is current on this thread inside the block, for calls of others (TensorRT)."""
        ...

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Record what `work` gives to the stream, run none of it; gives the handle of the graph (`can_capture`)."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Give the recorded work to the stream, all at once."""
        ...

    def release_graph(self, graph: int) -> None:
        """Forget a graph. Twice is fine."""
        ...

    def close(self) -> None:
        """Free all that is left and release the primary context; every other call raises afterwards.

        Twice is fine. It does not raise: what the driver refuses is logged, and ends with the context or the process.
        """
        ...


class LibraryMissing(EngineError):  # noqa: N818 - says what is missing
    """A CUDA library for Python that is not installed."""


class OutOfDeviceMemory(EngineError):  # noqa: N818 - says what is lacking
    """The device has less memory free than was asked for."""


def open_device(prefer: Literal["auto", "pycuda", "cuda-python"] = "auto", ordinal: int = 0) -> Device:
    """Open a CUDA device and retain its primary context.

    Args:
        prefer: the library that does the work; `auto` takes PyCUDA, or cuda-python where PyCUDA is not installed.
        ordinal: the device's number, from 0.

    Raises:
        EngineError: no such library, no driver, no GPU, no such number; the hint says what to do.
    """
    if prefer == "cuda-python":
        return _cuda_python(ordinal)
    try:
        return _pycuda(ordinal)
    except LibraryMissing as error:
        if prefer == "pycuda":
            raise
        first = error
    try:
        return _cuda_python(ordinal)
    except LibraryMissing as error:
        raise LibraryMissing(f"{first.message}, and {error.message}", hint=_INSTALL) from error


def _pycuda(ordinal: int) -> Device:
    from agent.engines.cuda_pycuda import PyCudaDevice

    return PyCudaDevice(ordinal)


def _cuda_python(ordinal: int) -> Device:
    from agent.engines.cuda_python import CudaPythonDevice

    return CudaPythonDevice(ordinal)


def library_missing(library: str) -> LibraryMissing:
    """It is not installed."""
    return LibraryMissing(f"{library} is not installed", hint=_INSTALL)


def library_broken(library: str, error: Exception) -> EngineError:
    """It is installed and can't be loaded: most often NVIDIA's driver is missing, or it was built for another CUDA."""
    words = str(error)
    if "libcuda" in words or "NVIDIA driver" in words:
        return EngineError(
            f"{library} finds no NVIDIA driver here ({words})",
            hint="install JetPack or NVIDIA's driver; in a container start it with `--runtime nvidia` or `--gpus all`",
        )
    return EngineError(
        f"{library} can't be loaded ({words})", hint=f"build it again for this machine's CUDA: {_INSTALL}"
    )


def no_gpu(library: str, words: str) -> EngineError:
    """A driver and no device that this user may open."""
    return EngineError(
        f"{library} finds no GPU ({words})",
        hint="run `nvidia-smi` (on a Jetson `ls -l /dev/nvhost* /dev/nvmap`) as the agent's user; that user must be in "
        "the groups video and render",
    )


def no_such_gpu(ordinal: int, count: int) -> EngineError:
    """A number beyond the last device."""
    return EngineError(f"GPU {ordinal} is not there; this machine has {count}", hint=f"take a number below {count}")


def out_of_memory(device: str, asked_bytes: int, free_bytes: int | None, what: str) -> OutOfDeviceMemory:
    """How much was asked for and how much is free."""
    free = "an unknown amount" if free_bytes is None else f"{free_bytes / 2**20:.1f} MB"
    return OutOfDeviceMemory(
        f"{device}: {asked_bytes / 2**20:.1f} MB of {what} were asked for, {free} is free",
        hint="end what else uses the GPU (on a Jetson: the desktop, other containers; `tegrastats` shows it), "
        "or take a smaller input or model",
    )


def call_failed(device: str, what: str, words: str) -> EngineError:
    """A call that the driver refused, or that reports an earlier fault of the GPU."""
    return EngineError(
        f"{device}: {what} failed ({words})",
        hint="start the agent again; if it comes back, `dmesg | grep -iE 'nvrm|gpu|xid'` has the GPU's faults",
    )


def closing_failed(error: EngineError) -> None:
    """The driver refused to free something while a device was closed: told, for nothing can be done about it."""
    log_event(log, GPU_NOT_FREED, logging.WARNING, reason=error.message)


def cuda_version(number: int) -> str:
    """12060 is `12.6` (1000 * major + 10 * minor, as `cuDriverGetVersion` gives it)."""
    return f"{number // 1000}.{number % 1000 // 10}"
