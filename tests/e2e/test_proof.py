"""A COMMIT whose answer never comes: the database is asked, and stored is what happened."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine, exc
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import otel_activity
from otel_activity.embedded import EmbeddedPostgres
from otel_activity.postgres import schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

_SLOW_COMMIT = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON sale DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.item = 'slow') EXECUTE FUNCTION slow();
"""


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sale"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class World:
    """A server of its own, because its settings are changed; the application's database and the store."""

    def __init__(self, server: EmbeddedPostgres, journal: Path) -> None:
        for name in ("app", "store"):
            server.create_database(name)
        self.app, self.store, self.journal = server.dsn("app"), server.dsn("store"), journal
        with psycopg.connect(self.store, autocommit=True) as connection:
            schema.apply(connection, "activity")
        engine = create_engine(self.url)
        Base.metadata.create_all(engine)
        engine.dispose()
        self.run(_SLOW_COMMIT)

    @property
    def url(self) -> str:
        return self.app.replace("postgresql://", "postgresql+psycopg://")

    def run(self, statement: str) -> None:
        with psycopg.connect(self.app, autocommit=True) as connection:
            connection.execute(statement.encode())

    def hold_commits(self) -> None:
        """A commit then waits for a standby that does not exist: done on disk, never answered.

        The server takes a new setting over when it comes to it, so commits are tried until one hangs.
        """
        self._standby("nosuch")
        thread = threading.Thread(target=self._commit_until_cut)
        thread.start()
        self.run(f"SELECT pg_terminate_backend({self.waiting('SyncRep')}, 10000)")
        thread.join()

    def _commit_until_cut(self) -> None:
        with (
            psycopg.connect(self.app, autocommit=True) as connection,
            contextlib.suppress(psycopg.OperationalError),
        ):
            while True:
                connection.execute("CREATE TEMPORARY TABLE tried ON COMMIT DROP AS SELECT 1")

    def let_commits_go(self) -> None:
        self._standby("")

    def _standby(self, name: str) -> None:
        self.run(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        self.run("SELECT pg_reload_conf()")

    def waiting(self, event: str) -> int:
        """Process id of the backend that waits for something in the middle of its COMMIT."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with psycopg.connect(self.app, autocommit=True) as connection:
                row = connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE datname = 'app' AND wait_event = %s", (event,)
                ).fetchone()
            if row is not None:
                return int(row[0])
            time.sleep(0.02)
        raise AssertionError(f"no backend waits for {event}")

    def cut(self, event: str) -> threading.Thread:
        """Take the connection away while it waits."""

        def strike() -> None:
            pid = self.waiting(event)
            self.run(f"SELECT pg_terminate_backend({pid})")

        thread = threading.Thread(target=strike)
        thread.start()
        return thread

    def sold(self) -> list[str]:
        with psycopg.connect(self.app) as connection:
            return [row[0] for row in connection.execute("SELECT item FROM sale ORDER BY id").fetchall()]

    def events(self) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.store) as connection:
            return connection.execute(
                "SELECT changes -> 'item' ->> 'after', attributes ->> 'activity.commit'"
                " FROM activity.events WHERE entity_type = 'Sale' ORDER BY time"
            ).fetchall()

    def settings(self, **more: Any) -> dict[str, Any]:
        return {
            "exporters": "postgres",
            "postgres_dsn": self.store,
            "delivery": "durable",
            "journal_dir": str(self.journal),
            **more,
        }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """No auditing yet; off again afterwards."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    with EmbeddedPostgres() as server:
        yield World(server, tmp_path / "journal")
        otel_activity.shutdown(0.1)


def sell(engine: Any, item: str) -> None:
    with Session(engine) as session:
        session.add(Sale(item=item))
        session.commit()


def test_cut_off_before_the_commit_was_done(world: World) -> None:
    """The server was still in a deferred trigger: the transaction is aborted, and its event is not stored."""
    otel_activity.instrument(**world.settings())
    engine = create_engine(world.url)
    thread = world.cut("PgSleep")
    with pytest.raises(exc.OperationalError):
        sell(engine, "slow")
    thread.join()
    sell(engine, "after")
    assert otel_activity.flush_queue(20)
    engine.dispose()
    assert world.sold() == ["after"]
    assert world.events() == [("after", "reported")]


def test_cut_off_after_the_commit_was_done(world: World) -> None:
    """The server had committed and waited for a standby: the event is stored, as proven."""
    otel_activity.instrument(**world.settings())
    engine = create_engine(world.url)
    sell(engine, "before")
    world.hold_commits()
    thread = world.cut("SyncRep")
    with pytest.raises(exc.OperationalError):
        sell(engine, "cut")
    thread.join()
    world.let_commits_go()
    assert otel_activity.flush_queue(20)
    engine.dispose()
    assert world.sold() == ["before", "cut"]
    assert world.events() == [("before", "reported"), ("cut", "proven")]


@pytest.mark.parametrize(("event", "expected"), [("SyncRep", ["dead"]), ("PgSleep", [])])
def test_killed_while_the_commit_was_on_its_way(world: World, event: str, expected: list[str]) -> None:
    """The process is gone by SIGKILL; the next one of the service asks, and stores what was committed."""
    item = "dead" if expected else "slow"
    program = f"""
        import otel_activity
        from sqlalchemy import create_engine
        from tests.e2e.test_proof import sell
        otel_activity.instrument(**{world.settings()!r})
        sell(create_engine({world.url!r}), {item!r})
    """
    if expected:
        world.hold_commits()
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        pid = world.waiting(event)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        world.run(f"SELECT pg_terminate_backend({pid})")
    finally:
        child.kill()
        child.wait()
    world.let_commits_go()
    otel_activity.instrument(**world.settings(proof_dsn=world.app))
    assert otel_activity.flush_queue(30)
    assert world.sold() == expected
    assert world.events() == [(item, "proven") for item in expected]


def test_switched_off(world: World) -> None:
    """Without proof nothing is read, and what a cut leaves open is said to be unknown."""
    otel_activity.instrument(**world.settings(commit_proof="off"))
    engine = create_engine(world.url)
    thread = world.cut("PgSleep")
    with pytest.raises(exc.OperationalError):
        sell(engine, "slow")
    thread.join()
    assert otel_activity.flush_queue(20)
    engine.dispose()
    assert world.sold() == []
    assert world.events() == [("slow", "unknown")]
