"""The agent is killed at random moments under a flood of triggers: what the PLC was told of is never lost."""

from __future__ import annotations

import collections
import itertools
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.journal import Journal
from tests.kit.broker import free_port
from tests.kit.commands import run_command
from tests.kit.line_plc import LinePlc
from tests.kit.station import AgentProcess, make_parts, make_station

KILLS = 10

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("result", ["decided", "durable"])
def test_every_trigger_that_was_acknowledged_has_one_verdict_whenever_the_agent_is_killed(
    tmp_path: Path, result: str
) -> None:
    """`PART` is a promise: after each restart the part has one verdict, or one is pending; none is ok by a guess."""
    dice, port = random.Random(f"kills {result}"), free_port()
    make_parts(tmp_path / "parts", 4)
    config = make_station(
        tmp_path,
        port=None,
        camera={"loop": True, "resume": False},
        trigger={"kind": "tcp", "port": port, "waiting": 14},
        outputs={"tcp": {"port": port}},
        line={"result": result, "ahead": 1},
        journal={"evidence": {"keep": "none"}},
    )
    said, heard = set[str](), dict[str, str]()
    for life in range(KILLS):
        with AgentProcess(config) as agent, LinePlc(port) as plc:
            assert_kept(said, heard, *known(tmp_path), result=result)  # after the restart, before anything new
            verified = run_command("agent.cli.journal", "verify", "--state", tmp_path / "state", "--json")
            assert verified.code == 0, verified.out
            killer = threading.Timer(dice.uniform(0.05, 1.0), agent.kill)  # the moment is the thing tested
            killer.start()
            window = dice.randint(1, 16)
            for number in itertools.count():
                plc.trigger(f"K{life}-{number}")
                if not answered(plc, agent, number - window):
                    break
            killer.join()
        said |= {line[2] for line in plc.said("PART")}
        heard |= {line[2]: line[3] for line in plc.said("RESULT")}
    with AgentProcess(config) as agent:
        with LinePlc(port):
            pass
        assert agent.terminate() == 0, agent.log()
    with Journal.open_readonly(tmp_path / "state") as journal:
        ledger, faults = journal.ledger(), journal.ledger_faults()

    assert_kept(said, heard, *known(tmp_path), result=result)
    assert (ledger.pending, ledger.closes, faults) == (0, True, [])
    assert len(said) > 100 * KILLS


def known(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The journal's verdicts by part, and how many parts are without one."""
    found: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    with Journal.open_readonly(folder / "state") as journal:
        ledger = journal.ledger()
        for stored in journal.read():
            found[stored.part].append(json.loads(stored.body))
    assert ledger.closes
    return dict(found), ledger.pending


def answered(plc: LinePlc, agent: AgentProcess, count: int) -> bool:
    """Wait until so many results came; False when the agent is dead."""
    while agent.process.poll() is None:
        if plc.results >= count:
            return True
        time.sleep(0.0005)
    return False


def assert_kept(
    said: set[str], heard: dict[str, str], recorded: dict[str, list[dict[str, Any]]], pending: int, *, result: str
) -> None:
    """One verdict for each `PART`, none better than what the PLC heard, none ok without a judged frame."""
    missing = sorted(said - recorded.keys())
    assert len(missing) <= pending, f"PART was said, and nothing is known of {missing[:5]} ({len(missing)} parts)"
    assert not {part: len(all_) for part, all_ in recorded.items() if len(all_) != 1}
    for part, (verdict,) in recorded.items():
        if verdict["decision"] == "ok":
            assert verdict["class"] == "good"
            assert verdict["score"] is not None
            assert verdict["ms"]["infer"] > 0
            assert heard.get(part, "ok") in {"ok", "error"}
    if result == "durable":
        assert {part: recorded[part][0]["decision"] for part in heard if heard[part] != "error"} == {
            part: decision for part, decision in heard.items() if decision != "error"
        }
