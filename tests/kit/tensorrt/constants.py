"""What `tensorrt/__init__.py` adds: short names of types, and functions; and the class `Dims`, which is all data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

from tests.kit.tensorrt.running import NUMPY
from tests.kit.tensorrt.surface import table

__all__ = ["add_constants"]

SHORT = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}


class Dims:
    """A shape, as TensorRT gives it: no tuple, but equal to one and read like one."""

    MAX_DIMS = 8

    def __init__(self, shape: Iterable[int] = ()) -> None:
        self._sides = tuple(shape)

    def __len__(self) -> int:
        return len(self._sides)

    def __getitem__(self, index: int) -> int:
        return self._sides[index]

    def __eq__(self, other: object) -> bool:
        sides = other._sides if isinstance(other, Dims) else other
        return isinstance(sides, (tuple, list)) and tuple(sides) == self._sides

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"({', '.join(map(str, self._sides))})"


def add_constants(module: ModuleType, version: str) -> None:
    """Add them to a module."""
    names = table(version)
    for name in names["constants"]:
        setattr(module, name, getattr(module.DataType, SHORT.get(name, name.upper())))
    module.__dict__["Dims"] = Dims
    module.__dict__["volume"] = math.prod
    module.__dict__["nptype"] = _nptype


def _nptype(trt_type: Any) -> Any:
    if trt_type.name not in NUMPY:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return np.dtype(NUMPY[trt_type.name]).type
