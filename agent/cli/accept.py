"""`defect-agent accept`: prove on this device that the engine does what the build promised."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, FAILED, number, print_json

if TYPE_CHECKING:
    from agent.acceptance import Measured
    from agent.bundle import Bundle
    from agent.cli.bar import Bar
    from agent.config import AcceptanceConfig, AgentConfig

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run", "show_measured"]

NAME = "accept"
HELP = "Replay the bundle's golden pictures on the engine that will run, time it, and accept or refuse it."
EPILOG = """examples:
  defect-agent accept --config /etc/defect-agent/line3.yaml
  defect-agent accept --config line3.yaml --bundle parts-2.0.0.defect      the next bundle, before the line gets it
  defect-agent accept --config line3.yaml --max-p99-ms 8 --runs 1000 --json

The result goes into the state directory: acceptance.json, with which `run` compares the engine from then on; or
acceptance.refused.json, with which it does not start. Stop the line first: two programs on one GPU are slower than one.

exit: 0 accepted, 1 refused
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the station's YAML file")
    parser.add_argument("--bundle", type=Path, metavar="B", help="another .defect file than the configured one")
    parser.add_argument(
        "--runs", type=number(int, 20, 1_000_000), default=200, metavar="N", help="inferences to time (200)"
    )
    limits = parser.add_argument_group("limits in place of the configuration's")
    limits.add_argument(
        "--max-changed", type=number(int, 0, 200), metavar="N", help="golden pictures with another verdict"
    )
    limits.add_argument(
        "--max-changed-bound", type=number(float, 0, 1), metavar="R", help="95 %% bound on the rate of such verdicts"
    )
    limits.add_argument("--max-p99-ms", type=number(float, 0.001, 1e5), metavar="MS", help="p99 of one inference, warm")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Measure, judge, write; exit 1 when refused."""
    from agent.acceptance import judge, measured_to_json, write_acceptance
    from agent.bundle import open_bundle
    from agent.cli.bar import Bar
    from agent.config import read_config

    config = read_config(args.config)
    limits = _limits(config.acceptance, args)
    bundle = open_bundle(args.bundle or config.bundle)
    bar = Bar()
    try:
        measured, memory = _measure(bundle, config, args.runs, bar)
    finally:
        bar.done()
    problems = judge(measured, limits)
    path = write_acceptance(
        config.state_dir,
        measured,
        bundle=f"{bundle.manifest.name}-{bundle.manifest.version}",
        bundle_digest=bundle.digest,
        limits=limits,
        problems=problems,
        facts={"memory_ms": memory},
    )
    if args.json:
        result = {"accepted": not problems, "problems": list(problems), "written": str(path), "memory_ms": memory}
        print_json({**result, **measured_to_json(measured)})
        return FAILED if problems else DONE
    show_measured(measured)
    if memory:
        print(f"transfer  {', '.join(f'{how} {ms:.2f} ms' for how, ms in memory.items())}; the faster one will run")
    for problem in problems:
        print(f"REFUSED   {problem}")
    print(f"{'refused' if problems else 'accepted'}: {path}")
    return FAILED if problems else DONE


def show_measured(measured: Measured) -> None:
    """Print what was measured, a line for each kind of thing."""
    changed, n = len(measured.changed), len(measured.answers)
    print(f"engine    {measured.engine}")
    print(f"goldens   {n}, {changed} changed; at most {measured.changed_bound:.1%} of all verdicts (95 % bound)")
    for answer in measured.changed:
        print(f"          {answer.file}: {answer.verdict}, at the build {answer.expected}")
    largest = {role: max(a.difference.get(role, 0.0) for a in measured.answers) for role in _roles(measured)}
    if largest:
        print(f"outputs   off by at most {', '.join(f'{value:.3g} ({role})' for role, value in largest.items())}")
    for how, latency in (("warm", measured.warm), ("cold", measured.cold)):
        print(
            f"{how:9} p50 {latency.p50:.2f}  p95 {latency.p95:.2f}  p99 {latency.p99:.2f}  worst {latency.worst:.2f} ms"
            f"  ({latency.n} inferences)"
        )
    print(f"board     {measured.board}" + (f", power mode {measured.power_mode}" if measured.power_mode else ""))
    for name, values in (
        ("°C", [sample.temperatures_c for sample in measured.samples]),
        ("MHz", [sample.clocks_mhz for sample in measured.samples]),
    ):
        keys = dict.fromkeys(key for one in values for key in one)
        spans = {key: [one[key] for one in values if key in one] for key in keys}
        words = ", ".join(f"{key} {min(span):.0f} to {max(span):.0f}" for key, span in spans.items())
        print(f"{name:9} {words or 'the board does not say'}")
    print(f"held back {', '.join(measured.throttled) or 'by nothing that the board tells of'}")
    peak, free = measured.memory.process_peak_mb, measured.memory.available_mb
    print(f"memory    {peak or '?'} MB at most, {free or '?'} MB free on the board")


def _roles(measured: Measured) -> list[str]:
    return sorted({role for answer in measured.answers for role in answer.difference})


def _limits(limits: AcceptanceConfig, args: argparse.Namespace) -> AcceptanceConfig:
    names = ("max_changed", "max_changed_bound", "max_p99_ms")
    changes: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    return dataclasses.replace(limits, **changes)


def _measure(bundle: Bundle, config: AgentConfig, runs: int, bar: Bar) -> tuple[Measured, dict[str, float] | None]:
    """The measurement, and what each kind of memory took, where there was a choice."""
    from agent.acceptance import GoldenReplay, measure, reference_graph
    from agent.engines import open_cache, open_engine

    cache = open_cache(config)
    engine = open_engine(bundle, config.engine, cache=cache, building=bar)
    memory = None
    if engine.kind == "trt" and config.engine.tensorrt.memory == "auto":
        from agent.engines.trt_open import choose_memory

        engine.close()
        memory = choose_memory(bundle, config.engine, cache)
        engine = open_engine(bundle, config.engine, cache=cache, building=bar)
    try:
        replay = GoldenReplay(bundle, engine, reference_graph(bundle, engine, config.engine), config.policy)
        return measure(replay, engine, runs=runs, heard=bar), memory
    finally:
        engine.close()
