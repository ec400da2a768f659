"""The agent's commands as a person or a script meets them: exit codes, one JSON document, remedies."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from agent.cameras import read_image
from tests.kit.broker import Mosquitto, free_port
from tests.kit.bundles import make_bundle
from tests.kit.commands import run_command
from tests.kit.pictures import encoded, flat
from tests.kit.station import AgentProcess, make_parts, make_station
from tests.kit.verdicts import make_part, make_verdict, open_journal


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """A configuration with parts, a bundle and no broker."""
    make_parts(tmp_path / "parts", 8)
    return make_station(tmp_path, port=None)


@pytest.fixture
def judged(station: Path) -> Path:
    """The same after a run: eight verdicts in its journal."""
    with AgentProcess(station) as agent:
        assert agent.wait() == 0, agent.log()
    return station


def test_check_names_each_thing_that_is_wrong_with_its_remedy(tmp_path: Path) -> None:
    """The must-show: a bad set-up, a line each, exit 1; nothing hides behind the first failure."""
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    config = tmp_path / "bad.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "station": "acme/line3",
                "state_dir": str(blocked / "state"),
                "bundle": "absent.defect",
                "camera": {"kind": "folder", "path": "nowhere"},
                "mqtt": {"port": free_port()},
            }
        )
    )
    ran = run_command("agent.cli.check", "--config", config, "--json")

    findings = {f["subject"]: f for f in ran.json}
    assert ran.code == 1
    assert {s for s, f in findings.items() if f["level"] == "fail"} == {"disk", "bundle", "engine", "camera", "broker"}
    assert all(f["remedy"] for f in findings.values() if f["level"] != "ok")


def test_check_of_a_config_with_a_wrong_key_names_the_nearest_one(station: Path) -> None:
    """A typo is the commonest mistake; it must not be guessed around."""
    raw = yaml.safe_load(station.read_text())
    raw["camera"]["rate_hertz"] = 5
    station.write_text(yaml.safe_dump(raw))
    ran = run_command("agent.cli.check", "--config", station)

    assert ran.code == 1
    assert "camera.rate_hertz: unknown key (did you mean camera.rate_hz?)" in ran.out
    assert "→" in ran.out


@pytest.mark.mosquitto
def test_check_of_a_good_station_fails_nothing(tmp_path: Path) -> None:
    """All of it works: engine replays the goldens it has, camera gives a picture, broker answers."""
    make_parts(tmp_path / "parts", 2)
    with Mosquitto(tmp_path) as broker:
        ran = run_command("agent.cli.check", "--config", make_station(tmp_path, port=broker.port), "--json")

    assert ran.code == 0
    assert {f["subject"] for f in ran.json if f["level"] == "ok"} >= {"config", "disk", "bundle", "engine", "camera"}
    assert next(f for f in ran.json if f["subject"] == "broker")["level"] == "ok"


def test_run_of_a_bad_bundle_is_refused_in_one_sentence(station: Path) -> None:
    """One byte changed: no line starts, and nobody sees a traceback."""
    bundle = station.parent / "kit-1.0.0.defect"
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    with AgentProcess(station) as agent:
        code = agent.wait()

    assert code == 2
    assert "kit-1.0.0.defect" in agent.log()
    assert "Try: " in agent.log()
    assert "Traceback" not in agent.log()


def test_run_with_json_prints_one_summary_on_standard_output(judged: Path) -> None:
    """A script reads it; the log goes to standard error."""
    ran = run_command("agent.cli.journal", "stats", "--config", judged, "--json")

    assert ran.code == 0
    assert ran.json["by_decision"] == {"ok": 2, "defect": 6, "review": 0, "error": 0}
    assert ran.json["pending"] == 0


def test_inspect_judges_as_the_line_does_and_draws_it(tmp_path: Path) -> None:
    """Same code, same words; the overlay is a picture that opens."""
    make_parts(tmp_path / "parts", 3)
    bundle = make_bundle(tmp_path)
    overlay = tmp_path / "seen.png"
    scratch = tmp_path / "parts" / "part_0001.png"
    ran = run_command("agent.cli.inspect", scratch, "--bundle", bundle.path, "--overlay", overlay, "--json")

    (seen,) = ran.json
    assert ran.code == 0
    assert (seen["decision"], seen["class"], seen["code"]) == ("defect", "scratch", 2)
    assert "scratch" in seen["reason"]
    assert read_image(overlay).size > 0


def test_inspect_of_a_picture_that_cant_be_read_says_error_and_exits_1(tmp_path: Path) -> None:
    """It is a verdict like any other, and the other pictures are judged."""
    make_parts(tmp_path / "parts", 1)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    ran = run_command(
        "agent.cli.inspect", bad, tmp_path / "parts" / "part_0000.png", "--bundle", make_bundle(tmp_path).path, "--json"
    )

    assert ran.code == 1
    assert [v["decision"] for v in ran.json] == ["error", "ok"]


def test_inspect_of_several_pictures_wants_a_folder_for_overlays(tmp_path: Path) -> None:
    """One file can't hold two pictures."""
    make_parts(tmp_path / "parts", 2)
    pictures = sorted((tmp_path / "parts").iterdir())
    ran = run_command("agent.cli.inspect", *pictures, "--bundle", make_bundle(tmp_path).path, "--overlay", "o.png")

    assert ran.code == 2
    assert "expected a folder" in ran.err


def test_journal_tail_shows_the_last_verdicts_oldest_first(judged: Path) -> None:
    """As `tail` does."""
    ran = run_command("agent.cli.journal", "tail", "-n", "3", "--config", judged)

    assert [line.split()[0] for line in ran.out.splitlines()] == ["6", "7", "8"]
    assert "part_0007.png" in ran.out


def test_journal_export_gives_every_verdict_once(judged: Path, tmp_path: Path) -> None:
    """CSV for a spreadsheet, JSON lines for a program; both hold the same records."""
    table = tmp_path / "out.csv"
    assert run_command("agent.cli.journal", "export", "--config", judged, "--out", table).code == 0
    lines = run_command(
        "agent.cli.journal", "export", "--config", judged, "--format", "jsonl", "--from", "3", "--to", "5"
    )

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rec"]) for row in rows] == list(range(1, 9))
    assert [json.loads(line)["rec"] for line in lines.out.splitlines()] == [3, 4, 5]
    assert rows[1]["decision"] == "defect"


def test_a_late_verdict_is_marked_where_people_look(tmp_path: Path) -> None:
    """The line was told `error` at the deadline; who reads the record must not take it for an `ok` like the others."""
    with contextlib.closing(open_journal(tmp_path / "state")) as journal:
        for sequence, late_ms in ((1, None), (2, 12.34)):
            part = make_part(sequence)
            journal.trigger(part)
            journal.record(dataclasses.replace(make_verdict(part), late_ms=late_ms))
    first, second = run_command("agent.cli.journal", "tail", "--state", tmp_path / "state").out.splitlines()
    table = run_command("agent.cli.journal", "export", "--state", tmp_path / "state").out

    assert ("late" in first, "(late by 12.3 ms: the line was told error)" in second) == (False, True)
    assert [float(row["late_ms"] or 0) for row in csv.DictReader(table.splitlines())] == [
        0,
        12.3,
    ]  # messages hold tenths


def test_journal_export_disarms_formulas(tmp_path: Path) -> None:
    """A part id comes from outside; a spreadsheet must not run it."""
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "=cmd.png").write_bytes(encoded(flat(0)))
    config = make_station(tmp_path, port=None)
    with AgentProcess(config) as agent:
        assert agent.wait() == 0, agent.log()
    ran = run_command("agent.cli.journal", "export", "--config", config)

    assert "'=cmd.png" in ran.out


def test_journal_of_a_station_that_never_ran_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """No empty file appears."""
    ran = run_command("agent.cli.journal", "stats", "--state", tmp_path / "nowhere")

    assert ran.code in (1, 2)
    assert "nowhere" in ran.err
    assert not (tmp_path / "nowhere").exists()


def test_bundle_show_verifies_and_describes(tmp_path: Path) -> None:
    """People and scripts read the same facts."""
    bundle = make_bundle(tmp_path)
    shown = run_command("agent.cli.bundle", "show", bundle.path)
    document = run_command("agent.cli.bundle", "show", bundle.path, "--json").json

    assert "all verified" in shown.out
    assert document["digest"] == bundle.digest
    assert bundle.digest in shown.out


@pytest.mark.parametrize("count", ["0", "-1", "2.5", "many", "nan"])
def test_a_count_that_is_none_is_refused_with_its_bounds(count: str, tmp_path: Path) -> None:
    """Nothing starts, and the bounds are said."""
    ran = run_command("agent.cli.run", "--config", tmp_path / "c.yaml", f"--max-parts={count}")

    assert ran.code == 2
    assert "expected a whole number from 1" in ran.err


def test_export_never_writes_into_the_state_directory(judged: Path) -> None:
    """A slip of the keyboard must not cost the journal."""
    database = judged.parent / "state" / "journal.db"
    before = database.read_bytes()
    ran = run_command("agent.cli.journal", "export", "--config", judged, "--out", database)

    assert ran.code == 2
    assert database.read_bytes() == before


@pytest.mark.parametrize("target", ["part_0001.png", "kit-1.0.0.defect", "seen.jpg"])
def test_an_overlay_never_takes_the_place_of_a_picture_or_a_bundle(tmp_path: Path, target: str) -> None:
    """The inspected picture is evidence."""
    make_parts(tmp_path, 2)
    bundle, scratch = make_bundle(tmp_path), tmp_path / "part_0001.png"
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ran = run_command("agent.cli.inspect", scratch, "--bundle", bundle.path, "--overlay", tmp_path / target)

    assert ran.code == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_check_and_run_refuse_the_same_limits_in_the_same_words(station: Path) -> None:
    """A limit in the configuration is compared with the one of the bundle that it stands beside."""
    raw = yaml.safe_load(station.read_text())
    raw["policy"] = {"review_above": 0.9}
    station.write_text(yaml.safe_dump(raw))
    words = "policy.review_above: got 0.9, expected at most policy.defect_above (0.5)"
    ran = run_command("agent.cli.check", "--config", station)
    with AgentProcess(station) as agent:
        code = agent.wait()

    assert ran.code == 1
    assert words in ran.out
    assert code == 2
    assert words in agent.log()


def test_a_state_directory_that_is_a_file_is_the_users_mistake(station: Path) -> None:
    """Exit 2 and a remedy; exit 1 is for a disk that fails during the run."""
    (station.parent / "state").write_text("in the way")
    with AgentProcess(station) as agent:
        code = agent.wait()

    assert code == 2
    assert "check state_dir" in agent.log()
