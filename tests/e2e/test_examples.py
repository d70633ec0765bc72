"""The examples as real servers, unchanged: who did what is stored as it was, under every server."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from tests.e2e.test_auto_instrumentation import wait_until_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.e2e.support import World

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
USERS = ("ada", "bob", "eve", "joe")
TIMES = 8
OPTIONS = {"SECRET_KEY": "for tests", "OTEL_ACTIVITY_REQUESTS": "401|403,GET */export"}


def gunicorn(app: str, *options: str) -> Any:
    """A way to serve a WSGI application, not on Windows."""
    return pytest.param(
        ("gunicorn", app, "--chdir", str(EXAMPLES), *options),
        marks=pytest.mark.skipif(sys.platform == "win32", reason="no gunicorn"),
        id="-".join(["gunicorn", *(option.strip("-") for option in options)]),
    )


def uvicorn(app: str) -> Any:
    """A way to serve an ASGI application."""
    return pytest.param(("uvicorn", app, "--app-dir", str(EXAMPLES)), id="uvicorn")


def set_up(world: World, *command: str) -> None:
    """Run an example's own command, without auditing."""
    arguments = [argument for name in USERS for argument in ("--user", f"{name}:pw-of-{name}")]
    arguments[1] += ":staff" if "helpdesk.manage" in command else ":approver"
    subprocess.run(
        [sys.executable, *command, "setup", *arguments],
        check=True,
        cwd=EXAMPLES,
        env=world.environment(**OPTIONS),
        capture_output=True,
    )


def serve(
    world: World, port: int, command: tuple[str, ...], ask: Callable[[str], Awaitable[None]]
) -> list[dict[str, Any]]:
    """Start a server, ask it, end it, and give what is stored, in the order it was done."""
    where = ("--port", str(port)) if command[0] == "uvicorn" else ("--bind", f"127.0.0.1:{port}")
    process = world.start(*command, *where, "--log-level", "critical", **OPTIONS)
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(f"{url}/health")
    asyncio.run(ask(url))  # type: ignore[arg-type]  # a coroutine is awaitable
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    with psycopg.connect(world.store, row_factory=dict_row) as connection:
        events = connection.execute("SELECT * FROM activity.events ORDER BY time").fetchall()
    assert "pw-of-" not in repr(events)
    return events


@asynccontextmanager
async def signed_in(url: str, name: str) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client with a session of its own, and the user's id."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        answer = await client.get("/session")  # where Django gives the token that it wants back
        client.headers["x-csrftoken"] = answer.cookies.get("csrftoken", "-")
        answer = await client.post("/session", json={"username": name, "password": f"pw-of-{name}"})
        assert answer.status_code == 200
        client.headers["x-csrftoken"] = answer.cookies.get("csrftoken", "-")
        yield client, str(answer.json()["id"])
        assert (await client.delete("/session")).status_code == 200


async def refused(url: str, name: str) -> None:
    """A wrong password."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        answer = await client.get("/session")
        client.headers["x-csrftoken"] = answer.cookies.get("csrftoken", "-")
        answer = await client.post("/session", json={"username": name, "password": "pw-of-nobody"})
        assert answer.status_code == 401


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The events of one name."""
    return [event for event in events if event["name"] == name]


def reported(events: list[dict[str, Any]]) -> Counter[Any]:
    """How often each request was reported: method, route, status, user."""
    return Counter(
        (
            event["attributes"]["http.request.method"],
            event["attributes"]["http.route"],
            event["attributes"]["http.response.status_code"],
            event["actor_id"],
        )
        for event in named(events, "activity.request")
    )


@pytest.mark.parametrize(
    "command",
    [
        gunicorn("helpdesk.wsgi", "--threads", "6"),
        gunicorn("helpdesk.wsgi", "--workers", "2"),
        uvicorn("helpdesk.asgi:application"),
    ],
)
def test_helpdesk(world: World, free_port: int, command: tuple[str, ...]) -> None:
    """Django: sync and async views, logins, refusals and an export, by users who work at the same time."""
    ids: dict[str, str] = {}

    async def work(url: str, name: str) -> None:
        async with signed_in(url, name) as (client, ids[name]):
            for number in range(TIMES):
                ticket = (await client.post("/tickets", json={"subject": f"{name} {number}"})).json()["id"]
                reply = await client.post(f"/tickets/{ticket}/replies", json={"text": name})
                assert reply.status_code == 201
                assert (await client.post(f"/tickets/{ticket}")).status_code == 204
            allowed = name == "ada"
            assert (await client.delete(f"/tickets/{ticket}")).status_code == (204 if allowed else 403)
            assert (await client.get("/tickets/export")).status_code == (200 if allowed else 403)

    async def ask(url: str) -> None:
        await asyncio.gather(*(work(url, name) for name in USERS), refused(url, "ada"))

    set_up(world, "-m", "helpdesk.manage")
    events = serve(world, free_port, command, ask)
    for event in named(events, "activity.entity.created"):
        changes = event["changes"]
        owner = changes["opened_by" if event["entity_type"] == "Ticket" else "author"]["after"]
        assert (event["actor_type"], event["actor_id"]) == ("user", str(owner))
    for event in named(events, "activity.entity.updated"):
        assert event["actor_id"] == str(event["changes"]["closed_by"]["after"])
    for event in named(events, "activity.entity.deleted"):
        assert event["actor_id"] == ids["ada"]
    assert Counter((event["name"], event["entity_type"]) for event in events) == {
        ("activity.entity.created", "Ticket"): len(USERS) * TIMES,
        ("activity.entity.created", "Reply"): len(USERS) * TIMES,
        ("activity.entity.updated", "Ticket"): len(USERS) * TIMES,
        ("activity.entity.deleted", "Ticket"): 1,
        ("activity.entity.deleted", "Reply"): 1,
        ("activity.auth.login", "User"): len(USERS),
        ("activity.auth.logout", "User"): len(USERS),
        ("activity.auth.failed", None): 1,
        ("activity.request", None): 1 + 1 + 2 * (len(USERS) - 1),
    }
    for name in ("activity.auth.login", "activity.auth.logout"):
        assert {event["entity_id"] for event in named(events, name)} == set(ids.values())
        assert all(event["entity_id"] == event["actor_id"] for event in named(events, name))
    (failed,) = named(events, "activity.auth.failed")
    assert failed["attributes"]["activity.details"] == {"username": "ada"}
    assert failed["actor_id"] is None
    others = [ids[name] for name in USERS if name != "ada"]
    assert reported(events) == {
        ("POST", "/session", 401, None): 1,
        ("GET", "/tickets/export", 200, ids["ada"]): 1,
        **{("DELETE", "/tickets/<int:number>", 403, key): 1 for key in others},
        **{("GET", "/tickets/export", 403, key): 1 for key in others},
    }


@pytest.mark.parametrize(
    "command",
    [gunicorn("invoices.app:app", "--threads", "6"), gunicorn("invoices.app:app", "--workers", "2")],
)
def test_invoices(world: World, free_port: int, command: tuple[str, ...]) -> None:
    """Flask: what was rolled back after the write is not there, and every row has the user who signed in."""
    ids: dict[str, str] = {}

    async def work(url: str, name: str) -> None:
        async with signed_in(url, name) as (client, ids[name]):
            for _ in range(TIMES):
                invoice = (await client.post("/invoices", json={"customer": name, "amount": "12.50"})).json()
                approval = await client.post(f"/invoices/{invoice['id']}/approval")
                assert approval.status_code == (409 if name == "ada" else 403)
            assert (await client.delete(f"/invoices/{invoice['id']}")).status_code == 204
            assert (await client.get("/invoices/export")).status_code == 200

    async def ask(url: str) -> None:
        await asyncio.gather(*(work(url, name) for name in USERS), refused(url, "ada"))

    set_up(world, "-m", "flask", "--app", "invoices.app")
    events = serve(world, free_port, command, ask)
    for event in named(events, "activity.entity.created"):
        assert event["actor_id"] == str(event["changes"]["created_by"]["after"])
    for event in named(events, "activity.entity.deleted"):
        assert event["actor_id"] == str(event["changes"]["created_by"]["before"])
    everyone = len(USERS)
    assert Counter(event["name"] for event in events) == {
        "activity.entity.created": everyone * TIMES,
        "activity.entity.deleted": everyone,
        "activity.auth.login": everyone,
        "activity.auth.logout": everyone,
        "activity.request": everyone + 1 + (everyone - 1) * TIMES,
    }
    assert reported(events) == {
        ("POST", "/session", 401, None): 1,
        **{("GET", "/invoices/export", 200, key): 1 for key in ids.values()},
        **{
            ("POST", "/invoices/<int:number>/approval", 403, ids[name]): TIMES
            for name in USERS
            if name != "ada"
        },
    }


@pytest.mark.parametrize("command", [uvicorn("project_board.app:app")])
def test_project_board(world: World, free_port: int, command: tuple[str, ...]) -> None:
    """FastAPI: sync and async endpoints, by people whose passwords a dependency has checked, or by nobody."""
    ids: dict[str, str] = {}

    async def work(url: str, name: str) -> None:
        login = (f"{name}@example.org", f"pw-of-{name}")
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            person = {"email": login[0], "name": name, "password": login[1]}
            ids[name] = str((await client.post("/users", json=person)).json()["id"])
            wrong = await client.post("/projects", json={}, auth=(login[0], "pw-of-nobody"))
            assert wrong.status_code == 401
            given = {"owner_id": int(ids[name]), "name": name, "budget": "100.00"}
            answer = await client.post("/projects", json=given, auth=login)
            assert answer.status_code == 201
            project = answer.json()["id"]
            for number in range(TIMES):
                task = {"title": f"{name} {number}", "assignee_id": int(ids[name])}
                answer = await client.post(f"/projects/{project}/tasks", json=task, auth=login)
                assert answer.status_code == 201

    async def ask(url: str) -> None:
        await asyncio.gather(*(work(url, name) for name in USERS))

    events = serve(world, free_port, command, ask)
    people = [event for event in events if event["entity_type"] == "User"]
    assert [event["actor_type"] for event in people] == ["unknown"] * len(USERS)
    for event in events:
        if event["entity_type"] in ("Project", "Task"):
            owner = event["changes"]["owner_id" if event["entity_type"] == "Project" else "assignee_id"]
            assert event["actor_id"] == str(owner["after"])
    assert Counter(event["entity_type"] for event in events) == {
        "User": len(USERS),
        "Project": len(USERS),
        "Member": len(USERS),
        "Task": len(USERS) * TIMES,
        None: len(USERS),
    }
    assert reported(events) == {("POST", "/projects", 401, None): len(USERS)}
