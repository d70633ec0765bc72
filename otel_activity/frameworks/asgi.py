"""Any ASGI application: each request and websocket gets a context of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_activity.context import bind, unbind
from otel_activity.frameworks.requests import watch
from otel_activity.frameworks.web import WebContext, is_in_force, mark, marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.frameworks.requests import Watch

__all__ = ["ActivityASGIMiddleware", "context_of", "serve"]


class ActivityASGIMiddleware:
    """Pure ASGI middleware. Starlette and FastAPI need none: they are found by themselves.

    Args:
        app: the application.

    >>> app = ActivityASGIMiddleware(app)  # doctest: +SKIP
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        await serve(self.app, scope, receive, send)


async def serve(
    app: Any, scope: Any, receive: Any, send: Any, prepare: Callable[[WebContext, Any], None] | None = None
) -> None:
    """Call an application with the request's context in force; it is reset whatever happens.

    Args:
        app: the application.
        scope: as ASGI has it; a lifespan passes unchanged.
        receive: as ASGI has it.
        send: as ASGI has it.
        prepare: a framework's chance to say where route and user are found.
    """
    if scope["type"] not in ("http", "websocket"):
        await app(scope, receive, send)
        return
    context = context_of(scope)
    if prepare is not None:
        prepare(context, scope)
    if is_in_force(context):  # an outer middleware, or the application this one is mounted in
        await app(scope, receive, send)
        return
    watching = watch(context) if scope["type"] == "http" else None
    token = bind(context)
    try:
        if watching is None:
            await app(scope, receive, send)
        else:
            await _watched(watching, app, scope, receive, send)
    finally:
        context.end()
        unbind(token)


async def _watched(watching: Watch, app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Call an application and report the request when it returns, with the error if there was one."""

    async def sending(message: Any) -> None:
        kind = message.get("type")
        if kind == "http.response.start":
            watching.responded(message.get("status"))
        await send(message)
        if kind == "http.response.body" and not message.get("more_body", False):
            watching.finished()

    try:
        await app(scope, receive, sending)
    except BaseException as error:
        watching.end(error)
        raise
    watching.end()


def context_of(scope: Any) -> WebContext:
    """The context of a scope; made when it has none."""
    context = marked(scope)
    if context is None:
        client = scope.get("client")
        context = mark(scope, WebContext(scope, client[0] if client else None, _header))
    return context


def _header(scope: Any, name: str) -> list[str]:
    wanted = name.encode()
    # Cut before decoding, from the end: the last hops of X-Forwarded-For are the ones that count.
    return [
        value[-65_536:].decode("utf-8", "replace") for key, value in scope["headers"] if key.lower() == wanted
    ]
