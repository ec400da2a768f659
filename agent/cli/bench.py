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
    from agent.board import Sample
    from agent.bundle import Bundle
    from agent.engines import Engine

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "bench"
PROGRESS_S = 2.0
HELP = "Time every graph of a bundle on this machine, graph by graph in turn, with the bundle's golden pictures."
EPILOG = """examples:
  defect-agent bench --bundle neu-1.0.0.defect
  defect-agent bench --bundle neu-1.0.0.defect --seconds 10 --threads 2 --json
  defect-agent bench --profile pi5.json large.onnx small.onnx neu-1.0.0.defect

Each graph that the CPU runs is timed, and TensorRT's engine where TensorRT is installed (compiled first, where it is
not yet). The golden pictures are replayed as by `defect-agent accept`, which judges, too.

--profile times many networks in turn, inference alone, and writes what `defect-opt ladder --profile` reads on the
workstation, so that a network is chosen by its time on this device and not by its multiplications.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--bundle", type=Path, metavar="B", help="the .defect file")
    parser.add_argument("--profile", type=Path, metavar="OUT.json", help="time FILEs and write a device profile")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="with --profile: .onnx and .defect files")
    parser.add_argument(
        "--seconds", type=number(float, 0.1, 3600), default=5.0, metavar="S", help="how long to measure (5)"
    )
    parser.add_argument(
        "--threads", type=number(int, 1, 256), default=1, metavar="N", help="CPU threads of one inference (1)"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where TensorRT's engine is kept (~/.cache)")
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


def run(args: argparse.Namespace) -> int:
    """Time preprocess + inference + decoding, interleaved over the graphs; or make a device profile."""
    from agent.acceptance import board_to_json
    from agent.board import Board
    from agent.bundle import open_bundle

    _check(args)
    if args.profile is not None:
        return _profile(args)
    bundle = open_bundle(args.bundle)
    samples = [(board := Board()).sample()]
    rows = _measure(bundle, args)
    samples.append(board.sample())
    if args.json:
        print_json(
            {
                "bundle": f"{bundle.manifest.name}-{bundle.manifest.version}",
                "digest": bundle.digest,
                "machine": f"{platform.node()} {platform.machine()} {platform.system()} {platform.release()}",
                "threads": args.threads,
                "rows": [dataclasses.asdict(row) for row in rows],
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
        if row.changed:
            print(f"{row.graph}: {row.changed} of {row.goldens} golden pictures get another verdict than at the build")
    _show_board(board.power_mode(), samples)
    return DONE


def _show_board(power_mode: str | None, samples: list[Sample]) -> None:
    """What decides about the figures above: power mode, heat, and what held the board back."""
    from agent.board import throttled_between

    hottest = max((value for sample in samples for value in sample.temperatures_c.values()), default=None)
    told = [
        f"power mode {power_mode}" if power_mode else "",
        f"at most {hottest:.0f} °C" if hottest is not None else "",
        *(f"held back: {words}" for words in throttled_between(samples)),
    ]
    if any(told):
        print(f"board: {', '.join(words for words in told if words)}")


def _check(args: argparse.Namespace) -> None:
    if (args.bundle is None) == (args.profile is None):
        raise UserError(
            "bench: expected either --bundle B, or --profile OUT.json FILE...",
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
    profile = profile_graphs(args.files, threads=args.threads, seconds=args.seconds, heard=heard)
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


def _measure(bundle: Bundle, args: argparse.Namespace) -> list[_Row]:
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
    engines = _engines(bundle, args)
    inspectors = {kind: Inspector(bundle, engine) for kind, engine in engines.items()}
    taken: dict[str, list[float]] = {kind: [] for kind in engines}
    for inspector in inspectors.values():
        for frame in frames[:5]:
            inspector.inspect(frame)
    deadline, turn = time.monotonic() + args.seconds, 0
    while time.monotonic() < deadline or turn < 10:
        for kind, inspector in inspectors.items():
            start = time.perf_counter_ns()
            inspector.inspect(frames[turn % len(frames)])
            taken[kind].append((time.perf_counter_ns() - start) / 1e6)
        turn += 1
    rows = [
        _row(kind, engine, np.array(taken[kind]), _changed(bundle, engine, kind)) for kind, engine in engines.items()
    ]
    for engine in engines.values():
        engine.close()
    return rows


def _engines(bundle: Bundle, args: argparse.Namespace) -> dict[str, Engine]:
    """One for each graph that a CPU runs, and TensorRT's where it is installed and works."""
    from agent.cli.bar import Bar
    from agent.config import EngineConfig
    from agent.engines import is_tensorrt_expected, open_engine
    from agent.engines.trt_cache import EngineCache, user_cache_dir

    kinds: tuple[Literal["cpu", "fp32"], ...] = ("cpu", "fp32")
    engines: dict[str, Engine] = {
        kind: open_engine(bundle, EngineConfig(threads=args.threads, graph=kind))
        for kind in kinds
        if kind in bundle.manifest.graphs
    }
    if is_tensorrt_expected():
        config, bar = EngineConfig(kind="trt"), Bar()
        cache = EngineCache(args.cache or user_cache_dir(), config.tensorrt.cache_mb * 1_000_000)
        try:
            engines["trt"] = open_engine(bundle, config, cache=cache, building=bar)
        except (EngineError, BundleError) as error:
            print(f"trt: not timed: {error}", file=sys.stderr)
        finally:
            bar.done()
    return engines


def _changed(bundle: Bundle, engine: Engine, kind: str) -> tuple[int, int]:
    """How many goldens there are for an engine, and how many get another verdict than at the build."""
    from agent.acceptance import GoldenReplay, reference_graph
    from agent.config import EngineConfig, PolicyConfig

    graph = reference_graph(bundle, engine, EngineConfig()) if kind == "trt" else kind
    replay = GoldenReplay(bundle, engine, graph, PolicyConfig())
    return len(replay), sum(replay.play(index).changed for index in range(len(replay)))


def _row(graph: str, engine: Engine, ms: np.ndarray[Any, Any], goldens: tuple[int, int]) -> _Row:
    p50, p95, p99 = (round(float(np.percentile(ms, q)), 3) for q in (50, 95, 99))
    return _Row(
        graph=graph,
        engine=engine.name,
        n=len(ms),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        parts_per_s=round(1000 / float(ms.mean()), 1),
        goldens=goldens[0],
        changed=goldens[1],
    )
