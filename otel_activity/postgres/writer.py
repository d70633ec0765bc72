"""Batches of events into the table: COPY, and what happens when the server refuses a part of it."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from otel_activity import semconv
from otel_activity.codec.lines import origin_of
from otel_activity.codec.packed import PackedLines
from otel_activity.codec.rows import json_text
from otel_activity.postgres.badlines import refusal
from otel_activity.postgres.failures import is_data_error, store_failure
from otel_activity.postgres.months import Months
from otel_activity.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from otel_activity.codec.lines import Origin, Row
    from otel_activity.events import Event, ResourceInfo

__all__ = ["EventWriter", "WriteResult"]

RECORDS_PER_WRITE: Final = 128
"""Lines joined into one buffer: few calls, and no second copy of a batch of huge events."""
RESOURCES_KEPT: Final = 100
STORED_KEPT: Final = 10_000
"""Resources known to be in the table. A receiver meets those of a whole fleet."""
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


class _Refusal(NamedTuple):
    row: Row
    sqlstate: str
    message: str


class _Batch:
    """One batch on its way: its rows as far as they are encoded, what was refused, how many are new."""

    def __init__(self, parts: Iterable[list[Row]], resources: Mapping[str, ResourceInfo]) -> None:
        self.resources = resources
        self.rows: list[Row] = []
        self.refused: list[_Refusal] = []
        self.stored = 0
        self._parts = iter(parts)

    def encode(self) -> Iterator[list[Row]]:
        """Encode what is not encoded yet, part by part, so that the server works on one part meanwhile."""
        for part in self._parts:
            rows = [row for row in part if row.line]
            if len(rows) < len(part):
                self.refused += [_Refusal(row, NOT_ENCODABLE, row.reason) for row in part if not row.line]
            self.rows += rows
            yield rows

    def set_aside(self) -> None:
        """Refuse what no server takes, without asking one; encode what is not encoded yet."""
        rows = []
        for row in [*self.rows, *(row for part in self.encode() for row in part)]:
            found = refusal(row.line)
            if found is None:
                rows.append(row)
            else:
                self.refused.append(_Refusal(row, *found))
        self.rows = rows

    def result(self, total: int) -> WriteResult:
        """How the batch ended."""
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
        self.refused: list[Row] = []
        """What was quarantined by the last write."""
        self._origins: dict[int, tuple[ResourceInfo, Origin]] = {}
        self._stored_resources: set[str] = set()
        self._packed = PackedLines()

    def write(self, events: Sequence[Event], resource: ResourceInfo) -> WriteResult:
        """Store a batch in one transaction. Sending the same batch again changes nothing.

        Raises:
            StoreUnavailable, StoreRefused: nothing of the batch is stored; it may be sent again.
        """
        origin = self._origin(resource)
        left = iter(events)
        row_of = self._packed.row_of

        def parts() -> Iterator[list[Row]]:
            while part := list(islice(left, RECORDS_PER_WRITE)):
                yield [row_of(event, origin) for event in part]

        return self._write(events, parts(), {origin.key: origin.resource})

    def write_rows(self, rows: Sequence[Row], resources: Mapping[str, ResourceInfo]) -> WriteResult:
        """Store rows, of any number of resources, in one transaction; otherwise as `write`.

        Args:
            rows: what to store. `refused` then holds those that were quarantined.
            resources: by id, as they can be stored.

        Raises:
            StoreUnavailable, StoreRefused: as `write`.
        """
        starts = range(0, len(rows), RECORDS_PER_WRITE)
        parts = (list(rows[start : start + RECORDS_PER_WRITE]) for start in starts)
        return self._write(rows, parts, resources)

    def _write(
        self,
        events: Sequence[Event] | Sequence[Row],
        parts: Iterable[list[Row]],
        resources: Mapping[str, ResourceInfo],
    ) -> WriteResult:
        self.refused = []
        if not events:
            return WriteResult(0, 0, 0)
        batch = _Batch(parts, resources)
        try:
            self._ensure_months(events)
            try:
                self._store_at_once(batch)
            except psycopg.Error as error:
                if not is_data_error(error):
                    raise
                self._store_in_parts(batch)
        except psycopg.Error as error:
            raise store_failure(error, self._schema) from error
        if len(self._stored_resources) > STORED_KEPT:
            self._stored_resources.clear()
        self._stored_resources.update(batch.resources)
        self.refused = [refusal.row for refusal in batch.refused]
        return batch.result(len(events))

    def probe(self) -> None:
        """Copy no rows: the server checks the right to insert, and that it is no standby.

        Raises:
            StoreUnavailable, StoreRefused: as `write`.
        """
        try:
            with self._transaction():
                self._copy("copy_events", ())
        except psycopg.Error as error:
            raise store_failure(error, self._schema) from error

    def _origin(self, resource: ResourceInfo) -> Origin:
        """The resource as it can be stored, and its id; worked out once, for a process has hardly more."""
        known = self._origins.get(id(resource))
        if known is None or known[0] is not resource:
            if len(self._origins) > RESOURCES_KEPT:
                self._origins.clear()
            known = self._origins[id(resource)] = (resource, origin_of(resource))
        return known[1]

    # --- storing ----------------------------------------------------------------------------------

    def _store_at_once(self, batch: _Batch) -> None:
        """The normal case, at the speed of a plain COPY."""
        with self._transaction():
            self._store_resources(batch)
            stored = self._copy("copy_events", batch.encode())
            self._quarantine(batch)
        batch.stored = stored

    def _store_in_parts(self, batch: _Batch) -> None:
        """After a duplicate or a bad record: through a temporary table, halving down to the bad ones."""
        batch.set_aside()
        with self._transaction():
            self._store_resources(batch)
            self._connection.execute(statement("create_staging", self._schema))
            stored = self._store_part(batch, batch.rows)
            self._quarantine(batch)
        batch.stored = stored

    def _store_part(self, batch: _Batch, records: list[Row]) -> int:
        if not records:
            return 0
        try:
            with self._connection.transaction():
                self._copy("copy_staging", [records])
                moved = self._connection.execute(statement("insert_staged", self._schema)).rowcount
                self._connection.execute(statement("clear_staging", self._schema))
                return moved
        except psycopg.Error as error:
            if not is_data_error(error):
                raise
            if len(records) == 1:
                batch.refused.append(_Refusal(records[0], error.sqlstate or "", str(error)))
                return 0
        middle = len(records) // 2
        return self._store_part(batch, records[:middle]) + self._store_part(batch, records[middle:])

    def _copy(self, name: str, parts: Iterable[list[Row]]) -> int:
        with self._connection.cursor() as cursor:
            with cursor.copy(statement(name, self._schema)) as copy:
                for part in parts:
                    for start in range(0, len(part), RECORDS_PER_WRITE):
                        copy.write(b"".join([row.line for row in part[start : start + RECORDS_PER_WRITE]]))
            return cursor.rowcount

    def _store_resources(self, batch: _Batch) -> None:
        # In order: two writers that insert the same resources wait for each other, and never in a circle.
        for key in sorted(batch.resources.keys() - self._stored_resources):
            self._store_resource(key, batch.resources[key])

    def _store_resource(self, key: str, resource: ResourceInfo) -> None:
        try:
            with self._connection.transaction():
                self._insert_resource(key, resource.attributes)
        except psycopg.Error as error:
            if not is_data_error(error):
                raise
            # Attributes that jsonb refuses must not keep the events out.
            reason = {"service.name": resource.service_name, semconv.REFUSED: str(error)}
            self._insert_resource(key, reason)

    def _insert_resource(self, key: str, attributes: dict[str, Any]) -> None:
        self._connection.execute(
            statement("insert_resource", self._schema), {"id": key, "attributes": json_text(attributes)}
        )

    def _quarantine(self, batch: _Batch) -> None:
        if not batch.refused:
            return
        rows = [_quarantine_row(refusal) for refusal in batch.refused]
        with self._connection.cursor() as cursor:
            for row in rows:
                cursor.execute(statement("insert_quarantine", self._schema), row)

    # --- partitions -------------------------------------------------------------------------------

    def _ensure_months(self, events: Sequence[Event] | Sequence[Row]) -> None:
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


def _quarantine_row(refusal: _Refusal) -> dict[str, Any]:
    event = refusal.row.event()
    record = _record_bytes(event)
    return {
        "digest": hashlib.sha256(record).digest(),
        "event_id": _clean(event.id),
        "event_time": event.time if isinstance(event.time, int) else None,
        "event_name": _clean(event.name),
        "resource_id": refusal.row.resource,
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
