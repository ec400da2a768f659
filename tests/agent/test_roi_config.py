"""The keys of `roi:`: what is no region is refused with its path, before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig, RoiConfig, config_from_mapping
from agent.errors import ConfigError

FLAT = {"corners": [[0, 0], [100, 0], [100, 80], [0, 80]], "width_px": 100, "height_px": 80}


def read(roi: Any) -> RoiConfig | None:
    raw = {
        "station": "a",
        "state_dir": "s",
        "bundle": "b.defect",
        "camera": {"kind": "folder", "path": "p"},
        "roi": roi,
    }
    return config_from_mapping(AgentConfig, raw, source=Path("/etc/line1.yaml")).roi


def test_every_step_can_be_left_out() -> None:
    """`roi: {}` is the whole frame; paths begin at the configuration's folder."""
    full = read({"locate": {"template": "t.png", "at": [1, 2]}, "perspective": FLAT, "crop": [0, 0, 50, 40]})

    assert read(None) is None
    assert read({}) == RoiConfig()
    assert full is not None
    assert full.locate is not None
    assert full.locate.template == Path("/etc/t.png")


@pytest.mark.parametrize(
    ("roi", "words"),
    [
        ({"rotate": 90}, "roi.rotate: unknown key (did you mean roi.rotate_deg?)"),
        ({"rotate_deg": -90}, "roi.rotate_deg: got -90, expected 0 to 360"),
        ({"crop": [0, 0, 10]}, "roi.crop: got [0, 0, 10], expected x, y, width and height"),
        ({"crop": [0, 0, 10, 0]}, "roi.crop: got [0, 0, 10, 0], expected x, y, width and height, the last two over 0"),
        ({"crop": [0.5, 0, 10, 10]}, "roi.crop[0]: got 0.5, expected a whole number"),
        ({"crop": [-1, 0, 10, 10]}, "roi.crop[0]: got -1, expected 0 to 65535"),
        ({"locate": {"at": [0, 0]}}, "roi.locate.template: missing"),
        ({"locate": {"template": "t.png"}}, "roi.locate.at: missing"),
        ({"locate": {"template": "t.png", "at": [1]}}, "roi.locate.at: got [1], expected x and y"),
        ({"locate": {"template": "t", "at": [1, 1], "turn_deg": 16}}, "roi.locate.turn_deg: got 16, expected 0 to 15"),
        ({"perspective": {**FLAT, "width_px": 49}}, "roi.perspective.width_px: got 49, but that side is 100 px long"),
        ({"perspective": {**FLAT, "height_px": 39}}, "roi.perspective.height_px: got 39, but that side is 80 px long"),
        ({"mask": {"polygons": []}}, "roi.mask.polygons: got 0, expected 1 to 50"),
        ({"mask": {"polygons": [[[0, 0], [1, 1]]]}}, "roi.mask.polygons[0]: got 2 corners, expected 3 to 64"),
        ({"mask": {"polygons": [[[0, 0], [1, 1], [2]]]}}, "expected 3 to 64 of the form [x, y]"),
        ({"mask": {"polygons": [[[0, 0], [9, 0], [9, 9]]], "grey": 256}}, "roi.mask.grey: got 256, expected 0 to 255"),
    ],
)  # fmt: skip
def test_what_is_no_region_is_refused(roi: Any, words: str) -> None:
    """With the key, what was got and what is expected."""
    with pytest.raises(ConfigError) as caught:
        read(roi)

    assert words in caught.value.message
    assert caught.value.message.startswith("/etc/line1.yaml: ")
