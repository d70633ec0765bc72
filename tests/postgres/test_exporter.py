"""The exporter: one attempt for each batch, clear refusals, and no harm from forks and lost servers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from psycopg.conninfo import make_conninfo

from otel_activity import semconv
from otel_activity.errors import ExportError, StoreRefused, StoreUnavailable
from otel_activity.postgres import schema
from otel_activity.postgres.exporter import PostgresEventExporter
from otel_activity.postgres.writer import WriteResult
from otel_activity.store import ActivityStore
from tests.postgres.support import RESOURCE, count, days_ago, make_event, make_events, session, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.embedded import EmbeddedPostgres
    from otel_activity.events import Event
    from otel_activity.ports import EventExporter

PATIENCE = 30.0
"""Seconds that a condition may take to come true before the test fails."""


def _wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


def test_events_arrive(store_dsn: str) -> None:
    """What is exported is in the table, and the exporter says what became of it."""
    events = make_events(20)
    exporter = PostgresEventExporter(store_dsn)
    as_port: EventExporter = exporter
    with closing(exporter):
        as_port.export(events, RESOURCE)
        assert exporter.last_result == WriteResult(20, 0, 0)
        as_port.export(events, RESOURCE)
        assert exporter.last_result == WriteResult(0, 20, 0)
    assert stored(store_dsn) == {event.id: event for event in events}
    assert exporter.name == "postgres"


def in_stream(stream: str, events: list[Event]) -> list[Event]:
    """The same events as another process sends them: with places of its own."""
    for place, event in enumerate(events, 1):
        event.attributes |= {semconv.STREAM_ID: stream, semconv.SEQUENCE: place}
    return events


def repeats(dsn: str) -> list[tuple[str, int, int, int]]:
    """What was noted of batches that were there already: stream, count, first and last place."""
    with session(dsn) as connection:
        rows = connection.execute(
            "SELECT attributes FROM activity.events WHERE name = 'activity.stream.repeated'"
        ).fetchall()
    names = (
        semconv.STREAM_SUBJECT,
        semconv.STREAM_REPEATED_COUNT,
        semconv.STREAM_REPEATED_FIRST,
        semconv.STREAM_REPEATED_LAST,
    )
    return [tuple(row["attributes"][name] for name in names) for row in rows]  # type: ignore[misc]  # four


@pytest.mark.parametrize("option", [{"client_encoding": "latin1"}, {"options": "-c client_encoding=latin1"}])
def test_texts_stay_what_they_are_whatever_encoding_the_dsn_asks_for(
    store_dsn: str, option: dict[str, str]
) -> None:
    """What is sent is UTF-8: the server must not take it for anything else, nor send anything else back."""
    dsn = make_conninfo(store_dsn, **option)
    event = make_event()
    event.attributes["user.id"] = "5 \u20ac caf\u00e9"
    with closing(PostgresEventExporter(dsn)) as exporter:
        exporter.export([event], RESOURCE)
    assert stored(store_dsn)[event.id].attributes["user.id"] == "5 \u20ac caf\u00e9"
    with ActivityStore(dsn) as reader:
        assert reader.search().events[0].attributes["user.id"] == "5 \u20ac caf\u00e9"


def test_what_another_process_had_stored_is_noted(store_dsn: str) -> None:
    """The places that a batch came with stay empty for events that were there: a record says how many."""
    dead, heir = str(uuid.uuid4()), str(uuid.uuid4())
    events = make_events(5)
    with closing(PostgresEventExporter(store_dsn)) as exporter:
        exporter.export(in_stream(dead, events[:3]), RESOURCE)
    assert repeats(store_dsn) == []
    with closing(PostgresEventExporter(store_dsn)) as exporter:
        exporter.export(in_stream(heir, events), RESOURCE)
        assert exporter.last_result == WriteResult(2, 3, 0)
    assert repeats(store_dsn) == [(heir, 3, 1, 5)]


def test_a_batch_that_is_sent_again_by_itself_leaves_no_place_empty(store_dsn: str) -> None:
    """Nobody saw whether the first attempt was stored: the second has the same places and needs no record."""
    events = in_stream(str(uuid.uuid4()), make_events(3))
    with closing(PostgresEventExporter(store_dsn)) as other:
        other.export(events, RESOURCE)  # what the server did with the attempt that nobody saw the end of
    with closing(PostgresEventExporter(store_dsn, schema="nowhere")) as exporter:
        with pytest.raises(StoreRefused):
            exporter.export(events, RESOURCE)
        exporter._schema = "activity"
        exporter.export(events, RESOURCE)
        assert exporter.last_result == WriteResult(0, 3, 0)
    assert repeats(store_dsn) == []


def test_nothing_connects_before_the_first_export(free_port: int) -> None:
    """Constructing and closing an exporter needs no server."""
    PostgresEventExporter(f"postgresql://me@127.0.0.1:{free_port}/x").close()


def test_one_connection_serves_many_exports(store_dsn: str) -> None:
    """The connection is kept, and named so that an operator can find it."""
    with closing(PostgresEventExporter(store_dsn, application_name="my audit")) as exporter:
        pids = set()
        for _ in range(3):
            exporter.export([make_event()], RESOURCE)
            pids.update(_backends(store_dsn, "my audit"))
        assert len(pids) == 1
    _wait_for(lambda: not _backends(store_dsn, "my audit"), "the connection is closed")


def _backends(dsn: str, application: str) -> list[int]:
    with session(dsn) as connection:
        query = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
        )
        return [row["pid"] for row in connection.execute(query, (application,))]


def test_a_missing_schema_is_refused_until_it_is_applied(postgres_dsn: str) -> None:
    """Without the schema the message names the command; after it the same exporter delivers."""
    events = make_events(3)
    with closing(PostgresEventExporter(postgres_dsn)) as exporter:
        with pytest.raises(StoreRefused, match=r"'activity' is missing; run `otel-activity schema apply`"):
            exporter.export(events, RESOURCE)
        schema.apply(postgres_dsn)
        exporter.export(events, RESOURCE)
    assert count(postgres_dsn) == 3


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "INSERT INTO activity.schema_version VALUES (999, 'x')",
            r"version 999, newer .*; upgrade otel-activity",
        ),
        (
            "DELETE FROM activity.schema_version",
            r"version 0, this code needs \d+; run `otel-activity schema apply`",
        ),
    ],
)
def test_a_schema_of_another_version_is_refused(store_dsn: str, statement: str, message: str) -> None:
    """Code and schema must match exactly; the message says which of the two to renew."""
    with session(store_dsn) as connection:
        connection.execute(statement)
    with closing(PostgresEventExporter(store_dsn)) as exporter, pytest.raises(StoreRefused, match=message):
        exporter.export([make_event()], RESOURCE)
    assert count(store_dsn) == 0


def test_tables_that_vanish_are_a_refusal(store_dsn: str) -> None:
    """A schema that is dropped while the exporter is connected is named, not quarantined."""
    with closing(PostgresEventExporter(store_dsn)) as exporter:
        exporter.export([make_event()], RESOURCE)
        with session(store_dsn) as connection:
            connection.execute("DROP SCHEMA activity CASCADE")
        with pytest.raises(StoreRefused, match="run `otel-activity schema apply`"):
            exporter.export([make_event()], RESOURCE)


def test_a_role_without_permission_is_refused_with_the_grants(
    store_dsn: str, role_dsn: tuple[str, str]
) -> None:
    """Permission denied names the grants; with them the same exporter delivers."""
    role, dsn = role_dsn
    events = make_events(3)
    with closing(PostgresEventExporter(dsn)) as exporter:
        with pytest.raises(StoreRefused, match=r"permission denied.*schema sql --grants"):
            exporter.export(events, RESOURCE)
        with session(store_dsn) as admin:
            admin.execute(schema.grants(writer=[role]))
        exporter.export(events, RESOURCE)
        exporter.export(events, RESOURCE)
        assert exporter.last_result == WriteResult(0, 3, 0)


def test_a_read_only_server_is_refused(store_dsn: str) -> None:
    """A standby, or a database set read-only, is a refusal that points to the primary."""
    with session(store_dsn) as connection:
        name = connection.execute("SELECT current_database() AS name").fetchall()[0]["name"]
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with (
        closing(PostgresEventExporter(store_dsn)) as exporter,
        pytest.raises(StoreRefused, match="read-only"),
    ):
        exporter.export([make_event()], RESOURCE)


def test_a_wrong_password_is_refused_and_not_shown(own_server: EmbeddedPostgres) -> None:
    """The server's refusal is told in one line without any password."""
    dsn = make_conninfo(own_server.dsn(), password="wr0ng-s3cret")
    with pytest.raises(StoreRefused, match="password authentication failed") as caught:
        PostgresEventExporter(dsn).export([make_event()], RESOURCE)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_that_does_not_exist_is_refused(postgres_dsn: str) -> None:
    """The name in the DSN is what a person has to mend."""
    dsn = make_conninfo(postgres_dsn, dbname="no_such_database")
    with pytest.raises(StoreRefused, match='"no_such_database" does not exist'):
        PostgresEventExporter(dsn).export([make_event()], RESOURCE)


def test_no_server_is_unavailable(free_port: int) -> None:
    """Nobody listening is not a refusal: it may pass by itself."""
    dsn = f"postgresql://me:s3cret@127.0.0.1:{free_port}/x"
    with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
        PostgresEventExporter(dsn).export([make_event()], RESOURCE)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dsn", ["host=h password=s3cret oops", "postgresql://me:s3cret@h/x?nonsense=1"])
def test_a_malformed_dsn_shows_no_secret(dsn: str) -> None:
    """Neither the message nor its cause quotes a DSN that libpq cannot read."""
    with pytest.raises(ExportError) as caught:
        PostgresEventExporter(dsn).export([make_event()], RESOURCE)
    assert caught.value.__cause__ is None
    assert "s3cret" not in str(caught.value)


def test_a_killed_server_costs_nothing(own_server: EmbeddedPostgres) -> None:
    """Exports fail while the server is dead and succeed when it is back, each event stored once."""
    dsn = own_server.dsn()
    schema.apply(dsn)
    first, second = make_events(10), make_events(10)
    with closing(PostgresEventExporter(dsn)) as exporter:
        exporter.export(first, RESOURCE)
        own_server.kill()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                exporter.export(second, RESOURCE)
        own_server.start()
        exporter.export(first, RESOURCE)
        exporter.export(second, RESOURCE)
    assert stored(dsn) == {event.id: event for event in first + second}


def test_a_connection_lost_in_the_middle_of_copy_stores_nothing(store_dsn: str) -> None:
    """A backend that ends while the batch is on its way leaves none of it; sending again stores all."""
    events = make_events(500)
    failures: list[BaseException] = []
    with closing(PostgresEventExporter(store_dsn, application_name="victim")) as exporter:
        exporter.export([make_event()], RESOURCE)

        def run() -> None:
            try:
                exporter.export(events, RESOURCE)
            except BaseException as error:
                failures.append(error)

        with session(store_dsn) as admin, psycopg.connect(store_dsn) as blocker:
            blocker.execute("LOCK TABLE activity.events IN EXCLUSIVE MODE")
            thread = threading.Thread(target=run)
            thread.start()
            query = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'victim' AND wait_event_type = 'Lock'"
            )
            _wait_for(lambda: admin.execute(query).fetchall(), "the COPY waits for the lock")
            thread.join()
        assert len(failures) == 1
        assert isinstance(failures[0], StoreUnavailable)
        assert count(store_dsn) == 1
        exporter.export(events, RESOURCE)
    assert count(store_dsn) == 501


def test_the_time_limit_of_an_export_is_the_servers(store_dsn: str) -> None:
    """An export that is stuck behind a lock ends by itself and can be repeated."""
    with closing(PostgresEventExporter(store_dsn, export_timeout=0.3)) as exporter:
        with psycopg.connect(store_dsn) as blocker:
            blocker.execute("LOCK TABLE activity.events IN EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable):
                exporter.export([make_event()], RESOURCE)
        exporter.export([make_event()], RESOURCE)
    assert count(store_dsn) == 1


def test_close_ends_exporting(store_dsn: str) -> None:
    """After close an export fails instead of opening a connection that nobody would close."""
    exporter = PostgresEventExporter(store_dsn)
    exporter.export([make_event()], RESOURCE)
    exporter.close()
    exporter.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        exporter.export([make_event()], RESOURCE)


def test_close_does_not_wait_for_a_stuck_export(store_dsn: str) -> None:
    """Closing from another thread returns at once; the export finishes and closes the connection itself."""
    failures: list[BaseException] = []
    exporter = PostgresEventExporter(store_dsn, application_name="closing")
    exporter.export([make_event()], RESOURCE)

    def run() -> None:
        try:
            exporter.export(make_events(5), RESOURCE)
        except BaseException as error:
            failures.append(error)

    with psycopg.connect(store_dsn) as blocker, session(store_dsn) as admin:
        blocker.execute("LOCK TABLE activity.events IN EXCLUSIVE MODE")
        thread = threading.Thread(target=run)
        thread.start()
        query = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'closing' AND wait_event_type = 'Lock'"
        )
        _wait_for(lambda: admin.execute(query).fetchall(), "the export waits")
        exporter.close()
        assert thread.is_alive()
    thread.join()
    assert failures == []
    assert count(store_dsn) == 6
    _wait_for(lambda: not _backends(store_dsn, "closing"), "the connection is closed")


def test_a_batch_that_takes_too_long_goes_in_portions(store_dsn: str) -> None:
    """A slow store does not get the same batch for ever: less is sent at once until it is stored in time."""
    with session(store_dsn) as admin:
        admin.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN PERFORM pg_sleep(0.02); RETURN new; END'"
        )
        admin.execute(
            "CREATE TRIGGER slow BEFORE INSERT ON activity.events FOR EACH ROW EXECUTE FUNCTION slow()"
        )
    events = make_events(64)
    with closing(PostgresEventExporter(store_dsn, export_timeout=0.5)) as exporter:
        with pytest.raises(StoreUnavailable, match="timeout"):
            exporter.export(events, RESOURCE)

        def stored_all() -> bool:
            with suppress(StoreUnavailable):
                exporter.export(events, RESOURCE)
                return True
            return False

        _wait_for(stored_all, "the batch was stored")
        assert sum(exporter.last_result) == 64
    assert set(stored(store_dsn)) == {event.id for event in events}


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP on this platform")
def test_a_frozen_server_is_given_up(own_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps the connection and never answers is unavailable; another connection stores."""
    monkeypatch.setattr("otel_activity.postgres.exporter.GRACE", 0.2)
    dsn = own_server.create_database("audit")
    schema.apply(dsn)
    first, second = make_event(1), make_event(2)
    with closing(PostgresEventExporter(dsn, export_timeout=1.0)) as exporter:
        exporter.export([first], RESOURCE)
        with session(dsn) as admin:
            rows = admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'otel_activity'")
            (backend,) = [row["pid"] for row in rows]
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match="no answer within"):
                exporter.export([second], RESOURCE)
            exporter.export([second], RESOURCE)
        finally:
            os.kill(backend, signal.SIGCONT)
    assert set(stored(dsn)) == {first.id, second.id}


def test_a_table_without_its_default_partition_refuses_and_blames_no_event(store_dsn: str) -> None:
    """Good events that no partition takes wait for somebody to mend the table; none is quarantined."""
    event = make_event(time=days_ago(365 * 30))
    with closing(PostgresEventExporter(store_dsn)) as exporter:
        with session(store_dsn) as admin:
            admin.execute("ALTER TABLE activity.events DETACH PARTITION activity.events_default")
        with pytest.raises(StoreRefused, match="events_default"):
            exporter.export([event], RESOURCE)
        assert count(store_dsn, "quarantine") == 0
        with session(store_dsn) as admin:
            admin.execute("ALTER TABLE activity.events ATTACH PARTITION activity.events_default DEFAULT")
        exporter.export([event], RESOURCE)
    assert set(stored(store_dsn)) == {event.id}


def test_a_probe_needs_the_right_to_insert(store_dsn: str, role_dsn: tuple[str, str]) -> None:
    """A role that may read the schema's version but not insert is no working store; with the grants it is."""
    role, dsn = role_dsn
    with session(store_dsn) as admin:
        name = psycopg.sql.Identifier(role)
        admin.execute(psycopg.sql.SQL("GRANT USAGE ON SCHEMA activity TO {}").format(name))
        admin.execute(psycopg.sql.SQL("GRANT SELECT ON activity.schema_version TO {}").format(name))
    with closing(PostgresEventExporter(dsn)) as exporter:
        with pytest.raises(StoreRefused, match="permission denied"):
            exporter.probe()
        with session(store_dsn) as admin:
            admin.execute(schema.grants(writer=[role]))
        exporter.probe()
    assert count(store_dsn) == 0


def test_exports_are_not_traced(store_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the exporter works, other instrumentations are told to look away."""
    seen = []
    connect = psycopg.Connection.connect.__func__  # type: ignore[attr-defined]  # the method behind it

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(is_instrumentation_enabled())
        return connect(*args, **kwargs)

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(watched))
    with closing(PostgresEventExporter(store_dsn)) as exporter:
        exporter.export([make_event()], RESOURCE)
    assert seen == [False]
    assert is_instrumentation_enabled()


FORK = """
import os, sys
from otel_activity.postgres.exporter import PostgresEventExporter
from tests.postgres.support import RESOURCE, make_event

exporter = PostgresEventExporter(sys.argv[1], application_name="parent")
exporter.export([make_event()], RESOURCE)
child = os.fork()
if child == 0:
    if sys.argv[2] == "hook":
        exporter.after_fork()
    exporter.export([make_event()], RESOURCE)
    exporter.close()
    sys.exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
backend = exporter._connection.info.backend_pid
exporter.export([make_event()], RESOURCE)
print(status, exporter._connection.info.backend_pid == backend)
exporter.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("how", ["hook", "unseen"])
def test_a_forked_child_leaves_the_parents_connection_alone(store_dsn: str, how: str) -> None:
    """Parent and child each deliver over a connection of their own, also when nobody announced the fork."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, store_dsn, how],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.stderr == ""
    assert run.stdout.split() == ["0", "True"]
    assert count(store_dsn) == 3


def test_messages_are_one_line_without_values(store_dsn: str) -> None:
    """A refusal never carries what was to be stored."""
    with session(store_dsn) as connection:
        connection.execute("ALTER TABLE activity.events RENAME COLUMN entity_id TO gone")
    event = make_event(attributes={"activity.entity.id": "secret-value"})
    with closing(PostgresEventExporter(store_dsn)) as exporter, pytest.raises(StoreRefused) as caught:
        exporter.export([event], RESOURCE)
    assert "secret-value" not in str(caught.value)
    assert re.fullmatch(r"[^\n]+", str(caught.value))
