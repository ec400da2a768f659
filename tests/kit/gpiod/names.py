"""What a package called `gpiod` offers, as a table: `names.json` is that of the real one."""

from __future__ import annotations

import enum
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["NAMES", "described"]

NAMES: dict[str, Any] = json.loads((Path(__file__).parent / "names.json").read_text(encoding="utf-8"))
"""Public names to parameters (functions, methods), to None (properties and fields), to values (enums).

Made from gpiod 2.5.0 with `described`.
"""


def described(package: ModuleType) -> dict[str, Any]:
    """The table of an imported package: what it exports, and what it exports from `gpiod.line`."""
    exported = {name: getattr(package, name) for name in package.__all__}
    return {
        **{name: _member(value) for name, value in exported.items() if not isinstance(value, (ModuleType, str))},
        **{f"line.{name}": _member(getattr(package.line, name)) for name in package.line.__all__},
    }


def _member(value: Any) -> Any:
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return {member.name: member.value for member in value}
    if inspect.isclass(value):
        members = {name: each for name, each in vars(value).items() if not name.startswith("_") or name in _SPECIAL}
        fields = dict.fromkeys(getattr(value, "__dataclass_fields__", {}))
        bases = [base.__name__ for base in value.__bases__ if base is not object]
        return {**{name: _member(each) for name, each in members.items()}, **fields, **({"": bases} if bases else {})}
    return list(inspect.signature(value).parameters) if callable(value) else None


_SPECIAL = ("__init__", "__enter__", "__exit__", "__bool__")
