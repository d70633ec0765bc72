"""Starlette and FastAPI: the request's context, and a flush at the end of the lifespan."""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from otel_activity.frameworks.asgi import serve
from otel_activity.frameworks.hook import MethodHook
from otel_activity.frameworks.web import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.frameworks.web import WebContext

__all__ = ["LifespanFlush", "StarletteRequests", "StarletteSpans"]

_logger: Final = logging.getLogger("otel_activity")
_MOUNTED: Final = "/{path}"
_DONE: Final = frozenset({"lifespan.shutdown.complete", "lifespan.shutdown.failed"})


async def _in_thread(flush: Callable[[], object]) -> None:
    """Run it off the event loop, whichever that is (Starlette needs anyio). The host shuts down anyway."""
    try:
        from anyio import to_thread

        await to_thread.run_sync(flush)
    except Exception:
        _logger.exception("otel_activity: internal error while flushing")


class LifespanFlush(MethodHook):
    """Wraps `starlette.routing.Router.lifespan`: flush before the server is told that shutdown is complete.

    uvicorn raises SIGTERM again after it has shut down, so nothing that waits for a normal exit would run.

    Args:
        flush: called once, in a thread, when the application's own shutdown is done.
    """

    def __init__(self, flush: Callable[[], object]) -> None:
        def wrap(original: Any) -> Any:
            async def lifespan(router: Any, scope: Any, receive: Any, send: Any) -> None:
                async def flushing(message: Any) -> None:
                    if message.get("type") in _DONE:
                        await _in_thread(flush)
                    await send(message)

                await original(router, scope, receive, flushing)

            return lifespan

        super().__init__("starlette.routing", "Router", "lifespan", wrap)


class StarletteRequests(MethodHook):
    """Wraps `starlette.applications.Starlette.__call__`, which FastAPI calls too."""

    def __init__(self) -> None:
        def wrap(original: Any) -> Any:
            async def __call__(app: Any, scope: Any, receive: Any, send: Any) -> None:
                await serve(partial(original, app), scope, receive, send, _prepare)

            return __call__

        super().__init__("starlette.applications", "Starlette", "__call__", wrap)


class StarletteSpans(MethodHook):
    """Wraps `starlette.routing.Router.__call__`: inside all middleware, so the server's span is current."""

    def __init__(self) -> None:
        def wrap(original: Any) -> Any:
            async def __call__(router: Any, scope: Any, receive: Any, send: Any) -> None:
                context = marked(scope)
                if context is not None:
                    context.see_span()
                await original(router, scope, receive, send)

            return __call__

        super().__init__("starlette.routing", "Router", "__call__", wrap)


def _prepare(context: WebContext, scope: Any) -> None:
    # Middleware may hand on a copy of the scope; `request.state` is one dict in all of them if it exists.
    scope.setdefault("state", {})
    context.route = partial(_route, scope)
    context.users = partial(_users, scope)
    context.session = partial(_session, scope)


def _users(scope: Any) -> list[tuple[str, Any]]:
    """AuthenticationMiddleware's user, and what dependencies put into ``request.state.user``."""
    state = scope.get("state")
    return [
        ("request.user", scope.get("user")),
        ("request.state.user", state.get("user") if isinstance(state, dict) else None),
    ]


def _session(scope: Any) -> Any:
    """What server-side sessions know; Starlette's own are their cookie, and have no id."""
    return scope.get("session_handler") or scope.get("session")


def _route(scope: Any) -> str | None:
    """The template of the route that was chosen, after the prefix of the application it is mounted in."""
    included = scope.get("fastapi")
    chosen = included.get("effective_route_context") if isinstance(included, dict) else None
    for route in (getattr(chosen, "starlette_route", None), chosen, scope.get("route")):
        path = getattr(route, "path_format", None)
        if isinstance(path, str):
            if isinstance(route, sys.modules["starlette.routing"].Mount):
                path = _MOUNTED  # nothing inside it was chosen, and the prefix has its path already
            return str(scope.get("root_path", "")).rstrip("/") + path
    return None
