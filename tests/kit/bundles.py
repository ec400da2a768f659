"""Real bundles of tiny models, written by the workbench's own packer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.bundle import Bundle, ClassSpec, InputSpec, Manifest, Outputs, PolicySpec
from optimize.pack import pack_bundle
from tests.kit.models import classifier

__all__ = ["kit_manifest", "make_bundle"]


def kit_manifest(**changes: Any) -> Manifest:
    """The manifest that goes with `tests.kit.models.classifier()`; fields of `Manifest` by name replace its own."""
    manifest = Manifest(
        name="kit",
        version="1.0.0",
        task="classify",
        input=InputSpec(width_px=32, height_px=32),
        classes=(
            ClassSpec(name="good", severity="ok"),
            ClassSpec(name="scratch", severity="major"),
            ClassSpec(name="stain", severity="minor"),
        ),
        outputs=Outputs(logits="logits", embedding="embedding", cam="cam"),
        graphs={"fp32": "model.fp32.onnx", "cpu": "model.cpu.onnx"},
        cpu_graph="cpu",
        policy=PolicySpec(defect_above=0.5, review_above=0.2),
    )
    return dataclasses.replace(manifest, **changes)


def make_bundle(
    path: Path, *, graph: bytes | None = None, files: Mapping[str, bytes] | None = None, **changes: Any
) -> Bundle:
    """Write a bundle and open it.

    Args:
        path: the file, or an existing folder that gets `kit-1.0.0.defect`.
        graph: ONNX bytes of both graphs; the colour classifier when None.
        files: more files, or others in place of the graphs.
        **changes: fields of `Manifest`, for example `classes`, `policy`, `outputs`.
    """
    manifest = kit_manifest(**changes)
    target = path / f"{manifest.name}-{manifest.version}.defect" if path.is_dir() else path
    model = classifier() if graph is None else graph
    contents = dict.fromkeys(manifest.graphs.values(), model)
    return pack_bundle(target, manifest, {**contents, **(files or {})})
