"""The cameras of a part's views, read at once and joined, so that the line sees one camera.

```text
                    ┌ first camera, by the line's thread ┐
trigger ─ one part ─┼ thread `view-left`                 ┼─ joined by name or by time ─▶ one frame or fault per view
                    └ thread `view-right`                ┘
```

What comes late is thrown away, and never becomes the picture of the next part.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import re
import threading
import time
from collections.abc import Sequence
from typing import Literal

from agent.cameras import Camera, is_live
from agent.cameras.folder import natural_order
from agent.config import AgentConfig, FolderCameraConfig, FrameTriggerConfig, FreeRunConfig
from agent.errors import ConfigError
from agent.frame import Fault, Frame, Part, Stamp

__all__ = ["Join", "View", "ViewCameras", "joined_by"]

CLOSE_S = 1.0
"""Longest time that `close` waits for a view's thread; one that hangs in a driver is left behind as a daemon."""

Join = Literal["name", "order", "trigger", "first"]
"""How pictures of one part find each other: by their files' names; each camera's next one (video files); exposed after
the part's trigger; or exposed after the first camera's picture, which triggered the part."""

log = logging.getLogger("agent.view_cameras")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A further camera of a part.

    Attributes:
        name: how verdicts call the view.
        camera: the opened camera; live ones give the first frame after a part's trigger (`agent.cameras.triggered`).
        delay_ms: how much later than the first camera it exposes.
        window_ms: how long after the first camera's its frame may come, `delay_ms` not counted, and how far from it in
            time it may have been exposed. Files are waited for.
    """

    name: str
    camera: Camera
    delay_ms: float = 0.0
    window_ms: float = 500.0


def joined_by(config: AgentConfig) -> Join:
    """How the views of this station are joined.

    Args:
        config: whose cameras are folders, or none is.

    Raises:
        ConfigError: video files beside live cameras, which nothing joins.
    """
    if isinstance(config.camera, FolderCameraConfig):
        return "name"
    live = [is_live(camera) for camera in (config.camera, *(view.camera for view in config.views))]
    if not any(live):
        return "order"
    if not all(live):
        raise ConfigError(
            "views: got video files beside live cameras: nothing says which of their pictures belong together",
            hint="take video files for all views, or cameras for all",
        )
    return "first" if isinstance(config.trigger, FrameTriggerConfig | FreeRunConfig) else "trigger"


class ViewCameras:
    """All cameras of a part as one. Triggers see a camera: `poll`, `upcoming`, `ended`; the line calls `capture`.

    Each further camera has a thread, which reads it when a part is captured; `close` ends it. The first is read by the
    caller, to whom everything here belongs.

    Folders are joined by name: a part is every name that any of them holds, in natural order; for a folder without it,
    that view has no picture, and the others stay where they are.

    Args:
        first: the camera whose frames make parts where no trigger does; named as its view.
        further: the other views; this object owns all cameras from now on.
        join: how pictures find each other.
    """

    def __init__(self, first: Camera, further: Sequence[View], *, join: Join) -> None:
        self._first = first
        self._join = join
        self._readers = [_Reader(view) for view in further]
        self.names = (first.name, *(view.name for view in further))

    @property
    def name(self) -> str:
        """The first camera's name."""
        return self._first.name

    @property
    def upcoming(self) -> str | None:
        """The name of the next part, where pictures have names: the first of any folder's."""
        if self._join != "name":
            return self._first.upcoming
        names = [name for camera in self._cameras() if (name := camera.upcoming) is not None]
        return min(names, key=_turn, default=None)

    @property
    def ended(self) -> bool:
        """The first camera has ended; of folders, all have."""
        if self._join != "name":
            return self._first.ended
        return all(camera.ended for camera in self._cameras())

    @property
    def lost(self) -> str | None:
        """Which views deliver nothing right now, and why."""
        lost = [(name, camera.lost) for name, camera in zip(self.names, self._cameras(), strict=True)]
        return "; ".join(f"view {name}: {reason}" for name, reason in lost if reason is not None) or None

    def poll(self, timeout_s: float) -> bool:
        """Wait for the first camera; of folders, for all that have not ended."""
        if self._join != "name":
            return self._first.poll(timeout_s)
        until = time.monotonic() + timeout_s
        there = [camera.poll(max(until - time.monotonic(), 0.0)) for camera in self._cameras() if not camera.ended]
        return bool(there) and all(there) and not self.ended

    def capture(self, part: Part) -> tuple[Frame | Fault, ...]:
        """Take the part's picture with every camera at once.

        Args:
            part: whose pictures they are.

        Returns:
            One per view, the first camera's first; a fault names its view. Never raises for one exposure.
        """
        if self._join == "name":
            return self._capture_named(part)
        if self._join == "first":
            frame = self._first.read(part)
            asked = [reader.ask(_since(part, frame)) for reader in self._readers]
        else:
            asked = [reader.ask(part) for reader in self._readers]
            frame = self._first.read(part)
        until = time.monotonic()
        is_timed = self._join != "order"
        others = (
            reader.take(each, until if is_timed else None) for reader, each in zip(self._readers, asked, strict=True)
        )
        seen = [dataclasses.replace(other, part=part) for other in others]
        views = [reader.view for reader in self._readers]
        checked = [_in_window(view, other, frame) for view, other in zip(views, seen, strict=True)]
        return (_naming(self.name, frame), *checked)

    def close(self) -> None:
        """End the threads and close every camera; may be called twice."""
        for reader in self._readers:
            reader.stop()
        for reader in self._readers:
            reader.join()
        self._first.close()

    def _capture_named(self, part: Part) -> tuple[Frame | Fault, ...]:
        name = self.upcoming
        # All are asked before one is read: reading moves a folder on to its next name.
        asked = [reader.ask(part) if reader.view.camera.upcoming == name else None for reader in self._readers]
        missing = Fault(part=part, stage="capture", reason=f"there is no picture named {name}")
        first = self._first.read(part) if self._first.upcoming == name else missing
        others = [
            _naming(reader.view.name, missing) if each is None else reader.take(each, None)
            for reader, each in zip(self._readers, asked, strict=True)
        ]
        return (_naming(self.name, first), *others)

    def _cameras(self) -> list[Camera]:
        return [self._first, *(reader.view.camera for reader in self._readers)]


@dataclasses.dataclass(slots=True, eq=False)
class _Asked:
    """One part's turn at one camera."""

    part: Part
    answer: Frame | Fault | None = None
    is_late: bool = False


class _Reader:
    """A further camera, read by a thread of its own, one part after the other.

    A part that nobody waits for any more, as its window has passed, is not read: the frames that come belong to others.

    Args:
        view: whose camera; this object owns it from now on.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._waiting: collections.deque[_Asked] = collections.deque()
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"view-{view.name}", daemon=True)
        self._thread.start()

    def ask(self, part: Part) -> _Asked:
        """Begin to take this part's picture."""
        asked = _Asked(part)
        with self._changed:
            self._waiting.append(asked)
            self._changed.notify_all()
        return asked

    def take(self, asked: _Asked, since: float | None) -> Frame | Fault:
        """The picture; a fault when it is not here in time.

        Args:
            asked: what `ask` gave.
            since: seconds of the monotonic clock from which the window counts; None waits until it is read.
        """
        allowed_s = (self.view.delay_ms + self.view.window_ms) / 1000
        with self._changed:
            wait_s = None if since is None else max(since + allowed_s - time.monotonic(), 0.0)
            self._changed.wait_for(lambda: asked.answer is not None or self._stopped, wait_s)
            if asked.answer is not None:
                return _naming(self.view.name, asked.answer)
            asked.is_late = True
        why = "closed" if self._stopped else f"no picture within {allowed_s * 1000:,.0f} ms of the first camera's"
        return _naming(self.view.name, Fault(part=asked.part, stage="capture", reason=why))

    def stop(self) -> None:
        """End the thread after what it reads right now; it closes the camera."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the thread's end, `CLOSE_S` at most."""
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (asked := self._next()) is not None:
            answer = self._read(asked.part)
            with self._changed:
                asked.answer = answer
                self._changed.notify_all()
        try:
            self.view.camera.close()
        except Exception:  # nobody is left to tell
            log.exception("bug")

    def _next(self) -> _Asked | None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return None
                asked = self._waiting.popleft()
                if not asked.is_late:
                    return asked

    def _read(self, part: Part) -> Frame | Fault:
        try:
            return self.view.camera.read(part)
        except Exception as error:  # a camera never raises for one exposure: our bug, shown as one
            log.exception("bug")
            return Fault(part=part, stage="capture", reason=f"unexpected {type(error).__name__}: {error}")


def _since(part: Part, first: Frame | Fault) -> Part:
    """The part as the other cameras are to see it: triggered when the first camera exposed."""
    if isinstance(first, Fault) or first.exposed_ns is None:
        return part
    at = part.triggered
    earlier_ms = (at.mono_ns - first.exposed_ns) // 1_000_000
    return dataclasses.replace(part, triggered=Stamp(at.utc_ms - earlier_ms, first.exposed_ns))


def _in_window(view: View, seen: Frame | Fault, first: Frame | Fault) -> Frame | Fault:
    """The view's frame, unless it was exposed too far from the first camera's."""
    if isinstance(seen, Fault) or isinstance(first, Fault) or seen.exposed_ns is None or first.exposed_ns is None:
        return seen
    apart_ms = (seen.exposed_ns - first.exposed_ns) / 1e6 - view.delay_ms
    if abs(apart_ms) <= view.window_ms:
        return seen
    reason = f"exposed {apart_ms:+,.0f} ms from the first camera's picture, expected at most {view.window_ms:g} ms"
    return _naming(view.name, Fault(part=seen.part, stage="capture", reason=reason))


def _naming(view: str, item: Frame | Fault) -> Frame | Fault:
    """A fault says which view it befell."""
    if isinstance(item, Frame):
        return item
    return dataclasses.replace(item, reason=f"view {view}: {item.reason}")


_LAP = re.compile(r"(?s)(.*)#([0-9]+)")


def _turn(name: str) -> tuple[int, object]:
    """When a folder's picture comes: by its pass of a loop, then in natural order."""
    match = _LAP.fullmatch(name)
    return (int(match[2]), natural_order(match[1])) if match else (1, natural_order(name))
