"""TensorRT's door: the only import of `tensorrt` in the agent, its one logger, and what this version has.

TensorRT 8.6, 10 and 11 differ in names; what a version has is looked up by name and never told from its number, nor are
an enum's values written as numbers (the bit of `STRONGLY_TYPED` moved between 10 and 11).
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import threading
from types import ModuleType
from typing import Any

from agent.errors import EngineError

__all__ = ["TensorRt", "TrtLog", "load_tensorrt", "tensorrt_of"]

NEEDED = (
    "Builder",
    "OnnxParser",
    "Runtime",
    "ILogger",
    "IBuilderConfig.set_memory_pool_limit",
    "IBuilderConfig.builder_optimization_level",
    "IExecutionContext.execute_async_v3",
)
"""What the agent can't do without; TensorRT has all of it from 8.6 on."""

KEPT_LINES = 200
ERRORS = frozenset({"ERROR", "INTERNAL_ERROR"})

_INSTALL = (
    "on a Jetson: sudo apt install python3-libnvinfer python3-libnvinfer-dev, and a virtual environment made with "
    "--system-site-packages; on a workstation: pip install tensorrt"
)


class TrtLog:
    """What TensorRT said, kept until it is asked for.

    It is TensorRT's `ILogger` itself: give it to `Builder`, `OnnxParser` and `Runtime`. TensorRT takes one logger per
    process and ignores every other, so there is one for each module. May be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: list[str] = []
        self._warnings: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        """Hear a line; TensorRT calls this."""
        name = str(severity).rpartition(".")[2]
        lines = self._errors if name in ERRORS else self._warnings if name == "WARNING" else None
        if lines is None:
            return
        with self._lock:
            lines.append(msg.strip())
            del lines[:-KEPT_LINES]

    def errors(self) -> tuple[str, ...]:
        """The errors since they were last asked for, oldest first; they are forgotten."""
        with self._lock:
            said, self._errors[:] = tuple(self._errors), []
        return said

    def warnings(self) -> tuple[str, ...]:
        """The warnings since they were last asked for, oldest first; they are forgotten."""
        with self._lock:
            said, self._warnings[:] = tuple(self._warnings), []
        return said


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorRt:
    """One TensorRT.

    Attributes:
        module: the library; its classes have no types.
        version: the first three numbers of its version, such as (10, 3, 0): for names of files and for people.
        log: what it said; also its logger.
    """

    module: Any
    version: tuple[int, int, int]
    log: TrtLog

    @property
    def name(self) -> str:
        """`TensorRT 10.3.0`."""
        return f"TensorRT {'.'.join(map(str, self.version))}"

    def has(self, dotted: str) -> bool:
        """Whether this version has a name.

        Args:
            dotted: a class, or a member of a class or an enum: `BuilderFlag.FP16`, `IBuilderConfig.progress_monitor`.
        """
        found: Any = self.module
        for part in dotted.split("."):
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True


_lock = threading.Lock()
_known: list[TensorRt] = []
"""The last one that was loaded; a process has one, tests have several in turn."""


def load_tensorrt() -> TensorRt:
    """Import TensorRT; the same object each time, as long as `import tensorrt` gives the same module.

    Raises:
        EngineError: it is not installed, can't be loaded, or is older than 8.6; with the remedy.
    """
    try:
        module = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise EngineError(f"TensorRT can't be imported: it needs {error.name}", hint=_INSTALL) from error
        words = f"TensorRT is not installed for this Python ({sys.version_info[0]}.{sys.version_info[1]}, {sys.prefix})"
        raise EngineError(words, hint=_INSTALL) from error
    except Exception as error:  # a broken install raises what it likes; without it the CPU may still judge parts
        raise EngineError(
            f"TensorRT is installed, but can't be loaded ({error})",
            hint="install the libraries of the same release (on a Jetson: sudo apt install --reinstall tensorrt "
            "python3-libnvinfer); in a container, start it with the NVIDIA runtime",
        ) from error
    return tensorrt_of(module)


def tensorrt_of(module: ModuleType) -> TensorRt:
    """What a module is, with the one logger that belongs to it.

    Args:
        module: `tensorrt`, or one with the same names, such as `tensorrt_rtx`.

    Raises:
        EngineError: it lacks what the agent needs.
    """
    with _lock:
        if _known and _known[0].module is module:
            return _known[0]
        found = _checked(module)
        _known[:] = [found]
        return found


def _checked(module: ModuleType) -> TensorRt:
    if not hasattr(module, "ILogger") or not hasattr(module, "__version__"):
        raise EngineError(
            f"TensorRT is only half there: {module.__name__} at {getattr(module, '__path__', '?')} has no classes",
            hint=f"remove that folder, or install it again; {_INSTALL}",
        )
    found = TensorRt(module=module, version=_version(module), log=_logger(module))
    missing = [name for name in NEEDED if not found.has(name)]
    if missing:
        raise EngineError(
            f"{found.name} lacks {', '.join(missing)}; the agent needs 8.6 or newer",
            hint="update JetPack to 6.1; for JetPack 5, `defect-opt build --target trtexec` writes a build script",
        )
    return found


def _version(module: ModuleType) -> tuple[int, int, int]:
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", str(module.__version__))
    if numbers is None:
        raise EngineError(f"TensorRT's version: got {module.__version__!r}, expected numbers such as 10.3.0")
    major, minor, patch = (int(part or 0) for part in numbers.groups())
    return major, minor, patch


def _logger(module: Any) -> TrtLog:
    """A `TrtLog` that is an `ILogger` of this module, too."""

    class Logger(TrtLog, module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            TrtLog.__init__(self)
            module.ILogger.__init__(self)

    return Logger()
