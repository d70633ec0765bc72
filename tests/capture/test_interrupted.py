"""Interruptions (Ctrl-C, SystemExit, a timeout) around a COMMIT, wherever Python looks for signals."""

from __future__ import annotations

import datetime as dt
import signal
import sqlite3
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from otel_activity import semconv
from otel_activity.capture import SQLAlchemyCapture
from otel_activity.classes import Classes
from otel_activity.codec import encode
from otel_activity.delivery import Journaled, Memory, QueuedDelivery, RoutedDelivery
from otel_activity.redaction import Redactor
from tests.capture.support import Account, Base, Note, Open
from tests.delivery.test_durable import LARGE, World, flush, world
from tests.interruptions import TimeLimit, interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from otel_activity.capture.bracket import Bracket
    from otel_activity.delivery import DurableDelivery
    from otel_activity.events import Event
    from otel_activity.ports import Delivery
    from tests.delivery.test_queued import Road

__all__ = ["world"]

TRACED = ("capture/bracket.py", "delivery/routed.py", "delivery/durable.py", "delivery/journal.py")
HOOKS = (
    *("capture/mapper.py", "capture/change.py", "capture/plan.py", "capture/transaction.py"),
    *("capture/statements.py", "capture/bracket.py", "capture/drivers.py"),
)
MORE = ("capture/transaction.py", "delivery/memory.py", "delivery/queued.py", "delivery/feeder.py")


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


@pytest.fixture
def audited() -> Iterator[Callable[[Delivery], Bracket]]:
    """Captures for a delivery, until the test is over."""
    captures: list[SQLAlchemyCapture] = []

    def audit(delivery: Delivery) -> Bracket:
        classes = Classes("durable", ["Note=best_effort"])
        capture = SQLAlchemyCapture(delivery, redactor=Open(), classes=classes)
        capture.install()
        captures.append(capture)
        return capture._bracket

    yield audit
    for capture in captures:
        capture.uninstall()


def stored(path: Path) -> list[str]:
    """Names of the rows that were committed, and what the notes say."""
    connection = sqlite3.connect(path / "test.db")
    try:
        query = "SELECT name FROM account UNION ALL SELECT body FROM note"
        return sorted(name for (name,) in connection.execute(query))
    finally:
        connection.close()


def names(events: list[Event]) -> list[str]:
    """Of the rows that the events tell of."""
    fields = {"account": "name", "note": "body"}
    return sorted(
        msgspec.json.decode(event.attributes[semconv.CHANGES])[fields[table]]["after"]
        for event in events
        if (table := event.attributes.get(semconv.DB_COLLECTION_NAME)) in fields
    )


def interrupted_everywhere(
    engine: Engine, files: tuple[str, ...], then: str, commit: Callable[[Any], object] | None = None
) -> set[str]:
    """One transaction for each place where its COMMIT can be interrupted; these places.

    Args:
        engine: of the database.
        files: see `interrupted`.
        then: what the application does next, `commit` or `rollback`. SQLite's driver takes both when
            nothing is open.
        commit: commits a `Connection`, if that is to be another way than usual.
    """
    places: set[str] = set()
    number = 0
    while True:
        number += 1
        with Session(engine) as session:
            session.add_all(Account(name=f"{number} {each}") for each in "abc")
            session.add(Note(body=f"{number} in memory alone, if there is a choice"))
            session.flush()
            connection = session.connection()
            dialect, raw = connection.dialect, connection.connection
            way = dialect.do_commit if commit is None else commit
            error = (KeyboardInterrupt, SystemExit, GeneratorExit, TimeLimit)[number % 4]
            where = interrupted(number, files, error, lambda way=way, raw=raw: way(raw))  # type: ignore[misc]
            if not where:
                return places
            places.add(where)
            getattr(dialect, f"do_{then}")(raw)


@pytest.mark.parametrize("mixed", [False, True], ids=["durable", "mixed"])
@pytest.mark.parametrize("then", ["rollback", "commit"])
def test_an_interruption_at_any_moment_leaves_no_record_of_what_was_rolled_back(
    world: World,
    engine: Engine,
    audited: Callable[[Delivery], Bracket],
    tmp_path: Path,
    mixed: bool,
    then: str,
) -> None:
    """The process dies afterwards; whoever takes its journal over delivers what was committed, once."""
    first = world.delivery(world.road(down=True), max_bytes=64 * LARGE)
    audited(delivery_of(first) if mixed else Journaled(first))
    places = interrupted_everywhere(engine, TRACED, then)
    assert len(places) > 40, places
    world.kill(first)
    heir = world.road()
    second = world.delivery(heir)
    second.start()
    assert flush(second)
    found = names(heir.taken)
    truth = [name for name in stored(tmp_path) if not mixed or "memory" not in name]
    assert found == truth


def delivery_for(world: World, kind: str, road: Road) -> tuple[Any, Delivery]:
    """A delivery of a kind, and how it takes units."""
    if kind == "best_effort":
        queued = QueuedDelivery([road.lane], road.emit, capacity=10_000)
        return queued, queued
    durable = world.delivery(road, capacity=10_000, max_bytes=64 * LARGE)
    return durable, delivery_of(durable) if kind == "mixed" else Journaled(durable)


KINDS = pytest.mark.parametrize("kind", ["best_effort", "durable", "mixed"])


@KINDS
@pytest.mark.parametrize("then", ["rollback", "commit"])
def test_what_was_interrupted_after_its_commit_is_delivered_by_the_same_process(
    world: World,
    engine: Engine,
    audited: Callable[[Delivery], Bracket],
    tmp_path: Path,
    kind: str,
    then: str,
) -> None:
    """Nobody has to wait for the end of the process: a flush has what was committed, once."""
    road = world.road(capacity=10_000)
    delivery, way = delivery_for(world, kind, road)
    audited(way)
    places = interrupted_everywhere(engine, (*TRACED, *MORE), then)
    assert len(places) > 20, places
    assert flush(delivery)
    assert names(road.taken) == stored(tmp_path)
    assert delivery.metrics()["waiting"] == 0
    assert delivery.metrics()["released"] == len(stored(tmp_path))


@KINDS
def test_what_was_interrupted_after_its_commit_had_failed_is_delivered_by_the_same_process(
    world: World,
    engine: Engine,
    audited: Callable[[Delivery], Bracket],
    tmp_path: Path,
    kind: str,
) -> None:
    """The connection breaks, and then somebody is interrupted: what is unknown is said to be unknown."""

    def answer_nothing(raw: Any) -> None:
        raw.dbapi_connection.commit()
        raise ConnectionResetError

    def commit(raw: Any) -> None:
        transaction = bracket.find(raw)
        assert transaction is not None
        with suppress(ConnectionResetError):
            bracket.commit(transaction, lambda: answer_nothing(raw), raw=raw.dbapi_connection)

    road = world.road(capacity=10_000)
    delivery, way = delivery_for(world, kind, road)
    bracket = audited(way)
    places = interrupted_everywhere(engine, (*TRACED, *MORE), "rollback", commit)
    assert len(places) > 20, places
    assert flush(delivery)
    assert names(road.taken) == stored(tmp_path)


@KINDS
def test_what_was_interrupted_in_its_second_phase_is_delivered_by_the_same_process(
    world: World,
    engine: Engine,
    audited: Callable[[Delivery], Bracket],
    tmp_path: Path,
    kind: str,
) -> None:
    """COMMIT PREPARED that was interrupted before it was sent can be tried again; afterwards it is noted."""
    key = ("database", "id")

    def commit(raw: Any) -> None:
        bracket.commit_prepared(key, raw.dbapi_connection.commit)

    road = world.road(capacity=10_000)
    delivery, way = delivery_for(world, kind, road)
    bracket = audited(way)
    places: set[str] = set()
    number, where = 0, "somewhere"
    while where:
        number += 1
        with Session(engine) as session:
            session.add(Account(name=str(number)))
            session.flush()
            raw = session.connection().connection
            transaction = bracket.find(raw)
            assert transaction is not None
            driver = raw.dbapi_connection
            bracket.prepare_twophase(transaction, key, lambda: None, lambda: None, raw=driver)
            del transaction  # else it outlives its connection
            files = (*TRACED, *MORE)
            where = interrupted(number, files, KeyboardInterrupt, lambda raw=raw: commit(raw))  # type: ignore[misc]
            places.add(where)
            commit(raw)
    assert len(places) > 8, places
    assert flush(delivery)
    assert names(road.taken) == stored(tmp_path)


@pytest.mark.parametrize("error", [TimeLimit, KeyboardInterrupt])
def test_an_interruption_in_the_midst_of_a_flush_is_the_applications(
    world: World,
    engine: Engine,
    audited: Callable[[Delivery], Bracket],
    tmp_path: Path,
    error: type[BaseException],
) -> None:
    """Taken for a mistake of a hook it would be gone, and the row be committed without its event."""
    road = world.road(capacity=10_000)
    delivery, way = delivery_for(world, "best_effort", road)
    audited(way)
    places: set[str] = set()
    number, where = 0, "somewhere"
    while where:
        number += 1
        with Session(engine) as session:
            session.add_all([Account(name=f"{number} a"), Note(body=f"{number} b")])
            where = interrupted(number, HOOKS, error, session.flush)
            places.add(where)
            if not where:
                session.commit()
    assert len(places) > 15, places
    assert flush(delivery)
    assert names(road.taken) == stored(tmp_path) == [f"{number} a", f"{number} b"]


def test_an_interrupted_value_is_not_taken_for_an_odd_one() -> None:
    """What would be stored in its place is a mark that the value raised something."""
    value = {
        "password": "x",
        "list": [1, {"token=y": dt.date(2026, 1, 1)}, Decimal(1)],
        "text": "a=1&password=z",
    }
    redactor = Redactor((), key="k" * 16)
    files = ("codec/values.py", "redaction.py")

    def work() -> None:
        redactor.scrub(msgspec.json.encode(encode(redactor.clean(value), 1000)))

    work()  # names are looked at once; nobody hears of an interruption when a generator is thrown away
    places: set[str] = set()
    number, where = 0, "somewhere"
    while where:
        number += 1
        where = interrupted(number, files, TimeLimit, work)
        places.add(where)
    assert len(places) > 15, places


def test_no_statement_asks_for_the_signal_handlers(
    world: World,
    engine: Engine,
    audited: Callable[[Delivery], Bracket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A driver that has not what another has raises all day: that is no reason to look for a handler."""
    _, way = delivery_for(world, "best_effort", world.road(capacity=10_000))
    audited(way)
    asked: list[int] = []
    original = signal.getsignal

    def getsignal(number: int) -> Any:
        asked.append(number)
        return original(number)

    monkeypatch.setattr(signal, "getsignal", getsignal)
    with Session(engine) as session:
        session.add(Account(name="a"))
        session.flush()
        session.scalars(select(Account.name)).all()
        session.commit()
    assert asked == []
