"""From the rung that was chosen to a bundle that runs it.

An INT8 rung is a bundle already. A float one is taken from the bundle that was made of it, whose manifest is then made
to say that a CPU runs the float graph; its golden outputs hold both. The temperature is the one that the rung was
judged with, fitted on the float graph: the build's was fitted on INT8, which may have been what was wrong with it. So
of the build's figures only those stay that no temperature changes. A gate that the build did not keep stays failed: the
INT8 graphs are in it still, and a device may be told to run them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.bundle import open_bundle
from agent.bundle.archive import MANIFEST
from optimize.errors import OptimizeError
from optimize.files import write_atomically
from optimize.ladder.model import RungFile
from optimize.ladder.rung import Rung
from optimize.pack import pack_bundle

__all__ = ["deploy"]


COUNTS = ("n", "accuracy", "recall", "errors")
"""Figures of a graph that are the same at every temperature."""


def deploy(rung: Rung, files: Sequence[RungFile], out: Path) -> Path | None:
    """Write the bundle of a rung.

    Args:
        rung: as it was judged.
        files: of all rungs, as they were judged.
        out: the bundle to write; its folder is there.

    Returns:
        The bundle; None where the rung is a float ONNX that no bundle was made of.

    Raises:
        BundleError: the rung's bundle can't be used.
        OptimizeError: the bundle can't be written.
    """
    own = next(file for file in files if file.name == rung.name)
    if own.path.suffix.lower() != ".onnx":
        return _running(own.path, rung, out)
    made = [file for file in files if file.made_from == rung.name and file.path.suffix.lower() != ".onnx"]
    return _running(made[0].first or made[0].path, rung, out) if made else None


def _running(path: Path, rung: Rung, out: Path) -> Path:
    """The bundle with this rung's graph for a CPU, at the temperature that it was judged with."""
    bundle = open_bundle(path)
    manifest = dataclasses.replace(bundle.manifest, cpu_graph=rung.graph)
    if manifest.temperature != rung.temperature:
        metrics = _untempered(manifest.metrics, rung.temperature)
        manifest = dataclasses.replace(manifest, temperature=rung.temperature, metrics=metrics)
    if manifest == bundle.manifest:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise OptimizeError(f"{path}: can't be read ({error.strerror})") from error
        write_atomically(out, data)
        return out
    files = {entry: bundle.read(entry) for entry in bundle.entries if entry != MANIFEST}
    return pack_bundle(out, manifest, files).path


def _untempered(metrics: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """Without the decisions that another temperature made."""
    found = {key: value for key, value in metrics.items() if key != "calibration"}
    for kind in ("fp32", "int8"):
        if isinstance(found.get(kind), Mapping):
            found[kind] = {key: value for key, value in found[kind].items() if key in COUNTS}
    return {**found, "calibration": {"temperature": temperature}}
