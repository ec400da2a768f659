"""The pipeline of a Jetson's CSI camera, as text: what NVIDIA's documentation calls its properties, in their units."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cameras.argus import argus_pipeline
from agent.config import ArgusCameraConfig

PROPERTIES = {
    "nvarguscamerasrc": {"sensor-id", "sensor-mode", "exposuretimerange", "gainrange", "ispdigitalgainrange", "aelock"},
    "nvvidconv": {"flip-method"},
}
"""Of what we use, as `gst-inspect-1.0` prints them on a Jetson (JetPack 4 and 5; NVIDIA's gstnvarguscamerasrc.cpp)."""


def pipeline_of(**keys: Any) -> str:
    """The pipeline for this configuration."""
    return argus_pipeline(ArgusCameraConfig(kind="argus", **keys))


def test_a_camera_that_is_left_alone() -> None:
    """Everything automatic: only the size and the rate are ours."""
    assert pipeline_of() == (
        "nvarguscamerasrc sensor-id=0 ! video/x-raw(memory:NVMM),width=1920,height=1080,format=NV12,framerate=30/1 "
        "! nvvidconv flip-method=0 ! video/x-raw,width=1920,height=1080,format=BGRx"
    )


def test_fixed_exposure_and_gain_leave_nothing_to_the_automatic() -> None:
    """Exposure is in nanoseconds, as a range of one; the ISP must not brighten what the sensor may not."""
    source = pipeline_of(sensor=1, sensor_mode=3, exposure_us=2500, gain=4.5).split(" ! ")[0]

    assert source == (
        'nvarguscamerasrc sensor-id=1 sensor-mode=3 exposuretimerange="2500000 2500000" gainrange="4.5 4.5" '
        'ispdigitalgainrange="1 1" aelock=true'
    )


@pytest.mark.parametrize("fixed", [{"exposure_us": 100}, {"gain": 2}])
def test_one_fixed_value_leaves_the_other_to_the_automatic(fixed: dict[str, Any]) -> None:
    """A lock would keep whatever gain the first frame had."""
    assert "aelock" not in pipeline_of(**fixed)


@pytest.mark.parametrize(("fps", "text"), [(30, "30/1"), (29.97, "2997/100"), (0.5, "1/2"), (120, "120/1")])
def test_a_rate_is_a_fraction(fps: float, text: str) -> None:
    """Caps know no decimals."""
    assert f"framerate={text} " in pipeline_of(fps=fps) + " "


@pytest.mark.parametrize(("flip", "size"), [(0, "640,height=480"), (2, "640,height=480"), (1, "480,height=640")])
def test_a_quarter_turn_swaps_width_and_height(flip: int, size: str) -> None:
    """The sensor's size stands before the flip, the frame's behind it."""
    sensor, frame = pipeline_of(width_px=640, height_px=480, flip=flip).split(f" ! nvvidconv flip-method={flip} ! ")

    assert "width=640,height=480" in sensor
    assert f"width={size}" in frame


def test_only_documented_properties_are_used() -> None:
    """A misspelt one refuses the whole pipeline on the device, and nobody here would see it."""
    text = pipeline_of(sensor=1, sensor_mode=3, exposure_us=2500, gain=4.5, flip=2)
    for element in text.split(" ! "):
        name, *pairs = element.replace('" ', '";').split(" ", 1)
        if name in PROPERTIES:
            used = {word.split("=")[0] for word in pairs[0].replace('"', "").replace(";", " ").split() if "=" in word}
            assert used <= PROPERTIES[name]
