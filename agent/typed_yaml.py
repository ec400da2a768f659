"""A YAML mapping into frozen types: each value against the type and the bounds of its field.

An unknown key is refused with its path and the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from agent.errors import ConfigError
from agent.yaml_file import HINT, shown

__all__ = ["config_from_mapping", "key"]

T = TypeVar("T")


def key(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    pattern: str | None = None,
    form: str = "",
    path: bool = False,
) -> Any:
    """One key with its bounds; `form` is its `pattern` in words, a relative `path` starts at the file's folder."""
    bounds = {"low": low, "high": high, "pattern": pattern, "form": form, "path": path}
    return dataclasses.field(default=default, metadata=bounds)


def config_from_mapping(cls: type[T], raw: dict[str, Any], *, source: Path) -> T:
    """Build frozen types from a YAML mapping; used for `defect-opt.yaml` too.

    Args:
        cls: a frozen dataclass whose fields are scalars, `Path`, `Literal`, tuples, other such classes, or a union
            of classes told apart by their `kind`.
        raw: what `read_yaml` gave.
        source: the file, for messages, and the folder that relative paths start from.

    Raises:
        ConfigError: with the path of the key, what was got and what was expected.
    """
    try:
        return _Reader(source).build(cls, raw, "")
    except ConfigError as error:
        if str(source) in error.message:
            raise
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from error


class _Reader:
    """Walks types and values side by side."""

    def __init__(self, source: Path) -> None:
        self._source = source

    def build(self, cls: type[T], raw: Any, where: str) -> T:
        if not isinstance(raw, dict):
            self._refuse(where, f"got {shown(raw)}, expected keys and values")
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in raw:
            if key not in fields:
                self._refuse(_join(where, key), "unknown key", _did_you_mean(str(key), where, list(fields)))
        values = {}
        for name, field in fields.items():
            if name in raw:
                values[name] = self._value(hints[name], raw[name], _join(where, name), field.metadata)
            elif field.default is dataclasses.MISSING:
                self._refuse(_join(where, name), "missing")
        return cls(**values)

    def _value(self, hint: Any, raw: Any, where: str, meta: Any) -> Any:
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            return self._union(get_args(hint), raw, where, meta)
        if origin is Literal:
            return self._choice(get_args(hint), raw, where)
        if origin is tuple:
            if not isinstance(raw, list):
                self._refuse(where, f"got {shown(raw)}, expected a list")
            return tuple(self._value(get_args(hint)[0], item, f"{where}[{i}]", meta) for i, item in enumerate(raw))
        if dataclasses.is_dataclass(hint):
            return self.build(typing.cast("type[Any]", hint), raw, where)
        return self._scalar(hint, raw, where, meta)

    def _choice(self, choices: tuple[Any, ...], raw: Any, where: str) -> Any:
        if raw not in choices or isinstance(raw, bool):
            quoted = f' (in quotes: "{raw}")' if isinstance(raw, (int, float)) and str(raw) in choices else ""
            self._refuse(where, f"got {shown(raw)}, expected one of {', '.join(map(str, choices))}{quoted}")
        return raw

    def _union(self, options: tuple[Any, ...], raw: Any, where: str, meta: Any) -> Any:
        if raw is None and type(None) in options:
            return None
        options = tuple(o for o in options if o is not type(None))
        words = [word for o in options if get_origin(o) is Literal for word in get_args(o)]
        if words and isinstance(raw, str):  # a number, or a word in its place
            if raw not in words:
                self._refuse(where, f"got {shown(raw)}, expected {', '.join(words)} or {_WORDS[options[0]]}")
            return raw
        options = tuple(o for o in options if get_origin(o) is not Literal)
        if len(options) == 1:
            return self._value(options[0], raw, where, meta)
        if not isinstance(raw, dict):
            self._refuse(where, f"got {shown(raw)}, expected keys and values")
        kinds = {get_args(typing.get_type_hints(o)["kind"])[0]: o for o in options}
        kind = raw.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            self._refuse(f"{where}.kind", f"got {shown(kind)}, expected one of {', '.join(kinds)}")
        return self.build(kinds[kind], raw, where)

    def _scalar(self, hint: Any, raw: Any, where: str, meta: Any) -> Any:
        if hint is Path:
            return self._path(raw, where)
        number = hint is float and isinstance(raw, int) and not isinstance(raw, bool)
        if not number and (not isinstance(raw, hint) or (hint is not bool and isinstance(raw, bool))):
            self._refuse(where, f"got {shown(raw)}, expected {_WORDS.get(hint, hint.__name__)}{_quotes(hint, raw)}")
        low, high, pattern = meta.get("low"), meta.get("high"), meta.get("pattern")
        if isinstance(raw, float) and not math.isfinite(raw):
            self._refuse(where, f"got {raw}, expected a finite number")
        if (low is not None and raw < low) or (high is not None and raw > high):
            self._refuse(where, f"got {shown(raw)}, expected {low:.10g} to {high:.10g}")
        if pattern is not None and not re.fullmatch(pattern, raw):
            self._refuse(where, f"got {shown(raw)}, expected {meta.get('form') or f'the form {pattern}'}")
        return float(raw) if number else raw  # only now: a whole number of 400 digits is no float

    def _path(self, raw: Any, where: str) -> Path:
        if not isinstance(raw, str) or not raw or "\x00" in raw:
            self._refuse(where, f"got {shown(raw)}, expected a path")
        try:
            return (self._source.parent / Path(raw).expanduser()).absolute()
        except RuntimeError:  # ~somebody
            self._refuse(where, f"got {shown(raw)}, expected a path (there is no such user)")

    def _refuse(self, where: str, problem: str, suggestion: str = "") -> typing.NoReturn:
        place = where or "the top level"
        raise ConfigError(f"{self._source}: {place}: {problem}{suggestion}", hint=HINT)


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _did_you_mean(key: str, where: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [k for k in known if key and k.startswith(key)]
    return f" (did you mean {_join(where, near[0])}?)" if near else f" (known here: {', '.join(known)})"


def _quotes(hint: Any, raw: Any) -> str:
    """The remedy for `source: 0` and `recipe: no`, which YAML reads as a number and as false."""
    if hint is not str or raw is None or isinstance(raw, (list, dict)):
        return ""
    return " (in quotes)" if isinstance(raw, bool) or not isinstance(raw, (int, float)) else f' (in quotes: "{raw}")'
