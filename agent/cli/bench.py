"""`defect-agent bench`: how fast a bundle is on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from agent.console import DONE, number, print_json
from agent.errors import BundleError, EngineError, UserError

if TYPE_CHECKING:
    from agent.acceptance import Measured
    from agent.bundle import Bundle
    from agent.config import EngineConfig, PolicyConfig
    from agent.engines import OpenedEngine
    from agent.engines.trt_cache import EngineCache

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "bench"
PROGRESS_S = 2.0
ALONE = 100
"""Inferences in a row of each engine, and a tenth as many after a rest."""
HELP = "Time every graph of a bundle on this machine, graph by graph in turn, with the bundle's golden pictures."
EPILOG = """examples:
  defect-agent bench --bundle neu-1.0.0.defect
  defect-agent bench --bundle neu-1.0.0.defect --seconds 10 --threads 2 --json
  defect-agent bench --config /etc/defect-agent/line3.yaml      with the station's bundle, options, limits and engine
  defect-agent bench --profile pi5.json large.onnx small.onnx neu-1.0.0.defect

Each graph that the CPU runs is timed, and TensorRT's engine where TensorRT is installed (compiled first, where it is
not yet): first the whole way of a picture, graph by graph in turn, then inference alone as `defect-agent accept` times
it, warm and cold, with the golden pictures replayed. `accept` judges, too.

--profile times many networks in turn, inference alone, and writes what `defect-opt ladder --profile` reads on the
workstation, so that a network is chosen by its time on this device and not by its multiplications.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--bundle", type=Path, metavar="B", help="the .defect file; without it the configuration's")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the station's YAML file: options, limits, engine")
    parser.add_argument("--profile", type=Path, metavar="OUT.json", help="time FILEs and write a device profile")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="with --profile: .onnx and .defect files")
    parser.add_argument(
        "--seconds", type=number(float, 0.1, 3600), default=5.0, metavar="S", help="how long to measure (5)"
    )
    parser.add_argument(
        "--threads", type=number(int, 1, 256), metavar="N", help="CPU threads of one inference (the station's, else 1)"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where TensorRT's engine is kept (the station's, else ~/.cache)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    graph: str
    engine: str
    n: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    parts_per_s: float
    goldens: int
    changed: int
    measured: Measured

    def to_json(self) -> dict[str, Any]:
        from agent.acceptance import measured_to_json

        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**own, "measured": measured_to_json(self.measured)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The bundle, and how it is to be run."""

    bundle: Path
    engine: EngineConfig
    policy: PolicyConfig
    cache: EngineCache


def run(args: argparse.Namespace) -> int:
    """Time preprocess + inference + decoding, interleaved over the graphs; or make a device profile."""
    from agent.acceptance import board_to_json
    from agent.board import Board
    from agent.bundle import open_bundle
    from agent.cli.accept import show_board, show_engine

    _check(args)
    if args.profile is not None:
        return _profile(args)
    asked = _asked(args)
    bundle = open_bundle(asked.bundle)
    first = (board := Board()).sample()
    rows = _measure(bundle, asked, args.seconds)
    samples = [first, *(sample for row in rows for sample in row.measured.samples), board.sample()]
    if args.json:
        print_json(
            {
                "bundle": f"{bundle.manifest.name}-{bundle.manifest.version}",
                "digest": bundle.digest,
                "machine": f"{platform.node()} {platform.machine()} {platform.system()} {platform.release()}",
                "threads": asked.engine.threads,
                "rows": [row.to_json() for row in rows],
                "board": board_to_json(board.words(), board.power_mode(), samples),
                "memory": dataclasses.asdict(board.memory()),
            }
        )
        return DONE
    print(f"{'graph':6} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'parts/s':>8} {'n':>7}  engine")
    for row in rows:
        print(
            f"{row.graph:6} {row.p50_ms:8.2f} {row.p95_ms:8.2f} {row.p99_ms:8.2f} {row.parts_per_s:8.1f}"
            f" {row.n:7}  {row.engine}"
        )
    for row in rows:
        print(f"\n{row.graph}: one inference alone, and the golden pictures")
        show_engine(row.measured)
    print()
    show_board(board.words(), board.power_mode(), samples, board.memory())
    return DONE


def _asked(args: argparse.Namespace) -> _Asked:
    from agent.config import EngineConfig, PolicyConfig, read_config
    from agent.engines import open_cache
    from agent.engines.trt_cache import EngineCache, user_cache_dir

    if args.config is None:
        engine, policy, bundle, own = EngineConfig(threads=1), PolicyConfig(), args.bundle, None
    else:
        station = read_config(args.config)
        engine, policy, bundle = station.engine, station.policy, args.bundle or station.bundle
        own = open_cache(station)
    if own is None or args.cache is not None:
        own = EngineCache(args.cache or user_cache_dir(), engine.tensorrt.cache_mb * 1_000_000)
    engine = dataclasses.replace(engine, threads=args.threads or engine.threads)
    return _Asked(bundle=bundle, engine=engine, policy=policy, cache=own)


def _check(args: argparse.Namespace) -> None:
    if (args.bundle is None and args.config is None) == (args.profile is None):
        raise UserError(
            "bench: expected either --bundle B, or --profile OUT.json FILE..., or --config FILE",
            hint="defect-agent bench --bundle neu-1.0.0.defect",
        )
    if args.profile is not None and not args.files:
        raise UserError("--profile: no files to time", hint=f"defect-agent bench --profile {args.profile} FILE...")
    if args.profile is None and args.files:
        raise UserError(f"bench: got {args.files[0]} beside --bundle", hint="--profile OUT.json FILE... times many")
    if args.profile is not None and not args.profile.absolute().parent.is_dir():
        raise UserError(f"--profile: the folder of {args.profile} does not exist")


def _profile(args: argparse.Namespace) -> int:
    from agent.profile import profile_graphs, profile_to_json, write_profile

    last = time.monotonic()

    def heard(rounds: int, seconds: float) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            print(f"[{seconds:6.1f} s] {rounds} rounds", file=sys.stderr, flush=True)

    print(f"timing {len(args.files)} files in turn for {args.seconds:g} s", file=sys.stderr, flush=True)
    profile = profile_graphs(args.files, threads=args.threads or 1, seconds=args.seconds, heard=heard)
    write_profile(args.profile, profile)
    if args.json:
        print_json(profile_to_json(profile))
        return DONE
    print(f"{'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'n':>6}  file")
    for timing in sorted(profile.graphs.values(), key=lambda timing: timing.p50_ms):
        print(f"{timing.p50_ms:8.2f} {timing.p95_ms:8.2f} {timing.p99_ms:8.2f} {timing.n:6}  {timing.file}")
    print(f"{profile.engine} on {profile.device}")
    print(f"written to {args.profile}; on the workstation: defect-opt ladder --profile {args.profile.name} ...")
    return DONE


def _measure(bundle: Bundle, asked: _Asked, seconds: float) -> list[_Row]:
    from agent.frame import Frame, Part, Stamp
    from agent.inspection import Inspector

    goldens = bundle.goldens()
    if not goldens:
        raise BundleError(f"{bundle.path}: holds no golden pictures to measure with", hint="rebuild it with defect-opt")
    frames = [
        Frame(
            part=Part(id=g.file, trigger="bench", sequence=i, triggered=Stamp.now()),
            image=np.ascontiguousarray(g.image[:, :, ::-1]),
            camera="bench",
            source=g.file,
            sequence=i,
            captured=Stamp.now(),
        )
        for i, g in enumerate(goldens)
    ]
    engines = _engines(bundle, asked)
    inspectors = {kind: Inspector(bundle, engine) for kind, engine in engines.items()}
    taken: dict[str, list[float]] = {kind: [] for kind in engines}
    for inspector in inspectors.values():
        for frame in frames[:5]:
            inspector.inspect(frame)
    deadline, turn = time.monotonic() + seconds, 0
    while time.monotonic() < deadline or turn < 10:
        for kind, inspector in inspectors.items():
            start = time.perf_counter_ns()
            inspector.inspect(frames[turn % len(frames)])
            taken[kind].append((time.perf_counter_ns() - start) / 1e6)
        turn += 1
    rows = [
        _row(kind, engine, np.array(taken[kind]), _alone(bundle, engine, kind, asked))
        for kind, engine in engines.items()
    ]
    for engine in engines.values():
        engine.close()
    return rows


def _engines(bundle: Bundle, asked: _Asked) -> dict[str, OpenedEngine]:
    """One for each graph that a CPU runs, and TensorRT's where it is installed and works."""
    from agent.cli.bar import Bar
    from agent.engines import is_tensorrt_expected, open_engine

    kinds: tuple[Literal["cpu", "fp32"], ...] = ("cpu", "fp32")
    engines: dict[str, OpenedEngine] = {
        kind: open_engine(bundle, dataclasses.replace(asked.engine, kind="onnxruntime", graph=kind), cache=asked.cache)
        for kind in kinds
        if kind in bundle.manifest.graphs
    }
    if is_tensorrt_expected():
        config, bar = dataclasses.replace(asked.engine, kind="trt", graph="auto"), Bar()
        try:
            engines["trt"] = open_engine(bundle, config, cache=asked.cache, building=bar)
        except (EngineError, BundleError) as error:
            print(f"trt: not timed: {error}", file=sys.stderr)
        finally:
            bar.done()
    return engines


def _alone(bundle: Bundle, engine: OpenedEngine, kind: str, asked: _Asked) -> Measured:
    """What `accept` measures: one inference without the rest, warm and cold, and the goldens replayed."""
    from agent.acceptance import GoldenReplay, measure, reference_graph

    graph = reference_graph(bundle, engine, asked.engine) if kind == "trt" else kind
    measured = measure(GoldenReplay(bundle, engine, graph, asked.policy), engine, runs=ALONE)
    if measured.failed:
        raise EngineError(f"{engine.name}: {measured.failed}", hint="`defect-agent accept` writes down what was found")
    return measured


def _row(graph: str, engine: OpenedEngine, ms: np.ndarray[Any, Any], measured: Measured) -> _Row:
    p50, p95, p99 = (round(float(np.percentile(ms, q)), 3) for q in (50, 95, 99))
    return _Row(
        graph=graph,
        engine=engine.name,
        n=len(ms),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        parts_per_s=round(1000 / float(ms.mean()), 1),
        goldens=len(measured.answers),
        changed=len(measured.changed),
        measured=measured,
    )
