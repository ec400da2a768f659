"""A planted pair: the one with the higher mAP misses more critical defects, and `compare` must name the other.

Both are the trained YOLO with a few weights changed, so that nothing else differs:

```text
praised   the critical classes' logits are 4 lower: their order, and so their AP, hardly changes, but at a limit that
          all classes share they are found last
safe      every box is a third too small: at an overlap of 0.5 many no longer count for mAP, yet the part is stopped
```
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from agent.bundle import Bundle
from optimize.compare import CompareOptions, Comparison, compare_bundles
from optimize.pack import pack_bundle

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimize.dataset import Dataset

__all__ = ["planted_pair", "planted_verdict"]

LOWER = 4.0
SHRUNK = 0.67


def planted_pair(source: Bundle, critical: Sequence[str], work: Path) -> tuple[Bundle, Bundle]:
    """Two float bundles: `praised` and `safe`.

    Args:
        source: the YOLO bundle.
        critical: classes that `praised` finds last.
        work: where they are written.
    """
    lowered = [source.manifest.class_names.index(name) for name in critical]

    def praise(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if ".scores." in name and name.endswith(".bias"):
            values[lowered] -= LOWER
        return values

    def shrink(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values * np.float32(SHRUNK) if name == "boxes/bins" else values

    return _changed(source, "praised", praise, work), _changed(source, "safe", shrink, work)


def planted_verdict(pair: tuple[Bundle, Bundle], dataset: Dataset) -> Comparison:
    """What `compare` says of them, on test, with limits from val."""
    return compare_bundles(pair, dataset, CompareOptions())


def _changed(source: Bundle, name: str, change: object, work: Path) -> Bundle:
    model = onnx.load_from_string(source.graph("fp32"))
    assert callable(change)
    n_changed = 0
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        before = numpy_helper.to_array(tensor)
        after = change(tensor.name, before.copy())
        if not np.array_equal(before, after):
            tensor.CopyFrom(numpy_helper.from_array(after, tensor.name))
            n_changed += 1
    assert n_changed, f"no weight of {source.path} was changed"
    manifest = dataclasses.replace(
        source.manifest, name=name, graphs={"fp32": "model.fp32.onnx"}, cpu_graph="fp32", files={}
    )
    data = model.SerializeToString(deterministic=True)
    return pack_bundle(work / f"{name}-1.0.0.defect", manifest, {"model.fp32.onnx": data})
