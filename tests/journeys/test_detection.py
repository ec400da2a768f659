"""A detector on the line, with everything real: files, engine, zones, journal, broker, process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.cameras import decode_image
from agent.marks import COLOURS_BGR
from agent.verdict import Decision
from tests.kit.broker import Listener, Mosquitto
from tests.kit.spots import SPEC, dark_picture, make_detector, plant
from tests.kit.station import AgentProcess, make_station

pytestmark = pytest.mark.mosquitto


def write(path: Path, **spots: tuple[tuple[int, int, int, int], float]) -> None:
    """A part with these spots, 320 x 240."""
    image = dark_picture(320, 240)
    for kind, (box, score) in spots.items():
        plant(image, kind, box, score)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def test_findings_zones_and_boxes_reach_the_plant(tmp_path: Path) -> None:
    """Good, a scratch, a faint stain in a strict zone, the same outside of it, a scratch on an ignored label."""
    parts = tmp_path / "parts"
    parts.mkdir()
    write(parts / "1.png")
    write(parts / "2.png", scratch=((100, 60, 40, 20), 0.9))
    write(parts / "3.png", stain=((10, 15, 20, 15), 0.3))
    write(parts / "4.png", stain=((250, 180, 20, 15), 0.3))
    write(parts / "5.png", scratch=((250, 30, 20, 15), 0.9))
    (parts / "6.png").write_text("not a picture")
    make_detector(tmp_path / "spots.defect", side=320, detection=dataclasses.replace(SPEC, pixel_mm=1.0))
    policy = {
        "pixel_mm": 0.1,
        "zones": [
            {"name": "seal", "box": [0, 0, 80, 60], "defect_above": 0.25},
            {"name": "label", "polygon": [[230, 0], [320, 0], [320, 90], [230, 90]], "ignore": True},
        ],
    }
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant_side:
        config = make_station(tmp_path, port=broker.port, bundle="spots.defect", policy=policy)
        with AgentProcess(config) as agent:
            assert agent.wait() == 0, agent.log()
        plant_side.wait_for(lambda ms: len(ms) >= 6, topic_end="/verdict")
        verdicts = [json.loads(m.payload) for m in plant_side.messages("/verdict")]
        images = {m.topic: decode_image(m.payload) for m in plant_side.messages() if "/image/" in m.topic}

    assert [v["decision"] for v in verdicts] == ["ok", "defect", "defect", "review", "ok", "error"]
    assert [v["class"] for v in verdicts] == [None, "scratch", "stain", "stain", None, None]
    assert [f["zone"] for v in verdicts for f in v["findings"]] == [None, "seal", None]
    assert [f["size_mm"] for v in verdicts for f in v["findings"]] == [4.0, 2.0, 2.0]
    assert verdicts[4]["reason"] == "good: no finding that counts (1 of no severity, too small or ignored)"
    scratch = verdicts[1]
    assert scratch["findings"][0]["box"] == pytest.approx([100, 60, 40, 20], abs=1.4)
    left_side = images[scratch["image"]["topic"]][62:78, 98:103].astype(int).reshape(-1, 3)
    assert (np.abs(left_side - COLOURS_BGR[Decision.DEFECT]).max(axis=1) < 45).any()
