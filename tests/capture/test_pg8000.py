"""pg8000, which has words of its own for its state, and raises the server's errors as they came."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, text
from sqlalchemy.orm import Session

from otel_activity import semconv
from tests.capture.support import (
    Scene,
    add,
    fail_in_a_savepoint,
    hear_last_words,
    lose_a_statement,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


@pytest.fixture
def engine(scene: Scene) -> Engine:
    """An engine over pg8000."""
    return scene.engine("pg8000")


@pytest.fixture
def autocommit(scene: Scene) -> Engine:
    """The same under AUTOCOMMIT."""
    return scene.engine("pg8000", isolation_level="AUTOCOMMIT")


class Alarm(BaseException):
    """What a signal raises."""


@pytest.fixture
def on_signal() -> Iterator[signal.Signals]:
    """A signal that interrupts this thread."""

    def interrupt(number: int, frame: Any) -> None:
        raise Alarm

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


def test_savepoints(scene: Scene, engine: Engine) -> None:
    """A failed savepoint takes away its own entries and no others."""
    fail_in_a_savepoint(scene, engine, exc.DBAPIError)


def test_swallowed_error(scene: Scene, engine: Engine) -> None:
    """A transaction in error is rolled back by COMMIT, and nothing comes out, not even as unknown."""
    with Session(engine) as session:
        add(session, "lost")
        with pytest.raises(exc.DBAPIError, match="division by zero"):
            run(session, "select 1/0")
        with pytest.raises(Exception, match="in failed transaction block"):
            session.connection().commit()
        session.rollback()
    assert scene.recorder.kinds == ["aborted"]
    scene.check()


def test_refused_commit(scene: Scene, engine: Engine) -> None:
    """The server's SQLSTATE proves that a refused COMMIT has aborted."""
    with Session(engine) as session:
        add(session, "refused")
        with pytest.raises(exc.DBAPIError, match="refused at COMMIT"):
            session.commit()
        session.rollback()
        add(session, "fine")
        session.commit()
    assert scene.recorder.ends == ["aborted", "committed"]
    scene.check()


@pytest.mark.parametrize(("action", "end"), [("cancel", "aborted"), ("terminate", "undecided")])
def test_struck_during_commit(scene: Scene, engine: Engine, action: str, end: str) -> None:
    """A cancelled COMMIT is aborted; one whose connection was terminated leaves the fate open."""
    with Session(engine) as session:
        add(session, "slow")
        thread = scene.when_asleep(action)
        with pytest.raises(exc.DBAPIError):
            session.commit()
        thread.join()
        session.invalidate()
    assert scene.recorder.ends == [end]
    scene.check()


def test_interrupted_commit(scene: Scene, engine: Engine, on_signal: signal.Signals) -> None:
    """The driver says "in a transaction" until it has read COMMIT's answer: that proves nothing."""
    main, found = threading.get_ident(), []

    def strike() -> None:
        found.append(scene.wait_asleep())
        signal.pthread_kill(main, on_signal)

    with Session(engine) as session:
        add(session, "slow")
        thread = threading.Thread(target=strike)
        thread.start()
        with pytest.raises(Alarm):
            session.commit()
        thread.join()
        session.invalidate()
    scene.ask("terminate", pid=found[0])
    assert scene.recorder.ends == ["undecided"]
    assert scene.recorder.doubtful_names() == ["slow"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_ended_on_the_drivers_connection(scene: Scene, engine: Engine, end: str) -> None:
    """What was ended behind SQLAlchemy comes out as unknown; what follows has its own fate."""
    with Session(engine) as session:
        add(session, "unseen")
        driver: Any = session.connection().connection.driver_connection
        getattr(driver, end)()
        assert session.scalar(text("select 1")) == 1
        add(session, "seen")
        session.commit()
    assert scene.recorder.doubtful_names() == ["unseen"]
    assert scene.recorder.names() == ["seen"]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_begin_under_autocommit(scene: Scene, autocommit: Engine, end: str) -> None:
    """After a BEGIN by hand the end of that transaction decides."""
    with autocommit.connect() as connection:
        session = Session(connection)
        add(session, "by itself")
        connection.exec_driver_sql("BEGIN")
        add(session, "inside")
        assert scene.recorder.names() == ["by itself"]
        connection.exec_driver_sql(end)
        add(session, "by itself again")
        connection.rollback()
    inside = ["inside"] if end == "COMMIT" else []
    assert scene.recorder.names() == ["by itself", *inside, "by itself again"]
    scene.check()


def test_connection_lost_under_autocommit(scene: Scene, autocommit: Engine) -> None:
    """A statement whose answer was lost with the connection comes out as unknown."""
    lose_a_statement(scene, autocommit, (exc.DBAPIError, OSError))


def test_last_words_under_autocommit(scene: Scene, autocommit: Engine) -> None:
    """A server that goes down says so while its connection still looks open: nobody knows what it did."""
    hear_last_words(scene, autocommit)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_phase(scene: Scene, engine: Engine, end: str) -> None:
    """A prepared unit waits for COMMIT PREPARED or ROLLBACK PREPARED."""
    with engine.connect() as connection:
        transaction = connection.begin_twophase(f"pg8000-{end}")
        add(Session(connection, join_transaction_mode="rollback_only"), "waits")
        transaction.prepare()
        assert scene.recorder.kinds == ["prepare"]
        getattr(transaction, end)()
    assert scene.recorder.ends == ["committed" if end == "commit" else "aborted"]
    assert scene.ask("prepared") == []
    scene.check()


def test_an_error_has_its_type(scene: Scene, engine: Engine) -> None:
    """What is unknown says why."""
    with Session(engine) as session:
        add(session, "lost")
        scene.ask("terminate", pid=session.scalar(text("select pg_backend_pid()")))
        with pytest.raises((exc.DBAPIError, OSError)):
            session.commit()
        session.invalidate()
    (found,) = scene.recorder.doubtful
    assert found.attributes[semconv.COMMIT] == "unknown"
    assert found.attributes[semconv.ERROR_TYPE]
