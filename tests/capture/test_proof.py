"""The database's own id of a transaction: read with its first write, only where that is allowed."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.pq import PipelineStatus, TransactionStatus
from sqlalchemy import Engine, create_engine, exc, insert, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from otel_activity import semconv
from otel_activity.capture import ProofReader, SQLAlchemyCapture
from otel_activity.capture.transaction import Transaction
from tests.capture.support import SYNC_DRIVERS, Account, Base, Open, Recorder, Scene, url_of, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_activity.events import Proof, Unit

_REFUSED = "activity_without_proof"
_BLOCKED = (
    """SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"""
)


class Proofs(Recorder):
    """Also keeps the proof of each prepared unit."""

    def __init__(self) -> None:
        super().__init__()
        self.proofs: list[Proof | None] = []

    def prepare(self, unit: Unit) -> None:
        super().prepare(unit)
        self.proofs.append(unit.proof)


class OutOfTime(BaseException):
    """As gevent's `Timeout`: psycopg does not know it."""


@pytest.fixture
def recorder() -> Proofs:
    """Keeps what the bracket hands over, proofs too."""
    return Proofs()


@pytest.fixture(params=[0.0, 1e9], ids=["far", "near"])
def near(request: pytest.FixtureRequest) -> float:
    """Each test runs with a pipeline, and with a query of its own."""
    return float(request.param)


def own_id(session: Session) -> int:
    return int(session.scalar(text("SELECT pg_current_xact_id()::text")) or 0)


@pytest.mark.parametrize("driver", SYNC_DRIVERS)
def test_the_id_is_that_of_the_transaction(scene: Scene, recorder: Proofs, driver: str) -> None:
    """A unit carries the id that the server gave its transaction, and its events say so."""
    ids = []
    with Session(scene.engine(driver)) as session:
        for name in ("a", "b"):
            session.add(Account(name=name))
            session.flush()
            ids.append(own_id(session))
            session.commit()
    assert [proof.xid for proof in recorder.proofs if proof] == ids
    (system,) = scene.ask("system")[0]
    said = [event.attributes[semconv.DATABASE_TRANSACTION] for event in recorder.events]
    assert said == [f"{system}/1/{number}" for number in ids]
    scene.check()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_drivers_prove_too(scene: Scene, recorder: Proofs, driver: str) -> None:
    """The query goes through the adapter's cursor, and the event loop is not blocked by it."""

    async def work() -> int:
        engine = create_async_engine(url_of(scene.dsn, driver), poolclass=NullPool)
        async with AsyncSession(engine) as session:
            session.add(Account(name="a"))
            await session.flush()
            found = int(await session.scalar(text("SELECT pg_current_xact_id()::text")) or 0)
            await session.commit()
        await engine.dispose()
        return found

    number = asyncio.run(work())
    assert [proof.xid for proof in recorder.proofs if proof] == [number]
    scene.check()


@pytest.mark.parametrize("driver", ["psycopg"])
def test_a_near_server_is_asked_without_a_pipeline(
    scene: Scene, tmp_path: Path, near: float, driver: str
) -> None:
    """The statement and the query are one message to a server that is far, and two to one that is near."""
    with Session(scene.engine(driver)) as session:
        session.execute(text("SELECT 1"))  # BEGIN is sent with the first statement
        raw = session.connection().connection.dbapi_connection
        assert isinstance(raw, psycopg.Connection)
        with (tmp_path / "trace").open("wb") as trace:
            raw.pgconn.trace(trace.fileno())
            session.add(Account(name="a"))
            session.flush()
            raw.pgconn.untrace()
        session.commit()
    sent = [line.split("\t")[3] for line in (tmp_path / "trace").read_text().splitlines() if "\tF\t" in line]
    assert ("Query" in sent) is bool(near)
    scene.check()


def test_a_statement_that_fails_is_the_applications_error_and_no_more(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """The id's query, which the server skips then, makes no line in a log, however soon the error comes."""
    engine = scene.engine()
    with psycopg.connect(scene.dsn) as raw:

        def send() -> None:
            raw.execute("INSERT INTO account (id, name) VALUES (1, 'first'), (1, 'the same key')")
            readable, _, _ = select.select([raw.pgconn.socket], [], [], 60)
            assert readable, "the server has not answered"

        transaction = Transaction(id(raw), lambda: raw, "", engine.dialect, "app")
        with pytest.raises(psycopg.errors.UniqueViolation, match="account_pkey"):
            ProofReader().execute(transaction, raw, send)
        assert raw.info.transaction_status is TransactionStatus.INERROR
        assert raw.info.pipeline_status is PipelineStatus.OFF
        raw.rollback()
        assert raw.execute("SELECT 1").fetchone() == (1,)
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
@pytest.mark.parametrize("handling", [False, True])
def test_an_interruption_while_the_id_is_read_stays_what_it_is(scene: Scene, handling: bool) -> None:
    """psycopg cannot end its pipeline then; the application hears of its own interruption, not of that."""

    def ring(*_: object) -> None:
        raise OutOfTime

    def interrupt() -> None:
        with psycopg.connect(scene.dsn, autocommit=True) as looks:
            wait_for(lambda: looks.execute(_BLOCKED).fetchone())
        os.kill(os.getpid(), signal.SIGUSR1)

    def work() -> None:
        with Session(scene.engine()) as session:
            session.add(Account(name="lost"))
            session.commit()

    def while_handling() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            work()

    before = signal.signal(signal.SIGUSR1, ring)
    with psycopg.connect(scene.dsn) as blocker:
        blocker.execute("LOCK TABLE account IN EXCLUSIVE MODE")
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            with pytest.raises(OutOfTime):
                while_handling() if handling else work()
        finally:
            thread.join()
            signal.signal(signal.SIGUSR1, before)
    scene.check()


@pytest.mark.parametrize("handled", [KeyboardInterrupt, ValueError])
def test_an_error_while_an_interruption_is_handled_is_an_error(
    scene: Scene, handled: type[BaseException]
) -> None:
    """What somebody writes while he handles Ctrl-C fails as it always does."""
    with Session(scene.engine()) as session:
        try:
            raise handled
        except handled:
            session.add(Account(name="forbidden"))
            with pytest.raises(exc.IntegrityError):
                session.commit()
    scene.check()


def test_a_connection_lost_with_the_query_is_lost(scene: Scene) -> None:
    """The server goes away between the statement and the query: the error says that of the connection."""
    engine = scene.engine()
    with psycopg.connect(scene.dsn) as raw:
        transaction = Transaction(id(raw), lambda: raw, "", engine.dialect, "app")
        scene.ask("terminate", pid=raw.info.backend_pid)
        with pytest.raises(psycopg.OperationalError) as caught:
            ProofReader().read(transaction, raw)
    assert engine.dialect.is_disconnect(caught.value, raw, None)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP")
def test_other_threads_go_on_while_the_server_hangs(scene: Scene) -> None:
    """Whoever waits for the id does not keep the interpreter to itself."""
    engine = scene.engine()
    with psycopg.connect(scene.dsn) as raw:
        transaction = Transaction(id(raw), lambda: raw, "", engine.dialect, "app")
        server = raw.info.backend_pid
        raw.execute("SELECT 1")  # in a transaction
        os.kill(server, signal.SIGSTOP)
        # A process that cannot go on cannot help itself, either.
        program = f"import os, signal, time; time.sleep(20); os.kill({server}, signal.SIGCONT)"
        rescue = subprocess.Popen([sys.executable, "-c", program])
        asking = threading.Thread(target=ProofReader().read, args=(transaction, raw))
        try:
            asking.start()
            asking.join(0.2)
            assert asking.is_alive()
            assert rescue.poll() is None
        finally:
            os.kill(server, signal.SIGCONT)
            asking.join()
            rescue.kill()
            rescue.wait()


@pytest.mark.parametrize("driver", SYNC_DRIVERS)
def test_savepoints_share_the_id(scene: Scene, recorder: Proofs, driver: str) -> None:
    """An id that was read inside a savepoint, even one that is rolled back, is the whole transaction's."""
    with Session(scene.engine(driver)) as session:
        nested = session.begin_nested()
        session.add(Account(name="lost"))
        session.flush()
        nested.rollback()
        session.add(Account(name="kept"))
        session.flush()
        number = own_id(session)
        session.commit()
    assert [proof.xid for proof in recorder.proofs if proof] == [number]
    scene.check()


@pytest.mark.parametrize("driver", SYNC_DRIVERS)
def test_a_refused_statement_is_the_statements_own_error(scene: Scene, recorder: Proofs, driver: str) -> None:
    """The first write may fail although a query of ours travels with it; the next transaction is proven."""
    with Session(scene.engine(driver)) as session:
        session.add(Account(name="forbidden"))
        with pytest.raises(exc.IntegrityError, match="account_name_check"):
            session.commit()
        session.rollback()
        session.add_all([Account(name=f"n{number}") for number in range(3)])
        session.commit()
    assert [proof is not None for proof in recorder.proofs] == [True]
    scene.check()


@pytest.mark.parametrize("driver", SYNC_DRIVERS)
def test_bulk_statements_that_are_not_captured_read_nothing(scene: Scene, driver: str) -> None:
    """A transaction without captured rows costs no query, and its statement's result is its own."""
    with Session(scene.engine(driver)) as session:
        done = session.connection().execute(insert(Account.__table__), [{"name": "x"}, {"name": "y"}])
        assert done.rowcount in (2, -1)
        session.rollback()


def test_two_phase_transactions_are_proven(scene: Scene, recorder: Proofs) -> None:
    """The id is read before PREPARE TRANSACTION, after which the connection has none."""
    with Session(scene.engine("psycopg2"), twophase=True) as session:
        session.add(Account(name="a"))
        session.flush()
        number = own_id(session)
        session.commit()
    assert [proof.xid for proof in recorder.proofs if proof] == [number]
    scene.check()


def test_autocommit_and_other_databases_prove_nothing(scene: Scene, recorder: Proofs) -> None:
    """Where each statement is its own transaction, and where there is no such id, nothing is asked."""
    with Session(scene.engine("psycopg", isolation_level="AUTOCOMMIT")) as session:
        session.add(Account(name="a"))
        session.commit()
    sqlite = create_engine("sqlite://")
    Base.metadata.create_all(sqlite)
    with Session(sqlite) as session:
        session.add(Account(name="b"))
        session.commit()
    sqlite.dispose()
    assert recorder.proofs == [None, None]


@pytest.fixture
def without_proof(scene: Scene) -> Iterator[Engine]:
    """An engine whose role may write, and may not call the function that gives the id."""
    with psycopg.connect(scene.dsn, autocommit=True) as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_current_xact_id_if_assigned() FROM public")
        admin.execute(f"DROP ROLE IF EXISTS {_REFUSED}")
        admin.execute(f"CREATE ROLE {_REFUSED} LOGIN PASSWORD 'x'")
        admin.execute(f"GRANT ALL ON account, note TO {_REFUSED}")
    url = scene.engine("psycopg").url.set(username=_REFUSED, password="x")
    engine = create_engine(url)
    yield engine
    engine.dispose()
    with psycopg.connect(scene.dsn, autocommit=True) as admin:
        admin.execute("GRANT EXECUTE ON FUNCTION pg_current_xact_id_if_assigned() TO public")
        admin.execute(f"DROP OWNED BY {_REFUSED}")
        admin.execute(f"DROP ROLE {_REFUSED}")


def test_a_revoked_function_is_never_called(
    scene: Scene, recorder: Proofs, without_proof: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The probe finds it out; transactions of the application go on, unproven, and one line says why."""
    with Session(without_proof) as session:
        session.add(Account(name="a"))
        session.commit()
        session.add(Account(name="b"))
        session.commit()
    assert recorder.proofs == [None, None]
    said = [record.getMessage() for record in caplog.records if record.name == "otel_activity"]
    assert len(said) == 1
    assert "pg_current_xact_id_if_assigned" in said[0]
    assert "OTEL_ACTIVITY_COMMIT_PROOF=off" in said[0]
    caplog.clear()
    scene.check()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_function_that_is_revoked_later_costs_one_transaction(
    *,
    scene: Scene,
    recorder: Proofs,
    without_proof: Engine,
    driver: str,
    near: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of all open connections one notices, and its transaction fails unless there was a savepoint."""
    survives = driver == "psycopg" and bool(near)
    revoke = "REVOKE EXECUTE ON FUNCTION pg_current_xact_id_if_assigned() FROM public"
    grant = "GRANT EXECUTE ON FUNCTION pg_current_xact_id_if_assigned() TO public"
    engine = create_engine(without_proof.url.set(drivername=f"postgresql+{driver}"))
    with psycopg.connect(scene.dsn, autocommit=True) as admin:
        admin.execute(grant)
        sessions = [Session(engine) for _ in range(3)]
        for session in sessions:
            session.add(Account(name="proven"))
            session.commit()
            session.connection()
        admin.execute(revoke)
        ends = [committed(session) for session in sessions]
        ends += [committed(session) for session in sessions]
        assert ends == [survives, True, True, True, True, True]
        assert [proof is not None for proof in recorder.proofs] == [True] * 3 + [False] * (5 + survives)
        said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert len(said) == 1
        assert "pg_current_xact_id_if_assigned was revoked" in said[0]
        admin.execute(grant)
        engine.dispose()
        assert committed(sessions[0])
        assert recorder.proofs[-1] is not None
        for session in sessions:
            session.close()
        engine.dispose()
    caplog.clear()
    scene.check()


def committed(session: Session) -> bool:
    """Whether a transaction with one row can be committed."""
    try:
        session.add(Account(name="later"))
        session.commit()
    except exc.DBAPIError:
        session.rollback()
        return False
    return True


def test_connections_that_were_open_before_stay_unproven(bracket_databases: tuple[str, str]) -> None:
    """Nothing is sent on a connection that was not probed when it was made."""
    engine = create_engine(url_of(bracket_databases[0], "psycopg"))
    with engine.connect():
        pass
    recorder = Proofs()
    capture = SQLAlchemyCapture(recorder, redactor=Open(), proofs=ProofReader())
    capture.install()
    try:
        with Session(engine) as session:
            session.add(Account(name="early"))
            session.commit()
        engine.dispose()
        with Session(engine) as session:
            session.add(Account(name="late"))
            session.commit()
    finally:
        capture.uninstall()
        engine.dispose()
        gc.collect()
    assert [proof is not None for proof in recorder.proofs] == [False, True]


def test_the_engines_address_is_told_once(bracket_databases: tuple[str, str]) -> None:
    """Whoever resolves learns where a cluster is, once for each engine's address."""
    told: list[tuple[str, str | None]] = []
    capture = SQLAlchemyCapture(
        Proofs(), redactor=Open(), proofs=ProofReader(lambda system, url: told.append((system, url.database)))
    )
    capture.install()
    engine = create_engine(url_of(bracket_databases[0], "psycopg"), poolclass=NullPool)
    try:
        for name in ("a", "b"):
            with Session(engine) as session:
                session.add(Account(name=name))
                session.commit()
    finally:
        capture.uninstall()
        engine.dispose()
    assert [database for _, database in told] == [engine.url.database]
