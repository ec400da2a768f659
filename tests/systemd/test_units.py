"""systemd itself reads the files that we ship."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.systemd

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
PROGRAM = "/opt/defect-agent/bin/defect-agent"
MOST_EXPOSURE = 2.5


def instance(folder: Path, text: str) -> Path:
    """The template as one station's unit, whose program is there: verify looks for it."""
    assert PROGRAM in text
    path = folder / "defect-agent@line1.service"
    path.write_text(text.replace(PROGRAM, "/bin/true"))
    return path


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    return instance(tmp_path, (SYSTEMD / "defect-agent@.service").read_text())


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], check=False, capture_output=True, text=True, timeout=120)


def test_a_misspelt_key_would_be_noticed(tmp_path: Path) -> None:
    """systemd-analyze exits with 0 all the same: only its standard error tells."""
    text = (SYSTEMD / "defect-agent@.service").read_text().replace("KillMode=", "KilMode=")
    done = analyze("verify", "--man=no", instance(tmp_path, text))

    assert "KilMode" in done.stderr


def test_systemd_finds_nothing_to_say_about_the_unit(unit: Path) -> None:
    """An unknown key is ignored with one line in the log: a protection that is none."""
    done = analyze("verify", "--man=no", unit)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("text", "words"), [("", ""), ("DeviseAllow=/dev/null rw\n", "DeviseAllow")])
def test_the_drop_in_for_a_gpu_is_read_and_has_nothing_wrong(unit: Path, text: str, words: str) -> None:
    """A misspelt key in it would be noticed, too."""
    folder = unit.with_name(f"{unit.name}.d")
    folder.mkdir()
    (folder / "20-gpu.conf").write_text((SYSTEMD / "20-gpu.conf").read_text() + text)
    done = analyze("verify", "--man=no", unit)

    assert done.returncode == 0
    assert done.stderr.strip() == "" if not words else words in done.stderr


def test_the_exposure_stays_low(unit: Path) -> None:
    """`systemd-analyze security` counts what a broken-in process could do; 10 is everything."""
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE * 10:g}", unit)
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)

    assert done.returncode == 0, done.stdout
    assert found is not None
    assert float(found[1]) <= MOST_EXPOSURE


@pytest.mark.parametrize(
    "name",
    ["NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp", "ProtectKernelTunables", "ProtectKernelModules",
     "ProtectKernelLogs", "ProtectControlGroups", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute",
     "SystemCallArchitectures", "UMask"],
)  # fmt: skip
def test_each_protection_counts_as_set(unit: Path, name: str) -> None:
    """A good sum could hide a lost line."""
    done = analyze("security", "--offline=true", "--json=short", unit)
    settings = {setting["name"].rstrip("="): setting["set"] for setting in json.loads(done.stdout)}

    assert settings[name] is True


def test_only_keys_that_old_systemds_know_are_used() -> None:
    """JetPack 6 is Ubuntu 22.04 with systemd 249; these came later and would be ignored there."""
    text = (SYSTEMD / "defect-agent@.service").read_text()
    later = ["RestartSteps", "RestartMaxDelaySec", "RestartMode", "ImportCredential", "MemoryPressureWatch", "OpenFile"]

    assert [key for key in later if re.search(f"^{key}=", text, re.MULTILINE)] == []


def test_the_user_can_be_made(tmp_path: Path) -> None:
    """Into a root of its own: the machine that runs the tests gets no user."""
    for name in ("sysusers.d", "tmpfiles.d"):
        (tmp_path / "etc" / name).mkdir(parents=True)
    (tmp_path / "etc/sysusers.d/defect-agent.conf").write_text((SYSTEMD / "defect-agent.sysusers").read_text())
    command = ["systemd-sysusers", f"--root={tmp_path}", "defect-agent.conf"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    entry = next(
        line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("defect-agent:")
    )

    assert entry.split(":")[5:] == ["/var/lib/defect-agent", "/usr/sbin/nologin"]
