"""The outbox in the application's database: written in its transactions, read by relays."""

from __future__ import annotations

import re
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import psycopg
from psycopg import generators, sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus

from otel_activity.errors import OutboxError, StoreRefused
from otel_activity.interruptions import pass_on
from otel_activity.ports import OutboxRow
from otel_activity.postgres.connection import connect
from otel_activity.postgres.failures import store_failure
from otel_activity.postgres.resolver import conninfo_of
from otel_activity.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from psycopg.pq.abc import PGconn, PGresult

    from otel_activity.errors import ExportError
    from otel_activity.events import Courier, Outlet
    from otel_activity.postgres.connection import PatientConnection

__all__ = ["OutboxFacts", "OutboxReader", "PostgresOutbox", "apply_outbox", "outbox_facts", "outbox_sql"]

_Texts = tuple[str, str, str]
"""What a statement writes: resource, ids, events."""

_PATIENCE: Final = 30.0
_MISSING: Final = frozenset({"42P01", "3F000", "42703"})  # table, schema, column
_CONFLICT: Final = "40"
"""Class of errors with which the server rolls a transaction back: serialization failures, deadlocks."""
_UNDECIDED: Final = "40003"  # statement completion unknown
_BEYOND_ASCII: Final = re.compile("[^\x00-\x7f]+")
_OPEN: Final = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})
_APPLY: Final = "run `otel-activity schema apply --outbox DSN` for this database"
_GRANT: Final = "grant this role USAGE on the schema, INSERT on the table and USAGE on its sequence"
_GRANT_RELAY: Final = (
    "grant it USAGE on the schema, and SELECT, UPDATE and DELETE on the table, without row-level security"
)
_PERMISSION_DENIED: Final = "42501"


def outbox_sql(schema: str = "activity") -> str:
    """The SQL that makes the outbox, for those who run it themselves."""
    parts = (statement("create_schema", schema), statement("outbox", schema))
    return "".join(part.as_string(None) + "\n" for part in parts)


def apply_outbox(dsn: str, schema: str = "activity") -> None:
    """Make the outbox in the application's database; doing it again changes nothing.

    Raises:
        StoreUnavailable, StoreRefused: as the server answered.
    """
    with closing(connect(dsn)) as connection:
        try:
            with connection.transaction():
                connection.execute(statement("apply_lock", schema), {"schema": schema})
                ((exists,),) = connection.execute(
                    statement("has_schema", schema), {"schema": schema}
                ).fetchall()
                if not exists:  # IF NOT EXISTS would ask for the right to make one all the same
                    connection.execute(statement("create_schema", schema))
                connection.execute(statement("outbox", schema), prepare=False)
        except psycopg.errors.InsufficientPrivilege as error:
            reason = error.diag.message_primary
            raise StoreRefused(f"{reason}; connect as a role that may make {schema}.outbox there") from error
        except psycopg.Error as error:
            raise store_failure(error, schema) from error


class OutboxFacts(NamedTuple):
    """What a database says of its outbox.

    Attributes:
        role: that asked.
        database: its name.
        exists: whether there is one.
        can_insert: whether the role may write into it: the schema, the table and its sequence.
        waiting: events in it that nobody has delivered yet; None when the role may not look.
        oldest: seconds that the first of them has waited; None when there is none.
    """

    role: str
    database: str
    exists: bool
    can_insert: bool
    waiting: int | None = None
    oldest: float | None = None


def outbox_facts(dsn: str, schema: str = "activity") -> OutboxFacts:
    """Look at the outbox of a database.

    Raises:
        StoreUnavailable, StoreRefused: as the server answered.
    """
    with closing(connect(dsn)) as connection:
        try:
            query = statement("outbox_facts", schema)
            ((*facts, can_select),) = connection.execute(query, {"schema": schema}).fetchall()
            waiting: Sequence[Any] = ()
            if can_select:
                (waiting,) = connection.execute(statement("outbox_waiting", schema)).fetchall()
        except psycopg.Error as error:
            raise store_failure(error, schema) from error
    return OutboxFacts(*facts, *waiting)


class PostgresOutbox:
    """A `ports.Outbox`.

    Args:
        schema: of the outbox, in every database that has one.
        dsns: databases to drain besides those that are written to.
    """

    def __init__(self, schema: str = "activity", dsns: Iterable[str] = ()) -> None:
        self._schema = schema
        self._given = tuple(dsns)
        self._known: dict[Any, str] = {}
        self._format = _write_statement(schema, "%s", "%s", "%s")
        self._numeric = _write_statement(schema, "$1", "$2", "$3")

    def write(self, outlet: Outlet, ids: str, events: str, resource: str) -> Courier | None:
        """One statement in the application's transaction; with psycopg it travels with the COMMIT.

        Raises:
            OutboxError: it failed, and so must the transaction.
        """
        if outlet.system != "postgresql":
            raise OutboxError(
                f"not committed, because strict delivery needs PostgreSQL, not {outlet.system}; "
                "use OTEL_ACTIVITY_DELIVERY=durable"
            )
        texts = (resource, ids, events)
        if not all(map(str.isascii, texts)) and not _holds_unicode(outlet):
            texts = _in_ascii(texts)
        if outlet.joins and _pipelines(outlet.connection):
            return partial(self._with_commit, outlet, texts)
        try:
            try:
                self._insert(outlet, texts)
            except UnicodeEncodeError:  # nothing was sent
                self._insert(outlet, _in_ascii(texts))
        except Exception as error:
            pass_on(error)
            if _is_conflict(error):
                return partial(_give_up, outlet.connection, error)
            raise OutboxError(self._refusal(error)) from error
        self._know(outlet)
        return None

    def read_only(self, outlet: Outlet) -> bool:
        """Whether the transaction can write nothing: it was begun like that, or on a standby."""
        try:
            with closing(outlet.connection.cursor()) as cursor:
                cursor.execute(statement("outbox_read_only", self._schema).as_string(None))
                return bool(cursor.fetchone()[0] == "on")
        except Exception as error:  # noqa: BLE001 - then writing says what is wrong
            pass_on(error)
            return False

    def _insert(self, outlet: Outlet, texts: _Texts) -> None:
        query = self._numeric if outlet.driver == "asyncpg" else self._format
        with closing(outlet.connection.cursor()) as cursor:
            cursor.execute(query, texts)

    def _know(self, outlet: Outlet) -> None:
        """There may be rows in that database now."""
        url = outlet.url
        named = url.host is not None or "host" in url.query
        found = url if named else (url, *_end_of(outlet.connection))
        if found not in self._known:
            self._known[found] = _address(outlet, named=named)

    def _with_commit(self, outlet: Outlet, texts: _Texts, commit: Callable[[], Any]) -> Any:
        """INSERT and COMMIT in a row: the server skips the second if the first failed."""
        connection: psycopg.Connection[Any] = outlet.connection
        refused = False
        try:
            _insert_and_commit(connection, self._numeric.encode(), texts)
        except Exception as error:
            pass_on(error)
            refused = connection.info.transaction_status in _OPEN
            if not refused:
                raise  # what became of the COMMIT itself
            if _is_conflict(error):
                _give_up(connection, error)
            raise OutboxError(self._refusal(error)) from error
        finally:
            if not refused:
                self._know(outlet)
        return commit()  # psycopg sends nothing: no transaction is open

    def _refusal(self, error: Exception) -> str:
        state = _sqlstate(error)
        fix = (
            _APPLY
            if state in _MISSING
            else _GRANT
            if state == _PERMISSION_DENIED
            else "see the error that caused this one"
        )
        name = f"{type(error).__name__} {state}" if state else type(error).__name__
        return f"not committed, because {self._schema}.outbox does not take its events ({name}); {fix}"

    def addresses(self) -> Sequence[str]:
        """Databases whose outbox this process knows."""
        return tuple(dict.fromkeys((*self._given, *tuple(self._known.values()))))

    def reader(self, address: str) -> OutboxReader:
        """Connect to one of them.

        Raises:
            StoreUnavailable, StoreRefused: as the server answered.
        """
        return OutboxReader(address, self._schema)


class OutboxReader:
    """A `ports.OutboxReader`: one connection to one database. Any error of it is an `ExportError`."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._schema = schema
        self._connection: PatientConnection = connect(dsn, patience=_PATIENCE)

    def take(self, limit: int, skip: int = 0) -> list[OutboxRow]:
        """Lock the oldest rows that nobody else has; `delete` or `release` ends that."""
        self._begin()
        return [OutboxRow(*row) for row in self._answer("outbox_take", {"limit": limit, "skip": skip})]

    def release(self) -> None:
        """Let go of the rows that were taken."""
        with suppress(psycopg.Error):
            self._connection.rollback()

    def delete(self, rows: Sequence[OutboxRow]) -> None:
        """Remove rows for good; rows that are gone already do not matter."""
        keys = {"xids": [row.xid for row in rows], "numbers": [row.number for row in rows]}
        try:
            self._connection.execute(statement("outbox_delete", self._schema), keys)
            self._connection.commit()
        except psycopg.Error as error:
            raise self._failure(error) from error

    def newest(self) -> str | None:
        """Transaction of the newest row there is; None when there is none."""
        rows = self._look("outbox_newest", {})
        return str(rows[0][0]) if rows else None

    def left(self, xid: str) -> bool:
        """Whether there are rows of this transaction or of older ones."""
        return bool(self._look("outbox_left", {"xid": xid})[0][0])

    def close(self) -> None:
        """Close the connection; rows that were taken are free again."""
        with suppress(psycopg.Error):
            self._connection.close()

    def _begin(self) -> None:
        limit = sql.Literal(int(_PATIENCE * 1000))
        try:
            self._connection.execute(statement("outbox_begin", self._schema, timeout=limit))
        except psycopg.Error as error:
            raise self._failure(error) from error

    def _look(self, name: str, parameters: dict[str, Any]) -> list[Any]:
        """An answer without holding anything afterwards."""
        self._begin()
        rows = self._answer(name, parameters)
        self.release()
        return rows

    def _answer(self, name: str, parameters: dict[str, Any]) -> list[Any]:
        try:
            return self._connection.execute(statement(name, self._schema), parameters).fetchall()
        except psycopg.Error as error:
            self.release()
            raise self._failure(error) from error

    def _failure(self, error: psycopg.Error) -> ExportError:
        """A database without an outbox is no store without tables, and another command mends it."""
        if error.sqlstate in _MISSING:
            return StoreRefused(
                f"there is no {self._schema}.outbox in {self._connection.info.dbname}; {_APPLY}"
            )
        if error.sqlstate == _PERMISSION_DENIED:
            return StoreRefused(f"{self._schema}.outbox cannot be emptied by this role; {_GRANT_RELAY}")
        return store_failure(error, self._schema)


def _pipelines(connection: Any) -> bool:
    """Whether the connection is psycopg's own, in a plain transaction that its ``commit()`` would end.

    In a block of ``connection.transaction()`` and in a two-phase transaction ``commit()`` refuses; that is
    for psycopg to say.
    """
    return (
        isinstance(connection, psycopg.Connection)
        and not connection.autocommit
        and connection.info.transaction_status is TransactionStatus.INTRANS
        and not getattr(connection, "_num_transactions", 1)
        and getattr(connection, "_tpc", True) is None
        and connection.info.pipeline_status is PipelineStatus.OFF
        and psycopg.Pipeline.is_supported()
    )


def _insert_and_commit(connection: psycopg.Connection[Any], query: bytes, texts: _Texts) -> None:
    """Send both, then wait for both.

    Not psycopg's pipeline, whose end waits for the server once more. Not one text of two statements, either:
    it takes no parameters, and the server shows texts of statements in its log and in ``pg_stat_activity``.

    Raises:
        psycopg.Error: of the INSERT, if the transaction is still open, else of the COMMIT.
    """
    encoding = connection.info.encoding
    try:
        parameters = [text.encode(encoding) for text in texts]
    except UnicodeEncodeError:
        parameters = [text.encode() for text in _in_ascii(texts)]
    pgconn = connection.pgconn
    with connection.lock:
        left = False
        # Whoever is interrupted must not leave the mode on: psycopg would wait for ever for the next answer.
        # Python looks for signals behind calls and where functions begin, so there is no call in between.
        try:
            pgconn.enter_pipeline_mode()
            pgconn.send_query_params(query, parameters)
            pgconn.send_query_params(b"COMMIT", None)
            pgconn.pipeline_sync()
            results = connection.wait(_results(pgconn))
        finally:
            try:
                pgconn.exit_pipeline_mode()
                left = True
            except psycopg.Error:  # lost, or interrupted for good
                pass
            finally:
                if not left:  # what is on its way cannot be told apart
                    pgconn.finish()
    for result in results:
        if result.status != ExecStatus.COMMAND_OK:
            if connection.closed:  # as psycopg's own cursor says it
                raise psycopg.OperationalError(result.get_error_message(encoding))
            raise psycopg.errors.error_from_result(result, encoding)


def _results(pgconn: PGconn) -> Generator[Any, Any, list[PGresult]]:
    """What the server answers to two statements and a Sync."""
    results: list[PGresult] = yield from generators.execute(pgconn)
    results += yield from generators.fetch_many(pgconn)
    yield from generators.fetch(pgconn)
    return results


def _write_statement(schema: str, resource: str, ids: str, events: str) -> str:
    """The INSERT with a driver's own places for parameters, which are in the order of `_Texts`."""
    places = {"resource": sql.SQL(resource), "ids": sql.SQL(ids), "events": sql.SQL(events)}
    return statement("outbox_write", schema, **places).as_string(None)


def _end_of(connection: Any) -> tuple[Any, ...]:
    """What tells databases apart whose engines have URLs that name none."""
    info = getattr(connection, "info", None)
    return tuple([getattr(info, name, None) for name in ("host", "port", "dbname", "user")])


def _address(outlet: Outlet, *, named: bool) -> str:
    """Where the connection leads to: what the engine's URL does not say is asked of the connection."""
    given = conninfo_of(outlet.url)
    try:
        info = outlet.connection.info
        known = info.dsn_parameters if outlet.driver == "psycopg2" else info.get_parameters()
        password = {"password": info.password} if info.password else {}
        return make_conninfo(given, **{**({} if named else known), **password})
    except Exception as error:  # noqa: BLE001 - other drivers do not say
        pass_on(error)
        return given


def _holds_unicode(outlet: Outlet) -> bool:
    """Whether the database's encoding has every character; False when the driver does not say."""
    connection = outlet.connection
    try:
        if outlet.driver == "asyncpg":
            return bool(connection.driver_connection.get_settings().server_encoding == "UTF8")
        return bool(connection.info.parameter_status("server_encoding") == "UTF8")
    except Exception as error:  # noqa: BLE001 - escaped, everything passes everywhere
        pass_on(error)
        return False


def _in_ascii(texts: _Texts) -> _Texts:
    r"""JSON for a connection or a database whose encoding lacks some characters.

    >>> _in_ascii(("{}", "{}", '["5 €"]'))
    ('{}', '{}', '["5 \\u20ac"]')
    """
    resource, ids, events = [_BEYOND_ASCII.sub(_escape, text) for text in texts]
    return resource, ids, events


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _is_conflict(error: Exception) -> bool:
    """Whether the server rolled the transaction back so that it is tried again: not the outbox's doing."""
    state = _sqlstate(error)
    return state[:2] == _CONFLICT and state != _UNDECIDED


def _give_up(connection: Any, error: Exception, commit: object = None) -> NoReturn:
    """In the place of COMMIT, which would have raised the same.

    Raises:
        Exception: the driver's own, that programs know to try again for.
    """
    with suppress(Exception):
        connection.rollback()
    raise error


def _sqlstate(error: Exception) -> str:
    for name in ("sqlstate", "pgcode"):
        found = getattr(error, name, None)
        if isinstance(found, str):
            return found
    return ""
