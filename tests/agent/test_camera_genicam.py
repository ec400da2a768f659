"""GenICam cameras, asked of Aravis's fake GigE camera: real packets over loopback, some lost, and a power switch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from agent.cameras import open_camera
from agent.cameras.genicam import GenicamCamera
from agent.cameras.genicam_device import GenicamDevice
from agent.config import FrameTriggerConfig, FreeRunConfig, GenicamCameraConfig, IntervalTriggerConfig, TriggerConfig
from agent.errors import CameraError
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.aravis_cameras import ADDRESS, HandGigE, aravis, camera_process, hand_gige
from tests.kit.live import noisy
from tests.kit.pictures import flat, level_of
from tests.kit.waiting import wait_until

PART = Part(id="P1", trigger="frame", sequence=1, triggered=Stamp.now())
PATIENCE_S = 20.0


def config_of(**more: Any) -> GenicamCameraConfig:
    """A small picture and short times."""
    return GenicamCameraConfig(
        kind="genicam",
        **{"device": ADDRESS, "width_px": 64, "height_px": 48, "read_timeout_ms": 5_000, "reopen_s": 0.2, **more},
    )


def grey(level: int) -> np.ndarray[Any, Any]:
    """One grey picture as it goes over the wire in Mono8."""
    return flat(level)[:, :, 0]


def refusal(**more: Any) -> CameraError:
    """What is said when it can't be opened; without its traceback, which would hold Aravis's objects."""
    try:
        GenicamCamera(config_of(**more))
    except CameraError as error:
        return CameraError(error.message, hint=error.hint)
    pytest.fail("it was opened")


def next_frame(camera: GenicamCamera) -> Frame:
    """The next frame, whenever it comes."""
    assert camera.poll(PATIENCE_S), camera.lost
    frame = camera.read(PART)
    assert isinstance(frame, Frame), frame
    return frame


@pytest.fixture
def gige() -> Iterator[HandGigE]:
    """A fake camera in this process, whose pictures the test shows."""
    with hand_gige() as camera:
        yield camera


class Opened:
    """Cameras that a test has opened; what they wait for is released before they are closed."""

    def __init__(self, gige: HandGigE) -> None:
        self._gige = gige
        self._cameras: list[GenicamCamera] = []

    def __call__(self, **more: Any) -> GenicamCamera:
        camera = GenicamCamera(config_of(**more))
        self._cameras.append(camera)
        return camera

    def close(self) -> None:
        self._gige.release()
        for camera in self._cameras:
            camera.close()


@pytest.fixture
def opened(gige: HandGigE) -> Iterator[Opened]:
    """Opens cameras, and closes them after the test."""
    cameras = Opened(gige)
    yield cameras
    cameras.close()


# Refused, with what to do


def test_a_camera_that_is_not_there_is_refused_with_those_that_are(gige: HandGigE) -> None:
    """A typing mistake, or the neighbour's camera."""
    error = refusal(device="Acme-4711")

    assert error.message.startswith("Acme-4711: no such camera answers")
    assert error.hint == "set camera.device to one of those"
    assert error.message.endswith(f"present: Aravis-Fake-HAND1 ({ADDRESS})")


def test_no_camera_at_all_is_refused() -> None:
    """Its power is off."""
    aravis()
    with camera_process() as process:  # holds the one port of this machine, so that nobody else answers
        process.kill()
        error = refusal(device="")

    assert error.message == "no GenICam camera answers, expected one; present: none"


def test_the_only_camera_needs_no_name(gige: HandGigE, opened: Opened) -> None:
    """Nobody wants to type a serial number."""
    gige.show(grey(50))

    assert level_of(next_frame(opened(device="")).image) == 50


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pixel_format": "Mono12p"}, "pixel_format can't be Mono12p: it has BayerBG8, BayerGB8"),
        ({"width_px": 4_000}, "width_px can't be 4000: it takes 1 to 2048 in steps of 1"),
        ({"trigger": "Line2"}, "trigger can't be Line2: it has Line0, Software"),
        ({"exposure_us": 30_000_000}, "exposure_us can't be 30000000: it takes 10 to 1e+07"),
        ({"gain": 24}, "gain can't be 24: it takes 0 to 10"),
        ({"trigger": "Line0", "trigger_delay_us": 10}, "trigger_delay_us can't be 10: it has no TriggerDelay"),
        ({"trigger": "software", "fps": 10}, "fps is for a camera that runs freely, but trigger is software"),
        ({"features": ("GainRwa=3",)}, "features GainRwa can't be 3: it has no such feature; did you mean GainRaw?"),
        ({"features": ("GainAuto=Sometimes",)}, "features GainAuto can't be Sometimes: it has Off, Once, Continuous"),
        ({"features": ("GainRaw=much",)}, "features GainRaw can't be much: expected a number"),
        ({"features": ("TestBoolean=perhaps",)}, "features TestBoolean can't be perhaps: expected true or 1 or false"),
    ],
)
def test_a_setting_that_the_camera_does_not_take_is_refused(
    gige: HandGigE, settings: dict[str, Any], words: str
) -> None:
    """The camera itself takes some of these without a word."""
    error = refusal(**settings)

    assert words in error.message
    assert error.hint


def test_a_camera_that_another_program_controls_is_refused(gige: HandGigE, opened: Opened) -> None:
    """A viewer that somebody forgot; without control the settings would be the viewer's."""
    gige.show(grey(50))
    opened(trigger="software")

    assert "another program controls it" in refusal().message


# Settings


def test_settings_are_those_of_the_camera_before_it_starts(gige: HandGigE, opened: Opened) -> None:
    """Read back from the sensor's side."""
    opened(trigger="software", exposure_us=2_500, gain=3, features=("TestBoolean=true", "BinningVertical=2"))

    assert gige.register("EXPOSURE_TIME_US") == 2_500
    assert gige.register("GAIN_RAW") == 3
    assert gige.register("BINNING_VERTICAL") == 2


def test_the_configuration_has_the_last_word_over_features(gige: HandGigE, opened: Opened) -> None:
    """`features` comes first, so that a preset may be loaded there."""
    opened(trigger="software", exposure_us=2_500, features=("ExposureTimeAbs=9000",))

    assert gige.register("EXPOSURE_TIME_US") == 2_500


@pytest.mark.parametrize(
    ("pixel_format", "raw", "expected"),
    [
        ("Mono16", np.full((48, 64), 0x7FFF, "<u2"), (0x7F, 0x7F, 0x7F)),
        ("RGB8", np.tile(np.array([200, 100, 50], np.uint8), (48, 64, 1)), (50, 100, 200)),
        ("BayerRG8", np.tile(np.array([[200, 0], [0, 0]], np.uint8), (24, 32)), (0, 0, 200)),
        ("BayerBG8", np.tile(np.array([[200, 0], [0, 0]], np.uint8), (24, 32)), (200, 0, 0)),
    ],
)
def test_pixels_become_blue_green_red(
    gige: HandGigE, opened: Opened, pixel_format: str, raw: np.ndarray[Any, Any], expected: tuple[int, int, int]
) -> None:
    """A red part must not become a blue one."""
    gige.show(raw)

    image = next_frame(opened(pixel_format=pixel_format)).image

    assert tuple(image[20, 20]) == expected


# Triggers


def test_software_without_a_trigger_there_is_no_frame(gige: HandGigE, opened: Opened) -> None:
    """And silence is no fault of a camera that waits to be asked."""
    gige.show(grey(50))
    camera = opened(trigger="software", read_timeout_ms=50)

    assert camera.is_software_triggered
    assert not camera.poll(0.5)
    assert gige.exposures == 0
    assert camera.lost is None


def test_software_one_trigger_is_one_frame_exposed_after_it(gige: HandGigE, opened: Opened) -> None:
    """Part by part."""
    camera = opened(trigger="software")
    for level in (50, 100, 150):
        gige.show(grey(level))
        asked_ns = Stamp.now().mono_ns
        camera.expose()
        frame = next_frame(camera)

        assert level_of(frame.image) == level
        assert frame.exposed_ns is not None
        assert asked_ns <= frame.exposed_ns <= frame.captured.mono_ns
    assert gige.exposures == 3


def test_software_a_frame_that_nobody_asked_for_is_never_given(gige: HandGigE, opened: Opened) -> None:
    """A disturbance on the line, or a camera that does not honour its trigger: it would be the next part's picture."""
    camera = opened(trigger="software")
    gige.show(grey(50))
    gige.pulse()
    wait_until(lambda: gige.exposures == 1, what="the exposure")
    assert not camera.poll(0.5)
    assert camera.counters["unasked_frames"] == 1

    gige.show(grey(100))
    camera.expose()

    assert level_of(next_frame(camera).image) == 100


def test_software_the_late_frame_of_the_part_before_is_never_given(gige: HandGigE, opened: Opened) -> None:
    """Its part has its `error` already; the next part must not get its picture."""
    camera = opened(trigger="software")
    gige.show(grey(50))
    camera.expose()
    wait_until(lambda: gige.exposures == 1, what="the exposure, which nobody reads")
    gige.show(grey(100))
    camera.expose()

    assert level_of(next_frame(camera).image) == 100
    assert not camera.poll(0.3)


def test_a_pulse_on_the_line_is_one_frame(gige: HandGigE, opened: Opened) -> None:
    """The light barrier is wired to the camera."""
    camera = opened(trigger="Line0", read_timeout_ms=50)
    assert not camera.poll(0.3)
    assert camera.lost is None

    for level in (50, 100):
        gige.show(grey(level))
        gige.pulse()
        assert level_of(next_frame(camera).image) == level


@pytest.mark.parametrize("trigger", [FrameTriggerConfig(kind="frame"), FreeRunConfig(kind="free")])
def test_a_software_trigger_that_nobody_gives_is_refused(trigger: TriggerConfig) -> None:
    """The station would wait for ever, and say nothing."""
    with pytest.raises(CameraError, match=f"nothing asks for a picture: trigger is {trigger.kind}"):
        open_camera(config_of(trigger="software"), trigger=trigger, is_judged=bool)


def test_each_part_of_a_triggered_station_gets_its_own_exposure(gige: HandGigE) -> None:
    """As the line sees it."""
    trigger = IntervalTriggerConfig(kind="interval", period_ms=100)
    camera = open_camera(config_of(trigger="software"), trigger=trigger, is_judged=bool)
    levels = []
    for level in (50, 100, 150):
        gige.show(noisy(level)[:, :, 0])
        frame = camera.read(Part(id=f"P{level}", trigger="interval", sequence=level, triggered=Stamp.now()))
        assert isinstance(frame, Frame), frame
        levels.append(level_of(frame.image))
    gige.release()
    camera.close()

    assert levels == [50, 100, 150]


def test_exposing_a_camera_that_is_closed_is_refused(gige: HandGigE, opened: Opened) -> None:
    """A stop in the middle of a part."""
    camera = opened(trigger="software")
    camera.close()

    with pytest.raises(CameraError, match="closed"):
        camera.expose()


# Time and numbers


def test_the_camera_numbers_go_on_where_16_bits_end(gige: HandGigE, opened: Opened) -> None:
    """The fake begins at 65401; after 65535 comes 1."""
    gige.show(*(grey(50 + i % 2) for i in range(200)))
    camera = opened(fps=500)

    numbers = [next_frame(camera).sequence for _ in range(200)]

    assert numbers == list(range(1, 201))
    assert camera.counters["lost_frames"] == 0


def test_a_frame_says_when_it_was_exposed_at_the_latest_and_the_earliest(gige: HandGigE, opened: Opened) -> None:
    """Its own timestamp, less what the way may have taken."""
    gige.show(*(grey(50 + i % 2) for i in range(20)))
    before_ns = Stamp.now().mono_ns
    camera = opened(fps=200, latency_ms=40)
    frames = [next_frame(camera) for _ in range(20)]

    for frame in frames:
        assert frame.exposed_ns is not None
        assert before_ns - 40_000_000 <= frame.exposed_ns <= frame.captured.mono_ns - 40_000_000
    exposed = [frame.exposed_ns or 0 for frame in frames]
    assert exposed == sorted(exposed)


# Faults


def test_frames_with_lost_packets_are_faults_and_never_pictures() -> None:
    """One packet of a thousand is lost, and a frame has 195 of 1400 bytes: some come whole, some torn."""
    with camera_process(lost_per_mille=2):
        camera = GenicamCamera(config_of(width_px=512, height_px=512))
        seen: list[Frame | Fault] = []
        while len(seen) < 40:
            assert camera.poll(PATIENCE_S), camera.lost
            seen.append(camera.read(PART))
        counters = camera.counters
        camera.close()

    whole = [frame for frame in seen if isinstance(frame, Frame)]
    torn = [fault for fault in seen if isinstance(fault, Fault)]
    assert whole
    assert torn
    assert counters["torn_frames"] == len(torn)
    assert all("torn: packets of this frame did not arrive" in fault.reason for fault in torn)
    assert f"{counters['n_missing_packets']:,} packets missing" in torn[-1].reason or counters["n_missing_packets"]
    pattern = whole[0].image.std(axis=1)  # the fake's moving stripes, in every row: a missing packet is a black gap
    assert all((frame.image.std(axis=1) > 0.2 * pattern.mean()).all() for frame in whole)
    numbers = [frame.sequence for frame in whole]
    assert numbers == sorted(set(numbers))


def nothing_comes(camera: GenicamCamera) -> bool:
    """What lay there is taken: half a frame may have come when the power went."""
    if camera.poll(0.1):
        camera.read(PART)
        return False
    return True


def test_a_camera_that_is_switched_off_is_lost_and_found_again() -> None:
    """With its settings: they are gone with its power."""
    with camera_process() as process:
        camera = GenicamCamera(config_of(read_timeout_ms=500))
        before = next_frame(camera)
        process.kill()
        wait_until(lambda: nothing_comes(camera) and camera.lost, what="the loss")
        assert "no frame for" in str(camera.lost) or "no longer answers" in str(camera.lost)
        fault = camera.read(PART)
        assert isinstance(fault, Fault)
        assert fault.reason == camera.lost

        process.start()
        wait_until(lambda: camera.poll(0.1), within_s=60, what="a frame after that")
        after = next_frame(camera)
        camera.close()

    assert after.image.shape == before.image.shape == (48, 64, 3)
    assert after.sequence > before.sequence
    assert camera.lost is None


def test_a_software_triggered_camera_that_is_off_refuses_and_comes_back() -> None:
    """Nothing but the trigger tells that it is away."""
    with camera_process() as process:
        camera = GenicamCamera(config_of(trigger="software"))
        camera.expose()
        next_frame(camera)
        process.kill()
        with pytest.raises(CameraError, match="does not take the trigger"):
            camera.expose()
        assert camera.lost is not None

        process.start()
        wait_until(lambda: not camera.poll(0.1) and camera.lost is None, within_s=60, what="the camera")
        camera.expose()
        assert next_frame(camera).image.shape == (48, 64, 3)
        camera.close()


def test_a_lost_camera_can_be_closed_at_once() -> None:
    """A service that stops must not wait for a camera that is away."""
    with camera_process() as process:
        camera = GenicamCamera(config_of(read_timeout_ms=500, reopen_s=30))
        process.kill()
        wait_until(lambda: nothing_comes(camera) and camera.lost, what="the loss")
        camera.close()

    assert camera.ended
    assert not camera.poll(0)


def test_a_start_that_was_refused_does_not_hold_the_camera(gige: HandGigE) -> None:
    """Whoever corrects the configuration would be told that another program has it."""
    with pytest.raises(CameraError) as refused:
        GenicamCamera(config_of(gain=24))

    device = GenicamDevice(config_of(trigger="software"))
    device.close()
    device.close()
    assert refused.value.__traceback__ is not None  # which still holds what was opened
