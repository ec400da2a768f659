"""GStreamer as a camera: refused in words, lost and found, no half picture, no time that is too late, no leak."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.cameras.gst_pipeline import GStreamer, Pipeline, Sample, load_gstreamer, pipeline_without_secrets
from agent.cameras.gstreamer import GStreamerCamera
from agent.config import GStreamerCameraConfig
from agent.errors import CameraError, ImageError
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.pictures import flat, level_of, textured
from tests.kit.rtsp import why_no_gstreamer
from tests.kit.streams import MjpegServer, mjpeg_frame, mjpeg_server
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.skipif(bool(why_no_gstreamer()), reason=why_no_gstreamer())

ROOT = Path(__file__).parents[2]
PART = Part(id="P1", trigger="frame", sequence=1, triggered=Stamp.now())
PATIENCE_S = 20.0
SECOND_NS = 1_000_000_000
RAW = "caps=video/x-raw,format=BGR,width=61,height=48,framerate=25/1"
ROW_BYTES = 184
"""61 pixels of three bytes, rounded up to four as GStreamer does."""


class HandClock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def config_of(pipeline: str, **more: Any) -> GStreamerCameraConfig:
    """A configuration with short times."""
    times = {"read_timeout_ms": 400, "reopen_s": 1.0, "latency_ms": 0}
    return GStreamerCameraConfig(kind="gstreamer", pipeline=pipeline, **{**times, **more})


def http(url: str, tail: str = "image/jpeg") -> str:
    """An MJPEG camera's pipeline."""
    return f"souphttpsrc location={url} is-live=true do-timestamp=true ! multipartdemux ! {tail}"


def results_of(camera: GStreamerCamera) -> list[Frame | Fault]:
    """Everything that comes until it ends or is lost."""
    results = []
    while not camera.ended and camera.poll(PATIENCE_S):
        results.append(camera.read(PART))
    return results


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    """An MJPEG camera on the network."""
    with mjpeg_server() as running:
        yield running


@pytest.fixture
def gstreamer() -> GStreamer:
    """The libraries."""
    return load_gstreamer()


@pytest.fixture
def fed(gstreamer: GStreamer) -> Iterator[Pipeline]:
    """A live pipeline that the test feeds with `feed`."""
    text = f"appsrc name=feed is-live=true format=time {RAW}"
    pipeline = Pipeline(gstreamer, text, shown="the test", newest_only=False)
    yield pipeline
    pipeline.stop()


def feed(pipeline: Pipeline, gstreamer: GStreamer, *, size: int = ROW_BYTES * 48, **marks: Any) -> Sample:
    """Give a buffer of rising bytes to the pipeline, with these attributes, and take what comes out."""
    buffer = gstreamer.gst.Buffer.new_wrapped((np.arange(size) % 251).astype(np.uint8).tobytes())
    for name, value in marks.items():
        if name == "flags":
            buffer.set_flags(value)
        elif name == "unix_ns":
            buffer.add_reference_timestamp_meta(gstreamer.gst.Caps.from_string("timestamp/x-unix"), value, 0)
        else:
            setattr(buffer, name, value)
    pipeline._pipeline.get_by_name("feed").emit("push-buffer", buffer)
    assert pipeline.wait(PATIENCE_S), pipeline.over
    sample = pipeline.take()
    assert sample is not None
    return sample


def running_ns(pipeline: Pipeline) -> int:
    """The pipeline's time now."""
    clock: Any = pipeline._pipeline.get_clock()
    return int(clock.get_time() - pipeline._pipeline.get_base_time())


@pytest.mark.parametrize(
    ("pipeline", "words", "hint"),
    [
        ("nvarguscamerasrc", 'no element "nvarguscamerasrc"', "apt install nvidia-l4t-gstreamer"),
        ("avdec_h266", 'no element "avdec_h266"', "gst-inspect-1.0"),
        ("videotestsrc colour=1", 'no property "colour"', "gst-inspect-1.0"),
        ("videotestsrc ! ! videoscale", "syntax error", "between them"),
        ("audiotestsrc", "could not link", "has to end in"),
        ("videotestsrc ! fakesink", "could not link", "without a sink"),
        ("v4l2src device=/dev/video77", "No such file or directory", "plugged in"),
        ("filesrc location=/nowhere.mp4 ! decodebin", "Resource not found", "is it there"),
        ("filesrc location=/etc/passwd ! decodebin", "text file", "must run"),
        ("videotestsrc num-buffers=0", "the stream ended", "must run"),
    ],
)
def test_a_pipeline_that_gives_no_frame_is_refused_with_what_to_do(pipeline: str, words: str, hint: str) -> None:
    """GStreamer's own words are for those who know it; the remedy is for the others."""
    with pytest.raises(CameraError) as caught:
        GStreamerCamera(config_of(pipeline))

    assert caught.value.message.startswith(f"gstreamer {pipeline.split(' ! ', maxsplit=1)[0]}: ")
    assert words in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_stream_that_does_not_fit_the_next_element_is_refused_with_the_reason() -> None:
    """It shows only while it runs: GStreamer says "internal data stream error", and keeps the reason to itself."""
    with pytest.raises(CameraError, match="the next one"):
        GStreamerCamera(config_of("videotestsrc ! jpegenc ! multipartmux ! multipartdemux ! image/png"))


def test_without_gi_it_says_what_to_install() -> None:
    """A virtual environment has no gi of its own, and a small system none at all."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from agent.cameras import gi_door\n"
        "from tests.agent.test_gstreamer import CameraError, GStreamerCamera, config_of\n"
        "sys.modules['gi'] = None\n"
        "gi_door.SYSTEM_PACKAGES = (Path('/nowhere'),)\n"
        "try:\n"
        "    GStreamerCamera(config_of('videotestsrc'))\n"
        "except CameraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )

    message, hint = done.stdout.splitlines()
    assert "gi" in message
    assert hint.startswith("Try: apt install python3-gi gir1.2-gstreamer-1.0")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtspsrc location=rtsp://me:pw@cam/1 ! a", "rtspsrc location=rtsp://***@cam/1 ! a"),
        (
            'rtspsrc location=rtsp://cam user-id=me user-pw="p w" ! a',
            "rtspsrc location=rtsp://cam user-id=*** user-pw=*** ! a",
        ),
        ('location="http://cam/a?token=pw" ! x@y', 'location="http://cam/a?token=*** ! x@y'),
        ("videotestsrc pattern=ball", "videotestsrc pattern=ball"),
    ],
)
def test_no_password_of_a_pipeline_is_shown(text: str, shown: str) -> None:
    """They stand in URLs and in properties."""
    assert pipeline_without_secrets(text) == shown


def test_a_pipeline_without_an_end_for_its_secrets_is_refused_without_them() -> None:
    """The error holds the pipeline, and so does its hint."""
    with pytest.raises(CameraError) as caught:
        GStreamerCamera(config_of("rtspsrc location=rtsp://me:s3cret@127.0.0.1:1/live user-pw=s3cret ! decodebin"))

    assert "rtsp://***@127.0.0.1:1/live" in caught.value.message
    assert "s3cret" not in str(caught.value)


def test_a_line_that_is_slow_gets_every_picture_of_a_file() -> None:
    """A file waits for the line; nothing is dropped to keep up."""
    camera = GStreamerCamera(config_of("videotestsrc num-buffers=30 ! video/x-raw,width=64,height=48"))
    results = results_of(camera)

    assert [result.sequence for result in results if isinstance(result, Frame)] == list(range(1, 31))
    assert all(isinstance(result, Frame) and result.exposed_ns is None for result in results)
    assert camera.ended
    assert camera.lost is None


def test_a_file_that_can_not_be_read_to_its_end_gives_a_fault_and_ends() -> None:
    """Pictures that were promised were parts: the early end is an error verdict, not silence."""
    made = "videotestsrc num-buffers=9 ! video/x-raw,width=64,height=48"
    camera = GStreamerCamera(config_of(f"{made} ! identity name=disk error-after=3"))
    *frames, fault = results_of(camera)

    assert len(frames) == 2
    assert all(isinstance(frame, Frame) for frame in frames)
    assert isinstance(fault, Fault)
    assert "stops after 2 frames" in fault.reason
    assert "(disk)" in fault.reason
    assert camera.ended


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b"junk", "is not a picture"),
        (mjpeg_frame(textured())[:-800], "truncated JPEG"),
        (mjpeg_frame(textured())[:-800] + b"\xff\xd9", "premature end"),
    ],
    ids=["junk", "half", "half with an end"],
)
def test_a_damaged_jpeg_is_a_fault_and_the_next_one_goes_on(server: MjpegServer, damaged: bytes, words: str) -> None:
    """GStreamer's own decoder would fill up the half one, leave out the other, and say nothing."""
    server.push_bytes(mjpeg_frame(flat(10)), damaged, mjpeg_frame(flat(30)))
    camera = GStreamerCamera(config_of(http(server.url)))
    results = results_of(camera)
    camera.close()

    assert [level_of(result.image) if isinstance(result, Frame) else "fault" for result in results] == [10, "fault", 30]
    fault = results[1]
    assert isinstance(fault, Fault)
    assert "frame 2" in fault.reason
    assert words in fault.reason


def test_a_stream_that_changes_its_size_gives_whole_pictures_and_says_so(
    server: MjpegServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The caps change in the middle; rows would be read at the wrong places if that went unnoticed."""
    server.push(flat(10), flat(90, 34, 32))
    camera = GStreamerCamera(config_of(http(server.url, "jpegdec")))
    frames = results_of(camera)
    camera.close()

    assert [frame.image.shape for frame in frames if isinstance(frame, Frame)] == [(48, 64, 3), (32, 34, 3)]
    assert [record.__dict__["fields"]["now"] for record in caplog.records] == ["34x32"]


def test_a_lost_stream_is_tried_again_after_longer_and_longer_waits(server: MjpegServer) -> None:
    """A dead camera must not be hammered, nor wait for ever: 1, 2, 4, 8, 8, … times `reopen_s`."""
    clock = HandClock()
    server.push(flat(10))
    camera = GStreamerCamera(config_of(http(server.url).replace("souphttpsrc", "souphttpsrc retries=0")), clock=clock)
    assert isinstance(camera.read(PART), Frame)
    server.refuse = True
    server.drop_client()
    wait_until(lambda: not camera.poll(0.1) and camera.lost, PATIENCE_S)
    waits = []
    for _ in range(5):
        before, lost_at = server.attempts, clock.now_s
        while server.attempts == before:
            clock.now_s += 0.5
            camera.poll(0)
            wait_until(lambda: not camera.poll(0.05) and camera._pipeline is None, PATIENCE_S)
        waits.append(clock.now_s - lost_at)
    camera.close()

    assert waits == [1, 2, 4, 8, 8]


def test_of_frames_that_wait_only_the_newest_is_given(server: MjpegServer) -> None:
    """Free run judges what is under the camera now; its numbers show what was left out."""
    server.push(flat(10))
    camera = GStreamerCamera(config_of(http(server.url)), newest_only=True)
    server.push(flat(20), flat(30), flat(40))
    wait_until(lambda: camera._pipeline is not None and camera._pipeline._arrivals == 4, PATIENCE_S)
    frame = camera.read(PART)
    camera.close()

    assert isinstance(frame, Frame)
    assert (level_of(frame.image), frame.sequence) == (40, 1)


def test_rows_with_padding_become_rows_without(fed: Pipeline, gstreamer: GStreamer) -> None:
    """GStreamer rounds rows up to four bytes; 61 pixels have 183."""
    image = feed(fed, gstreamer, pts=0).image()

    expected = (np.arange(ROW_BYTES * 48) % 251).astype(np.uint8).reshape(48, ROW_BYTES)[:, :183].reshape(48, 61, 3)
    assert (image == expected).all()
    assert image.flags.c_contiguous


def test_pixels_are_the_same_when_the_address_of_a_buffer_is_not_known(gstreamer: GStreamer) -> None:
    """The short way leans on how PyGObject shows its objects; the long one does not."""
    buffer = gstreamer.gst.Buffer.new_wrapped(bytes(range(200)))
    long_way = dataclasses.replace(gstreamer, extract=lambda *_arguments: 0)

    assert gstreamer.pixels(buffer).tolist() == long_way.pixels(buffer).tolist() == list(range(200))
    assert long_way.pixels(buffer).flags.writeable


@pytest.mark.parametrize(("flag", "words"), [("CORRUPTED", "damaged"), ("GAP", "missing")])
def test_a_frame_that_is_marked_as_bad_is_none(fed: Pipeline, gstreamer: GStreamer, flag: str, words: str) -> None:
    """`v4l2src` marks what the driver calls an error, decoders what they have patched."""
    sample = feed(fed, gstreamer, pts=0, flags=getattr(gstreamer.gst.BufferFlags, flag))

    with pytest.raises(ImageError, match=words):
        sample.image()


def test_a_frame_that_is_too_short_is_none(fed: Pipeline, gstreamer: GStreamer) -> None:
    """Rows that are not there must not be read from somewhere else."""
    sample = feed(fed, gstreamer, pts=0, size=ROW_BYTES * 40)

    with pytest.raises(ImageError, match="has 7,360 bytes"):
        sample.image()


def test_a_frame_that_has_waited_in_the_pipeline_stays_old(fed: Pipeline, gstreamer: GStreamer) -> None:
    """Its stamp says when the source had it; its arrival would say that it is new."""
    while running_ns(fed) < SECOND_NS // 2:
        fed.wait(0.1)
    before_ns = time.monotonic_ns()
    sample = feed(fed, gstreamer, pts=running_ns(fed) - SECOND_NS // 2)

    assert sample.stamped_ns is not None
    assert sample.stamped_ns < before_ns - 0.4 * SECOND_NS
    assert sample.stamped_ns > before_ns - 0.6 * SECOND_NS - (time.monotonic_ns() - before_ns)


def test_a_frame_without_a_stamp_is_dated_by_its_arrival(fed: Pipeline, gstreamer: GStreamer) -> None:
    """That is all there is; `latency_ms` has to cover the rest."""
    feed(fed, gstreamer)  # the first one of a live source is stamped by GStreamer itself
    sample = feed(fed, gstreamer)

    assert sample.stamped_ns == sample.arrived.mono_ns


def test_a_stamp_in_the_future_is_not_believed(fed: Pipeline, gstreamer: GStreamer) -> None:
    """A clock that is ahead would make the picture of the part before look like one of this part."""
    sample = feed(fed, gstreamer, pts=running_ns(fed) + 5 * SECOND_NS)

    assert sample.stamped_ns == sample.arrived.mono_ns


def test_an_earlier_reference_time_of_our_own_clock_counts(fed: Pipeline, gstreamer: GStreamer) -> None:
    """A driver that says when it captured knows more than the element that handed the frame on."""
    sample = feed(fed, gstreamer, pts=running_ns(fed), unix_ns=time.time_ns() - 3 * SECOND_NS)

    assert sample.stamped_ns is not None
    assert abs(sample.arrived.mono_ns - sample.stamped_ns - 3 * SECOND_NS) < SECOND_NS


def test_latency_makes_every_frame_older(server: MjpegServer) -> None:
    """The stamp comes after the exposure began, by no more than this."""
    server.push(flat(10))
    camera = GStreamerCamera(config_of(http(server.url), latency_ms=250))
    frame = camera.read(PART)
    camera.close()

    assert isinstance(frame, Frame)
    assert frame.exposed_ns is not None
    assert frame.captured.mono_ns - frame.exposed_ns >= SECOND_NS // 4


def test_a_pipeline_that_was_stopped_is_gone(gstreamer: GStreamer) -> None:
    """One that is kept keeps the device open: a camera that comes back is then another device (seen with vivid)."""
    gone: list[bool] = []
    pipeline = Pipeline(gstreamer, "videotestsrc is-live=true num-buffers=5", shown="the test", newest_only=False)
    pipeline._pipeline.weak_ref(lambda: gone.append(True))
    assert pipeline.wait(PATIENCE_S)
    sample = pipeline.take()
    assert sample is not None
    sample.image()
    pipeline.stop()
    del pipeline, sample
    gc.collect()

    assert gone == [True]
