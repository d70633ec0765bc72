"""Any WSGI application: each request gets a context of its own, in force until its response is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_activity.context import bind, current_context, unbind
from otel_activity.frameworks.requests import watch
from otel_activity.frameworks.web import WebContext, is_in_force, mark, marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_activity.context import RequestContext
    from otel_activity.frameworks.requests import Watch

__all__ = ["ActivityWSGIMiddleware", "context_of", "serve"]


class ActivityWSGIMiddleware:
    """WSGI middleware. Flask needs none: it is found by itself.

    Args:
        app: the application.

    >>> application = ActivityWSGIMiddleware(application)  # doctest: +SKIP
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Serve one request."""
        return serve(self.app, environ, start_response)


def serve(app: Any, environ: Any, start_response: Any) -> Any:
    """Call an application with the request's context in force, and again while its response is read."""
    context = context_of(environ)
    if is_in_force(context):
        return app(environ, start_response)
    watching = watch(context)
    if watching is not None:
        start_response = _watched(watching, start_response)
    token = bind(context)
    try:
        response = app(environ, start_response)
    except BaseException as error:
        if watching is not None:
            watching.end(error)
        context.end()
        raise
    finally:
        unbind(token)
    wrapper = environ.get("wsgi.file_wrapper")
    if isinstance(response, (list, tuple)) or (isinstance(wrapper, type) and isinstance(response, wrapper)):
        if watching is not None:
            watching.end()
        context.end()
        return response  # nothing of the application runs while these are read; servers know them
    return _Response(response, context, watching)


def _watched(watching: Watch, start_response: Any) -> Any:
    def started(status: Any, headers: Any, *error: Any, **named: Any) -> Any:
        watching.responded(status)
        return start_response(status, headers, *error, **named)

    return started


def context_of(environ: Any) -> WebContext:
    """The context of an environ; made when it has none."""
    context = marked(environ)
    if context is None:
        context = mark(environ, WebContext(environ, environ.get("REMOTE_ADDR"), _header))
        context.users = lambda: [("REMOTE_USER", environ.get("REMOTE_USER") or None)]
    return context


class _Response:
    """A response whose parts are made, and which is closed, in the request's context.

    A context that the application's generator opens stays in force in its next part, and nowhere else.
    """

    def __init__(self, response: Any, context: WebContext, watching: Watch | None) -> None:
        self._response = response
        self._watching = watching
        self._request = context
        self._context: RequestContext | None = context
        self._parts: Iterator[bytes] | None = None

    def __iter__(self) -> _Response:
        return self

    def __next__(self) -> bytes:
        return self._call(self._next)  # type: ignore[no-any-return]  # what `_next` returns

    def _next(self) -> bytes:
        if self._parts is None:
            self._parts = iter(self._response)
        return next(self._parts)

    def close(self) -> None:
        """Close the application's response, if it can be closed, and report the request."""
        close = getattr(self._response, "close", None)
        try:
            if close is not None:
                self._call(close)
        finally:
            watching, self._watching = self._watching, None
            if watching is not None:
                watching.end()
            self._request.end()

    def _call(self, step: Callable[[], Any]) -> Any:
        token = bind(self._context)
        try:
            return step()
        except StopIteration:
            if self._watching is not None:
                self._watching.finished()
            raise
        except BaseException as error:
            if self._watching is not None:
                self._watching.failed(error)
            raise
        finally:
            self._context = current_context()
            unbind(token)


def _header(environ: Any, name: str) -> list[str]:
    """WSGI has header bytes as Latin-1 text."""
    value = environ.get("HTTP_" + name.upper().replace("-", "_"))
    if not isinstance(value, str):
        return []
    return [value[-65_536:].encode("latin-1", "replace").decode("utf-8", "replace")]
