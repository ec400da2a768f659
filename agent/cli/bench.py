"""`defect-agent bench`: how fast a bundle is on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from agent.console import DONE, number, print_json
from agent.errors import BundleError

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run"]

NAME = "bench"
HELP = "Time every graph of a bundle on this machine, graph by graph in turn, with the bundle's golden pictures."
EPILOG = """examples:
  defect-agent bench --bundle neu-1.0.0.defect
  defect-agent bench --bundle neu-1.0.0.defect --seconds 10 --threads 2 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--bundle", type=Path, required=True, metavar="B", help="the .defect file")
    parser.add_argument(
        "--seconds", type=number(float, 0.1, 3600), default=5.0, metavar="S", help="how long to measure (5)"
    )
    parser.add_argument(
        "--threads", type=number(int, 1, 256), default=1, metavar="N", help="CPU threads of one inference (1)"
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


def run(args: argparse.Namespace) -> int:
    """Time preprocess + inference + decoding, interleaved over the graphs."""
    from agent.bundle import open_bundle

    bundle = open_bundle(args.bundle)
    rows = _measure(bundle, args.seconds, args.threads)
    if args.json:
        print_json(
            {
                "bundle": f"{bundle.manifest.name}-{bundle.manifest.version}",
                "digest": bundle.digest,
                "machine": f"{platform.node()} {platform.machine()} {platform.system()} {platform.release()}",
                "threads": args.threads,
                "rows": [dataclasses.asdict(row) for row in rows],
            }
        )
        return DONE
    print(f"{'graph':6} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'parts/s':>8} {'n':>7}  engine")
    for row in rows:
        print(
            f"{row.graph:6} {row.p50_ms:8.2f} {row.p95_ms:8.2f} {row.p99_ms:8.2f} {row.parts_per_s:8.1f}"
            f" {row.n:7}  {row.engine}"
        )
    return DONE


def _measure(bundle: Any, seconds: float, threads: int) -> list[_Row]:
    from agent.config import EngineConfig
    from agent.engines import open_engine
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
    engines = {
        kind: open_engine(bundle, EngineConfig(threads=threads, graph=kind))
        for kind in sorted(bundle.manifest.graphs)
        if kind in ("cpu", "fp32")
    }
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
    for engine in engines.values():
        engine.close()
    return [_row(kind, engines[kind].name, np.array(taken[kind])) for kind in engines]


def _row(graph: str, engine: str, ms: np.ndarray[Any, Any]) -> _Row:
    p50, p95, p99 = (round(float(np.percentile(ms, q)), 3) for q in (50, 95, 99))
    return _Row(
        graph=graph,
        engine=engine,
        n=len(ms),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        parts_per_s=round(1000 / float(ms.mean()), 1),
    )
