"""Two engines on one database: psycopg for sync endpoints, asyncpg for async ones."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

__all__ = ["AsyncDatabase", "Database", "async_engine", "engine"]

_url = make_url(os.environ["DATABASE_URL"])
_SEARCH_PATH = "-csearch_path="


def _async_arguments() -> dict[str, Any]:
    """What asyncpg calls otherwise than libpq: ``options=-csearch_path=...`` and ``sslmode``."""
    arguments: dict[str, Any] = {}
    options = str(_url.query.get("options", ""))
    if options.startswith(_SEARCH_PATH):
        arguments["server_settings"] = {"search_path": options.removeprefix(_SEARCH_PATH)}
    if "sslmode" in _url.query:
        arguments["ssl"] = _url.query["sslmode"]
    return arguments


engine = create_engine(_url.set(drivername="postgresql+psycopg"), pool_size=10, max_overflow=10)
async_engine = create_async_engine(
    _url.set(drivername="postgresql+asyncpg", query={}),
    pool_size=10,
    max_overflow=10,
    connect_args=_async_arguments(),
)
_sessions = sessionmaker(engine)
_async_sessions = async_sessionmaker(async_engine, expire_on_commit=False)


def _database() -> Iterator[Session]:
    with _sessions() as session:
        yield session


async def _async_database() -> AsyncIterator[AsyncSession]:
    async with _async_sessions() as session:
        yield session


Database = Annotated[Session, Depends(_database)]
AsyncDatabase = Annotated[AsyncSession, Depends(_async_database)]
