"""The store's schema: apply, status, and the SQL for those who run it themselves."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql as psql
from psycopg.rows import dict_row, tuple_row

from otel_activity.errors import SchemaError, StoreRefused
from otel_activity.postgres.connection import connect
from otel_activity.postgres.failures import refused_schema, store_failure
from otel_activity.postgres.statements import migrations, statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Target = str | psycopg.Connection[Any]

__all__ = ["SchemaStatus", "apply", "check", "ensure_partitions", "grants", "sql", "status"]

MONTHS_AHEAD: Final = 3
"""Partitions made ahead. Writers also make the next month's when they meet the current one."""
OLDEST_SERVER: Final = 150_000


@dataclass(frozen=True)
class SchemaStatus:
    """How the schema in the database compares with the one this version of the code needs.

    Attributes:
        schema: its name.
        current: the version in the database, 0 when there is none.
        latest: the version of the code.
        pending: versions that `apply` would apply.
        newer: whether the database is ahead of the code.
        partitions: names of the partitions, the default one included.
    """

    schema: str
    current: int
    latest: int
    pending: tuple[int, ...]
    newer: bool
    partitions: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether this version of the code can store events."""
        return self.current == self.latest


def apply(
    conninfo_or_connection: Target, schema: str = "activity", *, months_ahead: int = MONTHS_AHEAD
) -> list[int]:
    """Bring the schema to the code's version and make the partitions of the coming months.

    Each migration is one transaction under a lock, so several applies at once are safe, and an apply that
    is interrupted goes on where it stopped. Rows of the default partition move to months that can be made.

    Args:
        conninfo_or_connection: a DSN, or an idle connection of a role that may create the tables.
        schema: made if it is missing.
        months_ahead: months after the current one that get a partition.

    Returns:
        The versions applied, none if the schema was up to date.

    Raises:
        SchemaError: the schema is newer than the code, or the server cannot hold it.
        StoreUnavailable, StoreRefused: as the server answered.
    """
    with _owning(schema), _connected(conninfo_or_connection, schema) as connection:
        applied: list[int] = []
        while (version := _apply_next(connection, schema)) is not None:
            applied.append(version)
        ensure_partitions(connection, schema, months_ahead=months_ahead)
        return applied


def status(conninfo_or_connection: Target, schema: str = "activity") -> SchemaStatus:
    """Compare the schema in the database with the code's; changes nothing.

    Raises:
        StoreUnavailable, StoreRefused: as the server answered.
    """
    with _connected(conninfo_or_connection, schema) as connection, connection.transaction():
        facts = _facts(connection, schema)
        versions = _versions(connection, schema) if facts["has_versions"] else []
        current, latest = max(versions, default=0), _latest()
        return SchemaStatus(
            schema=schema,
            current=current,
            latest=latest,
            pending=tuple(m.version for m in migrations() if m.version > current),
            newer=current > latest,
            partitions=tuple(_partitions(connection, schema)),
        )


def check(connection: psycopg.Connection[Any], schema: str = "activity") -> None:
    """Make sure that the schema is exactly the code's; needs no more than a writer's rights.

    Raises:
        StoreRefused: it is missing, older or newer; the message names the fix.
        psycopg.Error: as the server answered.
    """
    try:
        current = max(_versions(connection, schema), default=0)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise refused_schema(schema, "is missing") from error
    if current < _latest():
        raise refused_schema(schema, f"has version {current}, this code needs {_latest()}")
    if current > _latest():
        raise refused_schema(
            schema, f"has version {current}, newer than this code's {_latest()}", "upgrade otel-activity"
        )


def ensure_partitions(
    connection: psycopg.Connection[Any], schema: str = "activity", *, months_ahead: int = MONTHS_AHEAD
) -> list[str]:
    """Make the partitions of this month, of those ahead, and of months whose rows lie in the default one.

    Each month is one transaction. Returns the names of the partitions that are new.

    Raises:
        StoreUnavailable, StoreRefused: as the server answered, for example because a long query kept the
            default partition locked; run it again.
    """
    with _translated(schema):
        with connection.transaction():
            before = set(_partitions(connection, schema))
            query = statement("months_ahead", schema)
            months = _column(connection, query, {"months_ahead": months_ahead})
        for month in months:
            with connection.transaction():
                connection.execute(
                    statement("ensure_partition", schema), {"instant": month, "move_rows": True}
                )
        with connection.transaction():
            return [name for name in _partitions(connection, schema) if name not in before]


def sql(schema: str = "activity") -> str:
    """The full DDL of the latest version, for those who run it themselves; `apply` then finds it done."""
    parts = [statement("create_schema", schema), statement("schema", schema)]
    parts += [_record(schema, migration.version, migration.name) for migration in migrations()]
    parts.append(statement("make_months", schema, months_ahead=psql.Literal(MONTHS_AHEAD)))
    body = "\n\n".join(part.as_string(None).rstrip().rstrip(";") + ";" for part in parts)
    return f"BEGIN;\n\n{body}\n\nCOMMIT;\n"


def grants(schema: str = "activity", *, writer: Iterable[str] = (), reader: Iterable[str] = ()) -> str:
    """The grants that make the store append-only for some roles, for its owner to run.

    Args:
        schema: the schema.
        writer: existing roles that store events: they may insert and nothing else.
        reader: existing roles that search: they may select and nothing else.
    """
    parts = [statement("grants_writer", schema, role=psql.Identifier(role)) for role in writer]
    parts += [statement("grants_reader", schema, role=psql.Identifier(role)) for role in reader]
    return "\n\n".join(part.as_string(None) for part in parts) + "\n"


def _latest() -> int:
    return migrations()[-1].version


def _apply_next(connection: psycopg.Connection[Any], schema: str) -> int | None:
    """Apply the first pending migration; None when there is none."""
    with _translated(schema), connection.transaction():
        connection.execute(statement("apply_lock", schema), {"schema": schema})
        facts = _facts(connection, schema)
        _check_server(facts)
        if not facts["has_schema"]:
            connection.execute(statement("create_schema", schema))
        current = max(_versions(connection, schema), default=0) if facts["has_versions"] else 0
        if current > _latest():
            raise SchemaError(
                f"schema {schema!r} has version {current}, newer than this code's {_latest()}; "
                "upgrade otel-activity"
            )
        pending = [migration for migration in migrations() if migration.version > current]
        if not pending:
            return None
        step = pending[0]
        connection.execute(step.statement(schema), prepare=False)
        connection.execute(_record(schema, step.version, step.name), prepare=False)
        return step.version


def _check_server(facts: dict[str, Any]) -> None:
    if facts["version"] < OLDEST_SERVER:
        raise SchemaError(f"PostgreSQL {facts['version'] // 10_000} is too old; use 15 or newer")
    if facts["encoding"] != "UTF8":
        raise SchemaError(
            f"the database's encoding is {facts['encoding']}; "
            "create one for events with ENCODING 'UTF8' TEMPLATE template0"
        )
    if facts["standby"]:
        raise SchemaError("the server is a standby; apply the schema on the primary")


def _record(schema: str, version: int, name: str) -> psql.Composed:
    return statement("record_version", schema, version=psql.Literal(version), name=psql.Literal(name))


def _facts(connection: psycopg.Connection[Any], schema: str) -> dict[str, Any]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement("server_facts", schema), {"schema": schema}).fetchall()[0]


def _versions(connection: psycopg.Connection[Any], schema: str) -> list[int]:
    return _column(connection, statement("read_versions", schema))


def _partitions(connection: psycopg.Connection[Any], schema: str) -> list[str]:
    return _column(connection, statement("partitions", schema), {"schema": schema})


def _column(
    connection: psycopg.Connection[Any], query: psql.Composed, parameters: dict[str, Any] | None = None
) -> list[Any]:
    """The first column; whatever row factory the caller's connection has."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return [row[0] for row in cursor.execute(query, parameters)]


@contextmanager
def _connected(target: Target, schema: str) -> Iterator[psycopg.Connection[Any]]:
    if isinstance(target, psycopg.Connection):
        with _translated(schema):
            yield target
        return
    with connect(target) as connection, _translated(schema):
        yield connection


@contextmanager
def _owning(schema: str) -> Iterator[None]:
    """A refusal of what only an owner may do, with that as the fix instead of a writer's grants."""
    try:
        yield
    except StoreRefused as error:
        if not isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise
        reason = error.__cause__.diag.message_primary or "permission denied"
        raise StoreRefused(
            f"the store refuses: {reason}; "
            f"connect as the owner of schema {schema!r}, or as a role that may make it"
        ) from error.__cause__


@contextmanager
def _translated(schema: str) -> Iterator[None]:
    """Errors of the server as errors of ours."""
    try:
        yield
    except psycopg.Error as error:
        raise store_failure(error, schema) from error
