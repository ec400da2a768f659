"""RTSP through OpenCV: the times of its frames, which say what is old, against those that stand in the pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from agent.cameras.opencv import OpenCvCamera
from agent.cameras.stream_clock import StreamClock
from agent.errors import CameraError
from agent.frame import Frame, Part, Stamp
from tests.kit.rigs import opencv
from tests.kit.rtsp import FRAME_MS, RtspServer, rtsp_server, taken_ns, why_no_rtsp
from tests.kit.waiting import wait_until

PART = Part(id="P1", trigger="frame", sequence=1, triggered=Stamp.now())
PATIENCE_S = 30.0
MS = 1_000_000
LATENCY_MS = 400.0
"""Of a busy computer: encoding, the way, decoding. What had gathered while the stream was opened is older by far."""

needs_rtsp = pytest.mark.skipif(bool(why_no_rtsp()), reason=why_no_rtsp())


@pytest.fixture
def server() -> Iterator[RtspServer]:
    """A camera whose pictures say when they were taken."""
    with rtsp_server() as running:
        yield running


def next_frame(camera: OpenCvCamera) -> Frame:
    """The next frame, however long it takes."""
    found: list[Frame] = []

    def take() -> bool:
        taken = camera.read(PART) if camera.poll(0.2) else None
        found.extend([taken] if isinstance(taken, Frame) else [])
        return bool(found)

    wait_until(take, PATIENCE_S, what="a frame")
    return found[0]


def exposed_too_late(frame: Frame) -> bool:
    """Whether the camera says that the frame is younger than it is."""
    assert frame.exposed_ns is not None
    return frame.exposed_ns >= taken_ns(frame.image, frame.captured.mono_ns) + FRAME_MS * MS


@needs_rtsp
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_what_gathered_while_a_stream_was_opened_is_not_given(
    server: RtspServer, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a second old, and comes all at once: by its arrival it would be of the part that is there now."""
    caplog.set_level("INFO", "agent.cameras.opencv")
    camera = OpenCvCamera(opencv(server.url, transport=transport, latency_ms=LATENCY_MS, read_timeout_ms=2000))
    opened_ns = time.monotonic_ns()
    frames = [next_frame(camera) for _ in range(5)]
    camera.close()

    assert taken_ns(frames[0].image, frames[0].captured.mono_ns) > opened_ns - FRAME_MS * MS
    assert not any(exposed_too_late(frame) for frame in frames)
    skipped = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "old_frames_skipped"]
    assert [fields["caught_up"] for fields in skipped] == [True]
    assert skipped[0]["frames"] > 5


@needs_rtsp
def test_what_waits_while_the_line_is_busy_is_known_to_be_old(server: RtspServer) -> None:
    """It comes at once when the line is back; its times are those of its pictures."""
    camera = OpenCvCamera(opencv(server.url, latency_ms=LATENCY_MS, read_timeout_ms=2000))
    first = next_frame(camera)
    busy_until_ns = first.captured.mono_ns + 1_200 * MS
    wait_until(lambda: time.monotonic_ns() > busy_until_ns, PATIENCE_S, what="the line")
    waited = [next_frame(camera) for _ in range(10)]
    camera.close()

    assert not any(exposed_too_late(frame) for frame in waited)
    assert waited[0].exposed_ns is not None
    assert waited[0].exposed_ns < busy_until_ns - 1_000 * MS


@needs_rtsp
def test_a_camera_that_came_back_gives_nothing_of_before(server: RtspServer) -> None:
    """Its power was cut: what the decoder still held, and what gathers while it is opened again, is not of now."""
    camera = OpenCvCamera(opencv(server.url, latency_ms=LATENCY_MS, read_timeout_ms=1000))
    next_frame(camera)
    server.kill()
    wait_until(lambda: not (camera.poll(0.1) and camera.read(PART)) and camera.lost, PATIENCE_S, what="the loss")
    server.start()
    back_ns = time.monotonic_ns()
    frame = next_frame(camera)
    camera.close()

    assert not exposed_too_late(frame)
    assert taken_ns(frame.image, frame.captured.mono_ns) > back_ns


@needs_rtsp
def test_the_transport_does_not_stay_behind(server: RtspServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFMPEG's options are one variable of the process: the next camera has a transport of its own."""
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "stimeout;5000000")
    camera = OpenCvCamera(opencv(server.url, transport="udp"))
    camera.close()

    assert os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "stimeout;5000000"


@pytest.mark.parametrize(
    ("source", "keys", "words"),
    [
        ("http://127.0.0.1:1/a", {"transport": "udp"}, "transport is for rtsp"),
        ("rtsp://127.0.0.1:1/a", {"pixel_format": "MJPG"}, "can only be asked of a device"),
        ("rtsp://127.0.0.1:1/a", {"exposure_us": 500}, "can only be asked of a device"),
        ("rtsp://127.0.0.1:1/a", {"gain": 0.0}, "can only be asked of a device"),
    ],
)
def test_a_key_that_has_no_effect_is_refused(source: str, keys: dict[str, object], words: str) -> None:
    """Whoever wrote it believes that it has one."""
    with pytest.raises(CameraError, match=words):
        OpenCvCamera(opencv(source, **keys))


def test_a_backlog_is_over_when_frames_come_at_their_own_pace() -> None:
    """A decoder needs time, too: frames that come at three quarters of their distance still catch up."""
    clock = StreamClock()
    caught_up = []
    at_ms = 10_000.0
    for number in range(60):
        at_ms += 30 if number < 40 else 40
        clock.sent_ns(number * 40 * MS, int(at_ms * MS))
        caught_up.append(clock.caught_up)

    assert caught_up.index(True) in range(41, 47)


def test_a_frame_is_as_old_as_it_was_longer_on_its_way() -> None:
    """The frame that came fastest shows how far the two clocks are apart."""
    clock = StreamClock()
    sent = [clock.sent_ns(number * 40 * MS, (5_000 + number * 40) * MS) for number in range(10)]
    late = clock.sent_ns(400 * MS, (5_000 + 400 + 900) * MS)

    assert sent == [(5_000 + number * 40) * MS for number in range(10)]
    assert abs(late - 5_400 * MS) < MS
