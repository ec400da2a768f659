"""Opening a CUDA device where something is missing: which library is taken, and what a person is told to do."""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

import pytest

from agent.engines.device import LibraryMissing, open_device
from agent.errors import EngineError
from tests.kit.pycuda import NAMES, installed


class _Absent(importlib.abc.MetaPathFinder):
    """Packages that are not installed."""

    def __init__(self, *packages: str) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither PyCUDA nor cuda-python, whatever this environment has."""
    _take_away(monkeypatch, "pycuda", "cuda")


@pytest.fixture
def no_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    _take_away(monkeypatch, "cuda")


def _take_away(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Absent(*packages), *sys.meta_path])


@pytest.mark.usefixtures("nothing_installed")
def test_without_any_library_both_are_named_with_the_remedy() -> None:
    """One sentence, and the commands."""
    with pytest.raises(LibraryMissing, match="PyCUDA is not installed, and cuda-python is not installed") as caught:
        open_device()

    assert "tools/install-device" in str(caught.value)


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(("prefer", "name"), [("pycuda", "PyCUDA"), ("cuda-python", "cuda-python")])
def test_the_library_that_was_asked_for_is_not_replaced(prefer: Any, name: str) -> None:
    """Only `auto` looks for another."""
    with pytest.raises(LibraryMissing, match=f"^{name} is not installed"):
        open_device(prefer)


@pytest.mark.usefixtures("no_cuda_python")
def test_auto_takes_pycuda() -> None:
    """It is what a Jetson has."""
    with installed() as gpu:
        device = open_device()
        assert device.library == "pycuda 2026.1"
        device.close()
        assert gpu.live == {}


@pytest.mark.usefixtures("no_cuda_python")
def test_a_machine_without_a_driver_is_told_apart_from_a_missing_library() -> None:
    """PyCUDA is there; NVIDIA's libcuda.so.1 is not."""
    with installed(without_driver=True), pytest.raises(EngineError, match=r"PyCUDA finds no NVIDIA driver") as caught:
        open_device()

    assert not isinstance(caught.value, LibraryMissing)
    assert "--runtime nvidia" in str(caught.value)


def test_a_pycuda_that_is_built_for_another_cuda_is_told_to_be_built_again() -> None:
    """Its extension lacks a symbol."""
    words = "_driver.so: undefined symbol: cuCtxCreate_v4"
    with (
        installed(without_driver=True, words=words),
        pytest.raises(EngineError, match=r"PyCUDA can't be loaded .*undefined symbol") as caught,
    ):
        open_device("pycuda")

    assert "build it again" in str(caught.value)


def test_a_driver_that_refuses_to_start_is_told() -> None:
    """As where the user is in the wrong group."""
    with installed(fail_call="cuInit", fail_code=100), pytest.raises(EngineError, match=r"pycuda 2026\.1 finds no GPU"):
        open_device("pycuda")


def test_the_stand_in_has_only_names_that_pycuda_has() -> None:
    """And the others that PyCUDA has say that nobody needed them yet."""
    with installed():
        import pycuda.driver as cuda

        public = {name for name in vars(cuda) if not name.startswith("_")}
        kinds = ("functions", "bases", "enums", "exceptions", "aliases")
        assert public <= {name for kind in kinds for name in NAMES[kind]}
        for kind in (name for name in NAMES["bases"] if name in public):
            members = {name for name in vars(getattr(cuda, kind)) if not name.startswith("_")}
            known = {
                *NAMES["classes"].get(kind, {}),
                *NAMES["classes"]["HostPointer"],
                *NAMES["properties"].get(kind, {}),
            }
            assert members <= known | {"is_valid", "thread"}, kind
        with pytest.raises(NotImplementedError, match="memset_d8"):
            _ = cuda.memset_d8
        with pytest.raises(AttributeError, match="graph_launch"):
            _ = cuda.graph_launch


def test_the_stand_ins_errors_are_no_builtins() -> None:
    """Code that catches `RuntimeError` or `MemoryError` catches nothing of PyCUDA's."""
    with installed():
        import pycuda.driver as cuda

        for name in ("MemoryError", "LogicError", "LaunchError", "RuntimeError"):
            kind = getattr(cuda, name)
            assert issubclass(kind, cuda.Error)
            assert not issubclass(kind, (RuntimeError, MemoryError))


def test_the_stand_in_refuses_a_thread_without_a_context() -> None:
    """As PyCUDA does, whatever another library has made current."""
    with installed():
        import pycuda.driver as cuda

        cuda.init()
        with pytest.raises(cuda.LogicError):
            cuda.mem_alloc(1)
