"""Flask: the request's context, with the rule's template and Flask-Login's user."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_activity.frameworks.hook import Hooks, MethodHook, SignalHook
from otel_activity.frameworks.users import identify
from otel_activity.frameworks.web import marked, warn
from otel_activity.frameworks.wsgi import serve

if TYPE_CHECKING:
    from otel_activity.frameworks.security import SecurityLog
    from otel_activity.frameworks.web import WebContext

__all__ = ["FlaskLogins", "FlaskRequests"]


class FlaskRequests(Hooks):
    """Wraps `flask.Flask.__call__`; `full_dispatch_request`, the first call with Flask's own context; and
    `dispatch_request`, which comes after the functions before the request: the server's span is current.
    """

    def __init__(self) -> None:
        def wrap_call(original: Any) -> Any:
            def __call__(app: Any, environ: Any, start_response: Any) -> Any:
                return serve(partial(original, app), environ, start_response)

            return __call__

        def wrap_dispatch(original: Any) -> Any:
            def full_dispatch_request(app: Any, *args: Any, **kwargs: Any) -> Any:
                _remember(sys.modules["flask"], app)
                return original(app, *args, **kwargs)

            return full_dispatch_request

        def wrap_view(original: Any) -> Any:
            def dispatch_request(app: Any, *args: Any, **kwargs: Any) -> Any:
                context = marked(sys.modules["flask"].request.environ)
                if context is not None:
                    context.see_span()
                return original(app, *args, **kwargs)

            return dispatch_request

        super().__init__(
            MethodHook("flask.app", "Flask", "__call__", wrap_call),
            MethodHook("flask.app", "Flask", "full_dispatch_request", wrap_dispatch),
            MethodHook("flask.app", "Flask", "dispatch_request", wrap_view),
        )


class FlaskLogins(Hooks):
    """Listens to Flask-Login's signals. It has none for a wrong password, which only the application sees;
    ``user_unauthorized`` means that somebody who is not logged in was refused a page.

    Args:
        log: where logins are reported.
    """

    def __init__(self, log: SecurityLog) -> None:
        def wrap_update(original: Any) -> Any:
            def _update_request_context_with_user(manager: Any, user: Any = None) -> Any:
                _keep_former(sys.modules["flask"])
                return original(manager, user)

            return _update_request_context_with_user

        def logged_in(sender: Any, user: Any = None, **said: Any) -> None:
            context = _in_force(sys.modules["flask"])
            log.login(user, before=None if context is None else context.former)

        def logged_out(sender: Any, user: Any = None, **said: Any) -> None:
            log.logout(user)

        super().__init__(
            MethodHook(
                "flask_login.login_manager", "LoginManager", "_update_request_context_with_user", wrap_update
            ),
            SignalHook("flask_login.signals", "user_logged_in", logged_in),
            SignalHook("flask_login.signals", "user_logged_out", logged_out),
        )


def _remember(flask: Any, app: Any) -> None:
    """Keep this request's own objects: Flask's proxies would answer for whatever request is current later."""
    try:
        _keep_objects(flask, app)
    except Exception as error:  # noqa: BLE001 - a version of Flask that keeps them elsewhere
        warn("Flask's own objects could not be found", error)


def _keep_objects(flask: Any, app: Any) -> None:
    context = marked(flask.request.environ)
    if context is not None:
        request, own = flask.request._get_current_object(), flask.g._get_current_object()
        session = _session(flask)
        context.route = lambda: getattr(request.url_rule, "rule", None)
        context.users = partial(_users, context.users, own)
        context.claims = partial(_claims, own)
        context.session = lambda: session
        context.secret = lambda: app.secret_key


def _users(server: Any, own: Any) -> list[tuple[str, Any]]:
    """Flask-Login's ``current_user``, if the request has asked for it, and the server's ``REMOTE_USER``."""
    return [("flask_login", own.get("_login_user")), *(server() if server is not None else ())]


def _in_force(flask: Any) -> WebContext | None:
    """The context of Flask's current request; None outside of requests."""
    return marked(flask.request.environ) if flask.has_request_context() else None


def _keep_former(flask: Any) -> None:
    """Flask-Login is about to put somebody else, or nobody, in the place of the user it knows."""
    try:
        context = _in_force(flask)
        former = None if context is None else flask.g.get("_login_user")
        if context is not None and former is not None:
            context.keep("flask_login before", identify(former))
    except Exception as error:  # noqa: BLE001 - code of the application; the login goes on
        warn("who was logged in before could not be read", error)


def _claims(own: Any) -> list[tuple[str, Any]]:
    """What Flask-JWT-Extended and Authlib have verified."""
    return [
        ("flask_jwt_extended", own.get("_jwt_extended_jwt")),
        ("authlib", own.get("authlib_server_oauth2_token")),
    ]


def _session(flask: Any) -> Any:
    """The session. Not by ``flask.session``: that marks it as used, and the answer gets another header."""
    variables = flask.globals
    request = getattr(variables, "_cv_request", None) or getattr(variables, "_cv_app", None)
    context = None if request is None else request.get(None)
    own = getattr(context, "__dict__", {})
    return own.get("_session", own.get("session"))
