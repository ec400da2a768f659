"""The kernel's own V4L2 camera, `vivid`, which is unbound as a camera is unplugged. For `tools/test-v4l2` only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2

from agent.config import CameraConfig
from tests.kit.rigs import Size
from tests.kit.waiting import wait_until

__all__ = ["DEVICE", "VividRig", "why_no_vivid"]

DEVICE = "/dev/video0"
DRIVER = Path("/sys/bus/platform/drivers/vivid")
INSTANCE = "vivid.0"


def why_no_vivid() -> str:
    """Why the tests can't run here; empty where they can."""
    return "" if DRIVER.is_dir() else "opt-in: tools/test-v4l2 runs these in a virtual machine with the kernel's vivid"


class VividRig:
    """Its webcam input, which has these sizes among others; the first is what OpenCV asks for when nobody asks.

    Args:
        configured: makes the camera's configuration from the device.
    """

    size, other_size = (640, 480), (320, 180)

    def __init__(self, configured: Callable[[str], CameraConfig]) -> None:
        self.config = configured(DEVICE)

    def plug_in(self, size: Size) -> None:
        """Bind the driver, and leave it with this size, as the last program did that used it."""
        if not (DRIVER / INSTANCE).exists():
            (DRIVER / "bind").write_text(INSTANCE)
        wait_until(Path(DEVICE).exists, what=DEVICE)
        capture = cv2.VideoCapture(DEVICE, cv2.CAP_V4L2)
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        capture.release()

    def unplug(self) -> None:
        """Unbind it."""
        if (DRIVER / INSTANCE).exists():
            (DRIVER / "unbind").write_text(INSTANCE)
