"""Who acts, as OpenTelemetry's own context knows: attributes of spans, and W3C baggage if it is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import baggage, trace

from otel_activity import semconv
from otel_activity.actors.actor import Actor
from otel_activity.actors.text import clean, is_id

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from opentelemetry.context import Context

__all__ = ["DEFAULT_SOURCES", "brought", "candidates", "configure", "is_asked"]

DEFAULT_SOURCES: Final = ("framework", "claims", "span")
"""Baggage is not among them: whoever sends a request can put a name into it."""

_IDS: Final = ("user.id", "enduser.id")
_ENDUSER_ROLE: Final = "enduser.role"
_ROLES: Final = 64

_asked: frozenset[str] = frozenset(DEFAULT_SOURCES)


def configure(sources: Sequence[str] = DEFAULT_SOURCES) -> None:
    """Set which sources are asked, for the whole process.

    Args:
        sources: of ``framework``, ``claims``, ``span`` and ``baggage``.
    """
    global _asked
    _asked = frozenset(sources)


def is_asked(source: str) -> bool:
    """Whether a source is asked."""
    return source in _asked


def brought(otel: Context | None = None) -> set[tuple[str, str]]:
    """Whom the baggage of a context names, by attribute; of the current context if none is given."""
    carried = baggage.get_all(otel)
    return {(name, str(value)) for name in _IDS if is_id(value := carried.get(name))} if carried else set()


def candidates(
    otel: Context | None,
    spans: Sequence[trace.Span] = (),
    foreign: trace.Span | None = None,
    carried: Collection[tuple[str, str]] = (),
) -> list[tuple[str, Actor]]:
    """What spans and baggage say.

    Args:
        otel: the context in which something was done.
        spans: further spans of the same request.
        foreign: a span that is current but somebody else's.
        carried: what the request's baggage was seen to say: a span outlives the context that has it.
    """
    found: list[tuple[str, Actor]] = []
    if "span" in _asked:
        current = trace.get_current_span(otel) if otel else trace.INVALID_SPAN
        doubted = () if "baggage" in _asked else {*carried, *(brought(otel) if otel else ())}
        for span in dict.fromkeys((current, *spans)):
            if span is not foreign:
                found += _of_span(span, doubted)
    if otel and "baggage" in _asked:
        for name in _IDS:
            value = baggage.get_baggage(name, otel)
            if is_id(value):
                found.append((f"baggage:{name}", Actor(id=str(value))))
    return found


def _of_span(span: trace.Span, doubted: Collection[tuple[str, str]]) -> list[tuple[str, Actor]]:
    """What one span says, but for what came as baggage: a span processor may have copied that to each span,
    which does not make it more believable.
    """
    attributes = getattr(span, "attributes", None)  # spans of the SDK that are recorded have them
    if not isinstance(attributes, Mapping):
        return []
    found = []
    for name in _IDS:
        value = attributes.get(name)
        if is_id(value) and (name, str(value)) not in doubted:
            user_name = clean(attributes.get(semconv.USER_NAME)) or None
            found.append((f"span:{name}", Actor(id=value, name=user_name, roles=_roles(attributes))))
    return found


def _roles(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    roles = attributes.get(semconv.USER_ROLES) or attributes.get(_ENDUSER_ROLE) or ()
    if isinstance(roles, str):
        roles = (roles,)
    return tuple(clean(role) for role in list(roles)[:_ROLES] if isinstance(role, str))
