"""Video files, streams and devices: refused in words, lost and found, never silent."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cameras.opencv import OpenCvCamera, url_without_secrets
from agent.config import OpenCvCameraConfig
from agent.errors import CameraError
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.pictures import encoded, flat, level_of, textured, write_video
from tests.kit.streams import MjpegServer, mjpeg_frame, mjpeg_server
from tests.kit.users import without_root

PART = Part(id="P1", trigger="frame", sequence=1, triggered=Stamp.now())


class HandClock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def config_of(source: object, **more: Any) -> OpenCvCameraConfig:
    """A configuration with short times."""
    return OpenCvCameraConfig(kind="opencv", source=str(source), **{"read_timeout_ms": 300, "reopen_s": 1.0, **more})


def opening_refusal(source: object, **more: Any) -> CameraError:
    """What is said when the source can't be opened."""
    with pytest.raises(CameraError) as caught:
        OpenCvCamera(config_of(source, **more))
    assert caught.value.hint
    return caught.value


def frames_of(camera: OpenCvCamera) -> list[int]:
    """Grey levels of everything that comes without a break."""
    levels = []
    while camera.poll(0):
        frame = camera.read(PART)
        assert isinstance(frame, Frame), frame
        levels.append(level_of(frame.image))
    return levels


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    """An MJPEG camera on the network."""
    with mjpeg_server() as running:
        yield running


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "is empty (0 bytes)"),
        (b"no video at all" * 100, "no video that OpenCV can read"),
        (encoded(textured(), ".jpg")[:1000], "holds no frame"),
    ],
    ids=["missing", "empty", "junk", "half a picture"],
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    """OpenCV only says False; the likely cause is found for it."""
    path = tmp_path / "line.avi"
    if content is not None:
        path.write_bytes(content)

    error = opening_refusal(path)

    assert error.message.startswith(f"{path}: ")
    assert words in error.message


def test_an_mp4_that_was_not_closed_is_refused(tmp_path: Path) -> None:
    """Its index stands at the end: power was cut while it was written."""
    path = write_video(tmp_path / "line.mp4", range(10, 250, 10), codec="mp4v")
    path.write_bytes(path.read_bytes()[:-500])

    assert "cut off before its index" in opening_refusal(path).message


def test_a_folder_is_refused_with_the_right_kind(tmp_path: Path) -> None:
    """Pictures have a camera of their own."""
    assert "set camera.kind to folder" in str(opening_refusal(tmp_path).hint)


def test_a_video_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    """The installer's rights are not the service's."""
    path = write_video(tmp_path / "line.avi", [10])
    path.chmod(0)

    with without_root():
        assert "may not be read" in opening_refusal(path).message


@pytest.mark.parametrize("source", ["/dev/v4l/by-id/usb-Acme_Cam_1234-video-index0", "987"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(source: str) -> None:
    """A hub that lost its power leaves no link; the hint shows what is left."""
    error = opening_refusal(source)

    assert "no such device" in error.message
    assert "Present: " in str(error.hint)


def test_a_device_that_is_no_camera_is_refused() -> None:
    """`/dev/null` opens and never delivers."""
    assert "no video device" in opening_refusal("/dev/null").message


@pytest.mark.parametrize("source", ["ftp://camera/line.avi", "file:///etc/passwd"])
def test_an_unknown_kind_of_address_is_refused(source: str) -> None:
    """FFMPEG knows protocols that no camera speaks."""
    assert "no stream that we know" in opening_refusal(source).message


def test_size_and_rate_are_only_asked_of_devices(tmp_path: Path) -> None:
    """A key that has no effect is a mistake of whoever wrote it."""
    path = write_video(tmp_path / "line.avi", [10])

    assert "can only be asked of a device" in opening_refusal(path, width_px=640).message


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_stream_where_nobody_listens_is_refused(scheme: str) -> None:
    """At once, and with what to check."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    assert "nobody answers" in opening_refusal(f"{scheme}://127.0.0.1:{port}/live").message


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_stream_that_never_answers_is_refused(scheme: str) -> None:
    """A host that accepts and stays silent must not hang the start."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = opening_refusal(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/live", open_timeout_ms=200)

    assert "can't be opened within 200 ms" in error.message


def test_no_password_is_shown_and_no_library_prints(capfd: pytest.CaptureFixture[str]) -> None:
    """Logs and messages are read by many."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = opening_refusal(f"rtsp://admin:s3cret@127.0.0.1:{port}/live?token=s3cret")
    opening_refusal(f"http://admin:s3cret@127.0.0.1:{port}/live.mjpg")
    printed = capfd.readouterr()

    assert f"rtsp://***@127.0.0.1:{port}/live?token=***" in str(error)
    assert "s3cret" not in str(error)
    assert printed.err == ""


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://10.0.0.5/live", "rtsp://10.0.0.5/live"),
        ("rtsp://admin:pw@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
        ("rtsp://admin:p@ss/w?rd@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
        ("http://10.0.0.5/a?user=admin&Password=pw&fps=5", "http://10.0.0.5/a?user=***&Password=***&fps=5"),
    ],
)
def test_secrets_are_masked_in_urls(url: str, shown: str) -> None:
    """Cameras take them in both places, and people forget to escape them."""
    assert url_without_secrets(url) == shown


@pytest.mark.parametrize("codec", ["MJPG", "FFV1", "mp4v"])
def test_a_video_gives_every_frame_and_ends(tmp_path: Path, codec: str) -> None:
    """Acceptance runs on a video count parts."""
    levels = list(range(10, 250, 10))
    path = write_video(tmp_path / ("line.mp4" if codec == "mp4v" else "line.avi"), levels, codec=codec)
    camera = OpenCvCamera(config_of(path))

    assert len(frames_of(camera)) == len(levels)
    assert camera.ended
    assert camera.lost is None


def test_a_video_that_stops_early_gives_a_fault_and_ends(tmp_path: Path) -> None:
    """Frames that its header promises were parts: their loss is an error verdict, not an early end."""
    path = write_video(tmp_path / "line.avi", range(10, 250, 5))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    camera = OpenCvCamera(config_of(path))
    results = []
    while camera.poll(0):
        results.append(camera.read(PART))

    assert all(isinstance(result, Frame) for result in results[:-1])
    fault = results[-1]
    assert isinstance(fault, Fault)
    assert f"stops after {len(results) - 1} of 48 frames" in fault.reason
    assert camera.ended


def test_a_relative_path_and_a_video_of_one_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest video; a relative path starts at the current folder."""
    write_video(tmp_path / "one.avi", [80])
    monkeypatch.chdir(tmp_path)

    assert frames_of(OpenCvCamera(config_of("one.avi"))) == [80]


def test_a_stream_that_falls_silent_is_lost(server: MjpegServer) -> None:
    """The connection stands and nothing comes: the commonest way in which cameras fail."""
    server.push(flat(10))
    camera = OpenCvCamera(config_of(server.url))
    assert frames_of(camera) == [10]

    assert "no frame for" in str(camera.lost)
    assert not camera.ended
    fault = camera.read(PART)
    assert isinstance(fault, Fault)
    assert "no frame for" in fault.reason
    camera.close()


def test_a_stream_that_is_cut_is_lost_and_found_when_it_is_back(
    server: MjpegServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A camera that was switched off and on goes on by itself; another size is taken and said."""
    clock = HandClock()
    server.push(flat(10))
    camera = OpenCvCamera(config_of(server.url), clock=clock)
    assert camera.poll(0)
    assert isinstance(camera.read(PART), Frame)
    server.hang_up()

    assert not camera.poll(0)
    assert "it ended, or the connection broke" in str(camera.lost)
    clock.now_s += 1.0
    assert not camera.poll(0)
    assert "can't be opened" in str(camera.lost)

    server.start()
    server.push(flat(70, 32, 32))
    clock.now_s += 2.0
    assert camera.poll(0)
    assert camera.lost is None
    frame = camera.read(PART)
    assert isinstance(frame, Frame)
    assert (level_of(frame.image), frame.image.shape, frame.sequence) == (70, (32, 32, 3), 2)
    changed = [record for record in caplog.records if record.getMessage() == "frame_size_changed"]
    assert [record.__dict__["fields"]["now"] for record in changed] == ["32x32"]
    camera.close()


def test_a_lost_stream_is_tried_again_after_longer_and_longer_waits(server: MjpegServer) -> None:
    """A dead camera must not be hammered, nor wait for ever: 1, 2, 4, 8, 8, … times `reopen_s`."""
    clock = HandClock()
    server.push(flat(10))
    camera = OpenCvCamera(config_of(server.url), clock=clock)
    assert camera.poll(0)
    camera.read(PART)
    server.refuse = True
    server.drop_client()
    assert not camera.poll(0)
    waits = []
    for _ in range(6):
        before, lost_at = server.attempts, clock.now_s
        while server.attempts == before:
            clock.now_s += 0.5
            assert not camera.poll(0)
        waits.append(clock.now_s - lost_at)

    assert waits == [1, 2, 4, 8, 8, 8]
    camera.close()


def test_a_frame_ends_the_back_off(server: MjpegServer) -> None:
    """The next loss starts with the short wait again."""
    clock = HandClock()
    camera = None
    for _ in range(3):
        server.push(flat(10))
        if camera is None:
            camera = OpenCvCamera(config_of(server.url), clock=clock)
        assert camera.poll(0)
        camera.read(PART)
        server.drop_client()
        assert not camera.poll(0)
        clock.now_s += 1.0
    assert camera is not None
    camera.close()


def test_a_lost_stream_that_opens_without_a_frame_stays_lost(server: MjpegServer) -> None:
    """An answer is not a picture."""
    clock = HandClock()
    server.push(flat(10))
    camera = OpenCvCamera(config_of(server.url, open_timeout_ms=300), clock=clock)
    assert frames_of(camera) == [10]
    clock.now_s += 1.0

    assert not camera.poll(0)
    assert camera.lost
    camera.close()


@pytest.mark.parametrize("damaged", [b"", b"junk", mjpeg_frame(textured())[:-800]], ids=["empty", "junk", "half"])
def test_a_damaged_frame_of_a_stream_is_never_given_as_a_picture(server: MjpegServer, damaged: bytes) -> None:
    """FFMPEG drops it; half a picture filled up with grey would be judged as the part."""
    whole = mjpeg_frame(textured())
    server.push_bytes(whole, damaged, whole, whole)
    camera = OpenCvCamera(config_of(server.url))
    frames = []
    while camera.poll(0):
        frame = camera.read(PART)
        assert isinstance(frame, Frame)
        frames.append(frame.image)

    assert len(frames) >= 2
    assert all(abs(float(image[24:].std()) - float(frames[0][24:].std())) < 3 for image in frames)
    camera.close()


def test_reading_without_polling_waits_for_a_frame(server: MjpegServer) -> None:
    """A trigger that is not the camera (a light barrier, say) makes the part first."""
    server.push(flat(10), flat(20))
    camera = OpenCvCamera(config_of(server.url))

    frames = [camera.read(PART), camera.read(PART)]

    assert [level_of(frame.image) for frame in frames if isinstance(frame, Frame)] == [10, 20]
    camera.close()


def test_libraries_stay_as_quiet_as_they_were_told(server: MjpegServer, capfd: pytest.CaptureFixture[str]) -> None:
    """A stalled stream makes OpenCV warn and a bad one makes FFMPEG complain: neither is our log."""
    server.push_bytes(mjpeg_frame(flat(10)), b"junk", mjpeg_frame(flat(20)))
    camera = OpenCvCamera(config_of(server.url))
    frames_of(camera)
    camera.close()

    assert capfd.readouterr().err == ""
    assert os.environ["OPENCV_FFMPEG_LOGLEVEL"] == "-8"
