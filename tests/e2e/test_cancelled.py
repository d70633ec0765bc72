"""Tasks that are cancelled, and greenlets that run out of time, wherever they wait around a COMMIT."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

import otel_activity
from tests.e2e.support import PROGRAMS
from tests.e2e.test_strict import PATIENCE, database
from tests.frameworks.support import Base, Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

__all__ = ["database"]

pytestmark = pytest.mark.e2e

DELIVERIES = {
    "durable": {"delivery": "durable"},
    "unproven": {"delivery": "durable", "commit_proof": "off"},
    "strict": {"delivery": "strict"},
}


@pytest.fixture
def tables(database: str) -> str:
    """The application's database, which is the store as well, with its table."""
    engine = create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(engine)
    engine.dispose()
    return database


# --- who cancels -----------------------------------------------------------------------------------


class Struck:
    """Awaits something, and strikes when it waits for the n-th time.

    Args:
        work: is awaited.
        number: of the suspension, from 1.
        strike: is called with what is waited for.
    """

    def __init__(
        self, work: Coroutine[Any, Any, None], number: int, strike: Callable[[asyncio.Future[Any]], object]
    ) -> None:
        self.work = work
        self.left = number
        self.strike = strike

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self.work.__await__()
        try:
            awaited = steps.send(None)
            while True:
                self.left -= 1
                if self.left == 0:
                    self.strike(awaited)
                try:
                    sent = yield awaited
                except BaseException as error:
                    awaited = steps.throw(error)
                else:
                    awaited = steps.send(sent)
        except StopIteration:
            return


async def at_once(work: Coroutine[Any, Any, None], number: int) -> bool:
    """Cancelled when it begins to wait: the statement is on its way. Whether it waited that often."""
    task = asyncio.current_task()
    assert task is not None
    struck = Struck(work, number, lambda _: task.cancel())
    with suppress(asyncio.CancelledError):
        await struck
    return struck.left <= 0


async def when_answered(work: Coroutine[Any, Any, None], number: int) -> bool:
    """Cancelled when what it waits for is there, and before it goes on."""
    task = asyncio.current_task()
    assert task is not None

    def strike(awaited: asyncio.Future[Any] | None) -> None:
        if awaited is None:  # it only let others run
            task.cancel()
        else:
            awaited.add_done_callback(lambda _: task.cancel())

    struck = Struck(work, number, strike)
    with suppress(asyncio.CancelledError):
        await struck
    return struck.left <= 0


async def out_of_time(work: Coroutine[Any, Any, None], number: int) -> bool:
    """`asyncio.timeout` is over while it waits."""
    struck = Struck(work, number, lambda _: clock.reschedule(0.0))
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as clock:
            await struck
    return struck.left <= 0


STRIKES: tuple[Callable[[Coroutine[Any, Any, None], int], Awaitable[bool]], ...] = (
    at_once,
    when_answered,
    out_of_time,
)


# --- who is cancelled ------------------------------------------------------------------------------


async def write(session: AsyncSession, name: str) -> None:
    session.add_all([Task(name=f"{name} {each}") for each in "ab"])
    await session.flush()
    await session.commit()


async def leaves(engine: AsyncEngine, strike: Callable[..., Any], number: int, name: str) -> bool:
    """The cancelled task leaves its blocks; the session rolls back and closes, which may be cancelled too."""

    async def work() -> None:
        async with AsyncSession(engine) as session:
            await write(session, name)

    return bool(await strike(work(), number))


async def commits_again(engine: AsyncEngine, strike: Callable[..., Any], number: int, name: str) -> bool:
    """Somebody keeps the cancellation to himself, and commits the same session again, then writes more."""
    async with AsyncSession(engine) as session:
        await session.connection()
        struck = await strike(write(session, name), number)
        with suppress(SQLAlchemyError):
            await session.commit()
        with suppress(SQLAlchemyError):
            await session.rollback()
            session.add(Task(name=f"{name} afterwards"))
            await session.commit()
    return bool(struck)


async def invalidates(engine: AsyncEngine, strike: Callable[..., Any], number: int, name: str) -> bool:
    """Somebody throws the connection away."""
    async with engine.connect() as connection:
        session = AsyncSession(connection)
        struck = await strike(write(session, name), number)
        if struck:
            await connection.invalidate()
    return bool(struck)


HABITS: tuple[Callable[..., Awaitable[bool]], ...] = (leaves, commits_again, invalidates)


async def cancelled_everywhere(url: str) -> int:
    """One session for each await, way to be cancelled, and habit; how many that were."""
    engine = create_async_engine(url, pool_size=2)
    count = 0
    async with AsyncSession(engine) as session:  # what is asked once about a server is asked now
        await write(session, "before")
    for habit in HABITS:
        for strike in STRIKES:
            number = 1
            struck = True
            while struck:
                async with engine.connect():
                    pass  # there is a connection in the pool: connecting is none of our business
                name = f"{habit.__name__} {strike.__name__} {number}"
                struck = await asyncio.wait_for(habit(engine, strike, number, name), PATIENCE)
                number += 1
            assert number > 4, (habit, strike)
            count += number
    await engine.dispose()
    return count


# --- what is to be seen afterwards ------------------------------------------------------------------


def ask(dsn: str, query: str) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def compare(dsn: str, *, proven: bool) -> None:
    """Each committed row has one event, and no event lacks its row unless it says that nobody knows."""
    rows = sorted(name for (name,) in ask(dsn, "SELECT name FROM task"))
    events = ask(
        dsn,
        "SELECT changes -> 'name' ->> 'after', attributes ->> 'activity.commit' FROM activity.events"
        " WHERE name = 'activity.entity.created'",
    )
    told = sorted(name for name, _ in events)
    unknown = [name for name, fate in events if fate == "unknown"]
    assert [name for name in rows if name not in told] == []
    assert [name for name in told if name not in rows and name not in unknown] == []
    assert len(told) == len(set(told))
    if proven:
        assert unknown == []
        assert {fate for _, fate in events} >= {"proven"}  # some were struck when COMMIT was on its way
    else:
        assert unknown != []
    assert ask(dsn, "SELECT name FROM activity.events WHERE name = 'activity.gap'") == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_cancellation_at_any_await_leaves_each_committed_row_one_event(
    tables: str, driver: str, delivery: str
) -> None:
    """Whatever the application does next: leave, commit again, or throw the connection away."""
    settings: dict[str, Any] = DELIVERIES[delivery]
    assert otel_activity.instrument(postgres_dsn=tables, **settings)
    count = asyncio.run(cancelled_everywhere(tables.replace("postgresql://", f"postgresql+{driver}://")))
    assert count > 45
    assert otel_activity.flush_queue(PATIENCE)
    compare(tables, proven=delivery != "unproven")
    assert otel_activity.shutdown(PATIENCE)
    compare(tables, proven=delivery != "unproven")


@pytest.mark.skipif(sys.platform == "win32", reason="gevent is for servers on Linux and macOS here")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_gevent_timeout_at_any_switch_leaves_each_committed_row_one_event(
    tables: str, driver: str, delivery: str
) -> None:
    """Greenlets are interrupted wherever they wait, and at random moments while others go on."""
    settings = [f"{name}={value}" for name, value in DELIVERIES[delivery].items()]
    done = subprocess.run(
        [sys.executable, "green.py", driver, *settings, f"postgres_dsn={tables}"],
        cwd=PROGRAMS,
        env={**os.environ, "DATABASE_URL": tables},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert "flushed True ended True" in done.stdout, done.stdout + done.stderr
    compare(tables, proven=delivery != "unproven")
