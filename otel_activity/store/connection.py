"""One connection for reading: opened when first needed, reopened after a loss, errors in our own words."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg.rows import dict_row

from otel_activity.errors import ConfigurationError, ExportError, StoreRefused, StoreUnavailable
from otel_activity.masking import mask_dsn
from otel_activity.settings import FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reader", "Row", "StoreAddress", "explained"]

T = TypeVar("T")
Row = dict[str, Any]

CONNECT_TIMEOUT: Final = 10
"""Seconds; a person is waiting, and libpq's own default is to wait for ever."""
SILENCE: Final = 30_000
"""Milliseconds after which sent data that nobody acknowledged ends the connection."""

_MISSING: Final = frozenset({"3F000", "42P01", "42883"})
_NOT_YET: Final = ("starting up", "shutting down", "recovery", "too many clients", "too many connections")
"""What a server says that is there but cannot serve now; asking later is enough."""


class StoreAddress:
    """Where the store is: the checked connection string and schema, and how to name them in a message."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn = _checked("postgres_dsn", dsn)
        self.schema = _checked("postgres_schema", schema)
        self.shown = mask_dsn(dsn)

    def parameters(self) -> dict[str, Any]:
        """What to connect with, besides the connection string itself.

        No server-side prepared statements, so that poolers in transaction mode are no trouble.
        """
        given = psycopg.conninfo.conninfo_to_dict(self.dsn)
        defaults = {
            "connect_timeout": CONNECT_TIMEOUT,
            "fallback_application_name": "otel_activity reader",
            # A network that went silent must not let `tail` wait for ever.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 4,
            "tcp_user_timeout": SILENCE,
        }
        missing = {name: value for name, value in defaults.items() if name not in given}
        # Whatever the connection string says: another encoding lacks characters that are stored.
        return {**missing, "client_encoding": "UTF8", "prepare_threshold": None, "row_factory": dict_row}


def _checked(name: str, value: str) -> str:
    field = next(field for field in FIELDS if field.name == name)
    try:
        return str(field.parse(value))
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        raise ConfigurationError(name, mask_dsn(value), problem, fix) from None


def explained(error: psycopg.Error, address: StoreAddress) -> ExportError:
    """The driver's error as ours: one line that says what is wrong and what to do, passwords masked."""
    state = error.sqlstate
    if state is None:
        return _unanswered(error, address)
    if state.startswith(("08", "57P", "53")):
        return StoreUnavailable(f"the store {address.shown} went away: {_primary(error)}; try again")
    if state in _MISSING:
        return StoreRefused(
            f"{address.shown} has no activity store in schema {address.schema!r}; "
            "run `otel-activity schema apply` with the same DSN and schema"
        )
    if state == "42703":
        return StoreRefused(
            f"the tables in schema {address.schema!r} are of another version ({_primary(error)}); "
            "run `otel-activity schema status` with the same DSN and schema"
        )
    if state == "42501":
        return StoreRefused(
            f"{address.shown} gives no permission to read ({_primary(error)}); "
            "run the SQL of `otel-activity schema sql --grants --reader ROLE` for this user as the owner"
        )
    if state == "57014":
        return StoreRefused(f"{address.shown} stopped the query ({_primary(error)}); ask for a shorter time")
    return StoreRefused(f"{address.shown} refuses: {_primary(error)} (SQLSTATE {state})")


def _unanswered(error: psycopg.Error, address: StoreAddress) -> ExportError:
    """Without an SQLSTATE: no connection was made, or it broke. libpq tells which only in words."""
    reason = _last_reason(str(error))
    if "FATAL:" in reason and not any(words in reason for words in _NOT_YET):
        said = reason.partition("FATAL:")[2].strip()
        return StoreRefused(
            f"{address.shown} refuses the connection: {said}; check user, password and database"
        )
    return StoreUnavailable(f"cannot reach the store {address.shown}: {reason}; is the server running?")


def _last_reason(message: str) -> str:
    """The line of libpq's message that says why; with several addresses, the last one's."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    tried = [line for line in lines if line.startswith("- ")]
    reason = (tried or lines[:1] or ["no reason given"])[-1 if tried else 0]
    return mask_dsn(reason.rpartition("failed: ")[2] or reason)


def _primary(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())


class Reader:
    """Runs read-only work on one connection, from one thread at a time.

    The connection is dropped, not closed, in a forked child: closing it would end the parent's session.
    """

    def __init__(self, address: StoreAddress) -> None:
        self.address = address
        self._lock = threading.RLock()
        self._connection: psycopg.Connection[Row] | None = None
        self._pid = 0

    def run(self, work: Callable[[psycopg.Cursor[Row]], T]) -> T:
        """Do `work` in one read-only transaction that sees one state of the store.

        A connection that turns out to be lost is replaced once; reading twice does no harm.

        Raises:
            StoreUnavailable: the store cannot be reached or went away.
            StoreRefused: it answered and refuses.
        """
        with self._lock:
            reused = self._usable()
            try:
                return self._attempt(work)
            except psycopg.Error as error:
                lost = self._connection is None or self._connection.broken
                if not (reused and lost):
                    raise explained(error, self.address) from error
            try:
                return self._attempt(work)
            except psycopg.Error as error:
                raise explained(error, self.address) from error

    def close(self) -> None:
        """Close the connection; the next `run` opens another."""
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def _usable(self) -> bool:
        if self._pid != os.getpid():
            self._connection = None
        return self._connection is not None and not self._connection.closed

    def _attempt(self, work: Callable[[psycopg.Cursor[Row]], T]) -> T:
        connection = self._connection if self._usable() else None
        if connection is None:
            connection = self._connect()
        try:
            with connection.cursor() as cursor:
                # In another zone the last hours of year 9999 would be of a year that no datetime can hold;
                # and psycopg reads no style but ISO, whatever was set for the role or the database.
                cursor.execute("SET LOCAL TIME ZONE 'UTC'; SET LOCAL datestyle = 'ISO'")
                return work(cursor)
        finally:
            if not connection.closed:
                connection.rollback()  # nothing was written; the next read sees the state of its own time

    def _connect(self) -> psycopg.Connection[Row]:
        connection = psycopg.Connection[Row].connect(self.address.dsn, **self.address.parameters())
        connection.read_only = True
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._connection, self._pid = connection, os.getpid()
        return connection
