"""In an environment with the base install only, every module of the agent imports and every help opens.

The environment is this one with the extras hidden: a finder that refuses them, in a fresh interpreter.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import agent
import optimize
from agent.cli import PROGRAM as AGENT
from optimize.cli import PROGRAM as OPTIMIZE

EXTRAS = ("torch", "torchvision", "onnx", "rich", "amqtt", "tensorrt", "pycuda", "picamera2", "gi", "scipy", "pandas")

BARE = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""


def _bare(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BARE + code], capture_output=True, text=True, check=False, timeout=120)


def _modules(package: object) -> list[str]:
    return [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]  # type: ignore[attr-defined]


def test_every_module_of_the_agent_imports_with_the_base_install_alone() -> None:
    names = [n for n in _modules(agent) if not n.endswith("__main__")]
    result = _bare("import importlib\n" + "\n".join(f"importlib.import_module({n!r})" for n in names))

    assert result.stderr == ""
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("program", "command"),
    [("agent", importlib.import_module(name).NAME) for name in AGENT.commands]
    + [("optimize", importlib.import_module(name).NAME) for name in OPTIMIZE.commands],
)
def test_help_opens_and_shows_an_example_with_the_base_install_alone(program: str, command: str) -> None:
    result = _bare(f"from {program}.cli import main\nsys.exit(main([{command!r}, '--help']))")

    assert result.stderr == ""
    assert result.returncode == 0
    assert "examples:" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "--data", ".", "--out", "m.onnx"], "train"),
        (["build", "--int8", "--calib", "."], "optimize"),
        (["inspect", "m.onnx"], "optimize"),
    ],
)
def test_a_command_that_needs_an_extra_says_which_in_one_sentence(arguments: list[str], extra: str) -> None:
    result = _bare(f"from optimize.cli import main\nsys.exit(main({arguments!r}))")

    assert result.returncode == 2
    assert f"pip install -e '.[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_agent_never_imports_the_workbench_or_torch() -> None:
    code = "import agent.app\nprint([m for m in sys.modules if m.split('.')[0] in ('optimize', 'torch', 'onnx')])"
    result = _bare(code)

    assert result.stdout == "[]\n"


def test_the_workbench_has_modules_to_check() -> None:
    assert "optimize.build" in _modules(optimize)


def test_onnxruntime_is_told_to_send_nothing_before_it_is_imported() -> None:
    """Its wheels report to their maker from 1.29 on; a factory's machine talks to nobody unasked."""
    code = (
        "import os\nos.environ.pop('ORT_DISABLE_TELEMETRY', None)\nimport agent\nprint('onnxruntime' in sys.modules)\n"
    )
    result = _bare(code + "print(os.environ['ORT_DISABLE_TELEMETRY'])")

    assert result.stdout == "False\n1\n"
