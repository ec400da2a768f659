"""Engines: what runs a graph. One file per runtime; `open_engine` is the only place that chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from agent.bundle import BoxDecoder, Bundle, Tensor
from agent.config import EngineConfig
from agent.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Engine", "open_engine"]


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


def open_engine(bundle: Bundle, config: EngineConfig) -> Engine:
    """Open the engine that the configuration asks for, and run it once on a grey picture.

    The run is the proof that the graph takes the manifest's input and gives its outputs, and takes the cost of the
    first inference before the first part comes.

    Raises:
        ConfigError: the bundle has no graph of the kind asked for.
        EngineError: the graph can't be loaded, does not fit the manifest, or fails.
    """
    from agent.engines.onnxrt import OnnxRuntimeEngine

    manifest = bundle.manifest
    kind = manifest.cpu_graph if config.graph == "auto" else config.graph
    if kind not in manifest.graphs:
        raise ConfigError(
            f"engine.graph: got {kind}, {bundle.path} has: {', '.join(sorted(manifest.graphs))}",
            hint="engine.graph: auto takes the one that the bundle names",
        )
    engine = OnnxRuntimeEngine(
        bundle.graph(kind),
        threads=config.threads,
        label={"cpu": "int8"}.get(kind, kind),
        spec=manifest.input,
        outputs=manifest.outputs,
    )
    try:
        _try(engine, bundle)
    except BaseException:
        engine.close()
        raise
    return engine


def _try(engine: Engine, bundle: Bundle) -> None:
    spec, count = bundle.manifest.input, len(bundle.manifest.classes)
    outputs = engine.infer(np.full((1, spec.height_px, spec.width_px, 3), 128, dtype=np.uint8))
    if bundle.manifest.detection is not None:
        try:
            BoxDecoder(bundle.manifest.detection, count)(outputs["boxes"], outputs["scores"])
        except EngineError as error:
            raise EngineError(f"{bundle.path}: on a grey picture: {error.message}", hint=error.hint) from error
        return
    for role, dimensions in (("logits", 2), ("cam", 4)):
        shape = outputs[role].shape if role in outputs else None
        if shape is not None and (len(shape) != dimensions or shape[:2] != (1, count)):
            raise EngineError(
                f"{bundle.path}: output {role} has shape {shape}, expected (1, {count}{', h, w' * (dimensions == 4)})",
                hint="the graph and the manifest's classes do not belong together: rebuild the bundle",
            )
