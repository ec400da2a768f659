"""The door to GStreamer and Aravis: what is missing is said with what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.cameras.gi_door import gi_modules
from agent.errors import CameraError
from tests.kit.aravis_cameras import aravis

ROOT = Path(__file__).parents[2]
WITHOUT_GI = """
import sys
from pathlib import Path
sys.modules["gi"] = None  # as if this environment had none
from agent.cameras import gi_door
from agent.errors import CameraError
gi_door.SYSTEM_PACKAGES = (Path(sys.argv[1]),)
try:
    gi_door.gi_modules({"Aravis": "0.8"}, packages="gir1.2-aravis-0.8")
except CameraError as error:
    print(error)
print([name for name, module in sys.modules.items() if module and (name == "gi" or name.startswith("gi."))])
"""


def told_without_gi(folder: Path) -> str:
    """What is said when this folder is all that there is, and which modules of it are left."""
    command = [sys.executable, "-c", WITHOUT_GI, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60).stdout


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"Aravis": "0.8", "Nothing": "1.0"}, "Aravis 0.8 and Nothing 1.0 can't be loaded through gi"),
        ({"Aravis": "0.6"}, "Aravis 0.6 can't be loaded through gi"),
    ],
    ids=["missing", "other-version"],
)
def test_a_library_that_is_not_there_is_named_with_its_package(versions: dict[str, str], words: str) -> None:
    """`gi` says so with a ValueError."""
    aravis()
    with pytest.raises(CameraError) as caught:
        gi_modules(versions, packages="gir1.2-aravis-0.8")

    assert words in caught.value.message
    assert "apt install gir1.2-aravis-0.8" in str(caught.value.hint)


def test_without_gi_the_packages_are_said(tmp_path: Path) -> None:
    """A fresh device."""
    told = told_without_gi(tmp_path)

    assert "PyGObject (gi) can't be loaded into Python" in told
    assert "apt install python3-gi gir1.2-aravis-0.8" in told


def test_a_gi_of_another_python_leaves_nothing_behind(tmp_path: Path) -> None:
    """The distribution's compiled part does not fit; half a package in `sys.modules` would hide that the next time."""
    (tmp_path / "gi").mkdir()
    (tmp_path / "gi" / "__init__.py").write_text("from . import _gi\n")

    told = told_without_gi(tmp_path)

    assert "cannot import name '_gi'" in told
    assert told.splitlines()[-1] == "[]"


def test_it_gives_the_same_modules_again() -> None:
    """Two cameras, one library."""
    aravis()
    first = gi_modules({"Aravis": "0.8", "GLib": "2.0"}, packages="gir1.2-aravis-0.8")

    assert gi_modules({"Aravis": "0.8", "GLib": "2.0"}, packages="gir1.2-aravis-0.8") == first


THROWS_AFTER_GSTREAMER = """
from agent.cameras.gi_door import gi_modules
from agent.errors import CameraError
try:
    gi_modules({"Gst": "1.0"}, packages="")[0].init(None)
except CameraError as error:
    print("skip", error.message)
    raise SystemExit from None
import onnxruntime
try:
    onnxruntime.InferenceSession(b"no graph")
except Exception as error:
    print("caught", type(error).__name__)
"""


def test_an_exception_of_a_library_that_comes_after_gstreamer_is_one() -> None:
    """And not the end of the process: GStreamer brings another unwinder with it."""
    command = [sys.executable, "-c", THROWS_AFTER_GSTREAMER]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    if ran.stdout.startswith("skip"):
        pytest.skip(f"needs GStreamer through gi: {ran.stdout}")

    assert (ran.returncode, ran.stdout) == (0, "caught InvalidProtobuf\n")
