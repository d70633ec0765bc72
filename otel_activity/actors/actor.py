"""One actor, and the rule for several sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from otel_activity import semconv
from otel_activity.actors.text import as_id, clean, said, wrong_with

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["UNKNOWN_ACTOR", "Actor", "Finding", "outlived", "settle"]

ACTOR_TYPES: Final = ("user", "service", "system", "anonymous", "unknown")

UNKNOWN_ACTOR: Final = {semconv.ACTOR_TYPE: "unknown"}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it.

    Attributes:
        id: stable identifier (``user.id``), at most 256 characters; None for actors of type ``anonymous`` or
            ``unknown``. A number or a UUID becomes text. Anything else, a blank or a control character in it
            makes the actor unknown: no id is stored that may be another one's.
        name: name for people (``user.name``).
        type: one of ``user``, ``service``, ``system``, ``anonymous``, ``unknown``.
        roles: roles at the time (``user.roles``).
        on_behalf_of: id of the user that is impersonated.
        tenant: the tenant they act in (``activity.tenant.id``), unless the context names one.
    """

    id: str | None = None
    name: str | None = None
    type: str = "user"
    roles: tuple[str, ...] = ()
    on_behalf_of: str | None = None
    tenant: str | None = None

    def __post_init__(self) -> None:
        if self.type not in ACTOR_TYPES:
            raise ValueError(f"actor type {self.type!r} is unknown; use one of {', '.join(ACTOR_TYPES)}")
        for name, key in (("id", self.id), ("on_behalf_of", self.on_behalf_of), ("tenant", self.tenant)):
            if key is not None and type(key) is not str:
                object.__setattr__(self, name, as_id(key))
        roles: Any = self.roles  # one role as a text is a sequence of letters, too
        if isinstance(roles, str):
            object.__setattr__(self, "roles", (roles,))

    @classmethod
    def of(cls, named: Any) -> Actor | None:
        """The actor that is meant by an actor, an id or None."""
        return named if named is None or isinstance(named, Actor) else cls(id=named)

    def attributes(self) -> dict[str, Any]:
        """The actor as event attributes; what is not known is left out, and so is the tenant."""
        for key in (self.id, self.on_behalf_of):
            if key is not None and (wrong := wrong_with(key)) is not None:
                return {semconv.ACTOR_TYPE: "unknown", semconv.ACTOR_ERROR_TYPE: wrong}
        found: dict[str, Any] = {semconv.ACTOR_TYPE: self.type}
        if self.id is not None:
            found[semconv.USER_ID] = self.id
        if self.name is not None:
            found[semconv.USER_NAME] = said(self.name)
        if self.roles:
            found[semconv.USER_ROLES] = [said(role) for role in self.roles]
        if self.on_behalf_of is not None:
            found[semconv.ACTOR_ON_BEHALF_OF] = self.on_behalf_of
        return found

    def finding(self) -> Finding:
        """The actor as what one context has found out."""
        return Finding(self.attributes(), _usable(self.tenant))


class Finding(NamedTuple):
    """What one context knows about who acts.

    Attributes:
        attributes: the actor as event attributes.
        tenant: the tenant the actor acts in.
    """

    attributes: dict[str, Any]
    tenant: str | None = None


def settle(candidates: Sequence[tuple[str, Actor]]) -> Finding | None:
    """What several sources say together: the actor they agree on, or ``unknown`` with all candidates.

    A source that names nobody (anonymous) does not contradict one that does. A source that knows of an
    impersonation agrees with one that knows only the actor or only the user who is impersonated.

    Args:
        candidates: source and actor; the first of those that agree tells name and roles.
    """
    named = [(source, actor) for source, actor in candidates if actor.id is not None]
    if not named:
        return candidates[0][1].finding() if candidates else None
    tenants = {actor.tenant for _, actor in named if actor.tenant is not None}
    tenant = _usable(tenants.pop()) if len(tenants) == 1 else None
    _, chosen = next(((s, a) for s, a in named if a.on_behalf_of is not None), named[0])
    if all(_agrees(chosen, actor) for _, actor in named):
        return Finding(chosen.attributes(), tenant)
    conflict = {
        semconv.ACTOR_TYPE: "unknown",
        semconv.ACTOR_CANDIDATES: [_candidate(source, actor) for source, actor in named],
    }
    return Finding(conflict, tenant)


def outlived(found: Finding) -> Finding:
    """What is known of who acts in work that a request or job left running when it was over.

    It may be theirs, or that of a scheduler, a consumer or a timer which they happened to start.
    """
    candidates = found.attributes.get(semconv.ACTOR_CANDIDATES)
    key = found.attributes.get(semconv.USER_ID)
    if key is not None:
        candidates = [
            _candidate("ended", Actor(key, on_behalf_of=found.attributes.get(semconv.ACTOR_ON_BEHALF_OF)))
        ]
    return Finding(
        UNKNOWN_ACTOR if candidates is None else {**UNKNOWN_ACTOR, semconv.ACTOR_CANDIDATES: candidates}
    )


def _agrees(chosen: Actor, other: Actor) -> bool:
    if other.on_behalf_of is not None:
        return (other.id, other.on_behalf_of) == (chosen.id, chosen.on_behalf_of)
    return other.id in (chosen.id, chosen.on_behalf_of)


def _candidate(source: str, actor: Actor) -> dict[str, Any]:
    found = {"source": source, "id": clean(actor.id)}
    if actor.on_behalf_of is not None:
        found["on_behalf_of"] = clean(actor.on_behalf_of)
    return found


def _usable(tenant: str | None) -> str | None:
    return None if tenant is None or wrong_with(tenant) else tenant
