"""`defect-agent check` on the line itself: cores, trigger, fast outputs, where the part lies."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import cv2
import pytest

from agent.checks import check_station
from agent.config import AgentConfig, config_from_mapping, lag_ms_of
from agent.errors import ConfigError
from tests.kit.broker import free_port
from tests.kit.pictures import textured
from tests.kit.station import make_parts, make_station


def findings(folder: Path, **changes: Any) -> dict[str, tuple[str, str]]:
    """Subject to level and text."""
    make_parts(folder / "parts", 1)
    config = make_station(folder, port=None, **changes)
    return {found.subject: (found.level, found.text) for found in check_station(config)}


def test_a_line_that_fits_is_said_to(tmp_path: Path) -> None:
    """What waits for what, and who hears results."""
    port = free_port()
    found = findings(
        tmp_path, trigger={"kind": "tcp", "port": port}, outputs={"tcp": {"port": port}}, engine={"threads": 1}
    )

    assert found["pace"] == ("ok", f"2 threads of engine and cameras on {len(os.sched_getaffinity(0))} cores")
    assert found["trigger"] == ("ok", "tcp; fast results over tcp")
    assert found["camera"][0] == "ok"


def test_an_engine_with_more_threads_than_cores_is_a_warning(tmp_path: Path) -> None:
    """It would wait for itself."""
    found = findings(tmp_path, engine={"threads": 2}, line={"pin_cores": [min(os.sched_getaffinity(0))]})

    assert found["pace"] == (
        "warn",
        "3 threads of engine and cameras on 1 cores of their own: the engine waits for itself",
    )


def test_a_core_that_is_not_there_fails(tmp_path: Path) -> None:
    """At the check, and not at the first part."""
    level, text = findings(tmp_path, line={"pin_cores": [1_000]})["pace"]

    assert level == "fail"
    assert "line.pin_cores: got 1000" in text


def test_an_address_that_somebody_has_fails(tmp_path: Path) -> None:
    """Another agent, or another program."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        level, text = findings(tmp_path, trigger={"kind": "tcp", "port": taken.getsockname()[1]})["trigger"]

    assert level == "fail"
    assert "127.0.0.1" in text


def test_a_check_gives_lines_and_addresses_back(tmp_path: Path) -> None:
    """The agent that is started after it needs them."""
    port = free_port()
    for _ in range(2):
        found = findings(tmp_path, trigger={"kind": "tcp", "port": port}, outputs={"tcp": {"port": port}})

        assert found["trigger"][0] == "ok"


@pytest.mark.parametrize("is_there", [True, False])
def test_the_part_is_looked_for_where_the_configuration_says(tmp_path: Path, is_there: bool) -> None:
    """With a template, the first picture tells whether it fits."""
    picture = textured(160, 120)
    piece = picture[30:70, 40:90] if is_there else textured(50, 40, seed=8)
    cv2.imwrite(str(tmp_path / "piece.png"), piece)
    (tmp_path / "one").mkdir()
    cv2.imwrite(str(tmp_path / "one" / "part.png"), picture)
    roi = {"locate": {"template": str(tmp_path / "piece.png"), "at": [40, 30]}}
    level, text = findings(tmp_path, roi=roi, camera={"path": str(tmp_path / "one")})["camera"]

    assert level == ("ok" if is_there else "warn"), text


def test_a_triggered_part_may_not_wait_for_its_frame_longer_than_the_watchdog_does(tmp_path: Path) -> None:
    """A slow camera is an error verdict; it must not look like a line that is stuck, and have it killed."""
    raw: dict[str, Any] = {
        "station": "acme/cam1",
        "state_dir": "state",
        "bundle": "x.defect",
        "camera": {"kind": "opencv", "source": "rtsp://127.0.0.1/x", "read_timeout_ms": 9_000, "latency_ms": 500},
        "trigger": {"kind": "interval", "period_ms": 100, "delay_ms": 600},
    }
    with pytest.raises(ConfigError, match=r"watchdog.stuck_s: got 10, expected at least 10\.1"):
        config_from_mapping(AgentConfig, raw, source=tmp_path / "station.yaml")

    raw["watchdog"] = {"stuck_s": 11}
    assert config_from_mapping(AgentConfig, raw, source=tmp_path / "station.yaml").watchdog.stuck_s == 11


STREAMS = [
    {"kind": "opencv", "source": "rtsp://127.0.0.1:1/x"},
    {"kind": "gstreamer", "pipeline": "rtspsrc location=rtsp://127.0.0.1:1/x ! decodebin"},
    {"kind": "gstreamer", "pipeline": "udpsrc port=5000 ! application/x-rtp ! rtph264depay ! decodebin"},
    {"kind": "gstreamer", "pipeline": "uridecodebin uri=http://127.0.0.1:1/x"},
    {"kind": "gstreamer", "pipeline": "somebodyssrc ! videoconvert"},
]


@pytest.mark.parametrize("camera", STREAMS, ids=["opencv", "rtsp", "udp", "http", "unknown"])
def test_a_stream_whose_delay_nobody_stated_is_refused_under_a_trigger(tmp_path: Path, camera: dict[str, str]) -> None:
    """The delay decides whose picture a part gets; a default is a guess."""
    raw: dict[str, Any] = {"station": "a/b", "state_dir": "s", "bundle": "b.defect", "camera": camera}
    source = tmp_path / "station.yaml"
    free = config_from_mapping(AgentConfig, raw, source=source)
    raw["trigger"] = {"kind": "tcp", "port": free_port()}
    with pytest.raises(ConfigError, match=r"camera\.latency_ms: missing") as refused:
        config_from_mapping(AgentConfig, raw, source=source)
    raw["camera"] = {**camera, "latency_ms": 350.0}
    stated = config_from_mapping(AgentConfig, raw, source=source)

    assert lag_ms_of(free.camera) == 100  # type: ignore[arg-type]
    assert lag_ms_of(stated.camera) == 350  # type: ignore[arg-type]
    assert "stopwatch" in str(refused.value.hint)


@pytest.mark.parametrize("source", ["v4l2src device=/dev/video0", "libcamerasrc", "nvarguscamerasrc sensor-id=1"])
def test_a_camera_on_this_machine_needs_no_stated_delay(tmp_path: Path, source: str) -> None:
    """A frame at ten per second covers exposure, readout and transfer."""
    raw: dict[str, Any] = {
        "station": "a/b",
        "state_dir": "s",
        "bundle": "b.defect",
        "camera": {"kind": "gstreamer", "pipeline": f"{source} ! videoconvert"},
        "trigger": {"kind": "tcp"},
    }
    config = config_from_mapping(AgentConfig, raw, source=tmp_path / "station.yaml")

    assert lag_ms_of(config.camera) == 100  # type: ignore[arg-type]


def test_the_watchdog_s_patience_covers_the_strobe_s_settling(tmp_path: Path) -> None:
    """A strobe that is lit late moves the exposure by as much."""
    raw: dict[str, Any] = {
        "station": "a/b",
        "state_dir": "s",
        "bundle": "b.defect",
        "camera": {"kind": "opencv", "source": "0", "read_timeout_ms": 9_000},
        "trigger": {"kind": "tcp", "delay_ms": 600},
        "outputs": {"settle_ms": 500},
    }
    with pytest.raises(ConfigError, match=r"watchdog.stuck_s: got 10, expected at least 10\.2"):
        config_from_mapping(AgentConfig, raw, source=tmp_path / "station.yaml")
