"""AUTOCOMMIT: each statement's rows come out by themselves, also those of a flush that fails half-way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, exc, text
from sqlalchemy.orm import Session

from otel_activity import semconv
from tests.capture.support import Account, Note, Scene, add, hear_last_words, lose_a_statement

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


@pytest.fixture(params=["engine", "options", "connection"])
def autocommit(request: pytest.FixtureRequest, scene: Scene, driver: str) -> Engine:
    """AUTOCOMMIT as an engine's argument, as its option, and as an option of its connections."""
    if request.param == "engine":
        return scene.engine(driver, isolation_level="AUTOCOMMIT")
    if request.param == "options":
        return scene.engine(driver).execution_options(isolation_level="AUTOCOMMIT")
    return scene.engine(driver, execution_options={"isolation_level": "AUTOCOMMIT"})


def test_statement_by_statement(scene: Scene, autocommit: Engine) -> None:
    """Rows come out with their statement, each under its own transaction id, and survive rollback."""
    with Session(autocommit) as session:
        account = add(session, "a")
        assert scene.recorder.names() == ["a"]
        account.name = "b"
        session.flush()
        assert scene.recorder.names() == ["a", "b"]
        session.commit()
        session.delete(account)
        add(session, "c")
        session.rollback()
    assert len(set(scene.recorder.transactions())) == 4
    scene.check()


def test_connection_level(scene: Scene, driver: str) -> None:
    """AUTOCOMMIT for one checkout does not outlive it."""
    engine = scene.engine(driver, pool_size=1, max_overflow=0)
    with Session(engine) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        add(session, "kept")
        session.rollback()
    with Session(engine) as session:
        add(session, "lost")
        session.rollback()
    assert scene.recorder.names() == ["kept"]
    scene.check()


def test_swallowed_error(scene: Scene, autocommit: Engine) -> None:
    """Under AUTOCOMMIT an error fails its statement only."""
    with Session(autocommit) as session:
        add(session, "a")
        with pytest.raises(exc.DataError):
            session.execute(text("select 1/0"))
        add(session, "b")
        session.commit()
    assert scene.recorder.names() == ["a", "b"]
    scene.check()


def check_certain(scene: Scene) -> None:
    """Rows that no undecided event speaks of are exactly as the committed events say."""
    doubtful = {int(found.attributes[semconv.ENTITY_ID]) for found in scene.recorder.doubtful}
    recorded, stored = scene.recorder.replayed(), scene.ask("rows")
    assert [row for row in recorded if row[0] not in doubtful] == [
        row for row in stored if row[0] not in doubtful
    ]


def three(session: Session) -> list[Account]:
    accounts = [Account(name=name) for name in ("a", "b", "c")]
    session.add_all(accounts)
    session.commit()
    for account in accounts:
        assert account.id
    return accounts


def spoil_second(accounts: list[Account]) -> None:
    for account, name in zip(accounts, ("a2", "forbidden", "c2"), strict=True):
        account.name = name


def spoil_insert(accounts: list[Account]) -> None:
    accounts[0].name = "a2"
    session = Session.object_session(accounts[0])
    assert session is not None
    session.add(Account(name="forbidden"))


def spoil_explicit_key(accounts: list[Account]) -> None:
    session = Session.object_session(accounts[0])
    assert session is not None
    session.add_all([Account(id=10, name="kept"), Account(id=10_000_000_000, name="out of range")])


def spoil_other_table(accounts: list[Account]) -> None:
    accounts[2].name = "c2"
    session = Session.object_session(accounts[0])
    assert session is not None
    session.add(Note(body="forbidden"))


SPOILERS = [spoil_second, spoil_insert, spoil_explicit_key, spoil_other_table]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_flush_that_fails(scene: Scene, autocommit: Engine, spoil: Callable[[list[Account]], None]) -> None:
    """What a failing flush had written before its error was committed, and comes out."""
    with Session(autocommit, expire_on_commit=False) as session:
        spoil(three(session))
        with pytest.raises(exc.DBAPIError):
            session.commit()
        session.rollback()
    check_certain(scene)
    if autocommit.dialect.driver == "psycopg":
        assert scene.recorder.doubtful == []


def test_flush_that_fails_in_python(scene: Scene, autocommit: Engine) -> None:
    """A step whose rows were written, but which an application's hook then broke off, comes out too."""

    def boom(*_: Any) -> None:
        raise ZeroDivisionError

    with Session(autocommit) as session:
        event.listen(Account, "after_insert", boom, propagate=True)
        try:
            session.add(Account(name="written"))
            with pytest.raises(ZeroDivisionError):
                session.flush()
            session.rollback()
        finally:
            event.remove(Account, "after_insert", boom)
    assert scene.recorder.names() == ["written"]
    scene.check()


def test_stale_row(scene: Scene, autocommit: Engine) -> None:
    """An UPDATE that found no row makes no event, even if others of the same flush found theirs."""
    with Session(autocommit, expire_on_commit=False) as session:
        accounts = three(session)
        with Session(autocommit) as other:
            other.delete(other.get(Account, accounts[0].id))
            other.commit()
        for account in accounts:
            account.name += "2"
        with pytest.raises(Exception, match="expected to update"):
            session.flush()
        session.rollback()
    check_certain(scene)
    assert {"b2", "c2"} <= {*scene.recorder.names(), *scene.recorder.doubtful_names()}


def test_connection_lost_in_a_statement(scene: Scene, autocommit: Engine) -> None:
    """A statement whose answer was lost with the connection comes out as unknown."""
    lose_a_statement(scene, autocommit, exc.DBAPIError)


def test_the_last_words_of_a_server(scene: Scene, autocommit: Engine) -> None:
    """A server that goes down says so while its connection still looks open: nobody knows what it did."""
    hear_last_words(scene, autocommit)
