"""The camera's clock and count, made ours: never too late, never twice, never silent about a gap."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cameras.sensor_time import CameraClock, FrameCounter, mono_from_sensor

MS = 1_000_000
S = 1_000 * MS


def test_a_frame_that_was_held_up_keeps_its_age() -> None:
    """A busy network must not make an old picture look new."""
    clock = CameraClock()
    for i in range(10):
        clock.mono_ns(i * 100 * MS, 7 * S + i * 100 * MS + 5 * MS)

    assert clock.mono_ns(1_000 * MS, 7 * S + 1_400 * MS) == 7 * S + 1_005 * MS


@given(
    offset=st.integers(-(10**15), 10**15),
    delays=st.lists(st.integers(0, 500), min_size=1, max_size=60),
    drift_ppm=st.integers(-100, 100),
)
def test_a_mapped_time_is_between_the_true_one_and_the_arrival(offset: int, delays: list[int], drift_ppm: int) -> None:
    """Later than the truth by no more than the shortest way seen; too early by drift only; never in the future."""
    clock = CameraClock()
    way_ms: list[int] = []
    for i, delay_ms in enumerate(delays):
        true_ns = 20 * S + i * 300 * MS
        camera_ns = offset + true_ns + true_ns * drift_ppm // 1_000_000
        way_ms.append(delay_ms)
        mapped = clock.mono_ns(camera_ns, true_ns + delay_ms * MS)

        window = way_ms[-33:]  # what is surely within ten seconds
        assert mapped <= true_ns + delay_ms * MS
        assert mapped >= true_ns + min(way_ms) * MS - 2 * MS
        assert mapped <= true_ns + min(window) * MS + 2 * MS


def test_a_camera_clock_that_was_set_back_is_believed_after_a_while() -> None:
    """And until then its times are too early, which is the safe direction."""
    clock = CameraClock()
    clock.mono_ns(1_000 * S, 1_000 * S + 5 * MS)

    assert clock.mono_ns(501 * S, 1_001 * S + 5 * MS) < 600 * S
    assert clock.mono_ns(510 * S, 1_010 * S + 6 * MS) == 1_010 * S + 5 * MS


def test_what_is_surely_of_before_a_moment() -> None:
    """A late answer to the trigger before is not the answer to this one."""
    clock = CameraClock()
    assert not clock.is_before(0, 10 * S, 10 * S)  # nothing is known yet
    clock.mono_ns(100 * S, 500 * S + 20 * MS)

    assert clock.is_before(101 * S, 501 * S + 21 * MS, 503 * S)
    assert not clock.is_before(101 * S, 501 * S + 19 * MS, 503 * S)


@pytest.mark.parametrize(
    ("numbers", "expected", "missed"),
    [
        ([7, 8, 9], [1, 2, 3], 0),
        ([7, 10], [1, 4], 2),
        ([65_534, 65_535, 1, 2], [1, 2, 3, 4], 0),
        ([65_534, 2], [1, 4], 2),
        ([2**64 - 2, 2**64 - 1, 1], [1, 2, 3], 0),
        ([65_536, 65_537], [1, 2], 0),
        ([7, 7], [1, 1], 0),
        ([0, 0, 0], [1, 2, 3], 0),
        ([0, 1, 2], [1, 2, 3], 0),
        ([500_000, 3], [1, 2], 0),
        ([60_000, 1], [1, 5_537], 5_535),
    ],
)
def test_numbers_rise(numbers: list[int], expected: list[int], missed: int) -> None:
    """Whatever the camera counts in."""
    counter = FrameCounter()

    assert [counter.count(number) for number in numbers] == expected
    assert counter.missed == missed


def test_torn_frames_are_not_counted_as_missing() -> None:
    """They came, and were faults already."""
    counter = FrameCounter()
    counter.count(10)

    assert counter.count(14, damaged=2) == 5
    assert counter.missed == 1


def test_a_camera_that_was_opened_again_begins_anew() -> None:
    """Its count says nothing about the frames of before."""
    counter = FrameCounter()
    counter.count(500)
    counter.begin_anew()

    assert counter.count(900) == 2
    assert counter.missed == 0


@pytest.mark.parametrize(
    ("sensor_ns", "suspended_ns", "expected"),
    [
        (99_950 * MS, 0, 99_950 * MS),
        (99_950 * MS, 3_600 * S, 99_950 * MS),  # CLOCK_MONOTONIC, as Raspberry Pis give it
        (99_950 * MS + 3_600 * S, 3_600 * S, 99_950 * MS),  # CLOCK_BOOTTIME, as libcamera's documentation says
        (99_950 * MS, 200 * MS, 99_750 * MS),  # can't be told apart: the earlier one
        (200 * S, 0, 100 * S),  # never in the future
    ],
)
def test_sensor_time_is_monotonic_time(sensor_ns: int, suspended_ns: int, expected: int) -> None:
    """At 100 s after the boot."""
    assert mono_from_sensor(sensor_ns, mono_ns=100 * S, boot_ns=100 * S + suspended_ns) == expected


def test_this_computers_own_clocks_are_read() -> None:
    """A computer that was never suspended has one time on both."""
    now = time.monotonic_ns()

    assert mono_from_sensor(now - MS) <= now
