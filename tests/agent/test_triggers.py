"""Triggers: what makes a part."""

from __future__ import annotations

from agent.config import FrameTriggerConfig, FreeRunConfig
from agent.frame import Part
from agent.triggers import open_trigger
from tests.kit.cameras import HandCamera


def test_no_frame_makes_no_part() -> None:
    """Nothing was seen, so nothing is owed."""
    trigger = open_trigger(FrameTriggerConfig(kind="frame"), HandCamera())

    assert trigger.next(0) is None
    assert not trigger.ended


def test_a_failed_exposure_is_a_part() -> None:
    """Something passed the camera: it gets its error verdict."""
    camera = HandCamera()
    camera.fail("over-exposed")

    assert open_trigger(FrameTriggerConfig(kind="frame"), camera).next(0) is not None


def test_each_frame_is_a_part_with_its_own_id() -> None:
    """Ids are unique within the run and tell the moment; a sequence counts from 1."""
    camera = HandCamera("line3")
    camera.show(10, 20)
    trigger = open_trigger(FrameTriggerConfig(kind="frame"), camera)
    first = trigger.next(0)
    assert isinstance(first, Part)
    camera.read(first)
    second = trigger.next(0)
    assert isinstance(second, Part)

    assert (first.sequence, second.sequence) == (1, 2)
    assert (first.trigger, second.trigger) == ("frame", "frame")
    assert first.id.startswith("line3-20")
    assert first.id.endswith("-1")
    assert second.id != first.id
    assert second.triggered.mono_ns >= first.triggered.mono_ns


def test_a_part_is_named_by_the_camera_where_it_knows_a_name() -> None:
    """The name must be there before the exposure, for the trigger goes to the journal first."""
    camera = HandCamera()
    camera.upcoming = "lot7/img_2.png"
    camera.show(10)

    part = open_trigger(FrameTriggerConfig(kind="frame"), camera).next(0)

    assert isinstance(part, Part)
    assert part.id == "lot7/img_2.png"


def test_free_run_names_parts_as_configured() -> None:
    """Several stations of one plant may use prefixes to tell their parts apart."""
    camera = HandCamera()
    camera.show(10)

    part = open_trigger(FreeRunConfig(kind="free", part_prefix="press7"), camera).next(0)

    assert isinstance(part, Part)
    assert part.id.startswith("press7-20")
    assert part.trigger == "free"


def test_a_trigger_ends_with_its_camera() -> None:
    """A folder's station leaves when the folder is done, not before the last part is read."""
    camera = HandCamera()
    camera.show(10)
    camera.end()
    trigger = open_trigger(FrameTriggerConfig(kind="frame"), camera)
    part = trigger.next(0)
    assert isinstance(part, Part)

    ended = [trigger.ended]
    camera.read(part)
    ended.append(trigger.ended)

    assert ended == [False, True]
    assert trigger.next(0) is None
