"""Outputs: the fast result lines, beside MQTT, which no broker and no disk can delay.

`FastPath` is what the station speaks to; it owns the thread that speaks to the outputs.

| configuration | module | a result is |
| --- | --- | --- |
| `GpioOutputConfig` | `gpio`, its rules in `handshake` | levels on electrical lines |
| `TcpOutputConfig` | `tcp` | a line of text |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agent.frame import Part
from agent.outputs.fast import FastPath

if TYPE_CHECKING:
    from agent.config import OutputsConfig
    from agent.triggers import Trigger

__all__ = ["FastPath", "Output", "open_outputs"]


class Output(Protocol):
    """One way to tell a PLC the result of a part. Its methods are called from one thread and must return at once."""

    @property
    def trouble(self) -> str | None:
        """Why results may not arrive, in words; None while they do. Any thread may ask."""

    def ready(self, *, is_ready: bool) -> None:
        """Whether a trigger will be taken now."""

    def expect(self, part: Part) -> None:
        """This part was triggered, in the order of the calls; its `result` will come, in any order."""

    def busy(self, part: Part) -> None:
        """This part is being judged."""

    def exposing(self, *, is_exposing: bool) -> None:
        """The camera is about to expose (strobe on), or has exposed (off)."""

    def result(self, part: Part, decision: str, reason: str) -> None:
        """The one result of a part: `ok`, `defect`, `review` or `error`, with the reason in words."""

    def fault(self, reason: str | None) -> None:
        """The line can't judge parts, or can again (None)."""

    def close(self) -> None:
        """Leave all lines as power loss would: not ok, not ready."""


def open_outputs(config: OutputsConfig, trigger: Trigger) -> list[Output]:
    """Open the configured outputs.

    Args:
        config: which ones; none is fine.
        trigger: the opened trigger; a TCP trigger on the address of `outputs.tcp` shares its server.

    Raises:
        ConfigError: a line or an address is not there, not allowed or in use.
        MissingExtra: the library for GPIO is not installed.
    """
    opened: list[Output] = []
    try:
        if config.gpio is not None:
            from agent.outputs.gpio import GpioOutput

            opened.append(GpioOutput(config.gpio))
        if config.tcp is not None:
            from agent.outputs.tcp import open_tcp_output

            opened.append(open_tcp_output(config.tcp, trigger))
    except BaseException:
        for output in opened:
            output.close()
        raise
    return opened
