"""The demo, in this environment: the whole way works, what is missing is said, and nothing is left behind."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from paho.mqtt import publish

from tests.kit.broker import Listener, Mosquitto, free_port
from tests.kit.contract import breaches
from tests.kit.waiting import wait_until

pytest.importorskip("amqtt", reason="needs amqtt: pip install -e '.[demo]'")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "tools" / "demo_run.py")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose temporary folder is ours, so that what is left behind is seen."""
    temporary = tmp_path / "temporary folder"
    temporary.mkdir()
    yield {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}

    assert list(temporary.iterdir()) == []
    assert _processes(temporary) == []


def _processes(folder: Path) -> list[str]:
    """Command lines of processes that name a folder, as the agent does with its configuration."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command:
                found.append(command)
    return found


def _run(place: dict[str, str], cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments], capture_output=True, text=True, check=False, timeout=300, env=place, cwd=cwd
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--parts", "0"), "whole number from 1"),
        (("--parts", "many"), "whole number from 1"),
        (("--broker", "nowhere"), "expected HOST:PORT"),
        (("--seconds", "-1"), "whole number from 1"),
    ],
)
def test_a_wrong_option_is_refused_in_one_sentence(
    place: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    """Before anything is made."""
    result = _run(place, tmp_path, *arguments)

    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_is_in_use_is_not_written_into(place: dict[str, str], tmp_path: Path) -> None:
    """--keep on the wrong folder must cost nobody anything."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")

    result = _run(place, tmp_path, "--keep", "mine", "--parts", "1")

    assert result.returncode == 2
    assert "is not empty" in result.stderr
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_broker_that_does_not_answer_is_named(place: dict[str, str], tmp_path: Path) -> None:
    """With how to get one."""
    result = _run(place, tmp_path, "--parts", "1", "--broker", f"127.0.0.1:{free_port()}")

    assert result.returncode == 2
    assert "no MQTT broker answers on 127.0.0.1:" in result.stderr
    assert "Traceback" not in result.stderr


def test_each_part_comes_back_as_one_verdict_and_everything_is_kept_on_request(
    place: dict[str, str], tmp_path: Path
) -> None:
    """The first thing that anybody sees of this project."""
    result = _run(place, tmp_path, "--parts", "20", "--keep", "kept folder", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    kept = tmp_path / "kept folder"

    assert (document["parts"], document["verdicts"], document["missing"]) == (20, 20, [])
    assert sum(document["by_decision"].values()) == 20
    assert document["images"] == 20 - document["by_decision"]["ok"]
    assert document["accuracy"] >= 0.9
    assert document["drop_points"] <= 1
    assert set(document["latency_ms"]) == {"p50", "p99"}
    assert document["fps"] > 0
    assert Path(document["contact_sheet"]) == kept / "contact-sheet.png"
    _check_kept(kept, document)


def _check_kept(kept: Path, document: dict[str, Any]) -> None:
    verdicts = [json.loads(line) for line in (kept / "received.jsonl").read_text().splitlines()]
    assert [b for v in verdicts for b in breaches(f"{v['station']}/verdict", json.dumps(v).encode(), None, ())] == []
    with (kept / "truth.csv").open(newline="") as file:
        parts = [row["file"] for row in csv.DictReader(file)]
    sheet = cv2.imread(str(kept / "contact-sheet.png"))

    assert [v["part"] for v in verdicts] == parts
    assert len(list((kept / "received").iterdir())) == document["images"]
    assert sheet is not None
    assert sheet.std() > 10
    assert {"agent.yaml", "demo-parts-1.0.0.defect", "parts", "data", "state"} <= {p.name for p in kept.iterdir()}


def test_a_looped_line_runs_for_the_time_that_was_given_and_says_how_to_go_on(
    place: dict[str, str], tmp_path: Path
) -> None:
    """Later passes are parts of their own; without --json the summary is for people."""
    result = _run(place, tmp_path, "--parts", "6", "--seconds", "3", "--keep", "kept")
    assert result.returncode == 0, result.stderr

    counts = re.search(r"(\d+) parts, (\d+) verdicts", result.stdout)
    assert counts is not None
    assert int(counts[1]) == int(counts[2])
    assert int(counts[1]) > 6
    assert "part-0001.jpg#2" in result.stdout
    assert f"journal tail --config {tmp_path}/kept/agent.yaml" in result.stdout


def _started(place: dict[str, str], cwd: Path) -> tuple[subprocess.Popen[str], int]:
    """A looped demo whose agent runs, and the agent's process id."""
    temporary = Path(place["TMPDIR"])
    command = [*DEMO, "--parts", "3", "--seconds", "120", "--json"]
    demo = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=place,
        cwd=cwd,
        start_new_session=True,
        # A test run that was started in the background hands down an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - the child is single-threaded
    )

    def agents() -> list[int]:
        assert demo.poll() is None, demo.communicate()
        return [
            pid for pid in _children(demo.pid) if " agent run " in _command(pid) and str(temporary) in _command(pid)
        ]

    def is_judging() -> bool:
        return any(log.read_text().count("verdict") > 3 for log in temporary.glob("*/demo/agent.log"))

    wait_until(is_judging, 120, what="a verdict in the agent's log")
    return demo, agents()[0]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_file(
    place: dict[str, str], tmp_path: Path, signum: signal.Signals
) -> None:
    """Ctrl-C is how most demos end."""
    demo, agent = _started(place, tmp_path)
    children = _children(demo.pid)

    demo.send_signal(signum)
    out, err = demo.communicate(timeout=60)

    assert demo.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert agent in children
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def test_an_agent_that_dies_makes_the_demo_fail_and_its_last_words_are_shown(
    place: dict[str, str], tmp_path: Path
) -> None:
    """A demo that says all is well whatever happens shows nothing."""
    demo, agent = _started(place, tmp_path)

    os.kill(agent, signal.SIGKILL)
    out, err = demo.communicate(timeout=120)

    assert demo.returncode == 1
    assert json.loads(out)["missing"] == []
    assert "the agent ended with -9; its last words:" in err


def test_the_help_names_every_option() -> None:
    """The help of `tools/demo` is a comment in it: it must not fall behind."""
    shown = subprocess.run(["bash", str(ROOT / "tools" / "demo"), "--help"], capture_output=True, text=True, check=True)
    usage = subprocess.run([*DEMO, "--help"], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"--[a-z]+", usage)) - {"--help"}

    assert len(options) >= 6
    assert [option for option in options if option not in shown.stdout] == []


@pytest.mark.mosquitto
def test_on_somebody_elses_broker_nothing_is_left_behind(place: dict[str, str], tmp_path: Path) -> None:
    """A retained status of a station that never was would puzzle whoever looks there next."""
    with Mosquitto(tmp_path) as broker:
        result = _run(place, tmp_path, "--parts", "3", "--broker", f"127.0.0.1:{broker.port}", "--json")
        with Listener(broker.port, "#") as late:
            publish.single("marker", b"retained messages come before me", port=broker.port)
            topics = [m.topic for m in late.wait_for(lambda messages: any(m.topic == "marker" for m in messages))]

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["verdicts"] == 3
    assert topics == ["marker"]
