"""A bundle on TensorRT: the engine from the cache where one fits, else compiled here and kept.

```text
bundle ─ graphs ─┐
TensorRT, GPU ───┼─▶ key ─▶ cache.find ─▶ plan ─▶ TensorRtEngine ─▶ run once ─▶ cache.mark_good
options ─────────┘            │ none, damaged, refused by TensorRT, or (once) no good when it runs
                              └─▶ build_plan ─▶ cache.keep
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from agent.board import Board
from agent.engines import BEFORE_BUILD, PLAN
from agent.engines.device import Device, OutOfDeviceMemory, open_device
from agent.engines.trt import PlanRefused, TensorRtEngine
from agent.engines.trt_api import TensorRt, load_tensorrt
from agent.engines.trt_build import BuildOptions, BuiltPlan, Graphs, build_plan
from agent.engines.trt_cache import CacheUnusable, EngineCache, EngineKey
from agent.errors import EngineError
from agent.log import log_event

if TYPE_CHECKING:
    from agent.bundle import Bundle
    from agent.config import EngineConfig, TensorRtConfig

__all__ = [
    "FAILED",
    "NOT_RUN",
    "Building",
    "MemoryChoice",
    "Prepared",
    "choose_memory",
    "graphs_of",
    "identity_here",
    "key_for",
    "open_tensorrt",
    "options_for",
    "precision_for",
    "prepare",
    "room_for",
]

Precision = Literal["int8", "fp16", "fp32"]

Building = Callable[[str, int, int], None]
"""Told while an engine is compiled: the phase, steps done, steps in all. The first call comes before it begins."""

COMPARED = 50
"""Inferences with each kind of memory; the first fifth warms up."""

FAILED, NOT_RUN = "failed", "it has not run yet"
"""The fact of a plan in the cache that loads and does not work: why. It is not compiled anew a second time; nor is one
that was compiled a moment ago."""

ENGINE_ROOM = 16_000_000
"""What a plan may take beside its weights: kernels, tables."""

log = logging.getLogger("agent.engines")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan that fits.

    Attributes:
        key: what it fits.
        plan: its bytes.
        built: how it was compiled; None when it came from the cache.
    """

    key: EngineKey
    plan: bytes
    built: BuiltPlan | None


def precision_for(bundle: Bundle, config: EngineConfig) -> Precision:
    """The precision that is asked for: `auto` is INT8 where the bundle has a graph for it, else FP16."""
    wanted = config.tensorrt.precision
    if wanted != "auto":
        return wanted
    return "int8" if "trt" in bundle.manifest.graphs else "fp16"


def graphs_of(bundle: Bundle) -> Graphs:
    """What an engine may be compiled from.

    Raises:
        BundleError: the bundle has no float graph, or changed on disk.
    """
    kinds = bundle.manifest.graphs
    return Graphs(
        qdq=bundle.graph("trt") if "trt" in kinds else None,
        qdq16=bundle.graph("trt16") if "trt16" in kinds else None,
        fp32=bundle.graph("fp32"),
        calibration=bundle.read("calib.cache") if "calib.cache" in bundle.entries else None,
    )


def options_for(bundle: Bundle, config: EngineConfig) -> BuildOptions:
    """The builder's options that the configuration asks for.

    Raises:
        EngineError: the bundle has no graph for them.
    """
    own: TensorRtConfig = config.tensorrt
    precision = precision_for(bundle, config)
    if own.calibration_cache and precision != "int8":
        raise EngineError(
            f"{bundle.path}: engine.tensorrt.calibration_cache is for INT8, and it has no INT8 graph for TensorRT",
            hint="build it with `defect-opt build --int8 --target jetson`, or leave calibration_cache out",
        )
    return BuildOptions(
        precision=precision,
        workspace_mb=own.workspace_mb,
        optimization_level=own.optimization_level,
        version_compatible=own.version_compatible,
        dla_core=own.dla_core,
        sparse=own.sparse,
        use_calibration_cache=own.calibration_cache,
    )


def room_for(bundle: Bundle) -> int:
    """Bytes that the engine may take on the disk, at a guess: its weights in FP32, and `ENGINE_ROOM`."""
    return bundle.entries[bundle.manifest.graphs["fp32"]].size + ENGINE_ROOM if "fp32" in bundle.manifest.graphs else 0


def key_for(
    graphs: Graphs, options: BuildOptions, api: TensorRt, device: Device, *, board: Board | None = None
) -> EngineKey:
    """All that the engine will depend on.

    Args:
        graphs: that it may be compiled from.
        options: the builder's.
        api: TensorRT.
        device: the GPU.
        board: says which driver is here.
    """
    digest = hashlib.sha256()
    for field in dataclasses.fields(graphs):
        data = getattr(graphs, field.name)
        digest.update(f"{field.name} {'absent' if data is None else hashlib.sha256(data).hexdigest()}\n".encode())
    return EngineKey(
        graph_sha256=digest.hexdigest(),
        tensorrt=str(api.module.__version__),
        compute_capability=device.compute_capability,
        device=device.name,
        cuda=device.cuda,
        driver_cuda=device.driver_cuda,
        driver=(board or Board()).gpu_driver() or "",
        precision=options.precision,
        options=options.key(),
    )


def prepare(
    bundle: Bundle,
    config: EngineConfig,
    *,
    api: TensorRt,
    device: Device,
    cache: EngineCache | None,
    building: Building | None = None,
    must_keep: bool = False,
    rebuild: bool = False,
) -> Prepared:
    """The plan for this bundle on this device: from the cache, or compiled now and kept there.

    Args:
        bundle: what is to run.
        config: the options.
        api: TensorRT.
        device: the GPU.
        cache: None keeps nothing.
        building: told while it compiles.
        must_keep: a plan that can't be kept is an error, and is looked for before minutes are spent; else the plan is
            used from memory and the trouble is logged: a line runs also where the disk is full.
        rebuild: compile, whatever the cache has.

    Raises:
        CacheUnusable: with `must_keep`.
        EngineError: it can't be compiled.
        BundleError: the bundle can't be used.
    """
    graphs, options = graphs_of(bundle), options_for(bundle, config)
    key = key_for(graphs, options, api, device)
    plan = None if cache is None or rebuild else _find(cache, key, must_keep=must_keep)
    if plan is not None:
        return Prepared(key=key, plan=plan, built=None)
    if cache is not None and must_keep:
        cache.check_room(room_for(bundle))
    if building is not None:
        building(BEFORE_BUILD, 0, 0)
    timing = None if cache is None else cache.timing_cache(key)
    built = build_plan(api, graphs, options, timing_cache=timing, heard=building)
    for note in built.notes:
        log_event(log, "engine_note", engine=key.digest(), note=note)
    if cache is not None:
        _keep(cache, key, built, must_keep=must_keep)
    return Prepared(key=key, plan=built.plan, built=built)


def open_tensorrt(
    bundle: Bundle,
    config: EngineConfig,
    *,
    cache: EngineCache | None = None,
    building: Building | None = None,
    mapped: bool | None = None,
    must_keep: bool = False,
    prove: Callable[[TensorRtEngine], None] = lambda _engine: None,
) -> tuple[TensorRtEngine, EngineKey]:
    """Open the bundle on this machine's GPU; gives the engine, and what it was compiled for.

    A plan from the cache that TensorRT refuses, or that loads and can't be proven, is compiled anew: once, and that is
    remembered, for minutes at every start would not help either.

    Args:
        bundle: what is to run.
        config: the options.
        cache: where plans are kept; None compiles for this process alone.
        building: told while it compiles.
        mapped: the GPU reads the picture where it lies; None is what the configuration says, or accept has measured.
        must_keep: see `prepare`.
        prove: runs the engine once; raises EngineError when it is no good.

    Raises:
        EngineError: there is no TensorRT or no GPU, or the engine can't be compiled, loaded or proven.
        BundleError: the bundle can't be used.
    """
    asked = _Asked(bundle, config, cache, building, mapped, must_keep, prove)
    try:
        return _opened(asked, rebuild=False)
    except _CompileAnew:
        pass
    return _opened(asked, rebuild=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """What `open_tensorrt` was asked for."""

    bundle: Bundle
    config: EngineConfig
    cache: EngineCache | None
    building: Building | None
    mapped: bool | None
    must_keep: bool
    prove: Callable[[TensorRtEngine], None]


class _CompileAnew(Exception):  # noqa: N818 - says what is to be done
    """The plan from the cache is no good, and compiling it again was not tried yet."""


def _opened(asked: _Asked, *, rebuild: bool) -> tuple[TensorRtEngine, EngineKey]:
    api = load_tensorrt()
    device = open_device(asked.config.tensorrt.cuda)
    try:
        found = prepare(
            asked.bundle,
            asked.config,
            api=api,
            device=device,
            cache=asked.cache,
            building=asked.building,
            must_keep=asked.must_keep,
            rebuild=rebuild,
        )
        engine = _loaded(found, asked, api, device)
    except BaseException:
        device.close()
        raise
    try:
        asked.prove(engine)
    except BaseException as error:
        engine.close()
        if isinstance(error, EngineError) and asked.cache is not None and not isinstance(error, OutOfDeviceMemory):
            _unproven(asked.cache, found, error)
        raise
    if asked.cache is not None and asked.cache.facts(found.key).get(FAILED) is not None:
        _note(asked.cache, found.key, None)
    return engine, found.key


def _loaded(found: Prepared, asked: _Asked, api: TensorRt, device: Device) -> TensorRtEngine:
    try:
        return _load(found, asked.bundle, asked.config, api, device, asked.cache, asked.mapped)
    except PlanRefused as error:
        if found.built is not None or asked.cache is None:
            raise
        _drop(asked.cache, found.key, f"TensorRT refuses the plan: {error.message}")
        raise _CompileAnew from error


def _unproven(cache: EngineCache, found: Prepared, error: EngineError) -> None:
    """A plan that loads and does not work: note it, and have one from the cache compiled anew, unless that was done."""
    before = cache.facts(found.key).get(FAILED)
    _note(cache, found.key, error.message)
    log_event(log, "engine_unproven", logging.WARNING, engine=found.key.digest(), reason=error.message)
    if found.built is None and before is None:
        raise _CompileAnew from error
    if before not in (None, NOT_RUN):
        error.message += "; compiling it anew did not help before"
        error.hint = f"defect-agent build-engine --config FILE --rebuild; {error.hint or 'or take the bundle before'}"


def _note(cache: EngineCache, key: EngineKey, failed: str | None) -> None:
    with contextlib.suppress(CacheUnusable):  # then it is compiled again next time
        cache.note(key, **{FAILED: failed})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemoryChoice:
    """Whether pictures are better copied or mapped.

    Attributes:
        median_ms: of one inference, `copied` and `mapped`.
        is_noted: later starts take the faster one; else the cache can't be written.
    """

    median_ms: dict[str, float]
    is_noted: bool

    @property
    def fastest(self) -> str:
        """`copied` or `mapped`."""
        return min(self.median_ms, key=lambda memory: self.median_ms[memory])


def choose_memory(bundle: Bundle, config: EngineConfig, cache: EngineCache) -> MemoryChoice | None:
    """Measure whether this engine is faster when the GPU reads the picture where it lies, and note it for later starts.

    Both are open at once and take turns, so that a clock that changes meanwhile favours neither.

    Returns:
        None where the GPU has memory of its own, the CUDA library can't map, or both do not fit into the memory: then
        there is no choice.

    Raises:
        EngineError: the engine can't be opened, or an inference failed.
    """
    device = open_device(config.tensorrt.cuda)
    has_choice = device.is_integrated and device.can_map
    device.close()
    if not has_choice:
        return None
    engines: dict[str, TensorRtEngine] = {}
    try:
        for memory in ("copied", "mapped"):
            engines[memory], key = open_tensorrt(bundle, config, cache=cache, mapped=memory == "mapped")
        taken = _medians_ms(engines, bundle)
    except OutOfDeviceMemory as error:
        log_event(log, "memory_not_compared", logging.WARNING, reason=error.message)
        return None
    finally:
        for engine in engines.values():
            engine.close()
    choice = MemoryChoice(median_ms=taken, is_noted=True)
    try:
        cache.note_memory(key, choice.fastest)
    except CacheUnusable as error:
        log_event(log, "memory_not_noted", logging.WARNING, reason=error.message, hint=error.hint)
        return dataclasses.replace(choice, is_noted=(cache.memory(key) or "copied") == choice.fastest)
    return choice


def _medians_ms(engines: Mapping[str, TensorRtEngine], bundle: Bundle) -> dict[str, float]:
    """Of one inference each, in turn; the first fifth warms up."""
    spec = bundle.manifest.input
    picture = np.random.default_rng(1).integers(0, 256, (1, spec.height_px, spec.width_px, 3), dtype=np.uint8)
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(COMPARED):
        for name, engine in engines.items():
            start = time.perf_counter_ns()
            engine.infer(picture)
            taken[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: statistics.median(ms[COMPARED // 5 :]) for name, ms in taken.items()}


def identity_here(bundle: Bundle, config: EngineConfig) -> dict[str, str]:
    """The identity that the bundle's engine would have on this machine's GPU, but for its plan; nothing is compiled.

    Raises:
        EngineError: there is no TensorRT or no GPU.
        BundleError: the bundle can't be used.
    """
    api = load_tensorrt()
    device = open_device(config.tensorrt.cuda)
    try:
        return key_for(graphs_of(bundle), options_for(bundle, config), api, device).identity()
    finally:
        device.close()


def _load(
    found: Prepared,
    bundle: Bundle,
    config: EngineConfig,
    api: TensorRt,
    device: Device,
    cache: EngineCache | None,
    mapped: bool | None,
) -> TensorRtEngine:
    if mapped is None:
        noted = None if cache is None else cache.memory(found.key)
        memory = config.tensorrt.memory
        mapped = memory == "mapped" or (memory == "auto" and noted == "mapped")
    engine = TensorRtEngine(
        found.plan,
        api=api,
        device=device,
        label=found.key.precision,
        spec=bundle.manifest.input,
        outputs=bundle.manifest.outputs,
        mapped=mapped,
        dla_core=config.tensorrt.dla_core,
    )
    engine.identity = {**found.key.identity(), PLAN: hashlib.sha256(found.plan).hexdigest()}
    return engine


def _find(cache: EngineCache, key: EngineKey, *, must_keep: bool) -> bytes | None:
    try:
        return cache.find(key)
    except EngineError as error:
        if must_keep:
            raise
        log_event(log, "engine_cache_unreadable", logging.WARNING, reason=error.message)
        return None


def _keep(cache: EngineCache, key: EngineKey, built: BuiltPlan, *, must_keep: bool) -> None:
    facts = {"typing": built.typing, "graph": built.graph, "notes": list(built.notes), "seconds": built.seconds}
    try:
        cache.keep(key, built.plan, facts)
    except EngineError as error:
        if must_keep:
            raise
        log_event(log, "engine_not_kept", logging.WARNING, reason=error.message, hint=error.hint)
        return
    if built.timing_cache is not None:
        cache.keep_timing_cache(key, built.timing_cache)


def _drop(cache: EngineCache, key: EngineKey, reason: str) -> None:
    try:
        cache.drop(key, reason)
    except EngineError as error:
        log_event(log, "engine_cache_unreadable", logging.WARNING, reason=error.message)
