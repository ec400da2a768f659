"""The stand-in for picamera2 has the real one's names and arguments, as read from its source."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import tests.kit.picamera2 as kit
from tests.kit.picamera2 import standin

TABLE: dict[str, dict[str, list[str]]] = json.loads(
    Path(kit.__file__).with_name("names.json").read_text(encoding="utf-8")
)["picamera2"]
NEWEST, OLDEST = "0.3.38", "0.3.22"
CALLED = {
    "Picamera2.cancel_all_and_flush": [],
    "Picamera2.capture_request": ["wait"],
    "Picamera2.wait": ["job", "timeout"],
    "Picamera2.create_video_configuration": ["main", "raw", "buffer_count", "controls", "display", "encode"],
    "Picamera2.create_still_configuration": ["main", "raw", "buffer_count", "controls", "display", "encode"],
    "Picamera2.configure": ["camera_config"],
    "Picamera2.camera_configuration": [],
    "Picamera2.camera_controls": [],
    "Picamera2.camera_properties": [],
    "Picamera2.global_camera_info": [],
    "Picamera2.start": [],
    "Picamera2.close": [],
    "MappedArray.__init__": ["request", "stream", "write"],
    "MappedArray.array": [],
    "CompletedRequest.get_metadata": [],
    "CompletedRequest.release": [],
}
"""What the agent calls, and with which arguments."""


def found(name: str) -> Any:
    """The stand-in's function of this name, such as `Picamera2.wait`."""
    owner, _, method = name.partition(".")
    member = inspect.getattr_static(getattr(standin, owner), method)
    if isinstance(member, property):
        return member.fget
    return member.__func__ if isinstance(member, staticmethod) else member


@pytest.mark.parametrize("name", sorted(TABLE[NEWEST]))
def test_it_has_the_real_arguments(name: str) -> None:
    """Names, order and defaults, where these are plain values."""
    own = list(inspect.signature(found(name)).parameters.values())
    real = [argument.partition("=") for argument in TABLE[NEWEST][name]]

    assert [parameter.name for parameter in own] == [argument for argument, _, _ in real]
    for parameter, (_, has_default, default) in zip(own, real, strict=True):
        assert (parameter.default is not inspect.Parameter.empty) == bool(has_default), parameter
        assert not default or repr(parameter.default) == default, parameter


@pytest.mark.parametrize("version", sorted(version for version in TABLE if version.split(".") >= OLDEST.split(".")))
@pytest.mark.parametrize("name", sorted(CALLED))
def test_each_version_that_we_take_has_what_we_call(version: str, name: str) -> None:
    """From the oldest that is accepted to the newest that was read."""
    present = {argument.partition("=")[0] for argument in TABLE[version][name]}

    assert set(CALLED[name]) <= present


def test_an_older_version_lacks_what_makes_a_dead_camera_bearable() -> None:
    """The reason why it is refused."""
    assert "Picamera2.cancel_all_and_flush" not in TABLE["0.3.18"]
