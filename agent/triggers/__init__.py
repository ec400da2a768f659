"""Triggers: what makes a part. `open_trigger` chooses one by the type of its configuration."""

from __future__ import annotations

from typing import Protocol

from agent.config import FrameTriggerConfig, FreeRunConfig, TriggerConfig
from agent.frame import Fault, Part
from agent.triggers.frame import EachFrame, FrameSource

__all__ = ["FrameSource", "Trigger", "open_trigger"]


class Trigger(Protocol):
    """Says when there is a part; each one that it names must get a verdict. It belongs to the line's thread."""

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


def open_trigger(config: TriggerConfig, camera: FrameSource) -> Trigger:
    """Make the configured trigger.

    Args:
        config: which one.
        camera: the opened camera; for free run `open_camera` has given it its reader thread.
    """
    match config:
        case FrameTriggerConfig():
            return EachFrame(camera, kind=config.kind, prefix=camera.name)
        case FreeRunConfig():
            return EachFrame(camera, kind=config.kind, prefix=config.part_prefix)
