"""What every live camera promises, asked of each that can be had here: it says when it exposed, and comes back.

For a further kind, in a file of its own:

    from tests.contracts.test_live_camera_contract import *  # noqa: F403 - its cases, asked of the rig below

    @pytest.fixture
    def rig() -> Iterator[Rig]:
        with plugged_in(MyRig()) as mine:
            yield mine

A `Rig` (`tests/kit/rigs.py`) is a live camera and the cable that it hangs on: `config`, `size` and `other_size` of its
frames, `plug_in(size)`, `unplug()`. Cameras are opened as the agent opens them, so `FrameGuard` looks at each frame.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from agent.cameras import Camera
from agent.config import CameraConfig
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.rigs import HttpRig, Rig, RtspRig, gstreamer, opencv, opened, plugged_in
from tests.kit.rtsp import why_no_gstreamer, why_no_rtsp
from tests.kit.waiting import wait_until

PATIENCE_S = 30.0
PART = Part(id="P1", trigger="frame", sequence=1, triggered=Stamp.now())

HTTP_PIPELINE = "souphttpsrc location={} is-live=true do-timestamp=true ! multipartdemux ! jpegdec"
RTSP_PIPELINE = "rtspsrc location={} latency=0 protocols=tcp ! rtph264depay ! h264parse ! openh264dec"

RIGS: dict[str, tuple[Callable[[], str], Callable[[Callable[[str], CameraConfig]], Rig], Callable[[str], CameraConfig]]]
RIGS = {
    "opencv http": (lambda: "", HttpRig, opencv),
    "opencv rtsp tcp": (why_no_rtsp, RtspRig, opencv),
    "opencv rtsp udp": (why_no_rtsp, RtspRig, lambda url: opencv(url, transport="udp")),
    "gstreamer http": (why_no_gstreamer, HttpRig, lambda url: gstreamer(HTTP_PIPELINE.format(url))),
    "gstreamer rtsp": (why_no_rtsp, RtspRig, lambda url: gstreamer(RTSP_PIPELINE.format(url))),
}
"""Name to: why it can't be had here, the cable, the camera at its end."""


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Each kind of live camera in turn; it delivers."""
    why_not, cable, configured = RIGS[request.param]
    if why_not():
        pytest.skip(why_not())
    with plugged_in(cable(configured)) as plugged:
        yield plugged


@pytest.fixture
def camera(rig: Rig) -> Iterator[Camera]:
    """The camera at the end of the cable."""
    opened_camera = opened(rig.config)
    yield opened_camera
    opened_camera.close()


def next_frame(camera: Camera) -> Frame:
    """The next frame, however long it takes; what comes before it is passed over."""
    found: list[Frame] = []

    def take() -> bool:
        taken = camera.read(PART) if camera.poll(0.2) else None
        if isinstance(taken, Frame):
            found.append(taken)
        return bool(found)

    wait_until(take, PATIENCE_S, what="a frame")
    return found[0]


def wait_until_lost(camera: Camera) -> None:
    """Poll until the camera says that it is lost; frames that were on their way are passed over."""

    def is_lost() -> str | None:
        if camera.poll(0.2):
            camera.read(PART)
        return camera.lost

    wait_until(is_lost, PATIENCE_S, what="the loss")


def test_a_frame_is_bgr_bytes_of_its_own_memory(rig: Rig, camera: Camera) -> None:
    """The shape that every other module builds on; a buffer that is used again would change a picture being judged."""
    frames = [next_frame(camera) for _ in range(4)]
    copies = [frame.image.copy() for frame in frames]
    next_frame(camera)

    for frame, copy in zip(frames, copies, strict=True):
        assert (frame.image.shape, frame.image.dtype.name) == ((*reversed(rig.size), 3), "uint8")
        assert frame.image.flags.c_contiguous
        assert frame.image.flags.writeable
        assert (frame.image == copy).all()


def test_frames_are_counted(camera: Camera) -> None:
    """A number that stands still is an old picture; one that jumps is a lost one."""
    numbers = [next_frame(camera).sequence for _ in range(5)]

    assert numbers == sorted(set(numbers))


def test_no_frame_was_exposed_after_it_arrived(camera: Camera) -> None:
    """A time that is too late would give a part the picture of the part before it."""
    opened_ns = time.monotonic_ns()
    frames = [next_frame(camera) for _ in range(5)]

    exposed = [frame.exposed_ns or 0 for frame in frames]
    assert all(exposed)
    assert exposed == sorted(exposed)
    assert all(frame.exposed_ns is not None and frame.exposed_ns <= frame.captured.mono_ns for frame in frames)
    assert exposed[-1] > opened_ns - PATIENCE_S * 1e9


def test_a_camera_that_is_unplugged_is_lost_and_comes_back_by_itself(rig: Rig, camera: Camera) -> None:
    """Nobody stands beside the line at night; and what was exposed before it was lost is not given as new."""
    before = next_frame(camera)
    rig.unplug()
    unplugged_ns = time.monotonic_ns()
    wait_until_lost(camera)

    fault = camera.read(PART)
    assert isinstance(fault, Fault)
    assert fault.reason
    assert not camera.ended

    rig.plug_in(rig.size)
    after = next_frame(camera)
    assert camera.lost is None
    assert after.sequence > before.sequence
    assert after.exposed_ns is not None
    assert after.exposed_ns > unplugged_ns


def test_a_camera_that_comes_back_with_another_size_gives_no_frames(rig: Rig, camera: Camera) -> None:
    """Factory settings after a power cut: each part is a fault that names both sizes, until the size is right again."""
    next_frame(camera)
    rig.unplug()
    wait_until_lost(camera)
    rig.plug_in(rig.other_size)
    found: list[Frame | Fault] = []

    def take() -> list[Frame | Fault]:
        if camera.poll(0.2):
            found.append(camera.read(PART))
        return [taken for taken in found if isinstance(taken, Frame) or str(rig.other_size[0]) in taken.reason]

    wait_until(take, PATIENCE_S, what="a frame or its fault")

    fault = take()[0]
    assert isinstance(fault, Fault)
    assert str(rig.size[0]) in fault.reason
    rig.unplug()
    wait_until_lost(camera)
    rig.plug_in(rig.size)
    assert next_frame(camera).image.shape == (*reversed(rig.size), 3)


def test_a_closed_camera_gives_nothing_and_closes_again(camera: Camera) -> None:
    """A stop may come at any time, and twice."""
    next_frame(camera)
    camera.close()
    camera.close()

    assert camera.ended
    assert not camera.poll(0)
    assert isinstance(camera.read(PART), Fault)


def test_a_camera_that_is_closed_while_it_waits_ends_the_wait(rig: Rig, camera: Camera) -> None:
    """The line's thread may sit in the driver when the service is stopped."""
    next_frame(camera)
    rig.unplug()
    taken: list[Frame | Fault] = []

    def read_on() -> None:
        while not camera.ended:
            taken.append(camera.read(PART))

    reader = threading.Thread(target=read_on, daemon=True)
    reader.start()
    wait_until(lambda: taken, PATIENCE_S, what="the first read")
    camera.close()
    reader.join(PATIENCE_S)

    assert not reader.is_alive()
    assert camera.ended
