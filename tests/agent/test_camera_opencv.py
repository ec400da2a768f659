"""Video files, streams and devices: refused in words, lost and found, never silent."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cameras.opencv import OpenCvCamera, url_without_secrets
from agent.config import OpenCvCameraConfig
from agent.errors import CameraError
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.pictures import flat, level_of, textured, write_video
from tests.kit.streams import MjpegServer, mjpeg_frame, mjpeg_server
from tests.kit.users import without_root

ROOT = Path(__file__).parents[2]
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
    ],
    ids=["missing", "empty", "junk"],
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


def printed_by_a_process_that_reads(source: str) -> tuple[str, str]:
    """What a process of its own writes to stdout and stderr: libraries settle once per process how loud they are."""
    program = (
        "import sys\n"
        "from tests.agent.test_camera_opencv import PART, CameraError, OpenCvCamera, config_of\n"
        "try:\n"
        "    camera = OpenCvCamera(config_of(sys.argv[1]))\n"
        "    while camera.poll(0):\n"
        "        print(type(camera.read(PART)).__name__)\n"
        "    print(camera.lost)\n"
        "except CameraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, source], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_no_password_is_shown_when_a_stream_can_not_be_opened(scheme: str) -> None:
    """Logs and messages are read by many; FFMPEG and OpenCV would print the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    out, err = printed_by_a_process_that_reads(f"{scheme}://admin:s3cret@127.0.0.1:{port}/live?token=s3cret")

    message, hint = out.splitlines()
    assert message.startswith(f"{scheme}://***@127.0.0.1:{port}/live?token=***: can't be opened")
    assert hint.startswith("Try: ")
    assert "s3cret" not in out
    assert err == ""


def test_nothing_is_printed_about_a_bad_stream(server: MjpegServer) -> None:
    """OpenCV warns of a stalled stream and FFMPEG of a bad frame; the agent has a log of its own."""
    server.push_bytes(mjpeg_frame(flat(10)), b"junk", mjpeg_frame(flat(20)), mjpeg_frame(textured())[:-800])
    out, err = printed_by_a_process_that_reads(server.url)

    *results, lost = out.splitlines()
    assert results == ["Frame", "Fault", "Frame", "Fault"]
    assert "no frame for" in lost
    assert err == ""


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

    fault = results[-1]
    assert isinstance(fault, Fault)
    assert f"stops after {len(results) - 1} of 48 frames" in fault.reason
    assert all(isinstance(result, Frame) for result in results[:-2])  # the last one may be half a frame
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


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b"", "is empty"),
        (b"junk", "is not a picture"),
        (mjpeg_frame(textured())[:-800], "truncated JPEG"),
        (mjpeg_frame(textured())[:-800] + b"\xff\xd9", "premature end"),
    ],
    ids=["empty", "junk", "half", "half with an end"],
)
def test_a_damaged_frame_of_a_stream_is_a_fault_and_the_next_one_goes_on(
    server: MjpegServer, damaged: bytes, words: str
) -> None:
    """FFMPEG would fill it up with the frame before, which is the part before, and say nothing."""
    server.push_bytes(mjpeg_frame(flat(10)), damaged, mjpeg_frame(flat(30)))
    camera = OpenCvCamera(config_of(server.url))
    results = []
    while camera.poll(0):
        results.append(camera.read(PART))

    assert [level_of(r.image) if isinstance(r, Frame) else "fault" for r in results] == [10, "fault", 30]
    fault = results[1]
    assert isinstance(fault, Fault)
    assert (
        f"frame 2: {words}" in fault.reason
        or f"frame 2: truncated or damaged (Corrupt JPEG data: {words}" in fault.reason
    )
    camera.close()


def test_a_stream_that_changes_its_size_gives_whole_pictures(
    server: MjpegServer, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenCV 4.8 lays the small one into the corner of the one before; 5.0 scales it."""
    server.push(flat(10), flat(90, 32, 32))
    camera = OpenCvCamera(config_of(server.url))
    frames = [camera.read(PART), camera.read(PART)]

    assert [frame.image.shape for frame in frames if isinstance(frame, Frame)] == [(48, 64, 3), (32, 32, 3)]
    assert [record.getMessage() for record in caplog.records] == ["frame_size_changed"]
    camera.close()


@pytest.mark.parametrize("codec", ["MJPG", "mp4v"])
def test_a_damaged_frame_of_a_video_is_a_fault_and_the_next_one_goes_on(tmp_path: Path, codec: str) -> None:
    """Every frame of a recording is a part, also one that no longer decodes."""
    path = write_video(tmp_path / "line.avi", [10, 20, 30, 40], codec=codec)
    data = bytearray(path.read_bytes())
    third = [found.start() for found in re.finditer(b"00dc[^\x00]", data)][2]
    (length,) = struct.unpack_from("<I", data, third + 4)
    data[third + 8 : third + 8 + length] = bytes([255]) * length
    path.write_bytes(data)
    camera = OpenCvCamera(config_of(path))
    results = []
    while camera.poll(0):
        results.append(camera.read(PART))

    assert len(results) == 4
    assert isinstance(results[2], Fault)
    assert isinstance(results[3], Frame)
    assert level_of(results[3].image) == 40


def test_reading_without_polling_waits_for_a_frame(server: MjpegServer) -> None:
    """A trigger that is not the camera (a light barrier, say) makes the part first."""
    server.push(flat(10), flat(20))
    camera = OpenCvCamera(config_of(server.url))

    frames = [camera.read(PART), camera.read(PART)]

    assert [level_of(frame.image) for frame in frames if isinstance(frame, Frame)] == [10, 20]
    camera.close()
