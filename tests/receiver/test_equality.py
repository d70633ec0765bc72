"""A row that came through the receiver equals the row that the exporter writes for the same event."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_activity import semconv
from otel_activity.codec import encode
from otel_activity.codec.lines import origin_of
from otel_activity.codec.otlp import envelope, log_request
from otel_activity.codec.rows import COLUMNS, copy_line
from otel_activity.events import Event, ResourceInfo
from otel_activity.receiver.jsondecoder import JSONDecoder
from otel_activity.receiver.protobuf import ProtobufDecoder
from tests.postgres.support import make_event, session
from tests.receiver.support import JSON, PROTOBUF, Receiver, as_json, columns_of, field, otlp_request

_RESOURCE = COLUMNS.index("resource_id")
RESOURCE: dict[str, Any] = {"service.name": "shop", "host.name": "a\tb", "process.pid": 7}

_texts = st.text(max_size=20) | st.sampled_from(
    ["", '"', "\\", "\0", "a\tb", "\u00a0", "é", "$json", "x" * 300]
)
_scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | _texts
_values = st.recursive(
    _scalars | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=12,
).map(encode)
_changes = st.dictionaries(
    _texts.filter(lambda text: "\0" not in text and text[:1] != "$"),
    st.fixed_dictionaries({}, optional={"before": _values, "after": _values}),
    max_size=4,
)
_names = st.sampled_from(
    [
        semconv.ACTIVITY_ACTION,
        semconv.USER_ID,
        semconv.ENTITY_ID,
        semconv.TENANT_ID,
        semconv.TRANSACTION_ID,
        semconv.STREAM_ID,
        semconv.SEQUENCE,
        semconv.CHANGES,
        semconv.DETAILS,
        "custom",
        'odd"\\name',
    ]
)
_events = st.builds(
    make_event,
    number=st.integers(0, 9),
    severity=st.integers(0, 24),
    trace_id=st.integers(0, (1 << 128) - 1),
    span_id=st.integers(0, (1 << 64) - 1),
    trace_flags=st.integers(0, 255),
    attributes=st.dictionaries(_names, _values, max_size=5)
    | _changes.map(lambda changes: {semconv.CHANGES: changes}),
)


def _expected(events: list[Event]) -> list[list[Any]]:
    origin = origin_of(ResourceInfo(RESOURCE))
    return [columns_of(copy_line(event, origin.service, origin.key)) for event in events]


@settings(max_examples=150, deadline=None)
@given(st.lists(_events, min_size=1, max_size=4))
def test_rows_from_protobuf_equal_the_exporters(events: list[Event]) -> None:
    """Our OTLP export, decoded: the same lines as from the events, by the fast way and by the long one."""
    body = log_request(envelope(RESOURCE, "", semconv.SCOPE_NAME, "1", ""), events)
    rows = ProtobufDecoder().decode(body).rows
    assert [columns_of(row.line) for row in rows] == _expected(events)
    for row, event in zip(rows, events, strict=True):
        assert row.event() == event


@settings(max_examples=100, deadline=None)
@given(st.lists(_events, min_size=1, max_size=4))
def test_rows_from_reversed_fields_equal_the_exporters(events: list[Event]) -> None:
    """The Collector writes the fields of each message from the last to the first: the lines are the same."""
    body = log_request(envelope(RESOURCE, "", semconv.SCOPE_NAME, "1", ""), events)
    rows = ProtobufDecoder().decode(_reversed(body, _REQUEST)).rows
    assert [columns_of(row.line) for row in rows] == _expected(events)


@settings(max_examples=100, deadline=None)
@given(st.lists(_events, min_size=1, max_size=4))
def test_rows_from_json_equal_the_exporters(events: list[Event]) -> None:
    """What protobuf's own JSON printer makes of our export, decoded: the same lines as from the events."""
    rows = JSONDecoder().decode(json.dumps(as_json(otlp_request(events, RESOURCE))).encode()).rows
    expected = _expected(events)
    key = origin_of(ResourceInfo(RESOURCE)).key.encode()
    for fields in expected:  # the SDK adds attributes to the resource
        assert fields[_RESOURCE] == key
        fields[_RESOURCE] = rows[0].resource.encode()
    assert [columns_of(row.line) for row in rows] == expected


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_row_in_the_table_equals_the_exporters(receiver: Receiver, store_dsn: str, kind: str) -> None:
    """The same event through the exporter and through the receiver: the same row, to the last column."""
    from otel_activity.postgres.exporter import PostgresEventExporter

    event = make_event(3, attributes={semconv.USER_ROLES: ["a", "b"], semconv.DETAILS: {"n": 1.5, "t": 'q"'}})
    request = otlp_request([event], RESOURCE)
    body = json.dumps(as_json(request)).encode() if kind == JSON else request.SerializeToString()
    assert receiver.post(body, kind).status_code == 200
    rows = []
    with session(store_dsn) as connection:
        for table in ("events", "resources"):
            rows.append(connection.execute(f"SELECT * FROM activity.{table}").fetchall())
        connection.execute("TRUNCATE activity.events, activity.resources")
        exporter = PostgresEventExporter(store_dsn)
        exporter.export([event], ResourceInfo(rows[1][0]["attributes"]))
        exporter.close()
        again = connection.execute("SELECT * FROM activity.events").fetchall()
    assert again == rows[0]


_ANY: dict[int, Any] = {}
_PAIR = {2: _ANY}
_ANY.update({5: {1: _ANY}, 6: {1: _PAIR}})
_REQUEST = {1: {1: {1: _PAIR}, 2: {1: {}, 2: {6: _PAIR}}}}
"""Which fields are messages that the Collector reverses."""


def _reversed(data: bytes, messages: dict[int, Any]) -> bytes:
    """The message with its fields from the last to the first, in all its messages; lists as they are."""
    fields = []
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        if tag & 7 == 2:
            size, position = _varint(data, position)
            content = data[position : position + size]
            position += size
            if tag >> 3 in messages:
                content = _reversed(content, messages[tag >> 3])
            fields.append((tag, field(tag >> 3, content)))
            continue
        position = {0: _varint(data, position)[1], 1: position + 8, 5: position + 4}[tag & 7]
        fields.append((tag, data[start:position]))
    return b"".join(part for _, part in sorted(fields, key=lambda each: each[0] >> 3, reverse=True))


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128 or position >= len(data):
            return value, position
