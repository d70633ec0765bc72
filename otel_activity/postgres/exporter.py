"""The PostgreSQL exporter: one attempt for each batch over one lazy connection."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_activity.delivery.streams import repeated
from otel_activity.errors import StoreUnavailable
from otel_activity.postgres import schema as store_schema
from otel_activity.postgres.connection import APPLICATION_NAME, CONNECT_TIMEOUT, connect
from otel_activity.postgres.failures import store_failure
from otel_activity.postgres.writer import STATEMENT_TIMEOUT, EventWriter, WriteResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otel_activity.codec.lines import Row
    from otel_activity.events import Event, ResourceInfo

__all__ = ["PostgresEventExporter"]

_Item = TypeVar("_Item")

GRACE: Final = 5.0
"""Seconds that an answer may take beyond the server's own time limit."""


class PostgresEventExporter:
    """Implements `otel_activity.ports.EventExporter`.

    The connection is made by the first `export`, checked once for the schema's version, and given up after
    any error, so that the next attempt meets a new primary or a new schema. Waiting between attempts is the
    caller's.

    Args:
        dsn: where to store; its own settings win over the arguments below.
        schema: the schema that holds the tables.
        application_name: what ``pg_stat_activity`` shows.
        connect_timeout: seconds until an attempt to connect counts as failed; at least 2.
        export_timeout: seconds that one statement of an export may take on the server's clock.
    """

    name = "postgres"

    def __init__(
        self,
        dsn: str,
        schema: str = "activity",
        application_name: str = APPLICATION_NAME,
        connect_timeout: float = CONNECT_TIMEOUT,
        export_timeout: float = STATEMENT_TIMEOUT,
    ) -> None:
        self._dsn = dsn
        self._schema = schema
        self._application_name = application_name
        self._connect_timeout = connect_timeout
        self._export_timeout = export_timeout
        self._connection: psycopg.Connection[Any] | None = None
        self._writer: EventWriter | None = None
        self._portion = _Portion()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.last_result = WriteResult(0, 0, 0)
        """What became of the last batch that was delivered; for counters."""
        self._doubtful: frozenset[str] = frozenset()
        self.quarantined = 0
        """Records that the server refused for what they contain, so far; sent twice, they count twice."""

    def export(self, events: Sequence[Event], resource: ResourceInfo) -> None:
        """Store the batch, in one attempt; in one transaction unless that took longer than it may.

        Raises:
            StoreUnavailable: no server, or it went away, or it took too long. A part of the batch may be
                stored. Sending it again is always right.
            StoreRefused: the server answered and refuses; the message names the fix.
        """
        try:
            self._in_portions(events, lambda writer, part: self._write_events(writer, part, resource))
        except BaseException:
            # It may be stored all the same. Sent again it has the same places, and leaves none of them empty.
            self._doubtful = frozenset(event.id for event in events)
            raise
        self._doubtful = frozenset()

    def _write_events(
        self, writer: EventWriter, events: Sequence[Event], resource: ResourceInfo
    ) -> WriteResult:
        """Write a batch, and what explains the places that stay empty because the store had some of it."""
        result = writer.write(events, resource)
        if result.duplicates:
            before = result.duplicates - sum(event.id in self._doubtful for event in events)
            record = repeated(events, before) if before > 0 else None
            if record is not None:
                refused = writer.refused
                writer.write([record], resource)
                writer.refused = refused
        return result

    def export_rows(self, rows: Sequence[Row], resources: Mapping[str, ResourceInfo]) -> list[Row]:
        """Store rows of any number of resources, as `export` does events of one.

        Args:
            rows: what to store.
            resources: by id, as they can be stored.

        Returns:
            The rows that were quarantined: they can never be stored.

        Raises:
            StoreUnavailable, StoreRefused: as `export`.
        """
        return self._in_portions(rows, lambda writer, part: writer.write_rows(part, resources))

    def _in_portions(
        self, items: Sequence[_Item], write: Callable[[EventWriter, Sequence[_Item]], WriteResult]
    ) -> list[Row]:
        if os.getpid() != self._pid:
            self.after_fork()
        with self._lock, suppress_instrumentation():
            if self._closed.is_set():
                raise StoreUnavailable("the PostgreSQL exporter is closed")
            try:
                return self._write(items, write)
            except BaseException as error:
                if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                    self._portion.too_long(len(items))
                self._disconnect()
                raise
            finally:
                if self._closed.is_set():
                    self._disconnect()

    def _write(
        self, items: Sequence[_Item], write: Callable[[EventWriter, Sequence[_Item]], WriteResult]
    ) -> list[Row]:
        writer = self._connected_writer()
        result, done = WriteResult(0, 0, 0), 0
        refused: list[Row] = []
        while True:
            part = items[done : done + self._portion.size]
            written = write(writer, part)
            self.quarantined += written.quarantined
            result = WriteResult(*(one + other for one, other in zip(result, written, strict=True)))
            refused += writer.refused
            done += len(part)
            if done >= len(items):
                self.last_result = result
                return refused
            self._portion.in_time()

    def probe(self) -> None:
        """Make sure that a batch could be stored now: connection, schema, and the right to write.

        Raises:
            StoreUnavailable, StoreRefused: as `export`.
        """
        with self._lock, suppress_instrumentation():
            try:
                self._connected_writer().probe()
            finally:
                self._disconnect()

    def close(self) -> None:
        """Close the connection. An export that is under way finishes first and closes it itself."""
        if os.getpid() != self._pid:
            self.after_fork()
        self._closed.set()
        if self._lock.acquire(blocking=False):
            try:
                self._disconnect()
            finally:
                self._lock.release()

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connection alone and start with none."""
        self._lock = threading.Lock()  # the parent's may be held by a thread that does not exist here
        self._pid = os.getpid()
        self.quarantined = 0
        connection, self._connection, self._writer = self._connection, None, None
        if connection is not None:
            _abandon(connection)

    def _connected_writer(self) -> EventWriter:
        if self._writer is None:
            connection = self._connection = connect(
                self._dsn,
                application_name=self._application_name,
                connect_timeout=self._connect_timeout,
                patience=self._export_timeout + GRACE,
            )
            try:
                store_schema.check(connection, self._schema)
            except psycopg.Error as error:
                raise store_failure(error, self._schema) from error
            self._writer = EventWriter(connection, self._schema, statement_timeout=self._export_timeout)
        return self._writer

    def _disconnect(self) -> None:
        connection, self._connection, self._writer = self._connection, None, None
        if connection is not None:
            connection.close()


class _Portion:
    """How many events go into one transaction: half as many after one that took too long.

    Otherwise a batch that needs longer than the time limit would be tried for ever. It grows again fast up to
    half of what was too much, and slowly beyond.
    """

    def __init__(self) -> None:
        self.size = sys.maxsize
        self._safe = sys.maxsize

    def too_long(self, most: int) -> None:
        """A transaction of `size` events, but not more than `most`, reached the time limit."""
        self.size = self._safe = max(1, min(self.size, most) // 2)

    def in_time(self) -> None:
        """A transaction of `size` events was stored."""
        self.size = self.size + 1 if self.size >= self._safe else min(self._safe, self.size * 2)


def _abandon(connection: psycopg.Connection[Any]) -> None:
    """Let go of a parent's connection without a word to the server: a goodbye would end the parent's session.

    This process's copy of the socket is replaced first, so the goodbye of `close` goes nowhere.
    """
    with suppress(OSError, psycopg.Error):
        nowhere = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(nowhere, connection.fileno(), inheritable=False)
        finally:
            os.close(nowhere)
        connection.close()
