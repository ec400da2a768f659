"""Makes the classes that `names.json` lists: the names, arguments and rights of one TensorRT, and nothing else.

A public object is an empty shell; what it does stands in its *part* (`parts.py`), which no name of TensorRT's reaches.
The rules are those of pybind11, as seen on TensorRT-RTX 1.7.1: an absent name is an AttributeError, a wrong argument a
TypeError, a Python subclass must call `__init__` of its base, and an enum is no number.
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

__all__ = ["CrashedError", "Listener", "NotInStandIn", "Table", "Words", "module_of", "part_of", "shell", "table"]

NAMES = Path(__file__).with_name("names.json")
UNNAMED = "arg"
HIDDEN = "_part"


class NotInStandIn(Exception):  # noqa: N818  # says what it is
    """TensorRT has this name, the stand-in does nothing for it: write it, if the agent is to use it.

    No RuntimeError (as NotImplementedError is one), for those are what C++ exceptions become, and are handled.
    """


class CrashedError(Exception):
    """Python raised through TensorRT's own frames, which ends the real process (`std::terminate`)."""


class Words(Exception):  # noqa: N818  # TensorRT says it with a log line and a return value, not with an exception
    """A call that TensorRT refuses: it logs these words, and gives what it gives then."""

    def __init__(self, text: str, *, gives: object = None) -> None:
        super().__init__(text)
        self.text = text
        self.gives = gives


class Listener(Protocol):
    """Hears each call before it is made, and each refusal; `called` may raise in its place."""

    def called(self, name: str) -> None: ...

    def refused(self, part: Any, text: str) -> None: ...

    def made(self, kind: str, public: object) -> None: ...


class Numbered(enum.Enum):
    """An enum as pybind11 makes one: it has a number (`int(x)`), and is not equal to it."""

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)


class Checked(type):
    """The metaclass of pybind11: who makes an object of a subclass must have called `__init__` of the base."""

    def __call__(cls, *given: Any, **named: Any) -> Any:
        made = super().__call__(*given, **named)
        if not hasattr(made, HIDDEN):
            raise TypeError(f"tensorrt.{cls.__mro__[1].__name__}.__init__() must be called when overriding __init__")
        return made


Table = Mapping[str, Any]
"""One version's part of `names.json`."""


@functools.cache
def table(version: str) -> Table:
    """The names of one TensorRT.

    Raises:
        KeyError: a version that the table does not have.
    """
    found: Table = json.loads(NAMES.read_text())[version]
    return found


def part_of(public: Any, kind: str) -> Any:
    """What stands behind an object; TypeError as pybind11 raises it where it is none of this class."""
    names = [base.__name__ for base in type(public).__mro__]
    if kind not in names:
        raise TypeError(f"incompatible function arguments: got {public!r}, expected tensorrt.{kind}")
    return object.__getattribute__(public, HIDDEN)


def shell(module: ModuleType, kind: str, part: Any) -> Any:
    """A public object over a part, as TensorRT's own calls make them."""
    made = getattr(module, kind)
    public = made.__new__(made)
    object.__setattr__(public, HIDDEN, part)
    part.public_kind = kind
    module.__dict__["__listener__"].made(kind, public)
    return public


def module_of(version: str, parts: Mapping[str, type], listener: Listener) -> ModuleType:
    """A module `tensorrt` with this version's names.

    Args:
        version: a key of `names.json`.
        parts: what each class does; a class without one can be made and does nothing.
        listener: hears every call.
    """
    names = table(version)
    module = ModuleType("tensorrt", f"A stand-in for TensorRT {version}: see tests/kit/tensorrt.")
    module.__dict__["__version__"] = version
    module.__dict__["__listener__"] = listener
    for name, values in names["enums"].items():
        if "." not in name:
            setattr(module, name, _numbered(name, values))
    for name in sorted(names["classes"], key=lambda kind: len(_lineage(names, kind))):
        setattr(module, name, _class(module, names, name, parts.get(name, object)))
    module.ILogger.Severity = _numbered("Severity", names["enums"]["ILogger.Severity"])
    module.Logger.Severity = module.ILogger.Severity
    for level, value in module.ILogger.Severity.__members__.items():
        setattr(module.ILogger, level, value)
        setattr(module.Logger, level, value)
    others = frozenset(names["others"]) | set(names["functions"])
    module.__dict__["__getattr__"] = _absent(version, others)
    return module


def _numbered(name: str, values: Mapping[str, int]) -> Any:
    make: Any = Numbered  # called with a name and values it makes a class, which the type of Numbered does not say
    return make(name, values, module="tensorrt")


def _absent(version: str, others: frozenset[str]) -> Callable[[str], Any]:
    def absent(name: str) -> Any:
        if name in others:
            raise NotInStandIn(f"tensorrt.{name}: TensorRT {version} has it, the stand-in does not do it")
        raise AttributeError(f"module 'tensorrt' has no attribute {name!r} (TensorRT {version})")

    return absent


def _lineage(names: Table, kind: str) -> list[str]:
    bases = names["bases"].get(kind, [])
    return [kind, *(ancestor for base in bases if base in names["classes"] for ancestor in _lineage(names, base))]


def _class(module: ModuleType, names: Table, kind: str, part: type) -> type:
    bases = tuple(getattr(module, base) for base in names["bases"].get(kind, []) if hasattr(module, base))
    space: dict[str, Any] = {"__module__": "tensorrt", "__slots__": () if bases else (HIDDEN, "__weakref__")}
    for member, arguments in names["classes"][kind].items():
        if member in ("__del__", "__repr__"):
            continue
        if member in ("__enter__", "__exit__"):
            space[member] = _enter if member == "__enter__" else _exit
        elif arguments is None:
            space[member] = _property(names, kind, member)
        elif member != "__init__":
            space[member] = _method(names, kind, member)
    space["__init__"] = _constructor(module, names, kind, part)
    if kind == "IHostMemory":
        space["__bytes__"] = _content
    return Checked(kind, bases, space)


def _enter(self: Any) -> Any:
    return self


def _exit(self: Any, exc_type: object, exc_value: object, traceback: object) -> None:
    pass


def _content(self: Any) -> bytes:
    """Stands for the buffer protocol, which a class written in Python has from 3.12 on only."""
    data: bytes = part_of(self, "IHostMemory").data
    return data


def _property(names: Table, kind: str, member: str) -> property:
    rights = names["properties"].get(kind, {}).get(member, "r")

    def read(self: Any) -> Any:
        part = part_of(self, kind)
        part.world.called(f"{kind}.{member}")
        if not hasattr(part, member):
            raise NotInStandIn(f"{kind}.{member}: the stand-in does not do it")
        return getattr(part, member)

    def write(self: Any, value: Any) -> None:
        part = part_of(self, kind)
        part.world.called(f"{kind}.{member} =")
        if not hasattr(part, member):
            raise NotInStandIn(f"{kind}.{member} = ...: the stand-in does not do it")
        before = getattr(part, member)
        if isinstance(before, (int, Numbered)) and not isinstance(value, type(before)):
            raise TypeError(f"{kind}.{member}: incompatible: got {value!r}, expected {type(before).__name__}")
        setattr(part, member, value)

    return property(read if "r" in rights else None, write if "w" in rights else None)


def _method(names: Table, kind: str, member: str) -> Callable[..., Any]:
    key = f"{kind}.{member}"
    forms = names["overloads"].get(key, [names["classes"][kind][member]])
    optional = frozenset(names["optional"].get(key, ()))

    def call(self: Any, *given: Any, **named: Any) -> Any:
        part = part_of(self, kind)
        arguments = bind(key, forms, optional, given, named)
        part.world.called(key)
        action = getattr(part, member, None)
        if action is None:
            raise NotInStandIn(f"{key}: the stand-in does not do it")
        try:
            return action(*arguments)
        except Words as refusal:
            part.world.refused(part, refusal.text)
            return refusal.gives

    call.__name__ = member
    return call


def _constructor(module: ModuleType, names: Table, kind: str, part: type) -> Callable[..., None]:
    key = f"{kind}.__init__"
    own = names["classes"][kind].get("__init__")
    forms = names["overloads"].get(key, [own])
    optional = frozenset(names["optional"].get(key, ()))

    def construct(self: Any, *given: Any, **named: Any) -> None:
        if own is None:
            raise TypeError(f"tensorrt.{kind}: No constructor defined!")
        arguments = bind(key, forms, optional, given, named)
        listener: Listener = module.__dict__["__listener__"]
        listener.called(key)
        if part is object:
            raise NotInStandIn(f"{key}: the stand-in does not do it")
        made: Any = part(listener, *arguments)
        object.__setattr__(self, HIDDEN, made)
        made.public_kind = kind
        listener.made(kind, self)

    return construct


def bind(
    key: str, forms: Sequence[Sequence[str]], optional: frozenset[str], given: Sequence[Any], named: Mapping[str, Any]
) -> list[Any]:
    """Arguments in order, as pybind11 takes them; an optional one that is not given is left out.

    Raises:
        TypeError: too many, too few, or a name that this version does not have.
    """
    for form in forms:
        if len(given) > len(form) or any(name not in form for name in named):
            continue
        rest = form[len(given) :]
        if any(name.startswith(UNNAMED) and name[3:].isdigit() for name in named):
            continue
        if any(name in form[: len(given)] for name in named):
            continue
        missing = [name for name in rest if name not in named]
        if all(name in optional for name in missing):
            kept = [name for name in rest if name in named]
            if rest[: len(kept)] != kept:
                continue
            return [*given, *(named[name] for name in kept)]
    wanted = " or ".join("(" + ", ".join(form) + ")" for form in forms)
    raise TypeError(f"{key}(): incompatible function arguments: got {list(given)!r} {dict(named)!r}, expected {wanted}")
