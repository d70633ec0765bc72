"""Flask and any WSGI application without a change: rules, Flask-Login, streams, threads."""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import flask
import flask_jwt_extended
import flask_login
import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from otel_activity import ActivityWSGIMiddleware, activity_context, semconv
from otel_activity.context import current_context
from otel_activity.frameworks.celery import carried_now
from otel_activity.frameworks.hook import MethodHook
from otel_activity.testing import Recorder, recorded_events
from tests.frameworks.support import Base, Task, actor, authentication, memory, said, save

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Engine


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Auditing is active and kept in memory."""
    with recorded_events() as made:
        yield made


@pytest.fixture
def engine() -> Iterator[Engine]:
    """The application's database."""
    made = memory()
    yield made
    made.dispose()


class User(flask_login.UserMixin):  # type: ignore[misc]  # its package is not typed
    def __init__(self, key: str) -> None:
        self.id = key
        self.name = key.title()


def flask_app(engine: Engine) -> flask.Flask:
    app = flask.Flask("shop")
    app.secret_key = "for tests"
    manager = flask_login.LoginManager(app)

    @manager.request_loader
    def load(request: flask.Request) -> User | None:
        return User(request.headers["User"]) if "User" in request.headers else None

    @app.post("/tasks/<int:number>")
    @flask_login.login_required
    def create(number: int) -> str:
        save(engine, flask.request.headers["User"])
        return "done"

    @app.post("/open")
    def open_to_all() -> str:
        _ = flask_login.current_user.is_authenticated
        save(engine)
        return "done"

    @app.post("/nobody")
    def nobody() -> str:
        save(engine)
        return "done"

    @app.post("/stream")
    def stream() -> Any:
        @flask.stream_with_context
        def parts() -> Iterator[str]:
            assert flask_login.current_user.is_authenticated
            save(engine)
            yield "done"

        return parts()

    @app.post("/closing")
    def closing() -> Any:
        _ = flask_login.current_user.is_authenticated
        response = flask.make_response("done")
        response.call_on_close(lambda: save(engine))
        return response

    @app.post("/login")
    def login() -> str:
        flask_login.login_user(User(flask.request.headers["Name"]))
        return "done"

    @app.post("/logout")
    def logout() -> str:
        flask_login.logout_user()
        return "done"

    @app.post("/switch")
    @flask_login.login_required
    def switch() -> str:
        """Writes before and after another user, or nobody, takes the place of this one."""
        name = flask.request.headers.get("Name")
        with Session(engine) as session:
            session.add(Task(name="before"))
            session.flush()
            flask_login.logout_user() if name is None else flask_login.login_user(User(name))
            session.commit()
        save(engine, "after")
        return "done"

    @app.post("/error")
    def error() -> str:
        save(engine)
        raise RuntimeError

    return app


def test_flask_login(recorder: Recorder, engine: Engine) -> None:
    """Rule, user and name; anonymous when Flask-Login was asked, unknown when it was not."""
    client = flask_app(engine).test_client()
    response = client.post("/tasks/5", headers={"User": "ada", "User-Agent": "x\xff", "X-Request-ID": "r-1"})
    assert response.status_code == 200
    assert said(recorder) == {
        "http.request.method": "POST",
        "http.route": "/tasks/<int:number>",
        "client.address": "127.0.0.1",
        "user_agent.original": "x\ufffd",
        "activity.request.id": "r-1",
        "activity.actor.type": "user",
        "user.id": "ada",
        "user.name": "Ada",
    }
    client.post("/open")
    assert actor(recorder) == ("anonymous", None)
    client.post("/nobody", headers={"User": "ada"})
    assert actor(recorder) == ("unknown", None)


@pytest.mark.parametrize("path", ["/stream", "/closing"])
def test_work_after_the_view_is_the_requests(recorder: Recorder, engine: Engine, path: str) -> None:
    """A stream's parts and what runs when the response is closed have the request's actor and route."""
    response = flask_app(engine).test_client().post(path, headers={"User": "ada"})
    assert response.text == "done"
    response.close()
    found = said(recorder)
    assert (found[semconv.USER_ID], found[semconv.ROUTE]) == ("ada", path)
    assert current_context() is None


def test_an_error_ends_the_context(recorder: Recorder, engine: Engine) -> None:
    """The application's error handling is not touched."""
    assert flask_app(engine).test_client().post("/error").status_code == 500
    assert current_context() is None
    assert said(recorder)[semconv.ROUTE] == "/error"


def test_two_sources_that_disagree(recorder: Recorder, engine: Engine) -> None:
    """The server's user and Flask-Login's are different: unknown, with both."""
    client = flask_app(engine).test_client()
    client.post("/tasks/1", headers={"User": "ada"}, environ_base={"REMOTE_USER": "bob"})
    assert said(recorder)[semconv.ACTOR_CANDIDATES] == [
        {"source": "flask_login", "id": "ada"},
        {"source": "REMOTE_USER", "id": "bob"},
    ]
    client.post("/tasks/1", headers={"User": "ada"}, environ_base={"REMOTE_USER": "ada"})
    assert actor(recorder) == ("user", "ada")
    client.post("/nobody", environ_base={"REMOTE_USER": "bob"})
    assert actor(recorder) == ("user", "bob")


def test_threads_do_not_leak(recorder: Recorder, tmp_path: Any) -> None:
    """300 requests by users of their own over 16 threads and 4 connections."""
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", pool_size=4, connect_args={"timeout": 60})
    Base.metadata.create_all(engine)
    app = flask_app(engine)

    def ask(number: int) -> int:
        return app.test_client().post("/tasks/1", headers={"User": f"u-{number}"}).status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(300))) == {200}
    engine.dispose()
    events = recorder.of("Task")
    assert len(events) == 300
    for event in events:
        assert event.attributes[semconv.CHANGES]["name"]["after"] == event.attributes[semconv.USER_ID]


def test_a_change_committed_in_another_request_keeps_its_user(recorder: Recorder, engine: Engine) -> None:
    """Flask's `g` of the request that made the change answers, not that of the one that commits."""
    app = flask_app(engine)
    shared = Session(engine)

    @app.post("/flush")
    def flush() -> str:
        shared.add(Task(name=flask_login.current_user.id))
        shared.flush()
        return "done"

    @app.post("/commit")
    def commit() -> str:
        shared.add(Task(name=flask_login.current_user.id))
        shared.commit()
        return "done"

    client = app.test_client()
    client.post("/flush", headers={"User": "ada"})
    client.post("/commit", headers={"User": "bob"})
    shared.close()
    found = [
        (event.attributes[semconv.CHANGES]["name"]["after"], event.attributes[semconv.USER_ID])
        for event in recorder.of("Task")
    ]
    assert found == [("ada", "ada"), ("bob", "bob")]


def test_logins_and_logouts(recorder: Recorder, engine: Engine) -> None:
    """Each is an event of the user's; nobody's logout is none, and neither is a page that is refused."""
    client = flask_app(engine).test_client()
    client.post("/login", headers={"Name": "ada"})
    expected = {
        "user.id": "ada",
        "user.name": "Ada",
        "activity.actor.type": "user",
        "activity.entity.type": "User",
        "activity.entity.id": "ada",
        "activity.outcome": "success",
    }
    assert authentication(recorder) == [{"name": "login", **expected}]
    client.post("/logout", headers={"User": "ada"})
    assert authentication(recorder) == [{"name": "logout", **expected}]
    client.post("/logout")
    assert client.post("/tasks/5").status_code == 401
    assert authentication(recorder) == []


def test_what_a_logout_does_is_the_users(recorder: Recorder, engine: Engine) -> None:
    """Not an anonymous visitor's: neither what was written before, nor what the request writes after it."""
    flask_app(engine).test_client().post("/switch", headers={"User": "ada"})
    assert [
        (event.attributes[semconv.ACTOR_TYPE], event.attributes.get(semconv.USER_ID))
        for event in recorder.of("Task")
    ] == [("user", "ada"), ("user", "ada")]


def test_a_login_of_somebody_else_is_nobodys(recorder: Recorder, engine: Engine) -> None:
    """It may be an impersonation: the login and the rows around it are unknown, with both users."""
    flask_app(engine).test_client().post("/switch", headers={"User": "ada", "Name": "bob"})
    for event in recorder.events:
        assert event.attributes[semconv.ACTOR_TYPE] == "unknown"
        assert [each["id"] for each in event.attributes[semconv.ACTOR_CANDIDATES]] == ["bob", "ada"]
    assert len(recorder.events) == 3


def test_the_same_users_login_is_theirs(recorder: Recorder, engine: Engine) -> None:
    """Logged in again, after a change of the password perhaps."""
    flask_app(engine).test_client().post("/switch", headers={"User": "ada", "Name": "ada"})
    assert [event.attributes[semconv.USER_ID] for event in recorder.events] == ["ada"] * 3


def test_a_version_of_a_framework_that_lacks_what_is_hooked(caplog: pytest.LogCaptureFixture) -> None:
    """It is imported and works all the same; a warning says what is not read."""
    hook = MethodHook("flask.app", "Flask", "no_such_method", lambda original: original)
    hook.install()
    hook.uninstall()
    assert "flask.app has no Flask.no_such_method" in caplog.text


@pytest.mark.parametrize("path", ["/kept", "/kept-stream"])
def test_work_that_outlives_its_request_is_nobodys(recorder: Recorder, engine: Engine, path: str) -> None:
    """A copy of the context that is used when the response is closed: neither in rows nor in messages."""
    copied: list[contextvars.Context] = []
    app = flask_app(engine)

    @app.post("/kept")
    def kept() -> str:
        _ = flask_login.current_user.is_authenticated
        copied.append(contextvars.copy_context())
        return "done"

    @app.post("/kept-stream")
    def kept_stream() -> Any:
        kept()
        return iter(["done"])

    with app.test_client().post(path, headers={"User": "ada", "X-Request-ID": "r-1"}) as response:
        assert response.data == b"done"
    copied[0].run(save, engine)
    found = said(recorder)
    assert (found[semconv.ACTOR_TYPE], found[semconv.REQUEST_ID]) == ("unknown", "r-1")
    assert found[semconv.ACTOR_CANDIDATES] == [{"source": "ended", "id": "ada"}]
    assert copied[0].run(carried_now) == '{"version":1,"actor":{"type":"unknown"},"request":"r-1"}'


def test_any_wsgi_application(recorder: Recorder, engine: Engine) -> None:
    """By one explicit line; lists are handed on as they are, everything else is read in the context."""
    closed = threading.Event()

    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            save(engine)
            yield b"done"

        def close(self) -> None:
            assert current_context() is not None
            closed.set()

    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [b"list"] if environ["PATH_INFO"] == "/list" else Parts()

    app = ActivityWSGIMiddleware(ActivityWSGIMiddleware(application))
    environ = {"REQUEST_METHOD": "PUT", "PATH_INFO": "/list", "REMOTE_ADDR": "192.0.2.1"}
    assert app(environ.copy(), lambda *args: None) == [b"list"]
    response = app({**environ, "PATH_INFO": "/", "REMOTE_USER": "ada"}, lambda *args: None)
    assert current_context() is None
    assert list(response) == [b"done"]
    response.close()
    assert closed.is_set()
    assert current_context() is None
    found = said(recorder)
    assert (found[semconv.USER_ID], found[semconv.CLIENT_ADDRESS]) == ("ada", "192.0.2.1")
    assert found[semconv.REQUEST_METHOD] == "PUT"


def test_flask_jwt_extended(recorder: Recorder, engine: Engine) -> None:
    """Claims that it has verified name the actor; a token that nobody has verified names nobody."""
    app = flask.Flask("shop")
    app.config["JWT_SECRET_KEY"] = "for tests, and long enough for SHA-256"
    flask_jwt_extended.JWTManager(app)

    @app.post("/verified")
    @flask_jwt_extended.jwt_required()
    def verified() -> str:
        save(engine)
        return "done"

    @app.post("/open")
    def open_to_all() -> str:
        save(engine)
        return "done"

    with app.app_context():
        token = flask_jwt_extended.create_access_token("u-7", additional_claims={"act": {"sub": "admin"}})
    headers = {"Authorization": f"Bearer {token}"}
    assert app.test_client().post("/verified", headers=headers).status_code == 200
    found = said(recorder)
    assert (found[semconv.USER_ID], found[semconv.ACTOR_ON_BEHALF_OF]) == ("admin", "u-7")
    assert app.test_client().post("/open", headers=headers).status_code == 200
    assert actor(recorder) == ("unknown", None)


def test_the_requests_span(recorder: Recorder, engine: Engine) -> None:
    """A span that is started before the view, as OpenTelemetry's instrumentation does, is the request's."""
    tracer = TracerProvider().get_tracer("tests")
    app = flask.Flask("shop")

    @app.before_request
    def start() -> None:
        flask.g.span = tracer.start_as_current_span("request")
        flask.g.span.__enter__().set_attribute("user.id", flask.request.headers["User"])

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        flask.g.span.__exit__(None, None, None)

    @app.post("/")
    def view() -> str:
        with tracer.start_as_current_span("inner"):
            save(engine)
        return "done"

    app.test_client().post("/", headers={"User": "ada"})
    assert actor(recorder) == ("user", "ada")


def test_a_context_in_a_streams_generator(recorder: Recorder, engine: Engine) -> None:
    """It lasts from part to part, ends with its block, and is not in force between the parts."""

    def parts() -> Iterator[bytes]:
        for name in ("ada", "bob"):
            with activity_context(actor=name):
                for _ in range(2):
                    save(engine, name)
                    yield b"x"
        save(engine, "nobody")

    app = ActivityWSGIMiddleware(lambda environ, start_response: parts())
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    first, second = (app(dict(environ), lambda *args: None) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one == other == b"x"
        assert current_context() is None
    found = [
        (event.attributes[semconv.CHANGES]["name"]["after"], event.attributes.get(semconv.USER_ID))
        for event in recorder.of("Task")
    ]
    assert Counter(found) == {("ada", "ada"): 4, ("bob", "bob"): 4, ("nobody", None): 2}
