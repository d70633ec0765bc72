"""Delivery when something runs out: descriptors, room in the journal, patience of one of two exporters."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_activity.delivery import GapLog, QueuedDelivery, durable, journal
from otel_activity.delivery.gaps import evidence
from otel_activity.delivery.holding import (
    PREPARED,
    RELEASED,
    Held,
    encode_release,
    encode_unit,
    take_over,
)
from otel_activity.delivery.journal import Journal
from otel_activity.delivery.notes import leave, notes
from otel_activity.events import Commit
from tests.delivery.test_durable import World, bracket, flush, ids
from tests.delivery.test_queued import Note, unit, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_activity.events import Event, Unit

resource = pytest.importorskip("resource")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty directory of journals."""
    made = World(tmp_path / "journal" / "service")
    yield made
    made.close()


class _NoDescriptors:
    """No file can be opened while this lasts."""

    def __enter__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/dev/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, self._limits[1]))
        self._used: list[int] = []
        try:
            while True:
                self._used.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return

    def __exit__(self, *_: object) -> None:
        for descriptor in self._used:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)


def dead_journals(home: Path, count: int) -> None:
    """What processes leave that were killed after one transaction each, numbered from 0."""
    for number in range(count):
        made = Journal.create(home, fsync="never", max_bytes=1 << 20, about={"exporters": ["road"]})
        whole = unit(number)
        events = [entry.to_event(whole, Commit.REPORTED) for entry in whole.entries]
        held = Held(1, events, 0, 0, commit="reported")
        held.place = made.append(PREPARED, encode_unit(events), unit=True)
        made.append(RELEASED, encode_release(held))
        made.close(remove=False)


def test_without_descriptors_what_is_in_the_journal_waits(world: World) -> None:
    """A journal that cannot be opened just now is read later; nothing of it counts as lost."""
    road = world.road(capacity=5, down=True)
    delivery = world.delivery(road, capacity=10)
    for number in range(100):
        bracket(delivery, unit(number))
    with _NoDescriptors():
        road.down = False
        wait_for(lambda: "read" in delivery._said)
        assert not flush(delivery, 0.3)
    assert flush(delivery)
    assert ids(road) == list(range(100))
    assert delivery.metrics()["dropped"] == 0


def test_a_disk_that_gives_nothing_back_holds_up_nothing_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit on a bad block is waited for a while, and then lost and named; those behind it arrive."""
    monkeypatch.setattr(durable, "_READ_AGAIN", 0.3)
    road = world.road(capacity=2, down=True)
    delivery = world.delivery(road, capacity=2)
    places = [bracket(delivery, unit(number)).prepared.place for number in range(8)]
    whole = Journal.read

    def read(self: Journal, place: Any) -> bytes | None:
        if place == places[5]:
            raise OSError(errno.EIO, "bad block")
        return whole(self, place)

    monkeypatch.setattr(Journal, "read", read)
    road.down = False
    assert not flush(delivery)  # one of those released before will never arrive
    assert ids(road) == [0, 1, 2, 3, 4, 6, 7]
    assert delivery.metrics()["journal"]["lost_events"] == 1
    assert flush(delivery)


def test_journals_that_cannot_be_opened_just_now_are_taken_over_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was out of descriptors when it looked has not given those journals up."""
    monkeypatch.setattr(durable, "_ADOPT_EVERY", 0.1)
    dead_journals(world.home, 3)
    road = world.road("road")
    delivery = world.delivery(road)
    with _NoDescriptors():
        delivery.start()
        wait_for(delivery._adopted.is_set)
    wait_for(lambda: sorted(ids(road)) == [0, 1, 2])


def test_thousands_of_dead_processes_do_not_use_up_the_descriptors(world: World) -> None:
    """Journals are taken over a few at a time, and a flush counts those that come later, too."""
    dead_journals(world.home, 100)
    road = world.road("road", down=True)
    delivery = world.delivery(road)
    before = len(os.listdir("/dev/fd"))
    delivery.start()
    wait_for(delivery._adopted.is_set)
    assert not flush(delivery, 0.2)
    assert len(os.listdir("/dev/fd")) < before + 60
    road.down = False
    assert flush(delivery)
    assert ids(road) == list(range(100))
    assert len(list(world.home.iterdir())) == 1


def test_a_journal_that_is_kept_for_others_is_not_held(world: World) -> None:
    """Whoever has done its part lets go of it: a relay with the missing exporter must be able to have it."""
    both = world.delivery(world.road("here", down=True), world.road("gone", down=True))
    bracket(both, unit(1, 2))
    path = both._sources[0].journal.path
    world.kill(both)
    fewer = world.delivery(world.road("here"))
    fewer.start()
    assert flush(fewer)
    wait_for(lambda: not journal.is_held(path))
    assert fewer.metrics()["journal"]["kept"] == 1
    next_one = world.delivery(world.road("here"))
    next_one.start()
    assert flush(next_one)
    assert not journal.is_held(path)
    assert next_one.metrics()["journal"]["kept"] == 1  # it is there, and nobody read it again
    gone = world.road("gone")
    relay = world.delivery(gone)
    relay.start()
    assert flush(relay)
    assert ids(gone) == [1, 2]
    wait_for(lambda: not path.exists())


def test_a_dead_exporter_does_not_hold_up_the_other_when_the_journal_is_full(world: World) -> None:
    """What no journal took makes room in memory for the exporter that works; what the other lost is named."""
    good, dead = world.road("good"), world.road("dead", capacity=20, down=True)
    delivery = world.delivery(good, dead, capacity=100, max_bytes=20_000)
    gaps = delivery._gaps = GapLog()
    for number in range(400):
        bracket(delivery, unit(number))
        if number % 10 == 9:
            wait_for(lambda last=number: len(good.taken) > last)  # type: ignore[misc]
    metrics = delivery.metrics()
    lost = metrics["exporters"]["dead"]["dropped"]
    assert lost > 0
    assert metrics["exporters"]["good"]["dropped"] == 0
    assert metrics["deliveries"]["durable"]["dropped"] == metrics["dropped"] == lost
    assert metrics["deliveries"]["best_effort"]["dropped"] == 0
    (gap,) = gaps.take(now=True)
    assert gap.attributes["activity.gap.exporter"] == "dead"
    assert gap.attributes["activity.gap.count"] == lost
    dead.down = False
    flush(delivery)
    assert len(ids(dead)) == len(set(ids(dead))) == 400 - lost
    assert delivery._at_risk == 0


class Large(Note):
    """An entry of some kilobytes."""

    def to_event(self, unit: Unit, commit: Commit) -> Event:
        event = super().to_event(unit, commit)
        event.attributes["value"] = "x" * 6000
        return event


def test_a_file_that_cannot_grow_is_left_once_nobody_needs_it(world: World) -> None:
    """A disk that is full of what was confirmed does not stay full of it."""
    road = world.road(down=True)
    delivery = world.delivery(road, max_bytes=1 << 30)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        for number in range(10):
            bracket(delivery, unit(number, kind=Large))
        assert delivery.unjournaled > 0
        (full,) = world.segments()
        road.down = False
        assert flush(delivery)
        wait_for(lambda: not full.exists())
        before = delivery.unjournaled
        for number in range(10, 14):
            bracket(delivery, unit(number, kind=Large))
        assert delivery.unjournaled == before
        assert flush(delivery)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ids(road) == list(range(14))


@pytest.mark.parametrize("what", ["home", "journal", "lock"])
def test_a_journal_that_somebody_removes_is_followed_by_another(
    world: World, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes afterwards outlives the process again, and what was written before is still delivered."""
    road = world.road(capacity=2, down=True)
    delivery = world.delivery(road, capacity=2)
    for number in range(10):
        bracket(delivery, unit(number))
    (path,) = world.home.iterdir()
    if what == "lock":
        (path / "lock").unlink()
    else:
        shutil.rmtree(world.home if what == "home" else path)
    wait_for(lambda: delivery._own is None)
    assert "somebody removed the journal" in caplog.text
    for number in range(10, 20):
        bracket(delivery, unit(number))
    assert delivery.unjournaled == 0
    assert any(found != path for found in world.home.iterdir())
    road.down = False
    assert flush(delivery)
    assert ids(road) == list(range(20))
    delivery.close(time.monotonic() + 5)
    assert delivery.finish()
    assert [found for found in world.home.iterdir() if found != path] == []


def test_a_fork_in_the_middle_of_a_take_over_inherits_no_lock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that is just being read is not kept from everybody by a child that lives on."""
    dead_journals(world.home, 1)
    (path,) = world.home.iterdir()
    inside, go = threading.Event(), threading.Event()

    def slowly(*args: Any) -> Any:
        inside.set()
        go.wait(10)
        return take_over(*args)

    monkeypatch.setattr(durable, "take_over", slowly)
    delivery = world.delivery(world.road("road", down=True))
    delivery.start()
    assert inside.wait(10)
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        delivery.after_fork()
        os.write(say, b"!")
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    go.set()
    wait_for(delivery._adopted.is_set)
    world.kill(delivery)
    held = journal.is_held(path)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert not held


def test_a_fork_inherits_no_note(tmp_path: Path) -> None:
    """What an earlier process left to say is not kept from everybody by a child of the one that says it."""
    leave(tmp_path, {}, [evidence("activity.gap", {})])
    (path,) = tmp_path.iterdir()
    delivery = QueuedDelivery([], lambda event: None, capacity=10, home=tmp_path, gaps=GapLog())
    delivery._notes = list(notes(tmp_path))
    assert journal.is_held(path)
    child = os.fork()
    if child == 0:
        delivery.after_fork()
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    for note in delivery._notes:
        note.journal.close(remove=False)
    try:
        wait_for(lambda: not journal.is_held(path))
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_sync_without_descriptors_forgets_no_segment(tmp_path: Path) -> None:
    """What was to be synced when there were no descriptors is synced by the next attempt."""
    made = Journal.create(tmp_path, fsync="interval", max_bytes=1 << 15)
    for _ in range(100):
        made.append(PREPARED, b"x" * 100, unit=True)
    retired = list(made._retired)
    assert retired
    with _NoDescriptors(), pytest.raises(OSError, match="Too many open files"):
        made.sync()
    assert made._retired == retired
    made.sync()
    assert made._retired == []
    made.close(remove=True)


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_a_new_journal_is_on_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: str
) -> None:
    """A sync of records is worth nothing if their directory is gone after a loss of power."""
    synced: set[int] = set()
    whole = os.fsync

    def sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    home = tmp_path / "state" / "service"
    home.mkdir(parents=True)
    made = Journal.create(home, fsync=fsync, max_bytes=1 << 20, about={"exporters": ["road"]})
    expected = {path.stat().st_ino for path in (home, made.path, made.path / "about.json")}
    assert synced == (set() if fsync == "never" else expected)
    made.close(remove=True)


def test_a_flush_is_false_when_a_unit_can_no_longer_be_read(world: World) -> None:
    """Damage that is met while reading back is a loss, and a flush that waited for the event says so."""
    road = world.road(capacity=5, down=True)
    delivery = world.delivery(road, capacity=10)
    for number in range(50):
        bracket(delivery, unit(number))
    (segment,) = world.segments()
    data = bytearray(segment.read_bytes())
    data[data.find(b'"30"') + 1] ^= 0xFF
    segment.write_bytes(data)
    road.down = False
    assert not flush(delivery)
    assert len(road.taken) == 49
    assert flush(delivery)
