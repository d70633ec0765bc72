"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from otel_activity.postgres import schema
from tests.e2e.support import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Server


@pytest.fixture
def world(postgres_server: Server, postgres_dsn: str, request: pytest.FixtureRequest) -> Iterator[World]:
    """An empty application database and a store with its schema."""
    name = f"store_{abs(hash(request.node.nodeid))}"
    store = postgres_server.create_database(name)
    schema.apply(store)
    made = World(postgres_dsn, store)
    yield made
    made.close()
    postgres_server.drop_database(name)


@pytest.fixture
def durable(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Programs that journal into a directory of their own."""
    original = world.environment

    def environment(**extra: str) -> dict[str, str]:
        ours = {"OTEL_ACTIVITY_DELIVERY": "durable", "OTEL_ACTIVITY_JOURNAL_DIR": str(tmp_path / "journal")}
        return original(**{**ours, **extra})

    monkeypatch.setattr(world, "environment", environment)
    return world
