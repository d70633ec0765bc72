"""AsyncSession over asyncpg, psycopg and aiosqlite: the same bracket inside greenlets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import NullPool

from tests.capture.support import Account, Note, Scene, url_of, wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def engine_of(
    scene: Scene, driver: str, *, other: bool = False, **options: Any
) -> AsyncIterator[AsyncEngine]:
    """An engine that is disposed inside its own event loop."""
    engine = create_async_engine(url_of(scene.other_dsn if other else scene.dsn, driver), **options)
    try:
        yield engine
    finally:
        await engine.dispose()


async def add(session: AsyncSession, name: str) -> Account:
    account = Account(name=name)
    session.add(account)
    await session.flush()
    return account


def test_commit_and_rollback(scene: Scene, async_driver: str) -> None:
    """An AsyncSession's committed changes come out in order with one id a transaction, others do not."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, AsyncSession(engine) as session:
            account = await add(session, "a")
            account.name = "b"
            await session.commit()
            await add(session, "lost")
            await session.rollback()
            await session.refresh(account)
            await session.delete(account)
            await add(session, "c")
            await session.commit()

    asyncio.run(main())
    assert scene.recorder.names() == ["a", "b", "c"]
    assert scene.recorder.ends == ["committed", "aborted", "committed"]
    assert len(set(scene.recorder.transactions())) == 2
    scene.check()


def test_factories(scene: Scene, async_driver: str) -> None:
    """async_sessionmaker.begin() and async_scoped_session are captured like any session."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine:
            factory = async_sessionmaker(engine)
            async with factory.begin() as session:
                await add(session, "block")
            registry = async_scoped_session(factory, scopefunc=asyncio.current_task)
            registry.add(Account(name="scoped"))
            await registry.commit()
            await registry.remove()

    asyncio.run(main())
    assert scene.recorder.names() == ["block", "scoped"]
    scene.check()


@pytest.mark.parametrize("outer", ["commit", "rollback"])
@pytest.mark.parametrize(
    "mode", ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]
)
def test_external_transaction(scene: Scene, async_driver: str, mode: Any, outer: str) -> None:
    """An AsyncSession on an external transaction: the outermost COMMIT decides."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, engine.connect() as connection:
            transaction = await connection.begin()
            async with AsyncSession(connection, join_transaction_mode=mode) as session:
                await add(session, "inner")
                await session.commit()
            if transaction.is_active:
                await getattr(transaction, outer)()

    asyncio.run(main())
    kept = mode == "control_fully" or outer == "commit"
    assert scene.recorder.names() == (["inner"] if kept else [])
    scene.check()


def test_savepoints(scene: Scene, async_driver: str) -> None:
    """Nested transactions of an AsyncSession take away exactly their own events."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, AsyncSession(engine) as session:
            await add(session, "a")
            async with session.begin_nested():
                await add(session, "b")
                inner = await session.begin_nested()
                await add(session, "lost")
                await inner.rollback()
                await add(session, "c")
            with pytest.raises(exc.IntegrityError):  # noqa: PT012 - the block is the point
                async with session.begin_nested():
                    await add(session, "lost too")
                    await add(session, "forbidden")
            await add(session, "d")
            await session.commit()

    asyncio.run(main())
    assert scene.recorder.names() == ["a", "b", "c", "d"]
    scene.check()


def test_swallowed_error(scene: Scene, async_driver: str) -> None:
    """A failed statement that was swallowed makes COMMIT a ROLLBACK; nothing comes out."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, AsyncSession(engine) as session:
            await add(session, "lost")
            with pytest.raises(exc.DBAPIError):
                await session.execute(text("select 1/0"))
            await (await session.connection()).commit()

    asyncio.run(main())
    assert scene.recorder.kinds == ["aborted"]
    scene.check()


def test_error_of_the_client(scene: Scene, async_driver: str) -> None:
    """An error the server never saw (a value of the wrong type) leaves the transaction whole: it commits."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, AsyncSession(engine) as session:
            await add(session, "kept")
            with pytest.raises(exc.StatementError):
                await session.execute(text("select cast(:x as integer) + 1"), {"x": object()})
            await session.commit()

    asyncio.run(main())
    assert scene.recorder.names() == ["kept"]
    scene.check()


def test_deferred_constraint(scene: Scene, async_driver: str) -> None:
    """A deferred constraint that fails at COMMIT aborts the unit."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, AsyncSession(engine) as session:
            await add(session, "refused")
            with pytest.raises(exc.DBAPIError):
                await session.commit()
            await session.rollback()

    asyncio.run(main())
    assert scene.recorder.ends == ["aborted"]
    scene.check()


@pytest.mark.parametrize(("action", "end"), [("terminate", "undecided"), ("cancel", "aborted")])
def test_struck_during_commit(scene: Scene, async_driver: str, action: str, end: str) -> None:
    """A connection terminated under COMMIT is undecided, a COMMIT that the server cancelled is aborted."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, AsyncSession(engine) as session:
            await add(session, "slow")
            thread = scene.when_asleep(action)
            with pytest.raises(exc.DBAPIError):
                await session.commit()
            thread.join()
            with contextlib.suppress(exc.DBAPIError):
                await session.rollback()

    asyncio.run(main())
    assert scene.recorder.ends == [end]
    scene.check()


def test_task_cancelled_during_commit(scene: Scene, async_driver: str) -> None:
    """A task that is cancelled while COMMIT runs leaves the fate open."""

    async def commit(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await add(session, "slow")
            await session.commit()

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine:
            task = asyncio.create_task(commit(engine))
            await asyncio.to_thread(scene.wait_asleep)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert scene.recorder.ends == ["undecided"]
    wait_for(lambda: not scene.ask("asleep"))


def test_raw_control(scene: Scene, async_driver: str) -> None:
    """Texts with COMMIT, ROLLBACK and savepoints act; what follows a raw COMMIT has a fate of its own."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, AsyncSession(engine) as session:
            await add(session, "a")
            await session.execute(text("SAVEPOINT x"))
            await add(session, "lost")
            await session.execute(text("ROLLBACK TO x"))
            await session.execute(text("COMMIT"))
            await add(session, "b")
            await session.commit()
            await add(session, "lost")
            await session.execute(text("ROLLBACK"))
            await session.commit()

    asyncio.run(main())
    assert scene.recorder.names() == ["a", "b"]
    assert len(set(scene.recorder.transactions())) == 2
    scene.check()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_pooled_connection(scene: Scene, async_driver: str, end: str) -> None:
    """commit() and rollback() on the pooled connection inside run_sync are seen."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, AsyncSession(engine) as session:
            await add(session, "row")
            await session.run_sync(lambda sync: getattr(sync.connection().connection, end)())
            await session.commit()

    asyncio.run(main())
    assert scene.recorder.ends == ["committed" if end == "commit" else "aborted"]
    scene.check()


def test_driver_connection(scene: Scene, async_driver: str) -> None:
    """A COMMIT on the driver's own connection is unseen: the events come out as unknown."""

    async def main() -> None:
        async with engine_of(scene, async_driver) as engine, AsyncSession(engine) as session:
            await add(session, "unseen")
            raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
            await raw.execute("COMMIT")
            await session.commit()

    asyncio.run(main())
    assert scene.recorder.doubtful_names() == ["unseen"]
    assert scene.recorder.names() == []


def test_autocommit(scene: Scene, async_driver: str) -> None:
    """AUTOCOMMIT rows come out statement by statement and survive rollback; BEGIN by hand ends that."""

    async def main() -> None:
        async with (
            engine_of(scene, async_driver, isolation_level="AUTOCOMMIT") as engine,
            engine.connect() as connection,
        ):
            session = AsyncSession(connection)
            await add(session, "a")
            assert scene.recorder.names() == ["a"]
            await connection.exec_driver_sql("BEGIN")
            await add(session, "lost")
            await connection.exec_driver_sql("ROLLBACK")
            await add(session, "b")
            await connection.rollback()

    asyncio.run(main())
    assert scene.recorder.names() == ["a", "b"]
    scene.check()


def test_two_databases(scene: Scene, async_driver: str) -> None:
    """One AsyncSession over two databases makes two units."""

    async def main() -> None:
        async with (
            engine_of(scene, async_driver) as here,
            engine_of(scene, async_driver, other=True) as there,
            AsyncSession(binds={Account: here, Note: there}) as session,
        ):
            session.add_all([Account(name="here"), Note(body="there")])
            await session.commit()

    asyncio.run(main())
    assert scene.recorder.kinds == ["prepare", "committed"] * 2
    assert len(set(scene.recorder.transactions())) == 2
    scene.check()


@pytest.mark.parametrize("pool", [None, NullPool])
def test_garbage_collected(scene: Scene, async_driver: str, pool: Any) -> None:
    """A session that is dropped without close leaves nothing behind in the bracket, and nothing comes out."""

    async def main() -> None:
        options = {} if pool is None else {"poolclass": pool}
        async with engine_of(scene, async_driver, **options) as engine:
            session = AsyncSession(engine)
            await add(session, "lost")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # SQLAlchemy and the drivers say that it was dropped
                del session
                gc.collect()
                await asyncio.sleep(0)
                gc.collect()
            assert scene.bracket.open == {}

    asyncio.run(main())
    assert "committed" not in scene.recorder.kinds
    wait_for(lambda: not scene.ask("rows"))
    scene.check()


def test_tasks(scene: Scene, async_driver: str) -> None:
    """Forty tasks on a pool of three, with commits, rollbacks and savepoints: events equal rows."""

    async def work(engine: AsyncEngine, number: int) -> None:
        for turn in range(5):
            async with AsyncSession(engine) as session:
                await add(session, f"{number}/{turn}/a")
                nested = await session.begin_nested()
                await add(session, f"{number}/{turn}/b")
                await (nested.rollback() if number % 3 else nested.commit())
                await (session.commit() if (number + turn) % 4 else session.rollback())

    async def main() -> None:
        async with engine_of(scene, async_driver, pool_size=3, max_overflow=0) as engine:
            await asyncio.gather(*(work(engine, number) for number in range(40)))

    asyncio.run(main())
    assert scene.recorder.ends.count("committed") == 150
    assert len(set(scene.recorder.transactions())) == 150
    scene.check()


def test_twophase(scene: Scene, async_driver: str) -> None:
    """A two-phase AsyncSession over two databases prepares both before it commits either."""

    async def main() -> None:
        async with (
            engine_of(scene, async_driver) as here,
            engine_of(scene, async_driver, other=True) as there,
            AsyncSession(binds={Account: here, Note: there}, twophase=True) as session,
        ):
            session.add_all([Account(name="here"), Note(body="there")])
            await session.commit()

    asyncio.run(main())
    assert scene.recorder.kinds == ["prepare", "prepare", "committed", "committed"]
    scene.check()
