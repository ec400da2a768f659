"""A live camera's frame is judged only when it is a new, whole picture; what is wrong is said, and mends by itself."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.cameras import open_camera
from agent.cameras.guard import FrameGuard, GuardedCamera
from agent.config import FolderCameraConfig, FrameTriggerConfig, OpenCvCameraConfig
from agent.frame import BgrImage, Fault, Frame, Part, Stamp
from tests.kit.live import LiveCamera, noisy
from tests.kit.pictures import encoded, textured, write_video
from tests.kit.streams import mjpeg_server

PART = Part(id="P1", trigger="frame", sequence=1, triggered=Stamp.now())
PATIENCE_S = 20.0


def reasons(*images: BgrImage, guard: FrameGuard | None = None, numbers: list[int] | None = None) -> list[str | None]:
    """What the guard says to these pictures in turn."""
    guard = guard or FrameGuard()
    sequence = numbers or range(1, len(images) + 1)
    return [guard.check(_frame(image, number)) for image, number in zip(images, sequence, strict=True)]


def _frame(image: BgrImage, sequence: int, at_s: float | None = None) -> Frame:
    captured = Stamp.now() if at_s is None else Stamp(0, int(at_s * 1e9))
    return Frame(part=PART, image=image, camera="c", source="s", sequence=sequence, captured=captured)


def test_pictures_of_a_real_sensor_are_good() -> None:
    """Dark, bright, clipped at the bottom, with the same scene again and again: noise tells the frames apart."""
    clipped = [noisy(120, seed=i) for i in range(2)]
    for image in clipped:
        image[-20:] = 255

    assert reasons(noisy(12), noisy(12), noisy(240), noisy(240), *clipped, noisy(100)) == [None] * 7


def test_a_picture_that_comes_again_is_frozen_until_a_new_one_comes() -> None:
    """The same bytes: a driver that repeats its last buffer, or a camera that died with a picture in its memory."""
    first = noisy(100)

    assert reasons(first, first.copy(), first.copy(), noisy(100)) == [
        None,
        *["frozen: the same picture as before, byte for byte"] * 2,
        None,
    ]


def test_one_changed_pixel_is_a_new_picture() -> None:
    """The grid that is looked at first may miss it, the whole picture does not."""
    first = noisy(100)
    second = first.copy()
    second[-1, 31, 1] ^= 1

    assert reasons(first, second) == [None, None]


def test_a_number_that_stands_still_is_the_same_frame_whatever_its_pixels() -> None:
    """The sequence is the driver's own word for it."""
    assert reasons(noisy(90), noisy(91), numbers=[7, 7]) == [None, "the camera gave its frame 7 again"]


def test_numbers_that_jump_are_counted_and_are_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """Frames were lost on the way; the one that came is whole. A camera that begins to count again has lost none."""
    guard = FrameGuard()
    found = reasons(*(noisy(90 + i) for i in range(5)), guard=guard, numbers=[7, 8, 12, 1, 4])

    assert found == [None] * 5
    assert guard.missed == 5
    assert [record.getMessage() for record in caplog.records] == ["frames_missed"]


def test_another_size_is_refused_until_the_old_one_is_back() -> None:
    """A camera that was plugged in again with its factory settings shows the part at another scale."""
    other = noisy(100, width=32, height=24)

    assert reasons(noisy(100), other, noisy(100)) == [
        None,
        "a picture of 32 x 24 px, expected 64 x 48 as before",
        None,
    ]


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_picture_of_one_value_is_none(level: int) -> None:
    """A dead sensor, a lost signal, full saturation."""
    (reason,) = reasons(np.full((48, 64, 3), level, dtype=np.uint8))

    assert reason is not None
    assert f"every pixel has the value {level}" in reason


def test_black_is_seen_through_noise_and_hot_pixels() -> None:
    """The light is off: what is left is noise, and pixels that always shine."""
    black = noisy(2)
    black[5, 5] = 200

    assert "black: " in str(reasons(black)[0])
    assert reasons(noisy(14)) == [None]


def test_a_frame_that_ends_in_the_frame_before_is_torn() -> None:
    """A buffer that was handed out before it was filled."""
    first, second = noisy(100), noisy(100)
    second[30:] = first[30:]

    assert reasons(first, second, noisy(100)) == [
        None,
        "torn: the lower 18 of 48 rows are those of the frame before",
        None,
    ]


def test_a_frame_that_ends_in_nothing_is_torn_and_a_scene_that_does_is_not() -> None:
    """Packets that were lost leave zeros, anywhere; a scene that ends in black ends there every time."""
    lost = [noisy(100) for _ in range(3)]
    for image, row in zip(lost, (40, 20, 33), strict=True):
        image[row:] = 0
    dark = [noisy(100) for _ in range(3)]
    for image in dark:
        image[40:] = 0

    assert reasons(noisy(100), *lost, noisy(100))[1:4] == [
        f"torn: the lower {rows} of 48 rows are empty" for rows in (8, 28, 15)
    ]
    assert reasons(*dark)[1:] == [None, None]


def test_what_a_codec_repeats_is_no_tear_and_freezes_late() -> None:
    """H.264 skips what did not change: a still scene is the same picture for a while, a dead encoder for ever."""
    first, second = textured(), textured()
    second[:10] = noisy(100)[:10]

    times = [0.0, 0.2, 0.7, 1.1, 1.3]
    frames = [_frame(first, 1, 0.0), *(_frame(second, i + 2, at) for i, at in enumerate(times[1:]))]
    guard = FrameGuard(still_s=1.0)

    assert [guard.check(frame) for frame in frames] == [
        *[None] * 4,
        "frozen: the same picture as before, byte for byte",
    ]


def test_a_ring_of_old_buffers_is_no_camera() -> None:
    """The usual frozen driver: four pictures of a moment ago, again and again; none is like the one before it."""
    ring = [noisy(100, seed=i) for i in range(4)]

    assert reasons(*ring, *ring, noisy(100, seed=9)) == [
        *[None] * 4,
        *["stale: a picture of a moment ago came again"] * 4,
        None,
    ]


def test_a_real_stream_that_freezes_is_lost_and_found() -> None:
    """MJPEG over HTTP through OpenCV, as the agent opens it: each bad frame is a fault, the next good one is judged."""
    pictures = [noisy(80, seed=i, width=128, height=96) for i in range(3)]
    with mjpeg_server() as server:
        server.push(pictures[0], pictures[1], pictures[1], pictures[2])
        config = OpenCvCameraConfig(kind="opencv", source=server.url, read_timeout_ms=10_000, reopen_s=30)
        camera = open_camera(config, trigger=FrameTriggerConfig(kind="frame"), is_judged=lambda _part: False)
        seen: list[tuple[bool, bool]] = []
        reason = ""
        for _ in range(4):
            assert camera.poll(PATIENCE_S)
            taken = camera.read(PART)
            seen.append((isinstance(taken, Frame), camera.lost is None))
            reason = taken.reason if isinstance(taken, Fault) else reason
        camera.close()

    assert seen == [(True, True), (True, True), (False, False), (True, True)]
    assert "frozen" in reason


def test_a_fault_of_the_camera_itself_goes_through() -> None:
    """A guard explains nothing away."""
    live = LiveCamera()
    camera = GuardedCamera(live, FrameGuard())
    live.fail("over-exposed")
    live.lose("unplugged")

    fault = camera.read(PART)

    assert isinstance(fault, Fault)
    assert (fault.reason, camera.lost) == ("over-exposed", "unplugged")


def test_files_are_never_guarded(tmp_path: Path) -> None:
    """The same file twice, a black one, another size: a folder is what somebody put into it, and so is a video."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, image in (("a", textured()), ("b", textured()), ("c", textured(32, 32))):
        (folder / f"{name}.png").write_bytes(encoded(image))
    video = write_video(tmp_path / "line.avi", [50, 50, 50])
    configs = FolderCameraConfig(kind="folder", path=folder), OpenCvCameraConfig(kind="opencv", source=str(video))
    for config in configs:
        camera = open_camera(config, trigger=FrameTriggerConfig(kind="frame"), is_judged=lambda _part: False)
        assert all(camera.poll(PATIENCE_S) and isinstance(camera.read(PART), Frame) for _ in range(3))
        camera.close()


def test_looking_at_a_frame_is_cheap_and_copies_no_picture() -> None:
    """A 12 MP frame is looked at by a grid; the whole of it only when the grid can't tell it from the one before."""
    guard, image = FrameGuard(), np.asarray(cv2.resize(noisy(100), (4000, 3000)), dtype=np.uint8)
    guard.check(_frame(image, 1))

    assert guard._before is image
    assert guard._grid is not None
    assert guard._grid.nbytes < 50_000
