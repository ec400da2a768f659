"""Device profile: how long graphs take on this device, for a workstation that chooses between networks.

A profile is keyed by the structure digest that `defect-opt` writes into each graph's metadata (`structure`): it leaves
the values of the weights out, so a network that is trained longer keeps its timing. All graphs are timed in turn, each
round in the opposite order; what is timed is inference alone, through the engine that runs the line. On one thread
it is the thread's own CPU time, which on a quiet machine is all the time that passes: on a busy one a long inference
is interrupted and a short one is not (the same pair was once 7.6 and once 28 times as fast), in any order of rounds.

The file is data from another machine, so it is read strictly: an unknown key, a missing one, a value that is no number
or another version is refused in one sentence.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.bundle import InputSpec, Outputs, open_bundle
from agent.errors import BundleError, ConfigError, EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agent.engines.onnxrt import OnnxRuntimeEngine

__all__ = [
    "STRUCTURE",
    "DeviceProfile",
    "GraphTiming",
    "TimedGraph",
    "device_words",
    "graphs_of",
    "profile_from_json",
    "profile_graphs",
    "profile_to_json",
    "read_profile",
    "time_graphs",
    "write_profile",
]

STRUCTURE = "structure"
"""The key in a graph's metadata; `optimize.structure` writes it."""

VERSION = 1
WARM_UPS, MIN_ROUNDS, MAX_ROUNDS = 5, 15, 2000
PICTURES = 8
"""Noise pictures that take turns: the time of a dense network does not depend on what is shown."""

MAX_PROFILE_BYTES = 4 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_AGAIN = "make it again on the device: defect-agent bench --profile OUT.json FILE..."

Heard = Callable[[int, float], None]
"""Told after each round: rounds done, and seconds since the first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GraphTiming:
    """How long one graph takes.

    Attributes:
        file: which file it was timed in; a bundle's graph as `neu-1.0.0.defect:model.cpu.onnx`.
        p50_ms: median of inference alone, in milliseconds; of one thread its CPU time.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        n: inferences timed.
        waited: share of the time that passed in which the inferences waited for a core; 0 where that was not measured.
    """

    file: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    n: int
    waited: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """Timings of one device.

    Attributes:
        device: which, in words.
        engine: what ran the graphs, in words.
        threads: CPU threads of one inference.
        measured_at: when, UTC, RFC 3339.
        graphs: by structure digest.
    """

    device: str
    engine: str
    threads: int
    measured_at: str
    graphs: Mapping[str, GraphTiming]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedGraph:
    """A graph that is to be timed.

    Attributes:
        file: what it is called.
        structure: its digest.
        graph: the ONNX bytes.
        spec: its input.
        outputs: which output is what.
        label: precision in words.
    """

    file: str
    structure: str
    graph: bytes
    spec: InputSpec
    outputs: Outputs
    label: str = "fp32"


def graphs_of(path: Path) -> Iterator[TimedGraph]:
    """The graphs of an ONNX file or a bundle that a CPU can run.

    Raises:
        BundleError: the bundle can't be used, or a graph bears no structure digest.
        EngineError: a graph can't be loaded.
    """
    if path.suffix.lower() != ".onnx":
        bundle = open_bundle(path)
        for kind, name in sorted(bundle.manifest.graphs.items()):
            label = {"cpu": "int8", "fp32": "fp32"}.get(kind)
            if label is not None:
                spec, outputs = bundle.manifest.input, bundle.manifest.outputs
                yield _timed(f"{path.name}:{name}", bundle.graph(kind), spec, outputs, label)
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: can't be read ({error.strerror})", hint="give .onnx or .defect files") from error
    yield _timed(path.name, data, None, None, "fp32")


def time_graphs(
    graphs: Sequence[TimedGraph], *, threads: int, seconds: float, heard: Heard | None = None
) -> tuple[list[GraphTiming], str]:
    """Time graphs in turn on this machine.

    Args:
        graphs: at least one; all are open at the same time.
        threads: CPU threads of one inference.
        seconds: how long to measure, over all of them; at least 15 rounds are run.
        heard: told after each round.

    Returns:
        A timing for each graph, in order, and the engine in words.

    Raises:
        EngineError: a graph can't be loaded or run.
    """
    engines: list[OnnxRuntimeEngine] = []
    try:
        for one in graphs:
            engines.append(_opened(one, threads))  # noqa: PERF401 - those that are open are closed if a later one fails
        pictures = [_pictures(one.spec) for one in graphs]
        taken = _rounds(engines, pictures, seconds, heard, own_time=threads == 1)
    finally:
        for engine in engines:
            engine.close()
    words = re.sub(r" (?:int8|fp32)(?=, )", "", engines[0].name)
    return [_timing(one.file, *times) for one, times in zip(graphs, taken, strict=True)], words


def profile_graphs(
    paths: Sequence[Path], *, threads: int = 1, seconds: float = 10.0, heard: Heard | None = None
) -> DeviceProfile:
    """Time every graph of some files on this machine; of graphs with one structure the first is timed.

    Args:
        paths: ONNX files that `defect-opt` wrote, and bundles.
        threads: CPU threads of one inference.
        seconds: how long to measure, over all of them.
        heard: told after each round.

    Raises:
        BundleError: a file can't be used, or a graph bears no structure digest.
        EngineError: a graph can't be loaded or run.
    """
    by_structure: dict[str, TimedGraph] = {}
    for path in paths:
        for one in graphs_of(path):
            by_structure.setdefault(one.structure, one)
    if not by_structure:
        raise BundleError("bench: no graph that a CPU can run in these files", hint="give .onnx or .defect files")
    timings, engine = time_graphs(list(by_structure.values()), threads=threads, seconds=seconds, heard=heard)
    return DeviceProfile(
        device=device_words(),
        engine=engine,
        threads=threads,
        measured_at=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        graphs=dict(zip(by_structure, timings, strict=True)),
    )


def device_words() -> str:
    """This machine in words: the board's model where it says so, else the processor's."""
    board = _first_text(Path("/proc/device-tree/model"), r"(.+)")
    processor = board or _first_text(Path("/proc/cpuinfo"), r"(?m)^model name\s*:\s*(.+)$")
    return f"{processor or 'CPU'}, {platform.machine()} {platform.system()} {platform.release()}"


def profile_to_json(profile: DeviceProfile) -> dict[str, Any]:
    """Plain values, as the file holds them."""
    return {
        "version": VERSION,
        "device": profile.device,
        "engine": profile.engine,
        "threads": profile.threads,
        "measured_at": profile.measured_at,
        "graphs": {digest: dataclasses.asdict(timing) for digest, timing in sorted(profile.graphs.items())},
    }


def write_profile(path: Path, profile: DeviceProfile) -> None:
    """Write the file, whole or not at all.

    Raises:
        ConfigError: it can't be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(profile_to_json(profile), file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror})", hint="choose another --profile") from error


def read_profile(path: Path) -> DeviceProfile:
    """Read a profile that a device made.

    Raises:
        ConfigError: it can't be read, or is not one; one sentence names the key.
    """
    try:
        if path.stat().st_size > MAX_PROFILE_BYTES:
            raise ConfigError(f"{path}: has more than {MAX_PROFILE_BYTES >> 20} MiB, a profile is small", hint=_AGAIN)
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})", hint=_AGAIN) from error
    try:
        return profile_from_json(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=_AGAIN) from error


def profile_from_json(data: bytes) -> DeviceProfile:
    """Check and take over what the file holds.

    Raises:
        ConfigError: not JSON, another version, an unknown or missing key, a wrong type or value.
    """
    try:
        raw = json.loads(data, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is no device profile: not JSON ({error})") from error
    if not isinstance(raw, dict) or "version" not in raw:
        raise ConfigError("is no device profile: expected an object with a version")
    if raw["version"] != VERSION or isinstance(raw["version"], bool):
        raise ConfigError(f"version: got {raw['version']!r}, this program reads {VERSION}")
    _check_keys("", raw, {"version", "device", "engine", "threads", "measured_at", "graphs"})
    graphs = raw["graphs"]
    if not isinstance(graphs, dict) or not graphs:
        raise ConfigError("graphs: expected an object with at least one graph")
    return DeviceProfile(
        device=_text("device", raw["device"]),
        engine=_text("engine", raw["engine"]),
        threads=_whole("threads", raw["threads"], 256),
        measured_at=_text("measured_at", raw["measured_at"]),
        graphs={digest: _timing_from_json(digest, entry) for digest, entry in graphs.items()},
    )


def _timing_from_json(digest: str, raw: Any) -> GraphTiming:
    if not _DIGEST.fullmatch(digest):
        raise ConfigError(f"graphs: got the key {digest[:70]!r}, expected 64 hexadecimal digits")
    where = f"graphs.{digest[:12]}"
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: got {type(raw).__name__}, expected an object")
    raw = {"waited": 0.0, **raw}  # older profiles lack it
    _check_keys(f"{where}.", raw, {field.name for field in dataclasses.fields(GraphTiming)})
    p50, p95, p99 = (_positive(f"{where}.{key}", raw[key]) for key in ("p50_ms", "p95_ms", "p99_ms"))
    if not p50 <= p95 <= p99:
        raise ConfigError(f"{where}: got p50 {p50:g}, p95 {p95:g}, p99 {p99:g} ms, expected them in this order")
    n = _whole(f"{where}.n", raw["n"], 10**9)
    waited = _share(f"{where}.waited", raw["waited"])
    return GraphTiming(file=_text(f"{where}.file", raw["file"]), p50_ms=p50, p95_ms=p95, p99_ms=p99, n=n, waited=waited)


def _timed(file: str, graph: bytes, spec: InputSpec | None, outputs: Outputs | None, label: str) -> TimedGraph:
    from agent.engines.onnxrt import facts_of_graph

    try:
        facts = facts_of_graph(graph)
    except EngineError as error:
        raise EngineError(f"{file}: {error.message}", hint=error.hint) from error
    structure = facts.metadata.get(STRUCTURE, "")
    if not _DIGEST.fullmatch(structure):
        raise BundleError(
            f"{file}: holds no `{STRUCTURE}` in its metadata, so its timing could not be told to belong to it",
            hint="train, prune or build it again with this defect-opt: older ones did not write it",
        )
    wanted = outputs or facts.outputs
    if wanted == Outputs():
        raise BundleError(f"{file}: has neither logits nor boxes", hint="make a bundle of it with `defect-opt build`")
    return TimedGraph(file=file, structure=structure, graph=graph, spec=spec or facts.spec, outputs=wanted, label=label)


def _opened(one: TimedGraph, threads: int) -> OnnxRuntimeEngine:
    """The graph in its engine, warm."""
    from agent.engines.onnxrt import OnnxRuntimeEngine

    try:
        engine = OnnxRuntimeEngine(one.graph, threads=threads, label=one.label, spec=one.spec, outputs=one.outputs)
        for _ in range(WARM_UPS):
            engine.infer(_pictures(one.spec)[0])
    except EngineError as error:
        raise EngineError(f"{one.file}: {error.message}", hint=error.hint) from error
    return engine


def _rounds(
    engines: Sequence[OnnxRuntimeEngine],
    pictures: Sequence[Sequence[NDArray[np.uint8]]],
    seconds: float,
    heard: Heard | None,
    *,
    own_time: bool,
) -> list[tuple[list[float], list[float]]]:
    """Milliseconds of each graph, and those that passed on the wall; each round in the opposite order."""
    taken: list[tuple[list[float], list[float]]] = [([], []) for _ in engines]
    clock = time.thread_time_ns if own_time else time.perf_counter_ns
    started = time.monotonic()
    for turn in range(MAX_ROUNDS):
        if turn >= MIN_ROUNDS and time.monotonic() - started > seconds:
            break
        order = range(len(engines)) if turn % 2 == 0 else range(len(engines) - 1, -1, -1)
        for i in order:
            picture = pictures[i][turn % PICTURES]
            wall, start = time.perf_counter_ns(), clock()
            engines[i].infer(picture)
            spent, passed = clock() - start, time.perf_counter_ns() - wall
            taken[i][0].append(spent / 1e6)
            taken[i][1].append(passed / 1e6)
        if heard is not None:
            heard(turn + 1, time.monotonic() - started)
    return taken


def _pictures(spec: InputSpec) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    shape = (1, spec.height_px, spec.width_px, 3)
    return [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(PICTURES)]


def _timing(file: str, taken: Sequence[float], passed: Sequence[float]) -> GraphTiming:
    p50, p95, p99 = (max(round(float(value), 4), 1e-4) for value in np.percentile(taken, (50, 95, 99)))
    waited = round(max(0.0, 1 - sum(taken) / sum(passed)), 3)
    return GraphTiming(file=file, p50_ms=p50, p95_ms=p95, p99_ms=p99, n=len(taken), waited=waited)


def _first_text(path: Path, pattern: str) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(pattern, text.replace("\0", ""))
    return None if found is None else found[1].strip()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _check_keys(prefix: str, raw: Mapping[str, Any], known: set[str]) -> None:
    for key in raw:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: unknown key")
    for key in sorted(known - set(raw)):
        raise ConfigError(f"{prefix}{key}: missing")


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 300:
        raise ConfigError(f"{where}: got {str(value)[:60]!r}, expected 1 to 300 characters")
    return value


def _share(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"{where}: got {value!r}, expected a share from 0 to 1")
    return float(value)


def _whole(where: str, value: Any, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise ConfigError(f"{where}: got {value!r}, expected a whole number from 1 to {high}")
    return value


def _positive(where: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value <= 1e7:
        raise ConfigError(f"{where}: got {str(value)[:60]}, expected milliseconds over 0")
    return float(value)
