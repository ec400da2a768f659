"""A bundle on each TensorRT: build-engine, cache, accept, run, and verdicts over a real broker; on stand-ins.

The agent's commands run in this process, for the stand-ins live here; broker, journal, camera and goldens are real.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.engines.trt_build import build_plan
from tests.kit import pycuda, tensorrt
from tests.kit.broker import Listener, Mosquitto
from tests.kit.commands import Ran, run_command
from tests.kit.goldens import tensorrt_bundle
from tests.kit.notify import notify_socket
from tests.kit.station import make_parts, make_station
from tests.kit.tensorrt import VERSIONS

PARTS = 8
ABSENT = {
    "8.6.1": "IProgressMonitor",
    "10.3.0": "ITimingCache.query",
    "10.13.3": "IExecutionContext.execute_async_v2",
    "10.16.1": "Builder.build_engine",
    "11.1.0": "BuilderFlag.FP16",
    "11.4.0": "IInt8EntropyCalibrator2",
}
"""A name that others have and this version lacks."""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """`run` sets up logging and signals for a process of its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def machine(version: str, gpu: dict[str, Any] | None = None, **faults: Any) -> Iterator[tensorrt.World]:
    """TensorRT and a GPU; at the end all that was taken has been given back."""
    with tensorrt.installed(version, **faults) as world, pycuda.installed(**(gpu or {})) as ledger:
        yield world
        assert ledger.live == {}


def station(folder: Path, port: int | None, **changes: Any) -> Path:
    make_parts(folder / "parts", PARTS)
    config = make_station(folder, port=port, **{"engine": {"kind": "trt"}, **changes})
    tensorrt_bundle(folder)
    return config


def agent(command: str, config: Path, *arguments: object) -> Ran:
    return run_command(f"agent.cli.{command}", "--config", config, "--json", *arguments)


def last(listener: Listener, topic: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(listener.messages(topic)[-1].payload)
    return found


@pytest.mark.mosquitto
@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_journey(tmp_path: Path, version: str) -> None:
    """The must-show: each command does its part, and the verdicts say what judged them."""
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant, machine(version) as world:
        config = station(tmp_path, broker.port)
        built = agent("build_engine", config)
        again = agent("build_engine", config)
        accepted = agent("accept", config, "--runs", 20)
        ran = agent("run", config)
        plant.wait_for(lambda ms: len(ms) >= PARTS, topic_end="/verdict")
        plant.wait_for(lambda ms: bool(ms) and json.loads(ms[-1].payload)["state"] == "offline", topic_end="/status")
        verdicts = [json.loads(m.payload) for m in plant.messages("/verdict")]
        states = [json.loads(m.payload)["state"] for m in plant.messages("/status")]

    assert built.code == again.code == 0, built.err + again.err
    assert (built.json["built"], again.json["built"]) == (True, False)
    assert Path(built.json["engine"]).parent == tmp_path / "state" / "engines"
    assert built.json["key"]["tensorrt"] == version
    assert accepted.code == 0, accepted.out + accepted.err
    assert (accepted.json["kind"], accepted.json["goldens"]["changed"]) == ("trt", 0)
    assert sorted(accepted.json["memory_ms"]) == ["copied", "mapped"]
    assert ran.code == 0, ran.err
    assert ran.json["judged"] == PARTS
    assert len(world.builds) == 1  # by build-engine; accept and run found it
    assert [v["decision"] for v in verdicts[:3]] == ["ok", "defect", "defect"]
    assert [v["class"] for v in verdicts[:3]] == ["good", "scratch", "stain"]
    assert {v["engine"] for v in verdicts} == {accepted.json["engine"]}
    assert f"TensorRT {version}" in accepted.json["engine"]
    assert "degraded" not in states


@pytest.mark.parametrize("version", VERSIONS)
def test_a_planted_use_of_a_name_that_the_version_lacks_fails(
    tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-ins are worth something: code that would fail on a device fails here."""

    def planted(api: Any, *arguments: Any, **keys: Any) -> Any:
        found = api.module
        for part in ABSENT[version].split("."):
            found = getattr(found, part)
        return build_plan(api, *arguments, **keys)

    with machine(version):
        config = station(tmp_path, None)
        assert agent("build_engine", config, "--rebuild").code == 0
        monkeypatch.setattr("agent.engines.trt_open.build_plan", planted)
        ran = agent("build_engine", config, "--rebuild")

    assert ran.code == 70
    assert "AttributeError" in ran.err


@pytest.mark.mosquitto
def test_auto_that_fell_back_judges_and_says_so_everywhere(tmp_path: Path) -> None:
    """The GPU is gone after acceptance: the line goes on, and status, event and every verdict say why."""
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        config = station(tmp_path, broker.port, engine={"kind": "auto"})
        with machine("10.3.0"):
            assert agent("accept", config, "--runs", 20).code == 0
        with machine("10.3.0", gpu={"count": 0}):
            ran = agent("run", config)
        plant.wait_for(lambda ms: len(ms) >= PARTS, topic_end="/verdict")
        plant.wait_for(lambda ms: len(ms) >= 2, topic_end="/event")
        statuses = [json.loads(m.payload) for m in plant.messages("/status")]
        verdicts = [json.loads(m.payload) for m in plant.messages("/verdict")]
        before, event = (json.loads(m.payload) for m in plant.messages("/event"))

    assert ran.code == 0, ran.err
    assert all("fell back from TensorRT: " in v["engine"] for v in verdicts)
    assert [v["decision"] for v in verdicts[:2]] == ["ok", "defect"]
    assert (before["event"], before["severity"]) == ("engine_not_accepted", "warning")
    assert (event["event"], event["severity"]) == ("engine_degraded", "alarm")
    assert "finds no GPU" in event["text"]
    degraded = [status for status in statuses if status["state"] == "degraded"]
    assert degraded
    assert "finds no GPU" in degraded[0]["reason"]


@pytest.mark.mosquitto
def test_on_change_stop_ends_the_line_before_the_first_part(tmp_path: Path) -> None:
    """As configured: better no verdicts than slow ones. Exit 1, and the plant knows why."""
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        config = station(tmp_path, broker.port, engine={"kind": "auto"}, acceptance={"on_change": "stop"})
        with machine("10.3.0", gpu={"count": 0}):
            ran = agent("run", config)
        plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/event")
        event = last(plant, "/event")

    assert ran.code == 1
    assert (ran.json["judged"], event["event"]) == (0, "engine_degraded")
    assert "finds no GPU" in ran.json["stopped"]


def test_an_engine_that_must_be_accepted_and_is_wrong_at_the_start_judges_no_part(tmp_path: Path) -> None:
    """Same plan, same key; whatever makes it answer otherwise, `required` means these answers."""
    config = station(tmp_path, None, acceptance={"required": True})
    with machine("10.3.0"):
        assert agent("accept", config, "--runs", 20).code == 0
    with machine("10.3.0", on_execute=DyingGpu(3, 6)):
        ran = agent("run", config)

    assert (ran.code, ran.json["judged"]) == (1, 0)
    assert "no answer" in ran.json["stopped"] or "otherwise" in ran.json["stopped"], ran.json["stopped"]


def test_another_tensorrt_than_at_acceptance_compiles_anew_and_is_told(tmp_path: Path) -> None:
    """JetPack was updated: the old plan is not loaded, the line runs, and somebody is asked to accept again."""
    config = station(tmp_path, None)
    with machine("10.3.0"):
        assert agent("accept", config, "--runs", 20).code == 0
    with machine("10.13.3") as world:
        ran = agent("run", config)

    assert ran.code == 0
    assert len(world.builds) == 1
    assert "engine_not_accepted" in ran.err
    assert "TensorRT 10.3.0" in ran.err


class DyingGpu:
    """A GPU whose launches fail from one inference on, to another."""

    def __init__(self, first: int, last: float = math.inf) -> None:
        self._first, self._last, self._n = first, last, 0

    def __call__(self) -> None:
        self._n += 1
        if self._first <= self._n <= self._last:
            raise RuntimeError("CUDA error 719: unspecified launch failure")


@pytest.mark.mosquitto
def test_a_gpu_that_dies_mid_line_is_an_alarm_and_when_it_is_back_that_is_told(tmp_path: Path) -> None:
    """Every part gets its verdict all the while; nobody has to find it out by a pile of errors."""
    make_parts(tmp_path / "parts", PARTS)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        config = make_station(
            tmp_path,
            port=broker.port,
            camera={"rate_hz": 8.0, "loop": True},
            engine={"kind": "trt", "tensorrt": {"memory": "copied"}},
        )
        tensorrt_bundle(tmp_path, count=2)
        with machine("10.3.0", on_execute=DyingGpu(12, 24)):
            ran = agent("run", config, "--max-parts", 100)
        plant.wait_for(lambda ms: len(ms) >= 100, topic_end="/verdict")
        plant.wait_for(lambda ms: len(ms) >= 2, topic_end="/event")
        events = [json.loads(m.payload) for m in plant.messages("/event")]
        states = [json.loads(m.payload) for m in plant.messages("/status")]
        verdicts = [json.loads(m.payload)["decision"] for m in plant.messages("/verdict")]

    assert ran.code == 0, ran.err
    assert [(e["event"], e["severity"]) for e in events] == [
        ("engine_failing", "alarm"),
        ("engine_as_accepted", "info"),
    ]
    assert "3 parts in a row got no answer" in events[0]["text"]
    assert "unspecified launch failure" in events[0]["text"]
    degraded = [s["reason"] for s in states if s["state"] == "degraded"]
    assert degraded
    assert all("the engine fails" in reason for reason in degraded)
    assert verdicts.count("error") >= 3
    assert verdicts[-1] != "error"
    assert len(verdicts) == 100


@pytest.mark.mosquitto
def test_on_change_stop_ends_a_line_whose_gpu_died(tmp_path: Path) -> None:
    """A CUDA error that sticks needs a new process: exit 1, and systemd starts it."""
    make_parts(tmp_path / "parts", PARTS)
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as plant:
        config = make_station(
            tmp_path,
            port=broker.port,
            camera={"rate_hz": 8.0, "loop": True},
            engine={"kind": "trt"},
            acceptance={"on_change": "stop"},
        )
        tensorrt_bundle(tmp_path, count=2)
        with machine("10.3.0", on_execute=DyingGpu(12)):
            ran = agent("run", config, "--max-parts", 200)
        plant.wait_for(lambda ms: len(ms) >= 1, topic_end="/event")
        event = last(plant, "/event")

    assert ran.code == 1
    assert event["event"] == "engine_failing"
    assert "3 parts in a row got no answer" in ran.json["stopped"]
    assert ran.json["judged"] < 50


def test_trt_without_a_gpu_refuses_to_start_in_one_sentence(tmp_path: Path) -> None:
    """`engine.kind: trt` never falls back by itself."""
    config = station(tmp_path, None)
    with machine("10.3.0", gpu={"count": 0}):
        ran = agent("run", config)

    assert ran.code == 2
    assert "finds no GPU" in ran.err
    assert "Traceback" not in ran.err


def test_accept_refuses_an_engine_that_fell_back(tmp_path: Path) -> None:
    """Nobody accepts the CPU's work for the GPU's."""
    config = station(tmp_path, None, engine={"kind": "auto"})
    with machine("10.3.0", gpu={"count": 0}):
        ran = agent("accept", config, "--runs", 20)

    assert ran.code == 1
    assert "not the engine that was asked for" in ran.json["problems"][0]


def test_a_run_compiles_what_nobody_built_and_tells_systemd_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start is a start, if a slow one; the next one is fast."""
    config = station(tmp_path, None)
    with machine("10.3.0") as world, notify_socket(tmp_path / "notify") as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
        first, second = agent("run", config), agent("run", config)
        told = systemd.received()

    assert first.code == second.code == 0
    assert len(world.builds) == 1
    assert sum("EXTEND_TIMEOUT_USEC" in message for message in told) == 1


def test_options_of_the_configuration_reach_the_builder(tmp_path: Path) -> None:
    """And a flag of build-engine goes before them."""
    config = station(tmp_path, None, engine={"kind": "trt", "tensorrt": {"precision": "fp16", "workspace_mb": 64}})
    with machine("10.3.0"):
        told = agent("build_engine", config)
        flagged = agent("build_engine", config, "--precision", "fp32")

    assert (told.json["key"]["precision"], flagged.json["key"]["precision"]) == ("fp16", "fp32")
    assert "workspace_mb=64" in told.json["key"]["options"]


def test_build_engine_on_a_full_disk_says_so_before_it_compiles(tmp_path: Path) -> None:
    """The must-show: a clear error, and no minutes wasted."""
    config = station(tmp_path, None)
    raw = yaml.safe_load(config.read_text())
    disk = tmp_path / "disk"
    disk.mkdir()
    with _small_disk(disk), machine("10.3.0") as world:
        raw["engine"]["tensorrt"] = {"cache_dir": str(disk / "engines")}
        config.write_text(yaml.safe_dump(raw))
        ran = agent("build_engine", config)

    assert ran.code == 2
    assert "no room for the engine" in ran.err
    assert "cache_dir" in ran.err
    assert world.builds == []


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"can't mount a tmpfs here ({done.stderr.decode().strip()}); run as root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
