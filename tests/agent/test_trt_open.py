"""A bundle on TensorRT: compiled once, found again, never loaded where it does not fit; and what happens without."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.board import Board
from agent.bundle import Bundle
from agent.config import EngineConfig, TensorRtConfig
from agent.engines import fell_back, goes_live, is_tensorrt_expected, open_engine
from agent.engines.device import Device, open_device
from agent.engines.trt_api import load_tensorrt
from agent.engines.trt_build import Graphs
from agent.engines.trt_cache import EngineCache, EngineKey
from agent.engines.trt_open import choose_memory, graphs_of, key_for, options_for
from agent.errors import EngineError
from tests.kit import pycuda, tensorrt
from tests.kit.commands import run_command
from tests.kit.goldens import golden_bundle, tensorrt_bundle
from tests.kit.tensorrt.running import ContextPart
from tests.kit.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
TRT, AUTO = EngineConfig(kind="trt"), EngineConfig()


@dataclasses.dataclass
class Bench:
    """A bundle, a cache, and a GPU that is not here."""

    bundle: Bundle
    cache: EngineCache

    @contextlib.contextmanager
    def gpu(
        self, version: str = "10.3.0", gpu: dict[str, Any] | None = None, **faults: Any
    ) -> Iterator[tensorrt.World]:
        """TensorRT and PyCUDA; all that was taken must have been given back at the end."""
        machine = {"device": "Orin", "compute_capability": (8, 7), **faults}
        driver = {"name": machine["device"], "compute_capability": machine["compute_capability"], **(gpu or {})}
        with tensorrt.installed(version, **machine) as world, pycuda.installed(**driver) as ledger:
            yield world
            assert ledger.live == {}

    def open_once(self, config: EngineConfig = TRT) -> str:
        """Open, run and close; gives the engine's name."""
        engine = open_engine(self.bundle, config, cache=self.cache)
        try:
            engine.infer(np.full((1, 32, 32, 3), 255, dtype=np.uint8))
            return engine.name
        finally:
            engine.close()

    def plans(self) -> list[Path]:
        return sorted(self.cache.folder.glob("*.plan"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tensorrt_bundle(tmp_path), EngineCache(tmp_path / "engines", 1_000_000_000))


def test_it_is_compiled_once_and_found_at_the_next_start(bench: Bench) -> None:
    """Minutes on a real board."""
    with bench.gpu() as first:
        name = bench.open_once()
        again = bench.open_once()

    assert len(first.builds) == 1
    assert name == again
    assert "TensorRT 10.3.0" in name
    with bench.gpu() as restarted:
        bench.open_once()
    assert restarted.builds == []


@pytest.mark.parametrize(
    ("version", "machine", "config"),
    [
        ("10.13.3", {}, TRT),
        ("10.3.0", {"device": "Orin NX"}, TRT),
        ("10.3.0", {"compute_capability": (8, 6)}, TRT),
        ("10.3.0", {"gpu": {"driver_version": 12020}}, TRT),
        ("10.3.0", {"gpu": {"library_version": (12, 2, 0)}}, TRT),
        ("10.3.0", {}, dataclasses.replace(TRT, tensorrt=TensorRtConfig(precision="fp16"))),
        ("10.3.0", {}, dataclasses.replace(TRT, tensorrt=TensorRtConfig(workspace_mb=512))),
    ],
    ids=["TensorRT", "device", "compute capability", "driver's CUDA", "CUDA", "precision", "options"],
)
def test_another_machine_or_option_compiles_anew(
    bench: Bench, version: str, machine: dict[str, Any], config: EngineConfig
) -> None:
    """The must-show, through the whole path: each part of the key, as the libraries tell it."""
    with bench.gpu():
        bench.open_once()
    with bench.gpu(version, **machine) as other:
        bench.open_once(config)
        bench.open_once(config)

    assert len(other.builds) == 1
    assert len(bench.plans()) == 2


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(Graphs)])
def test_every_graph_and_the_calibration_cache_are_in_the_key(bench: Bench, part: str) -> None:
    """The Q/DQ graph may change alone: other ranges, the same float graph."""
    with bench.gpu(), open_gpu() as device:
        graphs, options, api = graphs_of(bench.bundle), options_for(bench.bundle, TRT), load_tensorrt()
        changed = dataclasses.replace(graphs, **{part: (getattr(graphs, part) or b"") + b"x"})

        assert key_for(graphs, options, api, device) == key_for(graphs, options, api, device)
        assert key_for(changed, options, api, device).digest() != key_for(graphs, options, api, device).digest()


NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Oct 19 18:56:32 UTC 2023\n"


def test_nvidias_driver_is_in_the_key(bench: Bench, tmp_path: Path) -> None:
    """Its kernels differ from release to release of the driver, under the same CUDA."""
    keys = []
    for version in ("535.129.03", "535.183.01"):
        root = tmp_path / version
        (root / "proc/driver/nvidia").mkdir(parents=True)
        (root / "proc/driver/nvidia/version").write_text(NVRM.format(version))
        with bench.gpu(), open_gpu() as device:
            graphs, options = graphs_of(bench.bundle), options_for(bench.bundle, TRT)
            keys.append(key_for(graphs, options, load_tensorrt(), device, board=Board(root)))

    assert [key.driver for key in keys] == ["535.129.03", "535.183.01"]
    assert [key.driver_cuda for key in keys] == ["12.6", "12.6"]
    assert keys[0].digest() != keys[1].digest()


@contextlib.contextmanager
def open_gpu() -> Iterator[Device]:
    device = open_device()
    try:
        yield device
    finally:
        device.close()


def test_another_graph_compiles_anew(bench: Bench, tmp_path: Path) -> None:
    """The bundle's next version under the same name."""
    with bench.gpu() as world:
        bench.open_once()
        bench.bundle = golden_bundle(tmp_path / "next.defect")
        bench.open_once()

    assert len(world.builds) == 2


def test_a_corrupted_plan_is_compiled_anew(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The must-show: one byte of the disk, and TensorRT never sees it."""
    with bench.gpu() as world:
        bench.open_once()
        (plan,) = bench.plans()
        data = bytearray(plan.read_bytes())
        data[len(data) // 2] ^= 1
        plan.write_bytes(data)
        with caplog.at_level(logging.WARNING):
            bench.open_once()

    assert len(world.builds) == 2
    assert "engine_dropped" in caplog.messages
    assert len(bench.plans()) == 1


def test_a_plan_that_tensorrt_refuses_is_compiled_anew(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The same version number with another build inside, as an update of JetPack brings: the key fits, the plan not."""
    with bench.gpu():
        bench.open_once()
    (sidecar,) = bench.cache.folder.glob("*-*.plan")
    with bench.gpu("10.13.3"):
        Bench(bench.bundle, EngineCache(bench.cache.folder.parent / "other", 10**9)).open_once()
    (foreign,) = (bench.cache.folder.parent / "other").glob("*.plan")
    with bench.gpu() as world, caplog.at_level(logging.WARNING):
        key = _key(bench)
        bench.cache.keep(key, foreign.read_bytes(), {})
        bench.open_once()

    assert sidecar.name != foreign.name
    assert len(world.builds) == 1
    assert "engine_dropped" in caplog.messages


def _key(bench: Bench) -> EngineKey:
    with open_gpu() as device:
        return key_for(graphs_of(bench.bundle), options_for(bench.bundle, TRT), load_tensorrt(), device)


def overflow(monkeypatch: pytest.MonkeyPatch, runs: range) -> None:
    """From now on the logits are no numbers in these runs, counted from 1."""
    run, counted = ContextPart.execute_async_v3, itertools.count(1)

    def overflowing(part: ContextPart, stream_handle: int) -> bool:
        done = run(part, stream_handle)
        if next(counted) in runs:
            ctypes.memset(part.get_tensor_address("logits"), 0xFF, 4)
        return done

    monkeypatch.setattr(ContextPart, "execute_async_v3", overflowing)


def test_a_cached_plan_that_loads_and_gives_no_numbers_is_compiled_anew_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have come from a build that went wrong; the next one may be good, and then it stays."""
    with bench.gpu() as world, caplog.at_level(logging.WARNING):
        bench.open_once()
        overflow(monkeypatch, range(1, 2))
        bench.open_once()
        bench.open_once()

    assert len(world.builds) == 2
    assert "engine_unproven" in caplog.messages


def test_a_plan_that_compiling_anew_did_not_mend_is_not_compiled_at_every_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes at each start, for the same end; and the day it runs it is taken."""
    with bench.gpu() as world:
        bench.open_once()
        overflow(monkeypatch, range(1, 5))
        for builds in (2, 2, 2):
            with pytest.raises(EngineError, match="logits: values that are no numbers"):
                bench.open_once()
            assert len(world.builds) == builds
        bench.open_once()
        assert len(world.builds) == 2
        assert bench.cache.facts(_key(bench))["failed"] is None


def test_an_engine_of_the_first_build_that_gives_no_numbers_is_not_built_again_at_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was compiled a moment ago is not compiled again."""
    overflow(monkeypatch, range(1, 100))
    with bench.gpu() as world:
        for _ in range(2):
            with pytest.raises(EngineError, match="no numbers"):
                bench.open_once()

    assert len(world.builds) == 1


def test_build_engine_compiles_once_what_gives_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what is wrong with it; the plan that ran stays without a mark."""
    bundle, folder = tensorrt_bundle(tmp_path), tmp_path / "engines"
    arguments = ("agent.cli.build_engine", "--bundle", bundle.path, "--cache", folder, "--json")
    with Bench(bundle, EngineCache(folder, 10**9)).gpu() as world:
        good = run_command(*arguments)
        overflow(monkeypatch, range(1, 100))
        bad = run_command(*arguments, "--rebuild")

    assert (good.code, bad.code) == (0, 2)
    assert len(world.builds) == 2
    assert "values that are no numbers" in bad.err
    assert "did not help" not in bad.err


def test_the_two_kinds_of_memory_are_timed_in_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes down meanwhile must not decide."""
    order: list[int] = []
    run = ContextPart.execute_async_v3

    def recorded(part: ContextPart, stream_handle: int) -> bool:
        order.append(id(part))
        return run(part, stream_handle)

    with bench.gpu(gpu={"is_integrated": True}):
        bench.open_once()
        monkeypatch.setattr(ContextPart, "execute_async_v3", recorded)
        choose_memory(bench.bundle, TRT, bench.cache)

    assert len(set(order)) == 2
    assert all(first != second for first, second in itertools.pairwise(order))


def test_two_engines_that_do_not_fit_into_the_memory_leave_no_choice(bench: Bench) -> None:
    """A small board: one of them does, and that is what runs."""
    with bench.gpu(gpu={"is_integrated": True, "memory_bytes": 1 << 20}):
        bench.open_once()
        assert choose_memory(bench.bundle, TRT, bench.cache) is not None
    with bench.gpu(gpu={"is_integrated": True}, load_out_of_memory=True):
        assert choose_memory(bench.bundle, TRT, bench.cache) is None


def test_trt_never_falls_back(bench: Bench) -> None:
    """No GPU: an error with the remedy, no slow line."""
    with bench.gpu(gpu={"count": 0}), pytest.raises(EngineError, match="finds no GPU") as caught:
        open_engine(bench.bundle, TRT, cache=bench.cache)

    assert "nvidia-smi" in str(caught.value.hint)
    with pytest.raises(EngineError, match="TensorRT is not installed"):
        open_engine(bench.bundle, TRT, cache=bench.cache)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"gpu": {"count": 0}}, "finds no GPU"),
        ({"import_fails": "libnvinfer.so.10: cannot open shared object file"}, "can't be loaded"),
        ({"build_out_of_memory": True}, "memory"),
        ({"load_out_of_memory": True}, "memory"),
    ],
)
def test_auto_may_fall_back_and_says_so_in_the_name(
    bench: Bench, faults: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The name stands in every verdict: nobody finds a silent fall-back by the pile of parts."""
    with bench.gpu(**faults), caplog.at_level(logging.WARNING):
        engine = open_engine(bench.bundle, AUTO, cache=bench.cache)
        engine.close()

    assert engine.kind == "onnxruntime"
    assert fell_back(engine)
    assert "fell back from TensorRT: " in engine.name
    assert reason in engine.name
    assert "engine_fell_back" in caplog.messages


def test_auto_takes_tensorrt_where_it_works(bench: Bench) -> None:
    """The best one here."""
    with bench.gpu():
        assert "TensorRT 10.3.0" in bench.open_once(AUTO)


def test_auto_without_tensorrt_is_onnx_runtime_and_no_fall_back(bench: Bench) -> None:
    """A PC or a Raspberry Pi, as before."""
    engine = open_engine(bench.bundle, AUTO, cache=bench.cache)

    assert not is_tensorrt_expected()
    assert not fell_back(engine)
    assert engine.kind == "onnxruntime"


@pytest.mark.parametrize("config", [EngineConfig(kind="onnxruntime"), EngineConfig(graph="cpu")])
def test_who_asks_for_the_cpu_gets_it(bench: Bench, config: EngineConfig) -> None:
    """Also beside a GPU."""
    with bench.gpu() as world:
        assert bench.open_once(config).startswith("onnxruntime")

    assert world.builds == []


def test_a_line_runs_from_memory_where_the_cache_can_not_be_written(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full or read-only disk costs the next start its minutes, not this one its line."""
    (tmp_path / "file").write_text("in the way")
    bench.cache = EngineCache(tmp_path / "file" / "engines", 10**9)
    with bench.gpu() as world, caplog.at_level(logging.WARNING):
        assert "TensorRT" in bench.open_once()

    assert len(world.builds) == 1
    assert "engine_not_kept" in caplog.messages


def test_an_engine_that_gives_no_numbers_is_not_opened_and_auto_takes_the_cpu(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP16 overflowed: every part would be an error, while the CPU could judge them."""

    def overflowing(part: ContextPart, stream_handle: int) -> bool:
        run(part, stream_handle)
        ctypes.memset(part.get_tensor_address("logits"), 0xFF, 4)
        return True

    run = ContextPart.execute_async_v3
    monkeypatch.setattr(ContextPart, "execute_async_v3", overflowing)
    with bench.gpu():
        with pytest.raises(EngineError, match="logits: values that are no numbers"):
            bench.open_once()
        assert "fell back from TensorRT" in bench.open_once(AUTO)


@pytest.mark.parametrize(
    "error", [RuntimeError("a wheel of another Python"), OSError("libnvinfer.so.10: no such file")]
)
def test_whatever_the_import_of_tensorrt_raises_auto_takes_the_cpu(
    bench: Bench, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A broken install must not stop a line that the CPU can run."""
    (tmp_path / "tensorrt.py").write_text(f"raise {error!r}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    with pytest.raises(EngineError, match="can't be loaded"):
        bench.open_once()
    assert "fell back from TensorRT" in bench.open_once(AUTO)


def test_a_calibration_cache_without_an_int8_graph_is_a_fall_back_and_no_end(tmp_path: Path) -> None:
    """The configuration ran with the bundle before; this one has no graph for it."""
    bundle = golden_bundle(tmp_path)
    assert "trt" not in bundle.manifest.graphs
    bench = Bench(bundle, EngineCache(tmp_path / "engines", 10**9))
    own = TensorRtConfig(calibration_cache=True)
    with bench.gpu():
        with pytest.raises(EngineError, match="calibration_cache"):
            bench.open_once(EngineConfig(kind="trt", tensorrt=own))
        assert "fell back from TensorRT" in bench.open_once(EngineConfig(tensorrt=own))


def test_only_the_engine_that_goes_live_is_the_last_good_one(bench: Bench) -> None:
    """An engine for the next bundle, compiled beside a running line, must not cost the line its own."""
    with bench.gpu():
        bench.open_once()
        assert not (bench.cache.folder / "good").exists()
        engine = open_engine(bench.bundle, TRT, cache=bench.cache)
        engine.close()
        goes_live(engine, bench.cache)
        assert (bench.cache.folder / "good").read_text().strip() == _key(bench).digest()


@pytest.mark.parametrize("is_integrated", [True, False])
def test_accepts_choice_of_the_memory_is_taken_at_the_next_start(bench: Bench, is_integrated: bool) -> None:
    """Measured on boards that share their memory, and on no other."""
    with bench.gpu(gpu={"is_integrated": is_integrated}):
        bench.open_once()
        taken = choose_memory(bench.bundle, TRT, bench.cache)
        noted = bench.cache.memory(_key(bench))
        name = bench.open_once()

    assert ("mapped memory" in name) == (noted == "mapped")
    if not is_integrated:
        assert (taken, noted) == (None, None)
        return
    assert taken is not None
    assert sorted(taken.median_ms) == ["copied", "mapped"]
    assert noted == taken.fastest
    assert taken.is_noted


@pytest.mark.parametrize("noted", ["mapped", "copied"])
@pytest.mark.parametrize("memory", ["auto", "mapped", "copied"])
def test_the_memory_is_the_configurations_else_what_accept_noted(bench: Bench, memory: Any, noted: str) -> None:
    """The engine's name says it."""
    config = EngineConfig(kind="trt", tensorrt=TensorRtConfig(memory=memory))
    with bench.gpu(gpu={"is_integrated": True}):
        bench.open_once()
        bench.cache.note_memory(_key(bench), noted)
        name = bench.open_once(config)

    assert ("mapped memory" in name) == ((noted if memory == "auto" else memory) == "mapped")


CHILD = """
import sys
from pathlib import Path
from agent.bundle import open_bundle
from agent.engines import open_engine
from agent.engines.trt_cache import EngineCache
from tests.agent.test_trt_open import TRT
from tests.kit import pycuda, tensorrt
bundle, folder, gate = map(Path, sys.argv[1:])
with tensorrt.installed("10.3.0", hold_build=gate), pycuda.installed():
    open_engine(open_bundle(bundle), TRT, cache=EngineCache(folder, 10**9))
"""


def test_kill_9_in_the_middle_of_a_build_leaves_the_old_engine(bench: Bench, tmp_path: Path) -> None:
    """The must-show: the power fails while the next bundle is compiled; the old one still starts at once."""
    with bench.gpu():
        bench.open_once()
    before = {path.name: path.read_bytes() for path in bench.cache.folder.iterdir()}
    following, gate = golden_bundle(tmp_path / "next.defect"), tmp_path / "building"
    command = [sys.executable, "-c", CHILD, str(following.path), str(bench.cache.folder), str(gate)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as child:
        wait_until(lambda: gate.exists() or child.poll() is not None, 300, what="the build")
        assert child.poll() is None, child.stderr and child.stderr.read()
        child.kill()

    assert {path.name: path.read_bytes() for path in bench.cache.folder.iterdir()} == before
    with bench.gpu() as world:
        bench.open_once()
        assert world.builds == []
        bench.bundle = following
        bench.open_once()
        assert len(world.builds) == 1
