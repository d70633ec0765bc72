"""The circumstances of a piece of work: the request context that every captured change remembers."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from otel_activity import semconv
from otel_activity.actors import UNKNOWN_ACTOR, Actor, Finding, candidates, settle

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.context import Context

__all__ = [
    "Actor",
    "RequestContext",
    "activity_context",
    "bind",
    "circumstances",
    "current_context",
    "unbind",
]


class RequestContext:
    """The circumstances of a piece of work. Mutable: authentication may come after the first change.

    A change keeps the context object in force when it was flushed and reads it just before COMMIT, so a
    late actor counts, and a session that outlives its request does not carry the actor into the next.
    """

    __slots__ = ("actor", "attributes", "parent", "previous")

    asks_otel: ClassVar = False
    """Whether `find_actor` has asked OpenTelemetry's context, so that nobody need ask it again."""

    def __init__(
        self, actor: Actor | None, attributes: dict[str, Any], parent: RequestContext | None
    ) -> None:
        self.actor = actor
        self.attributes = attributes
        self.parent = parent
        self.previous = parent
        """What is put back at the end: the parent, unless that ended first."""

    def snapshot(self, otel: Context | None = None, memo: dict[Any, Any] | None = None) -> dict[str, Any]:
        """The event attributes as of now: the innermost actor, and every attribute, inner ones winning.

        Args:
            otel: OpenTelemetry's context in which the change was made.
            memo: one for all snapshots of one transaction; what costs is asked once.
        """
        who: Finding | None = None
        asked = False
        said: list[dict[str, Any]] = []
        link: RequestContext | None = self
        while link is not None:
            found = link.find_actor(otel, memo)
            said.append(link.own_attributes())
            if found is not None:
                if found.tenant is not None and semconv.TENANT_ID not in said[-1]:
                    said[-1] = {**said[-1], semconv.TENANT_ID: found.tenant}
                if who is None:
                    who = found
            asked = asked or link.asks_otel
            link = link.parent
        if who is None and otel and not asked:
            who = settle(candidates(otel))
        merged: dict[str, Any] = {}
        for attributes in reversed(said):
            merged.update(attributes)
        merged.update(UNKNOWN_ACTOR if who is None else who.attributes)
        return merged

    def own_attributes(self) -> dict[str, Any]:
        """What this context says, without its parents. Must not raise."""
        return self.attributes

    def find_actor(self, otel: Context | None, memo: dict[Any, Any] | None) -> Finding | None:
        """The actor as far as this context knows, or None; see `snapshot`. Must not raise."""
        return None if self.actor is None else self.actor.finding()


def circumstances(
    context: RequestContext | None, otel: Context | None, memo: dict[Any, Any] | None = None
) -> dict[str, Any] | None:
    """What an event says about a change that was made in these two contexts; None for nothing at all."""
    if context is not None:
        return context.snapshot(otel, memo)
    found = settle(candidates(otel)) if otel else None
    return None if found is None else found.attributes


_current: ContextVar[RequestContext | None] = ContextVar("otel_activity_context", default=None)

current_context = _current.get
"""The context in force, or None. (The variable's own method: one call less on the hot path.)"""

bind = _current.set
"""Put a context in force; gives the token for `unbind`, which must be called in the same task or thread."""

unbind = _current.reset
"""Put back what was in force before `bind`."""


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


class activity_context(AbstractContextManager[RequestContext], AbstractAsyncContextManager[RequestContext]):
    """Name who acts, for everything that happens inside; usable with ``with`` and ``async with``.

    Contexts nest: what an inner one does not name, it inherits.

    Args:
        actor: an `Actor`, or the id of a user.
        tenant: tenant id (``activity.tenant.id``).
        project: project id (``activity.project.id``).
        reason: why it is done, for the auditor (``activity.reason``).

    >>> with activity_context(actor="u-42", reason="ticket 1234"):
    ...     session.commit()  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        actor: Actor | str | None = None,
        tenant: str | None = None,
        project: str | None = None,
        reason: str | None = None,
    ) -> None:
        named = {semconv.TENANT_ID: tenant, semconv.PROJECT_ID: project, semconv.REASON: reason}
        self._actor = Actor(id=actor) if isinstance(actor, str) else actor
        self._attributes = {name: str(value) for name, value in named.items() if value is not None}
        self._entered: list[RequestContext] = []

    def __enter__(self) -> RequestContext:
        context = RequestContext(self._actor, dict(self._attributes), _current.get())
        self._entered.append(context)
        _current.set(context)
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

    async def __aenter__(self) -> RequestContext:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)
