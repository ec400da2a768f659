"""`defect-agent check` on a board for TensorRT: what is missing is named, with what to do, before the line needs it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.board import Board
from agent.bundle import open_bundle
from agent.checks_device import Finding, device_findings, is_tensorrt_wanted
from agent.config import AgentConfig, EngineConfig, read_config
from tests.kit import pycuda, tensorrt
from tests.kit.commands import run_command
from tests.kit.goldens import tensorrt_bundle
from tests.kit.station import make_parts, make_station
from tests.kit.users import let_others_in, without_root

JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson Orin NX\0",
    "proc/meminfo": "MemAvailable: 7000000 kB\nSwapTotal: 4000000 kB\n",
    "var/lib/nvpmodel/status": "pmode:0000",
    "dev/nvmap": "",
    "dev/nvhost-gpu": "",
    "dev/nvhost-ctrl-gpu": "",
}


@pytest.fixture(autouse=True)
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """nvpmodel is this folder's, or absent."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_parts(tmp_path / "parts", 1)
    path = make_station(tmp_path, port=None, engine={"kind": "trt"})
    tensorrt_bundle(tmp_path)
    return path


def board(folder: Path, without: str = "", **files: str) -> Path:
    """A Jetson's file tree, without one file, or with others."""
    root = folder / "root"
    for name, text in {**JETSON, **files}.items():
        if name != without:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


@contextlib.contextmanager
def machine(**gpu: Any) -> Iterator[None]:
    with tensorrt.installed("10.3.0"), pycuda.installed(**gpu) as ledger:
        yield
        assert ledger.live == {}


def findings(config: Path, root: Path) -> dict[str, Finding]:
    station = read_config(config)
    return {f.subject: f for f in device_findings(station, open_bundle(station.bundle), root)}


def test_a_jetson_with_all_that_it_needs_lacks_only_the_engine(config: Path, tmp_path: Path, no_programs: Path) -> None:
    """And that is not compiled by a check: it takes minutes."""
    nvpmodel = no_programs / "nvpmodel"
    nvpmodel.write_text("#!/bin/sh\necho 'NV Power Mode: MAXN'\n")
    nvpmodel.chmod(0o755)
    with machine():
        release = {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic"}
        found = findings(config, board(tmp_path, **release))

    assert {f.subject for f in found.values() if f.level == "ok"} == {"trt", "gpu", "power", "swap", "room"}
    assert "Orin (SM 8.7)" in found["gpu"].text
    assert found["gpu"].text.endswith("driver R36.4.3")
    assert found["cache"].level == "warn"
    assert "defect-agent build-engine" in found["cache"].remedy


@pytest.mark.parametrize(
    ("without", "subject", "words"),
    [
        ("dev/nvmap", "nodes", "the GPU's device files are not there: /dev/nvmap"),
        ("var/lib/nvpmodel/status", "power", "does not say the power mode"),
    ],
)
def test_what_is_not_there_is_named(config: Path, tmp_path: Path, without: str, subject: str, words: str) -> None:
    """A container without the NVIDIA runtime; a board without nvpmodel."""
    with machine(count=0):
        found = findings(config, board(tmp_path, without))

    assert words in found[subject].text
    assert found[subject].remedy


def test_device_files_that_this_user_may_not_open_name_the_groups(config: Path, tmp_path: Path) -> None:
    """The commonest of all: the service's user is in no group."""
    root = board(tmp_path)
    let_others_in(tmp_path)
    for node in (root / "dev").iterdir():
        node.chmod(0o600)
    with machine(count=0):
        station = read_config(config)
        bundle = open_bundle(station.bundle)
        with without_root():
            nodes = next(f for f in device_findings(station, bundle, root) if f.subject == "nodes")

    assert "may not open /dev/nv" in nodes.text
    assert "usermod -aG" in nodes.remedy
    assert "render" in nodes.remedy


@pytest.mark.parametrize(
    ("mode", "words"), [("15W", "power mode 15W: not the fastest one"), ("", "power mode 2: which that is")]
)
def test_no_swap_on_a_small_board_and_a_slow_power_mode_are_warnings(
    config: Path, tmp_path: Path, no_programs: Path, mode: str, words: str
) -> None:
    """It runs; but the build may be killed, and the figures are those of this mode."""
    if mode:
        (no_programs / "nvpmodel").write_text(f"#!/bin/sh\necho 'NV Power Mode: {mode}'\n")
        (no_programs / "nvpmodel").chmod(0o755)
    little = "MemAvailable: 3000000 kB\nSwapTotal: 0 kB\n"
    with machine():
        found = findings(config, board(tmp_path, **{"proc/meminfo": little, "var/lib/nvpmodel/status": "pmode:0002"}))

    assert (found["swap"].level, found["power"].level) == ("warn", "warn")
    assert "no swap, and 3000 MB free" in found["swap"].text
    assert words in found["power"].text
    assert "nvpmodel" in found["power"].remedy


@pytest.mark.parametrize(("kind", "level"), [("trt", "fail"), ("auto", "warn")])
def test_without_a_gpu_trt_fails_and_auto_warns(config: Path, tmp_path: Path, kind: str, level: str) -> None:
    """`auto` goes on with the CPU; `trt` does not start."""
    config.write_text(config.read_text().replace("kind: trt", f"kind: {kind}"))
    with machine(count=0):
        found = findings(config, board(tmp_path))

    assert (found["gpu"].level, found["trt"].level) == (level, "ok")
    assert "nvidia-smi" in found["gpu"].remedy


def test_without_tensorrt_the_way_to_get_it_is_told(config: Path, tmp_path: Path) -> None:
    """JetPack brings it, PyPI's is not for a Jetson."""
    found = findings(config, board(tmp_path))

    assert found["trt"].level == "fail"
    assert "--system-site-packages" in found["trt"].remedy


def test_the_command_shows_it_and_does_not_compile(config: Path) -> None:
    """One line each, exit 1 for what fails; the engine is tried only when it is there."""
    with tensorrt.installed("10.3.0") as world, pycuda.installed():
        before = run_command("agent.cli.check", "--config", config, "--json", "--no-broker")
        assert world.builds == []
        assert run_command("agent.cli.build_engine", "--config", config, "--json").code == 0
        after = run_command("agent.cli.check", "--config", config, "--json", "--no-broker")

    engines = [next(f for f in ran.json if f["subject"] == "engine") for ran in (before, after)]
    assert (engines[0]["level"], engines[0]["text"]) == ("warn", "not tried: it is not compiled yet")
    assert engines[1]["level"] == "ok"
    assert "12 golden pictures" in engines[1]["text"]
    assert "TensorRT 10.3.0" in engines[1]["text"]


def test_check_of_a_fall_back_warns(config: Path) -> None:
    """The goldens are as at the build, on the wrong processor."""
    config.write_text(config.read_text().replace("kind: trt", "kind: auto"))
    with tensorrt.installed("10.3.0"), pycuda.installed(count=0):
        ran = run_command("agent.cli.check", "--config", config, "--json", "--no-broker")

    engine = next(f for f in ran.json if f["subject"] == "engine")
    assert engine["level"] == "warn"
    assert "fell back from TensorRT" in engine["text"]


@pytest.mark.parametrize(
    ("engine", "model", "wanted"),
    [
        (EngineConfig(), "NVIDIA Jetson Orin Nano", True),
        (EngineConfig(), "Raspberry Pi 5", False),
        (EngineConfig(graph="cpu"), "NVIDIA Jetson Orin Nano", False),
        (EngineConfig(kind="onnxruntime"), "NVIDIA Jetson Orin Nano", False),
        (EngineConfig(kind="trt"), "Raspberry Pi 5", True),
    ],
)
def test_a_jetson_is_expected_to_have_tensorrt_and_others_are_not(
    config: Path, tmp_path: Path, engine: EngineConfig, model: str, wanted: bool
) -> None:
    """A Jetson whose TensorRT is missing is a fall-back; a Pi is a Pi."""
    station: AgentConfig = dataclasses.replace(read_config(config), engine=engine)
    root = board(tmp_path, **{"proc/device-tree/model": model})

    assert is_tensorrt_wanted(station, Board(root)) is wanted


def test_bench_times_tensorrt_beside_the_cpu_and_counts_changed_goldens(config: Path, tmp_path: Path) -> None:
    """The same figures without a judgement."""
    with machine():
        ran = run_command(
            "agent.cli.bench",
            *("--bundle", tmp_path / "kit-1.0.0.defect", "--seconds", 0.1, "--cache", tmp_path / "engines", "--json"),
        )

    rows = {row["graph"]: row for row in ran.json["rows"]}
    assert sorted(rows) == ["cpu", "fp32", "trt"]
    assert "TensorRT 10.3.0" in rows["trt"]["engine"]
    assert {(row["goldens"], row["changed"]) for row in rows.values()} == {(12, 0)}
    assert ran.json["board"]["model"]
    for row in rows.values():
        assert row["measured"]["goldens"]["changed_upper_95"] == pytest.approx(1 - 0.05 ** (1 / 12), abs=1e-6)
        assert row["measured"]["difference"]["logits"] is not None
        assert row["measured"]["latency_ms"]["cold"]["p50"] > 0


def test_bench_prints_what_accept_prints_and_takes_the_stations_configuration(config: Path, tmp_path: Path) -> None:
    """Bound, differences, cold times and clocks; its bundle, threads, options and engine."""
    text = config.read_text().replace("kind: trt", "kind: trt\n  threads: 2\n  tensorrt: {precision: fp16}")
    config.write_text(text)
    with machine():
        assert run_command("agent.cli.build_engine", "--config", config, "--json").code == 0
        ran = run_command("agent.cli.bench", "--config", config, "--seconds", 0.1)
        accepted = run_command("agent.cli.accept", "--config", config, "--runs", 20)

    assert ran.code == 0, ran.err
    assert accepted.code == 0, accepted.err
    assert "Orin fp16" in ran.out
    assert "2 threads" in ran.out
    words = {line.split()[0] for line in accepted.out.splitlines()} - {"accepted:", "transfer"}
    assert words >= {"engine", "goldens", "outputs", "warm", "cold", "board", "°C", "MHz", "held", "memory"}
    assert words <= {line.split()[0] for line in ran.out.splitlines() if line}
    assert ran.out.count("at most 22.1% of all verdicts (95 % bound)") == 3
    assert sorted(path.name for path in (tmp_path / "state" / "engines").glob("*.plan"))
    assert ran.out.count("\ncold ") == 3
