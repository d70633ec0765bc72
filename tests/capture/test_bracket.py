"""Commit and rollback of synchronous sessions: what was committed comes out, once, and nothing else."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, event, exc, insert, text, update
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool, StaticPool

from otel_activity import semconv
from tests.capture.support import Account, Note, Scene, add, changes_of, fail_in_a_savepoint, run, wait_for

if TYPE_CHECKING:
    from sqlalchemy import Connection


# --- the ways to commit ----------------------------------------------------------------------


def test_session_commit(scene: Scene, driver: str) -> None:
    """A plain session's committed insert, update and delete come out in order with one id a transaction."""
    with Session(scene.engine(driver)) as session:
        account = add(session, "a")
        account.name = "b"
        session.commit()
        session.delete(account)
        session.commit()
    names = [found.name for found in scene.recorder.events]
    assert names == [semconv.ENTITY_CREATED, semconv.ENTITY_UPDATED, semconv.ENTITY_DELETED]
    first, second, third = scene.recorder.transactions()
    assert first == second != third
    assert scene.recorder.kinds == ["prepare", "committed", "prepare", "committed"]
    scene.check()


def test_scoped_session(scene: Scene, driver: str) -> None:
    """A scoped_session is captured like any session."""
    registry = scoped_session(sessionmaker(scene.engine(driver)))
    registry.add(Account(name="scoped"))
    registry.commit()
    registry.add(Account(name="gone"))
    registry.flush()
    registry.remove()
    assert scene.recorder.names() == ["scoped"]
    scene.check()


def test_context_managers(scene: Scene, driver: str) -> None:
    """sessionmaker.begin() and Session.begin() release at the end of their block, and not before."""
    factory = sessionmaker(scene.engine(driver))
    with factory.begin() as session:
        add(session, "one")
        assert scene.recorder.calls == []
    assert scene.recorder.names() == ["one"]
    with factory() as session, session.begin():
        add(session, "two")
    assert scene.recorder.names() == ["one", "two"]
    scene.check()


def test_exception_in_the_block(scene: Scene, driver: str) -> None:
    """An exception inside the block rolls back, and nothing comes out."""
    factory = sessionmaker(scene.engine(driver))
    with pytest.raises(ZeroDivisionError), factory.begin() as session:  # noqa: PT012 - the block is the point
        add(session, "lost")
        raise ZeroDivisionError
    assert scene.recorder.kinds == ["aborted"]
    scene.check()


def test_commit_inside_the_block(scene: Scene, driver: str) -> None:
    """A commit inside the block releases its part; what follows has another transaction id."""
    with Session(scene.engine(driver)) as session:
        add(session, "one")
        session.commit()
        add(session, "two")
        session.commit()
        add(session, "three")
    assert scene.recorder.names() == ["one", "two"]
    assert len(set(scene.recorder.transactions())) == 2
    scene.check()


def test_several_flushes(scene: Scene, driver: str) -> None:
    """Each flush of one transaction gives its own event, in order, under one transaction id."""
    with Session(scene.engine(driver)) as session:
        account = add(session, "v0")
        for number in range(1, 6):
            account.name = f"v{number}"
            session.flush()
        session.commit()
    assert scene.recorder.names() == [f"v{number}" for number in range(6)]
    assert len(set(scene.recorder.transactions())) == 1
    befores = [changes_of(found)["name"].get("before") for found in scene.recorder.events]
    assert befores == [None, "v0", "v1", "v2", "v3", "v4"]
    scene.check()


def test_core_statements_do_not_break_the_unit(scene: Scene, driver: str) -> None:
    """Core DML and bulk statements between flushes leave the captured events as they are."""
    with Session(scene.engine(driver)) as session:
        add(session, "orm")
        session.execute(insert(Note).values(body="core"))
        session.connection().execute(insert(Note), [{"body": "x"}, {"body": "y"}])
        session.execute(update(Note).where(Note.body == "x").values(body="z"))
        session.execute(delete(Note).where(Note.body == "y"))
        session.bulk_insert_mappings(Note.__mapper__, [{"body": "bulk"}])
        add(session, "orm2")
        session.commit()
    assert scene.recorder.names() == ["orm", "orm2"]
    scene.check()


def test_reading_releases_nothing(scene: Scene, driver: str) -> None:
    """A transaction that only reads makes no call at all."""
    with Session(scene.engine(driver)) as session:
        session.scalars(text("select 1")).all()
        session.commit()
    assert scene.recorder.calls == []


# --- external transactions -------------------------------------------------------------------

JOIN_MODES = ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint")


@pytest.mark.parametrize("mode", JOIN_MODES)
@pytest.mark.parametrize("outer", ["commit", "rollback"])
def test_external_transaction_session_commit(scene: Scene, driver: str, mode: Any, outer: str) -> None:
    """A session bound to a connection whose transaction is outside: the outermost COMMIT decides."""
    with scene.engine(driver).connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode=mode) as session:
            add(session, "inner")
            session.commit()
        fully = mode == "control_fully"
        assert scene.recorder.names() == (["inner"] if fully else [])
        if transaction.is_active:
            getattr(transaction, outer)()
    assert scene.recorder.names() == (["inner"] if fully or outer == "commit" else [])
    scene.check()


@pytest.mark.parametrize("mode", JOIN_MODES)
@pytest.mark.parametrize("outer", ["commit", "rollback"])
@pytest.mark.parametrize("nested", [False, True])
def test_external_transaction_session_rollback(
    scene: Scene, driver: str, mode: Any, outer: str, nested: bool
) -> None:
    """A session that rolls back inside an external transaction takes away what that mode rolls back."""
    with scene.engine(driver).connect() as connection:
        transaction = connection.begin()
        if nested:
            connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            add(session, "inner")
            session.rollback()
        if transaction.is_active:
            with Session(connection, join_transaction_mode="rollback_only") as session:
                add(session, "after")
                session.commit()
            getattr(transaction, outer)()
    scene.check()


def test_engine_begin(scene: Scene, driver: str) -> None:
    """engine.begin() with sessions inside releases at the end of the block, with one id for all of them."""
    with scene.engine(driver).begin() as connection:
        for name in ("one", "two"):
            with Session(bind=connection) as session:
                add(session, name)
                session.commit()
        assert scene.recorder.events == []
    assert scene.recorder.names() == ["one", "two"]
    assert len(set(scene.recorder.transactions())) == 1
    scene.check()


# --- two databases ---------------------------------------------------------------------------


def test_two_databases_have_two_units(scene: Scene, driver: str) -> None:
    """One session over two databases makes two units with different transaction ids and databases."""
    with Session(binds={Account: scene.engine(driver), Note: scene.engine(driver, other=True)}) as session:
        session.add_all([Account(name="here"), Note(body="there")])
        session.commit()
    assert scene.recorder.kinds == ["prepare", "committed"] * 2
    assert len(set(scene.recorder.transactions())) == 2
    assert len({found.attributes[semconv.DB_NAMESPACE] for found in scene.recorder.events}) == 2
    scene.check()


@pytest.mark.filterwarnings("ignore:transaction already deassociated")  # SQLAlchemy's, about itself
def test_second_database_refuses(scene: Scene, driver: str) -> None:
    """When the second COMMIT fails, the first database's changes stay committed and are released."""
    engines = [scene.engine(driver), scene.engine(driver, other=True)]
    committing: list[Connection] = []

    def spoil(connection: Connection) -> None:
        """SQLAlchemy commits in no particular order: whichever comes second fails."""
        committing.append(connection)
        if len(committing) == 2:
            connection.exec_driver_sql("insert into note (body) values ('refused')")

    for engine in engines:
        event.listen(engine, "commit", spoil)
    with Session(binds={Account: engines[0], Note: engines[1]}) as session:
        session.add_all([Account(name="here"), Note(body="there")])
        with pytest.raises(exc.IntegrityError, match="refused at COMMIT"):
            session.commit()
        session.rollback()
    kept, refused = scene.recorder.calls[1], scene.recorder.calls[3]
    assert (kept.kind, refused.kind) == ("committed", "aborted")
    assert kept.transaction_id != refused.transaction_id
    assert scene.recorder.replayed("note", "body") == scene.ask("notes", other=True)
    scene.check()


# --- COMMIT fails ----------------------------------------------------------------------------


def test_deferred_constraint(scene: Scene, driver: str) -> None:
    """A deferred constraint that fails at COMMIT aborts the unit; the session goes on afterwards."""
    with Session(scene.engine(driver)) as session:
        add(session, "refused")
        with pytest.raises(exc.IntegrityError):
            session.commit()
        session.rollback()
        add(session, "fine")
        session.commit()
    assert scene.recorder.ends == ["aborted", "committed"]
    scene.check()


def test_serialization_failure(scene: Scene, driver: str) -> None:
    """A transaction that loses a serialization conflict aborts, its rival commits."""
    engine = scene.engine(driver, isolation_level="SERIALIZABLE")
    with Session(engine) as first, Session(engine) as second:
        for session, name in ((first, "x"), (second, "y")):
            session.query(Account).filter(Account.name != "zzz").count()
            add(session, name)
        first.commit()
        with pytest.raises(exc.OperationalError):
            second.commit()
        second.rollback()
    assert scene.recorder.ends == ["committed", "aborted"]
    scene.check()


def test_killed_before_commit(scene: Scene, driver: str) -> None:
    """A connection that was killed before COMMIT was sent leaves the fate open; the row is not there."""
    with Session(scene.engine(driver)) as session:
        add(session, "lost")
        pid = session.scalar(text("select pg_backend_pid()"))
        scene.ask("terminate", pid=pid)
        with pytest.raises(exc.DBAPIError):
            session.commit()
        session.rollback()
    assert scene.recorder.ends == ["undecided"]
    scene.check()


def test_killed_during_commit(scene: Scene, driver: str) -> None:
    """A connection that is terminated while COMMIT runs is undecided, with the error's type."""
    with Session(scene.engine(driver)) as session:
        add(session, "slow")
        thread = scene.when_asleep("terminate")
        with pytest.raises(exc.DBAPIError):
            session.commit()
        thread.join()
        session.rollback()
    assert scene.recorder.ends == ["undecided"]
    (found,) = scene.recorder.doubtful
    assert found.attributes[semconv.COMMIT] == "unknown"
    assert found.attributes[semconv.ERROR_TYPE]
    scene.check()


def test_cancelled_during_commit(scene: Scene, driver: str) -> None:
    """A COMMIT that the server cancelled in a deferred trigger is certainly aborted."""
    with Session(scene.engine(driver)) as session:
        add(session, "slow")
        thread = scene.when_asleep("cancel")
        with pytest.raises(exc.OperationalError):
            session.commit()
        thread.join()
        session.rollback()
    assert scene.recorder.ends == ["aborted"]
    scene.check()


def test_swallowed_error(scene: Scene, driver: str) -> None:
    """After a failed statement the server turns COMMIT into ROLLBACK without an error: nothing comes out."""
    with Session(scene.engine(driver)) as session:
        add(session, "lost")
        with pytest.raises(exc.DataError):
            run(session, "select 1/0")
        session.connection().commit()
    assert scene.recorder.kinds == ["aborted"]
    scene.check()


def test_swallowed_error_of_the_driver(scene: Scene, driver: str) -> None:
    """The same when the statement failed on the driver's own cursor, unseen by SQLAlchemy."""
    with Session(scene.engine(driver)) as session:
        add(session, "lost")
        raw: Any = session.connection().connection.driver_connection
        with pytest.raises(Exception, match="division by zero"):
            raw.cursor().execute("select 1/0")
        session.commit()
    assert scene.recorder.kinds == ["aborted"]
    scene.check()


def test_swallowed_error_in_a_savepoint(scene: Scene, driver: str) -> None:
    """An error inside a savepoint that was rolled back costs only the savepoint's events."""
    fail_in_a_savepoint(scene, scene.engine(driver), exc.IntegrityError)


# --- connections come and go -----------------------------------------------------------------


def test_close_without_commit(scene: Scene, driver: str) -> None:
    """session.close() without commit releases nothing, and the pool's next borrower inherits nothing."""
    engine = scene.engine(driver, pool_size=1, max_overflow=0)
    session = Session(engine)
    add(session, "lost")
    session.close()
    with Session(engine) as session:
        add(session, "kept")
        session.commit()
    assert scene.recorder.names() == ["kept"]
    scene.check()


def test_garbage_collected_session(scene: Scene, driver: str) -> None:
    """A session that is dropped without close is rolled back by the pool, and nothing comes out."""
    engine = scene.engine(driver, pool_size=1, max_overflow=0)
    session = Session(engine)
    add(session, "lost")
    del session
    gc.collect()
    with Session(engine) as session:
        add(session, "kept")
        session.commit()
    assert scene.recorder.names() == ["kept"]
    assert scene.recorder.kinds[0] == "aborted"
    scene.check()


def test_reset_commit(scene: Scene, driver: str) -> None:
    """A pool that commits on return commits what the driver's connection holds, and it comes out."""
    engine = scene.engine(driver, pool_reset_on_return="commit", pool_size=1)
    fairy = engine.raw_connection()
    with engine.connect() as connection, Session(connection) as session:
        add(session, "committed first")
        connection.commit()
    fairy.close()
    connection = engine.connect()
    session = Session(connection, join_transaction_mode="rollback_only")
    add(session, "left to the pool")
    del session
    del connection
    gc.collect()
    assert scene.recorder.names() == ["committed first", "left to the pool"]
    scene.check()


def test_pool_without_reset(scene: Scene, driver: str) -> None:
    """A pool that does not reset hands an open transaction on; whoever commits, commits all of it."""
    engine = scene.engine(driver, pool_reset_on_return=None, pool_size=1, max_overflow=0)
    session = Session(engine)
    add(session, "left open")
    del session
    gc.collect()
    with Session(engine) as session:
        add(session, "next")
        session.commit()
    assert scene.recorder.names() == ["left open", "next"]
    scene.check()


def test_invalidate(scene: Scene, driver: str) -> None:
    """connection.invalidate() throws the transaction away."""
    with Session(scene.engine(driver)) as session:
        add(session, "lost")
        session.connection().invalidate()
        session.rollback()
        add(session, "kept")
        session.commit()
    assert scene.recorder.names() == ["kept"]
    scene.check()


def detached(scene: Scene, driver: str) -> tuple[Connection, Session]:
    connection = scene.engine(driver).connect()
    connection.detach()
    return connection, Session(connection, join_transaction_mode="rollback_only")


def test_detached_and_committed(scene: Scene, driver: str) -> None:
    """A detached connection is captured like any other."""
    connection, session = detached(scene, driver)
    add(session, "kept")
    connection.commit()
    connection.close()
    assert scene.recorder.names() == ["kept"]
    scene.check()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # psycopg says that it was dropped, as it should
def test_detached_and_dropped(scene: Scene, driver: str) -> None:
    """The bracket does not keep a connection alive that was detached and dropped with a transaction open."""
    connection, session = detached(scene, driver)
    add(session, "lost")
    gone = weakref.ref(connection.connection.dbapi_connection)
    assert len(scene.bracket.open) == 1
    del connection, session
    gc.collect()
    assert gone() is None
    assert scene.bracket.open == {}
    wait_for(lambda: not scene.ask("rows"))
    scene.check()


def test_null_pool(scene: Scene, driver: str) -> None:
    """Without a pool each connection is closed; units end with it."""
    engine = scene.engine(driver, poolclass=NullPool)
    for name, commit in (("one", True), ("lost", False), ("two", True)):
        with Session(engine) as session:
            add(session, name)
            if commit:
                session.commit()
    assert scene.recorder.names() == ["one", "two"]
    scene.check()


def test_static_pool(scene: Scene, driver: str) -> None:
    """Two sessions on one DBAPI connection share its transaction, as the server sees it."""
    engine = scene.engine(driver, poolclass=StaticPool)
    with Session(engine) as first, Session(engine) as second:
        add(first, "one")
        add(second, "two")
        first.commit()
        assert scene.recorder.names() == ["one", "two"]
        second.commit()
    assert len(set(scene.recorder.transactions())) == 1
    scene.check()
