"""V4L2, asked of a real driver: the contract of live cameras, and what is asked of devices."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cameras import Camera
from agent.cameras.gstreamer import GStreamerCamera  # noqa: F401 - of the process below
from agent.cameras.opencv import OpenCvCamera
from agent.frame import Fault, Frame, Part, Stamp
from tests.contracts import test_live_camera_contract as contract
from tests.contracts.test_live_camera_contract import *  # noqa: F403 - its cases, asked of the rig below
from tests.kit.rigs import Rig, opencv, plugged_in
from tests.kit.rtsp import why_no_gstreamer
from tests.kit.waiting import wait_until
from tests.v4l2.vivid import DEVICE, VividRig, why_no_vivid

pytestmark = pytest.mark.skipif(bool(why_no_vivid()), reason=why_no_vivid())

ROOT = Path(__file__).parents[2]
PART = Part(id="P1", trigger="frame", sequence=1, triggered=Stamp.now())
SLOW = {"read_timeout_ms": 3000}
"""The machine is emulated."""


@pytest.fixture  # type: ignore[no-redef]  # in place of the imported one
def rig() -> Iterator[Rig]:
    """The device through OpenCV; it delivers."""
    with plugged_in(VividRig(lambda device: opencv(device, **SLOW))) as plugged:
        yield plugged


@pytest.fixture
def device() -> Iterator[str]:
    """The device, as a fresh driver leaves it."""
    rig = VividRig(opencv)
    rig.unplug()
    with plugged_in(rig):
        yield DEVICE


def not_taken(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """Setting to what the device has instead, as the log says."""
    records = [record for record in caplog.records if record.getMessage() == "camera_setting_not_taken"]
    assert all(record.levelno == logging.WARNING for record in records)
    fields = [record.__dict__["fields"] for record in records]
    return {field["setting"]: field["got"] for field in fields}


def test_a_camera_that_comes_back_with_another_size_gives_no_frames(  # type: ignore[no-redef]
    rig: Rig, camera: Camera
) -> None:
    """Here it gives them: what another program left behind in the device does not matter, OpenCV asks again."""
    contract.next_frame(camera)
    rig.unplug()
    contract.wait_until_lost(camera)
    rig.plug_in(rig.other_size)

    assert contract.next_frame(camera).image.shape == (*reversed(rig.size), 3)


def test_format_size_and_gain_are_taken(device: str, caplog: pytest.LogCaptureFixture) -> None:
    """What was asked for is what comes."""
    camera = OpenCvCamera(opencv(device, pixel_format="GREY", width_px=320, height_px=180, gain=77, **SLOW))
    frame = camera.read(PART)
    camera.close()

    assert isinstance(frame, Frame), frame
    assert frame.image.shape == (180, 320, 3)
    assert (frame.image[..., 0] == frame.image[..., 2]).all()
    assert not_taken(caplog) == {}


def test_what_the_device_does_not_take_is_told_once(device: str, caplog: pytest.LogCaptureFixture) -> None:
    """A driver takes the nearest, or nothing, without a word; a camera that is opened again does not repeat it."""
    asked = {"pixel_format": "MJPG", "width_px": 641, "height_px": 361, "exposure_us": 500}
    camera = OpenCvCamera(opencv(device, **asked, **SLOW))
    first = camera.read(PART)
    assert isinstance(first, Frame), first
    told = not_taken(caplog)
    caplog.clear()
    rig = VividRig(opencv)
    rig.unplug()
    while camera.lost is None:
        camera.read(PART)
    rig.plug_in(rig.size)
    while isinstance(camera.read(PART), Fault):
        pass
    camera.close()

    assert ("width_px" in told) == (first.image.shape[1] != asked["width_px"])
    assert ("height_px" in told) == (first.image.shape[0] != asked["height_px"])
    assert told["pixel_format"] != "MJPG"
    assert "no exposure" in told["exposure_us"]
    assert not_taken(caplog) == {}


def test_the_driver_says_when_it_exposed(device: str) -> None:
    """A frame that has waited in the driver is known to be old: its time is the driver's, not that of its arrival."""
    camera = OpenCvCamera(opencv(device, **SLOW))
    first = camera.read(PART)
    busy_until_ns = time.monotonic_ns() + 500_000_000
    wait_until(lambda: time.monotonic_ns() > busy_until_ns, what="the line")
    waited = camera.read(PART)
    camera.close()

    assert isinstance(first, Frame), first
    assert isinstance(waited, Frame), waited
    assert waited.exposed_ns is not None
    assert waited.exposed_ns < busy_until_ns
    assert waited.exposed_ns < waited.captured.mono_ns


THROUGH_GSTREAMER = """
from tests.v4l2.test_vivid import *
camera = GStreamerCamera(gstreamer(f"v4l2src device={DEVICE} ! video/x-raw,width=320,height=180", **SLOW))
frames = [camera.read(PART) for _ in range(5)]
camera.close()
assert all(isinstance(frame, Frame) for frame in frames), frames
assert all(frame.image.shape == (180, 320, 3) for frame in frames)
assert all(0 < frame.exposed_ns <= frame.captured.mono_ns for frame in frames)
numbers = [frame.sequence for frame in frames]
assert numbers == sorted(set(numbers)), numbers
"""


@pytest.mark.skipif(bool(why_no_gstreamer()), reason=why_no_gstreamer())
@pytest.mark.usefixtures("device")
def test_gstreamer_gives_the_drivers_own_numbers_and_times() -> None:
    """In a process of its own: the `v4l2src` of GStreamer 1.22.0 keeps its device open after it was stopped."""
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_GSTREAMER], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )

    assert (done.returncode, done.stderr) == (0, "")
