"""The schema: migrations, status, grants, partitions, and what the indexes are for."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from otel_activity import semconv
from otel_activity.errors import SchemaError, StoreRefused, StoreUnavailable
from otel_activity.postgres import schema
from otel_activity.postgres.statements import migrations, statement
from otel_activity.postgres.writer import EventWriter
from tests.postgres.support import RESOURCE, days_ago, make_event, session, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.events import Event

COLUMNS_QUERY = """
SELECT c.relname, c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull,
       pg_get_expr(d.adbin, d.adrelid) AS expression, c.relacl::text,
       pg_get_partkeydef(c.oid) AS partition_key,
       pg_get_expr(c.relpartbound, c.oid) AS bound, c.reloptions::text
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = %s::regnamespace
ORDER BY c.relname, a.attnum
"""
INDEXES_QUERY = """
SELECT c.relname, pg_get_indexdef(c.oid) AS definition
FROM pg_class AS c WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('i', 'I') ORDER BY c.relname
"""
CONSTRAINTS_QUERY = """
SELECT conrelid::regclass::text AS table, conname, pg_get_constraintdef(oid) AS definition
FROM pg_constraint WHERE connamespace = %s::regnamespace ORDER BY 1, conname
"""
FUNCTIONS_QUERY = """
SELECT proname, pg_get_functiondef(oid) AS definition, proacl::text
FROM pg_proc WHERE pronamespace = %s::regnamespace ORDER BY proname
"""


def _catalog(connection: psycopg.Connection[dict[str, Any]], name: str) -> list[str]:
    """Everything in a schema, as lines in which the schema's own name does not show."""
    lines = []
    for query in (COLUMNS_QUERY, INDEXES_QUERY, CONSTRAINTS_QUERY, FUNCTIONS_QUERY):
        rows = connection.execute(query, (name,)).fetchall()
        assert rows
        lines += [json.dumps(row, default=str).replace(name, "<schema>") for row in rows]
    return lines


def test_the_migrations_add_up_to_the_schema_file(postgres_dsn: str) -> None:
    """Applying every migration leaves the very same catalog as running the full schema's SQL."""
    with session(postgres_dsn) as connection:
        connection.execute(schema.sql("from_file"))
        schema.apply(postgres_dsn, "from_steps")
        whole, steps = _catalog(connection, "from_file"), _catalog(connection, "from_steps")
        assert whole == steps
        versions = [
            connection.execute(f"SELECT version, name FROM {name}.schema_version ORDER BY 1").fetchall()
            for name in ("from_file", "from_steps")
        ]
    assert versions[0] == versions[1]


def test_migrations_are_numbered_without_gaps() -> None:
    """Versions are 1, 2, 3: the status is a comparison of two numbers."""
    assert [step.version for step in migrations()] == list(range(1, len(migrations()) + 1))


def test_apply_does_its_work_once(postgres_dsn: str) -> None:
    """The first apply reports what it did, the second finds nothing to do, and the status follows."""
    before = schema.status(postgres_dsn)
    latest = len(migrations())
    assert (before.current, before.ready, before.partitions) == (0, False, ())
    assert before.pending == tuple(range(1, latest + 1))
    assert schema.apply(postgres_dsn) == list(range(1, latest + 1))
    assert schema.apply(postgres_dsn) == []
    after = schema.status(postgres_dsn)
    assert (after.current, after.pending, after.newer, after.ready) == (latest, (), False, True)
    assert "events_default" in after.partitions
    assert len(after.partitions) == 1 + 1 + schema.MONTHS_AHEAD


def test_the_printed_sql_leaves_nothing_to_apply(postgres_dsn: str) -> None:
    """Whoever runs the printed SQL by hand has the schema that apply would have made."""
    with session(postgres_dsn) as connection:
        connection.execute(schema.sql())
    assert schema.apply(postgres_dsn) == []
    assert schema.status(postgres_dsn).ready


def test_apply_takes_an_open_connection_with_any_row_factory(postgres_dsn: str) -> None:
    """A connection that the caller opened is used and stays open."""
    with session(postgres_dsn) as connection:
        assert schema.apply(connection) == [step.version for step in migrations()]
        assert connection.execute("SELECT 1 AS one").fetchall() == [{"one": 1}]


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_concurrent_applies_are_safe(postgres_dsn: str, isolation: str) -> None:
    """Several applies at once: each migration is applied by exactly one, and none fails."""
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        default = sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}").format(name, isolation)
        connection.execute(default)
    outcomes: list[Any] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait()
        try:
            outcomes.append(schema.apply(postgres_dsn))
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == sorted([[step.version for step in migrations()], [], [], []], key=str)


def test_a_schema_name_that_needs_quotes_works(postgres_dsn: str) -> None:
    """The schema's name is an identifier everywhere, whatever it contains."""
    name = 'Audit "trail" $function$ {x}'
    schema.apply(postgres_dsn, name)
    event = make_event(time=days_ago(400))
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        assert EventWriter(connection, name).write([event], RESOURCE).stored == 1
    assert stored(postgres_dsn, name) == {event.id: event}
    assert schema.status(postgres_dsn, name).ready


def test_a_newer_schema_is_not_touched(store_dsn: str) -> None:
    """Code that is older than the schema refuses to apply and says what to upgrade."""
    with session(store_dsn) as connection:
        connection.execute("INSERT INTO activity.schema_version (version, name) VALUES (999, 'future')")
    assert schema.status(store_dsn).newer
    with pytest.raises(SchemaError, match=r"version 999, newer than this code's \d+; upgrade otel-activity"):
        schema.apply(store_dsn)


def test_a_database_that_cannot_hold_every_text_is_refused(postgres_dsn: str) -> None:
    """An encoding other than UTF8 is refused before anything is made, with the way out."""
    with session(postgres_dsn) as connection:
        name = connection.execute("SELECT current_database() || '_latin' AS name").fetchall()[0]["name"]
        connection.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        try:
            latin = psycopg.conninfo.make_conninfo(postgres_dsn, dbname=name)
            with pytest.raises(SchemaError, match=r"encoding is LATIN1; create one .* ENCODING 'UTF8'"):
                schema.apply(latin)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_apply_without_permission_names_what_is_denied(role_dsn: tuple[str, str]) -> None:
    """A role that may not create schemas is told who may, without a traceback of the driver."""
    with pytest.raises(StoreRefused, match=r"permission denied for database.*; connect as the owner"):
        schema.apply(role_dsn[1], "another")


def test_no_server_is_unavailable(free_port: int) -> None:
    """Without a server the error says where it looked, and hides the password."""
    with pytest.raises(StoreUnavailable, match=r"postgresql://me:\*\*\*@127.0.0.1") as caught:
        schema.status(f"postgresql://me:s3cret@127.0.0.1:{free_port}/x")
    assert "s3cret" not in str(caught.value)


def test_public_may_do_nothing(store_dsn: str, role_dsn: tuple[str, str]) -> None:
    """A role without grants can neither read nor write, even if it may use the schema."""
    role, dsn = role_dsn
    with session(store_dsn) as admin:
        admin.execute(f"GRANT USAGE ON SCHEMA activity TO {role}")
    with session(dsn) as connection:
        for statement in (
            "SELECT 1 FROM activity.events",
            "INSERT INTO activity.quarantine VALUES ('', now(), '', 0, '', gen_random_uuid(), '', '', '')",
            "SELECT activity.ensure_partition(now())",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_a_writer_may_only_add_and_a_reader_only_look(store_dsn: str, role_dsn: tuple[str, str]) -> None:
    """With the printed grants the store is append-only: no role of ours may change or remove an event."""
    role, dsn = role_dsn
    event = make_event()
    with session(store_dsn) as admin, session(dsn) as connection:
        admin.execute(schema.grants(writer=[role]))
        writer = EventWriter(connection)
        assert writer.write([event], RESOURCE).stored == 1
        assert writer.write([event], RESOURCE).duplicates == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT 1 FROM activity.events")
        admin.execute(schema.grants(reader=[role]))
        assert connection.execute("SELECT id::text FROM activity.events").fetchall() == [{"id": event.id}]
        for statement in (
            "UPDATE activity.events SET name = ''",
            "DELETE FROM activity.events",
            "TRUNCATE activity.events",
            "DELETE FROM activity.events_default",
            "UPDATE activity.quarantine SET message = ''",
            "DELETE FROM activity.schema_version",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_apply_moves_stranded_rows_to_their_month(store_dsn: str, writer: EventWriter) -> None:
    """Rows that had to go to the default partition move when their month is made, and are not doubled."""
    events = [make_event(time=days_ago(days)) for days in (100, 101, 200)]
    absurd = make_event(time=0)
    with session(store_dsn) as admin:
        admin.execute("ALTER FUNCTION activity.ensure_partition RENAME TO away")
        writer.write([*events, absurd], RESOURCE)
        admin.execute("ALTER FUNCTION activity.away RENAME TO ensure_partition")
        assert _rows_in_default(admin) == 4
        schema.apply(store_dsn)
        assert _rows_in_default(admin) == 1
    assert stored(store_dsn) == {event.id: event for event in [*events, absurd]}
    assert writer.write([*events, absurd], RESOURCE).duplicates == 4


@pytest.mark.parametrize("style", ["German", "SQL,DMY", "Postgres,MDY"])
def test_apply_makes_its_months_whatever_style_of_dates_the_role_has(postgres_dsn: str, style: str) -> None:
    """Also those whose rows had to go to the default partition."""
    styled = psycopg.conninfo.make_conninfo(postgres_dsn, options=f"-c datestyle={style}")
    schema.apply(styled)
    with session(postgres_dsn) as admin:
        admin.execute("ALTER FUNCTION activity.ensure_partition RENAME TO away")
        with psycopg.connect(postgres_dsn, autocommit=True) as writing:
            EventWriter(writing).write([make_event(time=days_ago(100))], RESOURCE)
        admin.execute("ALTER FUNCTION activity.away RENAME TO ensure_partition")
        schema.apply(styled)
        assert _rows_in_default(admin) == 0


@pytest.mark.parametrize("name", ["months_ahead", "make_months"])
def test_months_ahead_are_those_of_utc_in_any_time_zone(store_dsn: str, name: str) -> None:
    """On 31 January in UTC it is 30 January in New York, and a month later there it is March in UTC."""
    year = datetime.now(UTC).year - 1
    query = statement(name, "activity", months_ahead=sql.Literal(3)).as_string(None)
    query = query.replace("now() AT", f"timestamptz '{year}-01-31 04:00+00' AT")
    with session(store_dsn) as admin:
        admin.execute("SET timezone = 'America/New_York'")
        rows = admin.execute(query, {"months_ahead": 3} if name == "months_ahead" else None).fetchall()
        if name == "months_ahead":
            for month in (value for row in rows for value in row.values()):
                admin.execute(
                    statement("ensure_partition", "activity"), {"instant": month, "move_rows": False}
                )
    made = [name for name in schema.status(store_dsn).partitions if f"_{year}_" in name]
    assert made == [f"events_{year}_0{month}" for month in (1, 2, 3, 4)]


def _rows_in_default(connection: psycopg.Connection[dict[str, Any]]) -> int:
    return int(connection.execute("SELECT count(*) AS n FROM activity.events_default").fetchall()[0]["n"])


def test_absurd_months_get_no_partition(store_dsn: str) -> None:
    """A broken clock cannot fill the catalog with partitions."""
    with session(store_dsn) as connection:
        before = schema.status(store_dsn).partitions
        for moment in ("1970-01-01", "1999-12-31", "2400-01-01", "9999-12-31", "infinity", "-infinity"):
            row = connection.execute("SELECT activity.ensure_partition(%s) AS made", (moment,)).fetchall()[0]
            assert row["made"] is False
    assert schema.status(store_dsn).partitions == before


def _history(event: Event) -> tuple[str, tuple[Any, ...]]:
    where = "entity_type = %s AND entity_id = %s ORDER BY time DESC LIMIT 50"
    return where, (event.attributes[semconv.ENTITY_TYPE], event.attributes[semconv.ENTITY_ID])


QUERIES: dict[str, Callable[[Event], tuple[str, tuple[Any, ...]]]] = {
    "entity_type_entity_id_time": _history,
    "actor_id_time": lambda e: (
        "actor_id = %s ORDER BY time DESC LIMIT 50",
        (e.attributes[semconv.USER_ID],),
    ),
    "tenant_id_time": lambda e: (
        "tenant_id = %s ORDER BY time DESC LIMIT 50",
        (e.attributes[semconv.TENANT_ID],),
    ),
    "trace_id": lambda e: ("trace_id = %s", (f"{e.trace_id:032x}",)),
    "transaction_id": lambda e: ("transaction_id = %s", (e.attributes[semconv.TRANSACTION_ID],)),
    "pkey": lambda e: ("time >= now() - interval '1 hour' ORDER BY time DESC, id DESC LIMIT 50", ()),
}


@pytest.mark.parametrize("index", QUERIES)
def test_each_query_uses_its_index(store_dsn: str, writer: EventWriter, index: str) -> None:
    """The query that justifies an index is answered by it in every partition, with no scan of a table."""
    times = [days_ago(0)] * 300 + [days_ago(40)] * 300 + [0] * 3
    events = [
        make_event(
            number, time=moment, attributes={semconv.USER_ID: f"u{number}", semconv.TENANT_ID: f"t{number}"}
        )
        for number, moment in enumerate(times)
    ]
    writer.write(events, RESOURCE)
    where, parameters = QUERIES[index](events[7])
    with session(store_dsn) as connection:
        connection.execute("ANALYZE activity.events")
        connection.execute("SET enable_seqscan = off")  # tiny partitions are read whole even with an index
        if "ORDER BY" in where:  # few rows are cheaper to sort; with many, the order must come from the index
            connection.execute("SET enable_bitmapscan = off")
        query = f"EXPLAIN (FORMAT JSON) SELECT * FROM activity.events WHERE {where}"
        plan = connection.execute(query, parameters).fetchall()[0]["QUERY PLAN"]
    nodes = list(_nodes(plan[0]["Plan"]))
    used = [node["Index Name"] for node in nodes if "Index Name" in node]
    assert used
    assert all(index in name for name in used)
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"]
    assert not [node for node in nodes if node["Node Type"] in {"Sort", "Incremental Sort"}]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]
