"""Claims of a token that the application, or a gateway before it, has verified. We never verify one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy
from sqlalchemy.orm import InstanceState

from otel_activity.actors import Actor, as_id, clean, is_id

__all__ = ["actor_of", "claims_in", "mapping_of", "names_an_actor", "roles_of"]

KEYS: Final = ("claims", "jwt_claims", "jwt", "jwt_payload", "token_payload", "token", "auth")
"""Where middleware and dependencies put claims: in a scope, in `request.state`, in a WSGI environ."""

_SUBJECTS: Final = ("sub", "user_id")
_CLIENTS: Final = ("client_id", "azp")
_NAMES: Final = ("name", "preferred_username")
_TENANTS: Final = ("tenant_id", "tid", "org_id")
_ROLES: Final = 64


def claims_in(place: Mapping[str, Any], prefix: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The claims that a scope or another mapping has, by source.

    A text is passed over: it may be a token that nobody has verified.
    """
    found = []
    for key in KEYS:
        claims = mapping_of(place.get(key))
        if claims and (
            names_an_actor(claims) or any(is_id(claims.get(name)) for name in _SUBJECTS + _CLIENTS)
        ):
            found.append((f"{prefix}{key}", claims))
    return found


def mapping_of(token: Any) -> Mapping[str, Any] | None:
    """The claims of what a library made of a token: a mapping, or an object that has one.

    Not a row of a table of tokens: to look at an expired object would send SQL.
    """
    if isinstance(sqlalchemy.inspect(token, raiseerr=False), InstanceState):
        return None
    for found in (token, getattr(token, "claims", None), getattr(token, "payload", None)):
        if isinstance(found, Mapping):
            return found
    return None


def names_an_actor(claims: Mapping[str, Any]) -> bool:
    """Whether somebody else than the subject acts (RFC 8693, ``act``)."""
    return claims.get("act") is not None


def actor_of(claims: Mapping[str, Any]) -> Actor:
    """Who acts by these claims.

    The outermost ``act`` is who acts, and the token's subject is whom they act for; an ``act`` inside it
    tells only who acted before.

    Raises:
        TypeError: the claims name nobody.
    """
    tenant = _first(claims, _TENANTS)
    if names_an_actor(claims):
        if not isinstance(claims["act"], Mapping):
            raise TypeError("the claim `act` of a token is no object")
        actor = _party(claims["act"])
        subject = _first(claims, _SUBJECTS)
        return Actor(actor.id, actor.name, actor.type, actor.roles, subject, tenant)
    party = _party(claims)
    return Actor(party.id, party.name, party.type, party.roles, None, tenant)


def _party(claims: Mapping[str, Any]) -> Actor:
    subject = _first(claims, _SUBJECTS)
    client = _first(claims, _CLIENTS)
    if subject is None and client is None:
        raise TypeError("the claims of a token name nobody")
    # A client that acts for itself is its own subject (RFC 9068), or has none.
    kind = "service" if subject is None or subject == client else "user"
    name = next((clean(value) for key in _NAMES if isinstance(value := claims.get(key), str)), None)
    return Actor(subject or client, name or None, kind, roles_of(_roles(claims)))


def _first(claims: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((as_id(claims[name]) for name in names if is_id(claims.get(name))), None)


def _roles(claims: Mapping[str, Any]) -> Any:
    realm = claims.get("realm_access")
    return claims.get("roles") or (realm.get("roles") if isinstance(realm, Mapping) else None)


def roles_of(value: Any) -> tuple[str, ...]:
    """Roles as texts; at most 64."""
    if not isinstance(value, (list, tuple, set, frozenset)):
        return ()
    return tuple(clean(role) for role in list(value)[:_ROLES] if isinstance(role, str))
