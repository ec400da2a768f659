"""The bytes of Sparkplug: what we write others read, and nothing that anybody sends breaks the reader."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sparkplug.payload import DataType, Metric, Payload, PayloadError, Value, decode, encode

INTEGERS = {
    DataType.INT8: (-(2**7), 2**7 - 1), DataType.INT16: (-(2**15), 2**15 - 1), DataType.INT32: (-(2**31), 2**31 - 1),
    DataType.INT64: (-(2**63), 2**63 - 1), DataType.UINT8: (0, 2**8 - 1), DataType.UINT16: (0, 2**16 - 1),
    DataType.UINT32: (0, 2**32 - 1), DataType.UINT64: (0, 2**64 - 1), DataType.DATETIME: (0, 2**64 - 1),
}  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
U64 = st.integers(0, 2**64 - 1)


def values(kind: DataType) -> st.SearchStrategy[Value]:
    """All that a data type can carry."""
    if kind in INTEGERS:
        return st.integers(*INTEGERS[kind])
    if kind is DataType.BOOLEAN:
        return st.booleans()
    if kind in (DataType.STRING, DataType.TEXT):
        return TEXT
    return st.floats(allow_nan=False, width=32 if kind is DataType.FLOAT else 64)


@st.composite
def metrics(draw: st.DrawFn) -> Metric:
    kind = draw(st.sampled_from(DataType))
    return Metric(
        name=draw(TEXT), alias=draw(st.none() | U64), timestamp_ms=draw(st.none() | U64), datatype=kind,
        value=draw(st.none() | values(kind)), is_historical=draw(st.booleans()),
    )  # fmt: skip


PAYLOADS = st.builds(
    Payload, timestamp_ms=st.none() | U64, seq=st.none() | U64, metrics=st.lists(metrics(), max_size=5).map(tuple)
)


@given(PAYLOADS)
def test_what_is_written_is_read_as_it_was(payload: Payload) -> None:
    """Also the smallest and largest numbers of each type, and text of any script."""
    assert decode(encode(payload)) == payload


@given(st.binary(max_size=300))
def test_any_bytes_are_a_payload_or_an_error_of_ours(data: bytes) -> None:
    """Whoever may write on the NCMD topic must not end the thread."""
    try:
        decode(data)
    except PayloadError:
        return


@given(PAYLOADS, st.data())
def test_a_payload_with_a_changed_byte_does_not_break_the_reader(payload: Payload, data: st.DataObject) -> None:
    """Nearer to a payload than random bytes: lengths that reach too far, types that do not fit."""
    raw = bytearray(encode(payload))
    if raw:
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except PayloadError:
        return


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (DataType.INT8, 128), (DataType.INT32, -(2**31) - 1), (DataType.UINT64, -1), (DataType.INT32, 1.0),
        (DataType.INT32, True), (DataType.BOOLEAN, 1), (DataType.STRING, 5), (DataType.DOUBLE, "1"), (99, 1),
        (None, 1), (DataType.FLOAT, 1e300),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_its_type_is_refused(kind: int | None, value: Value) -> None:
    """A counter that wraps silently would be read as another one."""
    with pytest.raises(PayloadError, match="can't carry"):
        encode(Payload(metrics=(Metric(name="x", datatype=kind, value=value),)))


@pytest.mark.parametrize(
    "data",
    [
        b"\x08", b"\x08" + b"\xff" * 10 + b"\x01", b"\x12\x05abc", b"\x0b", b"\x0a\x01a", b"\x12\x03\x0a\x01\xff",
        b"\x00\x01", b"\x12\x02\x08\x01",
    ],
)  # fmt: skip
def test_broken_payloads_are_refused(data: bytes) -> None:
    """Cut short, overlong, a group, a wrong wire type, no UTF-8, field 0."""
    with pytest.raises(PayloadError):
        decode(data)


# A second opinion: Google's runtime, with the fields described here from the specification's table.

FIELDS: dict[str, list[tuple[int, str, str, str]]] = {
    "PropertyValue": [
        (1, "type", "UINT32", ""), (2, "is_null", "BOOL", ""), (3, "int_value", "UINT32", ""),
        (4, "long_value", "UINT64", ""), (5, "float_value", "FLOAT", ""), (6, "double_value", "DOUBLE", ""),
        (7, "boolean_value", "BOOL", ""), (8, "string_value", "STRING", ""),
    ],
    "PropertySet": [(1, "keys", "STRING", "*"), (2, "values", "PropertyValue", "*")],
    "Metric": [
        (1, "name", "STRING", ""), (2, "alias", "UINT64", ""), (3, "timestamp", "UINT64", ""),
        (4, "datatype", "UINT32", ""), (5, "is_historical", "BOOL", ""), (7, "is_null", "BOOL", ""),
        (9, "properties", "PropertySet", ""), (10, "int_value", "UINT32", ""), (11, "long_value", "UINT64", ""),
        (12, "float_value", "FLOAT", ""), (13, "double_value", "DOUBLE", ""), (14, "boolean_value", "BOOL", ""),
        (15, "string_value", "STRING", ""),
    ],
    "Payload": [(1, "timestamp", "UINT64", ""), (2, "metrics", "Metric", "*"), (3, "seq", "UINT64", "")],
}  # fmt: skip


@pytest.fixture(scope="module")
def google() -> Any:
    """Google's class for a payload."""
    pb2 = pytest.importorskip("google.protobuf.descriptor_pb2", reason="needs protobuf: pip install protobuf")
    pool = importlib.import_module("google.protobuf.descriptor_pool").DescriptorPool()
    file = pb2.FileDescriptorProto(name="spb_test.proto", package="spb", syntax="proto2")
    kinds = pb2.FieldDescriptorProto
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for number, name, kind, many in fields:
            field = described.field.add(name=name, number=number, label=3 if many else 1)
            if kind in FIELDS:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".spb.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind}")
    pool.Add(file)
    factory = importlib.import_module("google.protobuf.message_factory")
    return factory.GetMessageClass(pool.FindMessageTypeByName("spb.Payload"))


def as_google_reads(metric: Any) -> Value | None:
    """The value by its type, signed where the type is."""
    if metric.is_null:
        return None
    kind = DataType(metric.datatype)
    if kind in INTEGERS:
        low, _ = INTEGERS[kind]
        is_long = metric.HasField("long_value")
        raw, bits = (metric.long_value, 64) if is_long else (metric.int_value, 32)
        return int(raw - (1 << bits) if low < 0 and raw >> bits - 1 else raw)
    names = {DataType.BOOLEAN: "boolean", DataType.FLOAT: "float", DataType.DOUBLE: "double"}
    value: Value = getattr(metric, f"{names.get(kind, 'string')}_value")
    return value


@given(payload=PAYLOADS)
def test_googles_protobuf_reads_what_we_write(google: Any, payload: Payload) -> None:
    """Every field and value, and nothing beside them that it does not know."""
    read = google.FromString(encode(payload))

    assert (read.timestamp if read.HasField("timestamp") else None) == payload.timestamp_ms
    assert (read.seq if read.HasField("seq") else None) == payload.seq
    assert len(read.metrics) == len(payload.metrics)
    for theirs, ours in zip(read.metrics, payload.metrics, strict=True):
        assert theirs.name == ours.name
        assert (theirs.alias if theirs.HasField("alias") else None) == ours.alias
        assert (theirs.timestamp if theirs.HasField("timestamp") else None) == ours.timestamp_ms
        assert theirs.datatype == ours.datatype
        assert theirs.is_historical == ours.is_historical
        assert as_google_reads(theirs) == ours.value
    assert google.FromString(read.SerializeToString()) == read


@given(payload=PAYLOADS)
def test_we_read_what_googles_protobuf_writes(google: Any, payload: Payload) -> None:
    """It writes fields in the order of their numbers, whatever the order in which they came."""
    assert decode(google.FromString(encode(payload)).SerializeToString(deterministic=True)) == payload


def test_googles_protobuf_reads_the_unit(google: Any) -> None:
    """A property set with one key."""
    metric = Metric(name="Part/Latency", datatype=DataType.DOUBLE, value=7.5, unit="ms")
    read = google.FromString(encode(Payload(metrics=(metric,)))).metrics[0].properties

    assert (list(read.keys), read.values[0].type, read.values[0].string_value) == (["engUnit"], 12, "ms")


def test_not_a_number_goes_out_as_it_is() -> None:
    """The codec hides nothing; whoever makes metrics leaves NaN out (`tags.py`)."""
    value = decode(encode(Payload(metrics=(Metric(datatype=DataType.DOUBLE, value=math.nan),)))).metrics[0].value

    assert isinstance(value, float)
    assert math.isnan(value)
