"""Requests as events of their own, where a rule asks for them: ``activity.request``, when they end."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace

from otel_activity import semconv
from otel_activity.context import bind, current_context, unbind
from otel_activity.events import Performed
from otel_activity.frameworks.hook import Hooks, SignalHook
from otel_activity.frameworks.web import WebContext, warn
from otel_activity.rules import RequestRule, is_reported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_activity.ports import ActionSink

__all__ = ["ErrorSignals", "Watch", "configure", "watch", "watched"]

_PATH_LENGTH: Final = 512
_SERVER_ERROR: Final = 500


class _Options:
    rules: tuple[RequestRule, ...] = ()
    sink: ActionSink | None = None


def configure(rules: tuple[str, ...] = (), sink: ActionSink | None = None) -> None:
    """Set which requests of the process are reported, and where to.

    Args:
        rules: as `otel_activity.rules` reads them.
        sink: None for nowhere.
    """
    _Options.rules = tuple(RequestRule.parse(rule) for rule in rules)
    _Options.sink = sink


def watch(context: WebContext) -> Watch | None:
    """Begin to watch a request; None when nothing is ever reported."""
    if not _Options.rules or _Options.sink is None:
        return None
    found = context.watch = Watch(context)
    return found


def watched() -> Watch | None:
    """What watches the request in force."""
    link = current_context()
    while link is not None:
        if isinstance(link, WebContext):
            return link.watch
        link = link.parent
    return None


class Watch:
    """One request, and what became of it."""

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self._started = time.perf_counter()
        self._duration: float | None = None
        self._status: int | None = None
        self._error: BaseException | None = None

    def responded(self, status: Any) -> None:
        """The response begins.

        Args:
            status: its code, as a number or as the beginning of a status line.
        """
        if self._context.span is None:  # no framework of ours has seen one
            self._context.see_span()
        try:
            self._status = int(status[:3] if isinstance(status, str) else status)
        except (TypeError, ValueError):  # the server will say so
            self._status = None

    def finished(self) -> None:
        """The response is out. What runs after it is the application's, not the client's time."""
        if self._duration is None:
            self._duration = time.perf_counter() - self._started

    def failed(self, error: BaseException) -> None:
        """The application raised. The first error is the cause of those that follow."""
        if self._error is None:
            self._error = error

    def end(self, error: BaseException | None = None) -> None:
        """Report the request if a rule asks for it. Never raises.

        Args:
            error: what the application raised to the server.
        """
        if error is not None:
            self.failed(error)
        self.finished()
        context, self._context.watch = self._context, None
        sink = _Options.sink
        try:
            if sink is not None and self._is_reported(context):
                with _in_force(context):
                    sink.record(self._performed())
        except Exception as problem:  # noqa: BLE001 - the request goes on
            warn("a request could not be reported", problem)

    def _is_reported(self, context: WebContext) -> bool:
        said = context.own_attributes()
        route = said.get(semconv.ROUTE)
        if route is None:
            native = context.native
            route = str(native.get("path") or native.get("PATH_INFO") or "")[:_PATH_LENGTH]
        status = self._status or (_SERVER_ERROR if self._error is not None else 0)
        return is_reported(_Options.rules, said.get(semconv.REQUEST_METHOD, ""), route, status)

    def _performed(self) -> Performed:
        status, error = self._status, self._error
        performed = Performed(name=semconv.REQUEST, action="request", duration=self._duration)
        if status is not None:
            performed.attributes = {semconv.STATUS_CODE: status}
        if error is not None:
            performed.outcome, performed.error = "failure", error
        elif status is None:
            performed.outcome = "unknown"
        elif status >= 400:
            performed.outcome, performed.error = "failure", str(status)
        return performed


@contextmanager
def _in_force(context: WebContext) -> Iterator[None]:
    """The request as it was: its context, and the span that middleware has ended by now."""
    token = bind(context)
    attached = None if context.span is None else otel_context.attach(trace.set_span_in_context(context.span))
    try:
        yield
    finally:
        if attached is not None:
            otel_context.detach(attached)
        unbind(token)


class ErrorSignals(Hooks):
    """Django and Flask make a response of what the application raised, and tell of it by a signal."""

    def __init__(self) -> None:
        super().__init__(
            SignalHook("django.core.signals", "got_request_exception", _raised),
            SignalHook("flask.signals", "got_request_exception", _raised),
        )


def _raised(sender: Any, exception: BaseException | None = None, **said: Any) -> None:
    found, error = watched(), exception or sys.exc_info()[1]
    if found is not None and error is not None:
        found.failed(error)
