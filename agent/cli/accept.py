"""`defect-agent accept`: prove on this device that the engine does what the build promised."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.console import DONE, FAILED, number, print_json
from agent.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from agent.acceptance import Measured
    from agent.board import Memory, Sample
    from agent.bundle import Bundle
    from agent.cli.bar import Bar
    from agent.config import AcceptanceConfig, AgentConfig
    from agent.engines import OpenedEngine
    from agent.engines.trt_cache import EngineCache
    from agent.engines.trt_open import MemoryChoice

__all__ = ["EPILOG", "HELP", "NAME", "add_arguments", "run", "show_board", "show_engine", "show_measured"]

NAME = "accept"
HELP = "Replay the bundle's golden pictures on the engine that will run, time it, and accept or refuse it."
EPILOG = """examples:
  defect-agent accept --config /etc/defect-agent/line3.yaml
  defect-agent accept --config line3.yaml --bundle parts-2.0.0.defect      the next bundle, before the line gets it
  defect-agent accept --config line3.yaml --max-p99-ms 8 --runs 1000 --json

The result goes into the state directory: acceptance.json, with which `run` compares the engine from then on; or
acceptance.refused.….json, with which it does not start. It holds for this bundle on exactly this engine: another
TensorRT, driver or option is another engine, and so is one that was compiled anew. An inference that fails refuses it.
Stop the line first: two programs on one GPU are slower than one.

exit: 0 accepted, 1 refused, 2 could not be asked or written down
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
    """Measure, judge, write; exit 1 when refused, written down or not."""
    from agent.acceptance import judge, measured_to_json
    from agent.bundle import open_bundle
    from agent.cli.bar import Bar
    from agent.config import read_config

    config = read_config(args.config)
    limits = _limits(config.acceptance, args)
    bundle = open_bundle(args.bundle or config.bundle)
    bar = Bar()
    try:
        measured, memory = _measured(bundle, config, args.runs, bar)
    finally:
        bar.done()
    problems = judge(measured, limits)
    path, unwritten = _written(config, bundle, measured, limits, problems, memory)
    if args.json:
        result = {
            "accepted": not problems,
            "problems": list(problems),
            "written": None if path is None else str(path),
            "memory_ms": None if memory is None else memory.median_ms,
        }
        print_json({**result, **measured_to_json(measured)})
    else:
        show_measured(measured)
        _show_result(memory, problems, path)
    if unwritten is not None:
        sys.stdout.flush()
        print(f"REFUSED, AND NOT WRITTEN DOWN: `run` does not know of it. {unwritten}", file=sys.stderr, flush=True)
    beyond = judge(measured, config.acceptance) if config.acceptance.required and not problems else ()
    if beyond:
        words = "acceptance.required: `run` holds it to the configuration's limits, and does not start with it"
        print(f"{words}: {'; '.join(beyond)}", file=sys.stderr, flush=True)
    return FAILED if problems else DONE


def _written(
    config: AgentConfig,
    bundle: Bundle,
    measured: Measured,
    limits: AcceptanceConfig,
    problems: Sequence[str],
    memory: MemoryChoice | None,
) -> tuple[Path | None, ConfigError | None]:
    """Where the result stands; for a refusal that can't be written, why.

    Raises:
        ConfigError: an acceptance can't be written, and so is none.
    """
    from agent.acceptance import write_acceptance

    try:
        path = write_acceptance(
            config.state_dir,
            measured,
            bundle=f"{bundle.manifest.name}-{bundle.manifest.version}",
            bundle_digest=bundle.digest,
            limits=limits,
            problems=problems,
            facts={"memory_ms": None if memory is None else memory.median_ms},
        )
    except ConfigError as error:
        if not problems:
            raise
        return None, error
    return path, None


def _show_result(memory: MemoryChoice | None, problems: Sequence[str], path: Path | None) -> None:
    if memory is not None:
        words = ", ".join(f"{how} {ms:.2f} ms" for how, ms in memory.median_ms.items())
        then = "the faster one will run"
        if not memory.is_noted:
            then = f"that can't be noted: set engine.tensorrt.memory: {memory.fastest}, and accept again"
        print(f"transfer  {words}; {then}")
    for problem in problems:
        print(f"REFUSED   {problem}")
    if path is not None:
        print(f"{'refused' if problems else 'accepted'}: {path}")


def show_measured(measured: Measured) -> None:
    """Print what was measured, a line for each kind of thing."""
    show_engine(measured)
    show_board(measured.board, measured.power_mode, measured.samples, measured.memory)


def show_engine(measured: Measured) -> None:
    """Print what the engine does: goldens with their bound, differences, times."""
    changed, n = len(measured.changed), len(measured.answers)
    print(f"engine    {measured.engine}")
    print(f"goldens   {n}, {changed} changed; at most {measured.changed_bound:.1%} of all verdicts (95 % bound)")
    for answer in measured.changed:
        print(f"          {answer.file}: {answer.verdict}, at the build {answer.expected}")
    largest = {role: max(a.difference.get(role, 0.0) for a in measured.answers) for role in _roles(measured)}
    if largest:
        print(f"outputs   off by at most {', '.join(f'{value:.3g} ({role})' for role, value in largest.items())}")
    for how, latency in (("warm", measured.warm), ("cold", measured.cold)):
        if not latency.n:
            print(f"{how:9} nothing was timed")
            continue
        print(
            f"{how:9} p50 {latency.p50:.2f}  p95 {latency.p95:.2f}  p99 {latency.p99:.2f}  worst {latency.worst:.2f} ms"
            f"  ({latency.n} inferences)"
        )
    if measured.failed is not None:
        print(f"failed    {measured.failed}")


def show_board(board: str, power_mode: str | None, samples: Sequence[Sample], memory: Memory) -> None:
    """Print what decides about the times: power mode, heat, clocks, what held the board back, memory."""
    from agent.board import throttled_between

    print(f"board     {board}" + (f", power mode {power_mode}" if power_mode else ""))
    for name, values in (
        ("°C", [sample.temperatures_c for sample in samples]),
        ("MHz", [sample.clocks_mhz for sample in samples]),
    ):
        keys = dict.fromkeys(key for one in values for key in one)
        spans = {key: [one[key] for one in values if key in one] for key in keys}
        words = ", ".join(f"{key} {min(span):.0f} to {max(span):.0f}" for key, span in spans.items())
        print(f"{name:9} {words or 'the board does not say'}")
    print(f"held back {', '.join(throttled_between(list(samples))) or 'by nothing that the board tells of'}")
    peak, free = memory.process_peak_mb, memory.available_mb
    print(f"memory    {peak or '?'} MB at most, {free or '?'} MB free on the board")


def _roles(measured: Measured) -> list[str]:
    return sorted({role for answer in measured.answers for role in answer.difference})


def _limits(limits: AcceptanceConfig, args: argparse.Namespace) -> AcceptanceConfig:
    names = ("max_changed", "max_changed_bound", "max_p99_ms")
    changes: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    return dataclasses.replace(limits, **changes)


def _measured(bundle: Bundle, config: AgentConfig, runs: int, bar: Bar) -> tuple[Measured, MemoryChoice | None]:
    """The measurement, and what each kind of memory took, where there was a choice.

    An engine that can't be kept is not measured: the next start would compile another one. One that fails once it is
    known which it is was measured, whatever was found until then: it is refused, and that is written down.
    """
    from agent.acceptance import reference_graph, unmeasured
    from agent.cores import line_cores, running_on
    from agent.engines import Unproven, fell_back, open_cache, open_engine, time_for_one
    from agent.engines.trt_cache import CacheUnusable

    def opened() -> OpenedEngine:
        within_ms = time_for_one(config)
        with running_on(line_cores(config.line.pin_cores)):  # as `run` does: threads are chosen for these cores
            return open_engine(bundle, config.engine, cache=cache, building=bar, must_keep=True, within_ms=within_ms)

    cache, memory, failed = open_cache(config), None, None
    try:
        engine = opened()
    except Unproven as error:
        return unmeasured(error, reference_graph(bundle, error, config.engine), error.message), None
    try:
        if engine.kind == "trt" and config.engine.tensorrt.memory == "auto":
            engine.close()
            memory, failed = _memory(bundle, config, cache)
            again = opened()
            if fell_back(again):
                return unmeasured(engine, reference_graph(bundle, engine, config.engine), failed or again.name), memory
            engine = again
        return _replayed(bundle, config, engine, runs, bar, failed), memory
    except CacheUnusable:
        raise
    except EngineError as error:
        failed = failed or error.message
        return unmeasured(engine, reference_graph(bundle, engine, config.engine), failed), memory
    finally:
        engine.close()


def _memory(bundle: Bundle, config: AgentConfig, cache: EngineCache) -> tuple[MemoryChoice | None, str | None]:
    """What each kind of memory takes, and why an inference failed meanwhile."""
    from agent.engines.trt_open import choose_memory

    try:
        return choose_memory(bundle, config.engine, cache), None
    except EngineError as error:
        return None, error.message


def _replayed(
    bundle: Bundle, config: AgentConfig, engine: OpenedEngine, runs: int, bar: Bar, failed: str | None
) -> Measured:
    """The goldens and the times; `failed` is why an inference failed before."""
    from agent.acceptance import GoldenReplay, measure, reference_graph

    replay = GoldenReplay(bundle, engine, reference_graph(bundle, engine, config.engine), config.policy)
    measured = measure(replay, engine, runs=runs, heard=bar)
    return measured if failed is None else dataclasses.replace(measured, failed=failed)
