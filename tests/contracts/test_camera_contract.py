"""What every camera promises, asked of each: folder, video file, HTTP stream, free run, and the tests' own stand-in.

The HTTP stream stands in for RTSP and USB: it takes the same way through OpenCV and FFMPEG.
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
    OpenCvCameraConfig,
    TriggerConfig,
)
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.cameras import PATIENCE_S, HandCamera
from tests.kit.pictures import flat, level_of, write_pictures, write_video
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


@pytest.fixture(params=[folder, video, stream, newest, by_hand], ids=lambda make: make.__name__)
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
    kept: list[tuple[Frame, int]] = []
    while not camera.ended and camera.poll(PATIENCE_S):
        frame = camera.read(next(makes))
        assert isinstance(frame, Frame)
        kept.append((frame, level_of(frame.image)))
        frame.image[0, 0] = 255 - frame.image[0, 0]

    assert [level_of(frame.image) for frame, _ in kept] == [level for _, level in kept]


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
    assert [frame.part.id for frame in frames] == [f"P{i}" for i in range(1, len(frames) + 1)]


def test_a_frame_polled_twice_is_one_frame(camera: Camera) -> None:
    """Asking whether there is something takes nothing away."""
    assert camera.poll(PATIENCE_S)
    assert camera.poll(0)
    frame = camera.read(next(parts()))

    assert isinstance(frame, Frame)
    assert isinstance(camera, NewestFrame) or level_of(frame.image) == LEVELS[0]
