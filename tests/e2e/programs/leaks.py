"""A FastAPI program that knows nothing of auditing. Each row says who really asked for it: `owner`.

The user is found late, in a dependency or in the endpoint, and connections are few, so requests share them.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.middleware.base import BaseHTTPMiddleware


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
