"""Triggers in the configuration: what makes a part."""

from __future__ import annotations

import dataclasses
from typing import Literal, Union

from agent.typed_yaml import key as _key

__all__ = [
    "FrameTriggerConfig",
    "FreeRunConfig",
    "GpioTriggerConfig",
    "IntervalTriggerConfig",
    "MqttTriggerConfig",
    "TcpTriggerConfig",
    "TriggerConfig",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameTriggerConfig:
    """Every frame that the camera delivers is one part; none is left out.

    Attributes:
        kind: `frame`.
    """

    kind: Literal["frame"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FreeRunConfig:
    """The newest frame is judged, as often as the line can; frames that came meanwhile are no parts.

    Attributes:
        kind: `free`.
        part_prefix: generated part ids begin with it.
    """

    kind: Literal["free"]
    part_prefix: str = _key("part", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IntervalTriggerConfig:
    """A part at fixed times.

    Attributes:
        kind: `interval`.
        period_ms: from one part to the next.
        part_prefix: generated part ids begin with it.
        delay_ms: from the trigger to the exposure.
        waiting: triggers that may wait while a part is judged; one beyond them gets an `error` verdict at once.
    """

    kind: Literal["interval"]
    period_ms: float = _key(low=1, high=86_400_000)
    part_prefix: str = _key("part", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    delay_ms: float = _key(0.0, low=0, high=60_000)
    waiting: int = _key(1, low=0, high=10_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GpioTriggerConfig:
    """An electrical line, such as a light barrier.

    Attributes:
        kind: `gpio`.
        chip: of the lines, `/dev/gpiochip0`.
        line: its number on the chip.
        edge: which one is a part.
        bias: resistor that holds the open line.
        debounce_us: shorter pulses are noise.
        part_prefix: generated part ids begin with it.
        delay_ms: from the trigger to the exposure.
        waiting: triggers that may wait while a part is judged; one beyond them gets an `error` verdict at once.
    """

    kind: Literal["gpio"]
    chip: str = _key("/dev/gpiochip0", pattern=r"/dev/[\w/-]{1,60}", form="a device such as /dev/gpiochip0")
    line: int = _key(low=0, high=1_023)
    edge: Literal["rising", "falling"] = "rising"
    bias: Literal["as-is", "pull-up", "pull-down", "disabled"] = "as-is"
    debounce_us: int = _key(1_000, low=0, high=10_000_000)
    part_prefix: str = _key("part", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    delay_ms: float = _key(0.0, low=0, high=60_000)
    waiting: int = _key(1, low=0, high=10_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TcpTriggerConfig:
    """A line of text over TCP, as bar code readers and PLCs send it; `outputs.tcp` answers on the same connection.

    Attributes:
        kind: `tcp`.
        host: address to listen on; beyond loopback only where the configuration says so.
        port: TCP port.
        senders: connections that may trigger at the same time; triggers of others are refused with an `error` verdict.
        part_prefix: generated part ids begin with it.
        delay_ms: from the trigger to the exposure.
        waiting: triggers that may wait while a part is judged; one beyond them gets an `error` verdict at once.
    """

    kind: Literal["tcp"]
    host: str = _key("127.0.0.1", pattern=r"[0-9a-fA-F.:]{2,45}", form="an IP address")
    port: int = _key(5_020, low=1, high=65_535)
    senders: int = _key(1, low=1, high=16)
    part_prefix: str = _key("part", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    delay_ms: float = _key(0.0, low=0, high=60_000)
    waiting: int = _key(1, low=0, high=10_000)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MqttTriggerConfig:
    """A command on `ROOT/cmd/trigger`, for lines where the milliseconds of a broker do not matter.

    Attributes:
        kind: `mqtt`.
        part_prefix: generated part ids begin with it.
        delay_ms: from the trigger to the exposure.
        waiting: triggers that may wait while a part is judged; one beyond them gets an `error` verdict at once.
    """

    kind: Literal["mqtt"]
    part_prefix: str = _key("part", pattern=r"[\w.-]{1,40}", form="1 to 40 letters, digits, `_`, `.` or `-`")
    delay_ms: float = _key(0.0, low=0, high=60_000)
    waiting: int = _key(1, low=0, high=10_000)


TriggerConfig = Union[  # noqa: UP007 - read at run time on Python 3.10
    FrameTriggerConfig,
    FreeRunConfig,
    IntervalTriggerConfig,
    GpioTriggerConfig,
    TcpTriggerConfig,
    MqttTriggerConfig,
]
