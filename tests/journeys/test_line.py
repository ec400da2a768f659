"""A part from the camera to the plant, with everything real: files, engine, journal, broker, process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from agent.cameras import decode_image
from agent.journal import Journal
from agent.messages import MAX_VERDICT_BYTES
from tests.kit.broker import Listener, Mosquitto
from tests.kit.pictures import encoded, textured
from tests.kit.station import ROOT, AgentProcess, make_parts, make_station
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.mosquitto


def _verdicts(listener: Listener) -> list[dict[str, Any]]:
    return [json.loads(m.payload) for m in listener.messages("/verdict")]


def test_every_picture_gets_exactly_one_verdict_and_every_flagged_one_its_picture(tmp_path: Path) -> None:
    """The must-show of the line in small: names, decisions, order, pictures, hashes."""
    names = make_parts(tmp_path / "parts", 24)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        config = make_station(tmp_path, port=broker.port)
        with AgentProcess(config) as agent:
            assert agent.wait() == 0, agent.log()
        plant.wait_for(lambda ms: len(ms) >= 24, topic_end="/verdict")
        verdicts = _verdicts(plant)
        images = {m.topic: m.payload for m in plant.messages() if "/image/" in m.topic}

    assert [v["part"] for v in verdicts] == names
    assert [v["rec"] for v in verdicts] == list(range(1, 25))
    assert [v["decision"] for v in verdicts[:3]] == ["ok", "defect", "defect"]
    assert [v["class"] for v in verdicts[:3]] == ["good", "scratch", "stain"]
    assert all(len(json.dumps(v)) < MAX_VERDICT_BYTES for v in verdicts)
    flagged = [v for v in verdicts if v["decision"] != "ok"]
    assert all(v["image"] is None for v in verdicts if v["decision"] == "ok")
    assert {v["image"]["topic"] for v in flagged} == set(images)
    for verdict in flagged:
        payload = images[verdict["image"]["topic"]]
        assert hashlib.sha256(payload).hexdigest() == verdict["image"]["sha256"]
        assert decode_image(payload).shape == (40, 40, 3)


def test_pictures_that_cant_be_decoded_become_error_verdicts_with_the_reason(tmp_path: Path) -> None:
    """A fault is `error` with its reason, never silence and never ok; the parts behind it are judged."""
    parts = tmp_path / "parts"
    make_parts(parts, 2)
    (parts / "a_truncated.jpg").write_bytes(encoded(textured(200, 200), ".jpg")[:-900])
    (parts / "b_empty.png").write_bytes(b"")
    (parts / "c_text.jpg").write_text("not a picture")
    (parts / "notes.txt").write_text("left alone")
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        with AgentProcess(make_station(tmp_path, port=broker.port)) as agent:
            assert agent.wait() == 0, agent.log()
        plant.wait_for(lambda ms: len(ms) >= 5, topic_end="/verdict")
        verdicts = {v["part"]: v for v in _verdicts(plant)}

    errors = {part: v["reason"] for part, v in verdicts.items() if v["decision"] == "error"}
    assert sorted(errors) == ["a_truncated.jpg", "b_empty.png", "c_text.jpg"]
    assert all(reason.startswith("capture: ") for reason in errors.values())
    assert verdicts["part_0000.png"]["decision"] == "ok"
    assert {v["code"] for part, v in verdicts.items() if part in errors} == {4}
    assert "notes.txt" not in verdicts


def test_a_broker_that_is_away_at_the_start_delays_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """The line judges at its own pace; the messages wait on disk and go out when the broker comes."""
    make_parts(tmp_path / "parts", 30)
    broker = Mosquitto(tmp_path)
    config = make_station(tmp_path, port=broker.port, camera={"resume": True})
    with AgentProcess(config) as agent:
        assert agent.wait() == 0, agent.log()
    with Journal.open_readonly(tmp_path / "state") as journal:
        assert journal.stats().last_rec == 30
        assert journal.stats().outbox >= 30

    with broker, Listener(broker.port) as plant, AgentProcess(config) as agent:
        assert agent.wait() == 0, agent.log()
        plant.wait_for(lambda ms: len(ms) >= 30, topic_end="/verdict")
        recs = [v["rec"] for v in _verdicts(plant)]

    assert recs == list(range(1, 31))


def test_sigterm_drains_says_offline_and_leaves(tmp_path: Path) -> None:
    """systemd's stop is orderly: the part at hand is judged, nothing waits that could go out, status says offline."""
    make_parts(tmp_path / "parts", 2_000)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        with AgentProcess(make_station(tmp_path, port=broker.port, camera={"rate_hz": 50})) as agent:
            plant.wait_for(lambda ms: len(ms) >= 5, topic_end="/verdict")
            code = agent.terminate()
        plant.wait_for(lambda ms: bool(ms) and json.loads(ms[-1].payload)["state"] == "offline", topic_end="/status")
        with Journal.open_readonly(tmp_path / "state") as journal:
            recorded, waiting = journal.stats().last_rec, journal.stats().outbox
        plant.wait_for(lambda ms: len(ms) >= recorded, topic_end="/verdict")

    assert code == 0, agent.log()
    assert waiting == 0
    assert [v["rec"] for v in _verdicts(plant)] == list(range(1, recorded + 1))


def test_the_will_says_offline_when_the_agent_is_killed(tmp_path: Path) -> None:
    """`kill -9` can't say goodbye: the broker does it, retained, so that a late subscriber sees it too."""
    make_parts(tmp_path / "parts", 2_000)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        with AgentProcess(make_station(tmp_path, port=broker.port, camera={"rate_hz": 50})) as agent:
            plant.wait_for(lambda ms: len(ms) >= 3, topic_end="/verdict")
            agent.kill()
        plant.wait_for(lambda ms: bool(ms) and json.loads(ms[-1].payload)["state"] == "offline", topic_end="/status")
        with Listener(broker.port, f"{ROOT}/status") as late:
            (status,) = late.wait_for(lambda ms: len(ms) >= 1)

    assert status.retain
    assert json.loads(status.payload)["state"] == "offline"


def test_a_second_run_over_the_same_folder_judges_nothing_twice(tmp_path: Path) -> None:
    """One verdict per part: a restart goes on where the journal ends."""
    make_parts(tmp_path / "parts", 10)
    config = make_station(tmp_path, port=None)
    for arguments in (["--max-parts", "4"], [], []):
        with AgentProcess(config, arguments) as agent:
            assert agent.wait() == 0, agent.log()

    with Journal.open_readonly(tmp_path / "state") as journal:
        parts = [v.part for v in journal.read()]
    assert parts == [f"part_{i:04}.png" for i in range(10)]


def test_two_agents_never_share_a_state_directory(tmp_path: Path) -> None:
    """The second one is refused in a sentence; the first goes on."""
    make_parts(tmp_path / "parts", 2_000)
    config = make_station(tmp_path, port=None, camera={"rate_hz": 20})
    with AgentProcess(config) as first:
        wait_until(lambda: '"verdict"' in first.log(), 30)
        with AgentProcess(config) as second:
            code = second.wait()
        assert first.process.poll() is None

    assert code in (1, 2)
    assert "Traceback" not in first.log()


def test_two_cameras_look_at_each_part_and_the_worse_view_decides(tmp_path: Path) -> None:
    """Joined by name; a part that one camera has not seen is an error that names it."""
    names = make_parts(tmp_path / "parts", 4)
    make_parts(tmp_path / "left", 1)  # of which the first is good: part_0000
    for name in names[1:3]:
        (tmp_path / "left" / name).write_bytes((tmp_path / "left" / names[0]).read_bytes())
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        config = make_station(
            tmp_path,
            port=broker.port,
            views=[{"name": "left", "camera": {"kind": "folder", "name": "left", "path": str(tmp_path / "left")}}],
        )
        with AgentProcess(config) as agent:
            assert agent.wait() == 0, agent.log()
        plant.wait_for(lambda ms: len(ms) >= 4, topic_end="/verdict")
        verdicts = _verdicts(plant)

    assert [v["part"] for v in verdicts] == names
    assert [v["decision"] for v in verdicts] == ["ok", "defect", "defect", "error"]
    assert [[view["decision"] for view in v["views"]] for v in verdicts[:2]] == [["ok", "ok"], ["defect", "ok"]]
    assert verdicts[3]["reason"].startswith("capture: view left: ")
