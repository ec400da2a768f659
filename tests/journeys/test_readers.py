"""mosquitto_sub, Node-RED and a Python subscriber read what a real agent says, as configs/asyncapi.yaml has it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import ROOT as REPOSITORY
from tests.kit.broker import Listener, Mosquitto
from tests.kit.node_red import NodeRed, why_no_node_red
from tests.kit.publishing import decoded
from tests.kit.station import AgentProcess, make_parts, make_station
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.mosquitto, pytest.mark.skipif(bool(why_no_node_red()), reason=why_no_node_red())]
FLOW = REPOSITORY / "configs" / "nodered" / "flow.json"
VERDICT = REPOSITORY / "configs" / "schemas" / "verdict.json"
LOUD = ["log_type all"]


def test_three_readers_see_the_same_verdicts_as_documented(tmp_path: Path) -> None:
    """Three programs, three JSON parsers, one document; Node-RED's flow sorts by decision and shows the picture."""
    make_parts(tmp_path / "parts", 6)
    (tmp_path / "parts" / "zz_text.jpg").write_text("no picture")
    flow = json.loads(FLOW.read_text())
    schema = jsonschema.Draft202012Validator(json.loads(VERDICT.read_text()))
    with Mosquitto(tmp_path, LOUD) as broker, Listener(broker.port) as plant:
        command = ["mosquitto_sub", "-p", str(broker.port), "-V", "5", "-q", "1", "-C", "7", "-W", "120"]
        command += ["-i", "shell", "-t", "+/+/+/+/+/verdict", "-F", "%t %p"]
        shell = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with NodeRed(tmp_path, flow, broker_port=broker.port) as node_red:
            wait_until(lambda: broker.log().count("Sending SUBACK") >= 5, 60, what="all subscriptions")
            with AgentProcess(make_station(tmp_path, port=broker.port)) as agent:
                assert agent.wait() == 0, agent.log()
            python = [decoded(m) for m in plant.wait_for(lambda ms: len(ms) >= 7, topic_end="/verdict")]
            lines = (shell.communicate(timeout=120)[0] or "").splitlines()
            flagged = [v for v in python if v["decision"] == "defect"]
            wait_until(lambda: len(node_red.shown("alarm")) >= 1, 30, what=f"an alarm: {node_red.log()}")
            wait_until(lambda: len(node_red.shown("defect")) >= len(flagged), 30, what="the defects")
            last = flagged[-1]["image"]
            wait_until(lambda: _digest(node_red, "/defect.jpg") == ("image/jpeg", last["sha256"]), 30, what="a picture")
            by_decision = {name: node_red.shown(name) for name in ("ok", "defect", "review", "alarm")}

    assert len(python) == 7
    for verdict in python:
        schema.validate(verdict)
    assert [json.loads(line.partition(" ")[2]) for line in lines] == python
    assert {line.partition(" ")[0] for line in lines} == {python[0]["station"] + "/verdict"}
    for name in ("ok", "defect", "review"):
        assert by_decision[name] == [_as_javascript(v) for v in python if v["decision"] == name]
    (alarm,) = by_decision["alarm"]
    error = next(v for v in python if v["decision"] == "error")
    assert alarm == f"{error['station']}, part zz_text.jpg: not judged: {error['reason']}"


def _digest(node_red: NodeRed, path: str) -> tuple[str, str]:
    content_type, body = node_red.get(path)
    return content_type, hashlib.sha256(body).hexdigest()


def _as_javascript(value: dict[str, Any]) -> dict[str, Any]:
    """JavaScript's numbers are doubles: what a verdict holds must survive that (`mono_ns` up to 104 days)."""
    return {name: float(each) if isinstance(each, int) else each for name, each in value.items()}
