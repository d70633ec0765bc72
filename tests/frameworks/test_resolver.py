"""The application's resolver: what it may return, how long it may take, and what a bad one costs."""

from __future__ import annotations

import logging
import os
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm import Session

from otel_activity import semconv
from otel_activity.context import bind, unbind
from otel_activity.frameworks import web
from otel_activity.frameworks.resolver import Resolver
from otel_activity.testing import recorded_events
from tests.frameworks.requests import configure, snapshot
from tests.frameworks.support import Task, memory, save

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

ASKED: list[Any] = []
gate = threading.Event()
variable: ContextVar[str] = ContextVar("variable")
local = threading.local()


@pytest.fixture(autouse=True)
def options() -> Iterator[None]:
    """The defaults before and after each test; nothing is left hanging."""
    gate.clear()
    ASKED.clear()
    web.configure()
    yield
    gate.set()
    web.configure()


def hanging(scope: Any) -> str:
    """Waits for something that does not come."""
    ASKED.append(scope)
    gate.wait(60)
    return "late"


def from_variable(scope: Any) -> str | None:
    return variable.get(None)


def from_local(scope: Any) -> str | None:
    return getattr(local, "user", None)


def exiting(scope: Any) -> str:
    raise SystemExit(3)


def telling(scope: Any) -> str:
    raise LookupError("token eyJhbGciOi")


def identity(scope: Any) -> Any:
    ASKED.append(scope)
    return scope.get("answer")


def path(name: str) -> str:
    return f"{__name__}:{name}"


def test_a_resolver_that_hangs_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """The actor is unknown for lack of time; after four such calls it is not called again until one ends."""
    configure(actor_resolver=path("hanging"), actor_resolver_timeout=0.01)
    with caplog.at_level(logging.WARNING, "otel_activity"):
        for _ in range(10):
            found = snapshot()
            assert found[semconv.ACTOR_TYPE] == "unknown"
            assert found[semconv.ACTOR_ERROR_TYPE] == "TimeoutError"
    assert len(ASKED) == 4
    assert len(caplog.records) == 1


def test_a_resolver_that_recovers_is_asked_again() -> None:
    """As soon as one of the calls that were stuck has ended."""
    resolver = Resolver(path("hanging"), 0.01)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            resolver.ask({})
    gate.set()
    while True:  # until the threads had their turn
        try:
            actor = resolver.ask({})
        except TimeoutError:
            continue
        assert actor is not None
        assert actor.id == "late"
        return


def test_context_variables_go_along() -> None:
    """The resolver sees the request's, wherever it runs; what it sets stays there."""
    configure(actor_resolver=path("from_variable"))
    token = variable.set("u-1")
    assert snapshot()[semconv.USER_ID] == "u-1"
    variable.reset(token)
    assert semconv.USER_ID not in snapshot()


def test_thread_locals_need_a_direct_call() -> None:
    """A resolver in a thread of its own does not see them; timeout 0 calls it in the committing thread."""
    local.user = "u-1"
    configure(actor_resolver=path("from_local"))
    assert snapshot()[semconv.ACTOR_TYPE] == "unknown"
    configure(actor_resolver=path("from_local"), actor_resolver_timeout=0)
    assert snapshot()[semconv.USER_ID] == "u-1"


def test_a_resolver_cannot_end_the_process() -> None:
    """SystemExit is an error like others."""
    configure(actor_resolver=path("exiting"))
    assert snapshot()[semconv.ACTOR_ERROR_TYPE] == "RuntimeError"


def test_a_warning_names_the_place_and_not_the_message(caplog: pytest.LogCaptureFixture) -> None:
    """The message may quote a secret."""
    configure(actor_resolver=path("telling"))
    with caplog.at_level(logging.WARNING, "otel_activity"):
        snapshot()
    (record,) = caplog.records
    assert "LookupError" in record.getMessage()
    assert os.path.basename(__file__) in record.getMessage()
    assert "eyJ" not in caplog.text


def test_it_is_asked_once_for_each_transaction() -> None:
    """However many changes there are; the next transaction asks again."""
    engine = memory()
    with recorded_events(actor_resolver=path("identity")) as recorder:
        native = {"headers": [], "answer": "u-1"}
        token = bind(web.WebContext(native, None, lambda native, name: []))
        with Session(engine) as session:
            for number in range(5):
                session.add(Task(name=str(number)))
                session.flush()
            session.commit()
            native["answer"] = "u-2"
            session.add(Task(name="x"))
            session.commit()
        unbind(token)
    engine.dispose()
    assert len(ASKED) == 2
    assert [event.attributes[semconv.USER_ID] for event in recorder.events] == ["u-1"] * 5 + ["u-2"]


class Shop:
    """The database of `committing`."""

    engine: Engine


def committing(scope: Any) -> str:
    """A resolver that writes: each commit would ask it again."""
    ASKED.append(scope)
    save(Shop.engine, "audit")
    return "u-1"


@pytest.mark.parametrize("timeout", [0, 1])
def test_a_resolver_that_commits_does_not_ask_itself(timeout: int) -> None:
    """Its own row has no actor, the request's row has one."""
    Shop.engine = memory()
    settings = {"actor_resolver": path("committing"), "actor_resolver_timeout": timeout}
    with recorded_events(**settings) as recorder:
        token = bind(web.WebContext({"headers": []}, None, lambda native, name: []))
        save(Shop.engine, "request")
        unbind(token)
    Shop.engine.dispose()
    assert len(ASKED) == 1
    found = {
        event.attributes[semconv.CHANGES]["name"]["after"]: event.attributes.get(semconv.USER_ID)
        for event in recorder.events
    }
    assert found == {"audit": None, "request": "u-1"}


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_threads_that_stayed_behind_a_fork_are_not_waited_for() -> None:
    """The child starts its own."""
    configure(actor_resolver=path("identity"))
    assert snapshot(answer="u-1")[semconv.USER_ID] == "u-1"
    child = os.fork()
    if child == 0:
        found = None
        try:
            found = snapshot(answer="u-2").get(semconv.USER_ID)
        finally:
            os._exit(0 if found == "u-2" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
