"""A stand-in for `picamera2`, with a sensor that the test holds in its hand.

```python
with installed() as sensor:
    from picamera2 import Picamera2     # the stand-in
    ...
    sensor.expose(image)                # one frame, now
    sensor.feed(first, second)          # a frame whenever somebody waits for one
```

What it has of the real one (0.3.38, read, not run): names, arguments and defaults (`names.json`, held by a test), the
event loop in a thread of its own, jobs, the one completed request that `queue=True` keeps and hands out first, waits
without end, reference counts, `RuntimeError` as the only word for trouble, the layout of the formats in memory, padded
rows, and buffers that are written again once they were released. It has no libcamera, no raw streams, no encoders.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tests.kit.picamera2.sensor import Sensor
from tests.kit.picamera2.standin import CompletedRequest, Job, MappedArray, Picamera2, using

__all__ = ["Sensor", "installed"]


class _Broken:
    """Makes `import picamera2` fail as it does without libcamera, or with another numpy."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "picamera2":
            raise self._error
        return None


@contextmanager
def installed(*, import_fails: Exception | None = None, **sensor: Any) -> Iterator[Sensor]:
    """Let `import picamera2` give the stand-in, and take it out again.

    Args:
        import_fails: what the import raises instead.
        **sensor: arguments of `Sensor`.
    """
    before = sys.modules.pop("picamera2", None)
    broken = _Broken(import_fails) if import_fails is not None else None
    if broken is not None:
        sys.meta_path.insert(0, broken)
    else:
        module = ModuleType("picamera2")
        module.__dict__.update(Picamera2=Picamera2, MappedArray=MappedArray, CompletedRequest=CompletedRequest, Job=Job)
        sys.modules["picamera2"] = module
    held = Sensor(**sensor)
    try:
        with using(held):
            yield held
    finally:
        held.release_hung()
        sys.modules.pop("picamera2", None)
        if broken is not None:
            sys.meta_path.remove(broken)
        if before is not None:
            sys.modules["picamera2"] = before
