"""What may go live: `accept` speaks of one bundle on exactly one engine, and `run` holds it to that word."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.acceptance.file import ACCEPTED, refusals_in
from agent.acceptance.gate import differences
from tests.kit import pycuda, tensorrt
from tests.kit.commands import Ran, run_command
from tests.kit.goldens import confused_classifier, golden_bundle, tensorrt_bundle
from tests.kit.station import make_parts, make_station
from tests.kit.users import let_others_in, without_root

PARTS = 2


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
def machine(version: str = "10.3.0", gpu: dict[str, Any] | None = None, **faults: Any) -> Iterator[tensorrt.World]:
    with tensorrt.installed(version, **faults) as world, pycuda.installed(**(gpu or {})) as ledger:
        yield world
        assert ledger.live == {}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A station whose TensorRT engine answers as at the build."""
    make_parts(tmp_path / "parts", PARTS)
    config = make_station(tmp_path, port=None, engine={"kind": "trt"})
    tensorrt_bundle(tmp_path)
    return config


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A station whose TensorRT engine answers otherwise than at the build."""
    make_parts(tmp_path / "parts", PARTS)
    config = make_station(tmp_path, port=None, engine={"kind": "trt"})
    tensorrt_bundle(tmp_path, reference=confused_classifier())
    return config


def agent(command: str, config: Path, *arguments: object) -> Ran:
    return run_command(f"agent.cli.{command}", "--config", config, "--json", *arguments)


def accept(config: Path, *arguments: object) -> Ran:
    return agent("accept", config, "--runs", 20, *arguments)


def configure(config: Path, **sections: Any) -> None:
    raw = yaml.safe_load(config.read_text())
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    config.write_text(yaml.safe_dump(raw))


def told(config: Path) -> dict[str, Any]:
    """What `check` says of the acceptance."""
    ran = run_command("agent.cli.check", "--config", config, "--json", "--no-broker")
    found: dict[str, Any] = next(finding for finding in ran.json if finding["subject"] == "accept")
    return found


def refused(config: Path) -> list[Path]:
    return sorted((config.parent / "state").glob("acceptance.refused*"))


def stays_out(config: Path) -> str:
    """`run` does not start with what was refused, and `check` says so before; gives its words."""
    assert told(config)["level"] == "fail"
    ran = agent("run", config)
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    assert "defect-agent accept" in ran.err
    return ran.err


class DyingGpu:
    """A GPU whose launches fail from one on, to another; counted from when it is told to."""

    def __init__(self) -> None:
        self.first, self.last, self.n = math.inf, math.inf, 0

    def __call__(self) -> None:
        self.n += 1
        if self.first <= self.n <= self.last:
            raise RuntimeError("CUDA error 719: unspecified launch failure")

    def die(self, first: int, last: float = math.inf) -> None:
        self.first, self.last, self.n = first, last, 0


FAILS = {"proof": 1, "memory": 50, "second proof": 102, "golden": 105, "cold": 117, "warm-up": 122, "warm": 130}
"""The launch of `accept` at which it happens: 1, twice 50 to compare the memory, 1, 12 goldens, 5, 5, and 20."""


@pytest.mark.parametrize(
    ("when", "lasts", "kind"),
    [
        ("proof", True, "trt"),
        ("proof", True, "auto"),
        ("memory", False, "trt"),
        ("memory", True, "trt"),
        ("second proof", True, "trt"),
        ("second proof", True, "auto"),
        ("golden", False, "trt"),
        ("cold", False, "trt"),
        ("warm-up", False, "trt"),
        ("warm", False, "auto"),
    ],
)
def test_an_inference_that_fails_while_accept_looks_is_a_refusal(good: Path, when: str, lasts: bool, kind: str) -> None:
    """Whenever it does, and were it once: exit 1, written down with the reason, and the earlier acceptance is gone."""
    gpu = DyingGpu()
    configure(good, engine={"kind": kind}, acceptance={"required": True})
    with machine(on_execute=gpu):
        assert accept(good).code == 0
        gpu.die(FAILS[when], math.inf if lasts else FAILS[when])
        ran = accept(good, "--max-changed", 12)
        gpu.die(10**9)
        out = stays_out(good)
        again = accept(good)
        assert agent("run", good).code == 0

    assert ran.code == 1, ran.err
    assert ran.json["accepted"] is False
    assert any("unspecified launch failure" in problem for problem in ran.json["problems"]), ran.json["problems"]
    assert len(ran.json["goldens"]["answers"]) == (0 if lasts else 12)
    assert "unspecified launch failure" in out or "was not accepted" in out
    assert again.code == 0


def test_what_was_found_before_an_inference_failed_is_written_down(bad: Path) -> None:
    """Goldens that were wrong already, and the times until then; for people, in lines."""
    gpu = DyingGpu()
    with machine(on_execute=gpu):
        assert accept(bad, "--max-changed", 12).code == 0
        gpu.die(FAILS["warm"])
        ran = run_command("agent.cli.accept", "--config", bad, "--runs", 20)
        left = sorted(path.name.split(".")[1] for path in (bad.parent / "state").glob("acceptance*"))
        (path,) = refused(bad)
        written = json.loads(path.read_text())
        gpu.die(10**9)
        stays_out(bad)

    assert ran.code == 1
    assert left == ["refused"]
    assert "REFUSED   8 of 12 golden verdicts changed" in ran.out
    assert "REFUSED   an inference failed: " in ran.out
    assert (written["goldens"]["changed"], written["latency_ms"]["cold"]["n"]) == (8, 5)
    assert written["latency_ms"]["warm"]["n"] == FAILS["warm"] - 125
    assert "unspecified launch failure" in written["failed"]


def rebuild(config: Path) -> None:
    assert agent("build_engine", config, "--rebuild").code == 0


def truncate(config: Path) -> None:
    (plan,) = (config.parent / "state" / "engines").glob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-100])


def remove(config: Path) -> None:
    for file in (config.parent / "state" / "engines").glob("*.json"):
        file.unlink()


ANEW = {"rebuilt": rebuild, "truncated": truncate, "removed": remove}


@pytest.mark.parametrize("how", ANEW)
def test_an_engine_that_was_compiled_anew_is_not_accepted_where_that_is_required(good: Path, how: str) -> None:
    """The same key, another plan: TensorRT may have chosen other kernels, and nobody has looked."""
    configure(good, acceptance={"required": True})
    with machine():
        assert accept(good).code == 0
        assert told(good)["level"] == "ok"
        ANEW[how](good)
        out = stays_out(good)
        assert "compiled anew since it was accepted" in agent("run", good).err
        assert accept(good).code == 0
        assert agent("run", good).code == 0

    assert "compiled anew" in out
    assert "acceptance.required" in out


@pytest.mark.parametrize("how", ANEW)
def test_an_engine_that_was_compiled_anew_runs_where_none_is_required_and_is_told(good: Path, how: str) -> None:
    """As an event; `check` warns."""
    with machine():
        assert accept(good).code == 0
        ANEW[how](good)
        warned = told(good)
        ran = agent("run", good)

    assert (warned["level"], "compiled anew" in warned["text"]) == ("warn", True), warned
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in ran.err.splitlines() if "engine_not_accepted" in line]
    assert [line["differs"] for line in lines] == [
        "it was compiled anew since it was accepted, which may choose other kernels"
    ]


def test_a_refused_engine_does_not_take_the_place_of_the_last_good_one(good: Path) -> None:
    """What ran yesterday must be there to go back to, whatever the quota."""
    mark = good.parent / "state" / "engines" / "good"
    with machine():
        assert agent("run", good).code == 0
        before = mark.read_text()
        configure(good, engine={"tensorrt": {"precision": "fp16"}})
        assert accept(good, "--max-p99-ms", 0.001).code == 1
        stays_out(good)

    assert mark.read_text() == before


@pytest.mark.parametrize("memory", ["mapped", "copied"])
def test_a_refusal_does_not_hang_on_the_memory_that_the_picture_lies_in(bad: Path, memory: str) -> None:
    """The name of the engine is another one; what was refused is the same."""
    with machine():
        assert accept(bad).code == 1
        configure(bad, engine={"tensorrt": {"memory": memory}})
        assert "was refused on" in stays_out(bad)


def test_a_refusal_does_not_hang_on_the_plans_bytes(bad: Path) -> None:
    """The cached plan is damaged and compiled anew: the same engine by every part of its key."""
    with machine() as world:
        assert accept(bad).code == 1
        (plan,) = (bad.parent / "state" / "engines").glob("*.plan")
        plan.write_bytes(plan.read_bytes()[:-100])
        assert "was refused" in agent("run", bad).err
        assert len(world.builds) == 2
        stays_out(bad)


def test_a_refusal_does_not_hang_on_the_reason_of_a_fall_back(good: Path) -> None:
    """No GPU today, a broken library tomorrow: it is the CPU both times, and nobody accepted it for the GPU's work."""
    configure(good, engine={"kind": "auto"})
    with machine(gpu={"count": 0}):
        assert accept(good).code == 1
    with machine(import_fails="libnvinfer.so.10: cannot open shared object file"):
        assert "not the engine that was asked for" in stays_out(good)


def test_the_cpu_that_was_asked_for_is_not_the_cpu_that_stood_in(good: Path) -> None:
    """Who configures ONNX Runtime wants it."""
    configure(good, engine={"kind": "auto"})
    with machine(gpu={"count": 0}):
        assert accept(good).code == 1
    configure(good, engine={"kind": "onnxruntime"})

    assert agent("run", good).code == 0


def test_an_engine_that_differs_from_a_refused_one_by_a_hair_stays_out_too(bad: Path) -> None:
    """One megabyte of workspace makes another key and the same verdicts: somebody has to accept it first."""
    with machine():
        assert accept(bad).code == 1
        configure(bad, engine={"tensorrt": {"workspace_mb": 1025}})
        assert "workspace_mb is 1025, was 1024" in stays_out(bad)
        assert accept(bad, "--max-changed", 12).code == 0
        assert agent("run", bad).code == 0


def test_a_second_refusal_does_not_end_the_first(bad: Path) -> None:
    """Each stands until its own bundle on its own engine is accepted."""
    other = tensorrt_bundle(bad.parent / "other.defect", version="2.0.0", reference=confused_classifier())
    with machine():
        assert accept(bad).code == 1
        assert accept(bad, "--bundle", other.path).code == 1
        stays_out(bad)
        assert accept(bad, "--bundle", other.path, "--max-changed", 12).code == 0
        stays_out(bad)
        assert accept(bad, "--max-changed", 12).code == 0
        assert refused(bad) == []
        assert agent("run", bad).code == 0


def test_a_refused_engine_stays_out_though_another_one_of_the_bundle_was_accepted(good: Path) -> None:
    """And the accepted one runs."""
    with machine():
        assert accept(good).code == 0
        configure(good, engine={"tensorrt": {"precision": "fp16"}})
        assert accept(good, "--max-p99-ms", 0.001).code == 1
        stays_out(good)
        configure(good, engine={"tensorrt": {"precision": "int8"}})
        assert agent("run", good).code == 0


def test_an_engine_that_was_accepted_and_is_refused_now_stays_out(good: Path) -> None:
    """The last word counts, also for its neighbours."""
    with machine():
        assert accept(good).code == 0
        assert accept(good, "--max-p99-ms", 0.001).code == 1
        stays_out(good)
        configure(good, engine={"tensorrt": {"workspace_mb": 1025}})
        stays_out(good)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1, "accepted": false}', "\x00\xff"])
def test_a_refusal_that_can_not_be_read_keeps_out_what_was_not_accepted(bad: Path, text: str) -> None:
    """A file that says nothing may have said no; `accept` ends it."""
    with machine():
        assert accept(bad).code == 1
        (path,) = refused(bad)
        path.write_text(text, encoding="latin-1")
        assert "what was refused can't be known" in stays_out(bad)
        assert accept(bad, "--max-changed", 12).code == 0
        assert refused(bad) == []
        assert agent("run", bad).code == 0


def test_a_damaged_refusal_of_an_earlier_release_keeps_out_too_until_accept_was_asked(good: Path) -> None:
    """Under the name that it had then."""
    (good.parent / "state").mkdir()
    old = good.parent / "state" / "acceptance.refused.json"
    old.write_text('{"schema": 1, "accepted": false}')
    with machine():
        assert str(old) in stays_out(good)
        assert accept(good).code == 0
        assert not old.exists()
        assert agent("run", good).code == 0


def test_a_damaged_refusal_of_another_bundle_does_not_stop_what_was_accepted(good: Path) -> None:
    """Its name says that it is not about this one."""
    other = tensorrt_bundle(good.parent / "other.defect", version="2.0.0", reference=confused_classifier())
    with machine():
        assert accept(good, "--bundle", other.path).code == 1
        (path,) = refused(good)
        path.write_text("{")
        stays_out(good)
        assert accept(good).code == 0
        assert agent("run", good).code == 0
        assert path.exists()


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "TensorRT": ({"version": "10.13.3"}, {}, "TensorRT is 10.13.3, was 10.3.0"),
    "driver": ({"gpu": {"driver_version": 12080}}, {}, "the driver's CUDA is 12.8, was 12.6"),
    "precision": ({}, {"precision": "fp16"}, "precision is fp16, was int8"),
    "sparse": ({}, {"sparse": True}, "sparse is True, was False"),
    "level": ({}, {"optimization_level": 5}, "optimization_level is 5, was default"),
    "workspace": ({}, {"workspace_mb": 512}, "workspace_mb is 512, was 1024"),
}
"""Machine, options, and what is said."""


@pytest.mark.parametrize("what", OTHERS)
def test_where_an_acceptance_is_required_it_must_be_of_exactly_this_engine(good: Path, what: str) -> None:
    """An update of JetPack or a flag: the plant's rule is that somebody looks first."""
    other, options, words = OTHERS[what]
    configure(good, acceptance={"required": True})
    with machine():
        assert accept(good).code == 0
        assert agent("run", good).code == 0
    configure(good, engine={"tensorrt": options})
    with machine(**other):
        assert words in told(good)["text"]
        assert words in stays_out(good)
        assert accept(good).code == 0
        assert agent("run", good).code == 0


@pytest.mark.parametrize("what", OTHERS)
def test_where_none_is_required_another_engine_runs_and_is_told(good: Path, what: str) -> None:
    """As an event, with what differs; `check` warns."""
    other, options, words = OTHERS[what]
    with machine():
        assert accept(good).code == 0
        assert told(good)["level"] == "ok"
    configure(good, engine={"tensorrt": options})
    with machine(**other):
        warned = told(good)
        ran = agent("run", good)

    assert (warned["level"], words in warned["text"]) == ("warn", True)
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in ran.err.splitlines() if "engine_not_accepted" in line]
    assert len(lines) == 1
    assert words in lines[0]["differs"]


def test_the_cpus_engine_is_held_to_its_acceptance_too(tmp_path: Path) -> None:
    """Another number of threads is another time."""
    make_parts(tmp_path / "parts", PARTS)
    config = make_station(tmp_path, port=None, engine={"kind": "onnxruntime"}, acceptance={"required": True})
    golden_bundle(tmp_path)
    assert accept(config).code == 0
    assert agent("run", config).code == 0
    configure(config, engine={"threads": 2})

    assert "threads is 2, was 1" in stays_out(config)


def test_threads_are_chosen_for_the_cores_that_the_line_is_pinned_to(tmp_path: Path) -> None:
    """`accept`, `check` and `run` choose once and together, or each would find another engine than was accepted."""
    make_parts(tmp_path / "parts", PARTS)
    pinned = {"pin_cores": [min(os.sched_getaffinity(0))]}
    config = make_station(
        tmp_path, port=None, engine={"kind": "onnxruntime"}, acceptance={"required": True}, line=pinned
    )
    golden_bundle(tmp_path)
    assert accept(config).code == 0
    checked, ran = agent("check", config), agent("run", config)

    assert ran.code == 0, ran.err
    assert "engine_threads" not in checked.err + ran.err
    assert [path.read_text() for path in tmp_path.rglob("*.threads")] == ["1\n"]


def test_the_acceptance_of_a_line_outlives_those_of_two_later_bundles(good: Path) -> None:
    """Each is found again where one is required."""
    later = [tensorrt_bundle(good.parent / f"{n}.defect", version=f"{n}.0.0") for n in (2, 3)]
    configure(good, acceptance={"required": True})
    with machine():
        for bundle in (None, *later):
            assert accept(good, *(() if bundle is None else ("--bundle", bundle.path))).code == 0
        assert agent("run", good).code == 0


def test_differences_are_told_in_words() -> None:
    """Of another runtime nothing else can be compared."""
    then = {"kind": "trt", "tensorrt": "10.3.0", "graph_sha256": "a" * 64, "options": "sparse=False,level=3"}
    now = {**then, "graph_sha256": "b" * 64, "options": "sparse=False,level=5"}

    assert differences(then, now) == ("graph is bbbbbbbbbbbb, was aaaaaaaaaaaa", "level is 5, was 3")
    assert differences(then, then) == ()
    options = {"precision": "int8", "options": "precision=int8,level=3", "plan": "c" * 64}
    others = {"precision": "fp32", "options": "precision=fp32,level=3", "plan": "d" * 64}
    assert differences({**then, **options}, {**then, **others}) == ("precision is fp32, was int8",)
    assert differences(then, {"kind": "onnxruntime"}) == ("runtime is onnxruntime, was trt",)


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A real file system that can be filled, and set read-only."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"can't mount a tmpfs here ({done.stderr.decode().strip()}); run as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, leave: int = 0) -> None:
    state = os.statvfs(folder)
    with (folder / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - leave)


def read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["trt", "auto"])
def test_accept_does_not_compile_what_it_can_not_keep(good: Path, tmp_path: Path, kind: str) -> None:
    """The next start would compile another engine than the accepted one, and wait for it."""
    with small_disk(tmp_path / "disk") as disk, machine() as world:
        configure(good, engine={"kind": kind, "tensorrt": {"cache_dir": str(disk / "engines")}})
        ran = accept(good)

    assert ran.code == 2
    assert "no room for the engine" in ran.err
    assert "free some space there" in ran.err
    assert world.builds == []
    assert not (tmp_path / "state" / ACCEPTED).exists()


def test_accept_with_a_read_only_cache_says_that_it_is_mounted_so(good: Path, tmp_path: Path) -> None:
    """Not that the user lacks a right."""
    with small_disk(tmp_path / "disk", "64m") as disk, machine() as world:
        configure(good, engine={"tensorrt": {"cache_dir": str(disk / "engines")}})
        read_only(disk)
        ran = accept(good)

    assert ran.code == 2
    assert "Read-only file system" in ran.err
    assert "mounted read-only" in ran.err
    assert world.builds == []


def test_accept_with_a_cache_of_another_user_names_the_right_one(good: Path, tmp_path: Path) -> None:
    """EACCES has another remedy than a full disk."""
    let_others_in(tmp_path)
    (tmp_path / "engines").mkdir(mode=0o755)
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    configure(good, engine={"tensorrt": {"cache_dir": str(tmp_path / "engines")}})
    with machine() as world, without_root():
        ran = accept(good)

    assert ran.code == 2
    assert "Permission denied" in ran.err
    assert "sudo -u defect-agent" in ran.err
    assert world.builds == []


def test_accept_works_with_an_engine_that_is_there_in_a_read_only_cache(good: Path, tmp_path: Path) -> None:
    """Compiled once, and never again; what can't be noted is told."""
    with small_disk(tmp_path / "disk", "64m") as disk, machine() as world:
        configure(good, engine={"tensorrt": {"cache_dir": str(disk / "engines")}})
        assert agent("build_engine", good).code == 0
        read_only(disk)
        ran = run_command("agent.cli.accept", "--config", good, "--runs", 20)
        assert agent("run", good).code == 0

    assert ran.code == 0, ran.err
    assert len(world.builds) == 1
    assert "transfer  copied " in ran.out
    is_copied = "mapped memory" not in ran.out.splitlines()[0]
    assert is_copied  # nothing was noted, so that is what later starts take
    assert "the faster one will run" in ran.out or "that can't be noted: set engine.tensorrt.memory: mapped" in ran.out


def test_accept_compiles_once_where_it_can_keep(good: Path) -> None:
    """Four engines are opened to measure, and one is built."""
    with machine() as world:
        assert accept(good).code == 0

    assert len(world.builds) == 1


def test_a_refusal_that_can_not_be_written_says_so_aloud_and_is_still_exit_1(good: Path, tmp_path: Path) -> None:
    """The earlier acceptance of the same goes at least: nothing is left that says yes."""
    with small_disk(tmp_path / "disk", "64m") as disk, machine():
        raw = yaml.safe_load(good.read_text())
        raw["state_dir"] = str(disk / "state")
        good.write_text(yaml.safe_dump(raw))
        assert accept(good).code == 0
        fill(disk)
        ran = accept(good, "--max-p99-ms", 0.001)
        left = sorted(path.name for path in (disk / "state").glob("acceptance*"))

    assert ran.code == 1
    assert ran.json["accepted"] is False
    assert ran.json["written"] is None
    assert "REFUSED, AND NOT WRITTEN DOWN" in ran.err
    assert "No space left on device" in ran.err
    assert "free some space there" in ran.err
    assert left == []


def test_an_acceptance_that_can_not_be_written_is_none(good: Path, tmp_path: Path) -> None:
    """Exit 2, the remedy, and no half of a file."""
    with small_disk(tmp_path / "disk", "64m") as disk, machine():
        raw = yaml.safe_load(good.read_text())
        raw["state_dir"] = str(disk / "state")
        good.write_text(yaml.safe_dump(raw))
        assert agent("build_engine", good).code == 0
        fill(disk)
        ran = accept(good)
        left = list((disk / "state").glob("acceptance*"))
        assert refusals_in(disk / "state").found == ()

    assert ran.code == 2
    assert "free some space there" in ran.err
    assert left == []
