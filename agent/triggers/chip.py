"""The door to GPIO: gpiod 2.x, the Python bindings of libgpiod, is imported here only.

Lines belong to whoever requests them, until they are released or the process ends. What a line does after that is up to
the kernel's driver: some leave its level as it was, others make it an input (linux/gpio.h: "may revert to its default
state").
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from agent.errors import ConfigError, MissingExtra

__all__ = ["Lines", "gpiod", "request_lines"]

INSTALL = "pip install 'defect-agent[gpio]' (gpiod 2.1 or later; Debian's python3-libgpiod of version 1 does not do)"

LIST = "gpioinfo lists the lines of each chip"

_PROBLEMS = {
    errno.ENOENT: ("is not there", "`ls /dev/gpiochip*` or gpiodetect shows the chips of this machine"),
    errno.EACCES: (
        "may not be opened by this user",
        "sudo usermod -aG gpio USER, then log in again; for the service SupplementaryGroups=gpio in its unit",
    ),
    errno.EBUSY: ("has a line that is in use already", "gpioinfo shows by whom; no two keys may name the same line"),
    errno.ENOTTY: ("is no GPIO chip", "gpiodetect shows the chips of this machine"),
    errno.ENODEV: ("is no GPIO chip", "gpiodetect shows the chips of this machine"),
    errno.EINVAL: ("refuses these settings", "its driver may not know edges, bias or debouncing on this line"),
}


class Lines(Protocol):
    """What we use of `gpiod.LineRequest`. It is not for several threads at a time."""

    @property
    def fd(self) -> int:
        """To be selected for reading; ready when events wait."""

    def get_values(self, lines: list[int]) -> list[Any]:
        """Logical levels."""

    def set_values(self, values: dict[int, Any]) -> None:
        """Set logical levels, in no promised order. Raises OSError."""

    def wait_edge_events(self, timeout: float) -> bool:
        """Whether events came within these seconds."""

    def read_edge_events(self, max_events: int | None = None) -> list[Any]:
        """Events that wait; blocks when none do. Raises OSError."""

    def release(self) -> None:
        """Give the lines back."""


def gpiod() -> Any:
    """The package, with `gpiod.line`.

    Raises:
        MissingExtra: it is not installed, or is of version 1.
    """
    try:
        package = importlib.import_module("gpiod")
        importlib.import_module("gpiod.line")
    except ImportError as error:
        raise MissingExtra(f"GPIO lines need gpiod, which can't be imported ({error})", hint=INSTALL) from error
    if not hasattr(package, "request_lines"):
        raise MissingExtra("GPIO lines need gpiod 2, and this one is of version 1", hint=INSTALL)
    return package


def request_lines(where: str, chip: str, config: Mapping[int, Any], *, events: int | None = None) -> Lines:
    """Take lines of a chip.

    Args:
        where: the block of the configuration, for messages.
        chip: its device.
        config: settings (`gpiod.LineSettings`) by line number.
        events: size of the kernel's buffer for edges.

    Raises:
        ConfigError: the chip or a line is not there, not allowed or in use.
        MissingExtra: gpiod is not installed.
    """
    numbers = ", ".join(map(str, config))
    try:
        lines: Lines = gpiod().request_lines(chip, dict(config), consumer="defect-agent", event_buffer_size=events)
    except ValueError as error:
        raise ConfigError(f"{where}: {chip} has no such line (line {numbers}: {error})", hint=LIST) from error
    except OSError as error:
        problem, hint = _PROBLEMS.get(error.errno or 0, (f"can't be used ({error.strerror})", LIST))
        raise ConfigError(f"{where}: {chip} {problem} (line {numbers})", hint=hint) from error
    return lines
