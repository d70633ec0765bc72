"""A store for each test that asks, and a receiver in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.receiver.support import Receiver
from tests.store.support import apply_schema

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store_dsn(postgres_dsn: str) -> str:
    """A fresh database with the store's tables, empty."""
    return apply_schema(postgres_dsn)


@pytest.fixture
def receiver(store_dsn: str) -> Iterator[Receiver]:
    """A receiver with the default settings, on free ports."""
    with Receiver(store_dsn) as receiver:
        yield receiver
