"""Facts about a store for whoever has to judge its health."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from otel_activity.store.connection import Reader, Row, StoreAddress
from otel_activity.store.queries import statement, static

if TYPE_CHECKING:
    import psycopg

__all__ = ["Contents", "Server", "inspect_contents", "inspect_server"]


@dataclass(frozen=True)
class Server:
    """What the server says to any user.

    Attributes:
        version: of PostgreSQL.
        role: the user we are there.
        standby: whether it is read-only because it follows another server.
        read_only: whether transactions that say nothing about it cannot write; a standby's never can.
        connect_seconds: what opening the connection and asking once took.
        answer_seconds: what one question and its answer took.
        clock_difference: seconds that the server's clock is ahead of ours; half an answer's time is unsure.
        can_insert: whether the user may store events.
        can_select: whether the user may search.
        can_select_outside: whether the user may look into the default partition by its name.
        can_select_quarantine: whether the user may look at refused records.
        can_change: whether the user may change or delete events.
    """

    version: str
    role: str
    standby: bool
    read_only: bool
    connect_seconds: float
    answer_seconds: float
    clock_difference: float
    can_insert: bool
    can_select: bool
    can_select_outside: bool
    can_select_quarantine: bool
    can_change: bool


@dataclass(frozen=True)
class Contents:
    """What is in the store; `None` where this user may not look.

    Attributes:
        newest: time of the newest event; `None` also when there is none.
        outside: whether events lie outside the months that have a partition of their own.
        quarantined: records that the server refused.
    """

    newest: datetime | None
    outside: bool | None
    quarantined: int | None


def inspect_server(dsn: str, schema: str) -> Server:
    """Connect and ask.

    Raises:
        ConfigurationError: the connection string or the schema's name is wrong in itself.
        StoreUnavailable, StoreRefused: the store cannot be reached, or refuses.
    """
    reader = Reader(StoreAddress(dsn, schema))
    try:
        began = time.monotonic()
        row, _, _ = reader.run(lambda cursor: _ask(cursor, schema))
        connected = time.monotonic() - began
        row, took, difference = reader.run(lambda cursor: _ask(cursor, schema))
    finally:
        reader.close()
    usable = bool(row["can_use"])
    return Server(
        version=row["version"],
        role=row["role"],
        standby=row["standby"],
        read_only=row["read_only"],
        connect_seconds=connected,
        answer_seconds=took,
        clock_difference=difference,
        can_insert=usable and bool(row["can_insert"]) and row["can_stage"],
        can_select=usable and bool(row["can_select"]),
        can_select_outside=usable and bool(row["can_select_outside"]),
        can_select_quarantine=usable and bool(row["can_select_quarantine"]),
        can_change=usable and bool(row["can_change"]),
    )


def _ask(cursor: psycopg.Cursor[Row], schema: str) -> tuple[Row, float, float]:
    """The server's answer, the seconds it took, and how far its clock is ahead."""
    began = time.time()
    row = cursor.execute(static("health_server"), {"schema": schema}).fetchone() or {}
    ended = time.time()
    middle = datetime.fromtimestamp((began + ended) / 2, UTC)
    return row, ended - began, (row["clock"] - middle).total_seconds()


def inspect_contents(dsn: str, schema: str, server: Server) -> Contents:
    """Look at the events and the refused records, as far as this user may.

    Raises:
        StoreUnavailable, StoreRefused: the store cannot be reached, or refuses.
    """
    reader = Reader(StoreAddress(dsn, schema))
    try:
        found: Row = {}
        for name, allowed in (
            ("health_newest", server.can_select),
            ("health_outside", server.can_select_outside),
            ("health_quarantine", server.can_select_quarantine),
        ):
            if allowed:
                found |= reader.run(lambda cursor, name=name: _one(cursor, name, schema))  # type: ignore[misc]
    finally:
        reader.close()
    return Contents(found.get("newest"), found.get("outside"), found.get("count"))


def _one(cursor: psycopg.Cursor[Row], name: str, schema: str) -> Row:
    return cursor.execute(statement(name, schema)).fetchone() or {}
