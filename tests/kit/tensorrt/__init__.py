"""A stand-in for `tensorrt`, one per version, made from the table of names that each version really has.

```python
with installed("10.3.0", strong_typing_fails=True) as standin:
    import tensorrt                       # standin.module
    ...
    standin.builds[-1].flags              # ("FP16", "INT8", "TF32")
    standin.calls["IExecutionContext.execute_async_v3"]
    standin.live()                        # {} when all was given back
    standin.fail("Runtime.deserialize_cuda_engine")     # the next such call raises RuntimeError
```

What it has of the real one: names (AttributeError on what that version lacks), arguments, enums, properties' rights,
pybind11's refusals, one logger per process, refusals by None or False with words in the log, and the rules of building
that the agent depends on (`parts.py`). A name that TensorRT has and the stand-in does nothing for raises
`NotInStandIn`.
A graph runs in ONNX Runtime without optimizations, on host memory at the addresses that `set_tensor_address` was given.
It has no speed, no INT8 of its own (Q/DQ is computed as the graph says), and no fusions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

from tests.kit.tensorrt.constants import add_constants
from tests.kit.tensorrt.parts import PARTS
from tests.kit.tensorrt.plan import Build, read_plan
from tests.kit.tensorrt.running import RUNNING
from tests.kit.tensorrt.surface import NotInStandIn, module_of
from tests.kit.tensorrt.world import Faults, World

__all__ = ["VERSIONS", "Build", "Faults", "NotInStandIn", "World", "installed", "read_plan"]

VERSIONS = ("8.6.1", "10.3.0", "10.13.3", "10.16.1", "11.1.0", "11.4.0")


class _Broken:
    """Makes `import tensorrt` fail as a wheel without its libraries does."""

    def __init__(self, words: str) -> None:
        self._words = words

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "tensorrt":
            raise ImportError(self._words)
        return None


@contextmanager
def installed(version: str, **faults: Any) -> Iterator[World]:
    """Let `import tensorrt` give this version's stand-in, and take it out again.

    Args:
        version: one of `VERSIONS`.
        **faults: fields of `Faults`.
    """
    world = World(version, Faults(**faults))
    world.module = module_of(version, {**PARTS, **RUNNING}, world)
    add_constants(world.module, version)
    before = sys.modules.pop("tensorrt", None)
    broken = _Broken(world.faults.import_fails) if world.faults.import_fails is not None else None
    if broken is None:
        sys.modules["tensorrt"] = world.module
    else:
        sys.meta_path.insert(0, broken)
    try:
        yield world
    finally:
        sys.modules.pop("tensorrt", None)
        if broken is not None:
            sys.meta_path.remove(broken)
        if before is not None:
            sys.modules["tensorrt"] = before
