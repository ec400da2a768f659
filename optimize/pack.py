"""Writing bundles: the last step of a build."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from agent.bundle import Bundle, Manifest, open_bundle
from agent.bundle.archive import MANIFEST, archive_parts
from agent.bundle.manifest import manifest_to_json
from optimize.errors import OptimizeError

__all__ = ["pack_bundle"]


def pack_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle, and open it as a device would; the same inputs give the same bytes.

    The file appears under its name whole or not at all: it is written beside it, synced, verified, and then renamed.

    Args:
        path: where; a bundle that is there is replaced.
        manifest: without `files`, which is filled here.
        files: by name in the bundle (`model.cpu.onnx`, `golden/000.png`), all but the manifest.

    Returns:
        The bundle as it was read back, goldens included.

    Raises:
        BundleError: manifest and files do not go together, or a name that a bundle can't hold.
        OptimizeError: the file can't be written.
    """
    if MANIFEST in files:
        raise OptimizeError(f"{path}: {MANIFEST} is written by pack_bundle, it can't be among the files")
    hashes = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    complete = dataclasses.replace(manifest, files=hashes)
    parts = archive_parts({**files, MANIFEST: manifest_to_json(complete)})
    try:
        return _write(Path(path), parts)
    except OSError as error:
        raise OptimizeError(f"{path}: can't be written ({error.strerror})", hint="choose another --out") from error


def _write(path: Path, parts: list[bytes]) -> Bundle:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)
        bundle = open_bundle(partial)
        bundle.goldens()
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return dataclasses.replace(bundle, path=path)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
