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

KINDS = (
    *("sync", "async", "late", "background", "gather", "error", "stream", "executor"),
    *("astream", "nested", "generator", "copied", "retried"),
)
DJANGO_KINDS = ("sync", "async", "late", "gather", "error", "stream", "executor")
ROWS = {"background": 2, "gather": 3, "astream": 2, "nested": 2, "generator": 3}
EACH = 40


async def ask(url: str, kinds: tuple[str, ...] = KINDS) -> None:
    """All requests at once over forty connections, each by a user of its own."""
    limits = httpx.Limits(max_connections=40)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:

        async def one(kind: str, number: int) -> None:
            user = f"{kind}-{number}"
            headers = {"x-user": user, "x-request-id": f"request-{user}"}
            if kind == "error":  # uvicorn closes the connection after an error, in the middle of the next one
                headers["connection"] = "close"
            response = await client.post(f"/{kind}/{number}", headers=headers)
            assert response.status_code == (500 if kind == "error" else 200)

        await asyncio.gather(*(one(kind, number) for number in range(EACH) for kind in kinds))


def test_no_actor_leaks(world: World, free_port: int) -> None:
    """520 interleaved requests over threads, tasks and pooled connections: every event has its own actor.

    Work handed to a plain executor has no context: its actor is unknown, and never another request's.
    """
    serve(world, free_port, ("uvicorn", "leaks:app"), KINDS)
    check(world, KINDS, "{number}")


def serve(world: World, port: int, command: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    """Start a server, ask it, and end it."""
    if command[0] == "uvicorn":
        options = ("--port", str(port), "--log-level", "critical", "--timeout-keep-alive", "60")
    else:
        options = ("--bind", f"127.0.0.1:{port}", "--log-level", "critical", "--keep-alive", "60")
    process = world.start(*command, *options)
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(f"{url}/ready")
    asyncio.run(ask(url, kinds))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)


def check(world: World, kinds: tuple[str, ...], parameter: str) -> None:
    """Every row has one event, and each event's actor, route and request are those that asked for it."""
    with psycopg.connect(world.store) as connection:
        rows = connection.execute(
            "SELECT changes #>> '{owner,after}', changes #>> '{kind,after}', actor_type, actor_id,"
            " attributes ->> 'http.route', attributes ->> 'activity.request.id' FROM activity.events"
            " WHERE name LIKE 'activity.entity.%'"
        ).fetchall()
    assert Counter(kind for _, kind, *_ in rows) == {kind: EACH * ROWS.get(kind, 1) for kind in kinds}
    for owner, kind, actor_type, actor, route, request in rows:
        found = (actor_type, actor, route, request)
        if kind == "executor":
            assert found == ("unknown", None, None, None)
        else:
            assert found == ("user", owner, f"/{kind}/{parameter}", f"request-{owner.partition('/')[0]}")


@pytest.mark.parametrize(
    "command",
    [
        ("uvicorn", "django_leaks:asgi"),
        pytest.param(
            ("gunicorn", "django_leaks:application", "--workers", "2", "--threads", "6"),
            marks=pytest.mark.skipif(sys.platform == "win32", reason="no gunicorn"),
        ),
    ],
    ids=["asgi", "wsgi"],
)
def test_no_actor_leaks_in_django(world: World, free_port: int, command: tuple[str, ...]) -> None:
    """280 interleaved requests: sync views in threads, async views, streams, lazy and late users."""
    serve(world, free_port, command, DJANGO_KINDS)
    check(world, DJANGO_KINDS, "<int:number>")


async def ask_flask(url: str) -> int:
    """Two hundred requests at once, each by a user of its own; how many a worker served at the same time."""
    async with httpx.AsyncClient(
        base_url=url, limits=httpx.Limits(max_connections=20), timeout=120
    ) as client:
        answers = await asyncio.gather(
            *(client.post(f"/tasks/{number}", headers={"x-user": f"u-{number}"}) for number in range(200))
        )
    assert {answer.status_code for answer in answers} == {200}
    return max(int(answer.text) for answer in answers)


THREADS = ("--threads", "6")
GEVENT = ("--worker-class", "gevent", "--worker-connections", "50")


@pytest.mark.skipif(sys.platform == "win32", reason="no gunicorn")
@pytest.mark.parametrize("workers", [THREADS, GEVENT], ids=["threads", "gevent"])
def test_flask_under_gunicorn(world: World, free_port: int, workers: tuple[str, ...]) -> None:
    """Two preforked workers: every event has the user that Flask-Login found after the flush."""
    # gevent replaces threads and sockets; OpenTelemetry's switch does it before anything is imported.
    patch = {"OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH": "patch_all"}
    process = world.start(
        *("gunicorn", "flask_shop:app", "--bind", f"127.0.0.1:{free_port}"),
        *("--workers", "2", *workers, "--log-level", "critical", "--keep-alive", "60"),
        **(patch if workers is GEVENT else {}),
    )
    url = f"http://127.0.0.1:{free_port}"
    wait_until_ready(f"{url}/ready")
    most = asyncio.run(ask_flask(url))
    assert most > 1 or workers is not GEVENT  # they took turns: psycopg waits as gevent does
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    with psycopg.connect(world.store) as connection:
        rows = connection.execute(
            "SELECT changes #>> '{owner,after}', actor_id, attributes ->> 'http.route' FROM activity.events"
        ).fetchall()
    assert len(rows) == 200
    for owner, actor, route in rows:
        assert (actor, route) == (owner, "/tasks/<int:number>")
