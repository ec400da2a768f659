"""The picture of a part was exposed after its trigger, and is that of no other part; else the part gets a reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.cameras import _still_s, open_camera
from agent.cameras.guard import FrameGuard, GuardedCamera
from agent.cameras.triggered import KEPT_FRAMES, ExposedOnDemand, Moment, TriggeredCamera
from agent.config import (
    FolderCameraConfig,
    GenicamCameraConfig,
    GStreamerCameraConfig,
    IntervalTriggerConfig,
    OpenCvCameraConfig,
    TcpTriggerConfig,
)
from agent.errors import CameraError
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.live import PATIENCE_S, LiveCamera, noisy
from tests.kit.pictures import level_of, write_pictures
from tests.kit.streams import mjpeg_server
from tests.kit.waiting import wait_until

SOON = Moment(timeout_ms=PATIENCE_S * 1e3)
MS = 1_000_000


@pytest.fixture
def live() -> LiveCamera:
    """The camera that is wrapped."""
    return LiveCamera()


@pytest.fixture
def camera(live: LiveCamera) -> Iterator[TriggeredCamera]:
    """Read all the time."""
    triggered = TriggeredCamera(GuardedCamera(live, FrameGuard()), SOON)
    yield triggered
    triggered.close()


def part_at(mono_ns: int, name: str = "P1") -> Part:
    return Part(id=name, trigger="tcp", sequence=1, triggered=Stamp(0, mono_ns))


def part_now(name: str = "P1") -> Part:
    return part_at(time.monotonic_ns(), name)


def level(taken: Frame | Fault) -> int:
    assert isinstance(taken, Frame), taken
    return level_of(taken.image)


def reason(taken: Frame | Fault) -> str:
    assert isinstance(taken, Fault), taken
    assert taken.stage == "capture"
    return taken.reason


def in_the_meantime(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_part_gets_the_first_frame_after_its_trigger_and_none_before(
    live: LiveCamera, camera: TriggeredCamera
) -> None:
    """What was exposed before shows the part before."""
    now = time.monotonic_ns()
    for shift, grey in ((-20, 10), (-1, 20), (0, 30), (5, 40)):
        live.show(noisy(grey), exposed_ns=now + shift * MS)
    live.wait_until_idle()

    taken = camera.read(part_at(now))

    assert level(taken) == 30
    assert taken.part.id == "P1"


def test_it_waits_for_the_frame_that_is_still_to_come(live: LiveCamera, camera: TriggeredCamera) -> None:
    """The usual case: the part has just come, and the sensor is about to begin."""
    live.show(noisy(10))
    live.wait_until_idle()
    part = part_now()
    thread = in_the_meantime(lambda: live.show(noisy(60)))

    assert level(camera.read(part)) == 60
    thread.join()


def test_the_delay_is_from_the_trigger_to_the_exposure(live: LiveCamera) -> None:
    """The way from the light barrier to the camera: frames within it show the part too early."""
    camera = TriggeredCamera(live, Moment(delay_ms=50, timeout_ms=PATIENCE_S * 1e3))
    now = time.monotonic_ns()
    for shift, grey in ((1, 10), (49, 20), (51, 30)):
        live.show(noisy(grey), exposed_ns=now + shift * MS)

    assert level(camera.read(part_at(now))) == 30
    camera.close()


def test_a_part_that_waited_for_the_line_gets_its_own_frame_not_the_newest(
    live: LiveCamera, camera: TriggeredCamera
) -> None:
    """While the part before was judged, its frame came, and others after it."""
    now = time.monotonic_ns() - 100 * MS
    for i in range(6):
        live.show(noisy(10 * (i + 1)), exposed_ns=now + 10 * i * MS)
    live.wait_until_idle()

    parts = [part_at(now + 15 * MS, "P1"), part_at(now + 31 * MS, "P2")]

    assert [level(camera.read(part)) for part in parts] == [30, 50]


def test_a_picture_that_was_let_go_is_a_fault_and_not_a_later_picture(
    live: LiveCamera, camera: TriggeredCamera
) -> None:
    """A frame much later than the trigger shows the next part, or none."""
    now = time.monotonic_ns() - 1_000 * MS
    for i in range(KEPT_FRAMES + 2):
        live.show(noisy(50), exposed_ns=now + i * MS)
    live.wait_until_idle()

    assert "gone" in reason(camera.read(part_at(now)))
    assert level(camera.read(part_at(now + 5 * MS))) == 50


def test_two_parts_within_one_exposure_are_not_both_judged_by_it(live: LiveCamera, camera: TriggeredCamera) -> None:
    """The same picture twice: nobody knows which of them it shows."""
    now = time.monotonic_ns()
    live.show(noisy(70), exposed_ns=now)
    live.wait_until_idle()

    assert level(camera.read(part_at(now - 2 * MS, "A"))) == 70
    assert "part A" in reason(camera.read(part_at(now - 1 * MS, "B")))


def test_no_two_parts_are_judged_by_one_picture_whatever_the_codec_repeats(live: LiveCamera) -> None:
    """H.264 may give a still scene twice; two parts are never the same to the byte."""
    camera = TriggeredCamera(GuardedCamera(live, FrameGuard(still_s=1.0)), SOON)
    now, picture = time.monotonic_ns(), noisy(70)
    live.show(picture, exposed_ns=now)
    live.show(picture, exposed_ns=now + 5 * MS)
    live.wait_until_idle()

    assert level(camera.read(part_at(now, "A"))) == 70
    assert "the same picture as that of part A" in reason(camera.read(part_at(now + 4 * MS, "B")))
    camera.close()


@pytest.mark.parametrize(
    ("pipeline", "seconds"),
    [
        ("v4l2src ! video/x-raw,width=1264", 0.0),
        ("rtspsrc location=x ! rtph264depay ! avdec_h264", 1.0),
        ("filesrc location=x ! x265enc", 1.0),
        ("v4l2src ! image/jpeg", 0.0),
    ],
)
def test_only_a_codec_that_repeats_may_give_a_picture_twice(pipeline: str, seconds: float) -> None:
    """A width of 1264 px is no H.264."""
    assert _still_s(GStreamerCameraConfig(kind="gstreamer", pipeline=pipeline)) == seconds


def test_a_camera_with_its_own_trigger_line_is_refused_under_another_trigger() -> None:
    """Its frame lies before the trigger by `latency_ms`: each part would get the picture of the next pulse."""
    config = GenicamCameraConfig(kind="genicam", trigger="Line0")
    with pytest.raises(CameraError, match="the picture of the pulse after it"):
        open_camera(config, trigger=TcpTriggerConfig(kind="tcp"), is_judged=lambda _part: False)


def test_a_camera_that_is_too_slow_is_a_fault_in_words(live: LiveCamera) -> None:
    """A frame that comes later is of no part, and the next part gets its own."""
    camera = TriggeredCamera(live, Moment(timeout_ms=1))

    assert "no frame within 1 ms" in reason(camera.read(part_now()))
    camera.close()


def test_while_a_camera_is_lost_every_part_is_a_fault_at_once(live: LiveCamera, camera: TriggeredCamera) -> None:
    """The patience of the timeout is not spent on a camera that is unplugged."""
    live.lose("unplugged")
    live.fail("unplugged")
    wait_until(lambda: camera.lost)
    assert [reason(camera.read(part_now())) for _ in range(3)] == ["unplugged"] * 3

    live.lose(None)
    live.show(noisy(40))
    wait_until(lambda: camera.lost is None)
    part = part_now()
    live.show(noisy(50))
    assert level(camera.read(part)) == 50


def test_a_camera_that_is_lost_while_a_part_waits_ends_the_wait(live: LiveCamera, camera: TriggeredCamera) -> None:
    """The part's answer is known then."""
    live.wait_until_idle()
    part = part_now()
    live.lose("unplugged")
    thread = in_the_meantime(lambda: live.fail("unplugged"))

    assert reason(camera.read(part)) == "unplugged"
    thread.join()


@pytest.mark.parametrize("kind", ["frozen", "black", "torn", "size"])
def test_a_bad_frame_is_the_fault_of_its_part_and_mended_by_a_good_one(
    live: LiveCamera, camera: TriggeredCamera, kind: str
) -> None:
    """A guess from the frame after it would be of the wrong moment."""
    good = noisy(100)
    torn = noisy(100)
    torn[20:] = good[20:]
    bad = {"frozen": good, "black": noisy(1), "torn": torn, "size": noisy(100, width=32)}[kind]
    live.show(good)
    live.wait_until_idle()
    part = part_now()
    live.show(bad)
    wait_until(lambda: camera.lost)

    assert "the test: " in reason(camera.read(part))
    live.show(noisy(120))
    wait_until(lambda: camera.lost is None)
    part = part_now("P2")
    live.show(noisy(80))
    assert level(camera.read(part)) == 80


def test_a_crash_in_the_camera_is_told_as_lost(live: LiveCamera, camera: TriggeredCamera) -> None:
    """The line must not wait for a reader that has died; it has not, and reads on."""
    live.crash(RuntimeError("driver bug"))
    wait_until(lambda: camera.lost)

    assert "driver bug" in reason(camera.read(part_now()))


def test_the_strobe_is_lit_for_the_exposure_and_the_settling_before_it(live: LiveCamera) -> None:
    """A frame whose exposure began before the light had settled is passed over."""
    told: list[bool] = []
    camera = TriggeredCamera(live, Moment(settle_ms=20, timeout_ms=PATIENCE_S * 1e3, strobe=told.append))
    part = part_now()
    live.show(noisy(10))

    def later() -> None:
        wait_until(lambda: told)
        live.show(noisy(20))
        live.show(noisy(30), exposed_ns=time.monotonic_ns() + 20 * MS)

    thread = in_the_meantime(later)
    assert level(camera.read(part)) == 30
    thread.join()
    assert told == [True, False]
    camera.close()


def test_close_ends_reader_camera_and_wait(live: LiveCamera, camera: TriggeredCamera) -> None:
    """A stop may come while a part waits."""
    live.wait_until_idle()
    closing = in_the_meantime(camera.close)

    assert "closed" in reason(camera.read(part_now()))
    closing.join(PATIENCE_S)
    assert live.closed.wait(PATIENCE_S)


def test_a_camera_that_exposes_when_asked_is_asked_once_per_part(live: LiveCamera) -> None:
    """What a driver still held from before (picamera2 is known for it) is passed over."""
    camera = ExposedOnDemand(live, SOON)
    live.show(noisy(10), exposed_ns=time.monotonic_ns() - 50 * MS)
    live.on_expose = lambda: live.show(noisy(60))

    assert [level(camera.read(part_now())) for _ in range(2)] == [60, 60]
    assert live.asked == 2


def test_a_camera_that_cant_be_asked_or_does_not_answer_is_a_fault(live: LiveCamera) -> None:
    """A cable that is out, a camera that is not armed."""
    camera = ExposedOnDemand(live, Moment(timeout_ms=1))
    live.refuses = "not connected"
    refused = reason(camera.read(part_now()))
    live.refuses = None

    assert refused == "live: not connected"
    assert "no frame within 1 ms" in reason(camera.read(part_now()))


def test_a_triggered_station_on_files_gives_one_picture_per_trigger(tmp_path: Path) -> None:
    """For trials at the desk: time means nothing to a file."""
    write_pictures(tmp_path, ["a.png", "b.png"])
    trigger = IntervalTriggerConfig(kind="interval", period_ms=5)
    camera = open_camera(FolderCameraConfig(kind="folder", path=tmp_path), trigger=trigger, is_judged=lambda _: False)

    assert [level(camera.read(part_now())) for _ in range(2)] == [10, 20]
    camera.close()


def test_a_real_stream_gives_a_triggered_part_the_frame_after_it() -> None:
    """MJPEG through OpenCV as the agent opens it: frames that came before the trigger are never given."""
    with mjpeg_server() as server:
        server.push(*(noisy(10 * i, width=128, height=96) for i in (5, 6, 7)))
        config = OpenCvCameraConfig(kind="opencv", source=server.url, read_timeout_ms=20_000, latency_ms=0)
        trigger = IntervalTriggerConfig(kind="interval", period_ms=5)
        camera = open_camera(config, trigger=trigger, is_judged=lambda _: False)
        assert isinstance(camera, TriggeredCamera)
        wait_until(lambda: len(camera._kept) == 3, PATIENCE_S)
        part = part_now()
        thread = in_the_meantime(lambda: server.push(noisy(90, width=128, height=96), noisy(120, width=128, height=96)))

        assert level(camera.read(part)) == 90
        thread.join()
        camera.close()


def test_the_strobe_is_not_lit_on_the_way_from_the_barrier_to_the_camera() -> None:
    """Also without a time to settle; and a part that waited for the line keeps the picture that was taken of it."""
    lit: list[int] = []
    moment = Moment(delay_ms=80, strobe=lambda _on: lit.append(time.monotonic_ns()))
    on_the_way, waited = part_now(), part_at(time.monotonic_ns() - 500 * MS)
    earliest = moment.light(on_the_way, threading.Event())
    of_waited = moment.light(waited, threading.Event())

    assert earliest == on_the_way.triggered.mono_ns + 80 * MS
    assert lit[0] >= earliest
    assert of_waited == waited.triggered.mono_ns + 80 * MS
