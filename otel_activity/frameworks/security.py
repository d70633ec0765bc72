"""Logins, logouts and refused logins, as the signals of frameworks tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_activity import semconv
from otel_activity.actors import clean
from otel_activity.events import Performed
from otel_activity.frameworks.users import identify
from otel_activity.frameworks.web import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_activity.ports import ActionSink

__all__ = ["SecurityLog"]


class SecurityLog:
    """Reports security events. Its methods never raise: signals hand exceptions on to the application.

    Args:
        sink: where they go; None for nowhere.
    """

    def __init__(self, sink: ActionSink | None) -> None:
        self._sink = sink

    def login(self, user: Any, read: Callable[[Any], Any] | None = None) -> None:
        """Somebody was logged in.

        Args:
            user: the framework's object.
            read: makes of it what `otel_activity.frameworks.users.identify` can read; may raise.
        """
        self._report(semconv.AUTH_LOGIN, "login", user, read)

    def logout(self, user: Any, read: Callable[[Any], Any] | None = None) -> None:
        """Somebody was logged out; no event when nobody was logged in. Arguments as for `login`."""
        self._report(semconv.AUTH_LOGOUT, "logout", user, read)

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

    def _report(self, name: str, action: str, user: Any, read: Callable[[Any], Any] | None) -> None:
        if self._sink is None:
            return
        performed = Performed(name=name, action=action)
        try:
            actor = identify(user if read is None else read(user))
            if name == semconv.AUTH_LOGOUT and (actor is None or actor.type == "anonymous"):
                return
            if actor is not None:
                performed.actor = actor.attributes()
            if actor is not None and actor.id is not None:
                performed.entity_type, performed.entity_id = type(user).__name__, actor.id
        except Exception as error:  # noqa: BLE001 - code of the application; the login goes on
            warn(f"the user of a {action} could not be read and is stored as unknown", error)
            performed.actor = {
                semconv.ACTOR_TYPE: "unknown",
                semconv.ACTOR_ERROR_TYPE: type(error).__qualname__,
            }
        self._sink.record(performed)
