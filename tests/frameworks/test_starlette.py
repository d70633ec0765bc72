"""Starlette and FastAPI without a change: route templates and the framework's own users."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from otel_activity import ActivityASGIMiddleware, Actor, activity_context, log_user_action, semconv
from otel_activity.testing import Recorder, recorded_events
from tests.frameworks.support import Account, Task, actor, memory, said, save

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

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


def post(app: Any, path: str, **headers: str) -> int:
    """One request, in the event loop of its own that httpx's transport needs."""

    async def send() -> int:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return (await client.post(path, headers=headers)).status_code

    return asyncio.run(send())


class Header(AuthenticationBackend):
    """Believes a header; good enough for a test."""

    async def authenticate(self, conn: Any) -> Any:
        user = conn.headers.get("user")
        return (AuthCredentials(), SimpleUser(user)) if user else None


def starlette_app(engine: Engine) -> Starlette:
    async def create(request: Request) -> PlainTextResponse:
        if "state" in request.headers:
            request.state.user = {"id": request.headers["state"]}
        save(engine)
        return PlainTextResponse("done")

    routes = [
        Route("/tasks/{number:int}", create, methods=["POST"]),
        Mount("/v1", routes=[Mount("/api", routes=[Route("/tasks/{number}", create, methods=["POST"])])]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(AuthenticationMiddleware, backend=Header())])


def test_starlette(recorder: Recorder, engine: Engine) -> None:
    """Templates, through mounts too; AuthenticationMiddleware's user, or anonymous."""
    app = starlette_app(engine)
    post(app, "/tasks/5", user="ada")
    found = said(recorder)
    assert (found[semconv.ROUTE], found[semconv.USER_ID]) == ("/tasks/{number}", "ada")
    post(app, "/v1/api/tasks/5")
    found = said(recorder)
    assert found[semconv.ROUTE] == "/v1/api/tasks/{number}"
    assert found[semconv.ACTOR_TYPE] == "anonymous"


def test_sources_that_disagree(recorder: Recorder, engine: Engine) -> None:
    """Two different users are no user: unknown, with both. Agreement, and anonymous beside one, are fine."""
    app = starlette_app(engine)
    post(app, "/tasks/5", user="ada", state="bob")
    found = said(recorder)
    assert found[semconv.ACTOR_TYPE] == "unknown"
    assert semconv.USER_ID not in found
    assert found[semconv.ACTOR_CANDIDATES] == [
        {"source": "request.user", "id": "ada"},
        {"source": "request.state.user", "id": "bob"},
    ]
    post(app, "/tasks/5", user="ada", state="ada")
    assert actor(recorder) == ("user", "ada")
    post(app, "/tasks/5", state="bob")
    assert actor(recorder) == ("user", "bob")


def fastapi_app(engine: Engine) -> FastAPI:
    app = FastAPI()
    router = APIRouter(prefix="/projects/{project}")

    def login(request: Request) -> None:
        request.state.user = request.headers.get("user")

    @router.post("/tasks/{number}", dependencies=[Depends(login)])
    def create(number: int) -> None:
        save(engine)

    @app.post("/explicit", dependencies=[Depends(login)])
    async def explicit() -> None:
        with activity_context(actor=Actor(id="u-support", on_behalf_of="ada"), reason="ticket 1"):
            save(engine)

    @app.post("/twice/{first}")
    def twice(first: int) -> None:
        save(engine)

    app.include_router(router, prefix="/v2")
    return app


def test_fastapi(recorder: Recorder, engine: Engine) -> None:
    """The whole template of an included router; dependencies' users; explicit contexts win."""
    app = fastapi_app(engine)
    assert post(app, "/v2/projects/7/tasks/5", user="ada") == 200
    found = said(recorder)
    assert found[semconv.ROUTE] == "/v2/projects/{project}/tasks/{number}"
    assert found[semconv.USER_ID] == "ada"
    assert post(app, "/explicit", user="ada") == 200
    found = said(recorder)
    assert found[semconv.USER_ID] == "u-support"
    assert found[semconv.ACTOR_ON_BEHALF_OF] == "ada"
    assert post(app, "/v2/projects/7/tasks/5") == 200
    assert actor(recorder) == ("unknown", None)


def test_a_mounted_application(recorder: Recorder, engine: Engine) -> None:
    """One request, one context, with the template of both; an explicit middleware changes nothing."""
    outer = FastAPI()
    outer.mount("/inner", fastapi_app(engine))
    app = ActivityASGIMiddleware(outer)
    headers = {"user": "ada", "x-request-id": "r-1"}
    assert post(app, "/inner/v2/projects/7/tasks/5", **headers) == 200
    found = said(recorder)
    assert found[semconv.ROUTE] == "/inner/v2/projects/{project}/tasks/{number}"
    assert (found[semconv.USER_ID], found[semconv.REQUEST_ID]) == ("ada", "r-1")


def test_the_route_of_what_is_mounted(engine: Engine) -> None:
    """An application that has no routes, and one in which none was found: the mount's path, once."""

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("done")(scope, receive, send)

    inner = FastAPI()
    inner.add_api_route("/tasks/{number}", lambda number: number, methods=["POST"])
    app = Starlette(routes=[Mount("/plain", app=plain), Mount("/inner", routes=[Mount("/deep", app=inner)])])
    with recorded_events(requests="*") as recorder:
        for path in ("/plain/x", "/inner/x", "/inner/deep/x", "/inner/deep/tasks/5", "/x"):
            post(app, path)
    found = [event.attributes.get(semconv.ROUTE) for event in recorder.events]
    assert found[3:] == ["/inner/deep/tasks/{number}", None]
    # Older versions of Starlette do not note that a mount was chosen.
    assert found[:3] in (["/plain/{path}", "/inner/{path}", "/inner/deep/{path}"], [None] * 3)


def test_middleware_that_copies_the_scope(recorder: Recorder, engine: Engine) -> None:
    """`request.state` set behind it is found all the same."""

    class Copying:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(dict(scope), receive, send)

    app = fastapi_app(engine)
    app.add_middleware(Copying)
    assert post(app, "/v2/projects/7/tasks/5", user="ada") == 200
    assert actor(recorder) == ("user", "ada")


def broken_resolver(scope: Any) -> Any:
    """A resolver with a mistake."""
    return scope["no such key"]


def test_a_broken_resolver_does_not_touch_the_request(engine: Engine) -> None:
    """The row is committed, the answer is 200, the actor is unknown."""
    with recorded_events(actor_resolver=f"{__name__}:broken_resolver") as recorder:
        assert post(fastapi_app(engine), "/v2/projects/7/tasks/5", user="ada") == 200
        assert actor(recorder) == ("unknown", None)


def test_a_user_object_that_logs_when_it_is_read_is_read_once(recorder: Recorder, engine: Engine) -> None:
    """Its own action does not ask it again."""

    class Logging:
        @property
        def id(self) -> str:
            log_user_action("user.read")
            return "ada"

    app = FastAPI()

    @app.post("/tasks")
    def create(request: Request) -> None:
        request.state.user = Logging()
        save(engine)

    assert post(app, "/tasks") == 200
    row, action = sorted(recorder.events, key=lambda found: found.name, reverse=True)
    assert row.attributes[semconv.USER_ID] == "ada"
    assert action.attributes[semconv.ACTOR_ERROR_TYPE] == "RecursionError"


def test_a_user_whose_row_is_expired_takes_no_connection(recorder: Recorder, engine: Engine) -> None:
    """A wrapper around a row would load it within COMMIT, which may hold the last connection itself."""

    class Wrapped:
        def __init__(self, row: Account) -> None:
            self.row = row

        @property
        def identity(self) -> str:
            return str(self.row.number)

    statements: list[str] = []
    app = FastAPI()

    @app.post("/tasks")
    def create(request: Request) -> None:
        with Session(engine) as own, Session(engine) as session:
            account = Account(number=7, name="Ada")
            own.add(account)
            own.commit()
            recorder.clear()
            request.state.user = Wrapped(account)
            session.add(Task(name="x"))
            session.flush()
            statements.clear()
            session.commit()
            assert statements == []
            assert account.number == 7
            session.add(Task(name="y"))
            session.commit()

    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert post(app, "/tasks") == 200
    expired, loaded = (found.attributes for found in recorder.of("Task"))
    assert expired[semconv.ACTOR_ERROR_TYPE] == "NotLoaded"
    assert loaded[semconv.USER_ID] == "7"


def test_a_task_that_a_user_object_starts_may_take_a_connection(recorder: Recorder, engine: Engine) -> None:
    """It has a copy of all context variables, and goes on when its user has long been read."""
    started: list[asyncio.Task[None]] = []

    class Refreshing:
        @property
        def identity(self) -> str:
            started.append(asyncio.create_task(refresh()))
            return "ada"

    async def refresh() -> None:
        save(engine, "refreshed")

    app = FastAPI()

    @app.post("/tasks")
    async def create(request: Request) -> None:
        request.state.user = Refreshing()
        save(engine)
        request.state.user = "ada"
        await started[0]

    assert post(app, "/tasks") == 200
    assert [found.attributes.get(semconv.USER_ID) for found in recorder.of("Task")] == ["ada", "ada"]


def test_a_session_across_requests_keeps_each_ones_actor(recorder: Recorder, engine: Engine) -> None:
    """A change flushed in one request and committed in another is the first one's."""
    from sqlalchemy.orm import Session

    from tests.frameworks.support import Task

    app = FastAPI()
    shared = Session(engine)

    @app.post("/flush")
    async def flush(request: Request) -> None:
        request.state.user = request.headers["user"]
        shared.add(Task(name=request.headers["user"]))
        shared.flush()

    @app.post("/commit")
    async def commit(request: Request) -> None:
        await flush(request)
        shared.commit()

    assert post(app, "/flush", user="ada") == 200
    assert post(app, "/commit", user="bob") == 200
    shared.close()
    found = [
        (event.attributes[semconv.CHANGES]["name"]["after"], event.attributes[semconv.USER_ID])
        for event in recorder.of("Task")
    ]
    assert found == [("ada", "ada"), ("bob", "bob")]


class Traced:
    """What OpenTelemetry's middleware does: a span of the server around everything behind it."""

    tracer = TracerProvider().get_tracer("tests")

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self.tracer.start_as_current_span("server"):
            await self.app(scope, receive, send)


def test_the_servers_span(recorder: Recorder, engine: Engine) -> None:
    """It names the user although the row is written in a span inside it."""
    app = FastAPI()

    @app.post("/")
    async def view(request: Request) -> None:
        trace.get_current_span().set_attribute("enduser.id", request.headers["user"])
        with Traced.tracer.start_as_current_span("inner"):
            save(engine)

    app.add_middleware(Traced)
    assert post(app, "/", user="ada") == 200
    assert actor(recorder) == ("user", "ada")


def test_contexts_that_dependencies_open(recorder: Recorder, engine: Engine) -> None:
    """An async one is in force in the endpoint. A sync one is entered and left in threads: no harm."""
    app = FastAPI()

    async def acting() -> AsyncIterator[None]:
        async with activity_context(actor="async"):
            yield

    def acting_in_a_thread() -> Iterator[None]:
        with activity_context(actor="sync"):
            yield

    @app.post("/async", dependencies=[Depends(acting)])
    def in_thread() -> None:
        save(engine)

    @app.post("/sync", dependencies=[Depends(acting_in_a_thread)])
    def elsewhere(request: Request) -> None:
        request.state.user = "ada"
        save(engine)

    assert post(app, "/async") == 200
    assert actor(recorder) == ("user", "async")
    assert post(app, "/sync") == 200
    assert actor(recorder) == ("user", "ada")


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_context_in_a_streams_generator(recorder: Recorder, engine: Engine, kind: str) -> None:
    """An async stream keeps it from part to part; a sync one, each part of which is run apart, loses it."""

    async def parts() -> AsyncIterator[bytes]:
        for part in sync_parts():
            await asyncio.sleep(0)
            yield part

    def sync_parts() -> Iterator[bytes]:
        with activity_context(actor="stream"):
            for number in range(2):
                save(engine, str(number))
                yield b"x"
        save(engine, "after")

    async def view(request: Request) -> StreamingResponse:
        request.state.user = "ada"
        return StreamingResponse(parts() if kind == "async" else sync_parts())

    assert post(Starlette(routes=[Route("/", view, methods=["POST"])]), "/") == 200
    found = [event.attributes[semconv.USER_ID] for event in recorder.of("Task")]
    assert found == (["stream", "stream", "ada"] if kind == "async" else ["stream", "ada", "ada"])


def test_work_that_outlives_its_request_is_nobodys(recorder: Recorder, engine: Engine) -> None:
    """A scheduler that a request woke up goes on in its context; the request's user is a candidate only."""
    app = FastAPI()
    tasks: set[asyncio.Task[None]] = set()
    over = asyncio.Event()

    async def scheduled(name: str) -> None:
        await over.wait()
        save(engine, name)

    @activity_context(job="nightly")
    async def nightly() -> None:
        await scheduled("nightly")

    @app.post("/schedule")
    async def schedule(request: Request) -> None:
        request.state.user = "ada"
        save(engine, "request")
        tasks.update(map(asyncio.create_task, (scheduled("job"), nightly())))
        with activity_context(actor="ada"):
            tasks.add(asyncio.create_task(scheduled("named")))

    async def serve() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            await client.post("/schedule", headers={"X-Request-ID": "r-1"})
        over.set()
        await asyncio.gather(*tasks)

    asyncio.run(serve())
    found = {
        event.attributes[semconv.CHANGES]["name"]["after"]: event.attributes for event in recorder.events
    }
    assert {attributes[semconv.REQUEST_ID] for attributes in found.values()} == {"r-1"}
    assert [found[name][semconv.USER_ID] for name in ("request", "named")] == ["ada", "ada"]
    for name in ("job", "nightly"):
        assert found[name][semconv.ACTOR_TYPE] == "unknown"
        assert found[name][semconv.ACTOR_CANDIDATES] == [{"source": "ended", "id": "ada"}]


def test_what_is_committed_after_the_request_stays_the_users(recorder: Recorder, engine: Engine) -> None:
    """Middleware around the whole application may commit; what counts is when the change was flushed."""
    app = FastAPI()
    session = Session(engine)

    @app.post("/tasks")
    async def create(request: Request) -> None:
        request.state.user = "ada"
        session.add(Task(name="x"))
        session.flush()
        copied.append(contextvars.copy_context())

    copied: list[contextvars.Context] = []
    assert post(app, "/tasks") == 200

    def later() -> None:
        session.add(Task(name="y"))
        session.commit()

    copied[0].run(later)
    session.close()
    first, second = (event.attributes for event in recorder.of("Task"))
    assert first[semconv.USER_ID] == "ada"
    assert second[semconv.ACTOR_TYPE] == "unknown"


def test_a_thread_pool_of_the_applications_own(recorder: Recorder, engine: Engine) -> None:
    """Without the context nobody acts; with a copy of it the request's user does, whoever else is served."""
    app = FastAPI()
    pool = ThreadPoolExecutor(1)  # one thread serves all requests

    @app.post("/plain")
    async def plain(request: Request) -> None:
        request.state.user = request.headers["user"]
        await asyncio.get_running_loop().run_in_executor(pool, save, engine)

    @app.post("/copied")
    async def copied(request: Request) -> None:
        request.state.user = request.headers["user"]
        run = contextvars.copy_context().run
        await asyncio.get_running_loop().run_in_executor(pool, run, save, engine)

    with pool:
        for user in ("ada", "bob"):
            assert post(app, "/copied", user=user) == 200
            assert actor(recorder) == ("user", user)
            assert post(app, "/plain", user=user) == 200
            assert actor(recorder) == ("unknown", None)


def test_a_websocket(recorder: Recorder, engine: Engine) -> None:
    """A connection is one request, with its route and its user, from message to message."""
    app = FastAPI()

    @app.websocket("/chat/{room}")
    async def chat(socket: WebSocket, room: str) -> None:
        await socket.accept()
        socket.state.user = await socket.receive_text()
        for _ in range(2):
            save(engine, await socket.receive_text())
        await socket.close()

    scope = {"type": "websocket", "path": "/chat/1", "headers": [], "query_string": b"", "subprotocols": []}
    texts = [{"type": "websocket.receive", "text": text} for text in ("ada", "one", "two")]
    messages = iter([{"type": "websocket.connect"}, *texts])

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        pass

    asyncio.run(app(scope, receive, send))
    found = [(e.attributes[semconv.USER_ID], e.attributes[semconv.ROUTE]) for e in recorder.of("Task")]
    assert found == [("ada", "/chat/{room}")] * 2
