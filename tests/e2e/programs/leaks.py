"""A FastAPI program that knows of auditing only `activity_context`. Each row says who asked for it: `owner`.

The user is found late, in a dependency or in the endpoint, and connections are few, so requests share them.
What names somebody else for a part of its work says so, too: `owner` is then "user/part".
"""

import asyncio
import contextvars
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.middleware.base import BaseHTTPMiddleware

from otel_activity import activity_context


class Base(DeclarativeBase):
    pass


class Task(Base):
    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    kind: Mapped[str]


dsn = os.environ["DATABASE_URL"]
engine = create_engine(dsn, pool_size=3, max_overflow=0)
async_engine = create_async_engine(dsn.replace("+psycopg", "+asyncpg"), pool_size=3, max_overflow=0)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    Base.metadata.create_all(engine)
    yield


async def pass_on(request, call_next):
    return await call_next(request)


app = FastAPI(lifespan=lifespan)
app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)


async def authenticated(request: Request) -> str:
    await asyncio.sleep(0)
    request.state.user = {"id": request.headers["x-user"], "name": "somebody"}
    return request.headers["x-user"]


User = Annotated[str, Depends(authenticated)]


def save(owner: str, kind: str) -> None:
    with Session(engine) as session:
        session.add(Task(owner=owner, kind=kind))
        session.commit()


async def save_async(owner: str, kind: str) -> None:
    async with AsyncSession(async_engine) as session:
        session.add(Task(owner=owner, kind=kind))
        await session.flush()
        await asyncio.sleep(0)
        await session.commit()


@app.get("/ready")
def ready() -> bool:
    return True


@app.post("/sync/{number}")
def sync(user: User, number: int) -> None:
    save(user, "sync")


@app.post("/async/{number}")
async def in_the_loop(user: User, number: int) -> None:
    await save_async(user, "async")


@app.post("/late/{number}")
def late(request: Request, number: int) -> None:
    with Session(engine) as session:
        session.add(Task(owner=request.headers["x-user"], kind="late"))
        session.flush()
        request.state.user = request.headers["x-user"]
        session.commit()


@app.post("/background/{number}")
async def background(user: User, number: int, tasks: BackgroundTasks) -> None:
    tasks.add_task(save, user, "background")
    tasks.add_task(save_async, user, "background")


@app.post("/gather/{number}")
async def gather(user: User, number: int) -> None:
    await asyncio.gather(*(save_async(user, "gather") for _ in range(3)))


@app.post("/error/{number}")
def error(user: User, number: int) -> None:
    save(user, "error")
    raise RuntimeError("after the commit")


@app.post("/stream/{number}")
def stream(user: User, number: int) -> StreamingResponse:
    def parts() -> Iterator[bytes]:
        save(user, "stream")
        yield b"x"

    return StreamingResponse(parts())


@app.post("/executor/{number}")
async def executor(user: User, number: int) -> None:
    await asyncio.get_running_loop().run_in_executor(None, save, user, "executor")


@app.post("/astream/{number}")
async def astream(user: User, number: int) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(2):
            await save_async(user, "astream")
            yield b"x"

    return StreamingResponse(parts())


@app.post("/nested/{number}")
async def nested(user: User, number: int) -> None:
    """The program names somebody else for a part of the work, and fails in it."""
    try:
        with activity_context(actor=f"{user}/inner"):
            async with activity_context(reason="twice"):
                await save_async(f"{user}/inner", "nested")
            raise LookupError
    except LookupError:
        await save_async(user, "nested")


@app.post("/generator/{number}")
async def generator(user: User, number: int) -> None:
    """Generators that name somebody take turns with each other and with other requests."""

    async def work(name: str) -> AsyncIterator[None]:
        async with activity_context(actor=name):
            await save_async(name, "generator")
            yield

    one, other = work(f"{user}/one"), work(f"{user}/other")
    await anext(one)
    await anext(other)
    await one.aclose()
    await other.aclose()
    await save_async(user, "generator")


@app.post("/copied/{number}")
async def copied(user: User, number: int) -> None:
    run = contextvars.copy_context().run
    await asyncio.get_running_loop().run_in_executor(None, run, save, user, "copied")


@app.post("/retried/{number}")
async def retried(user: User, number: int) -> None:
    """An error in the middle of a transaction; the same session goes on."""
    async with AsyncSession(async_engine) as session:
        session.add(Task(owner=f"{user}/never", kind="retried"))
        await session.flush()
        try:
            await session.execute(text("SELECT 1/0"))
        except DBAPIError:
            await session.rollback()
        session.add(Task(owner=user, kind="retried"))
        await session.commit()
