"""What every live camera promises, asked of the Raspberry Pi's: picamera2's stand-in, and a sensor with a cable."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.cameras import Camera
from tests.contracts.test_live_camera_contract import *  # noqa: F403 - its cases, asked of the rig below
from tests.contracts.test_live_camera_contract import next_frame, wait_until_lost
from tests.kit.picamera2 import installed
from tests.kit.picamera2.rig import PiRig
from tests.kit.rigs import Rig, plugged_in
from tests.kit.waiting import wait_until


@pytest.fixture  # type: ignore[no-redef] # in place of the others
def rig() -> Iterator[Rig]:
    """A sensor that exposes all the time."""
    with installed() as sensor, plugged_in(PiRig(sensor)) as plugged:
        yield plugged


def test_a_camera_that_comes_back_with_another_size_gives_no_frames(  # type: ignore[no-redef] # it says so otherwise
    rig: Rig, camera: Camera
) -> None:
    """Its size is configured, so that one that can't have it is not opened: it stays lost, with both sizes."""
    next_frame(camera)
    rig.unplug()
    wait_until_lost(camera)
    rig.plug_in(rig.other_size)

    wait_until(lambda: not camera.poll(0.1) and "gives 48x32 RGB888" in str(camera.lost), 30, what="the reason")
    assert "expected 64x48" in str(camera.lost)

    rig.unplug()
    rig.plug_in(rig.size)
    assert next_frame(camera).image.shape == (48, 64, 3)
