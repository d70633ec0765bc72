"""Fixtures of the store: a database with the schema, a server of one's own, a role without rights."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from otel_activity.embedded import EmbeddedPostgres
from otel_activity.postgres import schema
from otel_activity.postgres.writer import EventWriter

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store_dsn(postgres_dsn: str) -> str:
    """A database with the schema applied."""
    schema.apply(postgres_dsn)
    return postgres_dsn


@pytest.fixture
def connection(store_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection as the exporter makes it."""
    with psycopg.connect(store_dsn, autocommit=True, prepare_threshold=None) as connection:
        yield connection


@pytest.fixture
def writer(connection: psycopg.Connection[Any]) -> EventWriter:
    """A writer with every right."""
    return EventWriter(connection)


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server that the test may kill; it asks for a password."""
    bin_dir = os.environ.get("ACTIVITY_TEST_PG_BIN") or None
    with EmbeddedPostgres(bin_dir=bin_dir, fsync=False) as server:
        yield server


@pytest.fixture
def role_dsn(store_dsn: str) -> Iterator[tuple[str, str]]:
    """A fresh role that may log in and nothing else, and its DSN for the database with the schema."""
    role, password = f"activity_{secrets.token_hex(6)}", secrets.token_hex(12)
    name = sql.Identifier(role)
    with psycopg.connect(store_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password)))
        yield role, make_conninfo(store_dsn, user=role, password=password)
        admin.execute(sql.SQL("DROP OWNED BY {}").format(name))
        admin.execute(sql.SQL("DROP ROLE {}").format(name))
