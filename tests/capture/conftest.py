"""Fixtures of the capture tests: databases made once, emptied for each test, and the recording delivery."""

from __future__ import annotations

import gc
import logging
import os
from typing import TYPE_CHECKING

import psycopg
import pytest

from otel_activity.capture import ProofReader, SQLAlchemyCapture, guard
from otel_activity.capture.proof import NEAR
from tests.capture.support import ASYNC_DRIVERS, SYNC_DRIVERS, Open, Recorder, Scene, sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Server


@pytest.fixture(scope="session")
def bracket_databases(postgres_server: Server) -> Iterator[tuple[str, str]]:
    """Two databases with the tables of ``tables.sql``."""
    names = [f"capture_{os.getpid()}_{suffix}" for suffix in ("a", "b")]
    dsns = [postgres_server.create_database(name) for name in names]
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql("tables").encode())
    yield dsns[0], dsns[1]
    for name in names:
        postgres_server.drop_database(name)


@pytest.fixture
def recorder() -> Recorder:
    """Keeps what the bracket hands over."""
    return Recorder()


@pytest.fixture
def near() -> float:
    """Seconds under which a server is near."""
    return NEAR


@pytest.fixture
def capture(recorder: Recorder, near: float, caplog: pytest.LogCaptureFixture) -> Iterator[SQLAlchemyCapture]:
    """Installed capture; afterwards nothing may be open, unfinished, broken or logged as our own error."""
    guard._last.clear()
    capture = SQLAlchemyCapture(recorder, redactor=Open(), proofs=ProofReader(near=near))
    capture.install()
    try:
        yield capture
        gc.collect()
        assert capture._bracket.open == {}
        assert capture._bracket._prepared == {}
        assert recorder.unfinished() == 0
        assert recorder.broken == []
        assert [record for record in caplog.records if record.name == "otel_activity"] == []
    finally:
        capture.uninstall()


@pytest.fixture
def scene(
    capture: SQLAlchemyCapture, recorder: Recorder, bracket_databases: tuple[str, str]
) -> Iterator[Scene]:
    """Two empty databases and the recorder."""
    scene = Scene(recorder, capture._bracket, *bracket_databases)
    scene.ask("empty")
    scene.ask("empty", other=True)
    yield scene
    scene.dispose()


@pytest.fixture(params=SYNC_DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Each synchronous driver."""
    return str(request.param)


@pytest.fixture(params=ASYNC_DRIVERS)
def async_driver(request: pytest.FixtureRequest) -> str:
    """Each asynchronous driver."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _quiet_pool() -> None:
    """The pool logs tracebacks of connections that tests kill on purpose."""
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
