"""systemd hears of a line that works, and of nothing else."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.health import Availability, Heartbeat, clock_synced, disk_free_bytes, notify, watchdog_s
from tests.kit.notify import NotifySocket, notify_socket


class Clock:
    """Monotonic seconds that move when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with notify_socket(tmp_path / "notify") as listener:
        yield listener


# What may be wrong outside, and must not reach the line


@pytest.mark.parametrize(
    "name",
    ["", "/nowhere/notify", "@nobody-listens", "vsock:2:1234", "notify", "/" + "x" * 300, "/tmp/\x00y"],
    ids=["unset", "absent", "abstract-absent", "vsock", "relative", "too-long", "nul"],
)
def test_a_socket_that_is_not_there_is_no_error(name: str) -> None:
    """The same program runs without systemd; a line never stops because nobody listens."""

    assert notify("READY=1", environ={"NOTIFY_SOCKET": name}) is False


def test_a_full_queue_drops_the_watchdogs_datagram_and_does_not_wait(systemd: NotifySocket) -> None:
    """A busy service manager must not hold up a part: without a reader this would block for ever."""
    environ = systemd.environ()
    for _ in range(100_000):
        if not notify("WATCHDOG=1", environ=environ):
            break

    assert not notify("WATCHDOG=1", environ=environ)


def test_a_dropped_beat_is_sent_again_at_the_next_step(systemd: NotifySocket) -> None:
    """Counting it as sent would let systemd kill a line that works."""
    environ = systemd.environ(watchdog_s=15)
    heartbeat = Heartbeat(stuck_s=10, environ=environ, clock=Clock())
    while notify("STATUS=noise", environ=environ):
        pass
    heartbeat.beat()
    heard_while_full = systemd.received()
    heartbeat.beat()

    assert "WATCHDOG=1" not in heard_while_full
    assert systemd.received() == ["WATCHDOG=1"]


def test_ready_waits_for_room_in_the_queue(systemd: NotifySocket) -> None:
    """A lost READY would end in a start that times out: it is the one message that comes only once."""
    environ = systemd.environ()
    while notify("STATUS=noise", environ=environ):
        pass
    source = "import os; from agent.health import notify; print('sending', flush=True); print(notify('READY=1'))"
    child = subprocess.Popen(
        [sys.executable, "-c", source], env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    systemd.wait_for("READY=1")
    said, _ = child.communicate(timeout=30)

    assert said == "True\n"


@pytest.mark.parametrize("usec", ["", "0", "-1", "soon", "1e6"])
def test_a_watchdog_time_that_makes_no_sense_is_no_watchdog(usec: str) -> None:
    """sd_watchdog_enabled(3): only a positive whole number switches it on."""
    assert watchdog_s({"WATCHDOG_USEC": usec}) is None


def test_another_processes_watchdog_is_not_ours(systemd: NotifySocket) -> None:
    """WATCHDOG_PID is inherited by children, who must not feed for their parent."""
    heartbeat = Heartbeat(stuck_s=10, environ=systemd.environ(watchdog_s=15, pid=1))
    heartbeat.beat()

    assert systemd.received() == []


# The protocol


def test_assignments_go_out_as_the_lines_of_one_datagram(systemd: NotifySocket) -> None:
    """sd_notify(3): newline-separated, and both must take effect at once."""
    told = notify("READY=1", "STATUS=judging parts", environ=systemd.environ())

    assert told
    assert systemd.received() == ["READY=1\nSTATUS=judging parts"]


def test_a_line_break_in_a_status_cannot_make_another_assignment(systemd: NotifySocket) -> None:
    """A bundle's name ends up in STATUS; it must not be able to say WATCHDOG=trigger."""
    notify("STATUS=evil\nWATCHDOG=trigger\r\nSTOPPING=1", environ=systemd.environ())

    assert systemd.received() == ["STATUS=evil WATCHDOG=trigger STOPPING=1"]


def test_abstract_sockets_are_reached() -> None:
    """systemd in a container may give one: `@` stands for the leading NUL."""
    with notify_socket(f"@defect-agent-{uuid.uuid4()}") as listener:
        notify("READY=1", environ=listener.environ())

        assert listener.received() == ["READY=1"]


def test_the_processes_own_environment_is_the_default(systemd: NotifySocket) -> None:
    """The programs call notify("READY=1") and nothing more."""
    source = "from agent.health import notify, Heartbeat; Heartbeat(stuck_s=10); notify('READY=1')"
    environ = {**os.environ, "NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "15000000"}
    subprocess.run([sys.executable, "-c", source], env=environ, check=True, timeout=60)

    assert systemd.received() == ["WATCHDOG_USEC=15000000", "READY=1"]


# The heartbeat


@pytest.mark.parametrize(("stuck_s", "told_us"), [(1, 1_500_000), (10, 15_000_000), (600, 900_000_000)])
def test_the_configuration_sets_systemds_patience(systemd: NotifySocket, stuck_s: float, told_us: int) -> None:
    """One number rules: a slow model's `stuck_s` must not be cut short by the unit's WatchdogSec."""
    Heartbeat(stuck_s=stuck_s, environ=systemd.environ(watchdog_s=15))

    assert systemd.received() == [f"WATCHDOG_USEC={told_us}"]


def test_beats_are_passed_on_at_most_every_quarter_of_the_watchdog_time(systemd: NotifySocket) -> None:
    """A thousand parts a second must not mean a thousand wake-ups of PID 1."""
    clock = Clock()
    heartbeat = Heartbeat(stuck_s=10, environ=systemd.environ(watchdog_s=15), clock=clock)
    systemd.received()
    for _ in range(15_000):
        heartbeat.beat()
        clock.now_s += 0.001

    assert systemd.received() == ["WATCHDOG=1"] * 4


def test_a_part_that_takes_as_long_as_allowed_does_not_trip_the_watchdog(systemd: NotifySocket) -> None:
    """The held-back datagram must be counted in: between two datagrams there are never more than 1.5 times stuck_s."""
    clock = Clock()
    heartbeat = Heartbeat(stuck_s=10, environ=systemd.environ(watchdog_s=15), clock=clock)
    systemd.received()
    heartbeat.beat()
    fed_at = clock.now_s
    clock.now_s += 3.74  # the last beat that is still held back
    heartbeat.beat()
    clock.now_s += 10  # the slowest part that the configuration allows
    heartbeat.beat()

    assert systemd.received() == ["WATCHDOG=1", "WATCHDOG=1"]
    assert clock.now_s - fed_at < 15


def test_a_line_that_does_not_step_is_silent(systemd: NotifySocket) -> None:
    """Nothing else in the process may feed the watchdog: time goes by, nobody beats, nothing is sent."""
    clock = Clock()
    heartbeat = Heartbeat(stuck_s=1, environ=systemd.environ(watchdog_s=15), clock=clock)
    heartbeat.beat()
    systemd.received()
    clock.now_s += 1000

    assert systemd.received() == []


def test_without_a_watchdog_nothing_is_sent(systemd: NotifySocket) -> None:
    """Someone may have taken WatchdogSec out of the unit."""
    heartbeat = Heartbeat(stuck_s=10, environ=systemd.environ())
    heartbeat.beat()

    assert systemd.received() == []


# Loss and recovery


def test_a_loss_and_its_recovery_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that is away for a night is two lines in the log, and the second says for how long."""
    clock = Clock()
    broker = Availability("broker", clock=clock, host="10.0.0.7")
    with caplog.at_level(logging.INFO):
        news = [broker.lost("connection refused"), broker.lost("timed out"), broker.lost("timed out")]
        clock.now_s += 3600.5
        away_s = [broker.found(), broker.found()]

    assert news == [True, False, False]
    assert away_s == [3600.5, None]
    assert [(r.message, r.levelname, r.fields) for r in caplog.records] == [  # type: ignore[attr-defined]
        ("broker_lost", "WARNING", {"host": "10.0.0.7", "reason": "connection refused"}),
        ("broker_found", "INFO", {"host": "10.0.0.7", "away_s": 3600.5}),
    ]


def test_a_second_loss_is_news_again(caplog: pytest.LogCaptureFixture) -> None:
    """Once per loss, not once per life."""
    camera = Availability("camera", clock=Clock())
    with caplog.at_level(logging.INFO):
        camera.lost("no frame")
        camera.found()
        camera.lost("unplugged")

    assert [r.message for r in caplog.records] == ["camera_lost", "camera_found", "camera_lost"]
    assert not camera.available


def test_what_was_never_lost_is_not_found(caplog: pytest.LogCaptureFixture) -> None:
    """The first connection of a start is no recovery."""
    with caplog.at_level(logging.INFO):
        away_s = Availability("disk", clock=Clock()).found()

    assert away_s is None
    assert caplog.records == []


# Clock and disk


def test_the_clock_state_agrees_with_the_systems_own_headers(tmp_path: Path) -> None:
    """The layout of struct timex is written down twice, in ctypes and in C: a wrong offset would read as any state."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler (apt install gcc)")
    source = tmp_path / "clock.c"
    source.write_text(
        "#include <stdio.h>\n#include <sys/timex.h>\n"
        "int main(void) { struct timex t = {0}; if (adjtimex(&t) < 0) return 1;"
        ' puts(t.status & STA_UNSYNC ? "unsynced" : "synced"); return 0; }'
    )
    subprocess.run([compiler, "-o", tmp_path / "clock", source], check=True, timeout=60)
    answer = subprocess.run([tmp_path / "clock"], check=False, capture_output=True, text=True, timeout=10)
    if answer.returncode:
        pytest.skip("adjtimex is forbidden here")

    assert clock_synced() == answer.stdout.strip()


def test_free_space_is_told_of_a_folder_that_is_not_made_yet(tmp_path: Path) -> None:
    """`check` asks before the first start has made the state directory."""
    free = disk_free_bytes(tmp_path / "not" / "yet" / "there")

    assert 0 < free <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def test_kit_socket_is_a_real_datagram_socket(systemd: NotifySocket) -> None:
    """The tests above prove nothing if the stand-in takes what systemd would not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream, pytest.raises(OSError):
        stream.connect(systemd.name)
