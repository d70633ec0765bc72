"""The circumstances of a piece of work: the request context that every captured change remembers."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import uuid_utils

from otel_activity import semconv
from otel_activity.actors import (
    UNKNOWN_ACTOR,
    Actor,
    Finding,
    candidates,
    default_actor,
    nobody,
    outlived,
    said,
    serving,
    settle,
)
from otel_activity.blocks import Block, around_steps
from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Token
    from types import TracebackType
    from uuid import UUID

    from opentelemetry.context import Context

__all__ = [
    "Actor",
    "NotLoaded",
    "RequestContext",
    "activity_context",
    "asking",
    "bind",
    "circumstances",
    "current_context",
    "is_asking",
    "stands_alone",
    "unbind",
]

_F = TypeVar("_F", bound="Callable[..., Any]")
_T = TypeVar("_T")


class RequestContext:
    """The circumstances of a piece of work. Mutable: authentication may come after the first change.

    A change keeps the context object in force when it was flushed and reads it just before COMMIT, so a
    late actor counts, and a session that outlives its request does not carry the actor into the next.
    """

    __slots__ = ("_actor", "attributes", "ended", "fallback", "parent", "previous")

    boundary: ClassVar = False
    """Whether this is a request or a job of its own: another one that begins inside inherits nothing."""

    asks_otel: ClassVar = False
    """Whether `find_actor` has asked OpenTelemetry's context, so that nobody need ask it again."""

    def __init__(
        self, actor: Actor | None, attributes: dict[str, Any], parent: RequestContext | None
    ) -> None:
        if self.boundary:
            serving()
        self._actor = actor
        self.fallback: Actor | None = None
        """Who acts if nobody is named and nothing else knows."""
        self.attributes = attributes
        self.parent = parent
        self.previous = parent
        """What is put back at the end: the parent, unless that ended first."""
        self.ended: int | None = None
        """When the request or job was over, in nanoseconds since 1970; work that goes on keeps it."""

    @property
    def actor(self) -> Actor | None:
        """Who is named here; an id may be set as well."""
        return self._actor

    @actor.setter
    def actor(self, named: Actor | str | int | UUID | None) -> None:
        self._actor = Actor.of(named)

    def end(self) -> None:
        """The request or job is over."""
        if self.ended is None:
            self.ended = time.time_ns()

    def over(self) -> int | None:
        """When the request or job that this belongs to was over; None while it is not."""
        link: RequestContext | None = self
        while link is not None and link.ended is None:
            link = link.parent
        return None if link is None else link.ended

    def snapshot(
        self, otel: Context | None = None, memo: dict[Any, Any] | None = None, *, late: bool = False
    ) -> dict[str, Any]:
        """The event attributes as of now: the innermost actor, and every attribute, inner ones winning.

        Args:
            otel: OpenTelemetry's context in which the change was made.
            memo: one for all snapshots of one transaction; what costs is asked once.
            late: whether the change was made when the request or job was `over`.
        """
        who: Finding | None = None
        asked = False
        fallback: Actor | None = None
        parts: list[dict[str, Any]] = []
        link: RequestContext | None = self
        while link is not None:
            found = link.find_actor(otel, memo)
            if late and found is not None and link.ended is not None:
                found = outlived(found)
            parts.append(link.own_attributes())
            if found is not None:
                if found.tenant is not None and semconv.TENANT_ID not in parts[-1]:
                    parts[-1] = {**parts[-1], semconv.TENANT_ID: found.tenant}
                if who is None:
                    who = found
            asked = asked or link.asks_otel
            fallback = fallback or link.fallback
            link = link.parent
        if who is None and otel and not asked:
            who = _ambient(otel)
        merged: dict[str, Any] = {}
        for attributes in reversed(parts):
            merged.update(attributes)
        if who is None:
            merged.update(nobody() if fallback is None else fallback.attributes())
        else:
            merged.update(who.attributes)
        return merged

    def own_attributes(self) -> dict[str, Any]:
        """What this context says, without its parents. Must not raise."""
        return self.attributes

    def find_actor(self, otel: Context | None, memo: dict[Any, Any] | None) -> Finding | None:
        """The actor as far as this context knows, or None; see `snapshot`. Must not raise."""
        return None if self._actor is None else self._actor.finding()


def circumstances(
    context: RequestContext | None,
    otel: Context | None,
    memo: dict[Any, Any] | None = None,
    *,
    late: bool = False,
) -> dict[str, Any] | None:
    """What an event says about a change that was made in these two contexts; None for nothing at all.

    The arguments are those of `RequestContext.snapshot`.
    """
    if context is not None:
        return context.snapshot(otel, memo, late=late)
    found = _ambient(otel) if otel else None
    return None if found is None else found.attributes


def _ambient(otel: Context) -> Finding | None:
    """The actor as OpenTelemetry's context knows; whatever is wrong there costs no event."""
    try:
        return settle(candidates(otel))
    except Exception as error:  # noqa: BLE001 - a span of the application's own making
        pass_on(error)
        return Finding({**UNKNOWN_ACTOR, semconv.ACTOR_ERROR_TYPE: type(error).__qualname__})


_current: ContextVar[RequestContext | None] = ContextVar("otel_activity_context", default=None)

current_context = _current.get
"""The context in force, or None. (The variable's own method: one call less on the hot path.)"""

bind = _current.set
"""Put a context in force; gives the token for `unbind`."""


def unbind(token: Token[RequestContext | None]) -> None:
    """Put back what was in force before `bind`.

    Where a coroutine that never ended is closed, by the garbage collector perhaps, other variables are in
    force than where it began: there is nothing to put back, and nothing that its application should hear of.
    """
    with suppress(ValueError):
        _current.reset(token)


class _Reading:
    """A look at the application's own objects."""

    __slots__ = ("over",)

    def __init__(self) -> None:
        self.over = False


_asking: ContextVar[_Reading | None] = ContextVar("otel_activity_reading_user", default=None)


def is_asking() -> bool:
    """Whether the application's own objects are being read, within its COMMIT, to find out who acts."""
    reading = _asking.get()
    return reading is not None and not reading.over


class NotLoaded(RuntimeError):
    """To read it would send SQL within a COMMIT, and wait for a connection."""


def asking(read: Callable[[], _T]) -> _T:
    """Read the application's own objects: nothing that they do may wait for a connection."""
    reading = _Reading()
    token = _asking.set(reading)
    try:
        return read()
    finally:
        reading.over = True  # a task that they started has a copy of the variable
        _asking.reset(token)


def _leave(context: RequestContext) -> None:
    """End a context, in whatever order contexts end: generators suspend theirs, and may outlive them.

    No token is used, because it would raise where a generator is closed by another task or thread, and would
    put back a context that has ended where two generators take turns.
    """
    link = current_context()
    if link is context:
        _current.set(context.previous)
        return
    while link is not None and link.previous is not context:
        link = link.previous
    if link is not None:
        link.previous = context.previous


def stands_alone(context: RequestContext | None) -> bool:
    """Whether a job that begins here has nobody to inherit the actor from: no request, nobody named."""
    while context is not None:
        if context.boundary or context.actor is not None:
            return False
        context = context.parent
    return True


class activity_context(Block[RequestContext]):
    """Name who acts, for everything that happens inside: ``with``, ``async with``, or a decorator.

    Contexts nest: what an inner one does not name, it inherits. It decorates functions, coroutine functions
    and generators of both kinds; a generator's steps are inside, what its caller does between them is not.

    Args:
        actor: an `Actor`, or the id of a user: a text, a number or a UUID. What cannot be an id makes the
            actor unknown.
        tenant: tenant id (``activity.tenant.id``).
        project: project id (``activity.project.id``).
        reason: why it is done, for the auditor (``activity.reason``).
        job: name of a job (``activity.job.name``), low-cardinality; each run gets an id of its own. If nobody
            is named and no request is in force, the default actor acts: the system, unless
            ``OTEL_ACTIVITY_DEFAULT_ACTOR`` says otherwise.

    >>> with activity_context(actor="u-42", reason="ticket 1234"):
    ...     session.commit()  # doctest: +SKIP
    >>> @activity_context(job="nightly-import")
    ... def main(): ...
    """

    def __init__(
        self,
        *,
        actor: Actor | str | int | UUID | None = None,
        tenant: str | None = None,
        project: str | None = None,
        reason: str | None = None,
        job: str | None = None,
    ) -> None:
        named = {
            semconv.TENANT_ID: tenant,
            semconv.PROJECT_ID: project,
            semconv.REASON: reason,
            semconv.JOB_NAME: job,
        }
        self._actor = Actor.of(actor)
        self._attributes = {name: said(value) for name, value in named.items() if value is not None}
        self._entered: list[RequestContext] = []

    def __call__(self, function: _F) -> _F:
        """Decorate a function, a coroutine function or a generator function of either kind."""
        stepwise: Any = around_steps(function, lambda: partial(_inside, self._make()))
        return stepwise or self._decorate(function)  # type: ignore[no-any-return]  # functools.wraps keeps _F

    def __enter__(self) -> RequestContext:
        context = self._begin()
        self._entered.append(context)
        return context

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        current = _current.get()
        # One object may be used by several tasks: each ends its own.
        context = current if current in self._entered else self._entered[-1]
        self._entered.remove(context)
        _leave(context)

    def _begin(self) -> RequestContext:
        context = self._make()
        _current.set(context)
        return context

    def _end(self, running: RequestContext, error: BaseException | None) -> None:
        _leave(running)

    def _put_off(self, running: RequestContext) -> None:
        _leave(running)

    def _make(self) -> RequestContext:
        outer = _current.get()
        context = RequestContext(self._actor, dict(self._attributes), outer)
        if semconv.JOB_NAME in context.attributes:
            context.attributes[semconv.JOB_ID] = str(uuid_utils.uuid7())
            context.fallback = default_actor() if stands_alone(outer) else None
        return context


@contextmanager
def _inside(context: RequestContext) -> Iterator[None]:
    """A context that is made already, for one step of a generator."""
    token = _current.set(context)
    try:
        yield
    finally:
        unbind(token)
