"""Engines: what runs a graph. One file per runtime; `open_engine` is the only place that chooses."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from agent.board import Board
from agent.bundle import BoxDecoder, Bundle, InputSpec, Tensor
from agent.config import AgentConfig, EngineConfig
from agent.engines.device import OutOfDeviceMemory
from agent.engines.trt_cache import CacheUnusable, EngineCache, EngineKey
from agent.errors import AgentError, BundleError, ConfigError, EngineError
from agent.log import log_event

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agent.engines.onnxrt import OnnxRuntimeEngine

__all__ = [
    "BEFORE_BUILD",
    "FALL_BACK",
    "PLAN",
    "Engine",
    "OpenedEngine",
    "Unproven",
    "fell_back",
    "goes_live",
    "is_tensorrt_expected",
    "open_cache",
    "open_engine",
    "time_for_one",
]

log = logging.getLogger("agent.engines")


class Engine(Protocol):
    """Runs one graph, one call at a time; knows shapes and dtypes, nothing of defects."""

    @property
    def name(self) -> str:
        """Runtime, processor, precision and threads in words: `onnxruntime 1.32.0 CPU int8, 1 thread`."""
        ...

    @property
    def kind(self) -> str:
        """The runtime as the configuration names it: `onnxruntime`."""
        ...

    def infer(self, tensor: Tensor) -> Mapping[str, NDArray[np.float32]]:
        """Run the graph once.

        Args:
            tensor: (1, height_px, width_px, 3) uint8 RGB, C-contiguous; only read, and free again when this returns.

        Returns:
            By output role (`logits`, `embedding`, `cam`, …), float32, shapes as in `Outputs`; own memory.

        Raises:
            EngineError: another shape or dtype, or the runtime failed.
        """
        ...

    def close(self) -> None:
        """Free what it holds; `infer` raises afterwards. May be called twice."""
        ...


class OpenedEngine(Engine, Protocol):
    """What `open_engine` gives: an engine that also says exactly what it is."""

    @property
    def identity(self) -> Mapping[str, str]:
        """All that its answers and its speed depend on beside the bundle; a difference in any part is another engine.

        `kind` is the runtime. ONNX Runtime: `onnxruntime` (its version), `graph`, `threads`, `machine`, `board`.
        TensorRT: the fields of `EngineKey`, and `plan`, the SHA-256 of its bytes: the same key compiled twice may
        choose other kernels. `stands_in_for` is there after a fall-back. What may change without a new engine is not in
        it: the memory that the picture lies in, a CUDA graph, the reason for a fall-back.
        """
        ...


FALL_BACK = "fell back from TensorRT"
"""Stands in the name of an engine that is not the one that `auto` would have taken."""

PLAN = "plan"
"""The part of an identity that another build of the same engine changes."""

BEFORE_BUILD = "build"
"""The phase that `building` hears once, before an engine is compiled; all others are TensorRT's."""

MAX_REASON = 160
"""Characters of the reason for a fall-back: it is part of every verdict."""


class Unproven(EngineError):  # noqa: N818 - says what it is
    """An engine that was loaded, and failed or gave no numbers when it ran once.

    Attributes:
        name: the engine's.
        kind: its runtime.
        identity: exactly which one, as `OpenedEngine.identity` has it.
    """

    def __init__(self, error: EngineError, engine: OpenedEngine) -> None:
        super().__init__(error.message, hint=error.hint)
        self.name, self.kind, self.identity = engine.name, engine.kind, dict(engine.identity)


def open_engine(
    bundle: Bundle,
    config: EngineConfig,
    *,
    cache: EngineCache | None = None,
    building: Callable[[str, int, int], None] | None = None,
    must_keep: bool = False,
    within_ms: float | None = None,
) -> OpenedEngine:
    """Open the engine that the configuration asks for, and run it once on a grey picture.

    The run is the proof that the graph takes the manifest's input and gives its outputs, and takes the cost of the
    first inference before the first part comes.

    `trt` is TensorRT or an error. `auto` takes TensorRT where it is installed, a cache is given and no graph for the
    CPU is insisted on; when it does not work, ONNX Runtime does the work, and the engine's name says so with the
    reason. Where there is no TensorRT and no Jetson, ONNX Runtime is the best engine and no fall-back.

    Args:
        bundle: what is to run.
        config: what to run it on.
        cache: where compiled engines are kept; without one `trt` compiles for this process alone.
        building: told while an engine is compiled: the phase, steps done, steps in all; called once before it begins.
        must_keep: for who asks whether the engine is good: one that has to be compiled and can't be kept is an error,
            before it is compiled, and so is one that fails, also for `auto`; else it runs from memory, or falls back.
        within_ms: for `threads: auto`, what the deadline leaves to one inference (`time_for_one`); None without one.
            Without a cache `auto` is one thread: nobody could say later why it was another number.

    Raises:
        ConfigError: the bundle has no graph of the kind asked for.
        CacheUnusable: with `must_keep`.
        Unproven: the graph fails, or does not give what the manifest says.
        EngineError: the graph can't be loaded, or does not fit the manifest.
    """
    if config.kind == "trt":
        return _open_tensorrt(bundle, config, cache, building, must_keep=must_keep)
    fault: AgentError | None = None
    if config.kind == "auto" and config.graph == "auto" and cache is not None and is_tensorrt_expected():
        try:
            return _open_tensorrt(bundle, config, cache, building, must_keep=must_keep)
        except (EngineError, BundleError) as error:
            if must_keep and isinstance(error, (CacheUnusable, Unproven)):
                raise
            fault = error
    engine = _open_onnxruntime(bundle, config, cache, within_ms, is_accepting=must_keep)
    if fault is not None:
        engine.name = f"{engine.name} ({FALL_BACK}: {' '.join(fault.message.split())[:MAX_REASON]})"
        engine.identity = {**engine.identity, "stands_in_for": "TensorRT"}
        log_event(log, "engine_fell_back", logging.WARNING, engine=engine.name, hint=fault.hint)
    return engine


def open_cache(config: AgentConfig) -> EngineCache:
    """The station's compiled engines; the folder is made when something is written."""
    return EngineCache(config.engines_dir, config.engine.tensorrt.cache_mb * 1_000_000)


def time_for_one(config: AgentConfig) -> float | None:
    """What the deadline leaves to one inference, in milliseconds: half of it, shared by the views; None without one."""
    deadline_ms = config.line.deadline_ms
    return None if deadline_ms is None else deadline_ms / 2 / (1 + len(config.views))


def goes_live(engine: OpenedEngine, cache: EngineCache) -> None:
    """Parts will be judged with it: the cache keeps the last such engine, whatever its quota. Never raises."""
    if engine.kind == "trt":
        cache.mark_good(EngineKey.from_identity(engine.identity))


def fell_back(engine: Engine) -> bool:
    """Whether this is not the engine that `auto` would have taken."""
    return FALL_BACK in engine.name


def is_tensorrt_expected(board: Board | None = None) -> bool:
    """Whether `auto` is to try TensorRT: it is installed, in whatever state, or this is a Jetson."""
    try:
        found = "tensorrt" in sys.modules or importlib.util.find_spec("tensorrt") is not None
    except ModuleNotFoundError:
        found = False
    except (ImportError, ValueError):  # it is there, and broken
        found = True
    return found or (board or Board()).kind == "jetson"


def _open_tensorrt(
    bundle: Bundle,
    config: EngineConfig,
    cache: EngineCache | None,
    building: Callable[[str, int, int], None] | None,
    *,
    must_keep: bool,
) -> OpenedEngine:
    from agent.engines.trt_open import open_tensorrt

    engine, _key = open_tensorrt(
        bundle,
        config,
        cache=cache,
        building=building,
        must_keep=must_keep,
        prove=lambda engine: _prove(engine, bundle, is_compiled=True),
    )
    return engine


def _open_onnxruntime(
    bundle: Bundle, config: EngineConfig, cache: EngineCache | None, within_ms: float | None, *, is_accepting: bool
) -> OnnxRuntimeEngine:
    from agent.engines.onnxrt import OnnxRuntimeEngine, facts_of_runtime
    from agent.engines.threads import ACCEPT_S, START_S, ThreadTest

    manifest = bundle.manifest
    kind = manifest.cpu_graph if config.graph == "auto" else config.graph
    if kind not in manifest.graphs:
        raise ConfigError(
            f"engine.graph: got {kind}, {bundle.path} has: {', '.join(sorted(manifest.graphs))}",
            hint="engine.graph: auto takes the one that the bundle names",
        )
    graph, label = bundle.graph(kind), {"cpu": "int8"}.get(kind, kind)

    def opened(threads: int) -> OnnxRuntimeEngine:
        engine = OnnxRuntimeEngine(graph, threads=threads, label=label, spec=manifest.input, outputs=manifest.outputs)
        try:
            _prove(engine, bundle, is_compiled=False)
        except BaseException:
            engine.close()
            raise
        return engine

    if config.threads != "auto" or cache is None:
        return opened(1 if config.threads == "auto" else config.threads)
    budget_s = ACCEPT_S if is_accepting else START_S
    test = ThreadTest(graph, facts_of_runtime(), cache=cache, within_ms=within_ms, budget_s=budget_s)
    kept = test.kept()
    return test.run(opened, _grey(manifest.input)) if kept is None else opened(kept)


def _grey(spec: InputSpec) -> Tensor:
    return np.full((1, spec.height_px, spec.width_px, 3), 128, dtype=np.uint8)


def _prove(engine: OpenedEngine, bundle: Bundle, *, is_compiled: bool) -> None:
    """Raises Unproven; memory that is short says nothing about the engine."""
    try:
        _try(engine, bundle, is_compiled=is_compiled)
    except OutOfDeviceMemory:
        raise
    except EngineError as error:
        raise Unproven(error, engine) from error


def _try(engine: Engine, bundle: Bundle, *, is_compiled: bool) -> None:
    """A compiled engine must also give numbers: FP16 overflows where the graph as it was written does not.

    The graph itself may have none for a picture of one colour (a division by its spread); a part without numbers is
    an `error` of its own.
    """
    spec, count = bundle.manifest.input, len(bundle.manifest.classes)
    outputs = engine.infer(_grey(spec))
    if bundle.manifest.detection is not None:
        try:
            BoxDecoder(bundle.manifest.detection, count)(outputs["boxes"], outputs["scores"])
        except EngineError as error:
            raise EngineError(f"{bundle.path}: on a grey picture: {error.message}", hint=error.hint) from error
        return
    for role, dimensions in (("logits", 2), ("cam", 4)):
        if is_compiled and role in outputs and not np.isfinite(outputs[role]).all():
            raise EngineError(
                f"{bundle.path}: on a grey picture {engine.name} gives {role}: values that are no numbers",
                hint="values beyond FP16 overflow: set engine.tensorrt.precision: fp32, or rebuild the bundle",
            )
        shape = outputs[role].shape if role in outputs else None
        if shape is not None and (len(shape) != dimensions or shape[:2] != (1, count)):
            raise EngineError(
                f"{bundle.path}: output {role} has shape {shape}, expected (1, {count}{', h, w' * (dimensions == 4)})",
                hint="the graph and the manifest's classes do not belong together: rebuild the bundle",
            )
