"""What hosts write: every payload is hostile until decoded, and nothing here raises because of one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from agent.commands.decode import MAX_BYTES, Incoming
from agent.sparkplug.payload import DataType, Metric, PayloadError, Value, decode
from agent.sparkplug.tags import REBIRTH, REPLY, Tag

__all__ = ["Asked", "device_command", "node_command"]

MAX_TEXT = 256
"""Characters of a text that is written: names of parts and recipes are shorter."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one message asks for.

    Attributes:
        rebirth: all births once more.
        writes: names and values, checked against the tags' types.
        refused: what is not done, and why, in words.
    """

    rebirth: bool = False
    writes: tuple[tuple[str, Value], ...] = ()
    refused: tuple[str, ...] = ()


def node_command(incoming: Incoming) -> Asked:
    """Read an NCMD: the only thing that a node can be asked for is a rebirth, by name (it has no alias)."""
    metrics, problem = _metrics(incoming)
    if problem:
        return Asked(refused=(problem,))
    rebirth, refused = False, []
    for metric in metrics:
        if metric.name != REBIRTH:
            refused.append(f"{_shown(metric)}: can't be written; a node takes {REBIRTH}")
        elif metric.value is True:
            rebirth = True
        elif metric.value is not False:
            refused.append(f"{REBIRTH}: got {metric.value!r:.40}, expected true")
    return Asked(rebirth=rebirth, refused=tuple(refused))


def device_command(incoming: Incoming, tags: Mapping[str, Tag]) -> Asked:
    """Read a DCMD.

    Args:
        incoming: the message.
        tags: those that may be written, by name.
    """
    metrics, problem = _metrics(incoming)
    if problem:
        return Asked(refused=(problem,))
    by_alias = {tag.alias: tag for tag in tags.values()}
    writes, refused = [], []
    for metric in metrics:
        tag = tags.get(metric.name) if metric.name else by_alias.get(-1 if metric.alias is None else metric.alias)
        if tag is None or tag.name == REPLY:
            refused.append(f"{_shown(metric)}: can't be written")
            continue
        value = _fitting(metric, tag)
        if value is None:
            refused.append(f"{tag.name}: got {metric.value!r:.40}, expected {_EXPECTED[tag.datatype]}")
        else:
            writes.append((tag.name, value))
    return Asked(writes=tuple(writes), refused=tuple(refused))


def _metrics(incoming: Incoming) -> tuple[tuple[Metric, ...], str]:
    if incoming.retain:
        return (), "a retained command is not done: nobody knows how old it is; send it without retain"
    if len(incoming.payload) > MAX_BYTES:
        return (), f"got more than {MAX_BYTES} bytes"
    try:
        return decode(incoming.payload).metrics, ""
    except PayloadError as error:
        return (), f"no Sparkplug payload: {error}"


_EXPECTED = {
    DataType.STRING: f"text of up to {MAX_TEXT} printable characters",
    DataType.BOOLEAN: "true or false",
    DataType.DOUBLE: "a finite number",
}


def _fitting(metric: Metric, tag: Tag) -> Value | None:
    """The value as the tag has it, or None: hosts may leave the data type out, and write 1 for 1.0."""
    value = metric.value
    if tag.datatype is DataType.BOOLEAN:
        return value if isinstance(value, bool) else None
    if tag.datatype is DataType.STRING:
        return value if isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable() else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _shown(metric: Metric) -> str:
    return ascii(metric.name)[:60] if metric.name else f"alias {metric.alias}"
