"""tools/install-device into a root of its own: what it puts where, that it can be run twice, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import stat
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import OpenCvCameraConfig, read_config

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tools" / "install-device"
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners are what it is about")


def install(*arguments: str | Path, user: int | None = None, umask: int = -1) -> subprocess.CompletedProcess[str]:
    """Run it, as somebody else when asked (only root can)."""
    who: dict[str, Any] = {} if user is None or os.geteuid() != 0 else {"user": user, "group": user, "extra_groups": []}
    command = [SCRIPT, *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, encoding="utf-8", timeout=300, umask=umask, **who
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system as small as it can be."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nvideo:x:44:\n")
    return root


def files_only(root: Path, *arguments: str | Path, umask: int = -1) -> str:
    """Everything but the program; what it says."""
    done = install("--root", root, "--skip-program", *arguments, umask=umask)
    assert done.returncode == 0, done.stderr
    return done.stdout


def snapshot(root: Path) -> dict[str, tuple[str, int, int, bytes]]:
    """Every path with mode, owner, group and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        if path.is_symlink():
            content = str(path.readlink()).encode()
        found[str(path.relative_to(root))] = (stat.filemode(state.st_mode), state.st_uid, state.st_gid, content)
    return found


# What it refuses, before it changes anything


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--frobnicate"], "unknown option --frobnicate"),
        (["line3"], "unknown option line3"),
        (["--station"], "--station wants a value"),
        (["--station", ""], "--station wants a value"),
        (["--station", "../../etc"], "--station ../../etc: got another character"),
        (["--station", "line 3"], "--station line 3: got another character"),
        (["--station", "line@3"], "got another character"),
        (["--station", "x" * 41], "more than 40"),
        (["--station", "bundles"], "holds the bundles"),
        (["--enable"], "are for one station"),
        (["--station", "a", "--config", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (["--station", "a", "--mqtt-password", "/nowhere"], "/nowhere: no such file"),
        (["--prefix", "opt"], "expected an absolute path"),
        (["--prefix", "/"], "expected an absolute path"),
        (["--prefix", "/usr"], "at least two levels"),
        (["--prefix", "/home/me/agent"], "the unit can't see it"),
        (["--prefix", "/opt/../etc"], "no plain absolute path"),
        (["--prefix", "/opt/my agent"], "no plain absolute path"),
        (["--wheelhouse", "/nowhere"], "--wheelhouse /nowhere: no such folder"),
        (["--purge"], "--purge without --uninstall"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(root: Path, arguments: list[str], problem: str) -> None:
    """It runs as root: what it can't make sense of, it must not begin with."""
    before = snapshot(root)
    done = install("--root", root, "--skip-program", *arguments)

    assert done.returncode == 2
    assert problem in done.stderr
    assert "\nTry: " in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert snapshot(root) == before


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A misspelt mount point must not become a new folder, and never the machine itself."""
    done = install("--root", tmp_path / "nowhere", "--station", "line1")

    assert (done.returncode, "no such folder" in done.stderr) == (2, True)


def test_a_source_that_is_neither_checkout_nor_wheel_is_refused(root: Path, tmp_path: Path) -> None:
    """`--from ~/Downloads` is not an installation."""
    done = install("--root", root, "--from", tmp_path)

    assert (done.returncode, "neither a checkout of defect-agent nor a wheel" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("pythons", "problem"),
    [
        ([], "no Python in"),
        (["python3.9"], "has python3.9, expected Python 3.10 or newer"),
        (["python3.99"], "no Python"),
    ],
)
def test_a_system_without_a_fitting_python_is_refused(root: Path, pythons: list[str], problem: str) -> None:
    """JetPack 5 has 3.8: better said here than by a syntax error at the first start."""
    (root / "usr/bin").mkdir(parents=True)
    for name in pythons:
        (root / "usr/bin" / name).touch(mode=0o755)
    done = install("--root", root, "--station", "line1")

    assert done.returncode == 2
    assert problem in done.stderr
    assert not (root / "opt").exists()


def test_the_machine_itself_is_for_root_only() -> None:
    """Half an installation by somebody who may write only half the places is the worst of both."""
    if os.geteuid() == 0 and not os.access(SCRIPT, os.X_OK):
        pytest.skip("the checkout can't be read by others")
    done = install("--station", "line1", user=NOBODY)

    assert (done.returncode, "this needs root" in done.stderr) == (2, True)


# What it puts where


@as_root
def test_files_have_the_modes_and_owners_that_they_need(root: Path) -> None:
    """A camera's URL may hold a password, and the station runs as another user than the one who wrote the file."""
    files_only(root, "--station", "line1", umask=0o077)
    found = {path: (mode, uid, gid) for path, (mode, uid, gid, _) in snapshot(root).items()}
    agent = int(re.findall(r"^defect-agent:x:(\d+):", (root / "etc/group").read_text(), re.MULTILINE)[0])

    assert agent != 0
    assert found["etc/systemd/system/defect-agent@.service"] == ("-rw-r--r--", 0, 0)
    assert found["etc/systemd/system/defect-agent@.service.d/10-groups.conf"] == ("-rw-r--r--", 0, 0)
    assert found["etc/systemd/system"] == ("drwxr-xr-x", 0, 0)
    assert found["etc/defect-agent"] == ("drwxr-xr-x", 0, 0)
    assert found["etc/defect-agent/line1.yaml"] == ("-rw-r-----", 0, agent)
    assert found["etc/defect-agent/credentials"] == ("drwx------", 0, 0)
    assert found["var/lib/defect-agent/bundles"] == ("drwxr-xr-x", 0, 0)


def test_the_new_station_has_a_configuration_that_loads(root: Path) -> None:
    """It waits for its people to change it, but `defect-agent check` can already talk about it."""
    files_only(root, "--station", "press-7")
    config = read_config(root / "etc/defect-agent/press-7.yaml")

    assert config.station == "plant/area/line/press-7"
    assert config.state_dir == Path("/var/lib/defect-agent/press-7")
    assert isinstance(config.camera, OpenCvCameraConfig)
    assert config.mqtt is not None
    assert config.mqtt.password_file is None


def test_a_configuration_can_be_brought_along(root: Path, tmp_path: Path) -> None:
    """A plant keeps its own under version control."""
    (tmp_path / "mine.yaml").write_text("station: mine\n")
    files_only(root, "--station=line1", f"--config={tmp_path}/mine.yaml")

    assert (root / "etc/defect-agent/line1.yaml").read_text() == "station: mine\n"


def test_a_configuration_is_never_overwritten(root: Path, tmp_path: Path) -> None:
    """An update on a Friday must not forget the thresholds that somebody found on a Tuesday."""
    files_only(root, "--station", "line1")
    path = root / "etc/defect-agent/line1.yaml"
    path.write_text("# changed by hand\n")
    (tmp_path / "other.yaml").write_text("station: other\n")
    said = files_only(root, "--station", "line1", "--config", tmp_path / "other.yaml")

    assert path.read_text() == "# changed by hand\n"
    assert "kept, it is yours" in said


def test_a_second_run_changes_nothing(root: Path, tmp_path: Path) -> None:
    """It is also the way to update, and to add a station."""
    (tmp_path / "secret").write_text("let me in\n")
    arguments = ["--station", "line1", "--enable", "--mqtt-password", str(tmp_path / "secret")]
    files_only(root, *arguments)
    before = snapshot(root)
    said = files_only(root, *arguments)

    assert snapshot(root) == before
    assert ": written" not in said


def test_a_second_station_leaves_the_first_alone(root: Path) -> None:
    """One machine, several cameras."""
    files_only(root, "--station", "line1", "--enable")
    before = snapshot(root)
    files_only(root, "--station", "line2")
    after = snapshot(root)

    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {"etc/defect-agent/line2.yaml"}


def test_a_dry_run_tells_every_file_and_changes_none(root: Path, tmp_path: Path) -> None:
    """People look first on a machine that makes money."""
    (tmp_path / "secret").write_text("let me in\n")
    arguments = ["--station", "line1", "--enable", "--mqtt-password", str(tmp_path / "secret")]
    before = snapshot(root)
    said = files_only(root, *arguments, "--dry-run")
    untouched = snapshot(root)
    files_only(root, *arguments)
    made = [path for path in snapshot(root) if path not in before and (root / path).is_file()]
    by_systemd = {"etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/.pwd.lock", "etc/passwd-", "etc/group-"}

    assert untouched == before
    assert [path for path in made if path not in by_systemd and str(root / path) not in said] == []
    assert "let me in" not in said


def test_a_dry_run_of_the_program_installs_none(root: Path) -> None:
    """The slow step, too, is only told."""
    (root / "usr/bin").mkdir(parents=True)
    version = subprocess.run(["/usr/bin/python3", "-V"], check=False, capture_output=True, text=True).stdout
    if not version.startswith("Python 3."):
        pytest.skip("needs the system's Python (apt install python3)")
    (root / "usr/bin" / f"python3.{version.split('.')[1]}").touch(mode=0o755)
    before = snapshot(root)
    done = install("--root", root, "--dry-run")
    if "without venv" in done.stderr or "no Python 3.10" in done.stderr:
        pytest.skip("needs venv in the system's Python (apt install python3-venv)")

    assert done.returncode == 0, done.stderr
    assert "-m venv" in done.stdout
    assert "pip install" in done.stdout
    assert snapshot(root) == before


def test_only_groups_that_exist_are_named(root: Path) -> None:
    """systemd does not start a unit that names a group which is not there (216/GROUP)."""
    drop_in = root / "etc/systemd/system/defect-agent@.service.d/10-groups.conf"
    files_only(root)
    with_video = drop_in.read_text()
    (root / "etc/group").write_text((root / "etc/group").read_text() + "render:x:105:\n")
    files_only(root)
    with_both = drop_in.read_text()
    (root / "etc/group").write_text(re.sub(r"^(video|render):.*\n", "", with_groups(root), flags=re.MULTILINE))
    files_only(root)

    assert "\nSupplementaryGroups=video\n" in with_video
    assert "\nSupplementaryGroups=video render\n" in with_both
    assert not drop_in.exists()


def with_groups(root: Path) -> str:
    return (root / "etc/group").read_text()


def test_a_password_is_for_root_and_its_station_only(root: Path, tmp_path: Path) -> None:
    """LoadCredential copies it to where only that one unit sees it."""
    (tmp_path / "secret").write_text("let me in\n")
    said = files_only(root, "--station", "line1", "--mqtt-password", tmp_path / "secret")
    kept = root / "etc/defect-agent/credentials/line1.mqtt-password"
    drop_in = root / "etc/systemd/system/defect-agent@line1.service.d/10-mqtt-password.conf"
    config = read_config(root / "etc/defect-agent/line1.yaml")

    assert kept.read_text() == "let me in\n"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "LoadCredential=mqtt-password:/etc/defect-agent/credentials/line1.mqtt-password" in drop_in.read_text()
    assert "let me in" not in said
    assert config.mqtt is not None
    assert config.mqtt.username
    assert config.mqtt.password_file == Path("/run/credentials/defect-agent@line1.service/mqtt-password")


def test_another_prefix_is_in_the_unit_and_remembered(root: Path) -> None:
    """/opt may be read-only; the next update must not begin a second program in the usual place."""
    unit = root / "etc/systemd/system/defect-agent@.service"
    files_only(root, "--prefix", "/data/defect-agent")
    first = unit.read_text()
    files_only(root)

    assert "\nExecStart=/data/defect-agent/bin/defect-agent run --config" in first
    assert "/opt/" not in first
    assert unit.read_text() == first


# How it goes away again


def test_uninstall_keeps_what_was_recorded_and_what_is_not_ours(root: Path) -> None:
    """Verdicts are a plant's evidence; somebody's own drop-in is theirs."""
    before = set(snapshot(root))
    files_only(root, "--station", "line1", "--enable")
    journal = root / "var/lib/defect-agent/line1/journal.db"
    own = root / "etc/systemd/system/defect-agent@line1.service.d/override.conf"
    for path in (journal, own):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kept")
    files_only(root, "--uninstall")
    left = {path for path in set(snapshot(root)) - before if (root / path).is_file() or (root / path).is_symlink()}

    assert {path for path in left if not re.match(r"etc/(\.pwd|g?shadow|passwd-|group-)", path)} == {
        "etc/defect-agent/line1.yaml",
        "var/lib/defect-agent/line1/journal.db",
        "etc/systemd/system/defect-agent@line1.service.d/override.conf",
    }


def test_uninstall_of_what_is_not_there_is_no_error(root: Path) -> None:
    """Run twice, too."""
    before = snapshot(root)
    files_only(root, "--uninstall")

    assert snapshot(root) == before


def test_purge_removes_configurations_and_records(root: Path) -> None:
    """Only when asked by name."""
    (root / "var/lib/defect-agent/line1").mkdir(parents=True)
    done = install("--root", root, "--uninstall", "--purge")

    assert done.returncode == 0, done.stderr
    assert not (root / "var/lib/defect-agent").exists()
    assert not (root / "etc/defect-agent").exists()


# The program: real virtual environments, with a stand-in of the wheel that installs in a second


@dataclasses.dataclass(frozen=True)
class Step:
    """One run of the installer, and what was there after it."""

    said: subprocess.CompletedProcess[str]
    version: str
    releases: list[str]


def stand_in_wheel(folder: Path, name: str, version: str, requires: str = "") -> Path:
    """A wheel with one module and one command."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"def main():\n    print({version!r})\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\ndefect-agent = defect_agent:main\n")
        wheel.writestr(f"{info}/RECORD", "")
    path.chmod(0o644)
    return path


def small_root(folder: Path, python: Path) -> Path:
    """A root that belongs to nobody, so that nothing is tried in a chroot; it has the system's Python by name."""
    root = folder / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin" / python.name).symlink_to(python)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ndefect-agent:x:990:990::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\ndefect-agent:x:990:\n")
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return root


class Updates:
    """A device's life: 1.0, 1.0 again, 1.1 without a package that it needs, 1.1 with it, 1.2."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.root = small_root(folder, python)
        self.python = python
        one = stand_in_wheel(folder, "defect_agent", "1.0")
        self.first = self._install(one)
        self.again = self._install(one)
        two = stand_in_wheel(folder, "defect_agent", "1.1", requires="a-part-of-it")
        self.failed = self._install(two)
        stand_in_wheel(folder, "a_part_of_it", "1.0")
        self.retried = self._install(two)
        self.last = self._install(stand_in_wheel(folder, "defect_agent", "1.2"))

    def _install(self, wheel: Path) -> Step:
        said = install("--root", self.root, "--from", wheel, "--wheelhouse", wheel.parent, user=NOBODY)
        prefix = self.root / "opt/defect-agent"
        ask: list[str | Path] = [prefix / "current/bin/python", "-c", "import defect_agent; defect_agent.main()"]
        version = subprocess.run(ask, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
        return Step(said, version, sorted(path.name[:3] for path in (prefix / "releases").iterdir()))


@pytest.fixture(scope="module")
def updates() -> Iterator[Updates]:
    python = Path("/usr/bin/python3").resolve()
    usable = python.exists() and subprocess.run([python, "-c", "import ensurepip, venv"], check=False).returncode == 0
    if not usable or not re.fullmatch(r"python3\.1\d", python.name):
        pytest.skip("needs the system's Python 3.10 or newer with venv (apt install python3 python3-venv)")
    folder = Path(tempfile.mkdtemp(prefix="install-device-"))
    yield Updates(folder, python)
    shutil.rmtree(folder)


@pytest.mark.slow
def test_an_update_replaces_the_program_and_keeps_the_one_before(updates: Updates) -> None:
    """One rename; a station that runs keeps the files that it was started from, and there is a way back."""
    assert [updates.first.version, updates.last.version] == ["1.0", "1.2"]
    assert updates.last.releases == ["1.1", "1.2"]


@pytest.mark.slow
def test_the_same_program_is_not_installed_twice(updates: Updates) -> None:
    """A second run takes no minutes and no network."""
    assert "installed already" not in updates.first.said.stdout
    assert "installed already" in updates.again.said.stdout


@pytest.mark.slow
def test_a_failed_update_leaves_the_program_as_it_was(updates: Updates) -> None:
    """A wheelhouse with one package missing is what happens; the line goes on with what it has."""
    assert updates.failed.said.returncode == 2
    assert "pip could not install the packages" in updates.failed.said.stderr
    assert updates.failed.version == "1.0"


@pytest.mark.slow
def test_half_an_installation_is_done_again(updates: Updates) -> None:
    """A failure or a power cut on the way must not count as installed."""
    assert "installed already" not in updates.retried.said.stdout
    assert updates.retried.version == "1.1"


@pytest.mark.slow
def test_the_program_knows_nothing_of_where_it_was_made(updates: Updates) -> None:
    """A virtual environment holds absolute paths; in an image they must be the image's."""
    prefix, python = updates.root / "opt/defect-agent", updates.python
    current = prefix / "current"
    texts = [path for path in (*(current / "bin").iterdir(), current / "pyvenv.cfg") if not path.is_symlink()]
    command = (current / "bin/defect-agent").read_text().splitlines()[0]

    assert [path.name for path in texts if str(updates.root) in path.read_text(errors="replace")] == []
    assert re.fullmatch(r"#!/opt/defect-agent/releases/1\.2-[0-9a-f]{12}/bin/python3?(\.\d+)?", command)
    assert str((updates.root / "usr/local/bin/defect-agent").readlink()) == "/opt/defect-agent/bin/defect-agent"
    assert (prefix / "bin/defect-agent").resolve() == (current / "bin/defect-agent").resolve()
    assert str((current / "bin" / python.name).readlink()) == f"/usr/bin/{python.name}"


# The script itself


def test_help_tells_every_option() -> None:
    """An option that is not in the help is not there."""
    done = install("--help")
    options = set(re.findall(r"^ +(--[a-z-]+)(?: \|.*)?\) ", SCRIPT.read_text(), re.MULTILINE))

    assert done.returncode == 0
    assert len(options) > 12
    assert [option for option in options if option not in done.stdout] == []
    assert "sudo tools/install-device --station line3" in done.stdout


def test_the_script_is_clean() -> None:
    """shellcheck knows more ways to be wrong than a review."""
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: apt install shellcheck")
    done = subprocess.run(["shellcheck", SCRIPT], check=False, capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stdout) == (0, "")
