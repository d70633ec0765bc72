"""Events to fill a store with, and the two ways they get there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
import uuid_utils

from otel_activity import semconv
from otel_activity.codec.rows import copy_line, resource_id
from otel_activity.events import Event, ResourceInfo
from otel_activity.postgres import schema
from otel_activity.postgres.statements import statement
from otel_activity.postgres.writer import EventWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BOARD", "MINUTE", "apply_schema", "insert_open", "make_event", "now", "store"]

BOARD = ResourceInfo({"service.name": "board", "deployment.environment.name": "test"})
MINUTE = 60 * 10**9


def now() -> int:
    """This moment in nanoseconds, cut to microseconds as events are."""
    return time.time_ns() // 1000 * 1000


def make_event(at: int | None = None, *, name: str = semconv.ENTITY_UPDATED, **attributes: Any) -> Event:
    """An event of task 1; keywords are attributes, with ``__`` for the dots."""
    given = {key.replace("__", "."): value for key, value in attributes.items()}
    merged = {
        semconv.ACTIVITY_ACTION: "update",
        semconv.ACTIVITY_OUTCOME: "success",
        semconv.ENTITY_TYPE: "task",
        semconv.ENTITY_ID: "1",
        **given,
    }
    kept = {key: value for key, value in merged.items() if value is not None}
    return Event(id=str(uuid_utils.uuid7()), name=name, time=now() if at is None else at, attributes=kept)


def apply_schema(dsn: str) -> str:
    """Make the tables; the DSN again."""
    schema.apply(dsn)
    return dsn


def store(dsn: str, events: Sequence[Event], resource: ResourceInfo = BOARD) -> None:
    """Store events the way services do."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        result = EventWriter(connection).write(events, resource)
        assert result.stored == len(events)


def insert_open(connection: psycopg.Connection[Any], events: Sequence[Event]) -> None:
    """Insert events in the transaction that `connection` has open, and leave it open."""
    with connection.cursor() as cursor, cursor.copy(statement("copy_events", "activity")) as copy:
        for event in events:
            copy.write(copy_line(event, BOARD.service_name, resource_id(BOARD)))
