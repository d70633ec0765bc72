"""``OTEL_ACTIVITY_DELIVERY=strict``: the events are committed by the transaction that they tell of."""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import re
import signal
import sqlite3
import sys
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.pq import PipelineStatus
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import otel_activity
from otel_activity import log_user_action
from otel_activity.errors import ActivityError, OutboxError, StoreRefused
from otel_activity.postgres import schema
from otel_activity.postgres.outbox import OutboxReader, apply_outbox, outbox_facts
from otel_activity.postgres.statements import statement
from tests.e2e.support import NOTHING, events, rows, unexplained, wait_for_line
from tests.frameworks.support import Base, Task

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server
    from tests.e2e.support import World

pytestmark = pytest.mark.e2e

SEED = 20261124
KILLS = 10
PATIENCE = 60.0


@pytest.fixture
def database(postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The application's database with an outbox, and the store; auditing is off afterwards."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_ACTIVITY_JOURNAL_DIR", str(tmp_path / "journal"))
    schema.apply(postgres_dsn)
    apply_outbox(postgres_dsn)
    yield postgres_dsn
    otel_activity.shutdown(0.1)


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    """Makes engines, and disposes of them."""
    made: list[Engine] = []

    def make(dsn: str, driver: str = "psycopg", **options: Any) -> Engine:
        engine = create_engine(dsn.replace("postgresql://", f"postgresql+{driver}://"), **options)
        made.append(engine)
        Base.metadata.create_all(engine)
        return engine

    yield make
    for engine in made:
        engine.dispose()


def start(dsn: str, **settings: Any) -> None:
    """Audit this process, strictly."""
    assert otel_activity.instrument(postgres_dsn=dsn, delivery="strict", **settings)


def column(dsn: str, query: str) -> list[Any]:
    """One column of an answer."""
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute(query).fetchall()]


def outboxed(dsn: str) -> int:
    """Rows in the outbox."""
    return int(column(dsn, "SELECT count(*) FROM activity.outbox")[0])


def stored(dsn: str) -> list[tuple[str, str]]:
    """Name and fate of each stored event, as they were released."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "SELECT name, attributes ->> 'activity.commit' FROM activity.events ORDER BY sequence"
        ).fetchall()


CREATED = ("activity.entity.created", "proven")
UPDATED = ("activity.entity.updated", "proven")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_what_is_committed_is_stored_in_order(
    database: str, engines: Callable[..., Engine], driver: str
) -> None:
    """Changes and an action of one transaction arrive once, and leave the outbox."""
    start(database)
    engine = engines(database, driver)
    with Session(engine) as session:
        task = Task(name="a")
        session.add(task)
        session.flush()
        task.name = "b"
        session.flush()
        log_user_action("task.check", details={"odd": "nul \u0000, quote ' and %s"}, session=session)
        session.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [CREATED, UPDATED, ("activity.action", "proven")]
    assert outboxed(database) == 0


def test_events_travel_with_the_commit(database: str, engines: Callable[..., Engine], tmp_path: Path) -> None:
    """With psycopg the server is not waited for between INSERT and COMMIT: no round trip for the outbox."""
    start(database)
    engine = engines(database)
    with Session(engine) as session, (tmp_path / "trace").open("wb") as trace:
        session.add(Task(name="a"))
        session.flush()
        raw = session.connection().connection.dbapi_connection
        assert isinstance(raw, psycopg.Connection)
        raw.pgconn.trace(trace.fileno())
        session.commit()
        raw.pgconn.untrace()
        assert raw.info.pipeline_status is PipelineStatus.OFF
    messages = re.findall(r"\t([FB])\t\d+\t(\w+)", (tmp_path / "trace").read_text())
    assert re.fullmatch("F+B+", "".join(sender for sender, _ in messages))
    assert messages.count(("F", "Sync")) == 1
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [CREATED]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_lost_serialization_conflict_is_the_applications(
    database: str, engines: Callable[..., Engine], driver: str
) -> None:
    """What a program tries again for stays the driver's error, also if the outbox hears it first."""
    start(database)
    engine = engines(database, driver, isolation_level="SERIALIZABLE")
    with Session(engine) as first, Session(engine) as second:
        for session, name in ((first, "x"), (second, "y")):
            session.query(Task).filter(Task.name != "zzz").count()
            session.add(Task(name=name))
            session.flush()
        first.commit()
        with pytest.raises(OperationalError) as caught:
            second.commit()
        original: Any = caught.value.orig
        assert (getattr(original, "sqlstate", None) or original.pgcode) == "40001"
        second.rollback()
        second.add(Task(name="again"))
        second.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [CREATED, CREATED]
    assert sorted(column(database, "SELECT name FROM task")) == ["again", "x"]


def test_asyncpg_raises_a_lost_serialization_conflict(database: str, engines: Callable[..., Engine]) -> None:
    """The same with a driver that waits for the outbox before COMMIT."""
    engines(database)
    start(database)

    async def work() -> None:
        engine = create_async_engine(
            database.replace("postgresql://", "postgresql+asyncpg://"), isolation_level="SERIALIZABLE"
        )
        async with AsyncSession(engine) as first, AsyncSession(engine) as second:
            for session, name in ((first, "x"), (second, "y")):
                await session.execute(text("SELECT count(*) FROM task WHERE name <> 'zzz'"))
                session.add(Task(name=name))
                await session.flush()
            await first.commit()
            with pytest.raises(DBAPIError, match="could not serialize"):
                await second.commit()
            await second.rollback()
        await engine.dispose()

    asyncio.run(work())
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [CREATED]


def test_values_are_no_part_of_the_statement(database: str, engines: Callable[..., Engine]) -> None:
    """What the server shows and logs as the text of statements has no value of an event."""
    start(database)
    engine = engines(database)
    with Session(engine) as session:
        session.add(Task(name="Ann Example"))
        session.flush()
        raw = session.connection().connection.dbapi_connection
        assert isinstance(raw, psycopg.Connection)
        session.commit()
        shown = column(database, f"SELECT query FROM pg_stat_activity WHERE pid = {raw.info.backend_pid}")
    assert len(shown) == 1
    assert "Ann" not in shown[0]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_any_character_passes_any_client_encoding(
    database: str, engines: Callable[..., Engine], driver: str
) -> None:
    """A connection whose encoding has no euro sign commits an action that has one."""
    start(database)
    engine = engines(database, driver, connect_args={"options": "-c client_encoding=LATIN1"})
    with Session(engine) as session:
        session.add(Task(name="caf\u00e9"))
        session.flush()
        log_user_action("task.price", details={"price": "5 \u20ac \U0001f642"}, session=session)
        session.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert column(database, "SELECT attributes -> 'activity.details' ->> 'price' FROM activity.events") == [
        None,
        "5 \u20ac \U0001f642",
    ]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_any_character_passes_any_databases_encoding(
    database: str, postgres_server: Server, engines: Callable[..., Engine], driver: str, encoding: str
) -> None:
    """What the application's database could not hold does not keep its transaction from committing."""
    name = f"strict_{encoding.lower()}_{os.getpid()}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    shop = postgres_server.dsn(name)
    said = {"price": "5 \u20ac \U0001f642 caf\u00e9 \\u20ac"}
    try:
        apply_outbox(shop)
        start(database)
        # psycopg reads bytes, not texts, where neither side has an encoding.
        client = {"options": "-c client_encoding=LATIN1"} if encoding == "SQL_ASCII" else {}
        if driver == "asyncpg":
            engines(shop, connect_args=client)
            asyncio.run(_act_by_asyncpg(shop, said))
        else:
            with Session(engines(shop, driver, connect_args=client)) as session:
                session.add(Task(name="plain"))
                log_user_action("task.price", details=said, session=session)
                session.commit()
        assert otel_activity.flush_queue(PATIENCE)
        prices = "SELECT attributes -> 'activity.details' ->> 'price' FROM activity.events"
        assert said["price"] in column(database, prices)
        assert outboxed(shop) == 0
    finally:
        otel_activity.shutdown(1)
        postgres_server.drop_database(name)


async def _act_by_asyncpg(dsn: str, details: dict[str, str]) -> None:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
    async with AsyncSession(engine) as session:
        session.add(Task(name="plain"))
        await session.flush()
        log_user_action("task.price", details=details, session=session.sync_session)
        await session.commit()
    await engine.dispose()


def test_an_interrupted_commit_leaves_a_usable_connection(
    database: str, engines: Callable[..., Engine]
) -> None:
    """Ctrl-C while the server works on the COMMIT: nothing is committed, and the connection goes on."""
    engine = engines(database)
    with engine.begin() as connection:
        connection.execute(text(SLOW_COMMIT))
    start(database)
    with Session(engine) as session:
        session.add(Task(name="slow"))
        session.flush()
        pid = session.connection().connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
        asleep = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'"

        def interrupt() -> None:
            deadline = time.monotonic() + PATIENCE
            while not column(database, asleep) and time.monotonic() < deadline:
                time.sleep(0.01)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            session.commit()
        thread.join()
    with Session(engine) as session:
        session.add(Task(name="fast"))
        session.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [CREATED]
    assert column(database, "SELECT name FROM task") == ["fast"]


SLOW_COMMIT = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.name = 'slow' THEN PERFORM pg_sleep(60); END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON task DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION slow()
"""


def test_an_error_of_the_commit_itself_is_the_applications(
    database: str, engines: Callable[..., Engine]
) -> None:
    """A deferred constraint fails the COMMIT: the program sees its own error, and nothing is stored."""
    engine = engines(database)
    with engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE task ADD CONSTRAINT one UNIQUE (name) DEFERRABLE INITIALLY DEFERRED")
        )
    start(database)
    with Session(engine) as session:
        session.add_all([Task(name="same"), Task(name="same")])
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        session.add(Task(name="other"))
        session.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [CREATED]
    assert column(database, "SELECT name FROM task") == ["other"]


def test_a_connection_that_dies_in_the_commit_is_no_refusal(
    database: str, engines: Callable[..., Engine]
) -> None:
    """The program sees that its connection is lost, and the outbox decides what happened."""
    engine = engines(database)
    start(database)
    with Session(engine) as session:
        session.add(Task(name="a"))
        session.flush()
        pid = session.connection().connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
        column(database, f"SELECT pg_terminate_backend({pid}, 5000)")
        with pytest.raises(OperationalError):
            session.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == []
    assert column(database, "SELECT name FROM task") == []


def test_a_commit_that_psycopg_forbids_commits_nothing(database: str, engines: Callable[..., Engine]) -> None:
    """Inside a block of `connection.transaction()`, psycopg refuses to commit, and so nothing is sent."""
    engine = engines(database)
    start(database)
    with Session(engine) as session:
        raw = session.connection().connection.dbapi_connection
        assert isinstance(raw, psycopg.Connection)
        with raw.transaction(force_rollback=True):
            session.add(Task(name="a"))
            with pytest.raises(ProgrammingError):
                session.commit()
        session.rollback()
    assert otel_activity.flush_queue(PATIENCE)
    # Its end was not seen, so nobody vouches for it.
    assert stored(database) == [("activity.entity.created", "unknown")]
    assert column(database, "SELECT name FROM task") == []


def test_asyncpg_writes_its_outbox(database: str, engines: Callable[..., Engine]) -> None:
    """The async driver commits the events with the row, and a rollback takes both away."""
    engines(database)
    start(database)

    async def work() -> None:
        engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
        async with AsyncSession(engine) as session:
            session.add(Task(name="kept"))
            await session.commit()
            session.add(Task(name="gone"))
            await session.flush()
            await session.rollback()
        await engine.dispose()

    asyncio.run(work())
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [CREATED]


def test_savepoints_and_two_phases_share_the_outbox(database: str, engines: Callable[..., Engine]) -> None:
    """A savepoint takes its part away; a prepared transaction is delivered when it is committed."""
    start(database)
    engine = engines(database)
    with Session(engine) as session:
        session.add(Task(name="outer"))
        session.flush()
        with session.begin_nested() as nested:
            session.add(Task(name="inner"))
            session.flush()
            nested.rollback()
        session.commit()
    with Session(engine, twophase=True) as session:
        session.add(Task(name="prepared"))
        session.flush()
        session.prepare()
        assert outboxed(database) <= 1  # what is prepared is not to be seen
        session.commit()
    with Session(engine, twophase=True) as session:
        session.add(Task(name="never"))
        session.flush()
        session.prepare()
        session.rollback()
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [CREATED, CREATED]
    assert sorted(column(database, "SELECT name FROM task")) == ["outer", "prepared"]


def test_without_an_outbox_nothing_is_committed(database: str, engines: Callable[..., Engine]) -> None:
    """The commit raises one clear line, the row is not there, and the failure is reported."""
    start(database)
    engine = engines(database)
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE activity.outbox")
    with Session(engine) as session:
        session.add(Task(name="never"))
        session.flush()
        log_user_action("task.create", session=session)
        with pytest.raises(OutboxError, match=r"not committed.*42P01.*schema apply --outbox"):
            session.commit()
    assert column(database, "SELECT name FROM task") == []
    apply_outbox(database)
    with Session(engine) as session:
        session.add(Task(name="kept"))
        session.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert sorted(stored(database)) == [("activity.action", None), CREATED]


def test_a_role_without_the_privilege_commits_nothing(database: str, engines: Callable[..., Engine]) -> None:
    """A refused INSERT refuses the transaction, and says what to grant."""
    start(database)
    engine = engines(database)
    with Session(engine) as session:
        session.execute(text("CREATE ROLE weak"))
        session.execute(text("GRANT ALL ON task, task_id_seq TO weak"))
        session.execute(text("GRANT USAGE ON SCHEMA activity TO weak"))
        session.commit()
    try:
        with Session(engine) as session:
            session.execute(text("SET LOCAL ROLE weak"))
            session.add(Task(name="never"))
            with pytest.raises(OutboxError, match=r"42501.*grant"):
                session.commit()
        assert column(database, "SELECT name FROM task") == []
    finally:
        with psycopg.connect(database) as connection:
            connection.execute("DROP OWNED BY weak")
            connection.execute("DROP ROLE weak")


def test_other_databases_are_refused(database: str, tmp_path: Path) -> None:
    """SQLite has no outbox: its first commit is refused, and says what to do."""
    start(database)
    engine = create_engine(f"sqlite:///{tmp_path / 'tasks'}")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Task(name="never"))
        with pytest.raises(ActivityError, match=r"needs PostgreSQL, not sqlite"):
            session.commit()
    engine.dispose()
    connection = sqlite3.connect(tmp_path / "tasks")
    try:
        assert connection.execute("SELECT count(*) FROM task").fetchone() == (0,)
    finally:
        connection.close()


def test_autocommit_goes_through_the_journal(database: str, engines: Callable[..., Engine]) -> None:
    """Statements outside of any transaction, and actions without one, are stored all the same."""
    start(database)
    engine = engines(database, isolation_level="AUTOCOMMIT")
    with Session(engine) as session:
        session.add(Task(name="alone"))
        session.commit()
    log_user_action("task.look")
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [("activity.entity.created", "reported"), ("activity.action", None)]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_an_action_in_a_read_only_transaction_is_journaled(
    database: str, engines: Callable[..., Engine], driver: str
) -> None:
    """Who looks at a report writes nothing, and cannot: the action needs no row to share its fate with."""
    start(database)
    with Session(engines(database, driver)) as session:
        session.connection(execution_options={"postgresql_readonly": True})
        session.execute(text("SELECT 1"))
        log_user_action("report.view", session=session)
        session.commit()
        session.execute(text("SELECT 1"))
        log_user_action("report.refused", session=session)
        session.rollback()
    assert otel_activity.flush_queue(PATIENCE)
    assert column(database, "SELECT action || ' ' || outcome FROM activity.events ORDER BY sequence") == [
        "report.view success",
        "report.refused failure",
    ]
    assert outboxed(database) == 0


def test_each_database_has_its_own_outbox(
    database: str, postgres_server: Server, engines: Callable[..., Engine]
) -> None:
    """Transactions of two databases are in two outboxes, and both are emptied."""
    other = postgres_server.create_database("strict_other")
    try:
        apply_outbox(other)
        start(database)
        for dsn in (database, other):
            with Session(engines(dsn)) as session:
                session.add(Task(name="here"))
                session.commit()
        assert otel_activity.flush_queue(PATIENCE)
        assert stored(database) == [CREATED, CREATED]
        assert outboxed(database) == outboxed(other) == 0
    finally:
        otel_activity.shutdown(1)
        postgres_server.drop_database("strict_other")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("way", ["creator", "arguments", "password"])
def test_an_outbox_is_emptied_whatever_names_the_database(
    database: str, engines: Callable[..., Engine], driver: str, way: str
) -> None:
    """An engine's URL need not say where its connections lead, nor with what password."""
    url = make_url(database)
    given = url.translate_connect_args(username="user", database="dbname")
    start(database)
    if way == "creator":
        connect = importlib.import_module(driver).connect
        engine = engines("postgresql://", driver, creator=lambda: connect(**given))
    elif way == "arguments":
        engine = engines("postgresql://", driver, connect_args=given)
    else:
        bare = url._replace(password=None).render_as_string()
        engine = engines(bare, driver, connect_args={"password": given["password"]})
    with Session(engine) as session:
        session.add(Task(name="a"))
        session.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert stored(database) == [CREATED]
    assert outboxed(database) == 0


def test_an_older_transaction_is_waited_for(database: str, engines: Callable[..., Engine]) -> None:
    """Rows of a transaction that began later wait until those before it can no longer appear."""
    start(database)
    engine = engines(database)
    with Session(engine) as older:
        older.add(Task(name="older"))
        older.flush()
        with Session(engine) as younger:
            younger.add(Task(name="younger"))
            younger.commit()
        assert not otel_activity.flush_queue(0.5)
        assert stored(database) == []
        older.commit()
    assert otel_activity.flush_queue(PATIENCE)
    found = column(database, "SELECT entity_id FROM activity.events ORDER BY sequence")
    assert found == ["1", "2"]  # as they were inserted


# --- whole processes ------------------------------------------------------------------------------


def test_transactions_are_read_in_the_order_of_their_numbers(database: str) -> None:
    """99 comes before 100, however they look as text; and what is newest is what a flush waits for."""
    with psycopg.connect(database) as connection:
        connection.cursor().executemany(
            "INSERT INTO activity.outbox (xid, id, event, resource) VALUES"
            " (%s::text::xid8, gen_random_uuid(), '{}', '{}')",
            [(number,) for number in ("100", "99", "9", "101")],
        )
    with closing(OutboxReader(database, "activity")) as reader:
        assert [row.xid for row in reader.take(10)] == ["9", "99", "100", "101"]
        reader.release()
        assert reader.newest() == "101"
        assert reader.left("98")


def test_rows_of_another_cluster_leave_the_outbox(database: str) -> None:
    """Restored from a dump, or replicated, they may have ids that this one will give out in years."""
    with psycopg.connect(database) as connection:
        connection.cursor().executemany(
            "INSERT INTO activity.outbox (xid, id, event, resource) VALUES"
            " (coalesce(%s::text::xid8, pg_current_xact_id()), gen_random_uuid(), '{}', '{}')",
            [(number,) for number in (None, "5000000000", "9999999999", None)],
        )
    with closing(OutboxReader(database, "activity")) as reader:
        rows = reader.take(3)
        assert [row.xid for row in rows[:2]] == ["5000000000", "9999999999"]
        assert len(rows) == 3
        reader.delete(rows)
        assert len(reader.take(3)) == 1
        reader.release()


def test_relays_whose_role_is_serializable_do_not_disturb_each_other(database: str) -> None:
    """What a role has by default would make an error of every row that another relay took."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO activity.outbox (id, event, resource)"
            " SELECT gen_random_uuid(), '{}', '{}' FROM generate_series(1, 100)"
        )
    strict = psycopg.conninfo.make_conninfo(database, options="-c default_transaction_isolation=serializable")
    with closing(OutboxReader(strict, "activity")) as one, closing(OutboxReader(strict, "activity")) as other:
        first, second = one.take(50), other.take(50)
        one.delete(first)
        other.delete(second)
    assert len({row.number for row in first + second}) == 100
    assert outboxed(database) == 0


def test_rows_that_nobody_here_can_read_keep_back_no_others(
    database: str, engines: Callable[..., Engine]
) -> None:
    """Those of a newer version stay, however many there are; what comes after them is delivered."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO activity.outbox (id, event, resource)"
            " SELECT gen_random_uuid(), '{}', '{}' FROM generate_series(1, 2500)"
        )
    start(database)
    with Session(engines(database)) as session:
        session.add(Task(name="a"))
        session.commit()
    deadline = time.monotonic() + PATIENCE
    while stored(database) != [CREATED] and time.monotonic() < deadline:
        otel_activity.flush_queue(0.2)
    assert stored(database) == [CREATED]
    assert outboxed(database) == 2500


@pytest.mark.parametrize("query", ["outbox_take", "outbox_left", "outbox_newest"])
def test_a_backlog_is_not_read_whole(database: str, query: str) -> None:
    """However many rows wait, the index leads to those that are asked for."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO activity.outbox (xid, id, event, resource)"
            " SELECT (10 + place / 100)::text::xid8, gen_random_uuid(), '{}', '{}'"
            " FROM generate_series(1, 20000) AS place"
        )
        explain = psycopg.sql.SQL("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {}").format(
            statement(query, "activity")
        )
        lines = [
            row[0] for row in connection.execute(explain, {"limit": 100, "skip": 0, "xid": "9"}).fetchall()
        ]
    assert not [line for line in lines if "Seq Scan" in line or "Sort" in line], lines
    assert max(float(found) for found in re.findall(r"rows=([0-9.]+)", "".join(lines))) <= 100


def test_rows_that_are_hidden_from_a_relay_are_an_error(database: str) -> None:
    """With row-level security the outbox only looks empty: nobody is to believe that."""
    role = f"relay_{os.getpid()}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO activity.outbox (id, event, resource) VALUES (gen_random_uuid(), '1', '{}')"
        )
        admin.execute("ALTER TABLE activity.outbox ENABLE ROW LEVEL SECURITY")
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'w'")
        try:
            admin.execute(f"GRANT USAGE ON SCHEMA activity TO {role}; GRANT ALL ON activity.outbox TO {role}")
            weak = psycopg.conninfo.make_conninfo(database, user=role, password="w")
            with closing(OutboxReader(weak, "activity")) as reader:
                for ask in (reader.newest, lambda: reader.take(1), lambda: reader.left("9")):
                    with pytest.raises(StoreRefused, match="row-level security"):
                        ask()
            assert outbox_facts(weak).waiting is None
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_the_owner_of_a_schema_makes_the_outbox_in_it(database: str) -> None:
    """Who may make no schemas can be given one."""
    role = f"owner_{os.getpid()}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'w'")
        try:
            admin.execute(f"CREATE SCHEMA shop AUTHORIZATION {role}")
            own = psycopg.conninfo.make_conninfo(database, user=role, password="w")
            apply_outbox(own, "shop")
            assert outbox_facts(own, "shop").can_insert
            with pytest.raises(StoreRefused, match=r"permission denied .* connect as a role that may"):
                apply_outbox(own, "another")
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture
def strict(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Programs with strict delivery; the outbox is in the application's database, the store in another."""
    apply_outbox(world.application)
    original = world.environment

    def environment(**extra: str) -> dict[str, str]:
        ours = {"OTEL_ACTIVITY_DELIVERY": "strict", "OTEL_ACTIVITY_JOURNAL_DIR": str(tmp_path / "journal")}
        return original(**{**ours, **extra})

    monkeypatch.setattr(world, "environment", environment)
    return world


def relaying(world: World, *options: str, **extra: str) -> subprocess.Popen[str]:
    """Start ``otel-activity relay --outbox``."""
    program = "from otel_activity.cli import main; main()"
    command = (sys.executable, "-c", program, "relay", "--outbox", world.application, *options)
    return world.spawn(*command, OTEL_SERVICE_NAME="", **extra)


@pytest.mark.timeout(240)
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_sigkill_in_and_around_commit(strict: World) -> None:
    """Killed again and again: exactly the committed rows have events, none is unknown, none is twice."""
    rng = random.Random(SEED)
    for _ in range(KILLS):
        process = strict.start("python", "loop.py", OTEL_BLRP_SCHEDULE_DELAY="50")
        wait_for_line(process, "program runs")
        time.sleep(rng.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
    relay = relaying(strict, "--timeout", "60")
    output, _ = relay.communicate(timeout=120)
    assert relay.returncode == 0, output
    assert rows(strict)
    assert unexplained(strict) == NOTHING
    assert {fate for _, _, fate in events(strict)} == {"proven"}
    assert outboxed(strict.application) == 0


@pytest.mark.timeout(240)
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_relays_at_once_while_commits_go_on_and_one_is_killed(strict: World) -> None:
    """A program commits, its own thread and two relays deliver, relays die anywhere: each event once."""
    rng = random.Random(SEED)
    program = strict.start("python", "loop.py", "400", OTEL_BLRP_SCHEDULE_DELAY="50")
    wait_for_line(program, "program runs")
    drain = threading.Thread(target=lambda: program.communicate(timeout=120))
    drain.start()
    for _ in range(3):
        pair = [relaying(strict, "--timeout", "60"), relaying(strict, "--timeout", "60")]
        time.sleep(rng.uniform(0.6, 1.4))
        pair[0].kill()
        pair[0].communicate(timeout=60)
        output, _ = pair[1].communicate(timeout=120)
        assert pair[1].returncode == 0, output
    drain.join(120)
    assert program.returncode == 0
    relay = relaying(strict, "--timeout", "60")
    output, _ = relay.communicate(timeout=120)
    assert relay.returncode == 0, output
    assert len(rows(strict)) == 640
    assert unexplained(strict) == NOTHING
    assert outboxed(strict.application) == 0
    assert {service for _, _, service in strict.stored()} == {"shop"}


def test_rows_stay_until_all_exporters_have_them(strict: World) -> None:
    """With one exporter dead, the outbox keeps the events that the store has; later each is there once."""
    dead = {"OTEL_ACTIVITY_EXPORTERS": "postgres,otlp", "OTEL_ACTIVITY_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    program = strict.start("python", "loop.py", "20", OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="3", **dead)
    output, _ = program.communicate(timeout=120)
    assert program.returncode == 0, output
    assert outboxed(strict.application) == 48
    relay = relaying(strict, "--timeout", "60")
    output, _ = relay.communicate(timeout=120)
    assert (relay.returncode, output) == (0, "48 events found, all delivered\n")
    assert unexplained(strict) == NOTHING
    assert outboxed(strict.application) == 0
