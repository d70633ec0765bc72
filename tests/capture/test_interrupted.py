"""Interruptions (Ctrl-C, SystemExit, a timeout) around a COMMIT, wherever Python looks for signals."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import msgspec
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from otel_activity import semconv
from otel_activity.capture import SQLAlchemyCapture
from otel_activity.classes import Classes
from otel_activity.delivery import Journaled, Memory, RoutedDelivery
from tests.capture.support import Account, Base, Note, Open
from tests.delivery.test_durable import LARGE, World, flush, world
from tests.interruptions import interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from otel_activity.delivery import DurableDelivery
    from otel_activity.events import Event
    from otel_activity.ports import Delivery

__all__ = ["world"]

TRACED = ("capture/bracket.py", "delivery/routed.py", "delivery/durable.py", "delivery/journal.py")


def delivery_of(engine: DurableDelivery) -> Delivery:
    """As the parts of a unit go when some entities are best-effort."""
    journaled = Journaled(engine)
    ways: dict[str, Delivery] = {"best_effort": Memory(engine), "durable": journaled, "strict": journaled}
    return RoutedDelivery(ways, "durable")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine on a new database."""
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def stored(path: Path) -> set[str]:
    """Names of the rows that were committed."""
    connection = sqlite3.connect(path / "test.db")
    try:
        return {name for (name,) in connection.execute("SELECT name FROM account")}
    finally:
        connection.close()


def names(events: list[Event]) -> list[str]:
    """Of the rows that the events tell of."""
    created = [event for event in events if event.attributes[semconv.DB_COLLECTION_NAME] == "account"]
    return [msgspec.json.decode(event.attributes[semconv.CHANGES])["name"]["after"] for event in created]


@pytest.mark.parametrize("mixed", [False, True], ids=["durable", "mixed"])
@pytest.mark.parametrize("then", ["rollback", "commit"])
def test_an_interruption_at_any_moment_leaves_no_record_of_what_was_rolled_back(
    world: World, engine: Engine, tmp_path: Path, mixed: bool, then: str
) -> None:
    """The process dies afterwards; whoever takes its journal over delivers what was committed, once."""
    first = world.delivery(world.road(down=True), max_bytes=64 * LARGE)
    delivery = delivery_of(first) if mixed else Journaled(first)
    classes = Classes("durable", ["Note=best_effort"])
    capture = SQLAlchemyCapture(delivery, redactor=Open(), classes=classes)
    capture.install()
    try:
        number, places = 0, set()
        while True:
            number += 1
            with Session(engine) as session:
                session.add_all(Account(name=f"{number} {each}") for each in "abc")
                session.add(Note(body="in memory alone, if there is a choice"))
                session.flush()
                connection = session.connection()
                where = interrupted(
                    number,
                    TRACED,
                    (KeyboardInterrupt, SystemExit, GeneratorExit)[number % 3],
                    lambda connection=connection: connection.dialect.do_commit(connection.connection),  # type: ignore[misc]
                )
                if not where:
                    break
                places.add(where)
                # What the application does next; SQLite's driver takes both when nothing is open.
                getattr(connection.dialect, f"do_{then}")(connection.connection)
    finally:
        capture.uninstall()
    assert len(places) > 40, places
    world.kill(first)
    heir = world.road()
    second = world.delivery(heir)
    second.start()
    assert flush(second)
    found = names(heir.taken)
    rows = stored(tmp_path)
    assert [name for name in found if name not in rows] == []
    assert len(found) == len(set(found))
    assert rows - set(found) == set()
