"""Logins, logouts and refused logins, as the signals of frameworks tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_activity import semconv
from otel_activity.actors import clean, settle
from otel_activity.events import Performed
from otel_activity.frameworks.users import identify
from otel_activity.frameworks.web import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_activity.actors import Actor
    from otel_activity.ports import ActionSink

__all__ = ["SecurityLog"]


class SecurityLog:
    """Reports security events. Its methods never raise: signals hand exceptions on to the application.

    Args:
        sink: where they go; None for nowhere.
    """

    def __init__(self, sink: ActionSink | None) -> None:
        self._sink = sink

    def login(self, user: Any, read: Callable[[Any], Any] | None = None, before: Any = None) -> None:
        """Somebody was logged in.

        Args:
            user: the framework's object.
            read: makes of it what `otel_activity.frameworks.users.identify` can read; may raise.
            before: who was logged in until now. If that is somebody else, it may be an impersonation: nobody
                can tell whose hands these are.
        """
        sink = self._sink
        if sink is None:
            return
        performed = Performed(name=semconv.AUTH_LOGIN, action="login")
        try:
            sources = (("login", _identify(user, read)), ("session", _identify(before, read)))
            found = settle([(source, actor) for source, actor in sources if actor is not None])
            performed.actor = None if found is None else found.attributes
            _name_entity(performed, user, sources[0][1])
        except Exception as error:  # noqa: BLE001 - code of the application; the login goes on
            performed.actor = _unreadable(error)
        sink.record(performed)

    def logout(self, user: Any, read: Callable[[Any], Any] | None = None) -> None:
        """Somebody was logged out; no event when nobody was logged in. Arguments as for `login`.

        The actor is the request's, which knows of impersonations.
        """
        sink = self._sink
        if sink is None:
            return
        performed = Performed(name=semconv.AUTH_LOGOUT, action="logout")
        try:
            actor = _identify(user, read)
            if actor is None or actor.type == "anonymous":
                return
            _name_entity(performed, user, actor)
        except Exception as error:  # noqa: BLE001 - as above
            performed.actor = _unreadable(error)
        sink.record(performed)

    def failed(self, names: Mapping[str, Any]) -> None:
        """Credentials were refused. The actor stays the request's: who tried is not who was named.

        Args:
            names: what was given as the user's name, by the name of the credential; never its secrets.
        """
        if self._sink is not None:
            details = {key: clean(value) for key, value in names.items()} or None
            self._sink.record(
                Performed(name=semconv.AUTH_FAILED, action="login", outcome="failure", details=details)
            )


def _identify(user: Any, read: Callable[[Any], Any] | None) -> Actor | None:
    return identify(user if read is None else read(user))


def _name_entity(performed: Performed, user: Any, actor: Actor | None) -> None:
    """The user is what is logged in or out: its history shows it."""
    key = None if actor is None else actor.attributes().get(semconv.USER_ID)
    if key is not None:
        performed.entity_type, performed.entity_id = type(user).__name__, key


def _unreadable(error: BaseException) -> dict[str, Any]:
    warn("a user could not be read and is stored as unknown", error)
    return {semconv.ACTOR_TYPE: "unknown", semconv.ACTOR_ERROR_TYPE: type(error).__qualname__}
