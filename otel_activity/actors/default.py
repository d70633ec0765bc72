"""Who acts where nobody is named, as far as that can be said at all."""

from __future__ import annotations

from typing import Any, Final

from otel_activity.actors.actor import UNKNOWN_ACTOR, Actor

__all__ = ["default_actor", "has_served", "nobody", "serving", "use_default_actor"]

_SYSTEM: Final = Actor(type="system")


class _Default:
    actor: Actor | None = None
    served = False


def use_default_actor(text: str | None) -> None:
    """Set who acts in jobs, and in programs without requests, when nobody is named.

    Args:
        text: ``type`` or ``type:id``; None for the system in jobs, and nobody elsewhere.
    """
    kind, _, key = (text or "").partition(":")
    _Default.actor = Actor(id=key or None, type=kind) if kind else None
    _Default.served = False


def default_actor() -> Actor:
    """Who does what a job does when nobody is named."""
    return _Default.actor or _SYSTEM


def serving() -> None:
    """A request or a job begins in this process."""
    _Default.served = True


def has_served() -> bool:
    """Whether this process has begun a request or a job: work without a context may belong to one, since."""
    return _Default.served


def nobody() -> dict[str, Any]:
    """What is said about the actor where no context names one.

    The default actor, but ``unknown`` as soon as the process has begun a request or a job: work that has
    lost its context, in a thread for example, would be called the default actor's.
    """
    actor = _Default.actor
    return UNKNOWN_ACTOR if actor is None or _Default.served else actor.attributes()
