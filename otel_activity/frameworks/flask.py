"""Flask: the request's context, with the rule's template and Flask-Login's user."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from otel_activity.frameworks.hook import MethodHook
from otel_activity.frameworks.web import marked
from otel_activity.frameworks.wsgi import serve

__all__ = ["FlaskRequests"]


class FlaskRequests:
    """Wraps `flask.Flask.__call__`, and `full_dispatch_request`, the first call with Flask's own context."""

    def __init__(self) -> None:
        def wrap_call(original: Any) -> Any:
            def __call__(app: Any, environ: Any, start_response: Any) -> Any:
                return serve(partial(original, app), environ, start_response)

            return __call__

        def wrap_dispatch(original: Any) -> Any:
            def full_dispatch_request(app: Any, *args: Any, **kwargs: Any) -> Any:
                _remember(sys.modules["flask"])
                return original(app, *args, **kwargs)

            return full_dispatch_request

        self._hooks = (
            MethodHook("flask.app", "Flask", "__call__", wrap_call),
            MethodHook("flask.app", "Flask", "full_dispatch_request", wrap_dispatch),
        )

    def install(self) -> None:
        """Wrap now if Flask is loaded, else as soon as it is."""
        for hook in self._hooks:
            hook.install()

    def uninstall(self) -> None:
        """Put the methods back."""
        for hook in self._hooks:
            hook.uninstall()


def _remember(flask: Any) -> None:
    """Keep this request's own objects: Flask's proxies would answer for whatever request is current later."""
    context = marked(flask.request.environ)
    if context is not None:
        request, own = flask.request._get_current_object(), flask.g._get_current_object()
        context.route = lambda: getattr(request.url_rule, "rule", None)
        context.users = partial(_users, context.users, own)


def _users(server: Any, own: Any) -> list[tuple[str, Any]]:
    """Flask-Login's ``current_user``, if the request has asked for it, and the server's ``REMOTE_USER``."""
    return [("flask_login", own.get("_login_user")), *(server() if server is not None else ())]
