"""Celery workers over a real broker: no event is missing, and each has the actor that enqueued the work."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest

from otel_activity.embedded import free_port as find_free_port
from tests.e2e.test_auto_instrumentation import wait_until_ready
from tests.support import require_tool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.support import World

pytestmark = [pytest.mark.e2e, pytest.mark.external]

EXAMPLES = Path(__file__).parents[2] / "examples"
ORDERS = 150


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A Redis of the test's own."""
    port = find_free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path))
    process = subprocess.Popen([require_tool("redis-server"), *options], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "Redis never answered"
            time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(timeout=30)


async def order(url: str) -> None:
    """All orders at once over twenty connections, each by a user of its own."""
    async with httpx.AsyncClient(
        base_url=url, limits=httpx.Limits(max_connections=20), timeout=120
    ) as client:
        answers = await asyncio.gather(
            *(
                client.post(
                    "/orders/book", headers={"x-user": f"u-{number}", "x-request-id": f"request-u-{number}"}
                )
                for number in range(ORDERS)
            )
        )
    assert {answer.status_code for answer in answers} == {200}


def wait_for_steps(world: World, count: int) -> None:
    """Until the worker has done so much; fail after two minutes."""
    deadline = time.monotonic() + 120
    with psycopg.connect(world.application, autocommit=True) as connection:
        while True:
            row = connection.execute("SELECT count(*) FROM steps").fetchone()
            assert row is not None
            if row[0] >= count:
                return
            assert time.monotonic() < deadline, f"{row[0]} of {count} steps were done"
            time.sleep(0.2)


def rows(dsn: str, statement: str) -> list[tuple[str | None, ...]]:
    """What a database answers."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(statement.encode()).fetchall()


@pytest.mark.parametrize(
    ("delivery", "pool"),
    [
        ("best_effort", ("prefork", "--concurrency", "3", "--max-tasks-per-child", "40")),
        ("durable", ("threads", "--concurrency", "8")),
    ],
    ids=["prefork", "threads"],
)
def test_a_worker(world: World, broker: str, free_port: int, delivery: str, pool: tuple[str, ...]) -> None:
    """150 users' orders, packed, shipped and billed by 450 tasks, 30 of them retried after a rollback.

    Batches are sent once a minute only: what is stored was delivered by processes that ended, each after 40
    tasks or in a warm shutdown. Every committed row has one event, and the actor is the row's owner.
    """
    environment = {
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]),
        "CELERY_BROKER_URL": broker,
        "OTEL_ACTIVITY_DELIVERY": delivery,
        "OTEL_BLRP_SCHEDULE_DELAY": "60000",
    }
    web = world.start(
        *("gunicorn", "order_desk.web:app", "--bind", f"127.0.0.1:{free_port}", "--threads", "6"),
        *("--log-level", "critical", "--keep-alive", "60"),
        **environment,
    )
    url = f"http://127.0.0.1:{free_port}"
    wait_until_ready(f"{url}/ready")
    worker = world.start(
        *("celery", "--app", "order_desk.jobs", "worker", "--loglevel", "ERROR", "--pool", *pool),
        **environment,
    )
    asyncio.run(order(url))
    celery = ("celery", "--app", "order_desk.jobs", "call", "order_desk.jobs.restock")
    assert world.start(*celery, **environment).wait(timeout=60) == 0
    wait_for_steps(world, 3 * ORDERS + 1)
    for process in (web, worker):
        process.send_signal(signal.SIGTERM)
    for process in (web, worker):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output

    written = rows(world.application, "SELECT 'Step', id::text, owner FROM steps") + rows(
        world.application, "SELECT 'Order', id::text, owner FROM orders"
    )
    events = rows(
        world.store,
        "SELECT entity_type, entity_id, coalesce(actor_id, actor_type) FROM activity.events"
        " WHERE name = 'activity.entity.created'",
    )
    assert Counter(events) == Counter(written)
    assert len(written) == 4 * ORDERS + 1

    changes = rows(
        world.store,
        "SELECT attributes ->> 'activity.job.name', actor_id, attributes ->> 'activity.request.id'"
        " FROM activity.events WHERE name = 'activity.entity.updated'",
    )
    assert Counter(changes) == Counter(
        (f"order_desk.jobs.{name}", f"u-{number}", f"request-u-{number}")
        for name in ("pack", "ship", "bill")
        for number in range(ORDERS)
    )
