"""What every camera promises, asked of each: folder, video, HTTP, GStreamer, free run, and the tests' own stand-ins.

For a further kind, in a file of its own, with five frames of rising grey (`LEVELS`) in front of it:

    from tests.contracts.test_camera_contract import *  # noqa: F403 - its cases, asked of the camera below

    @pytest.fixture
    def camera() -> Iterator[Camera]:
        ...

What live cameras promise beyond that (times, coming back, closing while somebody waits) is asked in
`test_live_camera_contract.py`, in the same way, of a `rig`: RTSP is there, and whatever has a cable to pull. V4L2 is
asked in a virtual machine: `tools/test-v4l2`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.cameras import Camera, open_camera
from agent.cameras.newest import NewestFrame
from agent.config import (
    CameraConfig,
    FolderCameraConfig,
    FrameTriggerConfig,
    FreeRunConfig,
    GStreamerCameraConfig,
    OpenCvCameraConfig,
    TriggerConfig,
)
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.cameras import PATIENCE_S, HandCamera
from tests.kit.pictures import flat, level_of, write_pictures, write_video
from tests.kit.rtsp import why_no_gstreamer
from tests.kit.streams import mjpeg_server

LEVELS = [10, 20, 30, 40, 50]
EVERY_FRAME = FrameTriggerConfig(kind="frame")
NEWEST_FRAME = FreeRunConfig(kind="free")

Opened = contextlib.AbstractContextManager[Camera]


def opened(config: CameraConfig, trigger: TriggerConfig = EVERY_FRAME) -> Camera:
    """The camera as the agent opens it."""
    return open_camera(config, trigger=trigger, is_judged=lambda _part_id: False)


@contextlib.contextmanager
def folder(tmp_path: Path) -> Iterator[Camera]:
    """Picture files."""
    write_pictures(tmp_path, [f"{i}.png" for i in range(len(LEVELS))])
    yield opened(FolderCameraConfig(kind="folder", path=tmp_path))


@contextlib.contextmanager
def video(tmp_path: Path) -> Iterator[Camera]:
    """A video file."""
    source = write_video(tmp_path / "line.avi", LEVELS)
    yield opened(OpenCvCameraConfig(kind="opencv", source=str(source)))


@contextlib.contextmanager
def stream(_tmp_path: Path) -> Iterator[Camera]:
    """MJPEG over HTTP; after its frames it is lost, for a live source never ends."""
    with mjpeg_server() as server:
        server.push(*(flat(level) for level in LEVELS))
        yield opened(OpenCvCameraConfig(kind="opencv", source=server.url, read_timeout_ms=200, reopen_s=30))


def needs_gstreamer() -> None:
    """Skip where there is none."""
    if why_no_gstreamer():
        pytest.skip(why_no_gstreamer())


@contextlib.contextmanager
def gst_made(_tmp_path: Path) -> Iterator[Camera]:
    """GStreamer's own test pictures, one after the other; a black column, as a picture of one value is none."""
    needs_gstreamer()
    made = [
        f"videotestsrc num-buffers=1 pattern=solid-color foreground-color={0xFF000000 + 0x010101 * level} "
        "! video/x-raw,format=BGR,width=63,height=48 ! videobox left=-1 fill=black ! joined."
        for level in LEVELS
    ]
    yield opened(GStreamerCameraConfig(kind="gstreamer", pipeline=" ".join([*made, "concat name=joined"])))


@contextlib.contextmanager
def gst_files(tmp_path: Path) -> Iterator[Camera]:
    """Picture files, through GStreamer."""
    needs_gstreamer()
    write_pictures(tmp_path, [f"{i}.png" for i in range(len(LEVELS))])
    pipeline = (
        f'multifilesrc location="{tmp_path}/%d.png" stop-index={len(LEVELS) - 1} caps=image/png,framerate=25/1 ! pngdec'
    )
    yield opened(GStreamerCameraConfig(kind="gstreamer", pipeline=pipeline))


@contextlib.contextmanager
def gst_stream(_tmp_path: Path) -> Iterator[Camera]:
    """MJPEG over HTTP, through GStreamer; after its frames it is lost."""
    needs_gstreamer()
    with mjpeg_server() as server:
        server.push(*(flat(level) for level in LEVELS))
        source = f"souphttpsrc location={server.url} is-live=true do-timestamp=true"
        pipeline = f"{source} ! multipartdemux ! jpegdec"
        config = GStreamerCameraConfig(kind="gstreamer", pipeline=pipeline, read_timeout_ms=400, reopen_s=30)
        yield opened(config)


@contextlib.contextmanager
def newest(tmp_path: Path) -> Iterator[Camera]:
    """Free run on picture files that come slowly enough for every one to be seen."""
    write_pictures(tmp_path, [f"{i}.png" for i in range(len(LEVELS))])
    yield opened(FolderCameraConfig(kind="folder", path=tmp_path, rate_hz=20), NEWEST_FRAME)


@contextlib.contextmanager
def by_hand(_tmp_path: Path) -> Iterator[Camera]:
    """The stand-in of other tests."""
    camera = HandCamera()
    camera.show(*LEVELS)
    camera.end()
    yield camera


KINDS = [folder, video, stream, gst_made, gst_files, gst_stream, newest, by_hand]


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def camera(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Camera]:
    """Each kind of camera in turn, with five frames of rising grey in front of it."""
    make: Callable[[Path], Opened] = request.param
    with make(tmp_path) as opened_camera:
        yield opened_camera
        opened_camera.close()


def parts() -> Iterator[Part]:
    """Parts as a trigger makes them."""
    for i in itertools.count(1):
        yield Part(id=f"P{i}", trigger="frame", sequence=i, triggered=Stamp.now())


def all_frames(camera: Camera) -> list[Frame]:
    """Every frame until the camera ends or is lost."""
    frames: list[Frame] = []
    makes = parts()
    while not camera.ended and camera.poll(PATIENCE_S):
        frame = camera.read(next(makes))
        assert isinstance(frame, Frame), frame
        frames.append(frame)
    return frames


def test_reading_when_nothing_is_left_is_a_fault_in_words(camera: Camera) -> None:
    """A camera never raises for one exposure, and never makes one up."""
    all_frames(camera)
    part = next(parts())

    fault = camera.read(part)

    assert isinstance(fault, Fault)
    assert (fault.stage, fault.part) == ("capture", part)
    assert fault.reason


def test_after_the_last_frame_it_has_ended_or_is_lost(camera: Camera) -> None:
    """The station must be able to tell "finished" and "broken" from "nothing yet"."""
    all_frames(camera)

    assert not camera.poll(0)
    assert camera.ended or camera.lost


def test_a_closed_camera_gives_nothing_and_closes_again(camera: Camera) -> None:
    """A stop may come at any time, and twice."""
    assert camera.poll(PATIENCE_S)
    camera.close()
    camera.close()

    assert camera.ended
    assert not camera.poll(0)
    assert isinstance(camera.read(next(parts())), Fault)


def test_frames_come_in_order_and_none_twice(camera: Camera) -> None:
    """Rising grey stays rising; but for free run, each one is there."""
    levels = [level_of(frame.image) for frame in all_frames(camera)]

    if isinstance(camera, NewestFrame):  # what came while the last one was read is no part; the last one always is
        assert levels == sorted(set(levels))
        assert levels[-1] == LEVELS[-1]
    else:
        assert levels == LEVELS


def test_a_frame_is_bgr_bytes_in_rows(camera: Camera) -> None:
    """The shape that every other module builds on."""
    for frame in all_frames(camera):
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.dtype.name == "uint8"
        assert frame.image.flags.c_contiguous


def test_a_frame_belongs_to_its_reader(camera: Camera) -> None:
    """A buffer that is used again would change a picture while it is judged, or after."""
    makes = parts()
    kept: list[tuple[Frame, bytes]] = []
    while not camera.ended and camera.poll(PATIENCE_S):
        frame = camera.read(next(makes))
        assert isinstance(frame, Frame)
        assert frame.image.flags.writeable
        kept.append((frame, frame.image.tobytes()))

    assert [frame.image.tobytes() for frame, _ in kept] == [before for _, before in kept]


def test_a_frame_says_where_and_when_it_was_taken(camera: Camera) -> None:
    """Part, camera, source, number and both clocks go into the verdict."""
    before = Stamp.now()
    frames = all_frames(camera)
    after = Stamp.now()

    stamps = [frame.captured.mono_ns for frame in frames]
    assert stamps == sorted(stamps)
    assert stamps[-1] <= after.mono_ns
    assert before.utc_ms - 60_000 < frames[0].captured.utc_ms <= after.utc_ms
    numbers = [frame.sequence for frame in frames]
    assert numbers == sorted(set(numbers))
    assert all(frame.camera == camera.name for frame in frames)
    assert all(frame.source.isprintable() and frame.source for frame in frames)
    assert all(frame.capture_ms >= 0 for frame in frames)
    assert all(frame.exposed_ns is None or frame.exposed_ns <= frame.captured.mono_ns for frame in frames)
    assert [frame.part.id for frame in frames] == [f"P{i}" for i in range(1, len(frames) + 1)]


def test_a_frame_polled_twice_is_one_frame(camera: Camera) -> None:
    """Asking whether there is something takes nothing away."""
    assert camera.poll(PATIENCE_S)
    assert camera.poll(0)
    frame = camera.read(next(parts()))

    assert isinstance(frame, Frame)
    assert isinstance(camera, NewestFrame) or level_of(frame.image) == LEVELS[0]
