"""Who is acting, for whom and why: the request context that every captured change remembers."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from otel_activity import semconv

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Actor", "RequestContext", "activity_context", "bind", "current_context", "unbind"]

ACTOR_TYPES: Final = ("user", "service", "system", "anonymous", "unknown")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it.

    Attributes:
        id: stable identifier (``user.id``); None for actors of type ``anonymous`` or ``unknown``.
        name: name for people (``user.name``).
        type: one of ``user``, ``service``, ``system``, ``anonymous``, ``unknown``.
        roles: roles at the time (``user.roles``).
        on_behalf_of: id of the user that is impersonated.
    """

    id: str | None = None
    name: str | None = None
    type: str = "user"
    roles: tuple[str, ...] = ()
    on_behalf_of: str | None = None

    def __post_init__(self) -> None:
        if self.type not in ACTOR_TYPES:
            raise ValueError(f"actor type {self.type!r} is unknown; use one of {', '.join(ACTOR_TYPES)}")

    def attributes(self) -> dict[str, Any]:
        """The actor as event attributes; what is not known is left out."""
        found: dict[str, Any] = {semconv.ACTOR_TYPE: self.type}
        if self.id is not None:
            found[semconv.USER_ID] = self.id
        if self.name is not None:
            found[semconv.USER_NAME] = self.name
        if self.roles:
            found[semconv.USER_ROLES] = list(self.roles)
        if self.on_behalf_of is not None:
            found[semconv.ACTOR_ON_BEHALF_OF] = self.on_behalf_of
        return found


UNKNOWN_ACTOR: Final = {semconv.ACTOR_TYPE: "unknown"}


class RequestContext:
    """The circumstances of a piece of work. Mutable: authentication may come after the first change.

    A change keeps the context object in force when it was flushed and reads it just before COMMIT, so a
    late actor counts, and a session that outlives its request does not carry the actor into the next.
    """

    __slots__ = ("actor", "attributes", "parent")

    def __init__(
        self, actor: Actor | None, attributes: dict[str, Any], parent: RequestContext | None
    ) -> None:
        self.actor = actor
        self.attributes = attributes
        self.parent = parent

    def snapshot(self) -> dict[str, Any]:
        """The event attributes as of now: the innermost actor, and every attribute, inner ones winning."""
        actor: dict[str, Any] | None = None
        chain: list[RequestContext] = []
        context: RequestContext | None = self
        while context is not None:
            if actor is None:
                actor = context.actor_attributes()
            chain.append(context)
            context = context.parent
        found: dict[str, Any] = {}
        for link in reversed(chain):
            found.update(link.own_attributes())
        found.update(UNKNOWN_ACTOR if actor is None else actor)
        return found

    def own_attributes(self) -> dict[str, Any]:
        """What this context says, without its parents. Must not raise."""
        return self.attributes

    def actor_attributes(self) -> dict[str, Any] | None:
        """The actor as far as this context knows, or None. Must not raise."""
        return None if self.actor is None else self.actor.attributes()


_current: ContextVar[RequestContext | None] = ContextVar("otel_activity_context", default=None)

current_context = _current.get
"""The context in force, or None. (The variable's own method: one call less on the hot path.)"""

bind = _current.set
"""Put a context in force; gives the token for `unbind`, which must be called in the same task or thread."""

unbind = _current.reset
"""Put back what was in force before `bind`."""


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
        self._tokens: list[Token[RequestContext | None]] = []

    def __enter__(self) -> RequestContext:
        context = RequestContext(self._actor, dict(self._attributes), _current.get())
        self._tokens.append(_current.set(context))
        return context

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _current.reset(self._tokens.pop())

    async def __aenter__(self) -> RequestContext:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)
