"""Batches of events into the table: COPY, and what happens when the server refuses a part of it."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from otel_activity.codec.rows import copy_line, json_text, resource_id
from otel_activity.postgres.failures import is_data_error, store_failure
from otel_activity.postgres.months import Months
from otel_activity.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otel_activity.events import Event, ResourceInfo

__all__ = ["EventWriter", "WriteResult"]

LINES_PER_WRITE: Final = 256
"""Lines joined into one buffer: few calls, and no second copy of a batch of huge events."""
STATEMENT_TIMEOUT: Final = 30.0
NOT_ENCODABLE: Final = "22000"
"""SQLSTATE (data exception) of a record that could not even be written as a line."""


class WriteResult(NamedTuple):
    """What became of a batch; the three add up to its length."""

    stored: int
    """Events that are new in the table."""
    duplicates: int
    """Events that were there already, or more than once in the batch."""
    quarantined: int
    """Records that the server refused for what they contain, kept in the table ``quarantine``."""


class _Record(NamedTuple):
    event: Event
    line: bytes


class _Refusal(NamedTuple):
    event: Event
    sqlstate: str
    message: str


@dataclass
class _Batch:
    """One batch on its way: what can be sent, what was refused, how many rows are new."""

    resource: str
    records: list[_Record] = field(default_factory=list)
    refused: list[_Refusal] = field(default_factory=list)
    stored: int = 0

    def result(self, total: int) -> WriteResult:
        quarantined = len(self.refused)
        return WriteResult(self.stored, total - self.stored - quarantined, quarantined)


class EventWriter:
    """Writes batches over one connection. Not thread-safe; the connection is its own.

    Args:
        connection: open, in autocommit mode. It may come from a pooler in transaction mode.
        schema: the schema that holds the tables.
        statement_timeout: seconds that one statement may take, on the server's clock; 0 for no limit.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        schema: str = "activity",
        *,
        statement_timeout: float = STATEMENT_TIMEOUT,
    ) -> None:
        if not connection.autocommit:
            raise ValueError("the writer begins and ends its own transactions; open with autocommit=True")
        self._connection = connection
        self._schema = schema
        self._begin = statement("begin", schema, timeout=sql.Literal(round(statement_timeout * 1000)))
        self._months = Months()
        self._resources: dict[int, tuple[ResourceInfo, str]] = {}
        self._stored_resources: set[str] = set()

    def write(self, events: Sequence[Event], resource: ResourceInfo) -> WriteResult:
        """Store a batch in one transaction. Sending the same batch again changes nothing.

        Raises:
            StoreUnavailable, StoreRefused: nothing of the batch is stored; it may be sent again.
        """
        if not events:
            return WriteResult(0, 0, 0)
        batch = self._encoded(events, resource)
        try:
            self._ensure_months(events)
            try:
                self._store_at_once(batch, resource)
            except psycopg.Error as error:
                if not is_data_error(error):
                    raise
                self._store_in_parts(batch, resource)
        except psycopg.Error as error:
            raise store_failure(error, self._schema) from error
        self._stored_resources.add(batch.resource)
        return batch.result(len(events))

    # --- encoding ---------------------------------------------------------------------------------

    def _encoded(self, events: Sequence[Event], resource: ResourceInfo) -> _Batch:
        batch = _Batch(self._resource_id(resource))
        service = resource.service_name
        for event in events:
            try:
                batch.records.append(_Record(event, copy_line(event, service, batch.resource)))
            except Exception as error:  # noqa: BLE001 - one odd record must never cost the batch
                batch.refused.append(_Refusal(event, NOT_ENCODABLE, f"{type(error).__name__}: {error}"))
        return batch

    def _resource_id(self, resource: ResourceInfo) -> str:
        """The resource's id, hashed once: a process has one resource for its whole life."""
        known = self._resources.get(id(resource))
        if known is None or known[0] is not resource:
            if len(self._resources) > 100:
                self._resources.clear()
            known = self._resources[id(resource)] = (resource, resource_id(resource))
        return known[1]

    # --- storing ----------------------------------------------------------------------------------

    def _store_at_once(self, batch: _Batch, resource: ResourceInfo) -> None:
        """The normal case, at the speed of a plain COPY."""
        with self._transaction():
            self._store_resource(batch.resource, resource)
            stored = self._copy("copy_events", batch.records)
            self._quarantine(batch)
        batch.stored = stored

    def _store_in_parts(self, batch: _Batch, resource: ResourceInfo) -> None:
        """After a duplicate or a bad record: through a temporary table, halving down to the bad ones."""
        stored, refused = 0, len(batch.refused)
        try:
            with self._transaction():
                self._store_resource(batch.resource, resource)
                self._connection.execute(statement("create_staging", self._schema))
                stored = self._store_part(batch, batch.records)
                self._quarantine(batch)
        except BaseException:
            del batch.refused[refused:]
            raise
        batch.stored = stored

    def _store_part(self, batch: _Batch, records: list[_Record]) -> int:
        if not records:
            return 0
        try:
            with self._connection.transaction():
                self._copy("copy_staging", records)
                moved = self._connection.execute(statement("insert_staged", self._schema)).rowcount
                self._connection.execute(statement("clear_staging", self._schema))
                return moved
        except psycopg.Error as error:
            if not is_data_error(error):
                raise
            if len(records) == 1:
                batch.refused.append(_Refusal(records[0].event, error.sqlstate or "", str(error)))
                return 0
        middle = len(records) // 2
        return self._store_part(batch, records[:middle]) + self._store_part(batch, records[middle:])

    def _copy(self, name: str, records: list[_Record]) -> int:
        lines = iter(records)
        with self._connection.cursor() as cursor:
            with cursor.copy(statement(name, self._schema)) as copy:
                while part := b"".join(record.line for record in islice(lines, LINES_PER_WRITE)):
                    copy.write(part)
            return cursor.rowcount

    def _store_resource(self, key: str, resource: ResourceInfo) -> None:
        if key in self._stored_resources:
            return
        try:
            with self._connection.transaction():
                self._insert_resource(key, resource.attributes)
        except psycopg.Error as error:
            if not is_data_error(error):
                raise
            # Attributes that jsonb refuses must not keep the events out.
            self._insert_resource(
                key, {"service.name": resource.service_name, "activity.refused": str(error)}
            )

    def _insert_resource(self, key: str, attributes: dict[str, Any]) -> None:
        self._connection.execute(
            statement("insert_resource", self._schema), {"id": key, "attributes": json_text(attributes)}
        )

    def _quarantine(self, batch: _Batch) -> None:
        if not batch.refused:
            return
        rows = [_quarantine_row(refusal, batch.resource) for refusal in batch.refused]
        with self._connection.cursor() as cursor:
            for row in rows:
                cursor.execute(statement("insert_quarantine", self._schema), row)

    # --- partitions -------------------------------------------------------------------------------

    def _ensure_months(self, events: Sequence[Event]) -> None:
        """Make missing partitions first; without them the rows go to the default partition."""
        for month in self._months.missing(events):
            try:
                with self._transaction():
                    query = statement("ensure_partition", self._schema)
                    self._connection.execute(query, {"instant": month, "move_rows": False})
            except psycopg.Error as error:
                if self._connection.broken or self._connection.closed or not error.sqlstate:
                    raise
                self._months.failed(month)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction with its own time limit, in two round trips."""
        self._connection.execute(self._begin, prepare=False)
        try:
            yield
        except BaseException:
            with suppress(psycopg.Error):  # a lost connection: the first error is the one to tell
                self._connection.rollback()
            raise
        self._connection.commit()


def _quarantine_row(refusal: _Refusal, resource: str) -> dict[str, Any]:
    event = refusal.event
    record = _record_bytes(event)
    return {
        "digest": hashlib.sha256(record).digest(),
        "event_id": _clean(event.id),
        "event_time": event.time if isinstance(event.time, int) else None,
        "event_name": _clean(event.name),
        "resource_id": resource,
        "sqlstate": refusal.sqlstate,
        "message": _clean(refusal.message),
        "record": record,
    }


def _record_bytes(event: Event) -> bytes:
    """The event as JSON, or as Python shows it when it is no JSON."""
    try:
        return msgspec.json.encode(event)
    except Exception:  # noqa: BLE001 - the record is known to be odd; it is kept in whatever form
        return repr(event).encode("utf-8", "backslashreplace")


def _clean(text: object) -> str:
    """Anything as a text that PostgreSQL stores."""
    return str(text).encode("utf-8", "backslashreplace").decode().replace("\0", "\ufffd")
