"""Units whose entries have several delivery classes: one stream, one fate, to each what it promises."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_activity import semconv
from otel_activity.delivery import (
    DurableDelivery,
    GapLog,
    Journaled,
    Memory,
    Overflow,
    Refusing,
    RoutedDelivery,
)
from otel_activity.errors import DeliveryRefused, OutboxError
from otel_activity.events import Commit, Outlet, Verdict
from tests.delivery.test_durable import LARGE, World, fates, flush, ids, world
from tests.delivery.test_queued import Note, Road, unit, wait_for
from tests.delivery.test_undecided import Changed, Database, database, proven

if TYPE_CHECKING:
    from otel_activity.events import Event, Unit

__all__ = ["database", "world"]

OUTLET = Outlet(None, "postgresql", "psycopg", None)


class Loose(Note):
    """An entry whose class is ``best_effort``."""

    delivery: str | None = "best_effort"
    encoded_in: set[str] = set()

    def to_event(self, unit: Unit, commit: Commit) -> Event:
        self.encoded_in.add(threading.current_thread().name)
        event = super().to_event(unit, commit)
        if unit.error is not None:
            event.attributes[semconv.ERROR_TYPE] = unit.error
        return event


class Broken(Loose):
    def to_event(self, unit: Unit, commit: Commit) -> Event:
        raise RuntimeError("cannot be encoded")


class Kept(Changed):
    delivery: str | None = "durable"


class Sure(Note):
    delivery: str | None = "strict"


class Way:
    """Remembers what it was told, and refuses if it is told to."""

    def __init__(self, name: str, told: list[tuple[str, str, list[int]]]) -> None:
        self.name = name
        self.told = told
        self.refuses: Exception | None = None
        self.outlets: list[Outlet | None] = []

    def _note(self, what: str, made: Unit) -> None:
        self.told.append((self.name, what, [entry.number for entry in made.entries]))  # type: ignore[attr-defined]

    def prepare(self, made: Unit) -> None:
        self._note("prepare", made)
        self.outlets.append(made.outlet)
        if self.refuses is not None:
            raise self.refuses

    def committed(self, made: Unit) -> None:
        assert made.commit is Commit.REPORTED
        self._note("committed", made)

    def aborted(self, made: Unit) -> None:
        self._note("aborted", made)

    def undecided(self, made: Unit, error: BaseException | None) -> None:
        assert made.error == "OperationalError"
        self._note("undecided", made)


class Routes:
    """A router in front of three ways that remember."""

    def __init__(self, default: str = "durable") -> None:
        self.told: list[tuple[str, str, list[int]]] = []
        self.ways = {name: Way(name, self.told) for name in ("best_effort", "durable", "strict")}
        self.router = RoutedDelivery(self.ways, default)


def mixed(*entries: Note) -> Unit:
    """A unit of such entries, in an open transaction."""
    made = unit(0)
    made.entries[:] = list(entries)
    made.outlet = OUTLET
    return made


def test_each_class_gets_its_part_and_all_have_one_fate() -> None:
    """Parts keep the order of their entries and the transaction's id; only strict may write into it."""
    routes = Routes()
    for fate in ("committed", "aborted", "undecided"):
        made = mixed(Sure(1), Loose(2), Plain(3), Kept(4), Sure(5))
        routes.router.prepare(made)
        if fate == "undecided":
            made.error = "OperationalError"
            routes.router.undecided(made, None)
        else:
            getattr(routes.router, fate)(made)
        parts = [("best_effort", [2]), ("strict", [1, 5]), ("durable", [3, 4])]
        expected = [(name, what, numbers) for what in ("prepare", fate) for name, numbers in parts]
        assert routes.told == expected
        routes.told.clear()
    assert routes.ways["strict"].outlets == [OUTLET] * 3
    assert routes.ways["durable"].outlets == routes.ways["best_effort"].outlets == [None] * 3


class Plain(Note):
    """An entry that says nothing about its class."""

    delivery: str | None = None


def test_a_refusal_takes_back_what_was_prepared() -> None:
    """A part that must not be committed stops the others; what was refused is told nothing more."""
    for name, before in (
        ("best_effort", []),
        ("strict", ["best_effort"]),
        ("durable", ["best_effort", "strict"]),
    ):
        routes = Routes()
        routes.ways[name].refuses = OutboxError("no")
        made = mixed(Loose(1), Sure(2), Kept(3))
        with pytest.raises(OutboxError):
            routes.router.prepare(made)
        assert [told for told, what, _ in routes.told if what == "aborted"] == before
        routes.told.clear()
        routes.router.aborted(made)  # as the bracket does after a refusal
        assert routes.told == []


def test_a_bug_in_one_way_does_not_stop_the_others() -> None:
    """An exception that is no refusal is logged; each part is released all the same."""
    routes = Routes()
    routes.ways["strict"].refuses = RuntimeError("a bug")
    made = mixed(Sure(1), Kept(2))
    routes.router.prepare(made)
    routes.router.committed(made)
    assert [told for told in routes.told if told[1] == "committed"] == [
        ("strict", "committed", [1]),
        ("durable", "committed", [2]),
    ]


def test_a_unit_that_was_prepared_before_anything_was_routed_ends_where_it_began() -> None:
    """Routing may begin while a COMMIT is on its way in another thread."""
    routes = Routes()
    made = mixed(Plain(1), Plain(2))
    made.prepared = object()
    routes.router.committed(made)
    late = mixed(Plain(3), Loose(4))
    routes.router.committed(late)  # never prepared at all
    assert routes.told == [
        ("durable", "committed", [1, 2]),
        ("best_effort", "committed", [4]),
        ("durable", "committed", [3]),
    ]


def test_without_a_journal_strict_refuses_transactions_only() -> None:
    """What belongs to no transaction goes through memory; a transaction is told why it is refused."""
    told: list[tuple[str, str, list[int]]] = []
    refusing = Refusing(Way("inner", told), "there is no journal")
    with pytest.raises(OutboxError, match="not committed, because there is no journal"):
        refusing.prepare(mixed(Sure(1)))
    alone = mixed(Sure(2))
    alone.outlet = None
    refusing.prepare(alone)
    refusing.committed(alone)
    assert told == [("inner", "committed", [2])]


# --- memory beside a journal ------------------------------------------------------------------------


class Shop:
    """Durable delivery with a router in front of it."""

    def __init__(self, world: World, *roads: Road, capacity: int = 1000, **options: Any) -> None:
        by_lane = {id(road.lane): road for road in roads}
        self.engine = DurableDelivery(
            [road.lane for road in roads],
            lambda lane, event, origin: by_lane[id(lane)].emit(event),
            capacity=capacity,
            home=world.home,
            max_bytes=LARGE,
            gaps=GapLog(),
            **options,
        )
        world.deliveries.append(self.engine)
        journaled = Journaled(self.engine)
        ways = {"best_effort": Memory(self.engine), "durable": journaled, "strict": journaled}
        self.router = RoutedDelivery(ways, "durable")

    def commit(self, *entries: Note) -> Unit:
        """One transaction that is committed."""
        made = mixed(*entries)
        self.router.prepare(made)
        self.router.committed(made)
        return made

    @property
    def journaled(self) -> int:
        """Units that were ever written to the journal."""
        return self.engine._sources[0].journal.begun


def gaps(road: Road) -> list[dict[str, Any]]:
    return [event.attributes for event in road.taken if event.name == semconv.GAP]


def test_memory_and_journal_share_one_stream(world: World) -> None:
    """Everything arrives once, in order and without holes; memory leaves no trace in the journal."""
    road = world.road()
    shop = Shop(world, road)
    Loose.encoded_in.clear()
    for number in range(0, 300, 3):
        shop.commit(Loose(number), Kept(number + 1), Loose(number + 2))
    assert flush(shop.engine)
    assert sorted(ids(road)) == list(range(300))
    assert [event.attributes[semconv.SEQUENCE] for event in road.taken] == list(range(1, 301))
    assert ids(road)[:6] == [0, 2, 1, 3, 5, 4]  # class by class, transaction by transaction
    assert shop.journaled == 100
    assert Loose.encoded_in == {"otel-activity-feeder"}
    assert shop.engine.metrics()["journal"]["unjournaled"] == 0
    shop.engine.close(time.monotonic() + 5)
    assert shop.engine.finish()
    assert list(world.home.iterdir()) == []


def test_a_rollback_takes_both_away(world: World) -> None:
    """Nothing of an aborted transaction arrives, from memory or from the journal."""
    road = world.road()
    shop = Shop(world, road)
    made = mixed(Loose(1), Kept(2))
    shop.router.prepare(made)
    shop.router.aborted(made)
    shop.commit(Loose(3), Kept(4))
    assert flush(shop.engine)
    assert ids(road) == [3, 4]


def test_a_stuck_exporter_loses_memory_only_and_costs_the_other_nothing(world: World) -> None:
    """The good one has everything; the bad one gets every durable event later, and gaps name the rest."""
    good, bad = world.road("good"), world.road("bad", capacity=10, down=True)
    shop = Shop(world, good, bad, capacity=100)
    for number in range(0, 180, 2):
        shop.commit(Loose(number), Kept(number + 1))
        if number % 50 == 0:
            wait_for(lambda most=number + 2: len(good.taken) >= most)  # type: ignore[misc]
    wait_for(lambda: len(good.taken) == 180)
    wait_for(lambda: shop.engine._loose_in - shop.engine._loose_out == 50)
    lost = shop.engine.metrics()["exporters"]["bad"]["dropped"]
    assert 30 <= lost <= 40
    bad.down = False
    wait_for(lambda: sum(each[semconv.GAP_COUNT] for each in gaps(bad)) == lost)
    assert not flush(shop.engine, 20)
    events = [event for event in bad.taken if event.name != semconv.GAP]
    assert {int(event.id) for event in events} >= set(range(1, 180, 2))
    assert len(events) == 180 - lost
    places = {event.attributes[semconv.SEQUENCE] for event in bad.taken}
    named = {
        place
        for each in gaps(bad)
        for first, last in each[semconv.GAP_SEQUENCES]
        for place in range(first, last + 1)
    }
    assert not places & named
    assert places | named == set(range(1, max(places) + 1))


def test_an_exporter_that_stops_working_gives_memory_back(world: World) -> None:
    """What waited for a slow one is lost on it beyond its share, newest first, when it is down."""
    road = world.road(capacity=2)
    shop = Shop(world, road, capacity=100)
    gate = threading.Event()
    take, road._take = road._take, lambda event: (gate.wait(30), take(event))[1]  # type: ignore[method-assign]
    for number in range(90):
        shop.commit(Loose(number))
    wait_for(lambda: shop.engine._roads[0].loose >= 87)
    road.down = True
    gate.set()
    wait_for(lambda: shop.engine._roads[0].loose == 50)
    road.down = False
    wait_for(lambda: len(ids_of_entries(road)) == 52)
    assert ids_of_entries(road) == list(range(52))
    wait_for(lambda: sum(each[semconv.GAP_COUNT] for each in gaps(road)) == 38)
    assert gaps(road)[0][semconv.GAP_SEQUENCES] == [[53, 90]]


def test_memory_is_bounded(world: World) -> None:
    """While nothing is taken, no more than the capacity waits; what is beyond it is counted."""
    road = world.road(down=True)
    shop = Shop(world, road, capacity=10)
    with shop.engine._pumping:  # the feeder has no turn
        for number in range(30):
            shop.commit(Loose(number))
        assert shop.engine._loose_in == 10
        assert shop.engine.dropped == 20
        shop.commit(Kept(30))
    road.down = False
    wait_for(lambda: [each[semconv.GAP_COUNT] for each in gaps(road)] == [20])
    assert ids_of_entries(road) == [*range(10), 30]


def ids_of_entries(road: Road) -> list[int]:
    return [int(event.id) for event in road.taken if event.name != semconv.GAP]


def test_a_full_memory_refuses_or_waits_if_that_was_chosen(world: World) -> None:
    """`fail` raises before anything of the unit is prepared; `block` waits for room."""
    road = world.road(down=True, capacity=2)
    shop = Shop(world, road, capacity=4, overflow=Overflow("fail"))
    shop.commit(Loose(1), Loose(2))
    wait_for(lambda: road.lane.pending == 2 and road.lane.trouble is not None)
    shop.commit(Loose(3), Loose(4))
    wait_for(lambda: shop.engine._roads[0].loose == 2)
    with pytest.raises(DeliveryRefused, match="2 best-effort events wait for road"):
        shop.router.prepare(mixed(Loose(7), Kept(8)))
    assert shop.journaled == 0
    shop.commit(Kept(5))  # the journal has room
    shop.engine.overflow = Overflow("block", 30)
    opener = threading.Timer(0.05, lambda: setattr(road, "down", False))
    opener.start()
    shop.commit(Loose(6))
    assert flush(shop.engine)
    assert ids(road) == [1, 2, 3, 4, 5, 6]


def test_the_database_decides_about_memory_too(world: World, database: Database) -> None:
    """A COMMIT whose end nobody saw: both parts get the same answer."""
    road = world.road()
    shop = Shop(world, road, resolver=database)
    for number, verdict in ((1, Verdict.COMMITTED), (11, Verdict.ABORTED), (21, Verdict.UNKNOWN)):
        database.fates[number] = verdict
        made = proven(number)
        made.entries[:] = [Lost(number), Kept(number + 1), Loose(number + 2)]
        shop.router.prepare(made)
        made.commit, made.error = Commit.UNKNOWN, "OperationalError"
        shop.router.undecided(made, None)
        assert flush(shop.engine)
    (failed,) = [event for event in road.taken if event.id == "13"]
    assert failed.attributes[semconv.ACTIVITY_OUTCOME] == "failure"
    assert failed.attributes[semconv.ERROR_TYPE] == semconv.ROLLED_BACK
    road.taken.remove(failed)
    assert fates(road) == {
        **dict.fromkeys((1, 2, 3), ("proven", None)),
        **dict.fromkeys((21, 22, 23), ("unknown", "OperationalError")),
    }


def test_undecided_units_in_memory_are_bounded(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """While nobody can be asked half of the capacity waits; the rest is counted, said once, and a gap."""
    database.down = True
    road = world.road()
    shop = Shop(world, road, capacity=20, resolver=database)
    for number in range(30):
        database.fates[number] = Verdict.COMMITTED if number % 2 else Verdict.ABORTED
        undecided(shop, Lost(number), number)
    assert shop.engine.metrics()["journal"]["asked"] == 10
    assert shop.engine.metrics()["deliveries"]["best_effort"]["dropped"] == 20
    assert shop.engine.dropped == 20
    assert caplog.text.count("events dropped so far (10 wait until the database says what became of") == 1
    shop.commit(Loose(50), Kept(51))  # the others have room
    wait_for(lambda: [each[semconv.GAP_COUNT] for each in gaps(road)] == [20])
    undecided(shop, Kept(60), 60)
    assert shop.engine.metrics()["journal"]["asked"] == 11  # a journaled one takes no memory
    database.down = False
    database.fates[60] = Verdict.COMMITTED
    assert not flush(shop.engine)
    assert sorted(ids_of_entries(road)) == [1, 3, 5, 7, 9, 50, 51, 60]
    database.fates[70] = Verdict.COMMITTED
    undecided(shop, Lost(70), 70)  # there is room again
    assert flush(shop.engine)
    assert 70 in ids_of_entries(road)
    assert shop.engine._loose_asked == 0


def test_questions_that_nobody_answers_refuse_what_would_be_lost(world: World, database: Database) -> None:
    """With `fail` a transaction whose best-effort events may have no room is not committed."""
    database.down = True
    road = world.road()
    shop = Shop(world, road, capacity=4, resolver=database, overflow=Overflow("fail"))
    for number in (1, 2):
        undecided(shop, Lost(number), number)
    with pytest.raises(DeliveryRefused, match="2 best-effort events wait until the database says"):
        shop.router.prepare(mixed(Loose(3)))
    shop.commit(Kept(4))


def undecided(shop: Shop, entry: Note, number: int) -> None:
    """A transaction whose COMMIT nobody saw the end of."""
    made = proven(number)
    made.entries[:] = [entry]
    shop.router.prepare(made)
    made.commit, made.error = Commit.UNKNOWN, "OperationalError"
    shop.router.undecided(made, None)


class Lost(Changed):
    """A change whose class is ``best_effort``."""

    delivery: str | None = "best_effort"


def test_an_entry_that_cannot_be_encoded_costs_itself(world: World) -> None:
    """Its neighbours arrive, the sequence has no hole, and the loss is counted."""
    road = world.road()
    shop = Shop(world, road)
    shop.commit(Loose(1), Broken(2), Loose(3))
    shop.commit(Broken(4))
    shop.commit(Loose(5))
    wait_for(lambda: ids_of_entries(road) == [1, 3, 5])
    assert shop.engine.dropped == 2
    wait_for(lambda: sum(each[semconv.GAP_COUNT] for each in gaps(road)) == 2)
    assert [event.attributes[semconv.SEQUENCE] for event in road.taken][:3] == [1, 2, 3]
    assert shop.engine._loose_in == shop.engine._loose_out


def test_what_ends_with_the_process_is_told_by_the_next_one(world: World) -> None:
    """The journal takes along what it holds, and how much it did not hold."""
    shop = Shop(world, world.road(down=True))
    shop.commit(Loose(1), Loose(2), Kept(3))
    wait_for(lambda: shop.engine._fed == 3)
    shop.engine.close(time.monotonic() + 0.1)
    assert not shop.engine.finish()
    road = world.road()
    following = Shop(world, road)
    following.engine.start()
    assert flush(following.engine)
    assert ids_of_entries(road) == [3]
    (gap,) = gaps(road)
    assert (gap[semconv.GAP_COUNT], gap[semconv.GAP_REASON]) == (2, "process ended")
    assert following.engine.dropped == 0


def test_a_process_that_is_terminated_writes_down_what_it_takes_along(world: World) -> None:
    """SIGTERM leaves no time for the exporters; the journal still learns what was in memory alone."""
    road = world.road(down=True)
    shop = Shop(world, road)
    shop.commit(Loose(1), Kept(2))
    shop.commit(Loose(3))
    assert not flush(shop.engine, 0.1)
    shop.engine.abandon()
    road.lane.abandon()
    shop.engine.last_words()
    world.kill(shop.engine)
    good = world.road()
    following = Shop(world, good)
    following.engine.start()
    assert flush(following.engine)
    assert ids_of_entries(good) == [2]
    assert [gap[semconv.GAP_COUNT] for gap in gaps(good)] == [2]


def test_a_child_of_a_fork_has_nothing_in_memory(world: World) -> None:
    """What waits in the parent is the parent's to deliver."""
    shop = Shop(world, world.road(down=True))
    shop.commit(Loose(1))
    shop.engine.after_fork()
    assert (shop.engine._loose_in, shop.engine._loose_out) == (0, 0)
    assert shop.engine.metrics()["released"] == 0
