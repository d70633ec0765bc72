"""otel_activity: an audit trail that is part of your telemetry."""

from __future__ import annotations

__all__: list[str] = []
__version__ = "0.1.0"
