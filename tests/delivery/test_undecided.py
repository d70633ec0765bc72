"""Units whose COMMIT nobody saw the end of: the database is asked, and its answer decides."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from otel_activity import semconv
from otel_activity.delivery import Backoff
from otel_activity.delivery.docket import Docket
from otel_activity.errors import StoreUnavailable
from otel_activity.events import Commit, Event, Proof, Verdict
from tests.delivery.test_durable import World, bracket, fates, flush, ids, world
from tests.delivery.test_queued import Note, unit, wait_for
from tests.interruptions import interrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_activity.delivery import DurableDelivery
    from otel_activity.events import Unit

__all__ = ["world"]


class Changed(Note):
    """A change of an entity, which did not happen when its transaction is rolled back."""

    def to_event(self, unit: Unit, commit: Commit) -> Event:
        event = super().to_event(unit, commit)
        event.name = semconv.ENTITY_UPDATED
        event.attributes[semconv.TRANSACTION_ID] = unit.transaction_id
        return event


class Database:
    """Knows the fate of transactions by their id; an unknown id is in progress."""

    def __init__(self) -> None:
        self.fates: dict[int, Verdict] = {}
        self.asked: list[int] = []
        self.threads: set[str] = set()
        self.down = False

    def resolve(self, proofs: Sequence[Proof]) -> list[Verdict]:
        self.threads.add(threading.current_thread().name)
        if self.down:
            raise StoreUnavailable("the database is down")
        self.asked.extend(proof.xid for proof in proofs)
        return [self.fates.get(proof.xid, Verdict.IN_PROGRESS) for proof in proofs]

    def after_fork(self) -> None:
        self.asked.clear()


def proven(*numbers: int, kind: type[Note] = Changed) -> Unit:
    """A unit whose transaction's id is the number of its first entry."""
    made = unit(*numbers, kind=kind)
    made.proof = Proof("7000000000000000001", 1, "app", numbers[0])
    return made


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database that can be asked, often."""
    monkeypatch.setattr(
        "otel_activity.delivery.durable.Docket",
        lambda resolver, decide: Docket(resolver, decide, backoff=Backoff(first=0.002, most=0.01)),
    )
    return Database()


def left_by_a_dead_process(world: World, *units: Unit) -> None:
    """Prepared, and then the process was killed."""
    first: DurableDelivery = world.delivery(world.road(down=True))
    for made in units:
        first.prepare(made)
    world.kill(first)


def test_the_database_decides_what_a_crash_left_open(world: World, database: Database) -> None:
    """Committed is delivered as proven, aborted is discarded, what cannot be known is unknown."""
    left_by_a_dead_process(world, proven(1, 2), proven(10), proven(20), unit(30))
    database.fates = {1: Verdict.COMMITTED, 10: Verdict.ABORTED, 20: Verdict.UNKNOWN}
    road = world.road()
    delivery = world.delivery(road, resolver=database)
    delivery.start()
    assert flush(delivery)
    assert fates(road) == {
        1: ("proven", None),
        2: ("proven", None),
        20: ("unknown", "process ended during commit"),
        30: ("unknown", "process ended during commit"),
    }
    assert delivery.metrics()["undecided"] == 2
    wait_for(lambda: len(list(world.home.iterdir())) == 1)  # what is left is its own
    assert database.threads == {"otel-activity-resolver"}


def test_a_question_that_was_interrupted_is_put_again(world: World, database: Database) -> None:
    """Wherever Ctrl-C came while a unit was given up, who begins again has one answer."""
    number, where = 0, "somewhere"
    database.fates = dict.fromkeys(range(200), Verdict.COMMITTED)
    while where:
        number += 1
        road = world.road()
        delivery = world.delivery(road, resolver=database)
        made = proven(number)
        delivery.prepare(made)
        where = interrupted(
            number,
            ["delivery/docket.py", "delivery/durable.py"],
            KeyboardInterrupt,
            lambda delivery=delivery, made=made: delivery.undecided(made, None),  # type: ignore[misc]
        )
        if where:
            delivery.undecided(made, None)
        assert flush(delivery)
        assert fates(road) == {number: ("proven", None)}, where
        world.kill(delivery)
    assert number > 8


def test_a_transaction_in_progress_is_asked_about_again(world: World, database: Database) -> None:
    """Nothing is guessed while the database has no answer, and a flush says that something is open."""
    left_by_a_dead_process(world, proven(1))
    road = world.road()
    delivery = world.delivery(road, resolver=database)
    delivery.start()
    assert not flush(delivery, 0.2)
    assert ids(road) == []
    assert delivery.metrics()["journal"]["asked"] == 1
    assert database.asked.count(1) > 1
    database.fates[1] = Verdict.COMMITTED
    assert flush(delivery)
    assert fates(road) == {1: ("proven", None)}


def test_a_database_that_is_down_is_asked_later(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The unit waits, one line says why; other units go out meanwhile."""
    database.down = True
    left_by_a_dead_process(world, proven(1))
    road = world.road()
    delivery = world.delivery(road, resolver=database)
    delivery.start()
    bracket(delivery, unit(5))
    wait_for(lambda: ids(road) == [5])
    assert not flush(delivery, 0.1)
    assert caplog.text.count("the database is down") == 1
    database.fates[1] = Verdict.COMMITTED
    database.down = False
    assert flush(delivery)
    assert ids(road) == [5, 1]


def test_actions_of_an_aborted_transaction_are_reported_as_failed(world: World, database: Database) -> None:
    """What was tried is reported once it is known to have failed; the changes did not happen."""
    tried = proven(1, 2)
    tried.entries.append(Note(3))
    left_by_a_dead_process(world, tried)
    database.fates[1] = Verdict.ABORTED
    stuck = world.road(down=True)
    second = world.delivery(stuck, resolver=database)
    second.start()
    wait_for(lambda: second.metrics()["waiting"] == 0 and stuck.lane.pending == 1)
    world.kill(second)  # the answer is in the journal: nobody asks a second time
    database.asked.clear()
    road = world.road()
    third = world.delivery(road, resolver=database)
    third.start()
    assert flush(third)
    (event,) = road.taken
    assert event.id == "3"
    assert event.attributes[semconv.ACTIVITY_OUTCOME] == "failure"
    assert event.attributes[semconv.ERROR_TYPE] == "rolled back"
    assert semconv.COMMIT not in event.attributes
    assert database.asked == []


def test_a_commit_that_broke_is_settled_while_the_process_lives(world: World, database: Database) -> None:
    """A connection lost during COMMIT: the answer is awaited, and nothing is reported before it is there."""
    road = world.road()
    delivery = world.delivery(road, resolver=database)
    broken, lost = proven(1), proven(2)
    for made in (broken, lost):
        delivery.prepare(made)
        made.error = "OperationalError"
        delivery.undecided(made, None)
    bracket(delivery, proven(3))
    wait_for(lambda: ids(road) == [3])
    database.fates = {1: Verdict.COMMITTED, 2: Verdict.ABORTED}
    assert flush(delivery)
    assert fates(road) == {3: ("reported", None), 1: ("proven", None)}
    delivery.close(time.monotonic() + 5)
    assert delivery.finish()
    assert list(world.home.iterdir()) == []


def test_an_open_question_outlives_its_process(world: World, database: Database) -> None:
    """At the end the next process inherits the question, ids and all."""
    delivery = world.delivery(world.road(), resolver=database)
    broken = proven(1)
    delivery.prepare(broken)
    delivery.undecided(broken, None)
    delivery.close(time.monotonic() + 0.1)
    assert not delivery.finish()
    database.fates[1] = Verdict.COMMITTED
    road = world.road()
    second = world.delivery(road, resolver=database)
    second.start()
    assert flush(second)
    assert fates(road) == {1: ("proven", None)}


def test_a_resolver_with_a_bug_decides_nothing(world: World, database: Database) -> None:
    """An exception of any kind leaves the question open."""
    database.fates = {1: Verdict.COMMITTED}
    original, broken = database.resolve, threading.Event()

    def resolve(proofs: Sequence[Proof]) -> list[Verdict]:
        if not broken.is_set():
            broken.set()
            raise KeyError("bug")
        return original(proofs)

    database.resolve = resolve  # type: ignore[method-assign]
    left_by_a_dead_process(world, proven(1))
    road = world.road()
    delivery = world.delivery(road, resolver=database)
    delivery.start()
    assert flush(delivery)
    assert fates(road) == {1: ("proven", None)}
