"""Fixtures of the fault tests: those of the end-to-end tests."""

from __future__ import annotations

from tests.e2e.conftest import durable, world

__all__ = ["durable", "world"]
