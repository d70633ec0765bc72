"""The demo's side of the database: schemas, triggers, and what is read back."""

from __future__ import annotations

import json
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy import URL

from otel_activity.cli.demo_reconcile import ChangedRow, EntityEvent, read_json
from otel_activity.errors import ActivityError
from otel_activity.postgres import schema as events_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["APPLICATION_SCHEMA", "EVENTS_SCHEMA", "DemoStore", "application_url"]

APPLICATION_SCHEMA: Final = "project_board_demo"
EVENTS_SCHEMA: Final = "activity"
LOCK: Final = 7_306_092_210_551_842_304
"""Key of an advisory lock: two demos in one database would count each other's rows."""


def application_url(dsn: str) -> str:
    """The DSN as an SQLAlchemy URL whose sessions work in the application's schema."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    named = {name: parts.pop(name, None) for name in ("user", "password", "dbname")}
    host, port = parts.pop("host", None), parts.pop("port", None)
    query = parts | {"options": f"-csearch_path={APPLICATION_SCHEMA} {parts.get('options', '')}".rstrip()}
    plain = host is None or not ("," in host or host.startswith("/"))
    if not plain:
        query |= {"host": str(host)} | ({"port": port} if port else {})
    url = URL.create(
        "postgresql",
        username=named["user"],
        password=named["password"],
        host=host if plain else None,
        port=int(port) if plain and port else None,
        database=named["dbname"],
        query=query,
    )
    return url.render_as_string(hide_password=False)


class DemoStore:
    """One connection for the demo's own work, with a lock that keeps a second demo out.

    Raises:
        ActivityError: the database cannot be reached or refuses; says why.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._start = 0
        self._types: dict[str, dict[str, str]] = {}
        self._keys: dict[str, list[str]] = {}
        with _explained():
            self._connection = psycopg.connect(
                dsn,
                autocommit=True,
                row_factory=dict_row,
                connect_timeout=10,
                application_name="otel-activity demo",
            )

    def close(self) -> None:
        """Return the connection, and with it the lock."""
        self._connection.close()

    def prepare(self) -> None:
        """Create the events' tables and an empty schema for the application; existing ones stay."""
        with _explained():
            row = self._connection.execute("SELECT pg_try_advisory_lock(%s) AS free", [LOCK]).fetchone()
            if not row or not row["free"]:
                raise ActivityError("another `otel-activity demo` is using this database; use another one")
            events_schema.apply(self.dsn, EVENTS_SCHEMA)
            self._connection.execute(
                sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(APPLICATION_SCHEMA))
            )

    def watch(self) -> None:
        """Put triggers on the application's tables, which exist now, and remember where they begin."""
        with _explained():
            self._connection.execute(_statement("demo_truth"))
            tables = self._connection.execute(_text("demo_tables"), {"schema": APPLICATION_SCHEMA}).fetchall()
            for table in tables:
                self._types[table["name"]] = table["types"]
                self._keys[table["name"]] = table["key"]
                self._connection.execute(_trigger(table["name"], table["key"]))
            newest = sql.SQL("SELECT coalesce(max(seq), 0) AS seq FROM {}.truth").format(
                sql.Identifier(APPLICATION_SCHEMA)
            )
            row = self._connection.execute(newest).fetchone()
            self._start = row["seq"] if row else 0

    @property
    def types(self) -> dict[str, dict[str, str]]:
        """For each table of the application the types of its columns."""
        return self._types

    def rows(self) -> list[ChangedRow]:
        """What the database committed since `watch`."""
        with _explained():
            found = self._connection.execute(_statement("demo_rows"), {"start": self._start}).fetchall()
        return [_changed_row(row) for row in found]

    def events(self, instance: str) -> list[EntityEvent]:
        """What the application of this run (its ``service.instance.id``) has stored."""
        query = _statement("demo_events", EVENTS_SCHEMA)
        with _explained():
            found = self._connection.execute(query, {"instance": instance}).fetchall()
        return [self._entity_event(row) for row in found]

    def _entity_event(self, row: dict[str, Any]) -> EntityEvent:
        composite = len(self._keys.get(row["relation"], ())) > 1
        return EntityEvent(
            transaction=str(row["transaction_id"]),
            table=str(row["relation"]),
            operation=str(row["operation"]),
            key=_parts(row["entity_id"]) if composite else (str(row["entity_id"]),),
            entity_type=str(row["entity_type"]),
            changes=row["changes"] or {},
        )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        reason = str(error).strip() or type(error).__name__
        raise ActivityError(f"the demo cannot use the database: {reason}") from error


def _parts(entity_id: str) -> tuple[str, ...]:
    try:
        parts = json.loads(entity_id)
    except ValueError:
        parts = entity_id
    return tuple(map(str, parts)) if isinstance(parts, list) else (str(entity_id),)


def _changed_row(row: dict[str, Any]) -> ChangedRow:
    return ChangedRow(
        transaction=row["xid"],
        table=row["relation"],
        operation=row["operation"],
        key=tuple(map(str, read_json(row["key"]))),
        old=None if row["old_row"] is None else read_json(row["old_row"]),
        new=None if row["new_row"] is None else read_json(row["new_row"]),
    )


def _text(name: str) -> LiteralString:
    # A file of the package is as literal as code is.
    path = resources.files("otel_activity.cli") / "sql" / f"{name}.sql"
    return path.read_text(encoding="utf-8")


def _statement(name: str, schema: str = APPLICATION_SCHEMA) -> sql.Composed:
    return sql.SQL(_text(name)).format(schema=sql.Identifier(schema))


def _trigger(table: str, key: list[str]) -> sql.Composed:
    return sql.SQL(_text("demo_trigger")).format(
        table=sql.Identifier(APPLICATION_SCHEMA, table),
        schema=sql.Identifier(APPLICATION_SCHEMA),
        key=sql.SQL(", ").join(map(sql.Literal, key)),
    )
