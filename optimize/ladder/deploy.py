"""From the rung that was chosen to a bundle that runs it.

An INT8 rung is a bundle already. A float one is taken from the bundle that was made of it, whose manifest is then made
to say that a CPU runs the float graph; its golden outputs hold both. A gate that the build did not keep stays failed:
the INT8 graphs are in it still, and a device may be told to run them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from agent.bundle import open_bundle
from agent.bundle.archive import MANIFEST
from optimize.errors import OptimizeError
from optimize.files import write_atomically
from optimize.ladder.model import RungFile
from optimize.pack import pack_bundle

__all__ = ["deploy"]


def deploy(name: str, files: Sequence[RungFile], out: Path) -> Path | None:
    """Write the bundle of a rung.

    Args:
        name: of the rung.
        files: all rungs.
        out: the bundle to write; its folder is there.

    Returns:
        The bundle; None where the rung is a float ONNX that no bundle was made of.

    Raises:
        BundleError: the rung's bundle can't be used.
        OptimizeError: the bundle can't be written.
    """
    chosen = next(file for file in files if file.name == name)
    if chosen.path.suffix.lower() != ".onnx":
        kind = open_bundle(chosen.path).manifest.cpu_graph if chosen.graph == "auto" else chosen.graph
        return _running(chosen.path, kind, out)
    made = [file for file in files if file.made_from == name and file.path.suffix.lower() != ".onnx"]
    return _running(made[0].path, "fp32", out) if made else None


def _running(path: Path, kind: str, out: Path) -> Path:
    """The bundle with this graph for a CPU."""
    bundle = open_bundle(path)
    if bundle.manifest.cpu_graph == kind:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise OptimizeError(f"{path}: can't be read ({error.strerror})") from error
        write_atomically(out, data)
        return out
    files = {entry: bundle.read(entry) for entry in bundle.entries if entry != MANIFEST}
    return pack_bundle(out, dataclasses.replace(bundle.manifest, cpu_graph=kind), files).path
