"""Delivery through a journal: what outlives a process, what is read back, what is bounded, what is lost."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
import zlib
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_activity import semconv
from otel_activity.delivery import (
    Backoff,
    Breaker,
    DurableDelivery,
    Leftovers,
    Overflow,
    find_leftovers,
    journal,
)
from otel_activity.delivery.records import HEADER_SIZE, Damage, Record, scan
from otel_activity.errors import ConfigurationError
from tests.delivery.test_queued import MOST_FED, Broken, Note, Road, unit, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from otel_activity.delivery import Lane
    from otel_activity.events import Commit, Event, Unit
    from otel_activity.ports import Resolver

LARGE = 1 << 20


class Traced(Note):
    """An entry with a trace id of 128 bits and a value that is not ASCII."""

    def to_event(self, unit: Unit, commit: Commit) -> Event:
        event = super().to_event(unit, commit)
        event.trace_id = (1 << 127) + self.number
        event.span_id = (1 << 64) - 1
        event.attributes["value"] = "größer \U0001f600"
        return event


class World:
    """Deliveries that share a directory of journals, and the roads that they feed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.roads: list[Road] = []
        self.deliveries: list[DurableDelivery] = []

    def road(self, name: str = "road", capacity: int = 1000, *, down: bool = False) -> Road:
        made = Road(capacity)
        made.lane.name = name
        made.lane.breaker = Breaker(Backoff(first=0.001, most=0.002))
        made.down = down
        self.roads.append(made)
        return made

    def delivery(
        self,
        *roads: Road,
        capacity: int = 1000,
        max_bytes: int = LARGE,
        fsync: str = "interval",
        resolver: Resolver | None = None,
        overflow: Overflow | None = None,
    ) -> DurableDelivery:
        by_lane = {id(road.lane): road for road in roads}
        made = DurableDelivery(
            [road.lane for road in roads],
            lambda lane, event, origin: by_lane[id(lane)].emit(event),
            capacity=capacity,
            home=self.home,
            fsync=fsync,
            max_bytes=max_bytes,
            resolver=resolver,
            overflow=overflow,
        )
        self.deliveries.append(made)
        return made

    def kill(self, delivery: DurableDelivery) -> None:
        """What SIGKILL leaves: descriptors closed, files as they are, nobody who runs."""
        delivery._closed = True
        if delivery._thread is not None:
            delivery._thread.join(5)
        if delivery._docket is not None:
            delivery._docket.close(time.monotonic() + 5)
        for source in delivery._sources:
            source.journal.abandon()

    def segments(self) -> list[Path]:
        return sorted(self.home.glob("*/*.seg"))

    def close(self) -> None:
        for road in self.roads:
            road.close()
        for delivery in self.deliveries:
            self.kill(delivery)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty directory of journals."""
    made = World(tmp_path / "journal" / "service")
    yield made
    made.close()


def bracket(delivery: DurableDelivery, made: Unit) -> Unit:
    """One transaction that is committed."""
    delivery.prepare(made)
    delivery.committed(made)
    return made


def flush(delivery: DurableDelivery, timeout: float = 60.0) -> bool:
    return delivery.flush(timeout, poke=lambda: None)


def ids(road: Road) -> list[int]:
    return [int(event.id) for event in road.taken]


def fates(road: Road) -> dict[int, tuple[str, str | None]]:
    return {
        int(event.id): (event.attributes[semconv.COMMIT], event.attributes.get(semconv.ERROR_TYPE))
        for event in road.taken
    }


def test_events_arrive_in_order_and_the_journal_empties(world: World) -> None:
    """A process whose exporter works delivers in order of release and leaves no file behind."""
    road = world.road()
    delivery = world.delivery(road)
    for start in range(0, 100, 5):
        bracket(delivery, unit(*range(start, start + 5)))
    assert flush(delivery)
    assert ids(road) == list(range(100))
    assert [event.attributes[semconv.SEQUENCE] for event in road.taken] == list(range(1, 101))
    assert {event.attributes[semconv.COMMIT] for event in road.taken} == {"reported"}
    delivery.close(time.monotonic() + 5)
    assert delivery.finish()
    assert list(world.home.iterdir()) == []


def test_a_dead_process_is_adopted(world: World) -> None:
    """Committed is delivered with its ids, aborted is not, and what has no mark is unknown."""
    stuck = world.road(down=True)
    first = world.delivery(stuck)
    for number in range(5):
        bracket(first, unit(number))
    aborted, riddle, cut = unit(50), unit(60, 61), unit(70)
    for made in (aborted, riddle, cut):
        first.prepare(made)
    first.aborted(aborted)
    cut.error = "OperationalError"
    first.undecided(cut, None)
    world.kill(first)
    road = world.road()
    second = world.delivery(road)
    second.start()
    assert flush(second)
    assert fates(road) == {
        **dict.fromkeys(range(5), ("reported", None)),
        60: ("unknown", "process ended during commit"),
        61: ("unknown", "process ended during commit"),
        70: ("unknown", "OperationalError"),
    }
    assert sorted(event.attributes[semconv.SEQUENCE] for event in road.taken) == list(range(1, 9))
    assert len({event.attributes[semconv.STREAM_ID] for event in road.taken}) == 1
    assert second.metrics()["undecided"] == 2
    wait_for(lambda: len(list(world.home.iterdir())) == 1)  # what is left is its own


def test_what_was_confirmed_is_not_sent_again(world: World) -> None:
    """The cursors of a dead process say what its exporters had; each gets only what it had not."""
    good, bad = world.road("good"), world.road("bad", down=True)
    first = world.delivery(good, bad)
    for number in range(10):
        bracket(first, unit(number))
    wait_for(lambda: len(good.taken) == 10)
    wait_for(lambda: first._sources[0]._cursors.get("good") is not None and not first._sources[0]._changed)
    time.sleep(0.25)
    world.kill(first)
    good_again, bad_again = world.road("good"), world.road("bad")
    second = world.delivery(good_again, bad_again)
    second.start()
    assert flush(second)
    assert ids(good_again) == []
    assert ids(bad_again) == list(range(10))


def test_who_has_fewer_exporters_keeps_the_journal(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What an exporter needs that is not there stays until one has it; the others get nothing twice."""
    both = world.delivery(world.road("here", down=True), world.road("gone", down=True))
    bracket(both, unit(1, 2))
    bracket(both, unit(3))
    both.prepare(unit(4))
    world.kill(both)
    here = world.road("here")
    fewer = world.delivery(here)
    fewer.start()
    assert flush(fewer)
    assert ids(here) == [1, 2, 3, 4]
    wait_for(lambda: fewer.metrics()["journal"]["kept"] == 3)
    assert "gone, which this process does not have" in caplog.text
    assert "--without gone" in caplog.text
    fewer.close(time.monotonic() + 5)
    assert fewer.finish()  # its own exporters have everything
    again, late = world.road("here"), world.road("gone")
    all_there = world.delivery(again, late)
    all_there.start()
    assert flush(all_there)
    assert (ids(again), ids(late)) == ([], [1, 2, 3, 4])
    wait_for(lambda: len(list(world.home.iterdir())) == 1)  # what is left is its own


def test_an_exporter_that_had_everything_keeps_no_journal(world: World) -> None:
    """A journal in which nothing is left for the missing exporter is removed, without a word."""
    gone = world.road("gone")
    both = world.delivery(world.road("here", down=True), gone)
    bracket(both, unit(1))
    wait_for(lambda: not both._sources[0]._changed and "gone" in both._sources[0]._cursors)
    time.sleep(0.25)
    world.kill(both)
    here = world.road("here")
    fewer = world.delivery(here)
    fewer.start()
    assert flush(fewer)
    assert ids(here) == [1]
    wait_for(lambda: len(list(world.home.iterdir())) == 1)


def test_a_new_exporter_does_not_get_what_was_done_with(world: World) -> None:
    """What all exporters of a dead process had confirmed is over; the rest goes to whoever is there."""
    old = world.road("old")
    first = world.delivery(old)
    bracket(first, unit(1, 2))
    wait_for(lambda: not first._sources[0]._changed and "old" in first._sources[0]._cursors)
    time.sleep(0.25)
    old.down = True
    bracket(first, unit(3))
    world.kill(first)
    road, again = world.road("new"), world.road("old")
    second = world.delivery(road, again)
    second.start()
    assert flush(second)
    assert (ids(road), ids(again)) == ([3], [3])


def test_what_dead_processes_left_can_be_seen(world: World) -> None:
    """What waits is counted without being taken over; what is confirmed, or a living process's, is not."""
    here = world.home / "shop"
    with closing(World(here)) as shop:
        dead = shop.delivery(shop.road("store", down=True))
        bracket(dead, unit(1, 2))
        dead.prepare(unit(3))
        assert find_leftovers(world.home, ["store"]) == Leftovers()
        shop.kill(dead)
        for _ in range(2):
            assert find_leftovers(world.home, ["store"]) == Leftovers(3, (here,))
        road = shop.road("store")
        heir = shop.delivery(road)
        heir.start()
        assert flush(heir)
        assert ids(road) == [1, 2, 3]
        wait_for(lambda: not heir._sources[0]._changed and len(list(here.iterdir())) == 1)
        time.sleep(0.25)
        shop.kill(heir)
        assert find_leftovers(world.home, ["store"]) == Leftovers()
    assert find_leftovers(world.home / "nowhere", ["store"]) == Leftovers()


def test_an_adopter_that_dies_is_adopted(world: World) -> None:
    """A second death loses nothing and changes no fate."""
    first = world.delivery(world.road(down=True))
    bracket(first, unit(1, 2))
    first.prepare(unit(3))
    world.kill(first)
    second = world.delivery(world.road(down=True))
    second.start()
    assert not flush(second, 0.3)
    world.kill(second)
    road = world.road()
    third = world.delivery(road)
    third.start()
    assert flush(third)
    assert fates(road) == {
        1: ("reported", None),
        2: ("reported", None),
        3: ("unknown", "process ended during commit"),
    }


def test_the_living_are_not_adopted(world: World) -> None:
    """A journal whose owner holds the lock is its own, also for another delivery of the same process."""
    stuck, road = world.road(down=True), world.road()
    first = world.delivery(stuck)
    bracket(first, unit(1))
    second = world.delivery(road)
    second.start()
    assert flush(second)
    assert ids(road) == []
    stuck.down = False
    assert flush(first)
    assert ids(stuck) == [1]


def test_an_outage_longer_than_the_queue_loses_nothing(world: World) -> None:
    """What the lane and the memory have no room for is read back from the journal, in order."""
    road = world.road(capacity=5, down=True)
    delivery = world.delivery(road, capacity=10)
    for number in range(0, 600, 3):
        bracket(delivery, unit(number, number + 1, number + 2, kind=Traced))
    assert not flush(delivery, 0.2)
    assert delivery.metrics()["waiting"] == 600 - 5 + 5 % 3  # a unit that is half in the lane still waits
    assert delivery._kept - delivery._let_go <= 10
    road.down = False
    assert flush(delivery, 20)
    assert ids(road) == list(range(600))
    assert [event.attributes[semconv.SEQUENCE] for event in road.taken] == list(range(1, 601))
    assert {event.attributes[semconv.COMMIT] for event in road.taken} == {"reported"}
    assert [event.trace_id for event in road.taken] == [(1 << 127) + number for number in range(600)]
    assert {(event.span_id, event.attributes["value"]) for event in road.taken} == {
        ((1 << 64) - 1, "größer \U0001f600")
    }
    assert delivery.metrics()["dropped"] == 0


def test_a_dead_exporter_does_not_hold_up_the_other(world: World) -> None:
    """One store is down for long: the other gets everything at once, the first everything later."""
    good, bad = world.road("good"), world.road("bad", capacity=3, down=True)
    delivery = world.delivery(good, bad, capacity=5)
    for number in range(200):
        bracket(delivery, unit(number))
    wait_for(lambda: len(good.taken) == 200)
    assert bad.taken == []
    bad.down = False
    assert flush(delivery, 20)
    assert ids(good) == ids(bad) == list(range(200))
    assert {event.attributes[semconv.SEQUENCE] for event in bad.taken} == set(range(1, 201))


def test_segments_are_deleted_once_every_exporter_has_confirmed(world: World) -> None:
    """The journal holds no more than what somebody still needs, and the file that is written to."""
    good, bad = world.road("good"), world.road("bad", down=True)
    delivery = world.delivery(good, bad, max_bytes=100_000)
    for number in range(300):
        bracket(delivery, unit(number))
    wait_for(lambda: len(good.taken) == 300)
    assert len(world.segments()) > 3
    assert delivery.metrics()["journal"]["units"] == 300
    bad.down = False
    assert flush(delivery)
    wait_for(lambda: len(world.segments()) == 1)
    found = delivery.metrics()["journal"]
    assert (found["units"], found["segments"]) == (0, 1)
    assert found["bytes"] == sum(path.stat().st_size for path in world.segments())


def test_a_flush_that_had_no_time_to_look_for_dead_processes_says_so(world: World) -> None:
    """Nobody is told that everything was delivered before anybody knew what there is."""
    first = world.delivery(world.road(down=True))
    bracket(first, unit(1))
    world.kill(first)
    road = world.road()
    second = world.delivery(road)
    assert not flush(second, 0.0)
    assert flush(second)
    assert ids(road) == [1]


def test_threads_that_never_stop_committing_do_not_put_off_the_sync(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much there is to feed, the journal is synced when that is due."""
    road = world.road(capacity=100_000)
    delivery = world.delivery(road, capacity=100_000, max_bytes=64 * LARGE)
    synced: list[int] = []
    monkeypatch.setattr(delivery, "_sync_if_due", lambda: synced.append(len(road.taken)))
    emit = road.emit

    def emit_and_commit(event: Event) -> None:
        emit(event)
        if not synced and int(event.id) < MOST_FED:
            bracket(delivery, unit(int(event.id) + 1))

    monkeypatch.setattr(road, "emit", emit_and_commit)
    bracket(delivery, unit(0))
    wait_for(lambda: synced)
    assert flush(delivery)
    assert len(road.taken) < MOST_FED


def test_a_full_journal_goes_on_through_memory(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the bound units wait in memory, then they are dropped and counted; nothing is raised."""
    road = world.road(capacity=2, down=True)
    delivery = world.delivery(road, capacity=50, max_bytes=4096)
    for number in range(300):
        bracket(delivery, unit(number))
    metrics = delivery.metrics()
    assert metrics["journal"]["bytes"] < 4096 + 300 * 100  # marks may exceed the bound, units may not
    assert metrics["journal"]["unjournaled"] > 0
    assert metrics["dropped"] > 0
    assert metrics["released"] + metrics["dropped"] == 300
    assert "OTEL_ACTIVITY_JOURNAL_MAX_BYTES=4096" in caplog.text
    road.down = False
    assert not flush(delivery, 20)
    assert len(road.taken) == metrics["released"]
    assert ids(road) == sorted(ids(road))
    bracket(delivery, unit(1000))
    assert flush(delivery)
    assert ids(road)[-1] == 1000


def test_a_disk_that_refuses_costs_durability_not_the_event(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A write that fails is said; the unit goes through memory; later units are journaled again."""
    road = world.road()
    delivery = world.delivery(road)
    bracket(delivery, unit(1))
    assert delivery._own is not None
    own = delivery._own.journal
    descriptor, own._descriptor = own._descriptor, os.open("/dev/full", os.O_WRONLY)
    bracket(delivery, unit(2))
    if own._descriptor is not None:
        os.close(own._descriptor)
    own._descriptor = descriptor
    bracket(delivery, unit(3))
    assert flush(delivery)
    assert ids(road) == [1, 2, 3]
    assert "could not be journaled (OSError: No space left on device)" in caplog.text
    assert delivery.metrics()["journal"]["unjournaled"] == 1


class Disk:
    """Stands for `fdatasync`: how far each segment was on disk when a sync that had begun before was done."""

    def __init__(self) -> None:
        self.covered: dict[int, int] = {}
        self.syncs = 0
        self.refuses = False

    def sync(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        time.sleep(0.002)  # others come meanwhile
        self.syncs += 1
        if self.refuses:
            raise OSError(errno.EIO, "input/output error")
        self.covered[found.st_ino] = max(found.st_size, self.covered.get(found.st_ino, 0))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """What the journal syncs to."""
    made = Disk()
    monkeypatch.setattr(journal, "_datasync", made.sync)
    return made


def test_who_commits_at_once_shares_a_sync_that_covers_all(world: World, disk: Disk) -> None:
    """With `always` no record counts before the end of a sync that began after it; many share one."""
    delivery = world.delivery(world.road(), fsync="always", max_bytes=65_536)
    uncovered: list[int] = []

    def on_disk(held: Any) -> bool:
        segment = held.source.journal._file(held.place.segment)
        if not segment.exists():  # delivered, and deleted
            return True
        return disk.covered.get(segment.stat().st_ino, 0) >= held.place.offset + held.place.length

    def commit(first: int) -> None:
        for number in range(first, first + 40):
            made = unit(number)
            delivery.prepare(made)
            held = made.prepared
            if not on_disk(held):
                uncovered.append(number)
            delivery.committed(made)
            if held.source.journal._synced < held.mark:
                uncovered.append(number)

    threads = [threading.Thread(target=commit, args=(1000 * worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert uncovered == []
    assert disk.syncs < 8 * 40  # of 640 records
    assert flush(delivery)


def test_a_sync_that_fails_vouches_for_nothing(world: World, disk: Disk) -> None:
    """Its unit goes through memory, whatever a later sync says, and nobody delivers its record."""
    stuck = world.road(down=True)
    delivery = world.delivery(stuck, fsync="always")
    bracket(delivery, unit(1))
    disk.refuses = True
    made = unit(2)
    delivery.prepare(made)
    assert made.prepared.source is None
    disk.refuses = False
    bracket(delivery, unit(3))
    delivery.committed(made)
    assert delivery.metrics()["journal"]["unjournaled"] == 1
    world.kill(delivery)
    road = world.road()
    other = world.delivery(road)
    other.start()
    assert flush(other)
    assert ids(road) == [1, 3]


def test_who_waits_for_a_sync_that_fails_hears_of_it(world: World, disk: Disk) -> None:
    """Each of the records that it was to cover is refused, whoever ran it."""
    made = journal.Journal.create(world.home, fsync="always", max_bytes=LARGE)
    disk.refuses = True
    heard: list[bool] = []

    def append() -> None:
        place = made.append(9, b"record")
        try:
            made.secure(place.number)
        except OSError:
            heard.append(True)

    threads = [threading.Thread(target=append) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard == [True] * 8
    disk.refuses = False
    made.secure(made.append(9, b"record").number)
    made.close(remove=True)


@pytest.mark.parametrize(("fsync", "before_commit"), [("always", 1), ("interval", 0), ("never", 0)])
def test_the_disk_is_waited_for_as_the_policy_says(
    world: World, monkeypatch: pytest.MonkeyPatch, fsync: str, before_commit: int
) -> None:
    """`always` syncs before `prepare` returns, `interval` in the background only, `never` not at all."""
    synced: list[str] = []
    datasync = journal._datasync

    def spy(descriptor: int) -> None:
        synced.append(threading.current_thread().name)
        datasync(descriptor)

    monkeypatch.setattr(journal, "_datasync", spy)
    road = world.road()
    delivery = world.delivery(road, fsync=fsync, max_bytes=65_536)
    at_start = len(synced)
    made = unit(0)
    delivery.prepare(made)
    assert synced[at_start:].count(threading.current_thread().name) == before_commit
    delivery.committed(made)
    for number in range(1, 100):
        bracket(delivery, unit(number))
    assert flush(delivery)
    assert ids(road) == list(range(100))
    if fsync == "interval":
        wait_for(lambda: "otel-activity-feeder" in synced)
        assert threading.current_thread().name not in synced
    elif fsync == "never":
        assert synced == []


def test_one_odd_entry_costs_only_itself(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An entry that cannot be encoded is logged; its neighbours are journaled and arrive."""
    road = world.road()
    delivery = world.delivery(road)
    odd = unit(1, 2)
    odd.entries.insert(1, Broken(9))
    bracket(delivery, odd)
    assert not flush(delivery)
    assert ids(road) == [1, 2]
    assert "internal error while encoding" in caplog.text


def test_odd_entries_are_counted_each_and_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A bug that hits every transaction costs a counter each, and not a traceback each in the log."""
    delivery = world.delivery(world.road())
    for number in range(200):
        bracket(delivery, unit(number, kind=Broken))
    assert not flush(delivery)
    assert delivery.metrics()["dropped"] == 200
    assert caplog.text.count("internal error while encoding") == 1


def test_a_directory_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    """The error names variable, value and fix."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="OTEL_ACTIVITY_DELIVERY=best_effort") as caught:
        World(tmp_path / "file" / "journal").delivery()
    assert caught.value.variable == "OTEL_ACTIVITY_JOURNAL_DIR"
    assert caught.value.value == str(tmp_path / "file" / "journal")


def test_only_the_user_can_read_the_journal(world: World) -> None:
    """Directories are made 0700, files 0600: they hold what people wrote."""
    bracket(world.delivery(world.road(down=True)), unit(1))
    made = [world.home.parent, world.home, *world.home.iterdir()]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in world.home.glob("*/*")} == {0o600}


def test_a_newer_format_is_left_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """After a rollback of the software, what a newer version wrote waits for it, untouched."""
    first = world.delivery(world.road(down=True))
    bracket(first, unit(1))
    world.kill(first)
    (path,) = world.segments()
    data = bytearray(path.read_bytes())
    data[8] = 2  # the version; its checksum follows
    data[HEADER_SIZE - 4 : HEADER_SIZE] = zlib.crc32(data[: HEADER_SIZE - 4]).to_bytes(4, "little")
    path.write_bytes(data)
    road = world.road()
    second = world.delivery(road)
    second.start()
    assert flush(second)
    assert ids(road) == []
    assert path.read_bytes() == bytes(data)
    assert "journal format 2" in caplog.text


@pytest.fixture(scope="module")
def dead_journal(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """The one segment of a process that died with twelve committed units, and where each record begins."""
    world = World(tmp_path_factory.mktemp("dead"))
    delivery = world.delivery(world.road(down=True))
    for number in range(12):
        bracket(delivery, unit(number))
    world.close()
    (path,) = world.segments()
    data = path.read_bytes()
    return data, [found.start for found in scan(data) if isinstance(found, Record)]


def adopt(home: Path, data: bytes) -> tuple[Road, dict[str, Any]]:
    """What a process delivers that finds a journal with these bytes."""
    world = World(home)
    (home / "dead").mkdir(parents=True)
    (home / "dead" / "00000001.seg").write_bytes(data)
    road = world.road()
    delivery = world.delivery(road)
    delivery.start()
    assert flush(delivery)
    metrics = delivery.metrics()
    world.close()
    return road, metrics


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), seed=st.integers(0, 1 << 30))
def test_a_torn_journal_gives_what_was_finished(
    dead_journal: tuple[bytes, list[int]], tmp_path: Path, cut: float, seed: int
) -> None:
    """Every unit whose record was written is delivered: as reported when its mark was, else as unknown."""
    data, starts = dead_journal
    size = int(cut * len(data))
    ends = [*starts[1:], len(data)]
    whole = sum(end <= size for end in ends)
    road, metrics = adopt(tmp_path / f"{seed}-{random.random()}", data[:size])
    expected: dict[int, tuple[str, str | None]] = {
        number: ("reported", None) if 2 * number + 1 < whole else ("unknown", "process ended during commit")
        for number in range(12)
        if 2 * number < whole
    }
    assert fates(road) == expected
    assert metrics["journal"]["lost_bytes"] == metrics["journal"]["lost_records"] == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30))
def test_a_damaged_journal_gives_everything_else(
    dead_journal: tuple[bytes, list[int]], tmp_path: Path, seed: int
) -> None:
    """Random damage costs the records it hit, each counted; all others keep their content and fate."""
    data, starts = dead_journal
    rng = random.Random(seed)
    at = rng.randrange(HEADER_SIZE, len(data))
    length = rng.randrange(1, 120)
    broken = bytearray(data)
    broken[at : at + length] = bytes(byte ^ 0xA5 for byte in data[at : at + length])
    ends = [*starts[1:], len(data)]
    hit = {index for index, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < at + length and at < b}
    road, metrics = adopt(tmp_path / f"{seed}-{random.random()}", bytes(broken))
    damages = [found for found in scan(bytes(broken)) if isinstance(found, Damage)]
    expected: dict[int, tuple[str, str | None]] = {}
    torn = all(damage.torn for damage in damages)
    for number in range(12):
        if 2 * number not in hit:
            unknown = ("unknown", "process ended during commit" if torn else "journal damaged")
            expected[number] = unknown if 2 * number + 1 in hit else ("reported", None)
    assert fates(road) == expected
    counted = metrics["journal"]
    if not torn:
        assert counted["lost_bytes"] == sum(ends[index] - starts[index] for index in hit)
    if max(hit) < len(starts) - 1:  # no number tells what is missing at the very end
        assert counted["lost_records"] == len(hit)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_writes_a_journal_of_its_own(world: World) -> None:
    """The child leaves the parent's files alone; its death frees its own journal, not the parent's."""
    stuck = world.road(down=True)
    delivery = world.delivery(stuck)
    bracket(delivery, unit(1))
    wait_for(delivery._adopted.is_set)  # else the parent may be the one that takes the child's journal over
    (path,) = world.segments()
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        delivery.after_fork()
        delivery._adopt_at = time.monotonic() + 100
        bracket(delivery, unit(2))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_bytes() == before
    assert len(world.segments()) == 2
    road = world.road()
    second = world.delivery(road)
    second.start()
    assert flush(second)
    assert ids(road) == [2]
    stuck.down = False
    assert flush(delivery)
    assert ids(stuck) == [1]


def test_the_end_keeps_what_was_not_delivered(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A normal exit with the store down drops nothing, says how much waits and where, and returns False."""
    road = world.road(capacity=2, down=True)
    delivery = world.delivery(road)
    for number in range(7):
        bracket(delivery, unit(number))
    delivery.close(time.monotonic() + 0.2)
    road.close()
    assert not delivery.finish()
    assert road.lane.abandon() == 2
    assert delivery.metrics()["dropped"] == 0
    assert "7 events wait in" in caplog.text
    later = world.road()
    second = world.delivery(later)
    second.start()
    assert flush(second)
    assert ids(later) == list(range(7))


def test_a_unit_that_was_never_prepared_is_delivered(world: World) -> None:
    """Whatever kept `prepare` from running, a committed unit is not forgotten."""
    road = world.road()
    delivery = world.delivery(road)
    delivery.committed(unit(1))
    delivery.aborted(unit(2))
    assert flush(delivery)
    assert ids(road) == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_storm_of_forks_loses_nothing(world: World) -> None:
    """Forty children at once, each with a commit and without an orderly end; two adopters share the rest."""
    delivery = world.delivery(world.road(down=True))
    bracket(delivery, unit(1000))
    assert delivery._adopted.wait(5)  # it does not look again for long
    children = []
    for number in range(40):
        child = os.fork()
        if child == 0:
            delivery.after_fork()
            delivery._adopt_at = time.monotonic() + 100
            bracket(delivery, unit(number))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 40
    roads = [world.road(), world.road()]
    adopters = [world.delivery(road) for road in roads]
    for adopter in adopters:
        adopter.start()
    assert [flush(adopter) for adopter in adopters] == [True, True]
    assert sorted(ids(roads[0]) + ids(roads[1])) == list(range(40))


def test_a_clock_that_steps_back_changes_no_order(world: World) -> None:
    """Journals of the future and of the past are taken over alike; order is by release, not by time."""
    first = world.delivery(world.road(down=True))
    for number in range(5):
        made = unit(number, kind=Traced)
        first.prepare(made)
        for event in made.prepared.events:
            event.time = 1_000_000_000_000_000_000 - number * 10**15
        first.committed(made)
    world.kill(first)
    (path,) = (path for path in world.home.iterdir() if path.is_dir())
    path.rename(path.with_name("ffffffff-ffff-7fff-8fff-ffffffffffff"))  # named by a clock far ahead
    road = world.road()
    second = world.delivery(road)
    second.start()
    bracket(second, unit(9))
    assert flush(second)
    adopted = [number for number in ids(road) if number != 9]
    assert adopted == list(range(5))
    assert [event.attributes[semconv.SEQUENCE] for event in road.taken] == list(range(1, 7))
    wait_for(lambda: len(list(world.home.iterdir())) == 1)


def test_a_process_tells_its_adopter_who_it_was(tmp_path: Path) -> None:
    """Events of a dead process are handed on with the resource of that process, others with none."""
    home = tmp_path / "service"
    handed: list[tuple[str, object]] = []
    road = Road()

    def emit(lane: Lane, event: Event, origin: Mapping[str, Any] | None) -> None:
        handed.append((event.id, origin))
        road.emit(event)

    road.down = True
    resource = {"service.name": "shop", "service.instance.id": "7"}
    first = DurableDelivery([road.lane], emit, capacity=10, home=home, about=lambda: resource)
    bracket(first, unit(1))
    wait_for(lambda: handed == [("1", None)])
    World(home).kill(first)
    road.close()
    road = Road()
    second = DurableDelivery([road.lane], emit, capacity=10, home=home, about=lambda: {"service.name": "new"})
    second.start()
    bracket(second, unit(2))
    assert flush(second)
    assert sorted(handed[1:], key=str) == [("1", resource), ("2", None)]
    second.close(time.monotonic() + 5)
    road.close()
    assert second.finish()
