"""Triggers: what makes a part. `open_trigger` chooses one by the type of its configuration.

| configuration | module | a part is |
| --- | --- | --- |
| `FrameTriggerConfig`, `FreeRunConfig` | `frame` | a frame of the camera |
| `IntervalTriggerConfig` | `interval` | a tick of the clock |
| `GpioTriggerConfig` | `gpio` | an edge of an electrical line |
| `TcpTriggerConfig` | `tcp` | a line of text from a PLC or a bar code reader |
| `MqttTriggerConfig` | `mqtt` | a command from the plant |

The last four come when they want: they have a thread of their own, the last one that of the commands, and meet the
line in a `TriggerQueue`.
"""

from __future__ import annotations

from typing import Protocol

from agent.config import (
    FrameTriggerConfig,
    FreeRunConfig,
    GpioTriggerConfig,
    IntervalTriggerConfig,
    MqttTriggerConfig,
    TcpTriggerConfig,
    TriggerConfig,
)
from agent.frame import Fault, Part
from agent.triggers.frame import EachFrame, FrameSource
from agent.triggers.queue import TriggerQueue, TriggerWatcher

__all__ = ["FrameSource", "Trigger", "TriggerQueue", "TriggerWatcher", "open_trigger"]


class Trigger(Protocol):
    """Says when there is a part; each one that it names must get a verdict. It belongs to the line's thread.

    To stop without losing a part: `close`, then `next(0)` until `ended`, judging what it gives.
    """

    def next(self, timeout_s: float) -> Part | Fault | None:
        """Wait for a part.

        Args:
            timeout_s: seconds to wait; a source that blocks longer says so in its class.

        Returns:
            The part; a fault of a part that was refused because too many wait, which still gets its verdict; or None
            when none came.
        """

    @property
    def ended(self) -> bool:
        """No part will ever come again."""

    @property
    def lost(self) -> str | None:
        """Why no trigger can come right now, in words; None while one can."""

    def watch(self, watcher: TriggerWatcher) -> None:
        """Tell the fast outputs of each trigger when it comes, and whether one would be taken, now and when it changes.

        Call it before the first `next`.
        """

    def close(self) -> None:
        """Take no trigger any more, and give the source back; what came before is still given. May be called twice."""


def open_trigger(config: TriggerConfig, camera: FrameSource) -> Trigger:
    """Make the configured trigger.

    Args:
        config: which one.
        camera: the opened camera; for free run `open_camera` has given it its reader thread.

    Raises:
        ConfigError: the configured line or address is not there, not allowed or in use.
        MissingExtra: its library is not installed.
    """
    match config:
        case FrameTriggerConfig():
            return EachFrame(camera, kind=config.kind, prefix=camera.name)
        case FreeRunConfig():
            return EachFrame(camera, kind=config.kind, prefix=config.part_prefix)
        case IntervalTriggerConfig():
            from agent.triggers.interval import IntervalTrigger

            return IntervalTrigger(config)
        case GpioTriggerConfig():
            from agent.triggers.gpio import GpioTrigger

            return GpioTrigger(config)
        case TcpTriggerConfig():
            from agent.triggers.tcp import TcpTrigger

            return TcpTrigger(config)
        case MqttTriggerConfig():
            from agent.triggers.mqtt import MqttTrigger

            return MqttTrigger(config)
