"""Events whose attributes are JSON text until somebody asks: their rows, and what else is seen of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_activity import semconv
from otel_activity.codec.lines import origin_of, row_of
from otel_activity.codec.packed import PackedLines
from otel_activity.delivery.holding import decode_unit, encode_unit
from otel_activity.events import Event, PackedEvent, ResourceInfo, packed

ORIGIN = origin_of(ResourceInfo({"service.name": "sh\top"}))
STREAM = "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"
UUID = "019a0000-0000-7000-8000-000000000001"
USUAL: dict[str, Any] = {
    semconv.ACTIVITY_ACTION: "update",
    semconv.ENTITY_TYPE: "Task",
    semconv.DB_NAMESPACE: "shop",
    semconv.DB_COLLECTION_NAME: "tasks",
    semconv.DB_OPERATION_NAME: "UPDATE",
    semconv.TRANSACTION_ID: UUID,
    semconv.ENTITY_ID: "7",
    semconv.CHANGES: {"title": {"before": None, "after": 'a "quoted"\n\\ text'}},
    semconv.USER_ID: "ann",
    semconv.USER_ROLES: ["a", 'b"'],
    semconv.STATUS_CODE: 200,
    semconv.DETAILS: {semconv.USER_ID: "another", "amount": 2.5, "text": "x\ty"},
}
NAMES = st.sampled_from(
    [*USUAL, semconv.SEQUENCE, semconv.STREAM_ID, semconv.RECORD_UID, semconv.REASON, "own", "$json"]
)
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", UUID, UUID.upper(), "a\0b", "a\\b", "tab\t", "\u2028", "x" * 257, "\u00e4" * 200]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(-1e9, 1e9), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES | TEXTS, inner, max_size=2)),
    max_leaves=4,
)


def event(attributes: dict[str, Any], **more: Any) -> Event:
    """An event with these attributes."""
    usual: dict[str, Any] = {
        "id": STREAM,
        "name": "activity.entity.updated",
        "time": 1_780_000_000_123_456_000,
    }
    return Event(attributes=attributes, **usual | more)


def read_back(written: Event, place: int = 0) -> PackedEvent:
    """The event as a journal gives it, in a place of a stream if there is one."""
    (found,), _ = decode_unit(encode_unit([written]))
    if place:
        found.place(STREAM, place)
    return found


def columns(line: bytes) -> list[Any]:
    """The fields of a line, the last of them as the value that ``jsonb`` keeps."""
    fields: list[Any] = line.removesuffix(b"\n").split(b"\t")
    if fields != [b""]:
        fields[-1] = json.loads(fields[-1].replace(b"\\\\", b"\\"))
    return fields


@given(
    attributes=st.dictionaries(NAMES, VALUES, max_size=4),
    without=st.sets(NAMES, max_size=4),
    as_text=st.booleans(),
    place=st.sampled_from([0, 1, 1 << 40]),
    name=st.sampled_from(["activity.action", "od\td\0"]),
    key=st.sampled_from([STREAM, "no\\uuid"]),
    numbers=st.tuples(
        st.integers(-(1 << 61), 1 << 62),
        st.integers(0, 1 << 62),
        st.integers(0, 300),
        st.integers(0, 1 << 127),
    ),
)
def test_a_packed_event_has_the_row_of_the_event(
    attributes: dict[str, Any],
    without: set[str],
    as_text: bool,
    place: int,
    name: str,
    key: str,
    numbers: tuple[int, int, int, int],
) -> None:
    """Whatever its attributes hold, the store gets the same from the text as from the values."""
    given = {name: value for name, value in (USUAL | attributes).items() if name not in without}
    if as_text and given.get(semconv.CHANGES) is not None:  # what changed is never packed nothing
        given[semconv.CHANGES] = packed(given[semconv.CHANGES])
    time, observed, flags, trace = numbers
    written = event(
        given, id=key, name=name, trace_id=trace, trace_flags=flags, observed=observed, span_id=flags
    )
    written.time = time
    lines = PackedLines()
    for _ in range(2):  # the second one meets what is remembered of the first
        row = lines.row_of(read_back(written, place), ORIGIN)
        if place:
            written.place(STREAM, place)
        expected = row_of(written, ORIGIN.service, ORIGIN.key)
        assert (row.time, row.resource, row.reason) == (expected.time, expected.resource, expected.reason)
        assert columns(row.line) == columns(expected.line)
        assert row.event().plain_attributes() == written.plain_attributes()


def test_usual_events_are_not_unpacked_for_the_store() -> None:
    """What a service writes is stored from its text: no values are made of it."""
    found = read_back(event(USUAL), place=3)
    assert PackedLines().line(found, ORIGIN) is not None
    assert found.table == ("shop", "tasks", "UPDATE")
    assert found.text


@pytest.mark.parametrize("first", [True, False])
def test_a_place_is_an_attribute_whenever_it_is_given(first: bool) -> None:
    """Who asks for the attributes finds the place in the stream, whether it was given before or after."""
    found = read_back(event(dict(USUAL)))
    if first:
        found.place(STREAM, 5)
        assert found.attributes[semconv.SEQUENCE] == 5
    else:
        assert semconv.SEQUENCE not in found.attributes
        found.place(STREAM, 5)
    assert found.attributes[semconv.STREAM_ID] == STREAM
    assert found.attributes[semconv.SEQUENCE] == 5
    assert found.table == event(USUAL).table


def test_attributes_can_be_exchanged() -> None:
    """An event that was changed is stored as it was changed, not as its journal had it."""
    found = read_back(event(dict(USUAL)))
    found.attributes = {**found.plain_attributes(), semconv.REASON: "asked for"}
    found.attributes[semconv.ACTIVITY_OUTCOME] = "failure"
    row = PackedLines().row_of(found, ORIGIN)
    expected = {**USUAL, semconv.REASON: "asked for", semconv.ACTIVITY_OUTCOME: "failure"}
    assert columns(row.line) == columns(row_of(event(expected), ORIGIN.service, ORIGIN.key).line)
