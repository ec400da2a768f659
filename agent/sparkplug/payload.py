"""The Sparkplug B payload as bytes: a small writer and a careful reader of its Protocol Buffers messages.

Field numbers and data types are those of the specification's chapter on payloads (Sparkplug 3.0, section 6.4). Written
by hand: the runtime of Google's library is pinned by everybody else on a device, and we need some twenty fields. Data
sets, templates and files are neither written nor read.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from collections.abc import Iterator

__all__ = ["DataType", "Metric", "Payload", "PayloadError", "Value", "decode", "encode"]

Value = bool | int | float | str


class DataType(enum.IntEnum):
    """A metric's type; the number is what stands on the wire."""

    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATETIME = 13
    TEXT = 14


class PayloadError(ValueError):
    """Bytes that are no Sparkplug payload, or a value that its data type can't carry."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One value with its name.

    Attributes:
        name: in births; data and commands may have the alias alone. Empty for none.
        alias: a number for the name, or None.
        timestamp_ms: UTC milliseconds, or None.
        datatype: its number; one that we don't know comes through too. None where a message leaves it out.
        value: None is null.
        is_historical: of a moment that has passed, and no news for a display.
        unit: engineering unit, written as the property `engUnit`; never read.
        is_type_told: whether the data type is written; the value is written by it either way.
    """

    name: str = ""
    alias: int | None = None
    timestamp_ms: int | None = None
    datatype: int | None = None
    value: Value | None = None
    is_historical: bool = False
    unit: str = ""
    is_type_told: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One message.

    Attributes:
        timestamp_ms: when it was sent, UTC milliseconds, or None.
        seq: 0 to 255; None in deaths and commands.
        metrics: in order.
    """

    timestamp_ms: int | None = None
    seq: int | None = None
    metrics: tuple[Metric, ...] = ()


_BITS: dict[int, int] = {
    DataType.INT8: 8, DataType.INT16: 16, DataType.INT32: 32, DataType.INT64: 64,
    DataType.UINT8: 8, DataType.UINT16: 16, DataType.UINT32: 32, DataType.UINT64: 64, DataType.DATETIME: 64,
}  # fmt: skip
_SIGNED: frozenset[int | None] = frozenset({DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64})
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_PAYLOAD_WIRES = {1: _VARINT, 2: _BYTES, 3: _VARINT}
_METRIC_WIRES = {
    1: _BYTES, 2: _VARINT, 3: _VARINT, 4: _VARINT, 5: _VARINT, 7: _VARINT,
    10: _VARINT, 11: _VARINT, 12: _FOUR, 13: _EIGHT, 14: _VARINT, 15: _BYTES,
}  # fmt: skip


def encode(payload: Payload) -> bytes:
    """Write a payload.

    Raises:
        PayloadError: a value does not fit its data type.
    """
    head = b"" if payload.timestamp_ms is None else _number(1, payload.timestamp_ms)
    body = b"".join(_bytes(2, _metric(metric)) for metric in payload.metrics)
    return head + body + (b"" if payload.seq is None else _number(3, payload.seq))


def decode(data: bytes) -> Payload:
    """Read a payload; fields that we don't know are skipped.

    Raises:
        PayloadError: cut short, an overlong number, text that is not UTF-8, a field of the wrong wire type.
    """
    timestamp_ms = seq = None
    metrics = []
    for number, value in _known_fields(data, _PAYLOAD_WIRES):
        if isinstance(value, bytes):
            metrics.append(_read_metric(value))
        elif number == 1:
            timestamp_ms = value
        else:
            seq = value
    return Payload(timestamp_ms=timestamp_ms, seq=seq, metrics=tuple(metrics))


def _metric(metric: Metric) -> bytes:
    parts = [_bytes(1, _utf8(metric.name))] if metric.name else []
    told = metric.datatype if metric.is_type_told else None
    for number, count in ((2, metric.alias), (3, metric.timestamp_ms), (4, told)):
        if count is not None:
            parts.append(_number(number, count))
    if metric.is_historical:
        parts.append(_number(5, 1))
    if metric.value is None:
        parts.append(_number(7, 1))
    if metric.unit:
        parts.append(_bytes(9, _unit_property(metric.unit)))
    if metric.value is not None:
        parts.append(_value(metric, metric.value))
    return b"".join(parts)


def _unit_property(unit: str) -> bytes:
    """A property set with one key, `engUnit`, a string."""
    value = _number(1, DataType.STRING) + _bytes(8, _utf8(unit))
    return _bytes(1, b"engUnit") + _bytes(2, value)


def _value(metric: Metric, value: Value) -> bytes:
    kind = metric.datatype
    if kind == DataType.BOOLEAN and isinstance(value, bool):
        return _number(14, int(value))
    if kind in (DataType.STRING, DataType.TEXT) and isinstance(value, str):
        return _bytes(15, _utf8(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if kind == DataType.DOUBLE:
            return _key(13, _EIGHT) + struct.pack("<d", value)
        if kind == DataType.FLOAT and (abs(value) <= 3.4e38 or not math.isfinite(value)):
            return _key(12, _FOUR) + struct.pack("<f", value)
        bits = None if kind is None else _BITS.get(kind)
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if bits and kind in _SIGNED else (0, (1 << (bits or 0)) - 1)
        if bits is not None and isinstance(value, int) and low <= value <= high:
            return _number(11, value & (1 << 64) - 1) if bits == 64 else _number(10, value & 0xFFFF_FFFF)
    raise PayloadError(f"{metric.name or metric.alias}: data type {kind} can't carry {value!r:.60}")


def _read_metric(data: bytes) -> Metric:
    """Of a field that comes twice the last one counts, as in every reader of Protocol Buffers."""
    found = dict(_known_fields(data, _METRIC_WIRES))
    kind, value = _count(found.get(4)), None
    for number in found.keys() & {10, 11, 12, 13, 14, 15}:
        value = _read_value(number, found[number], kind)
    return Metric(
        name=_text(found.get(1, b"")),
        alias=_count(found.get(2)),
        timestamp_ms=_count(found.get(3)),
        datatype=kind,
        value=None if found.get(7) else value,
        is_historical=bool(found.get(5)),
    )


def _read_value(number: int, raw: int | bytes, kind: int | None) -> Value:
    if isinstance(raw, bytes):
        if number == 15:
            return _text(raw)
        return float(struct.unpack("<f" if number == 12 else "<d", raw)[0])
    if number == 14:
        return bool(raw)
    bits = 64 if number == 11 else 32
    raw &= (1 << bits) - 1
    is_negative = kind in _SIGNED and raw >> bits - 1
    return raw - (1 << bits) if is_negative else raw


def _known_fields(data: bytes, wires: dict[int, int]) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        value: int | bytes
        if wire == _VARINT:
            value, at = _read_varint(data, at)
        elif wire in (_EIGHT, _BYTES, _FOUR):
            size, at = _read_varint(data, at) if wire == _BYTES else (8 if wire == _EIGHT else 4, at)
            if at + size > len(data):
                raise PayloadError(f"field {number}: got {len(data) - at} bytes, expected {size}")
            value, at = data[at : at + size], at + size
        else:
            raise PayloadError(f"field {number}: wire type {wire} has no place in this message")
        if wires.get(number, wire) != wire or number == 0:
            raise PayloadError(f"field {number}: got wire type {wire}, expected {wires.get(number)}")
        if number in wires:
            yield number, value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise PayloadError("cut short in a number")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise PayloadError("a number of more than ten bytes")


def _count(value: int | bytes | None) -> int | None:
    return value if isinstance(value, int) else None


def _text(raw: int | bytes) -> str:
    try:
        return bytes(raw).decode() if isinstance(raw, bytes) else ""
    except UnicodeDecodeError as error:
        raise PayloadError("text that is not UTF-8") from error


def _utf8(text: str) -> bytes:
    """Half a surrogate pair, which JSON may hold, becomes a question mark."""
    return text.encode(errors="replace")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _number(number: int, value: int) -> bytes:
    if not 0 <= value < 1 << 64:
        raise PayloadError(f"field {number}: got {value}, expected 0 to 2^64 - 1")
    return _key(number, _VARINT) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(value)) + value
