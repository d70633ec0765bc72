"""An event as a COPY line and back, without and with a server."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_activity import semconv
from otel_activity.codec.rows import (
    COLUMN_ATTRIBUTES,
    COLUMN_TEXT_LIMIT,
    COLUMNS,
    column_text,
    copy_line,
    resource_id,
)
from otel_activity.events import Event, ResourceInfo
from tests.postgres.support import RESOURCE, make_event, session, stored

if TYPE_CHECKING:
    from otel_activity.postgres.writer import EventWriter

FIRST_MICROSECOND = -62_135_596_800 * 10**6
LAST_MICROSECOND = 253_402_300_800 * 10**6 - 1

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
floats = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda number: abs(number) < 2**53 or abs(number) >= 2**64
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | floats.map(lambda number: number + 0.0)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("$json"), inner, max_size=3),
    max_leaves=8,
)
held = st.dictionaries(st.sampled_from(sorted(COLUMN_ATTRIBUTES.values())), values | st.uuids().map(str))
moments = st.integers(FIRST_MICROSECOND, LAST_MICROSECOND).map(lambda micros: micros * 1000)
events = st.builds(
    Event,
    id=st.uuids(version=4).map(str),
    name=texts.filter(lambda name: "\0" not in name and name != ""),
    time=moments,
    attributes=st.builds(lambda one, two: one | two, st.dictionaries(texts, values, max_size=4), held),
    observed=moments,
    severity=st.integers(1, 24),
    trace_id=st.integers(0, 2**128 - 1),
    span_id=st.integers(0, 2**64 - 1),
    trace_flags=st.integers(0, 255),
)


def _exact(event: Event) -> bytes:
    """Equality that tells True from 1 and 1 from 1.0."""
    return msgspec.json.encode(event, order="deterministic")


def test_every_event_comes_back_equal_from_the_server(store_dsn: str, writer: EventWriter) -> None:
    """Whatever plain JSON the attributes hold, the row in the table reads as the event that was written."""

    @settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(events, min_size=1, max_size=12, unique_by=lambda event: event.id))
    def check(batch: list[Event]) -> None:
        result = writer.write(batch, RESOURCE)
        assert result.quarantined == 0
        found = stored(store_dsn)
        for event in batch:
            assert found[event.id] == event
            assert _exact(found[event.id]) == _exact(event)

    check()


def test_typed_attributes_are_not_repeated(store_dsn: str, writer: EventWriter) -> None:
    """An attribute that its column holds exactly is not stored a second time as JSON."""
    writer.write([make_event()], RESOURCE)
    with session(store_dsn) as connection:
        row = connection.execute("SELECT * FROM activity.events").fetchall()[0]
    assert set(row["attributes"]) == {semconv.USER_NAME, semconv.DB_COLLECTION_NAME}
    assert row["entity_id"] == "0"
    assert row["sequence"] == 0
    assert row["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert row["span_id"] == "b7ad6b7169203331"
    assert row["service"] == "shop"


@pytest.mark.parametrize(
    ("attribute", "value", "column", "expected"),
    [
        (semconv.USER_ID, 42, "actor_id", "42"),
        (semconv.USER_ID, True, "actor_id", "true"),
        (semconv.USER_ID, "a\0b", "actor_id", "a\ufffdb"),
        (semconv.USER_ID, None, "actor_id", None),
        (semconv.USER_ID, "", "actor_id", None),
        (semconv.USER_ID, "\\N", "actor_id", "\\N"),
        (semconv.ENTITY_ID, [1, "x"], "entity_id", '[1,"x"]'),
        (semconv.ENTITY_ID, "a\tb\nc\rd\\e", "entity_id", "a\tb\nc\rd\\e"),
        (semconv.TRANSACTION_ID, "not a uuid", "transaction_id", None),
        (semconv.TRANSACTION_ID, ["x"], "transaction_id", None),
        (semconv.STREAM_ID, 0, "stream_id", None),
        (semconv.SEQUENCE, 2**63, "sequence", None),
        (semconv.SEQUENCE, "7", "sequence", None),
        (semconv.CHANGES, None, "changes", None),
    ],
)
def test_odd_values_of_typed_columns(
    store_dsn: str, writer: EventWriter, attribute: str, value: Any, column: str, expected: Any
) -> None:
    """A value that its column cannot hold is stored as near as possible, and exactly in the attributes."""
    event = make_event(attributes={attribute: value})
    assert writer.write([event], RESOURCE).stored == 1
    with session(store_dsn) as connection:
        row = connection.execute("SELECT * FROM activity.events").fetchall()[0]
    assert row[column] == expected
    assert stored(store_dsn)[event.id] == event


def test_long_texts_are_clipped_without_becoming_equal() -> None:
    """A text beyond the column's limit keeps its beginning, fits, and differs from its neighbours."""
    one, two = column_text("x" * 1_000_000), column_text("x" * 999_999 + "y")
    assert one is not None
    assert two is not None
    assert one != two
    assert len(one) == len(two) == COLUMN_TEXT_LIMIT
    assert one.startswith("xxxxxxxx")


def test_a_line_has_one_field_for_each_column() -> None:
    """No value can add a field or a line to the COPY data."""
    nasty = "a\tb\nc\\d\r"
    event = make_event(
        id=nasty, name=nasty, attributes=dict.fromkeys([*COLUMN_ATTRIBUTES.values(), nasty], nasty)
    )
    line = copy_line(event, nasty, resource_id(RESOURCE))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert line.count(b"\t") == len(COLUMNS) - 1


def test_time_is_cut_to_microseconds() -> None:
    """Nanoseconds below a microsecond do not make another key."""
    same: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "observed": 0,
        "attributes": {semconv.TRANSACTION_ID: None},
    }
    lines = {
        copy_line(make_event(time=1_700_000_000_000_001_000 + extra, **same), "s", "r") for extra in (0, 999)
    }
    assert len(lines) == 1


@pytest.mark.parametrize(
    "broken",
    [
        {"time": 10**30},
        {"time": -(10**21)},
        {"attributes": {"text": "\ud800"}},
        {"attributes": {"object": object()}},
        {"severity": "high"},
    ],
)
def test_an_impossible_event_is_refused_with_an_exception(broken: dict[str, Any]) -> None:
    """What can never be a row is refused here, so that the writer can name it."""
    with pytest.raises((ValueError, TypeError, OverflowError)):
        copy_line(make_event(**broken), "s", "r")


def test_resource_id_depends_on_content_only() -> None:
    """Equal resources have equal ids in whatever order their attributes come; others have not."""
    one = resource_id(ResourceInfo({"a": 1, "b": {"c": 1, "d": 2}}))
    assert one == resource_id(ResourceInfo({"b": {"d": 2, "c": 1}, "a": 1}))
    assert one != resource_id(ResourceInfo({"a": 1, "b": {"c": 1, "d": 3}}))
    assert uuid.UUID(one).version == 8
