"""A stand-in for PyCUDA on a GPU that is not here: `with installed() as gpu: import pycuda.driver`.

Its device memory is host memory, so an address is good for `ctypes`. `gpu.live` is the account of all that was taken
and not given back (`with installed() as ledger: … ledger.live == {}`); `gpu.current` is this thread's current context.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import sys
import types
from collections.abc import Iterator
from typing import Any

from tests.kit.pycuda.driver import NAMES, make_driver
from tests.kit.pycuda.gpu import CudaError, Gpu

__all__ = ["NAMES", "CudaError", "Gpu", "installed"]

_MODULES = ("pycuda", "pycuda.driver", "pycuda._driver")
_NO_LIBCUDA = "libcuda.so.1: cannot open shared object file: No such file or directory"


class _NoDriver(importlib.abc.MetaPathFinder):
    """`import pycuda.driver` on a machine without NVIDIA's driver."""

    def __init__(self, words: str) -> None:
        self._words = words

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "pycuda.driver":
            raise ImportError(self._words)


@contextlib.contextmanager
def installed(
    gpu: Gpu | None = None, *, without_driver: bool = False, words: str = _NO_LIBCUDA, **faults: Any
) -> Iterator[Gpu]:
    """Put `pycuda` into `sys.modules`, and take it out again.

    Args:
        gpu: the GPU to stand on; one of its own otherwise.
        without_driver: `import pycuda.driver` fails as it does without libcuda.so.1.
        words: it fails with these words.
        **faults: fields of `Gpu`: `memory_bytes=1 << 20`, `fail_at=7`, `fail_call="cuMemAlloc"`, `count=0`.
    """
    made = gpu if gpu is not None else Gpu(**faults)
    before = {name: sys.modules.get(name) for name in _MODULES}
    package = types.ModuleType("pycuda")
    package.__path__ = []
    package.VERSION_TEXT = "2026.1"  # type: ignore[attr-defined]
    sys.modules["pycuda"] = package
    if without_driver:
        sys.modules.pop("pycuda.driver", None)
    else:
        package.driver = sys.modules["pycuda.driver"] = make_driver(made)  # type: ignore[attr-defined]
    finder = _NoDriver(words)
    if without_driver:
        sys.meta_path.insert(0, finder)
    try:
        yield made
    finally:
        if without_driver:
            sys.meta_path.remove(finder)
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
