"""Fixtures: the Collector of the tests next door."""

from __future__ import annotations

from tests.collector.conftest import collector_program

__all__ = ["collector_program"]
