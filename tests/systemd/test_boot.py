"""The unit on a real systemd: a Debian that boots in a container, installed by tools/install-device.

Opt-in (`tools/test --boot`, as root): needs debootstrap and systemd-container, and the network once; the root file
system and the wheels are kept in /var/cache/defect-agent-test (or $DEFECT_AGENT_TEST_CACHE).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent.health import clock_synced
from tests.kit.bundles import make_bundle
from tests.kit.pictures import encoded, textured

pytestmark = [pytest.mark.boot, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("DEFECT_AGENT_TEST_CACHE", "/var/cache/defect-agent-test"))
PACKAGES = "systemd,systemd-sysv,python3,libgl1,libglib2.0-0"
REQUIREMENTS = ("numpy", "onnxruntime", "opencv-python", "paho-mqtt>=2", "pyyaml", "setuptools", "wheel")
DOWNLOAD = ("-m", "pip", "download", "--quiet", "--python-version=3.11", "--only-binary=:all:", "--dest", "PLACE")

CONFIG = """\
station: acme/plant1/line1
state_dir: /var/lib/defect-agent/line1
bundle: /var/lib/defect-agent/bundles/kit-1.0.0.defect
camera: {kind: folder, path: /srv/pictures, rate_hz: 20, loop: true}
engine: {threads: 2}
mqtt:       # nobody listens there: the station starts and judges all the same
  host: 127.0.0.1
  username: line1
  password_file: /run/credentials/defect-agent@line1.service/mqtt-password
watchdog: {stuck_s: 1}
log: {format: json, level: debug}
"""

# "Leaves within five seconds" is systemd's to measure: later it would kill, and the result would be `timeout`. What is
# started after the agent runs under the same system call filter and memory rules as the agent.
DROP_IN = """\
[Service]
TimeoutStopSec=5
ExecStartPost=/opt/defect-agent/current/bin/python /srv/clock.py
"""
CLOCK = "from agent.health import clock_synced\nprint('clock', clock_synced())\n"


def _made_once(place: Path, *command: str | Path) -> Path:
    """A cached folder; a half-made one of an interrupted run is made again."""
    if not place.exists():
        half = place.with_name(place.name + ".half")
        shutil.rmtree(half, ignore_errors=True)
        half.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([half if part == "PLACE" else part for part in command], check=True, timeout=1500)
        half.rename(place)
    return place


def _install(root: Path, folder: Path) -> None:
    wheels = _made_once(CACHE / "wheels-3.11", sys.executable, *DOWNLOAD, *REQUIREMENTS)
    (folder / "line1.yaml").write_text(CONFIG)
    (folder / "password").write_text("let me in")
    install: list[str | Path] = [ROOT / "tools" / "install-device", "--root", root, "--wheelhouse", wheels]
    line1 = ["--station=line1", f"--config={folder}/line1.yaml", f"--mqtt-password={folder}/password", "--enable"]
    subprocess.run([*install, *line1], check=True, timeout=600)
    (folder / "bad.yaml").write_text("station: [\n")
    bad = ["--station=bad", f"--config={folder}/bad.yaml", "--skip-program"]
    subprocess.run([*install, *bad], check=True, timeout=60)


def _furnish(root: Path) -> None:
    """What a plant brings: a bundle, parts to look at, and for this test a shorter patience."""
    make_bundle(root / "var/lib/defect-agent/bundles")
    pictures = root / "srv/pictures"
    pictures.mkdir(parents=True)
    for number in range(4):
        (pictures / f"part{number}.png").write_bytes(encoded(textured(seed=number)))
    units = root / "etc/systemd/system"
    _drop_in(units / "defect-agent@line1.service.d", DROP_IN)
    (root / "srv/clock.py").write_text(CLOCK)
    _drop_in(units / "defect-agent@bad.service.d", "[Service]\nRestartSec=100ms\n")
    shutil.copy(ROOT / "tests/systemd/boot_check.py", root / "check.py")
    (units / "check.service").write_text("[Service]\nExecStart=/usr/bin/python3 /check.py\nStandardOutput=journal\n")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "check.service").symlink_to("/etc/systemd/system/check.service")


def _drop_in(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "50-test.conf").write_text(text)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One boot; what was seen in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    missing = [name for name in ("debootstrap", "systemd-nspawn") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: apt install debootstrap systemd-container")
    folder = tmp_path_factory.mktemp("boot")
    base = _made_once(
        CACHE / "bookworm-1", "debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", "PLACE"
    )
    root = folder / "root"
    try:
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
        _install(root, folder)
        _furnish(root)
        return _boot(root)
    finally:
        shutil.rmtree(root)


def _boot(root: Path) -> dict[str, Any]:
    # A container may not ask whether the clock is synchronized; a device may.
    allowed = ["--private-network", "--system-call-filter=@clock"]
    command = ["systemd-nspawn", "--register=no", "--keep-unit", "--quiet", *allowed, f"--directory={root}", "--boot"]
    began = time.monotonic()
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
    print(f"booted, checked and powered off in {time.monotonic() - began:.1f} s")
    path = root / "report.json"
    assert path.exists(), done.stdout.decode(errors="replace")[-4000:]
    found: dict[str, Any] = json.loads(path.read_text())
    assert "broken" not in found, found["broken"]
    return found


def test_the_station_becomes_active_when_it_says_ready(report: dict[str, Any]) -> None:
    """Type=notify: `systemctl start` returns once parts can come, broker or not."""
    started = report["started"]

    assert report["enabled"] == "enabled"
    assert report["start"] == ""
    assert (started["Type"], started["ActiveState"], started["SubState"]) == ("notify", "active", "running")
    assert "kit" in started["StatusText"]
    assert report["judging"]


def test_the_configuration_sets_the_watchdog(report: dict[str, Any]) -> None:
    """stuck_s is 1 there; the unit says 15 s."""
    assert report["started"]["WatchdogUSec"] == "1.500000s"


def test_a_frozen_line_is_killed_and_started_again(report: dict[str, Any]) -> None:
    """SIGSTOP is as stuck as a process can be: no thread of it feeds the watchdog."""
    assert report["after_freeze"]["NRestarts"] == "1"
    assert report["after_freeze"]["ActiveState"] == "active"
    assert "Watchdog timeout" in report["log_of_freeze"]


def test_the_log_tells_where_a_stuck_line_stood(report: dict[str, Any]) -> None:
    """Nobody is there with a debugger at three in the morning; SIGABRT makes every thread write its stack."""
    assert "most recent call first" in report["log_of_freeze"]
    assert "agent/station.py" in report["log_of_freeze"]


def test_a_killed_station_is_started_again_and_goes_on_judging(report: dict[str, Any]) -> None:
    """kill -9, the OOM killer, a crash in a library: all look like this."""
    assert report["after_kill"]["NRestarts"] == "2"
    assert report["after_kill"]["ActiveState"] == "active"
    assert report["judging_again"]


def test_a_stop_is_clean_and_within_five_seconds(report: dict[str, Any]) -> None:
    """Result would be `timeout` if systemd had had to kill it, and Restart= would have begun it again."""
    stopped = report["stopped"]

    assert (stopped["ActiveState"], stopped["Result"], stopped["ExecMainStatus"]) == ("inactive", "success", "0")


def test_the_clock_can_be_asked_under_the_system_call_filter(report: dict[str, Any]) -> None:
    """@system-service forbids adjtimex, and every verdict would say `unknown` on every device."""
    assert f"clock {clock_synced()}" in report["log"]


def test_the_model_runtime_does_not_phone_home(report: dict[str, Any]) -> None:
    """ONNX Runtime's wheels send usage data from 1.29 on; it shows by a complaint that it can't keep its device id."""
    assert "telemetry" not in report["log"]


def test_systemd_has_nothing_to_warn_of(report: dict[str, Any]) -> None:
    """A line that it could not apply is a line that protects nothing; crashes and bad starts are wanted here."""
    lines = [line for line in report["warnings"].splitlines() if "defect-agent" in line]
    wanted = ("Watchdog timeout", "Failed with result", "Failed to start", "Killing process", "Main process exited")

    assert [line for line in lines if not any(word in line for word in wanted)] == []


def test_the_process_is_nobody_in_particular(report: dict[str, Any]) -> None:
    """Its own user, no capability, no way to get one, and a system call filter."""
    process = report["process"]

    assert "0" not in process["Uid"] + process["Gid"] + process["Groups"]
    assert {*process["CapEff"], *process["CapBnd"]} == {"0" * 16}
    assert (process["NoNewPrivs"], process["Seccomp"]) == (["1"], ["2"])


def test_it_can_open_cameras_as_a_member_of_their_group(report: dict[str, Any]) -> None:
    """The drop-in names `video`, which Debian has, and neither `render` nor `gpio` where they are absent."""
    assert len(report["process"]["Groups"]) >= 2


def test_even_root_could_write_only_to_the_state_folder_in_there(report: dict[str, Any]) -> None:
    """ProtectSystem=strict: the probe is root's own, so that only the mount can refuse it."""
    writes = report["process"]["writes"]
    allowed = [place for place, said in writes.items() if not said]

    assert allowed == ["/var/lib/defect-agent/line1"]
    assert all("Read-only file system" in said for said in writes.values() if said)


def test_other_peoples_files_are_out_of_sight(report: dict[str, Any]) -> None:
    """ProtectHome and PrivateTmp."""
    sees = report["process"]["sees"]

    assert "secret" not in sees["/root"]
    assert "of-the-host" not in sees["/tmp"]


def test_nothing_outside_the_state_folder_was_written(report: dict[str, Any]) -> None:
    """Looked for on the disk, after two crashes and a stop."""
    touched = report["touched"]

    assert touched
    assert [path for path in touched if not path.startswith("/var/lib/defect-agent/line1")] == []


def test_the_password_is_handed_over_for_this_station_only(report: dict[str, Any]) -> None:
    """LoadCredential, as `--mqtt-password` sets it up; the agent refuses a file that others can read."""
    assert report["process"]["credential"] == "let me in"
    assert report["process"]["credential_mode"][-1] == "0"


def test_a_station_that_cannot_start_is_tried_for_ever(report: dict[str, Any]) -> None:
    """systemd gives up after five starts by default; a device in a plant has nobody who types reset-failed."""
    assert report["bad_tries_on"]
    assert report["bad"]["Result"] != "start-limit-hit"
    assert "/etc/defect-agent/bad.yaml: not YAML" in report["bad_log"]
