"""Transaction control that goes past SQLAlchemy: in SQL texts, and on the driver's connection."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import exc, text
from sqlalchemy.orm import Session

from otel_activity.capture import control
from otel_activity.capture.control import Script, Step, Verb
from tests.capture.support import Account, Scene, add, changes_of, run

COMMITS = [
    "COMMIT",
    "commit",
    "  \n End Transaction",
    "COMMIT WORK;",
    "-- the day's end\n/* it was /* a long */ one */ commit",
    "COMMIT AND CHAIN",
    "commit and no chain",
]
ROLLBACKS = ["ROLLBACK", "abort", "/* no */ rollback work", "ROLLBACK AND CHAIN", "Abort Transaction ;"]


@pytest.mark.parametrize("statement", COMMITS)
@pytest.mark.parametrize("direct", [False, True])
def test_commit_as_text(scene: Scene, driver: str, statement: str, direct: bool) -> None:
    """A COMMIT in a text releases; the session's rollback afterwards takes nothing back."""
    with Session(scene.engine(driver)) as session:
        add(session, "kept")
        connection = session.connection()
        connection.exec_driver_sql(statement) if direct else connection.execute(text(statement))
        assert scene.recorder.names() == ["kept"]
        session.rollback()
    scene.check()


@pytest.mark.parametrize("statement", ROLLBACKS)
def test_rollback_as_text(scene: Scene, driver: str, statement: str) -> None:
    """A ROLLBACK in a text aborts; the session's commit afterwards brings nothing back."""
    with Session(scene.engine(driver)) as session:
        add(session, "lost")
        run(session, statement)
        session.commit()
    assert scene.recorder.kinds == ["aborted"]
    scene.check()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_after_a_raw_commit(scene: Scene, driver: str, end: str) -> None:
    """What follows a raw COMMIT is a transaction of its own, or, where the driver does not begin one
    (psycopg2), committed statement by statement: either way what comes out is what the table holds."""
    with Session(scene.engine(driver)) as session:
        add(session, "first")
        run(session, "COMMIT")
        add(session, "second")
        add(session, "third")
        getattr(session, end)()
    assert scene.recorder.names()[0] == "first"
    assert len(set(scene.recorder.transactions())) >= min(2, len(scene.recorder.events))
    assert scene.recorder.doubtful == []
    scene.check()


def test_chained_transaction(scene: Scene, driver: str) -> None:
    """COMMIT AND CHAIN begins a transaction at once, with its own id and its own fate."""
    with Session(scene.engine(driver)) as session:
        add(session, "one")
        run(session, "COMMIT AND CHAIN")
        add(session, "two")
        run(session, "ROLLBACK AND CHAIN")
        add(session, "three")
        session.commit()
    assert scene.recorder.names() == ["one", "three"]
    assert len(set(scene.recorder.transactions())) == 2
    scene.check()


def test_savepoints_as_text(scene: Scene, driver: str) -> None:
    """SAVEPOINT, ROLLBACK TO and RELEASE in texts, names folded or quoted as the server does."""
    with Session(scene.engine(driver)) as session:
        add(session, "a")
        run(session, "savepoint Outer1")
        add(session, "b")
        run(session, 'SAVEPOINT "Mixed ""Case"""')
        add(session, "c")
        run(session, 'Rollback Work To "Mixed ""Case"""')
        add(session, "d")
        session.connection().exec_driver_sql("/* ; */ SAVEPOINT plain")
        add(session, "e")
        run(session, "release plain")
        run(session, "ROLLBACK TRANSACTION TO SAVEPOINT OUTER1")
        add(session, "f")
        session.commit()
    assert scene.recorder.names() == ["a", "f"]
    scene.check()


def test_raw_commit_in_error(scene: Scene, driver: str) -> None:
    """A raw COMMIT of a transaction in error commits nothing."""
    with Session(scene.engine(driver)) as session:
        add(session, "lost")
        with pytest.raises(exc.DataError):
            run(session, "select 1/0")
        run(session, "COMMIT")
        session.commit()
    assert scene.recorder.kinds == ["aborted"]
    scene.check()


def test_raw_commit_refused(scene: Scene, driver: str) -> None:
    """A raw COMMIT that a deferred constraint refuses aborts the unit."""
    with Session(scene.engine(driver)) as session:
        add(session, "refused")
        with pytest.raises(exc.IntegrityError):
            run(session, "COMMIT")
        session.rollback()
    assert scene.recorder.ends == ["aborted"]
    scene.check()


SCRIPTS = [
    "select 1; COMMIT",
    "COMMIT; select 1",
    "ROLLBACK; select 1",
    "commit; begin; savepoint a",
    "SAVEPOINT a; select ';COMMIT'; RELEASE a",
    "savepoint a; rollback to a; commit",
    "rollback; begin; commit",
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_several_statements(scene: Scene, driver: str, script: str, end: str) -> None:
    """A text of several statements acts as they do one after the other; no doubt where there is none."""
    with Session(scene.engine(driver)) as session:
        add(session, "before")
        session.connection().exec_driver_sql(script)
        getattr(session, end)()
    settled = scene.recorder.replayed() + [
        (found, name) for found, name in enumerate(scene.recorder.doubtful_names(), 1)
    ]
    assert settled == scene.ask("rows")
    assert bool(scene.recorder.doubtful) == (script == "savepoint a; rollback to a; commit")


def test_failed_script(scene: Scene, driver: str) -> None:
    """A text with a COMMIT inside that fails says nothing about the COMMIT: undecided, never lost."""
    with Session(scene.engine(driver)) as session:
        add(session, "in fact committed")
        with pytest.raises(exc.DataError):
            session.connection().exec_driver_sql("COMMIT; select 1/0")
        session.rollback()
    assert scene.recorder.ends == ["undecided"]
    assert scene.recorder.doubtful_names() == ["in fact committed"]


NO_CONTROL = [
    "select ';COMMIT'",
    "select 'it''s; COMMIT' -- ; commit\n",
    "select $$;COMMIT;$$ as a, $x$ ; rollback ; $x$ as b /* ; abort; */",
    "select E'\\'; COMMIT; ' as end",
    "DO $body$ BEGIN PERFORM 1; END $body$",
    "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END",
]


@pytest.mark.parametrize("statement", NO_CONTROL)
def test_no_transaction_control(scene: Scene, driver: str, statement: str) -> None:
    """Literals, comments and function bodies that contain the words do not end anything."""
    with Session(scene.engine(driver)) as session:
        add(session, "one")
        session.connection().exec_driver_sql(statement.replace("%", "%%"))
        assert scene.recorder.calls == []
        add(session, "two")
        session.commit()
    assert scene.recorder.names() == ["one", "two"]
    assert len(set(scene.recorder.transactions())) == 1
    scene.check()


def test_reading_is_linear() -> None:
    """A text made to confuse the reader (thousands of open comments and quotes) is read in one go."""
    for hostile in ("/* */" * 20_000, "/*" * 20_000, "'" * 19_999, "$a$" * 9_999, "--\n" * 20_000):
        assert control.read(hostile + " commit") in (
            Script((Step(Verb.COMMIT),), alone=True),
            Script((), False),
        )


# --- on the driver's connection --------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_pooled_connection(scene: Scene, driver: str, end: str) -> None:
    """commit() and rollback() on the pooled DBAPI connection are seen as what they are."""
    with Session(scene.engine(driver)) as session:
        add(session, "row")
        getattr(session.connection().connection, end)()
        assert scene.recorder.ends == ["committed" if end == "commit" else "aborted"]
        session.commit()
    assert len(scene.recorder.ends) == 1
    scene.check()


def raw_of(session: Session, attribute: str) -> Any:
    return getattr(session.connection().connection, attribute)


@pytest.mark.parametrize("attribute", ["dbapi_connection", "driver_connection"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("then", ["commit", "rollback", "select"])
def test_driver_connection(scene: Scene, driver: str, attribute: str, end: str, then: str) -> None:
    """commit() or rollback() on the driver's own connection is unseen: the events come out as unknown,
    they neither vanish nor pass for committed, and what follows has its own id and its own fate."""
    with Session(scene.engine(driver)) as session:
        add(session, "unseen")
        getattr(raw_of(session, attribute), end)()
        if then == "select":
            assert session.scalar(text("select 1")) == 1
            add(session, "seen")
            session.commit()
        else:
            getattr(session, then)()
    assert scene.recorder.doubtful_names() == ["unseen"]
    assert scene.recorder.names() == (["seen"] if then == "select" else [])
    assert set(scene.recorder.replayed()) <= set(scene.ask("rows"))


def test_values_read_before_survive(scene: Scene, driver: str) -> None:
    """A flush that finds the transaction over still knows the values it is about to overwrite."""
    with Session(scene.engine(driver), expire_on_commit=False) as session:
        account = add(session, "v0")
        raw_of(session, "driver_connection").commit()
        account.name = "v1"
        session.commit()
    (found,) = scene.recorder.events
    assert changes_of(found)["name"] == {"before": "v0", "after": "v1"}
    assert scene.recorder.doubtful_names() == ["v0"]


def test_driver_savepoint(scene: Scene, driver: str) -> None:
    """ROLLBACK TO a savepoint that was set on the driver's cursor leaves the whole unit in doubt."""
    with Session(scene.engine(driver)) as session:
        add(session, "kept")
        raw_of(session, "driver_connection").cursor().execute("SAVEPOINT hidden")
        add(session, "lost")
        run(session, "ROLLBACK TO hidden")
        session.commit()
    assert scene.recorder.ends == ["undecided"]
    assert scene.recorder.doubtful_names() == ["kept", "lost"]


def test_isolation_level_changes(scene: Scene, driver: str) -> None:
    """Isolation levels, AUTOCOMMIT among them, may alternate on one pooled connection."""
    engine = scene.engine(driver, pool_size=1, max_overflow=0)
    for turn, level in enumerate(["AUTOCOMMIT", "SERIALIZABLE", "AUTOCOMMIT", "READ COMMITTED"]):
        with engine.connect().execution_options(isolation_level=level) as connection:
            session = Session(connection)
            add(session, f"{level} {turn}")
            connection.rollback()
    assert scene.recorder.names() == ["AUTOCOMMIT 0", "AUTOCOMMIT 2"]
    scene.check()


def test_procedure_that_commits(scene: Scene, driver: str) -> None:
    """A procedure may only commit outside of a transaction block; inside, the block fails and aborts."""
    engine = scene.engine(driver)
    with Session(engine) as session:
        add(session, "lost")
        with pytest.raises(exc.DBAPIError, match="invalid transaction termination"):
            run(session, "CALL commits_inside()")
        session.commit()
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        add(session, "kept")
        run(session, "CALL commits_inside()")
        session.rollback()
    assert scene.recorder.names() == ["kept"]
    scene.check()


# --- a BEGIN by hand under AUTOCOMMIT --------------------------------------------------------


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_begin_under_autocommit(scene: Scene, driver: str, end: str) -> None:
    """After a BEGIN by hand an AUTOCOMMIT connection is in a transaction: its end decides."""
    with scene.engine(driver, isolation_level="AUTOCOMMIT").connect() as connection:
        session = Session(connection)
        add(session, "by itself")
        assert scene.recorder.names() == ["by itself"]
        connection.exec_driver_sql("BEGIN")
        add(session, "inside")
        session.add(Account(name="inside too"))
        session.flush()
        assert scene.recorder.names() == ["by itself"]
        connection.exec_driver_sql(end)
        add(session, "by itself again")
        connection.rollback()
    inside = ["inside", "inside too"] if end == "COMMIT" else []
    assert scene.recorder.names() == ["by itself", *inside, "by itself again"]
    scene.check()


def test_begin_under_autocommit_and_sqlalchemy_commit(scene: Scene, driver: str) -> None:
    """There psycopg's commit() commits and psycopg2's sends nothing: what comes out is what happened."""
    with scene.engine(driver, isolation_level="AUTOCOMMIT").connect() as connection:
        session = Session(connection, join_transaction_mode="control_fully")
        connection.exec_driver_sql("BEGIN")
        add(session, "inside")
        session.commit()
        assert scene.recorder.replayed() == scene.ask("rows")
        connection.exec_driver_sql("ROLLBACK")
    scene.check()
