"""One installed stand-in: its faults, what was called, what is alive, and the logger that it was given."""

from __future__ import annotations

import dataclasses
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.kit.tensorrt.plan import Build
from tests.kit.tensorrt.surface import Numbered

__all__ = ["Faults", "World"]

LAST_WITH_DLA = (10, 7)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The machine, and what is wrong with it.

    Attributes:
        compute_capability: of the GPU; a plan of another one is refused.
        device: the GPU's name.
        memory_mb: of the GPU; the workspace's limit until one is set.
        dla_cores: how many there are; TensorRT after 10.7 has none here whatever this says.
        no_gpu: neither builder nor runtime can be made.
        import_fails: `import tensorrt` raises ImportError with these words.
        strong_typing_fails: a strongly typed Q/DQ network is refused (as on Orin: NVIDIA/TensorRT#4832).
        needs_workspace_mb: with less, a build finds no implementation.
        build_out_of_memory: a build runs out of GPU memory.
        load_out_of_memory: deserializing does.
        context_out_of_memory: making a context does.
        hold_build: a build makes the file `PATH`, and waits until it is removed: kill it there.
        on_execute: called at each inference, before it; may raise, or let a clock go on.
    """

    compute_capability: tuple[int, int] = (8, 7)
    device: str = "Orin"
    memory_mb: int = 8192
    dla_cores: int = 0
    no_gpu: bool = False
    import_fails: str | None = None
    strong_typing_fails: bool = False
    needs_workspace_mb: int = 0
    build_out_of_memory: bool = False
    load_out_of_memory: bool = False
    context_out_of_memory: bool = False
    hold_build: Path | None = None
    on_execute: Callable[[], None] | None = None


class World:
    """What a test holds of an installed stand-in.

    Attributes:
        version: the TensorRT that it plays.
        module: what `import tensorrt` gives.
        faults: the machine's.
        builds: what each build was asked for, in order.
        calls: how often each call was made: `IExecutionContext.execute_async_v3`, `IBuilderConfig.DLA_core =`.
    """

    def __init__(self, version: str, faults: Faults) -> None:
        self.version = version
        self.faults = faults
        self.module = ModuleType("tensorrt")
        self.builds: list[Build] = []
        self.calls: Counter[str] = Counter()
        self._alive: dict[str, weakref.WeakSet[Any]] = {}
        self._logger: Any = None
        self._planned: dict[str, list[Exception | None]] = {}

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version as numbers."""
        return tuple(int(part) for part in self.version.split("."))

    @property
    def dla_cores(self) -> int:
        """How many DLA cores this TensorRT sees."""
        return self.faults.dla_cores if self.numbers[:2] <= LAST_WITH_DLA else 0

    @property
    def needs_explicit_batch(self) -> bool:
        """Whether a network without the flag is one with an implicit batch."""
        return self.numbers[0] < 10

    @property
    def cache_header(self) -> str:
        """The first line of a calibration cache that this version takes."""
        major, minor, patch = self.numbers
        scale = 10_000 if major >= 10 else 1000
        return f"TRT-{major * scale + minor * 100 + patch}-EntropyCalibration2"

    @property
    def machine_words(self) -> str:
        """Whose timings these are."""
        return f"{self.version} on {self.faults.device} {self.faults.compute_capability}"

    def live(self) -> dict[str, int]:
        """How many objects of each class are alive: `{"ICudaEngine": 1, "Runtime": 1}`; the logger is left out."""
        counts = {kind: len(found) for kind, found in sorted(self._alive.items())}
        return {kind: count for kind, count in counts.items() if count and "Logger" not in kind}

    def fail(self, name: str, error: Exception | None = None, *, after: int = 0) -> None:
        """Let a call fail once.

        Args:
            name: as in `calls`; a setter is `IBuilderConfig.DLA_core =`.
            error: what it raises; RuntimeError when None.
            after: how many such calls go well before it.
        """
        fault = error if error is not None else RuntimeError(f"planted: {name}")
        self._planned[name] = [*[None] * after, fault]

    def called(self, name: str) -> None:
        """Hear of a call; raises what was planned for it."""
        self.calls[name] += 1
        planned = self._planned.get(name)
        if planned:
            fault = planned.pop(0)
            try:
                if fault is not None:
                    raise fault
            finally:
                del fault  # else its traceback would keep this frame, and all that is alive above it

    def made(self, kind: str, public: object) -> None:
        """Hear of an object."""
        self._alive.setdefault(kind, weakref.WeakSet()).add(public)

    def refused(self, part: Any, text: str) -> None:
        """Hear of a refusal: it goes to the log."""
        self.log("ERROR", text)

    def take_logger(self, logger: Any) -> None:
        """The first one is the process's; another is told that it is not heard."""
        if "ILogger" not in [base.__name__ for base in type(logger).__mro__]:
            raise TypeError(f"incompatible function arguments: got {logger!r}, expected tensorrt.ILogger")
        if self._logger is None:
            self._logger = logger
        elif self._logger is not logger:
            self.log("WARNING", "The logger passed in differs from one already provided for an existing builder")

    def log(self, severity: str, text: str) -> None:
        """Say something through the logger that it was given."""
        if self._logger is not None:
            self._logger.log(self.module.ILogger.Severity[severity], text)

    def need_gpu(self) -> None:
        """TypeError as pybind11 raises it where TensorRT finds no GPU."""
        if self.faults.no_gpu:
            self.log("ERROR", "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def enum(self, value: Any, kind: str) -> str:
        """The name of an enum's value; TypeError where it is a number or another enum's."""
        if not isinstance(value, Numbered) or type(value).__name__ != kind:
            raise TypeError(f"incompatible function arguments: got {value!r}, expected tensorrt.{kind}")
        return value.name

    def dims(self, shape: tuple[int, ...]) -> Any:
        """A shape as TensorRT gives it."""
        return self.module.Dims(shape)

    def hold(self) -> None:
        """Wait in the middle of a build, where a test asks for it."""
        gate = self.faults.hold_build
        if gate is None:
            return
        gate.write_text("building\n")
        end = time.monotonic() + 120
        while gate.exists() and time.monotonic() < end:
            time.sleep(0.01)

    def executed(self) -> None:
        """Hear of an inference."""
        if self.faults.on_execute is not None:
            self.faults.on_execute()


VERSION = re.compile(r"\d+\.\d+\.\d+")
