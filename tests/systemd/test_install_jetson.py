"""tools/install-device on a Jetson: what it finds out, what it refuses, and PyCUDA's build, which goes on where it was.

No Jetson is here. Its root is a folder with the files that tell one; the machine's kind is told by a stand-in of
`uname`, and PyCUDA is a stand-in whose source distribution builds a wheel, as the real one does with CUDA's compiler.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.test_install_device import NOBODY, REPOSITORY, SCRIPT, snapshot, stand_in_wheel

R36 = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"
)
R35 = (
    "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 19:57:35 UTC 2023"
)
R32 = (
    "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, DATE: Sat Feb 19 17:05:08 UTC 2022"
)
R39 = "# R39 (release), REVISION: 2.0, GCID: 0, BOARD: generic, EABI: aarch64, DATE: Fri Jun  5 00:00:00 UTC 2026"
R38 = (
    "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Fri Aug 22 00:55:42 UTC 2025"
)

PYTHON = Path("/usr/bin/python3").resolve()
EXTRA = "Provides-Extra: jetson\nRequires-Dist: pycuda; extra == 'jetson'"
BACKEND = """
import pathlib, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name, info = "pycuda-2026.1-py3-none-any.whl", "pycuda-2026.1.dist-info"
    settings = pathlib.Path.home() / ".aksetup-defaults.py"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("pycuda/__init__.py", settings.read_text())
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: pycuda\\nVersion: 2026.1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


def has_venv() -> bool:
    return subprocess.run([PYTHON, "-c", "import ensurepip, venv"], check=False, capture_output=True).returncode == 0


needs_python = pytest.mark.skipif(
    not re.fullmatch(r"python3\.1\d", PYTHON.name) or not has_venv(),
    reason="needs the system's Python 3.10 or newer with venv (apt install python3 python3-venv)",
)


def jetson(folder: Path, release: str = R36) -> Path:
    """A JetPack's root, as far as the installer looks at it."""
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/nv_tegra_release").write_text(release + "\n")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ndefect-agent:x:990:990::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nvideo:x:44:\nrender:x:104:\ndefect-agent:x:990:\n")
    for name in (
        "usr/local/cuda-12.6/bin/nvcc",
        "usr/bin/g++",
        f"usr/include/{PYTHON.name}/Python.h",
        f"usr/lib/{PYTHON.name}/dist-packages/tensorrt/__init__.py",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch(mode=0o755)
    (root / "usr/local/cuda").symlink_to("cuda-12.6")
    (root / "usr/bin" / PYTHON.name).symlink_to(PYTHON)
    return root


def install(root: Path, *arguments: str | Path, machine: str = "aarch64") -> subprocess.CompletedProcess[str]:
    """Run it on such a machine, as nobody where we are root: nothing is tried in a chroot then."""
    programs = root.parent / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "uname").write_text(f"#!/bin/sh\necho {machine}\n")
    (programs / "uname").chmod(0o755)
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        for path in (root.parent, *root.parent.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    return subprocess.run(
        [SCRIPT, "--root", root, *arguments],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        **who,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where nobody may go in, too."""
    made = Path(tempfile.mkdtemp(prefix="install-jetson-"))
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize(
    ("release", "words", "hint"),
    [
        (R35, "this is JetPack 5 (Jetson Linux 35.4.1), whose Python 3.8 and TensorRT 8.5", "--target trtexec"),
        (R32, "this is Jetson Linux 32.7.1, the agent needs JetPack 6", "another device"),
        ("# nonsense", "no release of Jetson Linux in it", "look at the file"),
    ],
)
def test_an_old_jetpack_is_refused_with_the_way_that_is_left(folder: Path, release: str, words: str, hint: str) -> None:
    """Before anything is changed; JetPack 5's people get engines by trtexec."""
    root = jetson(folder, release)
    before = snapshot(root)
    done = install(root, "--station", "line1")

    assert done.returncode == 2
    assert words in done.stderr
    assert "\nTry: " in done.stderr
    assert hint in done.stderr.splitlines()[1]
    assert {path: entry[3] for path, entry in snapshot(root).items()} == {p: e[3] for p, e in before.items()}


def test_it_can_be_taken_away_from_any_jetpack(folder: Path) -> None:
    """What was installed before an update, or by mistake."""
    assert install(jetson(folder, R35), "--uninstall").returncode == 0


@needs_python
@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (f"usr/lib/{PYTHON.name}/dist-packages/tensorrt/__init__.py", "TensorRT for Python (python3-libnvinfer)"),
        ("usr/local/cuda-12.6/bin/nvcc", "CUDA's compiler (cuda-toolkit)"),
        ("usr/bin/g++", "a C++ compiler (g++)"),
        (f"usr/include/{PYTHON.name}/Python.h", "Python's headers (python3-dev)"),
    ],
)
def test_what_a_small_jetpack_lacks_is_said_before_ten_minutes_of_building(folder: Path, lost: str, words: str) -> None:
    """With the one command that gets it, and the way without a GPU."""
    root = jetson(folder)
    (root / lost).unlink()
    if lost.endswith("__init__.py"):
        (root / lost).parent.rmdir()
    done = install(root, "--station", "line1")

    assert done.returncode == 2
    assert f"missing: {words}\n" in done.stderr
    assert "sudo apt install nvidia-jetpack g++ python3-dev, then again; or --no-gpu" in done.stderr
    assert not (root / "opt").exists()


@needs_python
@pytest.mark.parametrize(
    ("release", "name"),
    [(R36, "36.4.3 (JetPack 6)"), (R38, "38.2.0 (JetPack 7)"), (R39, "39.2.0 (JetPack 7)")],
    ids=["R36", "R38", "R39"],
)
def test_a_dry_run_explains_every_step_and_changes_nothing(folder: Path, release: str, name: str) -> None:
    """On a JetPack 6, and on a JetPack 7 of a Thor and of an Orin."""
    root = jetson(folder, release)
    arguments = ("--from", stand_in_wheel(folder, "defect_agent", "1.0"), "--station", "line1", "--dry-run")
    done = install(root, *arguments)
    before = snapshot(root)
    again = install(root, *arguments)

    assert done.returncode == 0, done.stderr
    assert re.sub(r"/tmp/tmp\.\w+", "", again.stdout) == re.sub(r"/tmp/tmp\.\w+", "", done.stdout)
    assert snapshot(root) == before
    assert not (root / "opt").exists()
    steps = [
        f"Jetson Linux {name}, CUDA in /usr/local/cuda",
        "TensorRT is JetPack's, seen through --system-site-packages",
        "-m venv --system-site-packages",
        "PyCUDA: built from source with /usr/local/cuda",
        "pip wheel",
        "--no-binary pycuda",
        "pip install",
        r"\[jetson\]",
        "20-gpu.conf",
        "defect-agent build-engine --config /etc/defect-agent/line1.yaml",
        "defect-agent accept --config /etc/defect-agent/line1.yaml",
    ]
    places = [done.stdout.find(step) for step in steps]
    assert -1 not in places, steps[places.index(-1)]
    assert places == sorted(places)


@needs_python
def test_without_the_gpu_it_is_an_ordinary_device(folder: Path) -> None:
    """The CPU runs model.cpu.onnx; nothing is built, no driver's device is opened."""
    root = jetson(folder)
    (root / "usr/bin/g++").unlink()
    done = install(root, "--station", "line1", "--no-gpu", "--dry-run")

    assert done.returncode == 0, done.stderr
    assert "PyCUDA" not in done.stdout
    assert "20-gpu.conf" not in done.stdout
    assert "build-engine" not in done.stdout


@needs_python
def test_an_image_on_another_kind_of_machine_is_refused(folder: Path) -> None:
    """PyCUDA must be compiled for the Jetson; a wheel of this machine would fail at the first start."""
    done = install(jetson(folder), "--station", "line1", machine="x86_64")

    assert done.returncode == 2
    assert "is built on one, this machine is x86_64" in done.stderr


def test_the_unit_may_open_the_gpu_and_has_time_to_compile(folder: Path) -> None:
    """Groups and devices; a second run changes nothing, and without a GPU the file goes."""
    root = jetson(folder)
    arguments = ("--skip-program", "--station", "line1")
    assert install(root, *arguments).returncode == 0
    units = root / "etc/systemd/system/defect-agent@.service.d"
    gpu, groups = (units / "20-gpu.conf").read_text(), (units / "10-groups.conf").read_text()
    before = snapshot(root)
    again = install(root, *arguments)
    untouched = snapshot(root) == before
    without = install(root, *arguments, "--no-gpu")

    assert gpu.startswith((REPOSITORY / "systemd/20-gpu.conf").read_text())
    assert "SupplementaryGroups=video render" in groups
    assert untouched
    assert ": written" not in again.stdout
    assert (root / "var/lib/defect-agent/line1").is_dir()
    assert without.returncode == 0
    assert not (units / "20-gpu.conf").exists()


def test_uninstall_takes_the_gpu_file_along(folder: Path) -> None:
    """Nothing of ours stays in /etc/systemd."""
    root = jetson(folder)
    install(root, "--skip-program")
    install(root, "--uninstall")

    assert not list((root / "etc/systemd/system").rglob("*gpu*"))


def source_distribution(folder: Path) -> None:
    """PyCUDA as PyPI has it: source only."""
    path = folder / "pycuda-2026.1.tar.gz"
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: pycuda\nVersion: 2026.1\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"pycuda-2026.1/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    path.chmod(0o644)


@needs_python
@pytest.mark.slow
def test_pycuda_is_built_once_and_a_run_that_was_cut_short_goes_on(folder: Path) -> None:
    """The ten minutes of an Orin Nano are not spent again because a later package was missing, or for an update."""
    root = jetson(folder)
    wheels = folder / "wheelhouse"
    wheels.mkdir()
    source_distribution(wheels)
    one = stand_in_wheel(wheels, "defect_agent", "1.0", requires=f"a-part-of-it\n{EXTRA}")
    arguments = ("--from", one, "--wheelhouse", wheels)
    cut_short = install(root, *arguments)
    stand_in_wheel(wheels, "a_part_of_it", "1.0")
    finished = install(root, *arguments)
    two = stand_in_wheel(wheels, "defect_agent", "1.1", requires=f"numpy; extra == 'x'\n{EXTRA}")
    update = install(root, "--from", two, "--wheelhouse", wheels)
    python = root / "opt/defect-agent/current/bin/python"
    told = subprocess.run([python, "-c", "import pycuda; print(pycuda.CUDA_ROOT, pycuda.CUDA_ENABLE_CURAND)"],
                          check=True, capture_output=True, text=True, timeout=60)  # fmt: skip

    assert cut_short.returncode == 2
    assert "pip could not install the packages" in cut_short.stderr
    assert "built already" not in cut_short.stdout
    assert finished.returncode == 0, finished.stderr
    assert "built already" in finished.stdout
    assert update.returncode == 0, update.stderr
    assert "built already" in update.stdout
    assert told.stdout.split() == [f"{root}/usr/local/cuda", "False"]


def test_the_container_file_copies_and_installs_what_is_there() -> None:
    """It can't be built here: the base image is for ARM. What it names must at least exist."""
    text = (REPOSITORY / "configs/container/jetson.Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in line.split()]

    assert copied
    assert [name for name in copied if not (REPOSITORY / name).exists()] == []
    assert re.search(r"^jetson = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert "/src[jetson]" in text
