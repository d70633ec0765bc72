"""SQLite: legacy transactions, the documented recipe, a locked database, savepoints that commit."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event, exc
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.capture.support import Account, Base, Recorder, add

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_activity.capture import SQLAlchemyCapture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The database file."""
    return tmp_path / "test.db"


@pytest.fixture
def engine(capture: SQLAlchemyCapture, path: Path) -> Iterator[Engine]:
    """An engine on a new database."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0})
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def recipe(engine: Engine) -> Engine:
    """With SQLAlchemy's recipe for real transactions: the driver begins nothing, an event sends BEGIN."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    engine.dispose()
    return engine


def rows(path: Path) -> list[tuple[int, str]]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.execute("SELECT id, name FROM account ORDER BY id"))
    finally:
        connection.close()


def test_commit_and_rollback(engine: Engine, recorder: Recorder, path: Path) -> None:
    """Committed changes come out, rolled back ones do not."""
    with Session(engine) as session:
        add(session, "kept")
        session.commit()
        add(session, "lost")
        session.rollback()
    assert recorder.ends == ["committed", "aborted"]
    assert recorder.replayed() == rows(path)


def test_recipe(recipe: Engine, recorder: Recorder, path: Path) -> None:
    """With the recipe the driver says AUTOCOMMIT, yet the transaction is real: its end decides."""
    with Session(recipe) as session:
        add(session, "kept")
        assert recorder.calls == []
        with session.begin_nested() as nested:
            add(session, "lost")
            nested.rollback()
        session.commit()
        add(session, "lost")
        session.rollback()
    assert recorder.names() == ["kept"]
    assert recorder.replayed() == rows(path)


def test_savepoint_that_commits(engine: Engine, recorder: Recorder, path: Path) -> None:
    """Without the recipe, releasing a savepoint that was set first commits: it comes out at once."""
    with Session(engine) as session:
        with session.begin_nested():
            add(session, "committed by the release")
        session.rollback()
    assert recorder.doubtful == []
    assert recorder.replayed() == rows(path) == [(1, "committed by the release")]


def test_autocommit(engine: Engine, recorder: Recorder, path: Path) -> None:
    """Under AUTOCOMMIT each row comes out with its statement and survives the rollback."""
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        add(session, "a")
        assert recorder.names() == ["a"]
        session.rollback()
    assert recorder.replayed() == rows(path)


@pytest.mark.parametrize("then", ["commit", "rollback"])
def test_database_is_locked(engine: Engine, recorder: Recorder, path: Path, then: str) -> None:
    """A COMMIT that finds the database locked has not happened yet: the next one decides."""
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM account").fetchall()
    with engine.connect() as connection:
        session = Session(connection, join_transaction_mode="rollback_only")
        add(session, "row")
        with pytest.raises(exc.OperationalError, match="locked"):
            connection.commit()
        assert recorder.kinds == ["prepare", "aborted"]
        reader.execute("COMMIT")
        (connection.connection.commit if then == "commit" else connection.rollback)()
    reader.close()
    again = ["prepare", "committed"] if then == "commit" else ["aborted"]
    assert recorder.kinds == ["prepare", "aborted", *again]
    assert recorder.replayed() == rows(path)


def test_dropped_connection(engine: Engine, recorder: Recorder, path: Path) -> None:
    """A detached connection that is dropped leaves nothing in the bracket."""
    connection = engine.connect()
    connection.detach()
    session = Session(connection, join_transaction_mode="rollback_only")
    add(session, "lost")
    del connection, session
    gc.collect()
    assert recorder.names() == []
    assert rows(path) == []


def test_one_connection_in_memory(capture: SQLAlchemyCapture, recorder: Recorder) -> None:
    """An in-memory database shares one connection among sessions of a thread; units stay right."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    for number in range(3):
        with Session(engine) as session:
            add(session, f"kept {number}")
            session.commit()
            add(session, "lost")
    with Session(engine) as session:
        assert [account.name for account in session.query(Account).order_by(Account.id)] == recorder.names()
    engine.dispose()


def test_aiosqlite(capture: SQLAlchemyCapture, recorder: Recorder, path: Path) -> None:
    """AsyncSession over aiosqlite."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine) as session:
            session.add(Account(name="kept"))
            await session.commit()
            session.add(Account(name="lost"))
            await session.flush()
            await session.rollback()
        await engine.dispose()

    asyncio.run(main())
    assert recorder.ends == ["committed", "aborted"]
    assert recorder.replayed() == rows(path)
