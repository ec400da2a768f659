"""Acceptance as a person meets it: what the device is held to, what is written, and what `run` makes of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.acceptance.file import ACCEPTED, acceptances_in, refusals_in
from agent.acceptance.replay import GoldenReplay
from agent.bundle import Golden, Tensor, golden_files, golden_outputs
from agent.config import EngineConfig, PolicyConfig
from agent.engines import open_engine
from agent.errors import EngineError
from tests.kit.commands import Ran, run_command
from tests.kit.goldens import confused_classifier, golden_bundle
from tests.kit.models import classifier
from tests.kit.spots import dark_picture, make_detector, plant
from tests.kit.station import AgentProcess, make_parts, make_station


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """A configuration with a bundle that has twelve goldens."""
    make_parts(tmp_path / "parts", 4)
    config = make_station(tmp_path, port=None)
    golden_bundle(tmp_path)
    return config


def confuse(config: Path) -> None:
    """Put a bundle in place whose engine answers otherwise than its goldens say: two thirds of them."""
    golden_bundle(config.parent, graph=confused_classifier(), reference=classifier())


def accept(config: Path, *arguments: object) -> Ran:
    return run_command("agent.cli.accept", "--config", config, "--runs", 20, "--json", *arguments)


def configure(config: Path, **sections: Any) -> None:
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **sections}))


def state(config: Path, name: str) -> Path:
    return config.parent / "state" / name


def refused(config: Path) -> list[Path]:
    return sorted((config.parent / "state").glob("acceptance.refused*"))


def test_an_engine_that_does_as_at_the_build_is_accepted_with_all_that_was_seen(station: Path) -> None:
    """Exit 0, one document, and the same in the state directory."""
    ran = accept(station)

    assert ran.code == 0, ran.err
    assert ran.json["accepted"] is True
    assert (ran.json["goldens"]["n"], ran.json["goldens"]["changed"]) == (12, 0)
    assert ran.json["goldens"]["changed_upper_95"] == pytest.approx(1 - 0.05 ** (1 / 12), abs=1e-6)
    assert ran.json["difference"]["logits"] == pytest.approx(0, abs=1e-5)
    warm, cold = ran.json["latency_ms"]["warm"], ran.json["latency_ms"]["cold"]
    assert (warm["n"], cold["n"]) == (20, 5)
    assert 0 < warm["p50"] <= warm["p95"] <= warm["p99"] <= warm["worst"]
    assert ran.json["memory"]["process_peak_mb"] > 1
    written = json.loads(state(station, ACCEPTED).read_text())
    assert written["engine"] == ran.json["engine"]
    assert written["goldens"] == ran.json["goldens"]
    assert refused(station) == []


def test_without_json_a_refusal_is_exit_1_too(station: Path) -> None:
    """A script that never asks for JSON must see it."""
    confuse(station)
    ran = run_command("agent.cli.accept", "--config", station, "--runs", 20)

    assert ran.code == 1
    assert "REFUSED   8 of 12 golden verdicts changed" in ran.out
    assert f"refused: {refused(station)[0]}" in ran.out


def test_without_json_a_person_reads_the_same_in_lines(station: Path) -> None:
    """Twelve goldens prove 22.1 %, and that is said: not that nothing will change."""
    ran = run_command("agent.cli.accept", "--config", station, "--runs", 20)

    assert ran.code == 0
    assert "12, 0 changed; at most 22.1% of all verdicts (95 % bound)" in ran.out
    assert "warm      p50 " in ran.out
    assert f"accepted: {state(station, ACCEPTED)}" in ran.out


def test_an_engine_that_answers_otherwise_is_refused_and_does_not_run(station: Path) -> None:
    """Exit 1, which goldens and how; `run` refuses it in the same words, and what was accepted before stays."""
    assert accept(station).code == 0
    before = state(station, ACCEPTED).read_bytes()
    confuse(station)
    ran = accept(station)
    with AgentProcess(station) as agent:
        code = agent.wait()

    assert ran.code == 1
    assert ran.json["accepted"] is False
    assert ran.json["goldens"]["changed"] == 8
    (problem,) = ran.json["problems"]
    assert (
        "8 of 12 golden verdicts changed, allowed are 0: golden/000.png: defect scratch, at the build ok good"
        in problem
    )
    assert state(station, ACCEPTED).read_bytes() == before
    assert len(refused(station)) == 1
    assert code == 2
    assert problem in agent.log()
    assert "defect-agent accept" in agent.log()


def test_what_was_refused_runs_after_it_was_accepted_with_other_limits(station: Path) -> None:
    """The person who knows better has the last word, and it stands in the file."""
    confuse(station)
    no = accept(station)
    yes = accept(station, "--max-changed", 8)
    with AgentProcess(station) as agent:
        assert agent.wait() == 0, agent.log()

    assert (no.code, yes.code) == (1, 0)
    assert refused(station) == []
    assert json.loads(state(station, ACCEPTED).read_text())["limits"]["max_changed"] == 8


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (("--max-p99-ms", "0.001"), r"p99 is \d+\.\d\d ms, allowed are 0.001 ms"),
        (
            ("--max-changed-bound", "0.2"),
            r"up to 22.1% of the verdicts may change \(95 % bound",
        ),
    ],
)
def test_each_limit_refuses_in_words(station: Path, limits: tuple[str, ...], words: str) -> None:
    """The number that was got, and the one that is allowed."""
    ran = accept(station, *limits)

    assert ran.code == 1
    (problem,) = ran.json["problems"]
    assert re.search(words, problem)


def test_limits_come_from_the_configuration(station: Path) -> None:
    """As a plant sets them once."""
    configure(station, acceptance={"max_p99_ms": 0.001})

    assert accept(station).code == 1
    assert accept(station, "--max-p99-ms", 10_000).code == 0


def test_the_next_bundle_is_accepted_while_the_line_has_another(station: Path) -> None:
    """--bundle: the running one's acceptance stays valid, also where one is required, until the bundle is changed."""
    folder = station.parent / "state"
    now, following = golden_bundle(station.parent), golden_bundle(station.parent / "next.defect", version="2.0.0")
    assert accept(station).code == 0
    assert accept(station, "--bundle", following.path).code == 0

    assert all(acceptances_in(folder).of(bundle.digest) for bundle in (now, following))
    assert acceptances_in(folder).of("0" * 64) == ()
    configure(station, acceptance={"required": True})
    with AgentProcess(station) as agent:
        assert agent.wait() == 0, agent.log()


def test_a_refusal_of_the_next_bundle_does_not_stop_the_line_that_has_another(station: Path) -> None:
    """Nor does the acceptance of one end the refusal of the other."""
    bad = golden_bundle(
        station.parent / "bad.defect", version="3.0.0", graph=confused_classifier(), reference=classifier()
    )
    assert accept(station, "--bundle", bad.path).code == 1
    assert accept(station).code == 0
    with AgentProcess(station) as agent:
        assert agent.wait() == 0, agent.log()

    assert refusals_in(station.parent / "state").of(bad.digest) != ()


def test_a_bundle_without_goldens_can_not_be_accepted(tmp_path: Path) -> None:
    """Nothing was proven."""
    make_parts(tmp_path / "parts", 1)
    ran = accept(make_station(tmp_path, port=None))

    assert ran.code == 2
    assert "holds no golden pictures" in ran.err


def test_a_line_that_requires_an_acceptance_does_not_start_without_one(station: Path) -> None:
    """The plant's rule; with it in hand the line runs."""
    configure(station, acceptance={"required": True})
    with AgentProcess(station) as agent:
        assert agent.wait() == 2
        assert "was not accepted on this device" in agent.log()
    assert accept(station).code == 0
    with AgentProcess(station) as agent:
        assert agent.wait() == 0, agent.log()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 2}', "\x00\xff", '{"schema": 1, "accepted": 1}'])
def test_a_damaged_acceptance_is_named_and_no_reason_to_stand_still(station: Path, text: str) -> None:
    """`required` makes it one."""
    assert accept(station).code == 0
    state(station, ACCEPTED).write_text(text, encoding="latin-1")
    found = acceptances_in(station.parent / "state")

    assert found.found == ()
    assert "acceptance.json: is damaged" in found.damaged[0].error.message


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *keys, last = path.split(".")
        for key in keys:
            document = document[key]
        document[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(_set("accepted", value) for value in (False, 1, "true", None)),
        _set("problems", ["p99 is too long"]),
        _set("problems", ""),
        _set("goldens.answers", []),
        _set("goldens.n", 13),
        *(_set("latency_ms.warm.p50", value) for value in (None, math.nan, -1, 0, math.inf, True, "2", 10**400)),
        _set("latency_ms.cold.p50", None),
        _set("identity", {}),
        _set("identity", {"kind": "onnxruntime", "threads": 1}),
        _set("identity", {"kind": "trt"}),
        _set("engine", "\ud800"),
        _set("schema", 1),
        _set("fell_back", True),
        _set("fell_back", None),
        _set("goldens.changed", 12),
        _set("goldens.changed", False),
        _set("latency_ms.warm.p99", math.nan),
        lambda document: _set("changed", None)(document["goldens"]["answers"][0]),
        lambda document: _set("verdict", "defect stain")(document["goldens"]["answers"][0]),
    ],
)
def test_an_acceptance_that_can_not_be_meant_is_damaged(
    station: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """`accepted: false` is none, nothing replayed proves nothing, and a time that is no time is no measure."""
    assert accept(station).code == 0
    path = state(station, ACCEPTED)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    found = acceptances_in(path.parent)

    assert (len(found.found), len(found.damaged)) == (0, 1)
    configure(station, acceptance={"required": True})
    ran = run_command("agent.cli.check", "--config", station, "--json", "--no-broker")
    assert next(finding for finding in ran.json if finding["subject"] == "accept")["level"] == "fail"


def _keep(n: int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["goldens"].update(answers=document["goldens"]["answers"][:n], n=n)

    return change


@pytest.mark.parametrize(
    ("change", "limits", "words"),
    [
        (_keep(1), {}, "1 of its 12 golden pictures were replayed"),
        (_set("graph", "none"), {}, "golden pictures were replayed"),
        (_set("latency_ms.warm.p99", 9.5), {"max_p99_ms": 8}, "p99 was 9.50 ms, allowed are 8 ms"),
        (lambda _: None, {"max_changed_bound": 0.1}, "up to 22.1% of the verdicts may change, allowed are 10.0%"),
    ],
    ids=["one golden", "no graph", "slow", "bound"],
)
def test_an_acceptance_that_falls_short_of_the_configuration_is_none_where_one_is_required(
    station: Path, change: Callable[[dict[str, Any]], None], limits: dict[str, Any], words: str
) -> None:
    """All goldens, and the station's limits as they are now."""
    assert accept(station).code == 0
    path = state(station, ACCEPTED)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    configure(station, acceptance={"required": True, **limits})
    ran = run_command("agent.cli.check", "--config", station, "--json", "--no-broker")
    with AgentProcess(station) as agent:
        code = agent.wait()

    found = next(finding for finding in ran.json if finding["subject"] == "accept")
    assert (found["level"], words in found["text"]) == ("fail", True), found
    assert (code, words in agent.log()) == (2, True)


def test_limits_of_the_command_line_do_not_count_where_an_acceptance_is_required(station: Path) -> None:
    """The plant set them in the configuration; accept says so at once, and there they can be changed."""
    confuse(station)
    configure(station, acceptance={"required": True})
    ran = accept(station, "--max-changed", 8)
    with AgentProcess(station) as agent:
        code = agent.wait()

    assert ran.code == 0
    assert "does not start with it: 8 of 12 golden verdicts changed" in ran.err
    assert (code, "8 golden verdicts changed, allowed are 0" in agent.log()) == (2, True)
    configure(station, acceptance={"required": True, "max_changed": 8})
    with AgentProcess(station) as agent:
        assert agent.wait() == 0, agent.log()


def test_a_state_directory_that_was_copied_to_another_board_is_not_accepted_there(station: Path) -> None:
    """The same software on another processor has other times, and may have other answers."""
    assert accept(station).code == 0
    path = state(station, ACCEPTED)
    document = json.loads(path.read_text())
    assert {"machine", "board"} <= document["identity"].keys()
    document["identity"].update(machine="riscv64", board="VisionFive 2")
    path.write_text(json.dumps(document))
    configure(station, acceptance={"required": True})
    with AgentProcess(station) as agent:
        code = agent.wait()

    assert code == 2
    assert "was riscv64; board is " in agent.log()
    assert "was VisionFive 2" in agent.log()


def test_run_with_a_damaged_acceptance_runs_and_logs_it_but_not_where_one_is_required(station: Path) -> None:
    """One law: a part is never lost because software failed."""
    assert accept(station).code == 0
    state(station, ACCEPTED).write_text("{")
    with AgentProcess(station) as agent:
        assert agent.wait() == 0, agent.log()
        assert "acceptance_unreadable" in agent.log()
    configure(station, acceptance={"required": True})
    with AgentProcess(station) as agent:
        assert agent.wait() == 2


def test_check_tells_what_accept_said(station: Path) -> None:
    """A line of its own: not asked, accepted, refused."""

    def told() -> dict[str, str]:
        ran = run_command("agent.cli.check", "--config", station, "--json", "--no-broker")
        return next(finding for finding in ran.json if finding["subject"] == "accept")

    assert "not accepted on this device" in told()["text"]
    accept(station)
    assert told()["level"] == "ok"
    confuse(station)
    accept(station)
    assert told()["level"] == "fail"
    assert "8 of 12 golden verdicts changed" in told()["text"]


def test_the_stations_limits_judge_the_goldens(tmp_path: Path) -> None:
    """What counts is what a part would get: the same outputs, another limit, another verdict on both sides."""
    bundle = golden_bundle(tmp_path, count=3)
    engine = open_engine(bundle, EngineConfig())
    strict = GoldenReplay(bundle, engine, "cpu", PolicyConfig(defect_above=1e-9, review_above=0))
    usual = GoldenReplay(bundle, engine, "cpu", PolicyConfig())

    assert [usual.play(i).verdict for i in range(3)] == ["ok good", "defect scratch", "defect stain"]
    assert strict.play(0).verdict.startswith("defect")
    assert not strict.play(0).changed


def test_an_engine_that_fails_on_a_golden_gives_an_answer_not_a_traceback(tmp_path: Path) -> None:
    """An error verdict is a changed one."""
    bundle = golden_bundle(tmp_path, count=3)
    engine = open_engine(bundle, EngineConfig())
    replay = GoldenReplay(bundle, engine, "cpu", PolicyConfig())
    engine.close()
    answer = replay.play(0)

    assert answer.changed
    assert "is closed" in answer.verdict
    with pytest.raises(EngineError):
        replay.time(0)


def test_a_detectors_goldens_are_judged_by_their_findings(tmp_path: Path) -> None:
    """Decision and class by the policy, and every detection that counts has to be there."""
    image = dark_picture(64, 64)
    plant(image, "scratch", (8, 8, 20, 20), 0.9)
    plain = make_detector(tmp_path)
    engine = open_engine(plain, EngineConfig())
    rgb = image[:, :, ::-1].copy()
    seen: Any = golden_outputs(engine.infer(rgb[None]), plain.manifest)
    moved: Any = {"detections": seen["detections"] + [30, 30, 30, 30, 0, 0]}
    goldens = [
        Golden(file=f"golden/00{i}.png", label="scratch", image=rgb, outputs={"cpu": outputs})
        for i, outputs in enumerate((seen, moved))
    ]
    bundle = make_detector(tmp_path, files=golden_files(goldens))
    replay = GoldenReplay(bundle, engine, "cpu", PolicyConfig())
    same, other = replay.play(0), replay.play(1)

    assert (same.verdict, same.expected, same.changed) == ("defect scratch", "defect scratch", False)
    assert (other.verdict, other.expected) == ("defect scratch", "defect scratch")
    assert other.changed  # found, but somewhere else


class Broken:
    """An engine with a bug of ours in it."""

    name, kind = "broken", "onnxruntime"

    def infer(self, tensor: Tensor) -> Any:
        raise ZeroDivisionError(f"planted, {tensor.ndim}")

    def close(self) -> None:
        """Nothing to free."""


def test_a_bug_of_ours_in_the_engine_does_not_end_the_line_that_replays(tmp_path: Path) -> None:
    """The replay runs on the line's thread."""
    replay = GoldenReplay(golden_bundle(tmp_path, count=1), Broken(), "cpu", PolicyConfig())

    assert replay.play(0).verdict == "error: ZeroDivisionError: planted, 4"


def test_a_running_line_replays_some_goldens_spread_over_all(tmp_path: Path) -> None:
    """They stay in memory; accept takes all."""
    bundle = golden_bundle(tmp_path, count=12)
    engine = open_engine(bundle, EngineConfig())
    some = GoldenReplay(bundle, engine, "cpu", PolicyConfig(), limit=3)
    engine.close()

    assert [golden.file for golden in some.goldens] == ["golden/000.png", "golden/004.png", "golden/008.png"]
    assert len(GoldenReplay(bundle, engine, "cpu", PolicyConfig())) == 12
