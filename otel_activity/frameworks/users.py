"""What an application's user object says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from sqlalchemy.orm import InstanceState

from otel_activity.actors import Actor, clean, is_id
from otel_activity.frameworks import claims

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["identify"]

_IDS: Final = ("identity", "id", "user_id", "sub", "username")
_NAMES: Final = ("display_name", "name", "username")


def identify(user: Any) -> Actor | None:
    """The actor that a user object is. Sends no SQL: a mapped object is not loaded.

    Raises:
        TypeError: nothing on it is an id.
        Exception: whatever its own code raises.
    """
    if user is None or isinstance(user, Actor):
        return user
    if is_id(user):
        return Actor.of(user)
    if isinstance(user, Mapping) and claims.names_an_actor(user):
        return claims.actor_of(user)  # its `sub` is who is impersonated
    state: Any = sqlalchemy.inspect(user, raiseerr=False)
    if isinstance(state, InstanceState):
        return _mapped(state)
    read = user.get if isinstance(user, Mapping) else lambda name: _attribute(user, name)
    if read("is_authenticated") is False:
        return Actor(type="anonymous")
    key = next((found for name in _IDS if is_id(found := read(name))), None)
    if key is None and callable(get_id := getattr(user, "get_id", None)):
        key = get_id()
    if not is_id(key):
        raise TypeError(f"a user of type {type(user).__name__} has no id")
    return Actor(id=key, name=_name(read), roles=claims.roles_of(read("roles")))


def _mapped(state: Any) -> Actor:
    """A mapped object: its primary key is known without loading anything, even when it is expired."""
    key: tuple[Any, ...] = state.identity or ()
    if len(key) != 1 or not is_id(key[0]):
        raise TypeError(f"a user of type {state.class_.__name__} has no simple primary key")
    return Actor(id=key[0], name=_name(state.dict.get))


def _attribute(user: Any, name: str) -> Any:
    try:
        return getattr(user, name, None)
    except NotImplementedError:  # Starlette's BaseUser.identity
        return None


def _name(read: Callable[[str], Any]) -> str | None:
    found = next((value for name in _NAMES if isinstance(value := read(name), str) and value), None)
    return None if found is None else clean(found)
