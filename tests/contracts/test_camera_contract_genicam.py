"""What every camera promises, asked of a GenICam camera: Aravis's fake one, over GigE Vision on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.cameras import Camera
from agent.config import GenicamCameraConfig
from tests.contracts.test_camera_contract import *  # noqa: F403 - its cases, asked of the cameras below
from tests.contracts.test_camera_contract import LEVELS, opened
from tests.kit.aravis_cameras import ADDRESS, hand_gige
from tests.kit.pictures import flat


def config_of(*, pixel_format: str) -> GenicamCameraConfig:
    """A camera that runs freely, and is lost soon after its last frame."""
    return GenicamCameraConfig(
        kind="genicam",
        device=ADDRESS,
        pixel_format=pixel_format,
        width_px=64,
        height_px=48,
        read_timeout_ms=800,
        reopen_s=30,
    )


@pytest.fixture(params=["Mono8", "RGB8"])  # type: ignore[no-redef] # in place of the others
def camera(request: pytest.FixtureRequest) -> Iterator[Camera]:
    """Five frames of rising grey in front of it."""
    with hand_gige() as gige:
        pictures = [flat(level) for level in LEVELS]
        gige.show(*(picture if request.param == "RGB8" else picture[:, :, 0] for picture in pictures))
        opened_camera = opened(config_of(pixel_format=request.param))
        try:
            yield opened_camera
        finally:
            gige.release()
            opened_camera.close()
