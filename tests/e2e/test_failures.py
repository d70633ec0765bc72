"""Failures outlive the transaction that they happened in, whatever delivery is chosen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from werkzeug.test import Client as Server

import otel_activity
from otel_activity import log_user_action, with_activity_logging
from otel_activity.postgres import schema
from otel_activity.postgres.outbox import apply_outbox
from otel_activity.settings import DELIVERIES
from tests.frameworks import django_shop
from tests.frameworks.support import Base, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


@pytest.fixture
def database(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The application's database, and the store; auditing is off afterwards."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    schema.apply(postgres_dsn)
    apply_outbox(postgres_dsn)
    engine = create_engine(postgres_dsn.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(engine)
    django_shop.Shop.engine = engine
    yield postgres_dsn
    otel_activity.shutdown(0.1)
    engine.dispose()


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_failures_survive_a_rollback(database: str, delivery: str) -> None:
    """Actions, refused logins and failed requests are stored; the rows of the transaction are not."""
    assert otel_activity.instrument(postgres_dsn=database, delivery=delivery, requests="401")
    django_shop.prepare()

    class Refused(Exception):
        pass

    with Session(django_shop.Shop.engine) as session:
        session.add(Task(name="never"))
        session.flush()
        log_user_action("task.create", session=session)
        with pytest.raises(Refused), with_activity_logging("task.check", session=session):
            raise Refused
        client: Any = Server(django_shop.application)
        with client.post("/login/", data={"username": "ada", "password": "wrong"}) as answer:
            assert answer.status_code == 401
        session.rollback()
    assert otel_activity.flush_queue(20)
    with psycopg.connect(database) as connection:
        stored = connection.execute(
            "SELECT name, action, outcome, attributes ->> 'error.type' FROM activity.events"
            " ORDER BY name, action"
        ).fetchall()
    assert stored == [
        ("activity.action", "task.check", "failure", "tests.e2e.test_failures." + Refused.__qualname__),
        ("activity.action", "task.create", "failure", "rolled back"),
        ("activity.auth.failed", "login", "failure", None),
        ("activity.request", "request", "failure", "401"),
    ]
