"""One database with triggers on every table, and the ways to run the same work against it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from otel_activity.capture import SQLAlchemyCapture
from otel_activity.classes import Classes
from otel_activity.redaction import Redactor
from tests.oracle.models import Base
from tests.oracle.oracle import Oracle, RecordingDelivery, RoutedRecording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server

DATABASE = "activity_oracle"
SYNC = ("psycopg", "psycopg2")
DRIVERS = (*SYNC, "asyncpg")
CLASSES = ("[A-E]*=strict", "[L-P]*=best_effort")
"""Delivery classes by the names of models."""


class World:
    """A captured program and the truth about it."""

    def __init__(self, dsn: str, driver: str, *, fetch_before: bool = False) -> None:
        self.driver = driver
        self.url = dsn.replace("postgresql://", f"postgresql+{driver}://")
        self.delivery = RecordingDelivery()
        self.oracle = Oracle(dsn, Base, before_known=fetch_before)
        # With one of the drivers every transaction may be split by class.
        routed = driver == "psycopg2"
        self.capture = SQLAlchemyCapture(
            RoutedRecording(self.delivery) if routed else self.delivery,
            redactor=Redactor(),
            fetch_before=fetch_before,
            classes=Classes("durable", CLASSES if routed else ()),
        )
        self.oracle.empty()
        self.capture.install()

    def run(self, *work: Callable[[Session], Any], **options: Any) -> None:
        """Run functions of a session, each in a session of its own, through the driver."""
        for function in work:
            if self.driver == "asyncpg":
                asyncio.run(self._run_async(function, options))
            else:
                self._run_sync(function, options)

    def _run_sync(self, function: Callable[[Session], Any], options: dict[str, Any]) -> None:
        engine = create_engine(self.url, poolclass=NullPool)
        with Session(engine, **options) as session:
            function(session)
        engine.dispose()

    async def _run_async(self, function: Callable[[Session], Any], options: dict[str, Any]) -> None:
        engine = create_async_engine(self.url, poolclass=NullPool)
        async with AsyncSession(engine, **options) as session:
            await session.run_sync(function)
        await engine.dispose()

    def check(self) -> int:
        """Compare; the number of events since the last check."""
        return self.oracle.check(self.delivery)

    def close(self) -> None:
        self.capture.uninstall()
        self.oracle.close()


@pytest.fixture(scope="session")
def oracle_dsn(postgres_server: Server) -> Iterator[str]:
    """A database with the tables and the triggers."""
    dsn = postgres_server.create_database(DATABASE)
    engine = create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(engine)
    engine.dispose()
    oracle = Oracle(dsn, Base)
    oracle.install()
    oracle.close()
    yield dsn
    postgres_server.drop_database(DATABASE)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Each driver in turn."""
    return str(request.param)


@pytest.fixture
def world(oracle_dsn: str, driver: str, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """A captured program; an internal error of the capture fails the test."""
    made = World(oracle_dsn, driver)
    yield made
    made.close()
    assert not _errors(caplog)


@pytest.fixture
def fetching(oracle_dsn: str, driver: str, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """As `world`, reading unknown before-values: every side of every change must then be known."""
    made = World(oracle_dsn, driver, fetch_before=True)
    yield made
    made.close()
    assert not _errors(caplog)


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
