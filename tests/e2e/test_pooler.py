"""Application and store behind PgBouncer, which gives each transaction another connection of the server."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import otel_activity
from otel_activity.embedded import free_port
from otel_activity.postgres import schema
from otel_activity.postgres.outbox import apply_outbox
from tests.collector.processes import Program
from tests.frameworks.support import Base, Task
from tests.support import require_tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

pytestmark = [pytest.mark.external, pytest.mark.e2e]

THREADS = 6
CONNECTIONS = 3
TRANSACTIONS = 30
CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
"""


@pytest.fixture
def pooled(postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same database through a pooler that has fewer connections than there are threads."""
    program = require_tool("pgbouncer")
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    server, port = urlsplit(postgres_dsn), free_port()
    settings = CONFIGURATION.format(
        host=server.hostname,
        port=server.port or 5432,
        user=server.username,
        password=server.password,
        listen=port,
        connections=CONNECTIONS,
    )
    file = tmp_path / "pgbouncer.ini"
    file.write_text(settings)
    # It reads the file before it gives up the rights of root, which it will not run with.
    other_user = ["-u", "nobody"] if os.geteuid() == 0 else []

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    pooler = Program("pgbouncer", tmp_path, [program, *other_user, str(file)], {}, listens)
    try:
        pooler.start()
        yield server._replace(netloc=f"{server.username}:{server.password}@127.0.0.1:{port}").geturl()
    finally:
        pooler.kill()


def work(engine: Engine, thread: int) -> None:
    """Transactions of which some are rolled back."""
    for number in range(TRANSACTIONS):
        with Session(engine) as session:
            session.add_all([Task(name=f"{thread} {number} {each}") for each in "abc"])
            session.flush()
            if number % 5 == 3:
                session.rollback()
            else:
                session.commit()


@pytest.mark.parametrize("delivery", ["best_effort", "durable", "strict"])
def test_every_class_works_behind_a_pooler_in_transaction_mode(
    pooled: str, postgres_dsn: str, tmp_path: Path, delivery: str
) -> None:
    """What is committed through it is stored through it, once each; nothing that was rolled back is."""
    schema.apply(pooled)
    apply_outbox(pooled)
    engine = create_engine(
        pooled.replace("postgresql://", "postgresql+psycopg://"),
        connect_args={"prepare_threshold": None},  # as psycopg's documentation says for such poolers
        pool_size=THREADS,
    )
    Base.metadata.create_all(engine)
    assert otel_activity.instrument(
        postgres_dsn=pooled, delivery=delivery, journal_dir=str(tmp_path / "journal")
    )
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda thread: work(engine, thread), range(THREADS)))
        assert otel_activity.flush_queue(60)
    finally:
        otel_activity.shutdown(5)
        engine.dispose()
    names = "SELECT changes -> 'name' ->> 'after' FROM activity.events WHERE entity_type = 'Task'"
    with psycopg.connect(postgres_dsn) as connection:
        stored = sorted(name for (name,) in connection.execute(names))
        rows = sorted(name for (name,) in connection.execute("SELECT name FROM task"))
    assert len(rows) == THREADS * TRANSACTIONS * 3 * 4 // 5
    assert stored == rows
