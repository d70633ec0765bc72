"""Contexts as decorators, jobs of plain functions, and the default actor."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from otel_activity import semconv
from otel_activity.actors import nobody, use_default_actor
from otel_activity.context import RequestContext, activity_context, bind, current_context, unbind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator


def snapshot() -> dict[str, object]:
    """What an event captured now would say about its context."""
    context = current_context()
    return {} if context is None else context.snapshot()


# --- as a decorator -------------------------------------------------------------------------------


@activity_context(actor="u-1")
def plain(number: int, *, raising: bool = False) -> object:
    """Kept."""
    if raising:
        raise LookupError
    return number, snapshot()[semconv.USER_ID]


@activity_context(actor="u-1")
async def coroutine(name: str) -> object:
    await asyncio.sleep(0)
    return name, snapshot()[semconv.USER_ID]


def test_functions_and_coroutine_functions() -> None:
    """Each call is inside a context of its own, and stays what it is."""
    assert plain(5) == (5, "u-1")
    with pytest.raises(LookupError):
        plain(5, raising=True)
    assert plain.__doc__ == "Kept."
    assert inspect.iscoroutinefunction(coroutine)
    assert asyncio.run(coroutine("x")) == ("x", "u-1")
    assert current_context() is None


@activity_context(actor="u-1")
def parts() -> Generator[Any, Any, str]:
    try:
        got = yield snapshot()[semconv.USER_ID]
        try:
            yield got, snapshot()[semconv.USER_ID]
        except KeyError:
            yield "caught", snapshot()[semconv.USER_ID]
        return "returned"
    finally:
        closed.append(snapshot().get(semconv.USER_ID))


@activity_context(actor="u-1")
async def async_parts() -> AsyncGenerator[Any, Any]:
    try:
        got = yield snapshot()[semconv.USER_ID]
        try:
            yield got, snapshot()[semconv.USER_ID]
        except KeyError:
            yield "caught", snapshot()[semconv.USER_ID]
    finally:
        await asyncio.sleep(0)
        closed.append(snapshot().get(semconv.USER_ID))


closed: list[object] = []


def test_generators() -> None:
    """Steps are inside; what the caller does in between is not; send, throw, return and close go through."""
    assert inspect.isgeneratorfunction(parts)
    closed.clear()
    generator = parts()
    with activity_context(actor="u-2"):
        assert next(generator) == "u-1"
        assert snapshot()[semconv.USER_ID] == "u-2"
    assert generator.send("sent") == ("sent", "u-1")
    assert generator.throw(KeyError()) == ("caught", "u-1")
    with pytest.raises(StopIteration) as end:
        next(generator)
    assert end.value.value == "returned"
    left = parts()
    next(left)
    left.close()
    assert closed == ["u-1", "u-1"]
    failing = parts()
    next(failing)
    with pytest.raises(ValueError, match="thrown"):
        failing.throw(ValueError("thrown"))
    assert list(parts()) == ["u-1", (None, "u-1")]
    assert current_context() is None


def test_async_generators() -> None:
    """As generators, whichever task takes the next step."""
    assert inspect.isasyncgenfunction(async_parts)
    closed.clear()

    async def run() -> None:
        generator = async_parts()
        async with activity_context(actor="u-2"):
            assert await anext(generator) == "u-1"
            assert snapshot()[semconv.USER_ID] == "u-2"
        assert await asyncio.create_task(step(generator, "sent")) == ("sent", "u-1")
        assert await generator.athrow(KeyError()) == ("caught", "u-1")
        with pytest.raises(StopAsyncIteration):
            await anext(generator)
        left = async_parts()
        await anext(left)
        await left.aclose()
        failing = async_parts()
        await anext(failing)
        with pytest.raises(ValueError, match="thrown"):
            await failing.athrow(ValueError("thrown"))
        assert current_context() is None

    async def step(generator: AsyncGenerator[Any, Any], value: str) -> object:
        return await generator.asend(value)

    asyncio.run(run())
    assert closed == ["u-1", "u-1", "u-1"]


def test_a_generator_that_is_a_context_manager() -> None:
    """What it opens and closes is inside, the caller's block is not."""
    seen: list[object] = []

    @contextmanager
    @activity_context(actor="u-1")
    def opened() -> Iterator[int]:
        seen.append(snapshot()[semconv.USER_ID])
        yield 5
        seen.append(snapshot()[semconv.USER_ID])

    with opened() as number:
        assert (number, current_context()) == (5, None)
    assert seen == ["u-1", "u-1"]


# --- jobs and the default actor -------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_default() -> Iterator[None]:
    use_default_actor(None)
    yield
    use_default_actor(None)


class Request(RequestContext):
    """A request, as far as contexts care."""

    boundary = True


def test_a_job_is_the_systems() -> None:
    """It has its name and an id of each run; the default actor, when one is configured."""

    @activity_context(job="nightly-import", tenant="t-1")
    def job() -> dict[str, object]:
        return snapshot()

    first, second = job(), job()
    assert first[semconv.JOB_ID] != second[semconv.JOB_ID]
    del first[semconv.JOB_ID]
    assert first == {
        semconv.JOB_NAME: "nightly-import",
        semconv.TENANT_ID: "t-1",
        semconv.ACTOR_TYPE: "system",
    }
    use_default_actor("service:billing:eu")
    assert (job()[semconv.ACTOR_TYPE], job()[semconv.USER_ID]) == ("service", "billing:eu")


def test_a_job_that_somebody_runs() -> None:
    """Whoever is named around it acts; in a request that does not know its user, nobody is known."""

    @activity_context(job="import")
    def job() -> object:
        return snapshot()[semconv.ACTOR_TYPE], snapshot().get(semconv.USER_ID)

    with activity_context(actor="u-1"), activity_context(reason="by hand"):
        assert job() == ("user", "u-1")
    with activity_context(reason="by hand"):
        assert job() == ("system", None)
    token = bind(Request(None, {}, None))
    assert job() == ("unknown", None)
    unbind(token)
    assert job() == ("system", None)


def test_the_default_actor_of_a_program_without_requests() -> None:
    """It acts where nobody is named, until a request begins: then lost context is nobody's again."""
    assert nobody() == {semconv.ACTOR_TYPE: "unknown"}
    use_default_actor("service:billing")
    assert nobody() == {semconv.ACTOR_TYPE: "service", semconv.USER_ID: "billing"}
    with activity_context(tenant="t-1"):
        assert snapshot()[semconv.USER_ID] == "billing"
    with activity_context(actor="u-1"):
        assert snapshot()[semconv.USER_ID] == "u-1"
    request = Request(None, {}, None)
    assert request.snapshot() == {semconv.ACTOR_TYPE: "unknown"}
    assert nobody() == {semconv.ACTOR_TYPE: "unknown"}
