"""Every frame that the camera offers is a part: the trigger of `frame` and of `free`.

The two differ in the camera: in free run it offers only its newest frame (`agent.cameras.newest`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agent.frame import Part, Stamp
from agent.triggers.ids import made_up_id

if TYPE_CHECKING:
    from agent.triggers.queue import TriggerWatcher

__all__ = ["EachFrame", "FrameSource"]


class FrameSource(Protocol):
    """What this trigger needs of a camera."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def ended(self) -> bool:
        """No frame will ever come again."""

    @property
    def upcoming(self) -> str | None:
        """The name that the source has for the frame that can be read, if it has one."""

    def poll(self, timeout_s: float) -> bool:
        """Wait until a frame can be read."""


class EachFrame:
    """A part for each frame that can be read; the caller reads it before it asks for the next part.

    Ids are the camera's where it has one for the frame (a file's name). Else they are `PREFIX-20260131T091403127-17`:
    UTC to the millisecond and the number within this run, so that they stay apart from those of earlier runs.

    Args:
        camera: what offers frames.
        kind: the trigger's name in verdicts.
        prefix: of the ids.
    """

    def __init__(self, camera: FrameSource, *, kind: str, prefix: str) -> None:
        self._camera = camera
        self._kind = kind
        self._prefix = prefix
        self._count = 0
        self._watcher: TriggerWatcher | None = None
        self._is_closed = False

    @property
    def ended(self) -> bool:
        """The camera has ended, or this trigger was closed."""
        return self._is_closed or self._camera.ended

    @property
    def lost(self) -> str | None:
        """None: what is lost here is the camera, which says so itself."""
        return None

    def next(self, timeout_s: float) -> Part | None:
        """A part when the camera has a frame."""
        if self._is_closed or not self._camera.poll(timeout_s):
            return None
        self._count += 1
        triggered = Stamp.now()
        part_id = self._camera.upcoming or made_up_id(self._prefix, triggered, self._count)
        return Part(id=part_id, trigger=self._kind, sequence=self._count, triggered=triggered)

    def watch(self, watcher: TriggerWatcher) -> None:
        """A frame is taken whenever there is one."""
        self._watcher = watcher
        watcher.ready(is_ready=not self._is_closed)

    def close(self) -> None:
        """Give no more parts."""
        self._is_closed = True
        if self._watcher is not None:
            self._watcher.ready(is_ready=False)
