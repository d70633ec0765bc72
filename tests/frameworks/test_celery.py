"""Celery without a broker: what messages carry, and whose a task run is."""

from __future__ import annotations

import threading
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, chain, chord, group, signals
from celery.app.trace import build_tracer
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import create_engine

from otel_activity import Actor, activity_context, semconv
from otel_activity.context import bind, current_context, unbind
from otel_activity.frameworks.celery import HEADER, carried_now
from otel_activity.frameworks.web import WebContext
from otel_activity.testing import Recorder, recorded_events
from tests.frameworks.support import Base, actor, save

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Auditing is active and kept in memory."""
    with recorded_events() as made:
        yield made


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """The application's database, with connections for several threads."""
    made = create_engine(f"sqlite:///{tmp_path}/app.db", pool_size=4, connect_args={"timeout": 60})
    Base.metadata.create_all(made)
    yield made
    made.dispose()


class Shop:
    """An application and its tasks, over a broker in memory. `engine` is the database of the current test."""

    engine: Engine

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.app = app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.broker_transport_options = {"polling_interval": 0.01}

        @app.task(name="create", shared=False)
        def create(*names: Any) -> str:
            self.spans.append(trace.get_current_span())
            save(self.engine, str(names[-1]) if names else "x")
            return "done"

        @app.task(name="stubborn", bind=True, shared=False)
        def stubborn(task: Any) -> None:
            save(self.engine, f"try {task.request.retries}")
            if task.request.retries < 2:
                with activity_context(actor="somebody else"):
                    task.retry(countdown=0)

        @app.task(name="outer", shared=False)
        def outer() -> str:
            save(self.engine, "outer")
            return str(create.delay("inner").id)

        @app.task(name="leaking", shared=False)
        def leaking() -> None:
            activity_context(actor="left open").__enter__()
            save(self.engine, "leaking")
            raise LookupError

        self.create, self.stubborn, self.outer, self.leaking = create, stubborn, outer, leaking

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Tasks run where they are enqueued."""
        self.app.conf.task_always_eager = True
        yield
        self.app.conf.task_always_eager = False


def leave_logging_alone(**_: Any) -> None:
    """Somebody listens, so Celery does not set up the logging of the whole process, which the tests share."""


@pytest.fixture(scope="module")
def working() -> Iterator[Shop]:
    """The application with one worker of 16 threads, for all tests: it takes seconds to stop."""
    shop = Shop()
    setup_logging.connect(leave_logging_alone)
    try:
        with start_worker(
            shop.app, pool="threads", concurrency=16, perform_ping_check=False, shutdown_timeout=30
        ):
            yield shop
    finally:
        setup_logging.disconnect(leave_logging_alone)


@pytest.fixture
def shop(working: Shop, engine: Engine) -> Shop:
    """The application, with a database of the test's own."""
    working.engine = engine
    return working


def wait(result: Any) -> Any:
    """The result of a task; what the task raised is raised."""
    return result.get(timeout=30, interval=0.02)


def who(recorder: Recorder) -> dict[str, tuple[Any, Any]]:
    """The actor's type and id of each row, by the row's name."""
    return {
        event.attributes[semconv.CHANGES]["name"]["after"]: (
            event.attributes[semconv.ACTOR_TYPE],
            event.attributes.get(semconv.USER_ID),
        )
        for event in recorder.of("Task")
    }


def in_request(user: str | None = None) -> WebContext:
    """A request as the framework hooks make it."""
    context = WebContext({"method": "POST", "headers": []}, None, lambda native, name: [f"request-{user}"])
    context.users = lambda: [("test", user)]
    return context


def test_a_task_acts_for_whoever_enqueued_it(recorder: Recorder, shop: Shop) -> None:
    """Actor, tenant, project, reason, request id and trace are the request's, job name and id the task's."""
    ada = Actor(id="u-1", name="Ada", roles=("admin", "ops"), on_behalf_of="u-7")
    tracer = TracerProvider().get_tracer("test")
    token = bind(in_request("u-1"))
    with (
        tracer.start_as_current_span("request") as span,
        activity_context(actor=ada, tenant="t-1", project="p-1", reason="ticket 1"),
    ):
        result = shop.create.delay()
    unbind(token)
    wait(result)
    (event,) = recorder.of("Task")
    wanted = ("user.", "activity.actor", "activity.job", "activity.tenant", "activity.project", "http.")
    assert {name: value for name, value in event.attributes.items() if name.startswith(wanted)} == {
        "activity.actor.type": "user",
        "user.id": "u-1",
        "user.name": "Ada",
        "user.roles": ["admin", "ops"],
        "activity.actor.on_behalf_of": "u-7",
        "activity.tenant.id": "t-1",
        "activity.project.id": "p-1",
        "activity.job.name": "create",
        "activity.job.id": result.id,
    }
    assert event.attributes[semconv.REASON] == "ticket 1"
    assert event.attributes[semconv.REQUEST_ID] == "request-u-1"
    assert event.trace_id == span.get_span_context().trace_id
    assert event.span_id == span.get_span_context().span_id


def test_a_span_of_the_worker_wins_over_the_carried_trace(recorder: Recorder, shop: Shop) -> None:
    """Where something traces tasks already, events belong to its spans, and those stay what they are."""
    tracer = TracerProvider().get_tracer("test")
    own = tracer.start_span("task")
    entered: list[Any] = []

    def begin(**_: Any) -> None:
        entered.append(trace.use_span(own))
        entered[0].__enter__()

    def end(**_: Any) -> None:
        entered[0].__exit__(None, None, None)

    signals.task_prerun.connect(begin)
    signals.task_postrun.connect(end)
    shop.spans.clear()
    try:
        with tracer.start_as_current_span("request"):
            result = shop.create.delay()
        wait(result)
    finally:
        signals.task_prerun.disconnect(begin)
        signals.task_postrun.disconnect(end)
    assert recorder.of("Task")[0].span_id == own.get_span_context().span_id
    assert shop.spans == [own]


def test_a_retry_goes_on_for_the_same_actor(recorder: Recorder, shop: Shop) -> None:
    """Also when it is asked for inside another context; all runs have the one job id."""
    with activity_context(actor="u-1"):
        result = shop.stubborn.delay()
    wait(result)
    assert who(recorder) == {f"try {number}": ("user", "u-1") for number in range(3)}
    assert {event.attributes[semconv.JOB_ID] for event in recorder.events} == {result.id}


@pytest.mark.parametrize(
    "canvas",
    [
        lambda create: chain(create.s("a"), create.s("b"), create.s("c")),
        lambda create: group(create.s(name) for name in "abc"),
        lambda create: chord([create.s("a"), create.s("b")], create.si("c")),
        lambda create: create.signature(("a",), link=create.si("b"), immutable=True) | create.si("c"),
    ],
    ids=["chain", "group", "chord", "link"],
)
def test_what_follows_a_task_acts_for_the_same_actor(recorder: Recorder, shop: Shop, canvas: Any) -> None:
    """Chains, groups, chords and callbacks, which the worker enqueues."""
    with activity_context(actor="u-1"):
        result = canvas(shop.create).apply_async()
    with activity_context(actor="u-2"):
        other = shop.create.delay("other")
    wait(result)
    wait(other)
    wait(shop.create.delay("last"))
    assert who(recorder) == {
        **dict.fromkeys("abc", ("user", "u-1")),
        "other": ("user", "u-2"),
        "last": ("unknown", None),  # a process that serves, and here nobody is named
    }


def test_a_task_enqueued_by_a_task(recorder: Recorder, shop: Shop) -> None:
    """The actor and the request go on; the job is another one."""
    with activity_context(actor="u-1"):
        result = shop.outer.delay()
    wait(shop.app.AsyncResult(wait(result)))
    assert who(recorder) == {"outer": ("user", "u-1"), "inner": ("user", "u-1")}
    assert [event.attributes[semconv.JOB_NAME] for event in recorder.events] == ["outer", "create"]


def test_nothing_stays_in_force_after_a_task(recorder: Recorder, shop: Shop) -> None:
    """Neither context nor trace, also when a failed task left a context open."""
    with activity_context(actor="u-1"), TracerProvider().get_tracer("t").start_as_current_span("r"):
        header = carried_now()
    for task in (shop.leaking, shop.stubborn):
        run_with(task, header)
        assert current_context() is None
        assert not trace.get_current_span().get_span_context().is_valid
    assert who(recorder) == {"leaking": ("user", "left open"), "try 2": ("user", "u-1")}


def test_handlers_of_the_application_run_inside(recorder: Recorder, shop: Shop, engine: Engine) -> None:
    """What commits when a task has ended (a session that is put away) is the task's, too."""

    def commit(**_: Any) -> None:
        save(engine, "postrun")

    signals.task_postrun.connect(commit)
    with activity_context(actor="u-1"):
        header = carried_now()
    try:
        run_with(shop.create, header)
    finally:
        signals.task_postrun.disconnect(commit)
    assert who(recorder) == {"x": ("user", "u-1"), "postrun": ("user", "u-1")}


def test_an_eager_task_is_part_of_its_caller(recorder: Recorder, shop: Shop) -> None:
    """Its actor is the request's, read just before COMMIT; what it does is a job all the same."""
    context = in_request()
    context.users = lambda: [("late", "u-1")]
    token = bind(context)
    with shop.eager():
        result = shop.create.delay()
    assert current_context() is context
    unbind(token)
    (event,) = recorder.of("Task")
    assert event.attributes[semconv.USER_ID] == "u-1"
    assert event.attributes[semconv.REQUEST_METHOD] == "POST"
    assert (event.attributes[semconv.JOB_NAME], event.attributes[semconv.JOB_ID]) == ("create", result.id)


# --- nobody is named ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, ("system", None)),
        ("service", ("service", None)),
        ("service:billing", ("service", "billing")),
        ("unknown", ("unknown", None)),
    ],
)
def test_a_task_that_carries_no_actor(shop: Shop, setting: str | None, expected: Any) -> None:
    """The default actor acts; the tenant is carried without an actor, too."""
    with recorded_events(default_actor=setting) as recorder:
        with activity_context(tenant="t-1"):
            wait(shop.create.delay())
        assert recorder.events[0].attributes[semconv.TENANT_ID] == "t-1"
        assert actor(recorder) == expected
    with recorded_events(default_actor=setting) as recorder, shop.eager():
        shop.create.delay()
        assert actor(recorder) == expected


def test_a_request_whose_user_is_unknown_stays_unknown(recorder: Recorder, shop: Shop) -> None:
    """Neither a default nor a thread that has lost the request's context makes it the system's doing."""
    token = bind(in_request())
    first = shop.create.delay("in the request")
    unbind(token)
    others: list[Any] = []
    thread = threading.Thread(target=lambda: others.append(shop.create.delay("in a thread")))
    thread.start()
    thread.join()
    wait(first)
    wait(others[0])
    wait(shop.create.delay("last"))
    assert set(who(recorder).values()) == {("unknown", None)}
    assert len(recorder.events) == 3


# --- what the broker says -------------------------------------------------------------------------


BAD = [
    "not json",
    "[]",
    "{}",
    '{"version":2,"actor":{"type":"user","id":"u-1"}}',
    '{"version":1,"actor":{"type":"root","id":"u-1"}}',
    '{"version":1,"actor":{"type":"user","id":7}}',
    '{"version":1,"actor":{"type":"user","id":""}}',
    '{"version":1,"actor":{"type":"user","id":"\\u0000"}}',
    '{"version":1,"actor":{"id":"u-1"}}',
    '{"version":1,"actor":"u-1"}',
    '{"version":1,"tenant":["t-1"]}',
    '{"version":1,"actor":{"type":"user","id":"u-1","roles":"admin"}}',
    '{"version":1,"reason":"' + "x" * 20_000 + '"}',
    "\ud800",
    {"version": 1, "actor": {"type": "user", "id": "u-1"}},
    17,
    [1],
]


@pytest.mark.parametrize("header", BAD, ids=range(len(BAD)))
def test_a_malformed_header_gives_an_unknown_actor(
    recorder: Recorder, shop: Shop, header: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With the error's type; the task runs. Its retries are unknown, too, and not the default actor's."""
    run_with(shop.stubborn, header)
    assert set(who(recorder).values()) == {("unknown", None)}
    assert len(recorder.events) == 1
    assert recorder.events[0].attributes[semconv.ACTOR_ERROR_TYPE] in {
        *("DecodeError", "ValidationError", "ValueError", "TypeError", "UnicodeEncodeError"),
    }


def run_with(task: Any, header: Any, retries: int = 2) -> str:
    """Run a task as a worker does when a message with this header comes; gives its id."""
    key = str(uuid.uuid4())
    tracer = build_tracer(task.name, task, app=task.app)
    tracer(key, (), {}, {"id": key, "retries": retries, HEADER: header, "delivery_info": {}})
    return key


def test_a_retry_after_a_malformed_header_stays_unknown(recorder: Recorder, shop: Shop) -> None:
    """It does not become the default actor's by being enqueued again."""
    wait(shop.app.AsyncResult(run_with(shop.stubborn, "not json", retries=1)))
    assert who(recorder)["try 2"] == ("unknown", None)


def test_what_a_message_says_is_bounded_and_cleaned(recorder: Recorder, shop: Shop) -> None:
    """Control characters become spaces, long values are cut, a bad trace is left out."""
    header = (
        '{"version":1,"actor":{"type":"user","id":"u-1","name":"\\u202eada' + "x" * 1000 + '"},'
        '"tenant":"t\\u0000' + "y" * 1000 + '","traceparent":"00-zz-1-01","later":{"unknown":1}}'
    )
    run_with(shop.stubborn, header)
    (event,) = recorder.of("Task")
    assert event.attributes[semconv.USER_ID] == "u-1"
    assert event.attributes[semconv.USER_NAME] == "ada" + "x" * 252
    assert event.attributes[semconv.TENANT_ID] == "t " + "y" * 254
    assert event.trace_id == 0


def test_what_is_enqueued_is_bounded(recorder: Recorder) -> None:
    """Roles go first; the header has no details of the request."""
    roles = tuple(f"{number:0>300}" for number in range(100))
    with activity_context(actor=Actor(id="u" * 256, roles=roles), tenant="t" * 5000, reason='"' * 5000):
        header = carried_now()
    assert len(header) < 16_384
    assert '"id":"' + "u" * 256 + '"' in header
    with activity_context(actor="u" * 257):
        assert carried_now() == '{"version":1,"actor":{"type":"unknown"}}'
    token = bind(in_request("u-1"))
    header = carried_now()
    unbind(token)
    assert header == '{"version":1,"actor":{"type":"user","id":"u-1"},"request":"request-u-1"}'


def test_a_forwarded_header_does_not_name_the_actor(recorder: Recorder, shop: Shop) -> None:
    """A caller that hands all headers of one message to the next does not hand on the actor by that."""
    with activity_context(actor="u-1"):
        forged = {HEADER: '{"version":1,"actor":{"type":"user","id":"admin"}}'}
        result = shop.create.apply_async(headers=forged)
    wait(result)
    assert actor(recorder) == ("user", "u-1")


def test_nothing_to_carry_is_no_header(recorder: Recorder, shop: Shop) -> None:
    """A message without actor and context is as it was without us."""
    sent: list[Any] = []

    def look(headers: Any = None, **_: Any) -> None:
        sent.append(headers)

    signals.after_task_publish.connect(look)
    wait(shop.create.delay())
    signals.after_task_publish.disconnect(look)
    assert HEADER not in sent[0]


# --- many at once ---------------------------------------------------------------------------------


def test_threads_do_not_leak(recorder: Recorder, shop: Shop) -> None:
    """300 tasks of actors of their own in a pool of 16 threads, with failures among them."""
    results = []
    for number in range(300):
        with activity_context(actor=f"u-{number}"):
            results.append(shop.create.delay(f"u-{number}"))
            if number % 10 == 0:
                results.append(shop.leaking.delay())
    for result in results:
        result.get(timeout=60, interval=0.02, propagate=False)
    assert len(recorder.events) == 330
    for event in recorder.events:
        name = event.attributes[semconv.CHANGES]["name"]["after"]
        assert event.attributes[semconv.USER_ID] == ("left open" if name == "leaking" else name)


def test_signals_come_off(shop: Shop) -> None:
    """Auditing that has ended leaves no receiver behind, and installing twice connects once."""
    watched = (
        signals.before_task_publish,
        signals.task_prerun,
        signals.task_postrun,
        signals.worker_process_shutdown,
    )
    before = [len(signal.receivers) for signal in watched]
    with recorded_events():
        added = [len(signal.receivers) - n for signal, n in zip(watched, before, strict=True)]
        assert added == [1, 2, 1, 1]
    assert [len(signal.receivers) for signal in watched] == before


def test_no_secret_travels_with_a_task(recorder: Recorder) -> None:
    """The header leaves the process: what looks like a token in the reason is not in it."""
    token = f"ghp_{'aB3dE6gH9k' * 4}"[:40]
    with activity_context(actor="ada", reason=f"asked with {token} by telephone"):
        header = carried_now()
    assert "ada" in header
    assert token not in header
