"""Frameworks: one file each, hooked in when the framework is imported, never importing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_activity.actors import use_default_actor
from otel_activity.frameworks import requests, web
from otel_activity.frameworks.celery import CeleryTasks, scrub_with
from otel_activity.frameworks.django import DjangoLogins, DjangoRequests
from otel_activity.frameworks.flask import FlaskLogins, FlaskRequests
from otel_activity.frameworks.security import SecurityLog
from otel_activity.frameworks.starlette import LifespanFlush, StarletteRequests, StarletteSpans

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.ports import ActionSink
    from otel_activity.settings import Settings

__all__ = ["WebHooks"]


class WebHooks:
    """Everything that is hooked into frameworks, installed and removed as one.

    Args:
        settings: what is asked and believed.
        flush: called in a thread when an ASGI application has shut down, and when a process of a Celery
            worker ends; None for nothing.
        sink: where security and request events go; None for nowhere.
        scrub: removes what looks like a secret from attributes that leave the process with a task's message.
    """

    def __init__(
        self,
        settings: Settings,
        flush: Callable[[], object] | None = None,
        sink: ActionSink | None = None,
        scrub: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._settings = settings
        self._scrub = scrub
        lifespan = () if flush is None else (LifespanFlush(flush),)
        self._sink = sink
        log = SecurityLog(sink)
        self._hooks = (
            *lifespan,
            StarletteRequests(),
            StarletteSpans(),
            FlaskRequests(),
            FlaskLogins(log),
            DjangoRequests(),
            DjangoLogins(log),
            requests.ErrorSignals(),
            CeleryTasks(flush),
        )

    def install(self) -> None:
        """Hook into the frameworks that are loaded, and into the others when they are."""
        web.configure(self._settings)
        requests.configure(self._settings.requests, self._sink)
        use_default_actor(self._settings.default_actor)
        scrub_with(self._scrub)
        for hook in self._hooks:
            hook.install()

    def uninstall(self) -> None:
        """Put everything back."""
        for hook in reversed(self._hooks):
            hook.uninstall()
        use_default_actor(None)
        scrub_with(None)
        requests.configure()
        web.configure()
