"""A stand-in for gpiod 2.x (the Python bindings of libgpiod) on lines that are not here.

```python
with installed() as board:
    chip = board.add_chip("/dev/gpiochip0")
    trigger = GpioTrigger(...)      # imports gpiod, and gets the stand-in
    chip.pulse(17)                  # a light barrier
    chip.level(23)                  # what a voltmeter shows
```
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Literal

from tests.kit.gpiod.board import Board, SimChip
from tests.kit.gpiod.names import NAMES, described
from tests.kit.gpiod.package import make_package

__all__ = ["NAMES", "Board", "SimChip", "described", "installed", "replaced"]

_MODULES = ("gpiod", "gpiod.line")


@contextlib.contextmanager
def installed(*, after_death: Literal["keep", "input"] = "keep", shuffled: bool = False) -> Iterator[Board]:
    """Put `gpiod` into `sys.modules`, and take it out again; the fields are those of `Board`."""
    board = Board(after_death=after_death, shuffled=shuffled)
    package = make_package(board)
    with replaced(package, package.line):
        yield board


@contextlib.contextmanager
def replaced(package: types.ModuleType | None, line: types.ModuleType | None = None) -> Iterator[None]:
    """`import gpiod` gives this package; None fails as where none is installed."""
    before = {name: sys.modules.get(name) for name in _MODULES}
    sys.modules.update({"gpiod": package, "gpiod.line": line})  # type: ignore[dict-item]
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
