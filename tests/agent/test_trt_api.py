"""TensorRT's door: what is missing is said in words, and each TensorRT has one logger."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from agent.engines.trt_api import TrtLog, load_tensorrt
from agent.errors import EngineError
from tests.kit.tensorrt import VERSIONS, installed


@pytest.mark.parametrize("version", VERSIONS)
def test_the_version_and_what_it_has(version: str) -> None:
    with installed(version):
        api = load_tensorrt()

        assert ".".join(map(str, api.version)) == version
        assert api.name == f"TensorRT {version}"
        assert api.has("BuilderFlag.FP16") == (not version.startswith("11."))
        assert api.has("IBuilderConfig.progress_monitor") == (version != "8.6.1")
        assert not api.has("Builder.build_engine_of_tomorrow")
        assert not api.has("NoSuchClass.member")


def test_tensorrt_that_is_not_installed_is_told_with_the_way_to_get_it() -> None:
    """On a Jetson the wheels of PyPI are wrong, so the hint says where it comes from."""
    with pytest.raises(EngineError, match="not installed for this Python") as raised:
        load_tensorrt()

    assert "python3-libnvinfer" in str(raised.value.hint)
    assert "--system-site-packages" in str(raised.value.hint)


def test_a_wheel_without_its_libraries_is_told_apart_from_none() -> None:
    with (
        installed("10.3.0", import_fails="libnvinfer.so.10: cannot open shared object file"),
        pytest.raises(EngineError, match=r"can't be loaded \(libnvinfer.so.10: cannot open shared object file\)"),
    ):
        load_tensorrt()


def test_a_folder_that_an_uninstall_left_is_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python imports an empty folder as a package."""
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))

    with pytest.raises(EngineError, match="only half there"):
        load_tensorrt()


def test_tensorrt_8_5_is_too_old_and_jetpack_5_has_another_way() -> None:
    """8.5 has no builder optimization level."""
    with installed("8.6.1") as standin:
        del standin.module.IBuilderConfig.builder_optimization_level

        with pytest.raises(EngineError, match=r"lacks IBuilderConfig\.builder_optimization_level") as raised:
            load_tensorrt()

    assert "trtexec" in str(raised.value.hint)


def test_a_release_of_four_numbers_has_three() -> None:
    with installed("10.13.3") as standin:
        standin.module.__dict__["__version__"] = "10.13.3.9"

        assert load_tensorrt().version == (10, 13, 3)


def test_a_version_that_is_none_is_refused() -> None:
    with installed("10.3.0") as standin:
        standin.module.__dict__["__version__"] = "nightly"

        with pytest.raises(EngineError, match="got 'nightly', expected numbers"):
            load_tensorrt()


def test_one_logger_for_a_module_and_another_for_another_module() -> None:
    """TensorRT ignores a second logger; a logger of another module is none."""
    with installed("10.3.0"):
        first = load_tensorrt()
        assert load_tensorrt() is first
    with installed("8.6.1") as standin:
        second = load_tensorrt()

        assert second.log is not first.log
        assert isinstance(second.log, standin.module.ILogger)


def test_the_log_gives_what_was_said_once() -> None:
    with installed("10.3.0") as standin:
        api = load_tensorrt()
        severity = standin.module.ILogger.Severity
        api.log.log(severity.INTERNAL_ERROR, "internal\n")
        api.log.log(severity.ERROR, "error")
        api.log.log(severity.WARNING, "warning")
        api.log.log(severity.INFO, "info")

        assert api.log.errors() == ("internal", "error")
        assert api.log.errors() == ()
        assert api.log.warnings() == ("warning",)
        assert api.log.warnings() == ()


def test_a_chatty_tensorrt_does_not_fill_the_memory() -> None:
    """A line runs for months; the newest lines are the ones that say why."""
    log = TrtLog()
    for i in range(1000):
        log.log("Severity.ERROR", str(i))

    said = log.errors()

    assert len(said) == 200
    assert said[-1] == "999"
