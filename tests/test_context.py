"""The request context: nesting, late actors, isolation."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from otel_activity import log_user_action, semconv
from otel_activity.context import Actor, activity_context, current_context
from otel_activity.testing import recorded_events

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@pytest.mark.parametrize("key", [42, uuid.UUID(int=42), "u-42"])
def test_ids_are_texts(key: Any) -> None:
    """Of a user's row it is a number or a UUID, more often than not."""
    with activity_context(actor=key) as context:
        assert snapshot()[semconv.USER_ID] == str(key)
        context.actor = Actor(id=key, on_behalf_of=key)
        assert snapshot()[semconv.ACTOR_ON_BEHALF_OF] == str(key)
        context.actor = key
        assert snapshot() == {semconv.ACTOR_TYPE: "user", semconv.USER_ID: str(key)}


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", "ValueError"),
        (" ", "ValueError"),
        ("admin\x7f", "ValueError"),
        ("admin\u202e", "ValueError"),
        ("\ud800", "ValueError"),
        ("u" * 257, "ValueError"),
        (1 << 600, "TypeError"),
        (b"u-1", "TypeError"),
        (True, "TypeError"),
        (object(), "TypeError"),
    ],
)
def test_what_cannot_be_an_id_is_nobodys(key: Any, error: str) -> None:
    """Cut or cleaned it might be somebody else's; nothing is raised, and the rest of the event is there."""
    expected = {semconv.ACTOR_TYPE: "unknown", semconv.ACTOR_ERROR_TYPE: error, semconv.REASON: "why"}
    with activity_context(actor=key, reason="why"):
        assert snapshot() == expected
    with activity_context(reason="why") as context:
        context.actor = key
        assert snapshot() == expected
        context.actor = Actor(id="u-1", on_behalf_of=key)
        assert snapshot() == expected


@pytest.mark.parametrize("name", ["tenant", "project", "reason", "job"])
def test_texts_that_no_encoding_has_cost_no_event(name: str) -> None:
    """A client's JSON may bring a lone surrogate: it is replaced, and the length is bounded."""
    actor = Actor(id="u-1", name="A\ud800", roles=("\udfff", 5))  # type: ignore[arg-type]  # on purpose
    with recorded_events() as recorder:
        with activity_context(actor=actor, **{name: "x\ud800" + "y" * 70_000}):  # type: ignore[arg-type]  # as above
            log_user_action("a", key="value")
        (event,) = recorder.events
    assert event.attributes[semconv.USER_NAME] == "A\ufffd"
    assert event.attributes[semconv.USER_ROLES] == ["\ufffd", "5"]
    assert "x\ufffd" + "y" * 65_534 in event.attributes.values()


def test_one_role_is_one_role() -> None:
    """A text is a sequence, too."""
    with activity_context(actor=Actor(id="u-1", roles="admin")):  # type: ignore[arg-type]  # on purpose
        assert snapshot()[semconv.USER_ROLES] == ["admin"]


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


def acting(name: str) -> Iterator[object]:
    """A generator that names an actor for its own work."""
    with activity_context(actor=name):
        while True:
            yield snapshot()[semconv.USER_ID]


def test_generators_that_take_turns_leave_nothing_behind() -> None:
    """Whichever is closed first: what was in force before is in force again, never one that has ended."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)):
        with activity_context(actor="outer"):
            generators = [acting(f"u-{number}") for number in range(3)]
            assert [next(generator) for generator in generators] == ["u-0", "u-1", "u-2"]
            open_ones = [0, 1, 2]
            for number in order:
                generators[number].close()  # type: ignore[attr-defined]
                open_ones.remove(number)
                expected = f"u-{open_ones[-1]}" if open_ones else "outer"
                assert snapshot()[semconv.USER_ID] == expected
        assert current_context() is None


def test_a_context_may_be_left_in_another_task() -> None:
    """An async generator that the event loop closes, a dependency that a pool closes: no error, no leak."""
    generator = acting("u-1")

    def start() -> None:
        assert next(generator) == "u-1"

    def end() -> None:
        with activity_context(actor="u-2"):
            generator.close()  # type: ignore[attr-defined]
            assert snapshot()[semconv.USER_ID] == "u-2"
        assert current_context() is None

    contextvars.copy_context().run(start)
    contextvars.copy_context().run(end)
    assert current_context() is None


def test_a_task_keeps_the_context_in_which_it_was_started() -> None:
    """The block may have ended long before; contexts that the task opens itself end as they should."""

    async def work(ended: asyncio.Event) -> list[object]:
        seen = [snapshot()[semconv.USER_ID]]
        await ended.wait()
        with activity_context(actor="inner"):
            seen.append(snapshot()[semconv.USER_ID])
        return [*seen, snapshot()[semconv.USER_ID]]

    async def main() -> list[object]:
        ended = asyncio.Event()
        with activity_context(actor="starter"):
            task = asyncio.create_task(work(ended))
            await asyncio.sleep(0)
        assert current_context() is None
        ended.set()
        return await task

    assert asyncio.run(main()) == ["starter", "inner", "starter"]


def test_one_object_for_several_tasks() -> None:
    """Each task leaves its own context, in whatever order they end."""
    shared = activity_context(tenant="t-1")

    async def work(number: int) -> object:
        async with shared:
            for _ in range(3 - number):
                await asyncio.sleep(0)
            assert snapshot()[semconv.TENANT_ID] == "t-1"
        return current_context()

    async def main() -> list[object]:
        return await asyncio.gather(*(work(number) for number in range(3)))

    assert asyncio.run(main()) == [None, None, None]


def test_contexts_nest_deeply() -> None:
    """A hundred levels, left one by one, the same object entered again and again."""
    shared = activity_context(reason="again")
    with ExitStack() as stack:
        for number in range(100):
            stack.enter_context(activity_context(actor=f"u-{number}"))
            stack.enter_context(shared)
        assert snapshot()[semconv.USER_ID] == "u-99"
    assert current_context() is None
