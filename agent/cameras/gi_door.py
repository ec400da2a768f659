"""The one door to GObject introspection (PyGObject, `gi`), through which GStreamer and Aravis are reached.

`gi` comes from the distribution, as its libraries do; a virtual environment does not see it, and building it there
needs a compiler and headers. So, where the environment has none, the distribution's own `gi` is taken: that one package
and nothing else of the system's. It holds a compiled part, so this works only for the Python that the distribution
built it for; for another one `gi` has to be installed in the environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.machinery
import importlib.util
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from agent.errors import CameraError

__all__ = ["gi_modules"]

SYSTEM_PACKAGES = (Path("/usr/lib/python3/dist-packages"),)
"""Where Debian, Ubuntu, Raspberry Pi OS and JetPack keep their Python packages."""

_loading = threading.Lock()


def gi_modules(versions: Mapping[str, str], *, packages: str) -> tuple[Any, ...]:
    """Import libraries through `gi`.

    May be called from several threads, and again at will.

    Args:
        versions: name of each library to its version, such as `{"Gst": "1.0", "GstApp": "1.0"}`.
        packages: of the distribution, that hold them, for the hint: `gir1.2-gstreamer-1.0`.

    Returns:
        The modules, in the order of `versions`; they are untyped.

    Raises:
        CameraError: `gi` or one of them is not installed, can't be loaded, or is there in another version.
    """
    with _loading, warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # gi before 3.44 loads its modules as Python 3.3 did
        gi = _gi(packages)
        try:
            for name, version in versions.items():
                gi.require_version(name, version)
            return tuple(importlib.import_module(f"gi.repository.{name}") for name in versions)
        except (ImportError, ValueError) as error:  # ValueError: gi's word for "no such library, or not that version"
            wanted = " and ".join(f"{name} {version}" for name, version in versions.items())
            raise CameraError(
                f"{wanted} can't be loaded through gi: {error}", hint=f"apt install {packages}, then start again"
            ) from error


def _gi(packages: str) -> Any:
    """The package `gi`: the environment's, else the distribution's."""
    present = sys.modules.get("gi")
    if present is not None:
        return present
    _keep_unwinder()
    hint = f"apt install python3-gi {packages}, or pip install PyGObject for a Python that is not the distribution's"
    try:
        if importlib.util.find_spec("gi") is not None:
            return importlib.import_module("gi")
        return _from_distribution()
    except ImportError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        raise CameraError(f"PyGObject (gi) can't be loaded into Python {version}: {error}", hint=hint) from error


def _keep_unwinder() -> None:
    """Let C++ exceptions go through the compiler's own unwinder, also after GStreamer has come.

    GStreamer brings libunwind into the process for all to see, and with it other functions of the same names
    (`_Unwind_RaiseException`). A library that came later took those, and its first exception ended the process: ONNX
    Runtime on a damaged graph, PyTorch, TensorRT-RTX (seen with GStreamer 1.22 of Debian 12). Who comes first counts.
    """
    with contextlib.suppress(OSError):  # a system without that library has another unwinder
        ctypes.CDLL("libgcc_s.so.1", mode=ctypes.RTLD_GLOBAL)


def _from_distribution() -> ModuleType:
    """Load the distribution's `gi`, and leave everything else of its folder out of the way.

    Raises:
        ImportError: there is none, or it was built for another Python.
    """
    spec = importlib.machinery.PathFinder.find_spec("gi", [str(folder) for folder in SYSTEM_PACKAGES])
    if spec is None or spec.loader is None:
        raise ImportError("no module named gi, neither here nor in " + " or ".join(map(str, SYSTEM_PACKAGES)))
    module = importlib.util.module_from_spec(spec)
    sys.modules["gi"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for name in [name for name in sys.modules if name == "gi" or name.startswith("gi.")]:
            del sys.modules[name]
        raise
    return module
