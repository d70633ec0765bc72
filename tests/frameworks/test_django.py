"""Django under WSGI and ASGI without a change: URL patterns, late users, impersonation, streams."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.test import AsyncClient, Client
from sqlalchemy.orm import Session
from werkzeug.test import Client as Server

from otel_activity import ActivityASGIMiddleware, Actor, activity_context, semconv
from otel_activity.context import current_context
from otel_activity.testing import Recorder, recorded_events
from tests.frameworks import django_shop
from tests.frameworks.django_shop import AnonymousUser, Shop, User, authenticate, user_logged_in
from tests.frameworks.support import Account, actor, authentication, memory, said

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def _project() -> None:
    """Django's tables and users."""
    django_shop.prepare()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Auditing is active and kept in memory; the application has an empty database."""
    Shop.engine = memory()
    with recorded_events() as made:
        yield made
    Shop.engine.dispose()


def cookie(name: str) -> dict[str, str]:
    """The header of a client that is logged in."""
    client = Client()
    client.force_login(User.objects.get(username=name), "django.contrib.auth.backends.ModelBackend")
    return {"cookie": f"sessionid={client.cookies['sessionid'].value}"}


def post(path: str, data: dict[str, str] | None = None, environ: Any = None, **headers: str) -> Any:
    """One request as a WSGI server makes it."""
    server = Server(get_wsgi_application(), use_cookies=False)
    base = {"REMOTE_ADDR": "127.0.0.1", **(environ or {})}
    with server.post(path, data=data, headers=headers, environ_overrides=base) as answer:
        _ = answer.data
    return answer


def apost(path: str, data: dict[str, str] | None = None, app: Any = None, **headers: str) -> httpx.Response:
    """One request as an ASGI server makes it."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app or get_asgi_application())
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.post(path, data=data, headers=headers)

    return asyncio.run(send())


def test_wsgi(recorder: Recorder) -> None:
    """Pattern and user; who is looked at after the flush counts, and the commit sends no SQL for it."""
    headers = {"User-Agent": "x\xff", "X-Request-ID": "r-1", **cookie("ada")}
    assert post("/tasks/5/", **headers).status_code == 200
    assert said(recorder) == {
        "http.request.method": "POST",
        "http.route": "/tasks/<int:number>/",
        "client.address": "127.0.0.1",
        "user_agent.original": "x\ufffd",
        "activity.request.id": "r-1",
        "activity.actor.type": "user",
        "user.id": "1",
        "user.name": "ada",
    }
    assert Shop.sent == 0
    assert current_context() is None


def test_asgi(recorder: Recorder) -> None:
    """A sync view runs in a thread of Django's; the context goes there, through a sync middleware, too."""
    assert apost("/tasks/5/", **cookie("bob")).status_code == 200
    found = said(recorder)
    assert (found[semconv.ROUTE], found[semconv.USER_ID]) == ("/tasks/<int:number>/", "2")
    assert found[semconv.CLIENT_ADDRESS] == "127.0.0.1"


@pytest.mark.parametrize("send", [post, apost])
def test_who_was_not_looked_at(recorder: Recorder, send: Any) -> None:
    """A user that nobody asked for is unknown, and no SQL is sent. Asked for without a session: anonymous."""
    send("/quiet/", **cookie("ada"))
    assert actor(recorder) == ("unknown", None)
    assert Shop.sent == 0
    send("/tasks/5/")
    assert actor(recorder) == ("anonymous", None)


@pytest.mark.parametrize("path", ["/async/", "/async-stream/"])
def test_async_views(recorder: Recorder, path: str) -> None:
    """`request.auser()` tells the user as well, in a view and while a stream is sent."""
    assert apost(path, **cookie("ada")).text == "done"
    assert actor(recorder) == ("user", "1")


@pytest.mark.parametrize("send", [post, apost])
def test_streams(recorder: Recorder, send: Any) -> None:
    """A sync stream is read in the request's context; Django warns about it under ASGI, and that is all."""
    if send is apost:
        with pytest.warns(Warning, match="StreamingHttpResponse must consume"):
            assert send("/stream/", **cookie("ada")).status_code == 200
    else:
        send("/stream/", **cookie("ada"))
    found = said(recorder)
    assert (found[semconv.USER_ID], found[semconv.ROUTE]) == ("1", "/stream/")


@pytest.mark.parametrize("send", [post, apost])
def test_rest_framework(recorder: Recorder, send: Any) -> None:
    """Django REST framework's user counts, though it is found after the row was written."""
    assert send("/rest/", Key="bob", **cookie("ada")).status_code == 200
    assert actor(recorder) == ("user", "2")
    assert send("/rest/", **cookie("ada")).status_code == 200
    assert actor(recorder) == ("anonymous", None)


def test_routes(recorder: Recorder) -> None:
    """A slash in front, the server's prefix, and no anchors of regular expressions."""
    post("/blog/2026/")
    assert said(recorder)[semconv.ROUTE] == "/blog/(?P<year>[0-9]{4})/"
    post("/quiet/", environ={"SCRIPT_NAME": "/shop"})
    assert said(recorder)[semconv.ROUTE] == "/shop/quiet/"
    assert post("/nowhere/").status_code == 404


def test_an_error_ends_the_context(recorder: Recorder) -> None:
    """Django's error handling is not touched."""
    for send in (post, apost):
        assert send("/error/").status_code == 500
        assert said(recorder)[semconv.ROUTE] == "/error/"
    assert current_context() is None


def test_a_user_that_is_not_loaded(recorder: Recorder) -> None:
    """Fields that were not loaded are left out, not fetched."""
    post("/deferred/")
    found = said(recorder)
    assert found[semconv.USER_ID] == "1"
    assert semconv.USER_NAME not in found
    assert Shop.sent == 0


def test_users_of_every_kind(recorder: Recorder) -> None:
    """SQLAlchemy's objects, plain ones, ids, Django's anonymous one; an unsaved row has no id."""
    with Session(Shop.engine) as session:
        account = Account(number=7, name="Grace")
        session.add(account)
        session.commit()
    recorder.clear()
    for user, expected in [
        (account, ("user", "7")),
        ({"sub": "u-8"}, ("user", "u-8")),
        ("u-9", ("user", "u-9")),
        (AnonymousUser(), ("anonymous", None)),
        (None, ("unknown", None)),
        (User(username="new"), ("unknown", None)),
    ]:
        Shop.user = user
        assert post("/own/").status_code == 200
        assert actor(recorder) == expected


def test_remote_user(recorder: Recorder) -> None:
    """The server's user and Django's are one if Django took the name from it; else unknown, with both."""
    post("/tasks/5/", environ={"REMOTE_USER": "ada"}, **cookie("ada"))
    assert actor(recorder) == ("user", "1")
    post("/remote/", environ={"REMOTE_USER": "ada@EXAMPLE"})
    assert actor(recorder) == ("user", "1")
    post("/tasks/5/", environ={"REMOTE_USER": "staging"}, **cookie("ada"))
    assert said(recorder)[semconv.ACTOR_CANDIDATES] == [
        {"source": "request.user", "id": "1"},
        {"source": "REMOTE_USER", "id": "staging"},
    ]
    post("/quiet/", environ={"REMOTE_USER": "ada"})
    assert actor(recorder) == ("user", "ada")


def test_impersonation(recorder: Recorder) -> None:
    """The actor is who sits at the keyboard; the user that is shown is who it is done for."""
    post("/quiet/", Impersonate="bob", **cookie("ada"))
    found = said(recorder)
    assert (found[semconv.USER_ID], found[semconv.USER_NAME]) == ("1", "ada")
    assert found[semconv.ACTOR_ON_BEHALF_OF] == "2"


def test_hijacked_sessions(recorder: Recorder) -> None:
    """Rows and the logout are the person's. The login itself cannot be told from one with a password."""
    headers = cookie("ada")
    recorder.clear()
    post("/hijacked/", **headers)
    login, row, logout = recorder.events
    assert login.attributes[semconv.ACTOR_TYPE] == "unknown"
    assert login.attributes[semconv.ACTOR_CANDIDATES] == [
        {"source": "login", "id": "2"},
        {"source": "session", "id": "1"},
    ]
    assert (login.attributes[semconv.ENTITY_ID], logout.attributes[semconv.ENTITY_ID]) == ("2", "2")
    for event in (row, logout):
        assert event.attributes[semconv.USER_ID] == "1"
        assert event.attributes[semconv.ACTOR_ON_BEHALF_OF] == "2"


def test_an_impersonation_of_the_projects_own(recorder: Recorder) -> None:
    """The session's user is behind it, or it is a mistake: unknown, with both. A token's user is certain."""
    post("/own-impersonation/", **cookie("ada"))
    assert said(recorder)[semconv.ACTOR_CANDIDATES] == [
        {"source": "request.user", "id": "2"},
        {"source": "session", "id": "1"},
    ]
    for headers in (cookie("bob"), {"Token": "bob's", **cookie("ada")}):
        post("/own-impersonation/", **headers)
        assert actor(recorder) == ("user", "2")
    post("/own-impersonation/")
    assert actor(recorder) == ("anonymous", None)


@pytest.mark.parametrize("send", [post, apost])
def test_what_a_logout_does_is_the_users(recorder: Recorder, send: Any) -> None:
    """Not an anonymous visitor's: neither what was written before, nor what the request writes after it."""
    send("/leaving/", **cookie("ada"))
    assert [event.attributes.get(semconv.USER_ID) for event in recorder.of("Task")] == ["1", "1"]
    recorder.clear()
    send("/leaving/")
    assert [event.attributes[semconv.ACTOR_TYPE] for event in recorder.of("Task")] == ["anonymous"] * 2


def test_the_test_clients(recorder: Recorder) -> None:
    """Django's own test clients call no server's interface, and have a context all the same."""
    client = Client()
    client.force_login(User.objects.get(username="ada"), "django.contrib.auth.backends.ModelBackend")
    client.post("/tasks/5/")
    found = said(recorder)
    assert (found[semconv.ROUTE], found[semconv.USER_ID]) == ("/tasks/<int:number>/", "1")
    async_to_sync(AsyncClient().post)("/tasks/5/")
    assert actor(recorder) == ("anonymous", None)
    assert current_context() is None


def test_explicit_contexts_and_middleware(recorder: Recorder) -> None:
    """`activity_context` inside the request wins, an explicit middleware does no harm."""
    apost("/tasks/5/", app=ActivityASGIMiddleware(get_asgi_application()), **cookie("ada"))
    assert said(recorder)[semconv.ROUTE] == "/tasks/<int:number>/"
    with activity_context(actor=Actor(type="system", id="cron")):
        post("/quiet/")
    assert actor(recorder) == ("system", "cron")


ADA = {
    "user.id": "1",
    "user.name": "ada",
    "activity.actor.type": "user",
    "activity.entity.type": "User",
    "activity.entity.id": "1",
    "activity.outcome": "success",
}


@pytest.mark.parametrize(("send", "path"), [(post, "/login/"), (apost, "/login/"), (apost, "/async-login/")])
def test_logins_and_logouts(recorder: Recorder, send: Any, path: str) -> None:
    """Each is an event of the user's; nobody's logout is none; the request belongs to the event."""
    assert send(path, data={"username": "ada", "password": "ada-pw"}).status_code == 200
    (event,) = recorder.events
    assert (event.name, event.attributes[semconv.ROUTE]) == ("activity.auth.login", path)
    assert authentication(recorder) == [{"name": "login", **ADA}]
    send("/logout/", **cookie("ada"))
    assert [found for found in authentication(recorder) if found["name"] == "logout"] == [
        {"name": "logout", **ADA}
    ]
    send("/logout/")
    assert authentication(recorder) == []


@pytest.mark.parametrize(("send", "path"), [(post, "/login/"), (apost, "/login/"), (apost, "/async-login/")])
def test_a_refused_login(recorder: Recorder, send: Any, path: str) -> None:
    """The name that was given is a detail, not the actor, and no credential but the name is kept."""
    assert send(path, data={"username": "ada\x00\n", "password": "wrong-s3cret"}).status_code == 401
    assert b"s3cret" not in repr(recorder.events).encode()
    (found,) = authentication(recorder)
    assert found == {
        "name": "failed",
        "activity.outcome": "failure",
        "activity.actor.type": "unknown",
        "activity.details": {"username": "ada"},
    }


def test_other_credentials_stay_out(recorder: Recorder) -> None:
    """What Django does not know to be secret is left out all the same; so is what is no text."""
    authenticate(pin="1234", otp="9876", username=["ada"], email="ada@example.org")
    (found,) = authentication(recorder)
    assert found["activity.details"] == {"email": "ada@example.org"}


def test_a_login_name_can_be_redacted() -> None:
    """People type passwords into the wrong field; the name of the field can be named secret."""
    with recorded_events(redact=["username"]) as recorder:
        authenticate(username="hunter2", password="ada")
        (found,) = authentication(recorder)
    assert found["activity.details"] == {"username": {"$redacted": True}}


def test_a_login_survives_the_rollback(recorder: Recorder) -> None:
    """A refused login is no part of the transaction that it happened in."""
    with Session(Shop.engine) as session:
        session.add(Account(number=1, name="x"))
        session.flush()
        authenticate(username="ada", password="wrong")
        session.rollback()
    assert [event.name for event in recorder.events] == ["activity.auth.failed"]


def test_a_user_that_cannot_be_read(recorder: Recorder) -> None:
    """The login goes on; the event says what was wrong."""

    class Strange:
        def save(self, update_fields: list[str]) -> None:
            """What Django itself calls when somebody logs in."""

    user_logged_in.send(sender=Strange, request=None, user=Strange())
    (found,) = authentication(recorder)
    assert (found["activity.actor.type"], found["activity.actor.error.type"]) == ("unknown", "TypeError")


def test_installed_and_removed() -> None:
    """Every method of Django is its own again."""
    from django.core.handlers import asgi, base, wsgi

    names = ("__call__", "__call__", "get_response", "get_response_async", "resolve_request")
    owners = (wsgi.WSGIHandler, asgi.ASGIHandler, *[base.BaseHandler] * 3)
    before = [getattr(owner, name) for owner, name in zip(owners, names, strict=True)]
    with recorded_events():
        assert all(
            getattr(owner, name) is not method
            for owner, name, method in zip(owners, names, before, strict=True)
        )
        assert user_logged_in.has_listeners()
    assert [getattr(owner, name) for owner, name in zip(owners, names, strict=True)] == before
    assert authenticate(username="ada", password="wrong") is None
