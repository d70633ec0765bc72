"""The request context: nesting, late actors, isolation."""

from __future__ import annotations

import asyncio
import threading

import pytest

from otel_activity import semconv
from otel_activity.context import Actor, activity_context, current_context


def snapshot() -> dict[str, object]:
    """What an event captured now would say about its context."""
    context = current_context()
    return {} if context is None else context.snapshot()


def test_contexts_nest_and_inherit() -> None:
    """An inner context adds to the outer one and wins where both name something."""
    with activity_context(actor="u-1", tenant="t-1", reason="outer"):
        with activity_context(reason="inner", project="p-1"):
            assert snapshot() == {
                semconv.USER_ID: "u-1",
                semconv.ACTOR_TYPE: "user",
                semconv.TENANT_ID: "t-1",
                semconv.PROJECT_ID: "p-1",
                semconv.REASON: "inner",
            }
        assert snapshot()[semconv.REASON] == "outer"
    assert current_context() is None


def test_an_actor_may_come_late() -> None:
    """Authentication after the change was captured counts, because the context is read before COMMIT."""
    with activity_context(tenant="t-1") as context:
        assert snapshot()[semconv.ACTOR_TYPE] == "unknown"
        context.actor = Actor(id="u-2", name="Ada", roles=("admin",), on_behalf_of="u-3")
        assert snapshot()[semconv.USER_ID] == "u-2"
        assert snapshot()[semconv.ACTOR_ON_BEHALF_OF] == "u-3"


def test_a_context_ends_with_an_exception() -> None:
    """Nothing leaks out of a block that raised."""
    with pytest.raises(RuntimeError), activity_context(actor="u-1"):
        raise RuntimeError
    assert current_context() is None


def test_tasks_and_threads_do_not_see_each_other() -> None:
    """Concurrent tasks keep their own actor; a plain thread starts with none."""

    async def work(name: str) -> object:
        async with activity_context(actor=name):
            await asyncio.sleep(0)
            return snapshot()[semconv.USER_ID]

    async def both() -> list[object]:
        return await asyncio.gather(*(work(f"u-{number}") for number in range(20)))

    assert asyncio.run(both()) == [f"u-{number}" for number in range(20)]
    seen: list[object] = []
    with activity_context(actor="u-1"):
        thread = threading.Thread(target=lambda: seen.append(current_context()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_an_unknown_actor_type_is_refused() -> None:
    """A typo in the type of an actor is not recorded as a fact."""
    with pytest.raises(ValueError, match="superuser"):
        Actor(id="u-1", type="superuser")
