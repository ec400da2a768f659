"""The board under us: which one it is, its power mode, clocks, temperatures, throttling and memory.

Everything comes from files; few commands are asked, where they exist: `nvpmodel -q`, `vcgencmd get_throttled` on a
Raspberry Pi whose kernel has no file for it, `dpkg-query` on a Jetson without its release file. What can't be read is absent from the answer, never
0: a temperature of 0.0 that stands for "no sensor" is a lie that looks like data.

| what | where | source |
| --- | --- | --- |
| model | /proc/device-tree/model | kernel, Documentation/devicetree |
| temperatures | /sys/class/thermal/thermal_zone*/{type,temp}, thousandths of a degree | kernel, thermal/sysfs-api |
| CPU clocks | /sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq, kHz | kernel, admin-guide/pm/cpufreq |
| GPU clock | /sys/class/devfreq/*gpu*/cur_freq, Hz (Orin: 17000000.gpu, before JetPack 6 17000000.ga10b) | NVIDIA's Jetson Linux Developer Guide, Platform Power and Performance |
| over-current on a Jetson | /sys/class/hwmon/hwmon*/oc*_event_cnt | the same |
| heat on a Jetson | /sys/class/thermal/cooling_device*/{type,cur_state}, but fans | kernel, thermal/sysfs-api |
| throttling on a Pi | soc:firmware/get_throttled, hexadecimal; bits in `PI_FLAGS` | raspberrypi.com, computers/os, get_throttled |
| throttling on x86 | /sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count | kernel, ABI sysfs-devices-system-cpu |
| power mode | nvpmodel -q, else /var/lib/nvpmodel/status | NVIDIA's Jetson Linux Developer Guide |
| GPU driver on a Jetson | /etc/nv_tegra_release, else the package nvidia-l4t-core | the same |
| GPU driver elsewhere | /proc/driver/nvidia/version | NVIDIA's driver, README, "The /proc file system interface" |
"""  # noqa: E501 - a table

from __future__ import annotations

import dataclasses
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

__all__ = ["PI_FLAGS", "Board", "Memory", "Sample", "throttled_between"]

Kind = Literal["jetson", "raspberry-pi", "other"]

COMMAND_S = 5.0
"""How long `nvpmodel` or `vcgencmd` may take before its answer counts as absent."""

PI_FLAGS = {
    0: "under-voltage: the power supply is too weak",
    1: "the CPU's clock is capped",
    2: "throttled",
    3: "the soft temperature limit is active",
}
"""Bits of get_throttled that say what is so now; the same 16 higher say what has been so since the start."""

_GPU_CLOCKS = ("*gpu*", "*ga10b*", "*gv11b*", "*gp10b*")
_FANS = ("fan", "pwm")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The board at one moment.

    Attributes:
        temperatures_c: by zone, in degrees Celsius.
        clocks_mhz: `cpu0`, … for each policy of the CPU, `gpu`; in MHz.
        throttled: what holds the board back now, in words; empty when nothing does, or nobody says.
        counters: events that only count up, by their words: over-current, heat.
    """

    temperatures_c: Mapping[str, float]
    clocks_mhz: Mapping[str, float]
    throttled: tuple[str, ...]
    counters: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory in megabytes; None where the kernel does not say.

    Attributes:
        process_mb: what this process has in memory now.
        process_peak_mb: the most that it had.
        available_mb: what programs may still take without swapping.
        swap_mb: size of the swap space; 0 without one.
    """

    process_mb: float | None
    process_peak_mb: float | None
    available_mb: float | None
    swap_mb: float | None


class Board:
    """Reads the board; every method may be called at any time, from any thread, and raises nothing.

    Args:
        root: where `/proc`, `/sys` and `/var` are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self.model = (_text(root / "proc/device-tree/model") or "").rstrip("\0").strip()

    @property
    def kind(self) -> Kind:
        """Which family: a Jetson, a Raspberry Pi, or another machine."""
        if self._path("etc/nv_tegra_release").exists() or re.search(r"jetson|orin|nvidia", self.model, re.IGNORECASE):
            return "jetson"
        return "raspberry-pi" if "raspberry pi" in self.model.lower() else "other"

    def words(self) -> str:
        """The board and its system: `NVIDIA Jetson Orin Nano, aarch64 Linux 5.15.148-tegra`."""
        name = self.model
        if not name:
            found = re.search(r"(?m)^model name\s*:\s*(.+)$", _text(self._path("proc/cpuinfo")) or "")
            name = found[1].strip() if found else "unknown board"
        return f"{name}, {platform.machine()} {platform.system()} {platform.release()}"

    def power_mode(self) -> str | None:
        """The Jetson's power mode as nvpmodel names it, `MAXN` or `15W`, or its number where only that can be read.

        None elsewhere, and when nothing can be read.
        """
        answer = _command("nvpmodel", "-q")
        found = re.search(r"NV Power Mode:\s*(\S+)", answer or "")
        if found:
            return found[1]
        found = re.search(r"pmode:(\d+)", _text(self._path("var/lib/nvpmodel/status")) or "")
        return str(int(found[1])) if found else None

    def gpu_driver(self) -> str | None:
        """NVIDIA's driver: its version, `535.129.03`; on a Jetson the release that it is a part of, `R36.4.3`.

        None where there is none, and when nothing can be read.
        """
        if self.kind == "jetson":
            told = _text(self._path("etc/nv_tegra_release")) or ""
            found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)", told)
            if found:
                return f"R{found[1]}.{found[2]}"
            package = (_command("dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core") or "").partition("-")[0].strip()
            if package:
                return f"R{package}"
        told = _text(self._path("proc/driver/nvidia/version")) or ""
        found = re.search(r"(?m)^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)*)\s", told)
        return found[1] if found else None

    def sample(self) -> Sample:
        """What can be read now; some milliseconds."""
        return Sample(
            temperatures_c=dict(self._temperatures()),
            clocks_mhz=dict(self._clocks()),
            throttled=(*self._pi_flags(), *self._cooling()),
            counters=dict(self._counters()),
        )

    def memory(self) -> Memory:
        """Memory of this process and of the board."""
        own, system = _text(self._path("proc/self/status")) or "", _text(self._path("proc/meminfo")) or ""
        return Memory(
            process_mb=_kb(own, "VmRSS"),
            process_peak_mb=_kb(own, "VmHWM"),
            available_mb=_kb(system, "MemAvailable"),
            swap_mb=_kb(system, "SwapTotal"),
        )

    def _path(self, below: str) -> Path:
        return self._root / below

    def _temperatures(self) -> Iterator[tuple[str, float]]:
        for zone in sorted(self._path("sys/class/thermal").glob("thermal_zone*")):
            value, name = _number(zone / "temp"), _text(zone / "type")
            # A zone of a part that is switched off fails to read, or tells a temperature below any that works.
            if value is not None and name and -40_000 <= value <= 200_000 and value != 0:
                yield name.strip(), value / 1000

    def _clocks(self) -> Iterator[tuple[str, float]]:
        policies = self._path("sys/devices/system/cpu/cpufreq")
        for policy in sorted(policies.glob("policy*"), key=lambda path: int(path.name[6:] or 0)):
            value = _number(policy / "scaling_cur_freq")
            if value is not None:
                yield f"cpu{policy.name[6:]}", value / 1000
        gpus = [path for form in _GPU_CLOCKS for path in sorted(self._path("sys/class/devfreq").glob(form))]
        value = next((v for path in gpus if (v := _number(path / "cur_freq")) is not None), None)
        if value is not None:
            yield "gpu", value / 1e6

    def _cooling(self) -> Iterator[str]:
        """Cooling that costs speed: on a Jetson alone, where each names what it slows down; fans cost none."""
        if self.kind != "jetson":
            return
        for device in sorted(self._path("sys/class/thermal").glob("cooling_device*")):
            name, state = (_text(device / "type") or "").strip(), _number(device / "cur_state")
            if state and name and not any(word in name.lower() for word in _FANS):
                yield f"slowed down against heat by {name}"

    def _pi_flags(self) -> Iterator[str]:
        bits = self._pi_bits()
        if bits is not None:
            yield from (words for bit, words in PI_FLAGS.items() if bits >> bit & 1)

    def _pi_bits(self) -> int | None:
        if self.kind != "raspberry-pi":
            return None
        files = sorted(self._path("sys/devices/platform").glob("soc*/*firmware/get_throttled"))
        text = (_text(files[0]) if files else _command("vcgencmd", "get_throttled")) or ""
        found = re.fullmatch(r"\s*(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})\s*", text)
        return int(found[1], 16) if found else None

    def _counters(self) -> Iterator[tuple[str, int]]:
        for path in sorted(self._path("sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
            value = _number(path)
            if value is not None:
                yield f"over-current ({path.name.partition('_')[0]})", value
        cores = self._path("sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/package_throttle_count")
        values = [value for path in cores if (value := _number(path)) is not None]
        if values:
            yield "the processor slowed down against heat", max(values)
        bits = self._pi_bits()
        if bits is not None:
            yield from ((f"{words} (since the start)", bits >> (bit + 16) & 1) for bit, words in PI_FLAGS.items())


def throttled_between(samples: list[Sample]) -> tuple[str, ...]:
    """What held the board back during a run, in words, each once.

    Args:
        samples: taken from its begin to its end, at least one.
    """
    seen = [words for sample in samples for words in sample.throttled]
    first, last = samples[0].counters, samples[-1].counters
    seen += [words for words, count in last.items() if count > first.get(words, count)]
    return tuple(dict.fromkeys(seen))


def _text(path: Path) -> str | None:
    """A small file of the kernel; None when it is absent, may not be read, or answers with an error."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _kb(text: str, name: str) -> float | None:
    found = re.search(rf"(?m)^{name}:\s*(\d+) kB", text)
    return round(int(found[1]) / 1000, 1) if found else None


def _command(name: str, *arguments: str) -> str | None:
    """What a command prints; None when it is absent, fails, or does not answer."""
    program = shutil.which(name)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, errors="replace", timeout=COMMAND_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
