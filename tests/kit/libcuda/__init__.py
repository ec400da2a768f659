"""A stand-in `libcuda.so.1`, compiled here, for the real PyCUDA and the real cuda-python: `with on_libcuda("pycuda")`.

PyCUDA's extension module wants all 140 functions that it was built with: those that `libcuda.c` lacks are made as
functions that return CUDA_ERROR_NOT_SUPPORTED. The library is loaded once per process, before either package looks for
the driver; both then find it by its soname.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import ctypes.util
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["LibCuda", "build", "driver_api", "missing_for", "on_libcuda"]

SOURCE = Path(__file__).with_name("libcuda.c")
MODULES = {"pycuda": ("pycuda",), "cuda-python": ("cuda", "cuda.bindings")}


class LibCuda:
    """The loaded library, and the account of all that was taken from it; the fields are those of `tests.kit.pycuda`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.standin_call.restype = ctypes.c_char_p
        library.standin_reset.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
        library.standin_fail.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]

    def reset(self, *, count: int = 1, memory_bytes: int = 1 << 30, is_integrated: bool = True) -> None:
        """A new machine: nothing allocated, no fault."""
        self.library.standin_reset(count, memory_bytes, is_integrated, True)

    def fail(self, *, at: int = 0, call: str = "", code: int = 719) -> None:
        """The call of this number from the reset on fails once; every call of this name does."""
        self.library.standin_fail(at, call.encode(), code)

    @property
    def live(self) -> dict[str, int]:
        """What is held now; the context stack is this thread's."""
        text = ctypes.create_string_buffer(1 << 16)
        self.library.standin_live(text, len(text))
        lines = (line.rsplit("=", 1) for line in text.value.decode().splitlines())
        return {what: int(size) for what, size in lines}

    @property
    def calls(self) -> list[str]:
        """The names of the calls made, in order."""
        return [self.library.standin_call(i).decode() for i in range(self.library.standin_n_calls())]

    @property
    def n_calls(self) -> int:
        """How many calls were made."""
        return int(self.library.standin_n_calls())

    @property
    def n_reclaimed(self) -> int:
        """How many blocks and streams were still held when their context ended."""
        return int(self.library.standin_n_reclaimed())

    @property
    def torn(self) -> int:
        """How many copies were still under way when their memory was freed."""
        return int(self.library.standin_n_torn())


def missing_for(package: str) -> str | None:
    """Why this package can't run here on the stand-in library, in words; `None` when it can."""
    if shutil.which("cc") is None:
        return "no C compiler (apt install gcc)"
    if _headers() is None:
        return "no cuda.h (CUDA's headers, or CUDA_ROOT)"
    if not all(_is_importable(name) for name in MODULES[package]):
        return f"{package} is not installed (see tests/kit/libcuda/README.md)"
    if ctypes.util.find_library("cuda") is not None:
        return "a real NVIDIA driver is here; the stand-in would hide it"
    return None


@contextlib.contextmanager
def on_libcuda(**machine: int) -> Iterator[LibCuda]:
    """The library with nothing allocated, for one test.

    Args:
        **machine: `count`, `memory_bytes`, `is_integrated`.
    """
    library = _load()
    library.reset(**machine)  # type: ignore[arg-type]
    yield library
    library.reset()


def driver_api() -> Any:
    """cuda-python's module of the driver API."""
    return importlib.import_module("cuda.bindings.driver")


@functools.cache
def _load() -> LibCuda:
    folder = Path(tempfile.mkdtemp(prefix="standin-libcuda-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = build(folder)
    return LibCuda(ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL))


def build(folder: Path) -> Path:
    """Compile the library into a folder; PyCUDA, where it is installed, says which functions must be there."""
    headers = _headers()
    assert headers is not None
    written = set(re.findall(r"CUresult (cu\w+)\(", SOURCE.read_text(encoding="utf-8")))
    stubs = "".join(f"int {name}(void) {{ return 801; }}\n" for name in sorted(_wanted() - written))
    (folder / "stubs.c").write_text(stubs, encoding="utf-8")
    path = folder / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-O1", "-w", f"-I{headers}", "-Wl,-soname,libcuda.so.1", "-o", str(path)]
    subprocess.run([*command, str(SOURCE), str(folder / "stubs.c"), "-lpthread", "-ldl"], check=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")  # for `-lcuda`, when PyCUDA is built
    return path


def _wanted() -> set[str]:
    spec = importlib.util.find_spec("pycuda")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    found: set[str] = set()
    for extension in (file for folder in folders for file in Path(folder).glob("_driver*.so")):
        said = subprocess.run(["nm", "-D", "--undefined-only", str(extension)], check=True, capture_output=True)
        found.update(re.findall(r"\bU (cu[A-Z]\w+)", said.stdout.decode()))
    return found


def _headers() -> Path | None:
    for root in (os.environ.get("CUDA_ROOT"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if root and (Path(root) / "include" / "cuda.h").is_file():
            return Path(root) / "include"
    return None


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
