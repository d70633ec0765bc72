"""otel_activity: an audit trail that is part of your telemetry.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_activity.version import __version__

if TYPE_CHECKING:
    from otel_activity.actions import log_user_action, with_activity_logging
    from otel_activity.api import (
        flush_queue,
        get_queue_metrics,
        instrument,
        is_active,
        shutdown,
        uninstrument,
    )
    from otel_activity.context import Actor, activity_context
    from otel_activity.declare import audited
    from otel_activity.exporters import PostgresLogExporter
    from otel_activity.frameworks.asgi import ActivityASGIMiddleware
    from otel_activity.frameworks.wsgi import ActivityWSGIMiddleware
    from otel_activity.instrumentor import ActivityInstrumentor
    from otel_activity.settings import Settings
    from otel_activity.store import ActivityStore

__all__ = [
    "ActivityASGIMiddleware",
    "ActivityInstrumentor",
    "ActivityStore",
    "ActivityWSGIMiddleware",
    "Actor",
    "PostgresLogExporter",
    "Settings",
    "__version__",
    "activity_context",
    "audited",
    "flush_queue",
    "get_queue_metrics",
    "instrument",
    "is_active",
    "log_user_action",
    "shutdown",
    "uninstrument",
    "with_activity_logging",
]

_HOMES = {
    "ActivityASGIMiddleware": "otel_activity.frameworks.asgi",
    "ActivityWSGIMiddleware": "otel_activity.frameworks.wsgi",
    "ActivityInstrumentor": "otel_activity.instrumentor",
    "ActivityStore": "otel_activity.store",
    "Actor": "otel_activity.context",
    "PostgresLogExporter": "otel_activity.exporters",
    "Settings": "otel_activity.settings",
    "activity_context": "otel_activity.context",
    "audited": "otel_activity.declare",
    "flush_queue": "otel_activity.api",
    "get_queue_metrics": "otel_activity.api",
    "instrument": "otel_activity.api",
    "is_active": "otel_activity.api",
    "log_user_action": "otel_activity.actions",
    "shutdown": "otel_activity.api",
    "uninstrument": "otel_activity.api",
    "with_activity_logging": "otel_activity.actions",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
