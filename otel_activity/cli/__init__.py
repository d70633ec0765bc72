"""The command line, ``otel-activity``."""

from __future__ import annotations

from otel_activity.cli.app import main

__all__ = ["main"]
