"""What is asked of a V4L2 device, and what it made of that.

A driver may take the nearest value, or none, and says so to nobody; so everything is read back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import struct

import cv2

from agent.config import OpenCvCameraConfig

__all__ = ["NotTaken", "ask_device", "exposure_stamp_ns", "size_not_taken"]

EXPOSURE_UNIT_US = 100
"""Of `V4L2_CID_EXPOSURE_ABSOLUTE` (kernel documentation, "Camera Control Reference")."""

MANUAL_EXPOSURE = 1
"""`V4L2_EXPOSURE_MANUAL` of `V4L2_CID_EXPOSURE_AUTO`, same place. It comes before the time: automatic ignores that."""

VIDIOC_S_CTRL, AUTOGAIN = 0xC008561C, 0x00980912
"""`V4L2_CID_AUTOGAIN` (linux/v4l2-controls.h), which OpenCV has no property for: left on, it changes a gain at once."""

CLOSE_ENOUGH = 0.01
"""Rates are fractions of the driver's clock: 30 frames per second may be 30.01."""

OLDEST_STAMP_NS = 60_000_000_000
"""A stamp that is older, or in the future, is of another clock."""


@dataclasses.dataclass(frozen=True, slots=True)
class NotTaken:
    """A setting that the device did not take as asked.

    Attributes:
        key: of the configuration.
        asked: what it asks for.
        got: what the device has instead, in words.
    """

    key: str
    asked: str
    got: str


def ask_device(capture: cv2.VideoCapture, device: str, config: OpenCvCameraConfig) -> list[NotTaken]:
    """Set what is configured, in the order in which drivers want it, and read it back.

    The format comes first, for sizes and rates belong to it; exposure and gain come last. Width and height are set as
    one: a driver that gets them one after the other may answer the first with a size of its own.

    Args:
        capture: an opened V4L2 device.
        device: its path.
        config: what to ask for; empty values and zeros are left to the device.

    Returns:
        What it did not take. Sizes are not in it: OpenCV 5.0 gives back what was asked (641 px of vivid, which delivers
        640); `size_not_taken` sees the frame.
    """
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    answers = [_pixel_format(capture, config.pixel_format)]
    for what, value in ((cv2.CAP_PROP_FRAME_WIDTH, config.width_px), (cv2.CAP_PROP_FRAME_HEIGHT, config.height_px)):
        if value:
            capture.set(what, value)
    if config.fps:
        capture.set(cv2.CAP_PROP_FPS, config.fps)
        answers.append(_compared("fps", config.fps, capture.get(cv2.CAP_PROP_FPS)))
    if config.exposure_us is not None:
        answers.append(_exposure(capture, config.exposure_us))
    if config.gain is not None:
        _switch_off(device, AUTOGAIN)
        answers.append(_control(capture, "gain", cv2.CAP_PROP_GAIN, config.gain))
    return [answer for answer in answers if answer is not None]


def size_not_taken(config: OpenCvCameraConfig, width_px: int, height_px: int) -> list[NotTaken]:
    """What the device did not take of the size that was asked for, by a frame of it."""
    sizes = (("width_px", config.width_px, width_px), ("height_px", config.height_px, height_px))
    return [NotTaken(key, str(asked), str(got)) for key, asked, got in sizes if asked not in (0, got)]


def exposure_stamp_ns(capture: cv2.VideoCapture, arrived_ns: int) -> int:
    """When the driver stamped the grabbed frame, on CLOCK_MONOTONIC; its arrival where it has no such stamp.

    OpenCV gives the time stamp of the V4L2 buffer as position in milliseconds. By the kernel's documentation
    ("Buffers", V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC) that is CLOCK_MONOTONIC for cameras, at the start or the end of the
    frame. A stamp that can't be one is not believed.
    """
    stamped_ns = int(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
    return stamped_ns if 0 <= arrived_ns - stamped_ns <= OLDEST_STAMP_NS else arrived_ns


def _switch_off(device: str, control: int) -> None:
    """Set a control to 0, where the device has it."""
    with contextlib.suppress(OSError):
        number = os.open(device, os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.ioctl(number, VIDIOC_S_CTRL, struct.pack("Ii", control, 0))
        finally:
            os.close(number)


def _pixel_format(capture: cv2.VideoCapture, wanted: str) -> NotTaken | None:
    if not wanted:
        return None
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*wanted))
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    got = code.to_bytes(4, "little").decode("ascii", "backslashreplace")
    return None if got == wanted else NotTaken("pixel_format", wanted, got if got.isprintable() else "none")


def _exposure(capture: cv2.VideoCapture, wanted_us: float) -> NotTaken | None:
    units = max(1, round(wanted_us / EXPOSURE_UNIT_US))
    capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL_EXPOSURE)
    if not capture.set(cv2.CAP_PROP_EXPOSURE, units):
        return NotTaken("exposure_us", f"{wanted_us:g}", "the device has no exposure that can be set")
    return _compared("exposure_us", wanted_us, capture.get(cv2.CAP_PROP_EXPOSURE) * EXPOSURE_UNIT_US)


def _control(capture: cv2.VideoCapture, key: str, what: int, wanted: float) -> NotTaken | None:
    if not capture.set(what, wanted):
        return NotTaken(key, f"{wanted:g}", f"the device has no {key} that can be set")
    return _compared(key, wanted, capture.get(what))


def _compared(key: str, wanted: float, got: float) -> NotTaken | None:
    return None if abs(got - wanted) <= CLOSE_ENOUGH * wanted else NotTaken(key, f"{wanted:g}", f"{got:g}")
