"""Actors over real servers: what is stored says who asked, for every one of many interleaved requests."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest

from tests.e2e.test_auto_instrumentation import wait_until_ready

if TYPE_CHECKING:
    from tests.e2e.support import World

pytestmark = pytest.mark.e2e

KINDS = ("sync", "async", "late", "background", "gather", "error", "stream", "executor")
ROWS = {"background": 2, "gather": 3}
EACH = 50


async def ask(url: str) -> None:
    """All requests at once over forty connections, each by a user of its own."""
    limits = httpx.Limits(max_connections=40)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:

        async def one(kind: str, number: int) -> None:
            user = f"{kind}-{number}"
            response = await client.post(
                f"/{kind}/{number}", headers={"x-user": user, "x-request-id": f"request-{user}"}
            )
            assert response.status_code == (500 if kind == "error" else 200)

        await asyncio.gather(*(one(kind, number) for number in range(EACH) for kind in KINDS))


def test_no_actor_leaks(world: World, free_port: int) -> None:
    """400 interleaved requests over threads, tasks and pooled connections: every event has its own actor.

    Work handed to a plain executor has no context: its actor is unknown, and never another request's.
    """
    process = world.start(
        *("uvicorn", "leaks:app", "--port", str(free_port)),
        *("--log-level", "critical", "--timeout-keep-alive", "60"),
    )
    url = f"http://127.0.0.1:{free_port}"
    wait_until_ready(f"{url}/ready")
    asyncio.run(ask(url))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    with psycopg.connect(world.store) as connection:
        rows = connection.execute(
            "SELECT changes #>> '{owner,after}', changes #>> '{kind,after}', actor_type, actor_id,"
            " attributes ->> 'http.route', attributes ->> 'activity.request.id' FROM activity.events"
        ).fetchall()
    assert Counter(kind for _, kind, *_ in rows) == {kind: EACH * ROWS.get(kind, 1) for kind in KINDS}
    for owner, kind, actor_type, actor, route, request in rows:
        found = (actor_type, actor, route, request)
        if kind == "executor":
            assert found == ("unknown", None, None, None)
        else:
            assert found == ("user", owner, f"/{kind}/{{number}}", f"request-{owner}")


async def ask_flask(url: str) -> None:
    """Two hundred requests at once, each by a user of its own."""
    async with httpx.AsyncClient(
        base_url=url, limits=httpx.Limits(max_connections=20), timeout=120
    ) as client:
        answers = await asyncio.gather(
            *(client.post(f"/tasks/{number}", headers={"x-user": f"u-{number}"}) for number in range(200))
        )
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.skipif(sys.platform == "win32", reason="no gunicorn")
def test_flask_under_gunicorn(world: World, free_port: int) -> None:
    """Two preforked workers with threads: every event has the user that Flask-Login found after the flush."""
    process = world.start(
        *("gunicorn", "flask_shop:app", "--bind", f"127.0.0.1:{free_port}"),
        *("--workers", "2", "--threads", "6", "--log-level", "critical", "--keep-alive", "60"),
    )
    url = f"http://127.0.0.1:{free_port}"
    wait_until_ready(f"{url}/ready")
    asyncio.run(ask_flask(url))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    with psycopg.connect(world.store) as connection:
        rows = connection.execute(
            "SELECT changes #>> '{owner,after}', actor_id, attributes ->> 'http.route' FROM activity.events"
        ).fetchall()
    assert len(rows) == 200
    for owner, actor, route in rows:
        assert (actor, route) == (owner, "/tasks/<int:number>")
