"""What every camera promises, asked of the Raspberry Pi's: picamera2's stand-in, with a sensor in the test's hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from agent.cameras import Camera
from agent.config import PiCameraConfig
from tests.contracts.test_camera_contract import *  # noqa: F403 - its cases, asked of the cameras below
from tests.contracts.test_camera_contract import LEVELS, opened
from tests.kit.picamera2 import installed
from tests.kit.pictures import flat


def config_of(mode: Literal["video", "still"], buffers: int) -> PiCameraConfig:
    """A camera that is lost soon after its last frame."""
    return PiCameraConfig(
        kind="picamera", mode=mode, buffers=buffers, width_px=64, height_px=48, read_timeout_ms=300, reopen_s=30
    )


@pytest.fixture(params=[("video", 4), ("still", 1)], ids=["video", "still"])  # type: ignore[no-redef] # in place of the others
def camera(request: pytest.FixtureRequest) -> Iterator[Camera]:
    """Five frames of rising grey in front of it, one whenever somebody waits."""
    with installed() as sensor:
        opened_camera = opened(config_of(*request.param))
        sensor.feed(*(flat(level) for level in LEVELS))
        yield opened_camera
        opened_camera.close()
