"""Events and connections for the tests of the store."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import uuid_utils
from psycopg.rows import dict_row

from otel_activity import semconv
from otel_activity.codec.rows import event_from_row
from otel_activity.events import Event, ResourceInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RESOURCE", "count", "days_ago", "make_event", "make_events", "quarantine", "session", "stored"]

RESOURCE = ResourceInfo({"service.name": "shop", "service.version": "1.2.3", "host.name": "a\\b"})

_DAY = 86_400 * 10**9


def days_ago(days: float) -> int:
    """A time in nanoseconds, whole microseconds."""
    return (time.time_ns() - int(days * _DAY)) // 1000 * 1000


def make_event(number: int = 0, **changes: Any) -> Event:
    """A typical event; fields of `Event` may be replaced, `attributes` are added to the typical ones."""
    attributes = {
        semconv.ACTIVITY_ACTION: "task.update",
        semconv.ACTIVITY_OUTCOME: "success",
        semconv.ACTOR_TYPE: "user",
        semconv.USER_ID: f"user-{number % 7}",
        semconv.USER_NAME: "Ann Example",
        semconv.ENTITY_TYPE: "Task",
        semconv.ENTITY_ID: str(number),
        semconv.TENANT_ID: f"tenant-{number % 3}",
        semconv.TRANSACTION_ID: str(uuid_utils.uuid7()),
        semconv.STREAM_ID: "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa",
        semconv.SEQUENCE: number,
        semconv.CHANGES: {"title": {"before": 'old\t"title"', "after": "new\n\\title"}},
        semconv.DB_COLLECTION_NAME: "tasks",
    } | changes.pop("attributes", {})
    fields: dict[str, Any] = {
        "id": str(uuid_utils.uuid7()),
        "name": semconv.ENTITY_UPDATED,
        "time": days_ago(0),
        "observed": days_ago(0),
        "trace_id": 0x0AF7651916CD43DD8448EB211C80319C + number,
        "span_id": 0xB7AD6B7169203331,
        "trace_flags": 1,
    }
    return Event(**(fields | changes), attributes=attributes)


def make_events(number: int, **changes: Any) -> list[Event]:
    """So many typical events."""
    return [make_event(index, **changes) for index in range(number)]


@contextmanager
def session(dsn: str) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """A connection in autocommit mode whose rows are dicts, in UTC: the year 9999 has no other."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("SET timezone = 'UTC'")
        yield connection


def stored(dsn: str, schema: str = "activity") -> dict[str, Event]:
    """All events in the table, by id, but for what an exporter itself notes there."""
    with session(dsn) as connection:
        rows = connection.execute(
            psycopg.sql.SQL("SELECT * FROM {}.events WHERE name <> 'activity.stream.repeated'").format(
                psycopg.sql.Identifier(schema)
            )
        )
        return {str(row["id"]): event_from_row(row) for row in rows}


def count(dsn: str, table: str = "events") -> int:
    """Rows of a table of the store."""
    with session(dsn) as connection:
        query = psycopg.sql.SQL("SELECT count(*) AS n FROM activity.{}").format(psycopg.sql.Identifier(table))
        return int(connection.execute(query).fetchall()[0]["n"])


def quarantine(dsn: str) -> list[dict[str, Any]]:
    """All quarantined records, oldest first."""
    with session(dsn) as connection:
        return connection.execute(
            "SELECT * FROM activity.quarantine ORDER BY quarantined_at, event_id"
        ).fetchall()
