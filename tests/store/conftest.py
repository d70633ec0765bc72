"""A store for each test that asks."""

from __future__ import annotations

import pytest

from tests.store.support import apply_schema


@pytest.fixture
def store_dsn(postgres_dsn: str) -> str:
    """A fresh database with the store's tables, empty."""
    return apply_schema(postgres_dsn)
