"""The board, from trees of files as the kernels of a Jetson, a Pi and a PC have them, and from this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.board import PI_FLAGS, Board, throttled_between

ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51250\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "49812\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon1/oc3_event_cnt": "2\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "729600\n",
    "proc/meminfo": "MemTotal: 7802000 kB\nMemAvailable:    5120000 kB\nSwapTotal:       3901000 kB\n",
    "proc/self/status": "Name:\tx\nVmHWM:\t  300000 kB\nVmRSS:\t  250500 kB\n",
}
PI = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "61700\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
}


def tree(root: Path, files: dict[str, str], **changes: str) -> Board:
    """A board of these files; a keyword changes the one whose name ends so."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changes.get(path.name, text))
    return Board(root)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only one where commands are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_jetson_tells_clocks_temperatures_and_counts(tmp_path: Path) -> None:
    """What accept writes down of a run."""
    board = tree(tmp_path, ORIN)
    sample = board.sample()

    assert board.kind == "jetson"
    assert board.words().startswith("NVIDIA Jetson Orin Nano Developer Kit, ")
    assert sample.temperatures_c == {"cpu-thermal": 51.25, "gpu-thermal": 49.812}
    assert sample.clocks_mhz == {"cpu0": 1510.4, "cpu4": 729.6, "gpu": 624.75}
    assert sample.throttled == ()
    assert sample.counters == {"over-current (oc1)": 0, "over-current (oc3)": 2}
    assert board.memory().available_mb == 5120.0
    assert (board.memory().process_mb, board.memory().process_peak_mb) == (250.5, 300.0)


def test_over_current_and_heat_during_a_run_are_told_and_what_was_before_is_not(tmp_path: Path) -> None:
    """A counter that stood at 2 before is no news; one that rose is."""
    before = tree(tmp_path, ORIN).sample()
    after = tree(tmp_path, ORIN, oc1_event_cnt="4\n").sample()
    hot = tree(tmp_path, ORIN, cur_state="2\n").sample()

    assert throttled_between([before, before]) == ()
    assert throttled_between([before, after]) == ("over-current (oc1)",)
    assert throttled_between([before, hot, before]) == ("slowed down against heat by cpufreq-cpu0",)


def test_a_running_fan_is_no_throttling(tmp_path: Path) -> None:
    """It cools, and costs no speed."""
    assert tree(tmp_path, ORIN).sample().throttled == ()


def test_a_sensor_that_does_not_answer_is_absent_not_zero(tmp_path: Path) -> None:
    """`cv0-thermal` has no temp file; another one says 0, which no working part has."""
    board = tree(tmp_path, {**ORIN, "sys/class/thermal/thermal_zone2/temp": "0\n"})

    assert "cv0-thermal" not in board.sample().temperatures_c


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("0", []),
        ("50005", [PI_FLAGS[0], PI_FLAGS[2]]),
        ("0x80008\n", [PI_FLAGS[3]]),
        ("20002", [PI_FLAGS[1]]),
        ("50000", []),
        ("rubbish", []),
    ],
)
def test_a_pi_tells_what_holds_it_back_now(tmp_path: Path, flags: str, words: list[str]) -> None:
    """Bits as the Raspberry Pi documentation has them."""
    board = tree(tmp_path, PI, get_throttled=flags)

    assert board.kind == "raspberry-pi"
    assert list(board.sample().throttled) == words


def test_a_pi_that_was_held_back_during_the_run_tells_so_though_it_is_over(tmp_path: Path) -> None:
    """The upper bits are set while nobody looked."""
    before = tree(tmp_path, PI).sample()
    after = tree(tmp_path, PI, get_throttled="40000").sample()

    assert throttled_between([before, after]) == ("throttled (since the start)",)


def test_a_pi_without_the_file_is_asked_by_vcgencmd(tmp_path: Path, programs: Path) -> None:
    """Not every kernel has it."""
    program(programs, "vcgencmd", "echo throttled=0x50005")
    board = tree(tmp_path / "pi", {name: text for name, text in PI.items() if "throttled" not in name})

    assert board.sample().throttled == (PI_FLAGS[0], PI_FLAGS[2])


@pytest.mark.parametrize(
    ("body", "status", "mode"),
    [
        ("printf 'NV Power Mode: MAXN_SUPER\\n2\\n'", "pmode:0000", "MAXN_SUPER"),
        ("printf 'NV Fan Mode:quiet\\nNV Power Mode: 15W\\n0\\n'", None, "15W"),
        ("echo 'NVPM ERROR: failed to read'; exit 255", "pmode:0002 fmode:quiet", "2"),
        ("echo nothing", None, None),
        (None, "pmode:0001", "1"),
        (None, None, None),
    ],
)
def test_the_power_mode_is_nvpmodels_or_absent(
    tmp_path: Path, programs: Path, body: str | None, status: str | None, mode: str | None
) -> None:
    """The usual reason for half the speed; without the command its status file says the number."""
    if body is not None:
        program(programs, "nvpmodel", body)
    files = {} if status is None else {"var/lib/nvpmodel/status": status}

    assert tree(tmp_path / "root", files).power_mode() == mode


@pytest.mark.parametrize(
    ("files", "driver"),
    [
        (
            {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct\n"},
            "535.129.03",
        ),
        (
            {
                "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  "
                "Release Build\nGCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"
            },
            "550.54.14",
        ),
        (ORIN, "R36.4.3"),
        ({"etc/nv_tegra_release": "# R35 (release), REVISION: 6.0, GCID: 37391689, BOARD: t186ref\n"}, "R35.6.0"),
        ({"proc/driver/nvidia/version": "nothing that we know\n"}, None),
        (PI, None),
        ({}, None),
    ],
)
def test_the_gpus_driver_is_its_own_version_or_the_jetsons_release(
    tmp_path: Path, programs: Path, files: dict[str, str], driver: str | None
) -> None:
    """Not the CUDA that it can do: that stays the same for years of drivers."""
    assert tree(tmp_path, files).gpu_driver() == driver


def test_a_jetsons_container_without_the_release_file_asks_for_the_package(tmp_path: Path, programs: Path) -> None:
    """Which has the same number."""
    (programs / "dpkg-query").write_text("#!/bin/sh\necho 36.4.3-20250107174145\n")
    (programs / "dpkg-query").chmod(0o755)
    files = {"proc/device-tree/model": ORIN["proc/device-tree/model"]}

    assert tree(tmp_path, files).gpu_driver() == "R36.4.3"


def test_an_empty_machine_tells_nothing_and_raises_nothing(tmp_path: Path) -> None:
    """A container without sysfs."""
    board = Board(tmp_path)
    sample = board.sample()

    assert board.kind == "other"
    assert (sample.temperatures_c, sample.clocks_mhz, sample.throttled, sample.counters) == ({}, {}, (), {})
    assert board.memory().available_mb is None


def test_this_machine_tells_its_memory() -> None:
    """The real /proc."""
    memory = Board().memory()

    assert memory.process_mb is not None
    assert memory.process_peak_mb is not None
    assert 1 < memory.process_mb <= memory.process_peak_mb
    assert memory.available_mb
