"""Runs inside the booted container, by Debian's own Python: tries the unit, writes what it saw, powers off.

`test_boot.py` puts it at /check.py and reads /report.json. It judges nothing: a step that does not come true is written
down as it was found, and the test that is about it fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNIT = "defect-agent@line1.service"
STATE = "/var/lib/defect-agent/line1"
PROPERTIES = (
    "ActiveState SubState Type MainPID StatusText NRestarts Result WatchdogUSec ExecMainCode ExecMainStatus "
    "ExecMainStartTimestampMonotonic ExecMainExitTimestampMonotonic InactiveEnterTimestampMonotonic"
)
PLACES = ("/usr", "/etc", "/etc/defect-agent", "/opt/defect-agent", "/var", "/var/lib", "/var/lib/defect-agent", "/srv")


def run(*command: str) -> str:
    """Standard output and error of a command, whatever its exit status."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def show(unit: str = UNIT) -> dict[str, str]:
    """What systemd says of a unit."""
    lines = run("systemctl", "show", unit, *(f"-p{name}" for name in PROPERTIES.split())).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def reached(condition: Callable[[], object], within_s: float = 30) -> bool:
    """Whether something came true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def records() -> int:
    """Verdicts in the journal, or -1."""
    text = run("/usr/local/bin/defect-agent", "journal", "stats", "--state", STATE, "--json")
    with contextlib.suppress(ValueError):
        return sum(int(n) for n in json.loads(text)["by_decision"].values())
    return -1


def log(unit: str = UNIT) -> str:
    """What the unit and systemd logged about it."""
    return run("journalctl", "--unit", unit, "--output", "cat", "--no-pager")


def restarted(old: dict[str, str]) -> dict[str, str]:
    """The unit once it is active again as another process, or as it was found at the end of the patience."""
    reached(lambda: show()["MainPID"] not in {"0", old["MainPID"]} and show()["ActiveState"] == "active")
    return show()


def process(pid: str) -> dict[str, Any]:
    """Whose process it is and what it may do."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
    wanted = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
    inside = ("nsenter", "--target", pid, "--mount")
    credential = f"/run/credentials/{UNIT}/mqtt-password"
    return {
        **{name: fields[name].split() for name in wanted},
        "writes": {place: run(*inside, "touch", f"{place}/probe") for place in (*PLACES, STATE)},
        "sees": {place: run(*inside, "ls", place) for place in ("/root", "/home", "/tmp")},
        "credential": run(*inside, "cat", credential),
        "credential_mode": run(*inside, "stat", "-c%a", credential).strip(),
    }


def check(report: dict[str, Any]) -> None:
    """Start, look, freeze, kill, stop, and try a configuration that can't work."""
    report["systemd"] = run("systemctl", "--version").split()[1]
    Path("/tmp/of-the-host").touch()
    Path("/root/secret").touch()
    Path("/stamp").touch()
    began = time.monotonic()
    report["enabled"] = run("systemctl", "is-enabled", UNIT).strip()
    report["start"] = run("systemctl", "start", UNIT)  # waits for the start that the boot has begun
    report["start_s"] = round(time.monotonic() - began, 2)
    report["started"] = first = show()
    report["judging"] = reached(lambda: records() >= 3)
    report["process"] = process(first["MainPID"])

    os.kill(int(first["MainPID"]), signal.SIGSTOP)
    report["after_freeze"] = second = restarted(first)
    report["log_of_freeze"] = log()
    before = records()
    os.kill(int(second["MainPID"]), signal.SIGKILL)
    report["after_kill"] = restarted(second)
    report["judging_again"] = reached(lambda: records() > before)

    report["stop"] = run("systemctl", "stop", UNIT)
    report["stopped"] = show()
    report["log"] = log()
    report["warnings"] = run("journalctl", "-b", "-p", "warning", "-o", "cat", "--no-pager", "_PID=1")
    report["touched"] = run("find", "/", "-xdev", "-newer", "/stamp", "-user", "defect-agent").split()

    bad = "defect-agent@bad.service"
    run("systemctl", "start", bad)
    report["bad_tries_on"] = reached(lambda: int(show(bad)["NRestarts"]) >= 7)
    report["bad"] = show(bad)
    report["bad_log"] = log(bad)
    run("systemctl", "stop", bad)


if __name__ == "__main__":
    result: dict[str, Any] = {}
    try:
        check(result)
    except Exception as error:
        result["broken"] = f"{error!r}\n{log()}"
    Path("/report.json").write_text(json.dumps(result, indent=2))
    run("systemctl", "poweroff")
