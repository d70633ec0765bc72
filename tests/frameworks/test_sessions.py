"""`session.id`: equal for one session, useless to a thief, absent where it would be wrong."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any

import flask
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from otel_activity import semconv
from otel_activity.errors import ConfigurationError
from otel_activity.frameworks import web
from otel_activity.frameworks.sessions import hashed
from otel_activity.settings import Settings
from otel_activity.testing import recorded_events
from tests.frameworks.requests import configure, snapshot
from tests.frameworks.support import memory, save
from tests.frameworks.test_starlette import post

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "a key of the tests alone"


@pytest.fixture(autouse=True)
def options() -> Iterator[None]:
    """The defaults before and after each test."""
    web.configure()
    yield
    web.configure()


class ServerSide(dict[str, Any], flask.sessions.SessionMixin):
    """What Flask-Session makes."""

    sid = "server-side-1"
    accessed = False  # Flask before 3.1.3 takes every session for one that is looked at


def test_the_hash_is_what_the_documentation_says() -> None:
    """The first 128 bits of HMAC-SHA256 with the key, for this purpose alone."""
    whole = hmac.new(KEY.encode(), b"otel_activity session.id\0s-1", hashlib.sha256).hexdigest()
    assert hashed("s-1", KEY) == whole[:32]
    assert hashed("s-1", "another key") != hashed("s-1", KEY) != hashed("s-2", KEY)


def test_a_cookie_that_is_named() -> None:
    """Found among others; its value is nowhere in the event."""
    configure(session_cookie="sid", redact_key=KEY)
    for header in (b"sid=secret-1", b"a=b; sid=secret-1; c=d", b' xsid=no;sid="secret-1"'):
        found = snapshot((b"cookie", header))
        assert found[semconv.SESSION_ID] == hashed("secret-1", KEY)
        assert "secret-1" not in str(found)
    assert found[semconv.SESSION_ID] != snapshot((b"cookie", b"sid=secret-2"))[semconv.SESSION_ID]
    for header in (b"", b"sid", b"sid=", b"xsid=1", b"\xff" * 100_000):
        assert semconv.SESSION_ID not in snapshot((b"cookie", header))


def test_without_a_key_there_is_no_id() -> None:
    """A key made up by each process would make one session look like several."""
    configure(session_cookie="sid")
    assert semconv.SESSION_ID not in snapshot((b"cookie", b"sid=secret-1"))


def test_the_key_is_never_shown() -> None:
    """Neither by the doctor, nor by an error, nor by `repr`."""
    settings = Settings.from_env({"OTEL_ACTIVITY_REDACT_KEY": KEY})
    assert KEY not in repr(settings)
    assert KEY not in str(settings.masked())
    with pytest.raises(ConfigurationError) as raised:
        Settings.from_env({"OTEL_ACTIVITY_REDACT_KEY": "short"})
    assert "short" not in str(raised.value).replace("shorter", "")


def test_starlette(options: None) -> None:
    """A server-side session by its id; Starlette's own has none, and its cookie counts if it is named."""
    engine = memory()

    async def visit(request: Any) -> PlainTextResponse:
        if "server" in request.headers:
            request.scope["session_handler"] = type("Handler", (), {"session_id": "s-1"})()
        save(engine)
        return PlainTextResponse("done")

    routes = [Route("/", visit, methods=["POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, secret_key="x")])
    with recorded_events(redact_key=KEY) as recorder:
        assert post(app, "/", cookie="session=e30=.aaa.bbb") == 200
        assert post(app, "/", server="1") == 200
    with recorded_events(redact_key=KEY, session_cookie="session") as named:
        assert post(app, "/", cookie="session=e30=.aaa.bbb") == 200
    engine.dispose()
    found = [event.attributes.get(semconv.SESSION_ID) for event in recorder.events + named.events]
    assert found == [None, hashed("s-1", KEY), hashed("e30=.aaa.bbb", KEY)]


@pytest.mark.parametrize("key", [None, KEY])
def test_flask(key: str | None) -> None:
    """The `sid` of a server-side session, keyed with our key or else with the application's secret."""
    engine = memory()
    app = flask.Flask("shop")
    app.secret_key = b"the application's"

    class Interface(flask.sessions.SessionInterface):
        def open_session(self, app: Any, request: Any) -> Any:
            return ServerSide() if "server" in request.headers else None

        def save_session(self, app: Any, session: Any, response: Any) -> None:
            if session.accessed:
                response.vary.add("Cookie")

    app.session_interface = Interface()

    @app.post("/")
    def visit() -> str:
        save(engine)
        return "done"

    with recorded_events(redact_key=key) as recorder:
        answer = app.test_client().post("/", headers={"server": "1"})
        app.test_client().post("/")
    engine.dispose()
    assert "Vary" not in answer.headers  # looking at the session is not using it
    expected = hashed("server-side-1", key or app.secret_key)
    assert [event.attributes.get(semconv.SESSION_ID) for event in recorder.events] == [expected, None]
