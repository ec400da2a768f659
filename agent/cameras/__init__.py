"""Cameras: where pictures come from. `open_camera` chooses one by the type of its configuration.

| configuration | module | source |
| --- | --- | --- |
| `FolderCameraConfig` | `folder` | picture files, in the order of their names |
| `OpenCvCameraConfig` | `opencv` | video file, RTSP or HTTP stream, USB camera |
| any, with free run | `newest` | wraps one of the others: only the newest frame counts |

`decode` turns the bytes of a picture file into pixels; training uses it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agent.cameras.decode import PICTURE_SUFFIXES, decode_image, read_image
from agent.config import CameraConfig, FolderCameraConfig, FreeRunConfig, OpenCvCameraConfig, TriggerConfig
from agent.frame import Fault, Frame, Part

__all__ = ["PICTURE_SUFFIXES", "Camera", "decode_image", "open_camera", "read_image"]


class Camera(Protocol):
    """One source of exposures. It belongs to one thread: no two methods run at the same time.

    ```python
    if camera.poll(0.25):
        frame_or_fault = camera.read(part)
    ```
    """

    @property
    def name(self) -> str:
        """How messages and logs call it."""

    def poll(self, timeout_s: float) -> bool:
        """Wait until an exposure, or the failure of one, is there to be read; `read` takes it.

        A live source may block longer than asked: see its class.

        Args:
            timeout_s: seconds to wait.

        Returns:
            False when nothing came in time, while the camera is lost, and when the source has ended.
        """

    @property
    def upcoming(self) -> str | None:
        """The part id of the exposure that `poll` has announced, where the source knows one: a file's name.

        The part is named by it before its trigger goes to the journal, so that a part which a crash cut short is known
        by its name when the source is read again. None where the trigger has to make one up.
        """

    @property
    def ended(self) -> bool:
        """No frame will ever come again: a finite source is at its end, or the camera is closed."""

    @property
    def lost(self) -> str | None:
        """Why the camera does not deliver right now, in words; None while it does."""

    def read(self, part: Part) -> Frame | Fault:
        """Take the exposure for this part.

        Args:
            part: whose picture it is.

        Returns:
            The frame, whose pixels belong to the caller and are never written to again; or the reason why there is
            none. Never raises for one exposure.
        """

    def close(self) -> None:
        """Give the device back; may be called twice."""


def open_camera(config: CameraConfig, *, trigger: TriggerConfig, is_judged: Callable[[str], bool]) -> Camera:
    """Open the configured camera.

    Args:
        config: which one, and how.
        trigger: with free run the camera gets a thread of its own, and only its newest frame counts.
        is_judged: whether the journal holds a verdict for a part id; asked by a folder camera that resumes, from the
            thread that polls.

    Raises:
        CameraError: it can't be opened; the hint says what to do.
    """
    camera = _open(config, is_judged)
    if isinstance(trigger, FreeRunConfig):
        from agent.cameras.newest import NewestFrame

        return NewestFrame(camera)
    return camera


def _open(config: CameraConfig, is_judged: Callable[[str], bool]) -> Camera:
    match config:
        case FolderCameraConfig():
            from agent.cameras.folder import FolderCamera

            return FolderCamera(config, is_judged=is_judged)
        case OpenCvCameraConfig():
            from agent.cameras.opencv import OpenCvCamera

            return OpenCvCamera(config)
