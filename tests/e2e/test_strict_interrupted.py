"""Interruptions around the COMMIT of a transaction that writes its own events."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

import otel_activity
from tests.e2e.test_strict import PATIENCE, column, database, engines, outboxed, start
from tests.frameworks.support import Task
from tests.interruptions import TimeLimit, interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

__all__ = ["database", "engines"]

pytestmark = pytest.mark.e2e

TRACED = ("capture/bracket.py", "delivery/routed.py", "delivery/strict.py", "postgres/outbox.py")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("then", ["rollback", "commit"])
def test_an_interruption_at_any_moment_leaves_each_committed_row_one_event(
    database: str, engines: Callable[..., Engine], driver: str, then: str
) -> None:
    """What was written into the transaction before the interruption is not written into it twice."""
    engine = engines(database, driver)
    start(database)
    places = set()
    number = 0
    while True:
        number += 1
        with suppress(DBAPIError), Session(engine) as session:
            session.add_all([Task(name=f"{number} {each}") for each in "ab"])
            session.flush()
            connection = session.connection()
            commit = partial(connection.dialect.do_commit, connection.connection)
            error = (KeyboardInterrupt, SystemExit, GeneratorExit, TimeLimit)[number % 4]
            where = interrupted(number, TRACED, error, commit)
            if not where:
                break
            places.add(where)
            # What the application does next, if there is a connection still.
            with suppress(psycopg.OperationalError):
                getattr(connection.dialect, f"do_{then}")(connection.connection)
    assert len(places) > 30, places
    assert otel_activity.flush_queue(PATIENCE)
    assert outboxed(database) == 0
    names = "SELECT changes -> 'name' ->> 'after' FROM activity.events WHERE name = 'activity.entity.created'"
    assert sorted(column(database, names)) == sorted(column(database, "SELECT name FROM task"))
    assert column(database, "SELECT name FROM activity.events WHERE name = 'activity.gap'") == []
