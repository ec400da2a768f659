"""The Raspberry Pi's camera: settings taken or refused, frames of their own time, no hang, no wrong colour."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.cameras import open_camera
from agent.cameras.picamera import PiCamera
from agent.config import IntervalTriggerConfig, PiCameraConfig
from agent.errors import CameraError
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.live import noisy
from tests.kit.picamera2 import Sensor, installed
from tests.kit.pictures import level_of
from tests.kit.waiting import wait_until

MS = 1_000_000


def config_of(**more: Any) -> PiCameraConfig:
    """A small picture and short times."""
    return PiCameraConfig(
        kind="picamera", **{"width_px": 64, "height_px": 48, "read_timeout_ms": 200, "reopen_s": 0.1, **more}
    )


def part(number: int = 1) -> Part:
    """A part that is triggered now."""
    return Part(id=f"P{number}", trigger="tcp", sequence=number, triggered=Stamp.now())


@pytest.fixture
def sensor() -> Iterator[Sensor]:
    """picamera2 is installed, and one camera is there."""
    with installed() as held:
        yield held


@pytest.fixture
def camera(sensor: Sensor) -> Iterator[PiCamera]:
    """It is open."""
    opened = PiCamera(config_of())
    yield opened
    opened.close()


def refusal(**more: Any) -> str:
    """What is said when it can't be opened."""
    with pytest.raises(CameraError) as caught:
        PiCamera(config_of(**more))
    assert caught.value.hint
    return caught.value.message


def frame_of(camera: PiCamera) -> Frame:
    """The next frame."""
    frame = camera.read(part())
    assert isinstance(frame, Frame), frame
    return frame


def coloured() -> NDArray[np.uint8]:
    """A blue picture with a red corner and noise, (48, 64, 3) BGR."""
    image = noisy(10, seed=1)
    image[:, :, 0] += 200
    image[:8, :8] = (10, 20, 240)
    return image


# Refused, with what to do


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'picamera2'"),
        ModuleNotFoundError("No module named 'libcamera'"),
        ValueError("numpy.dtype size changed, may indicate binary incompatibility"),
    ],
    ids=["missing", "without-libcamera", "other-numpy"],
)
def test_without_picamera2_the_remedy_is_said(error: Exception) -> None:
    """The three ways in which a virtual environment on a Pi goes wrong."""
    with installed(import_fails=error), pytest.raises(CameraError, match="picamera2 can't be loaded") as caught:
        PiCamera(config_of())

    assert "--system-site-packages" in str(caught.value.hint)


def test_a_camera_that_is_not_there_is_refused_with_those_that_are(sensor: Sensor) -> None:
    """The cable of the second one is loose."""
    assert refusal(number=1) == "picamera 1: no such camera; present: 0 (imx708)"


def test_no_camera_at_all() -> None:
    """libcamera finds none."""
    with installed(models=()):
        assert refusal().endswith("present: none")


def test_a_camera_in_use_is_refused_in_words(camera: PiCamera) -> None:
    """Two stations, one camera."""
    assert "can't be opened" in refusal()


def test_an_old_picamera2_is_refused(sensor: Sensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 0.3.22 a wait could not be broken off: a dead camera would hang the line for ever."""
    from tests.kit.picamera2.standin import Picamera2

    monkeypatch.delattr(Picamera2, "cancel_all_and_flush")

    assert "expected 0.3.22 or newer" in refusal()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"exposure_us": 20_000_000, "read_timeout_ms": 30_000}, "exposure_us can't be 2e+07: it takes 100 to 1e+07"),
        ({"gain": 40}, "gain can't be 40: it takes 1 to 16"),
        ({"focus_dioptres": 20}, "focus_dioptres can't be 20: it takes 0 to 15"),
        ({"exposure_us": 50_000, "fps": 30}, "longer than a frame at 30 fps"),
        ({"exposure_us": 250_000}, "read_timeout_ms 200 is over before an exposure of 250 ms is"),
        ({"width_px": 10_000, "height_px": 48}, "gives 4608x48 RGB888, expected 10000x48 RGB888"),
        ({"width_px": 65}, "gives 64x48 RGB888, expected 65x48 RGB888"),
    ],
)
def test_a_setting_that_is_not_taken_is_refused(sensor: Sensor, settings: dict[str, Any], words: str) -> None:
    """picamera2 would adjust it and go on."""
    assert words in refusal(**settings)
    PiCamera(config_of()).close()  # and the camera is free again


@pytest.mark.parametrize(
    ("control", "settings", "key"),
    [("LensPosition", {"focus_dioptres": 1}, "focus_dioptres"), ("AnalogueGain", {"gain": 2}, "gain")],
)
def test_a_control_that_the_camera_lacks_is_refused(control: str, settings: dict[str, Any], key: str) -> None:
    """A module with a fixed lens."""
    with installed(without=(control,)):
        assert refusal(**settings).endswith(f"has no {control}")


# Settings


def test_manual_settings_are_there_before_the_first_frame(sensor: Sensor) -> None:
    """A control that is set after the start takes effect some frames later."""
    camera = PiCamera(config_of(exposure_us=4_000, gain=2, focus_dioptres=3.5, fps=60))
    camera.close()

    wanted = {"ExposureTime": 4_000, "AnalogueGain": 2.0, "AeEnable": False, "AfMode": 0, "LensPosition": 3.5}
    assert wanted.items() <= sensor.settings.items()
    assert sensor.settings["FrameDurationLimits"] == (16_666, 16_666)


def test_nothing_is_set_that_was_not_configured(camera: PiCamera, sensor: Sensor) -> None:
    """Automatic exposure stays automatic."""
    assert not {"ExposureTime", "AnalogueGain", "AeEnable", "AfMode"} & set(sensor.settings)


def test_a_long_exposure_is_not_cut_by_the_video_mode(sensor: Sensor) -> None:
    """picamera2's video configuration holds frames to 33 ms, and libcamera then holds exposures to that."""
    PiCamera(config_of(exposure_us=100_000)).close()

    assert sensor.settings["FrameDurationLimits"][1] >= 100_000


def test_a_frame_with_another_exposure_is_no_picture(sensor: Sensor) -> None:
    """Too dark to be judged by limits that were set for another light."""
    camera = PiCamera(config_of(exposure_us=4_000))
    sensor.exposure_us = 1_000
    sensor.expose(noisy())

    fault = camera.read(part())

    assert isinstance(fault, Fault)
    assert "ExposureTime of this frame was 1000 us, expected 4000" in fault.reason
    camera.close()


# Pixels


@pytest.mark.parametrize("mode", ["video", "still"])
def test_colours_are_blue_green_red(sensor: Sensor, mode: str) -> None:
    """picamera2's "BGR888" would swap them: its "RGB888" is what OpenCV calls BGR."""
    camera = PiCamera(config_of(mode=mode))
    sensor.expose(coloured())

    assert np.array_equal(frame_of(camera).image, coloured())
    camera.close()


def test_padded_rows_are_cut(sensor: Sensor) -> None:
    """70 pixels are 210 bytes, and rows in memory begin at multiples of 64."""
    camera = PiCamera(config_of(width_px=70))
    image = noisy(90, seed=2, width=70)
    sensor.expose(image)

    frame = frame_of(camera)

    assert np.array_equal(frame.image, image)
    assert frame.image.flags.c_contiguous
    camera.close()


def test_a_picture_outlives_its_buffer(camera: PiCamera, sensor: Sensor) -> None:
    """The camera writes its buffers again while the picture is judged."""
    sensor.feed(*(noisy(level) for level in (20, 40, 60, 80, 100, 120)))
    frames = [frame_of(camera) for _ in range(6)]

    assert [level_of(frame.image) for frame in frames] == [20, 40, 60, 80, 100, 120]
    assert sensor.dropped == 0  # each buffer was given back


# Time


def test_the_exposure_began_before_the_sensors_timestamp(camera: PiCamera, sensor: Sensor) -> None:
    """`SensorTimestamp` marks the end of the first row's exposure."""
    ended_ns = time.monotonic_ns() - 5 * MS
    sensor.expose(noisy(), ended_ns=ended_ns, ExposureTime=8_000)

    frame = frame_of(camera)

    assert frame.exposed_ns == ended_ns - 8 * MS
    assert frame.captured.mono_ns == ended_ns


@pytest.mark.parametrize("key", ["SensorTimestamp", "ExposureTime"])
def test_a_frame_without_its_time_is_no_picture(camera: PiCamera, sensor: Sensor, key: str) -> None:
    """Nobody could tell whose it is."""
    sensor.expose(noisy(), **{key: None})

    fault = camera.read(part())

    assert isinstance(fault, Fault)
    assert f"no {key}" in fault.reason


def test_the_frame_before_the_trigger_is_never_the_parts(sensor: Sensor) -> None:
    """picamera2 hands out the frame that it held, which may be minutes old."""
    camera = open_camera(
        config_of(read_timeout_ms=20_000), trigger=IntervalTriggerConfig(kind="interval", period_ms=100), is_judged=bool
    )
    at_ns = time.monotonic_ns() - 100 * MS
    triggered = Part(id="P1", trigger="tcp", sequence=1, triggered=Stamp(Stamp.now().utc_ms - 100, at_ns))
    sensor.expose(noisy(50), ended_ns=at_ns - MS)
    sensor.expose(noisy(100), ended_ns=at_ns + 5 * MS, ExposureTime=20_000)  # triggered in the middle of it
    sensor.expose(noisy(150), ended_ns=at_ns + 40 * MS, ExposureTime=20_000)

    frame = camera.read(triggered)

    assert isinstance(frame, Frame), frame
    assert level_of(frame.image) == 150
    camera.close()


def test_numbers_show_what_was_not_read(camera: PiCamera, sensor: Sensor) -> None:
    """Three frame lengths between two frames are two frames that nobody got; the same time again is the same frame."""
    begin_ns = time.monotonic_ns() - 500 * MS
    numbers = []
    for frames_later in (0, 1, 4, 4, 5):
        sensor.expose(noisy(), ended_ns=begin_ns + frames_later * 33_333_000)
        numbers.append(frame_of(camera).sequence)

    assert numbers == [1, 2, 5, 5, 6]


# Lost and found


def test_a_camera_that_stops_is_lost_and_found_again(camera: PiCamera, sensor: Sensor) -> None:
    """picamera2 would wait for ever."""
    sensor.expose(noisy())
    frame_of(camera)

    assert not camera.poll(20)
    assert "no frame for" in str(camera.lost)
    fault = camera.read(part())
    assert isinstance(fault, Fault)
    wait_until(lambda: sensor.opened == 2, what="the second opening")
    sensor.expose(noisy(70))
    wait_until(lambda: camera.poll(0.1), what="a frame after that")

    assert level_of(frame_of(camera).image) == 70
    assert camera.lost is None


def test_numbers_go_on_after_it_was_found(camera: PiCamera, sensor: Sensor) -> None:
    """A number that stood still or fell would look like a frame that was given twice."""
    sensor.expose(noisy())
    before = frame_of(camera).sequence
    camera.poll(20)
    wait_until(lambda: sensor.opened == 2, what="the second opening")
    sensor.expose(noisy())
    wait_until(lambda: camera.poll(0.1), what="a frame after that")

    assert frame_of(camera).sequence == before + 1


def test_a_stop_that_hangs_does_not_hang_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loose cable: libcamera's stop does not come back."""
    monkeypatch.setattr("agent.cameras.picamera.CLOSE_S", 0.2)
    monkeypatch.setattr("agent.cameras.picamera._closing", {})
    with installed(closing_hangs=True) as sensor:
        camera = PiCamera(config_of())
        camera.close()

        assert sensor.hung.is_set()
        assert camera.ended


def test_a_camera_that_could_not_be_closed_says_why_it_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a restart of the agent helps then, and the plant reads so."""
    monkeypatch.setattr("agent.cameras.picamera.CLOSE_S", 0.2)
    monkeypatch.setattr("agent.cameras.picamera._closing", {})
    with installed(closing_hangs=True):
        camera = PiCamera(config_of())
        camera.poll(20)
        wait_until(lambda: camera.poll(0.01) or "can't be closed" in str(camera.lost), what="a try")
        camera.close()

    assert "can't be closed" in str(camera.lost)


def test_while_it_is_away_every_part_is_told_why(sensor: Sensor) -> None:
    """Unplugged: libcamera no longer lists it."""
    camera = PiCamera(config_of())
    sensor.models = ()
    assert not camera.poll(20)
    wait_until(lambda: camera.poll(0.01) or "present: none" in str(camera.lost), what="the reason of a try")

    fault = camera.read(part())

    assert isinstance(fault, Fault)
    assert fault.reason == "picamera 0: no such camera; present: none"
    camera.close()


def test_a_wait_is_broken_off_when_it_is_closed(sensor: Sensor) -> None:
    """picamera2's own wait would go on as long as the camera is silent."""
    camera = PiCamera(config_of(read_timeout_ms=60_000))
    taken: list[Frame | Fault] = []
    reader = threading.Thread(target=lambda: taken.append(camera.read(part())), daemon=True)
    reader.start()
    wait_until(lambda: sensor.is_waited_for, what="the wait")
    camera.close()
    reader.join(20)

    assert [type(item) for item in taken] == [Fault]
