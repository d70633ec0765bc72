"""Django under WSGI and ASGI: the request's context, with the URL pattern and the user that was found.

Works with applications whose models are SQLAlchemy's; users may be Django's, SQLAlchemy's or anything else.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from otel_activity.context import bind, unbind
from otel_activity.frameworks import asgi, wsgi
from otel_activity.frameworks.hook import Hooks, MethodHook, SignalHook
from otel_activity.frameworks.users import identify
from otel_activity.frameworks.web import is_in_force, marked, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_activity.frameworks.security import SecurityLog
    from otel_activity.frameworks.web import WebContext

__all__ = ["DjangoLogins", "DjangoRequests"]

_LOGIN_NAMES: Final = ("username", "email", "login", "remote_user")
"""Credentials that name the user, besides the model's own ``USERNAME_FIELD``."""
_ANCHORS: Final = re.compile(r"(?:(?<=/)|^)\^|(?<!\\)\$$")
"""Of a regular expression as a URL pattern: true of the place where it stands, and no part of a template."""


class DjangoRequests(Hooks):
    """Wraps the handlers for WSGI and ASGI, and the first calls that have Django's own request."""

    def __init__(self) -> None:
        base, wsgi_module, asgi_module = (f"django.core.handlers.{name}" for name in ("base", "wsgi", "asgi"))
        super().__init__(
            MethodHook(wsgi_module, "WSGIHandler", "__call__", _wrap_wsgi),
            MethodHook(asgi_module, "ASGIHandler", "__call__", _wrap_asgi),
            MethodHook(base, "BaseHandler", "get_response", _wrap_response),
            MethodHook(base, "BaseHandler", "get_response_async", _wrap_async_response),
            MethodHook(base, "BaseHandler", "resolve_request", _wrap_resolve),
        )


class DjangoLogins(Hooks):
    """Listens to ``django.contrib.auth``'s signals.

    Args:
        log: where logins are reported.
    """

    def __init__(self, log: SecurityLog) -> None:
        def logged_in(sender: Any, user: Any = None, request: Any = None, **said: Any) -> None:
            log.login(_unwrapped(user), _described, _cached(getattr(request, "__dict__", {})))

        def logged_out(sender: Any, user: Any = None, request: Any = None, **said: Any) -> None:
            log.logout(_unwrapped(user), _described)
            _keep_former(request)

        def login_failed(sender: Any, credentials: Any = None, **said: Any) -> None:
            log.failed(_login_names(credentials))

        signals = "django.contrib.auth.signals"
        super().__init__(
            SignalHook(signals, "user_logged_in", logged_in),
            SignalHook(signals, "user_logged_out", logged_out),
            SignalHook(signals, "user_login_failed", login_failed),
        )


def _keep_former(request: Any) -> None:
    """A logout is about to make the request's user anonymous."""
    try:
        native = getattr(request, "environ", None) or getattr(request, "scope", None)
        context = None if native is None else marked(native)
        if context is not None:
            context.keep("session", identify(_acting(request, _evaluated(request, "user"))))
    except Exception as error:  # noqa: BLE001 - code of the application; the logout goes on
        warn("who was logged out could not be read", error)


def _login_names(credentials: Any) -> dict[str, Any]:
    """What names the user, and nothing else: Django masks only the credentials that it knows to be secret."""
    if not isinstance(credentials, Mapping):
        return {}
    own = getattr(_user_model(), "USERNAME_FIELD", "username")
    return {name: value for name in (own, *_LOGIN_NAMES) if isinstance(value := credentials.get(name), str)}


def _user_model() -> Any:
    """The project's own; None when it has none."""
    try:
        return sys.modules["django.contrib.auth"].get_user_model()
    except Exception:  # noqa: BLE001 - a project without Django's user model may refuse logins, too
        return None


def _wrap_wsgi(original: Any) -> Any:
    def __call__(handler: Any, environ: Any, start_response: Any) -> Any:
        return wsgi.serve(partial(original, handler), environ, start_response)

    return __call__


def _wrap_asgi(original: Any) -> Any:
    async def __call__(handler: Any, scope: Any, receive: Any, send: Any) -> None:
        await asgi.serve(partial(original, handler), scope, receive, send)

    return __call__


def _wrap_response(original: Any) -> Any:
    def get_response(handler: Any, request: Any) -> Any:
        with _remembered(request):
            return original(handler, request)

    return get_response


def _wrap_async_response(original: Any) -> Any:
    async def get_response_async(handler: Any, request: Any) -> Any:
        with _remembered(request):
            return await original(handler, request)

    return get_response_async


def _wrap_resolve(original: Any) -> Any:
    """After all middleware: the server's span is current."""

    def resolve_request(handler: Any, request: Any) -> Any:
        native = getattr(request, "environ", None) or getattr(request, "scope", None)
        context = None if native is None else marked(native)
        if context is not None:
            context.see_span()
        return original(handler, request)

    return resolve_request


@contextmanager
def _remembered(request: Any) -> Iterator[None]:
    """Keep the request with its context; bind that here for Django's test clients, which call no handler."""
    context = _context_of(request)
    if context is None or is_in_force(context):
        yield
        return
    token = bind(context)
    try:
        yield
    finally:
        unbind(token)


def _context_of(request: Any) -> WebContext | None:
    environ, scope = getattr(request, "environ", None), getattr(request, "scope", None)
    if environ is not None:
        context = wsgi.context_of(environ)
    elif scope is not None:
        context = asgi.context_of(scope)
    else:
        return None
    context.route = partial(_route, request)
    context.users = partial(_users, request)
    context.claims = partial(_claims, request)
    context.session = lambda: request.__dict__.get("session")
    context.secret = _secret
    return context


def _claims(request: Any) -> list[tuple[str, Any]]:
    """What Django REST framework's and Authlib's token classes have verified."""
    return [(f"request.{name}", request.__dict__.get(name)) for name in ("auth", "oauth_token")]


def _secret() -> Any:
    return getattr(getattr(sys.modules.get("django.conf"), "settings", None), "SECRET_KEY", None)


def _route(request: Any) -> str | None:
    """The URL pattern, with a slash in front, after the prefix that the server mounts Django at."""
    route = getattr(request.resolver_match, "route", None)
    if not isinstance(route, str):
        return None
    return f"{request.META.get('SCRIPT_NAME', '').rstrip('/')}/{_ANCHORS.sub('', route).lstrip('/')}"


# --- users ----------------------------------------------------------------------------------------


def _users(request: Any) -> list[tuple[str, Any]]:
    """``request.user`` as far as the application has looked at it, and the server's ``REMOTE_USER``."""
    user = _evaluated(request, "user")
    found = [("request.user", acting := identify(_acting(request, user)))]
    replaced = _unwrapped(_cached(request.__dict__))
    if acting is not None and acting.id is not None and replaced is not user and not _has_token(request):
        # Somebody put another user in the place of the session's: an impersonation of the project's own.
        found.append(("session", identify(_described(replaced))))
    server = request.META.get("REMOTE_USER")
    if server and not _came_from(server, user, request):
        found.append(("REMOTE_USER", server))
    return found


def _has_token(request: Any) -> bool:
    """Whether Django REST framework found the user by a token, which says nothing about the session's."""
    return request.__dict__.get("auth") is not None


def _acting(request: Any, user: Any) -> Any:
    """The user, or who impersonates that user: django-impersonate's and django-hijack's names for it."""
    real = _evaluated(request, "impersonator")
    if real is None:
        real = next(iter(_session(request).get("hijack_history") or ()), None)
    if real is None or user is None:
        return _described(user)
    actor, impersonated = identify(_described(real)), identify(_described(user))
    if actor is None or impersonated is None:
        return actor
    return dataclasses.replace(actor, on_behalf_of=impersonated.id)


def _came_from(server: str, user: Any, request: Any) -> bool:
    """Whether Django's user is the server's: of the same name, or found by a backend that maps the names."""
    known = getattr(user, "__dict__", {})
    if known.get(getattr(type(user), "USERNAME_FIELD", "username")) == server:
        return True
    path = known.get("backend") or _session(request).get("_auth_user_backend") or ""
    module, _, name = path.rpartition(".")
    backend = getattr(sys.modules.get(module), name, None)
    remote = getattr(sys.modules.get("django.contrib.auth.backends"), "RemoteUserBackend", None)
    return isinstance(backend, type) and remote is not None and issubclass(backend, remote)


def _session(request: Any) -> Mapping[str, Any]:
    """What has been read of the session; reading it here could send SQL."""
    known = getattr(request.__dict__.get("session"), "__dict__", {}).get("_session_cache")
    return known if isinstance(known, Mapping) else {}


def _evaluated(request: Any, name: str) -> Any:
    """An attribute without asking for it: a lazy user that nobody looked at stays so, and sends no SQL."""
    known = request.__dict__
    user = _unwrapped(known.get(name))
    if user is None and name == "user":
        return _cached(known)
    return user


def _cached(known: Mapping[str, Any]) -> Any:
    """Whom the session named when the application asked: a login or an impersonation leaves it as it was."""
    return known.get("_cached_user", known.get("_acached_user"))


def _unwrapped(user: Any) -> Any:
    """The object in a lazy one, or in a lazy one in a lazy one; None when it is not there yet."""
    functional = sys.modules.get("django.utils.functional")
    while functional is not None and isinstance(user, functional.LazyObject):
        user = object.__getattribute__(user, "_wrapped")
        if user is functional.empty:
            return None
    return user


def _described(user: Any) -> Any:
    """A user of Django's ORM by what is loaded of it; any other as it is."""
    models = sys.modules.get("django.db.models.base")
    if models is None or not isinstance(user, models.Model):
        return user
    loaded, kind = user.__dict__, type(user)
    key = loaded.get(kind._meta.pk.attname)
    if key is None:
        raise TypeError(f"a user of type {kind.__name__} has no simple primary key, or is not saved")
    login = loaded.get(getattr(kind, "USERNAME_FIELD", "username"))
    names = {name: loaded.get(name) for name in ("display_name", "name", "roles", "is_authenticated")}
    return {**names, "id": key, "username": login}
