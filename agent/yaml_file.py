"""One YAML file, read as the plain mapping that it should be. The only import of PyYAML.

Stricter than YAML: a key that stands twice, an alias or a merge is refused, and so is anything that is no regular file.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

from agent.errors import ConfigError

__all__ = ["HINT", "MAX_BYTES", "read_yaml", "shown"]

MAX_BYTES = 1_000_000

HINT = "configs/agent.reference.yaml holds every key; `defect-agent check --config FILE` checks a file"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; tags that would build objects are refused, and so are keys that stand twice, and aliases.

    Raises:
        ConfigError: the file can't be read, is too large, or is no YAML mapping.
    """
    try:
        raw = yaml.load(_read_bytes(path), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that refuses even more
    except ConfigError:
        raise
    except Exception as error:  # PyYAML also leaves by KeyError, IndexError, AttributeError, RecursionError
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: not YAML ({_cut(problem, 300)})", hint=HINT) from error
    if raw is None:
        raise ConfigError(f"{path}: empty, expected keys and values", hint=HINT)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: got {shown(raw)}, expected keys and values", hint=HINT)
    return raw


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, 60 characters at most."""
    try:
        return _cut(repr(value), 60)
    except ValueError:  # a whole number of more than 4300 digits
        return "a number without end"


def _read_bytes(path: Path) -> bytes:
    try:
        # Opening a named pipe would wait for a writer, and reading one could end in the middle of the text.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: not a regular file", hint=f"ls -l {path}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})", hint=f"ls -l {path}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, this is no configuration", hint=HINT)
    return data


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without three traps: keys that stand twice, aliases, and merges.

    Of two equal keys YAML silently takes the last. 300 bytes of aliases stand for gigabytes as soon as something
    merges or prints them.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not taken", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merges are not taken", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
