"""`activity.request`: one event for each request that a rule names, whatever serves it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import flask
import httpx
import pytest
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from fastapi import BackgroundTasks, FastAPI, HTTPException
from opentelemetry import trace
from werkzeug.test import Client as Server

from otel_activity import ActivityASGIMiddleware, ActivityWSGIMiddleware, semconv
from otel_activity.events import Severity
from otel_activity.testing import Recorder, recorded_events
from tests.frameworks import django_shop
from tests.frameworks.django_shop import Shop
from tests.frameworks.support import SPAN, memory, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Engine

    from otel_activity.events import Event


@pytest.fixture
def engine() -> Iterator[Engine]:
    """The application's database."""
    Shop.engine = memory()
    yield Shop.engine
    Shop.engine.dispose()


def requests(recorder: Recorder) -> list[Event]:
    """The request events."""
    return [event for event in recorder.events if event.name == "activity.request"]


def the_request(recorder: Recorder) -> dict[str, Any]:
    """What the one request event says; the recorder is empty afterwards."""
    (event,) = requests(recorder)
    recorder.clear()
    assert event.attributes[semconv.ACTIVITY_ACTION] == "request"
    assert event.attributes[semconv.ACTION_DURATION] >= 0
    assert (event.severity == Severity.INFO) is (event.attributes[semconv.ACTIVITY_OUTCOME] == "success")
    names = (
        semconv.REQUEST_METHOD,
        semconv.ROUTE,
        semconv.STATUS_CODE,
        semconv.ACTIVITY_OUTCOME,
        semconv.ERROR_TYPE,
        semconv.USER_ID,
    )
    return {name: event.attributes[name] for name in names if name in event.attributes}


# --- applications, all with the same three paths --------------------------------------------------


def with_wsgi(app: Any) -> Callable[..., int]:
    """How a WSGI server asks."""

    def ask(method: str, path: str) -> int:
        with Server(app, use_cookies=False).open(path, method=method) as answer:
            _ = answer.data
        return answer.status_code

    return ask


def with_asgi(app: Any) -> Callable[..., int]:
    """How an ASGI server asks; what the application raises is the server's to answer."""

    def ask(method: str, path: str) -> int:
        async def send() -> int:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
                return (await client.request(method, path)).status_code

        return asyncio.run(send())

    return ask


def bare_wsgi() -> Any:
    """An application without a framework, which knows no routes; it is wrapped by the explicit line."""

    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        save(Shop.engine)
        if environ["PATH_INFO"] == "/error/":
            raise RuntimeError
        start_response("403 Forbidden" if environ["PATH_INFO"] == "/refuse/" else "200 OK", [])
        return [b"done"] if environ["REQUEST_METHOD"] == "GET" else (part for part in [b"done"])

    return ActivityWSGIMiddleware(ActivityWSGIMiddleware(application))


def bare_asgi() -> Any:
    """The same for ASGI."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        save(Shop.engine)
        if scope["path"] == "/error/":
            raise RuntimeError
        status = 403 if scope["path"] == "/refuse/" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"do", "more_body": True})
        await send({"type": "http.response.body", "body": b"ne"})

    return ActivityASGIMiddleware(application)


def fastapi_app() -> FastAPI:
    app = FastAPI()

    @app.api_route("/quiet/", methods=["GET", "POST"])
    def quiet() -> None:
        save(Shop.engine)

    @app.get("/refuse/")
    async def refuse() -> None:
        raise HTTPException(403)

    @app.get("/error/")
    def error() -> None:
        raise RuntimeError

    @app.get("/background/")
    def background(tasks: BackgroundTasks) -> None:
        def fail() -> None:
            raise LookupError

        tasks.add_task(fail)

    return app


def flask_app() -> flask.Flask:
    app = flask.Flask("shop")

    @app.route("/quiet/", methods=["GET", "POST"])
    def quiet() -> str:
        save(Shop.engine)
        return "done"

    @app.get("/refuse/")
    def refuse() -> str:
        flask.abort(403)

    @app.get("/error/")
    def error() -> str:
        raise RuntimeError

    @app.get("/stream/")
    def stream() -> Any:
        def parts() -> Iterator[str]:
            yield "do"
            raise LookupError

        return parts()

    return app


SERVED = {
    "wsgi": lambda: with_wsgi(bare_wsgi()),
    "asgi": lambda: with_asgi(bare_asgi()),
    "fastapi": lambda: with_asgi(fastapi_app()),
    "flask": lambda: with_wsgi(flask_app()),
    "django-wsgi": lambda: with_wsgi(get_wsgi_application()),
    "django-asgi": lambda: with_asgi(get_asgi_application()),
}


@pytest.mark.parametrize("kind", SERVED)
def test_every_framework(engine: Engine, kind: str) -> None:
    """Method, route, status, outcome and error of what a rule names; the rest is not reported."""
    ask = SERVED[kind]()
    with recorded_events(requests="writes,403,5xx") as recorder:
        routes = kind not in ("wsgi", "asgi")  # without a framework no route is known
        assert ask("POST", "/quiet/") == 200
        assert the_request(recorder) == {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "activity.outcome": "success",
        } | ({"http.route": "/quiet/"} if routes else {})
        assert ask("GET", "/refuse/") == 403
        assert the_request(recorder) == {
            "http.request.method": "GET",
            "http.response.status_code": 403,
            "activity.outcome": "failure",
            "error.type": "403",
        } | ({"http.route": "/refuse/"} if routes else {})
        assert ask("GET", "/quiet/") == 200
        assert not requests(recorder)
    if kind == "wsgi":
        return  # the test client hands on what the application raises
    with recorded_events(requests="5xx") as recorder:
        assert ask("GET", "/error/") == 500
        found = the_request(recorder)
        assert (found["activity.outcome"], found["error.type"]) == ("failure", "RuntimeError")


def test_an_exception_that_reaches_the_server(engine: Engine) -> None:
    """It goes on unchanged; no response was begun, so no status is known, and it counts as 500."""
    with recorded_events(requests="5xx") as recorder:
        with pytest.raises(RuntimeError):
            with_wsgi(bare_wsgi())("GET", "/error/")
        assert the_request(recorder) == {
            "http.request.method": "GET",
            "activity.outcome": "failure",
            "error.type": "RuntimeError",
        }


def test_an_exception_after_the_response_began(engine: Engine) -> None:
    """The status stays what the client saw, the outcome is a failure."""
    with recorded_events(requests="*") as recorder:
        with pytest.raises(LookupError):
            with_wsgi(flask_app())("GET", "/stream/")
        found = the_request(recorder)
        assert (found["http.response.status_code"], found["error.type"]) == (200, "LookupError")
        assert with_asgi(fastapi_app())("GET", "/background/") == 200
        found = the_request(recorder)
        assert (found["activity.outcome"], found["error.type"]) == ("failure", "LookupError")


def test_a_response_that_begins_anew_with_its_error_by_name(engine: Engine) -> None:
    """Servers call it `exc_info`, and some applications do so, too."""
    begun: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        start_response("500 Oops", [], exc_info=None)
        return [b"oops"]

    def start(status: str, headers: Any, exc_info: Any = None) -> None:
        begun.append(status)

    with recorded_events(requests="*") as recorder:
        ActivityWSGIMiddleware(app)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, start)
        (event,) = requests(recorder)
    assert begun == ["500 Oops"]
    assert event.attributes[semconv.STATUS_CODE] == 500


def test_a_request_that_was_not_answered(engine: Engine) -> None:
    """The client went away: nobody knows how it would have ended."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        """Returns without a response, as Django does then."""

    async def none(message: Any = None) -> Any:
        return None

    app = ActivityASGIMiddleware(application)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with recorded_events(requests="*") as recorder:
        asyncio.run(app(scope, none, none))
        assert the_request(recorder) == {"http.request.method": "GET", "activity.outcome": "unknown"}


def test_paths_stand_in_for_routes(engine: Engine) -> None:
    """Rules compare the path where no route is known; it is not stored, because it may hold anything."""
    with recorded_events(requests="/admin/*") as recorder:
        ask = with_wsgi(bare_wsgi())
        ask("GET", "/admin/users/7")
        ask("GET", "/users/7")
        (event,) = requests(recorder)
    assert "users/7" not in repr(event)


def test_the_user_at_the_end(engine: Engine) -> None:
    """Whoever was found while the request was served is its actor."""
    django_shop.prepare()
    with recorded_events(requests="writes") as recorder:
        client = Server(get_wsgi_application())
        with client.post("/login/", data={"username": "ada", "password": "ada-pw"}) as answer:
            assert answer.status_code == 200
        assert the_request(recorder)["user.id"] == "1"


def spanned_fastapi() -> Any:
    class Spans:
        """As OpenTelemetry's instrumentation does it."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            with trace.use_span(SPAN):
                await self.app(scope, receive, send)

    app = fastapi_app()
    app.add_middleware(Spans)
    return app


def spanned_flask() -> Any:
    app = flask_app()
    inner = app.wsgi_app

    def wsgi_app(environ: Any, start_response: Any) -> Any:
        with trace.use_span(SPAN):
            return inner(environ, start_response)

    app.wsgi_app = wsgi_app  # type: ignore[method-assign]  # as its documentation says
    return app


def test_the_trace_of_the_request(engine: Engine) -> None:
    """Spans are opened and ended inside of our hooks; the event has the request's all the same."""
    for ask in (
        with_asgi(spanned_fastapi()),
        with_wsgi(spanned_flask()),
        with_wsgi(get_wsgi_application()),
        with_asgi(get_asgi_application()),
    ):
        with recorded_events(requests="*") as recorder:
            assert ask("GET", "/quiet/") == 200
            (event,) = requests(recorder)
        assert (event.trace_id, event.span_id, event.trace_flags) == (0xABC, 0xDEF, 1)
    assert not trace.get_current_span().get_span_context().is_valid


def test_nothing_is_reported_unless_asked_for(engine: Engine) -> None:
    """Without the setting there are row events only."""
    with recorded_events() as recorder:
        with_wsgi(flask_app())("POST", "/quiet/")
    assert [event.name for event in recorder.events] == ["activity.entity.created"]
