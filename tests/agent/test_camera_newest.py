"""Free run: the newest frame wins, none is given twice, and the reader's troubles are heard."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agent.cameras.newest import NewestFrame
from agent.frame import Fault, Frame, Part, Stamp
from tests.kit.cameras import PATIENCE_S, HandCamera
from tests.kit.pictures import level_of

PART = Part(id="P1", trigger="free", sequence=1, triggered=Stamp.now())


@pytest.fixture
def hand() -> HandCamera:
    """The camera that is wrapped."""
    return HandCamera()


@pytest.fixture
def newest(hand: HandCamera) -> Iterator[NewestFrame]:
    """Free run on that camera."""
    camera = NewestFrame(hand)
    yield camera
    hand.hang(stuck=False)
    camera.close()


def level_read(camera: NewestFrame) -> int:
    """The grey level of the next frame."""
    assert camera.poll(PATIENCE_S)
    frame = camera.read(PART)
    assert isinstance(frame, Frame)
    return level_of(frame.image)


def fault_read(camera: NewestFrame) -> str:
    """The reason of the next fault."""
    fault = camera.read(PART)
    assert isinstance(fault, Fault)
    assert fault.part == PART
    return fault.reason


def test_a_crash_in_the_camera_is_a_fault_and_a_lost_camera(hand: HandCamera, newest: NewestFrame) -> None:
    """An exception in a thread that nobody watches is how peers lose every later part without a word."""
    hand.crash(RuntimeError("driver bug"))
    assert newest.poll(PATIENCE_S)

    assert "unexpected RuntimeError: driver bug" in str(newest.lost)
    assert "driver bug" in fault_read(newest)


def test_after_a_crash_the_reader_tries_on(hand: HandCamera, newest: NewestFrame) -> None:
    """One bad exposure must not end the line."""
    hand.crash(RuntimeError("driver bug"))
    assert newest.poll(PATIENCE_S)
    newest.read(PART)
    hand.show(80)

    assert level_read(newest) == 80
    hand.wait_until_idle()
    assert newest.lost is None


def test_close_comes_back_from_a_camera_that_hangs(hand: HandCamera, newest: NewestFrame) -> None:
    """A stop can't wait for a driver; the reader closes the camera when it gets back."""
    hand.hang(stuck=True)
    assert hand.hung.wait(PATIENCE_S)

    closing = threading.Thread(target=newest.close)
    closing.start()
    closing.join(PATIENCE_S)

    assert not closing.is_alive()
    assert newest.ended
    assert not hand.closed.is_set()
    hand.hang(stuck=False)
    assert hand.closed.wait(PATIENCE_S)


def test_a_failed_exposure_is_given_as_a_fault(hand: HandCamera, newest: NewestFrame) -> None:
    """It is the newest thing that happened."""
    hand.fail("over-exposed")
    assert newest.poll(PATIENCE_S)

    assert fault_read(newest) == "over-exposed"


def test_the_newest_frame_wins(hand: HandCamera, newest: NewestFrame) -> None:
    """A slow line judges what is under the camera now; the others are counted."""
    hand.wait_until_idle()
    hand.show(10, 20, 30, 40, 50)
    hand.wait_until_idle()

    assert level_read(newest) == 50
    assert newest.skipped == 4


def test_a_frame_is_never_given_twice(hand: HandCamera, newest: NewestFrame) -> None:
    """A picture seen again would pass for a new part."""
    hand.show(60)
    assert level_read(newest) == 60
    hand.wait_until_idle()

    assert not newest.poll(0)
    assert "no new frame" in fault_read(newest)


def test_the_part_is_the_triggers(hand: HandCamera, newest: NewestFrame) -> None:
    """The reader could not know yet whose picture it took."""
    hand.show(60)
    assert newest.poll(PATIENCE_S)

    assert newest.read(PART).part == PART


def test_the_cameras_own_numbers_show_what_was_skipped(hand: HandCamera, newest: NewestFrame) -> None:
    """A gap in the sequence is the evidence."""
    hand.wait_until_idle()
    hand.show(10, 20, 30)
    hand.wait_until_idle()
    frame = newest.read(PART)

    assert isinstance(frame, Frame)
    assert frame.sequence == 3


def test_the_last_frame_is_given_before_the_end(hand: HandCamera, newest: NewestFrame) -> None:
    """A finite source ends after its last part, not with it still in the slot."""
    hand.show(70)
    hand.end()
    assert newest.poll(PATIENCE_S)

    ended = [newest.ended]
    assert level_read(newest) == 70
    assert not newest.poll(PATIENCE_S)
    ended.append(newest.ended)
    assert ended == [False, True]
    assert hand.closed.wait(PATIENCE_S)


def test_a_lost_camera_is_lost_here_too(hand: HandCamera, newest: NewestFrame) -> None:
    """The reason comes through, and goes when frames come again."""
    hand.lose("unplugged")
    hand.fail("unplugged")
    assert newest.poll(PATIENCE_S)
    assert newest.lost == "unplugged"

    newest.read(PART)
    hand.lose(None)
    hand.show(20)

    assert level_read(newest) == 20
    assert newest.lost is None


def test_a_camera_that_goes_on_giving_bad_frames_gives_one_fault(hand: HandCamera, newest: NewestFrame) -> None:
    """A frozen camera at 30 frames per second must not fill the record with errors; nothing triggers them."""
    hand.lose("frozen")
    for _ in range(2):
        hand.fail("frozen")
        hand.wait_until_idle()
        newest.read(PART)
    hand.fail("frozen")
    hand.wait_until_idle()
    assert not newest.poll(0)

    hand.lose(None)
    hand.show(20)
    assert level_read(newest) == 20
    hand.lose("frozen")
    hand.fail("frozen")
    assert newest.poll(PATIENCE_S)


def test_close_ends_the_reader_and_the_camera(hand: HandCamera, newest: NewestFrame) -> None:
    """Nothing of it stays behind."""
    newest.close()

    assert hand.closed.wait(PATIENCE_S)
    assert newest.ended
    assert not newest.poll(PATIENCE_S)
