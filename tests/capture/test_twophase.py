"""Two-phase sessions: the units wait under their global ids until COMMIT PREPARED."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import event, exc
from sqlalchemy.orm import Session

from tests.capture.support import Account, Note, Scene, add, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine


@pytest.fixture(autouse=True)
def _nothing_prepared(scene: Scene) -> Iterator[None]:
    """A prepared transaction that a test left behind would lock the tables for all that follow."""
    yield
    for dsn in (scene.dsn, scene.other_dsn):
        with psycopg.connect(dsn, autocommit=True) as connection:
            for (gid,) in connection.execute(
                "select gid from pg_prepared_xacts where database = current_database()"
            ).fetchall():
                connection.execute(psycopg.sql.SQL("ROLLBACK PREPARED {}").format(psycopg.sql.Literal(gid)))


def both(scene: Scene, driver: str) -> tuple[Engine, Engine]:
    return scene.engine(driver), scene.engine(driver, other=True)


def two_phase(engines: tuple[Engine, Engine]) -> Session:
    return Session(binds={Account: engines[0], Note: engines[1]}, twophase=True)


def check_both(scene: Scene) -> None:
    scene.check()
    assert scene.recorder.replayed("note", "body") == scene.ask("notes", other=True)


def test_commit(scene: Scene, driver: str) -> None:
    """Both databases are prepared before either is committed; each has its unit."""
    with two_phase(both(scene, driver)) as session:
        session.add_all([Account(name="here"), Note(body="there")])
        session.commit()
    assert scene.recorder.kinds == ["prepare", "prepare", "committed", "committed"]
    assert len(set(scene.recorder.transactions())) == 2
    check_both(scene)


def test_rollback(scene: Scene, driver: str) -> None:
    """A rollback before PREPARE TRANSACTION aborts both."""
    with two_phase(both(scene, driver)) as session:
        session.add_all([Account(name="here"), Note(body="there")])
        session.flush()
        session.rollback()
    assert scene.recorder.kinds == ["aborted", "aborted"]
    check_both(scene)


@pytest.mark.filterwarnings("ignore:transaction already deassociated")  # SQLAlchemy's, about itself
def test_second_prepare_refused(scene: Scene, driver: str) -> None:
    """When one database refuses to prepare, the prepared other one is rolled back: both abort."""
    engines = both(scene, driver)
    preparing: list[Connection] = []

    def spoil(connection: Connection, xid: Any) -> None:
        preparing.append(connection)
        if len(preparing) == 2:
            connection.exec_driver_sql("insert into note (body) values ('refused')")

    for engine in engines:
        event.listen(engine, "prepare_twophase", spoil)
    with two_phase(engines) as session:
        session.add_all([Account(name="here"), Note(body="there")])
        # psycopg then sends ROLLBACK PREPARED for what was never prepared, and that error gets out instead.
        with pytest.raises(exc.DBAPIError, match=r"refused at COMMIT|does not exist"):
            session.commit()
        session.invalidate()
    for engine in engines:
        with engine.connect() as connection:
            for gid in connection.recover_twophase():
                with contextlib.suppress(exc.DBAPIError):  # of the other database
                    connection.rollback_prepared(gid, recover=True)
    assert sorted(scene.recorder.ends) == ["aborted", "aborted"]
    assert scene.ask("prepared") == []
    check_both(scene)


def test_rollback_after_prepare(scene: Scene, driver: str) -> None:
    """ROLLBACK PREPARED aborts the waiting unit."""
    with scene.engine(driver).connect() as connection:
        transaction = connection.begin_twophase("rolled-back")
        session = Session(connection, join_transaction_mode="rollback_only")
        add(session, "lost")
        transaction.prepare()
        assert len(scene.ask("prepared")) == 1
        assert scene.recorder.kinds == ["prepare"]
        transaction.rollback()
    assert scene.recorder.ends == ["aborted"]
    scene.check()


def test_one_phase_commit(scene: Scene, driver: str) -> None:
    """A two-phase transaction that is committed without being prepared is an ordinary commit."""
    with scene.engine(driver).connect() as connection:
        transaction = connection.begin_twophase()
        add(Session(connection, join_transaction_mode="rollback_only"), "kept")
        transaction.commit()
    assert scene.recorder.kinds == ["prepare", "committed"]
    scene.check()


def test_in_error(scene: Scene, driver: str) -> None:
    """PREPARE TRANSACTION of a transaction in error prepares nothing, and nothing comes out."""
    with scene.engine(driver).connect() as connection:
        transaction = connection.begin_twophase("in-error")
        session = Session(connection, join_transaction_mode="rollback_only")
        add(session, "lost")
        with pytest.raises(exc.DataError):
            run(session, "select 1/0")
        transaction.prepare()
        with pytest.raises(exc.ProgrammingError, match="does not exist"):
            transaction.commit()
        connection.invalidate()
    assert scene.recorder.kinds == ["aborted"]
    scene.check()


def prepared_and_lost(scene: Scene, driver: str, gid: str, name: str) -> Engine:
    """Prepare a transaction, then lose the connection before COMMIT PREPARED."""
    engine = scene.engine(driver)
    with engine.connect() as connection:
        transaction = connection.begin_twophase(gid)
        add(Session(connection, join_transaction_mode="rollback_only"), name)
        transaction.prepare()
        connection.invalidate()
    return engine


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_recover(scene: Scene, driver: str, outcome: str) -> None:
    """A transaction that was prepared and lost is finished from another connection, and its unit with it."""
    engine = prepared_and_lost(scene, driver, "recovered", "row")
    assert scene.recorder.kinds == ["prepare"]
    with engine.connect() as connection:
        assert "recovered" in connection.recover_twophase()
        getattr(connection, f"{outcome}_prepared")("recovered", recover=True)
    assert scene.recorder.ends == ["committed" if outcome == "commit" else "aborted"]
    scene.check()


@pytest.mark.parametrize("outcome", ["COMMIT", "ROLLBACK"])
def test_finished_by_text(scene: Scene, driver: str, outcome: str) -> None:
    """COMMIT PREPARED and ROLLBACK PREPARED in a text find the unit by its id."""
    prepared_and_lost(scene, driver, "by text", "row")
    engine = scene.engine(driver, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"{outcome.lower()} prepared 'by text'")
    assert scene.recorder.ends == ["committed" if outcome == "COMMIT" else "aborted"]
    scene.check()


def test_prepared_by_text(scene: Scene, driver: str) -> None:
    """PREPARE TRANSACTION in a text makes the unit wait as well."""
    engine = scene.engine(driver)
    with Session(engine) as session:
        add(session, "kept")
        run(session, "prepare transaction 'made by text'")
        session.rollback()
    assert scene.recorder.kinds == ["prepare"]
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("COMMIT PREPARED 'made by text'")
    assert scene.recorder.ends == ["committed"]
    scene.check()


def test_commit_prepared_fails(scene: Scene, driver: str) -> None:
    """COMMIT PREPARED of what somebody else finished meanwhile is undecided: nobody here knows how."""
    engine = prepared_and_lost(scene, driver, "finished elsewhere", "row")
    with psycopg.connect(scene.dsn, autocommit=True) as other:
        other.execute("ROLLBACK PREPARED 'finished elsewhere'")
    with engine.connect() as connection, pytest.raises(Exception, match="does not exist"):
        connection.commit_prepared("finished elsewhere", recover=True)
    assert scene.recorder.ends == ["undecided"]
    scene.check()


def test_connection_lost_in_commit_prepared(scene: Scene, driver: str) -> None:
    """A connection that is lost under COMMIT PREPARED leaves the unit undecided."""
    engine = scene.engine(driver)
    with engine.connect() as connection:
        transaction = connection.begin_twophase("lost")
        add(Session(connection, join_transaction_mode="rollback_only"), "row")
        pid = connection.exec_driver_sql("select pg_backend_pid()").scalar()
        transaction.prepare()
        scene.ask("terminate", pid=pid)
        with pytest.raises(exc.DBAPIError):
            transaction.commit()
    assert scene.recorder.ends == ["undecided"]
