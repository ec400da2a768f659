"""A lost device is opened again in the background, with growing pauses, and nothing is left open."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agent.cameras.reopening import Reopener
from agent.errors import CameraError
from tests.kit.waiting import wait_until

PATIENCE_S = 20.0


class Device:
    """Knows whether it was closed, and may take its time for that."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.may_close = threading.Event()
        self.may_close.set()

    def close(self) -> None:
        self.may_close.wait(PATIENCE_S)
        self.closed.set()


class Shelf:
    """Where devices come from: fails until it is told otherwise."""

    def __init__(self) -> None:
        self.device: Device | Exception = CameraError("it is away", hint="plug it in")
        self.tries = 0
        self.may_open = threading.Event()
        self.may_open.set()

    def open(self) -> Device:
        self.tries += 1
        self.may_open.wait(PATIENCE_S)
        if isinstance(self.device, Exception):
            raise self.device
        return self.device


@pytest.fixture
def shelf() -> Shelf:
    """It fails."""
    return Shelf()


@pytest.fixture
def reopener(shelf: Shelf) -> Iterator[Reopener[Device]]:
    """With short pauses."""
    made = Reopener(shelf.open, first_s=0.01)
    yield made
    made.stop()


def test_it_tries_until_the_device_is_there(reopener: Reopener[Device], shelf: Shelf) -> None:
    """And says why it is not."""
    lost = Device()
    reopener.begin(lost)
    wait_until(lambda: shelf.tries >= 3, what="three tries")
    assert reopener.reason == "it is away"
    assert reopener.take(0) is None

    shelf.device = found = Device()

    assert reopener.take(PATIENCE_S) is found
    assert reopener.take(0) is None
    assert lost.closed.is_set()


def test_pauses_grow_up_to_eight_times_the_first(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that was taken away for good is not asked all the time; one that came back begins anew."""
    reopener = Reopener(shelf.open, first_s=1.0)
    pauses: list[float] = []

    def wait(timeout: float | None = None) -> bool:
        pauses.append(timeout or 0.0)
        return len(pauses) in (6, 8)

    monkeypatch.setattr(reopener._stop, "wait", wait)
    reopener._run([Device()])
    assert pauses == [1, 2, 4, 8, 8, 8]
    reopener.begin_with_first_pause()
    reopener._run([Device()])
    assert pauses[6:] == [1, 2]


def test_nobody_waits_for_a_device_that_hangs_when_it_is_closed(reopener: Reopener[Device], shelf: Shelf) -> None:
    """Closing one that is away takes seconds in a driver: that is why there is a thread."""
    lost = Device()
    lost.may_close.clear()
    reopener.begin(lost)

    assert reopener.take(0.05) is None
    assert shelf.tries == 0
    lost.may_close.set()
    shelf.device = Device()
    assert reopener.take(PATIENCE_S) is shelf.device


def test_a_device_that_comes_after_the_stop_is_closed(shelf: Shelf) -> None:
    """It would stay open until the process ends, and nobody else could have it."""
    shelf.device = late = Device()
    shelf.may_open.clear()
    reopener = Reopener(shelf.open, first_s=0.01)
    reopener.begin(Device())
    wait_until(lambda: shelf.tries, what="a try")
    threading.Timer(0.05, shelf.may_open.set).start()

    reopener.stop()

    assert late.closed.wait(PATIENCE_S)
    assert reopener.take(0) is None


def test_a_device_that_nobody_took_is_closed(shelf: Shelf) -> None:
    """Found in the moment in which the line stopped."""
    shelf.device = unclaimed = Device()
    reopener = Reopener(shelf.open, first_s=0.01)
    reopener.begin(Device())
    wait_until(lambda: reopener._found is unclaimed, what="the device")

    reopener.stop()

    assert unclaimed.closed.is_set()


def test_a_bug_while_opening_is_said(reopener: Reopener[Device], shelf: Shelf) -> None:
    """A thread that died without a word would leave the line waiting for ever."""
    shelf.device = ZeroDivisionError()
    reopener.begin(Device())

    wait_until(lambda: reopener.reason is not None, what="the reason")
    assert "bug" in str(reopener.reason)
