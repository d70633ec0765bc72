"""Every loss leaves one event that says how much, why and when; streams open, beat and close."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from otel_activity import semconv
from otel_activity.delivery import DurableDelivery, GapLog, Heartbeat, QueuedDelivery
from otel_activity.delivery.notes import leave
from otel_activity.delivery.records import Record, scan
from tests.delivery.test_durable import World, bracket, world
from tests.delivery.test_queued import Broken, Road, road, unit, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pytest

    from otel_activity.delivery import Lane
    from otel_activity.events import Event

__all__ = ["road", "world"]

ABOUT = {semconv.STREAM_VERSION: "1"}


def queued(road: Road, capacity: int = 1000, **more: Any) -> QueuedDelivery:
    """A delivery in memory that records its losses."""
    return QueuedDelivery([road.lane], road.emit, capacity=capacity, gaps=GapLog(), **more)


def durable(world: World, *roads: Road, **more: Any) -> DurableDelivery:
    """A delivery with a journal that records its losses."""
    by_lane = {id(road.lane): road for road in roads}

    def emit(lane: Lane, event: Event, origin: Mapping[str, Any] | None) -> None:
        by_lane[id(lane)].emit(event)

    settings: dict[str, Any] = {"capacity": 1000, "home": world.home, "gaps": GapLog(), **more}
    made = DurableDelivery([road.lane for road in roads], emit, **settings)
    world.deliveries.append(made)
    return made


def flushed(delivery: QueuedDelivery | DurableDelivery) -> None:
    """Everything has arrived, what is said about losses too."""
    delivery.flush(30.0, poke=lambda: None)


def gaps(road: Road) -> list[tuple[str, int]]:
    """Reason and count of each gap that arrived."""
    return [
        (event.attributes[semconv.GAP_REASON], event.attributes[semconv.GAP_COUNT])
        for event in road.taken
        if event.name == semconv.GAP
    ]


def total(road: Road, reason: str) -> int:
    """How many events were lost for a reason, by all the gaps that arrived."""
    return sum(count for said, count in gaps(road) if said == reason)


def places(road: Road, *, lost: bool = True) -> list[int]:
    """The places in the stream that arrived, and with `lost` those that gaps name."""
    found = [event.attributes[semconv.SEQUENCE] for event in road.taken]
    for event in road.taken if lost else ():
        for first, last in event.attributes.get(semconv.GAP_SEQUENCES, ()):
            found += range(first, last + 1)
    return sorted(found)


def test_a_full_exporter_queue_leaves_one_gap_with_the_exact_count(road: Road) -> None:
    """What a full lane drops is one event with count, places and times, once there is room again."""
    road.lane.capacity = 5
    road.down = True
    delivery = queued(road)
    delivery.committed(unit(1))
    wait_for(lambda: road.lane.trouble is not None)
    for number in range(2, 31):
        delivery.committed(unit(number))
    wait_for(lambda: delivery.metrics()["waiting"] == 0)
    road.down = False
    wait_for(lambda: road.lane.pending == 0)
    flushed(delivery)
    assert gaps(road) == [("queue full", 25)]
    assert places(road) == list(range(1, 32))
    gap = road.taken[-1].attributes
    assert gap[semconv.GAP_SEQUENCES] == [[6, 30]]
    assert gap[semconv.GAP_EXPORTER] == "road"
    assert gap[semconv.GAP_FIRST] <= gap[semconv.GAP_LAST]


def test_a_full_queue_of_units_leaves_one_gap(road: Road) -> None:
    """Units that found no room before they had a place in the stream are counted, and leave no hole."""
    delivery = queued(road, capacity=3)
    with delivery._pumping:  # the feeding thread stands still
        for number in range(10):
            delivery.committed(unit(number))
    flushed(delivery)
    assert gaps(road) == [("queue full", 7)]
    assert places(road, lost=False) == list(range(1, 5))


def test_what_cannot_be_encoded_leaves_a_gap(road: Road) -> None:
    """An event that cannot be encoded is counted in an event that can."""
    delivery = queued(road)
    with delivery._pumping:
        for number in (1, 2):
            delivery.committed(unit(number, kind=Broken))
        delivery.committed(unit(3))
    flushed(delivery)
    assert gaps(road) == [("not encoded", 2)]


def test_what_a_receiver_rejects_leaves_a_gap(road: Road) -> None:
    """A record that a receiver will never take is a loss like any other."""
    delivery = queued(road)
    road.lane.lose(3, "the receiver rejects them")
    flushed(delivery)
    assert gaps(road) == [("rejected", 3)]


def test_a_gap_waits_for_a_lane_that_is_full_and_reaches_the_others() -> None:
    """Of two exporters the one that works gets the record at once, the other when it has room."""
    good, stuck = Road(), Road(capacity=1)
    by_lane = {id(made.lane): made for made in (good, stuck)}
    stuck.lane.name = "stuck"
    stuck.down = True

    def emit(event: Event) -> None:
        good.emit(event)
        stuck.emit(event)

    delivery = QueuedDelivery(
        [good.lane, stuck.lane],
        emit,
        capacity=1000,
        gaps=GapLog(),
        emit_to=lambda lane, event: by_lane[id(lane)].emit(event),
    )
    delivery.committed(unit(1))
    wait_for(lambda: stuck.lane.trouble is not None)
    for number in range(2, 8):
        delivery.committed(unit(number))
    wait_for(lambda: total(good, "queue full") == 6)
    assert gaps(stuck) == []
    stuck.down = False
    wait_for(lambda: total(stuck, "queue full") == 6)
    assert stuck.lane.dropped == 6
    good.close()
    stuck.close()


def test_what_a_process_could_not_deliver_is_said_by_the_next(road: Road, tmp_path: Path) -> None:
    """Without a journal, what is left at the end is lost; the next process of the service says how much."""
    dead = Road()
    dead.down = True
    first = queued(dead, home=tmp_path / "shop")
    first.start()
    for number in range(4):
        first.committed(unit(number))
    wait_for(lambda: first.metrics()["waiting"] == 0)
    first.close(time.monotonic() + 0.1)
    dead.lane.abandon()
    assert not first.finish()
    dead.close()
    second = queued(road, home=tmp_path / "shop")
    second.start()
    wait_for(lambda: gaps(road) == [("process ended", 4)])
    assert road.taken[0].attributes[semconv.STREAM_SUBJECT] == first._stream.id
    wait_for(lambda: list((tmp_path / "shop").iterdir()) == [])
    second.close(time.monotonic() + 5)
    assert second.finish()


def test_a_full_journal_leaves_a_gap(world: World) -> None:
    """What neither journal nor memory takes is recorded, although the journal is full."""
    stuck = world.road(capacity=10, down=True)
    delivery = durable(world, stuck, capacity=10, max_bytes=65_536)
    number = 0
    while delivery.dropped < 20:
        bracket(delivery, unit(number))
        number += 1
    stuck.down = False
    flushed(delivery)
    # A machine that stops for a second between two commits makes two windows of them.
    assert total(stuck, "journal full") == 20
    assert len(stuck.taken) == number - 20 + len(gaps(stuck))
    assert places(stuck, lost=False) == list(range(1, len(stuck.taken) + 1))


def test_a_flush_waits_for_what_the_feeding_thread_says_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window of a loss ends just when a flush has waited for everything else."""
    road = world.road()
    delivery = durable(world, road)
    bracket(delivery, unit(1))
    flushed(delivery)
    delivery._lost("journal full", 9)
    all_left = delivery._all_left

    def late(deadline: float, poke: Callable[[], None]) -> list[bool]:
        left = all_left(deadline, poke)
        if not road.down:
            road.down = True
            delivery._witness_now()
        return left

    monkeypatch.setattr(delivery, "_all_left", late)
    assert not delivery.flush(0.2, poke=lambda: None)
    monkeypatch.undo()
    road.down = False
    flushed(delivery)
    assert gaps(road) == [("journal full", 9)]


def test_a_gap_survives_the_process(world: World) -> None:
    """What is said about a loss is in the journal like any event: who takes over delivers it."""
    stuck = world.road(down=True)
    delivery = durable(world, stuck)
    bracket(delivery, unit(1))
    delivery._lost("journal full", 9)
    delivery.flush(0.2, poke=lambda: None)
    wait_for(lambda: delivery.released == 2)
    world.kill(delivery)
    road = world.road()
    other = durable(world, road)
    other.start()
    flushed(other)
    assert gaps(road) == [("journal full", 9)]


def taken_over(world: World, **more: Any) -> list[Event]:
    """The gaps that the next process delivers."""
    road = world.road()
    other = durable(world, road, **more)
    other.start()
    flushed(other)
    return [event for event in road.taken if event.name == semconv.GAP]


def test_a_window_that_is_open_survives_the_process(world: World) -> None:
    """Killed at the very first loss: who takes the journal over says of it what was written down."""
    delivery = durable(world, world.road(down=True))
    with delivery._pumping:  # the feeding thread stands still
        delivery._lost("queue full", 3, exporter="road", first=8)
        delivery._lost("journal full", 2)
        world.kill(delivery)
    found = {event.attributes[semconv.GAP_REASON]: event.attributes for event in taken_over(world)}
    assert set(found) == {"queue full", "journal full"}
    assert found["queue full"][semconv.GAP_COUNT] == 3
    assert found["queue full"][semconv.GAP_SEQUENCES] == [[8, 10]]
    assert found["journal full"][semconv.GAP_ESTIMATE] is True
    assert {said[semconv.STREAM_SUBJECT] for said in found.values()} == {delivery._stream.id}


def test_what_goes_on_being_lost_is_written_down_again(world: World) -> None:
    """The count on the page follows, by way of the feeding thread."""
    delivery = durable(world, world.road(down=True))
    delivery.start()
    for _ in range(5):
        delivery._lost("queue full", 1)
    gap_log = delivery._gaps
    assert gap_log is not None
    wait_for(lambda: delivery._written[0] == gap_log.version)
    world.kill(delivery)
    (event,) = taken_over(world)
    assert event.attributes[semconv.GAP_COUNT] == 5


def test_a_page_that_is_half_written_leaves_the_version_before(world: World) -> None:
    """Killed while it wrote the page, a process leaves what it had written before."""
    delivery = durable(world, world.road(down=True))
    with delivery._pumping:
        delivery._lost("queue full", 3)
        delivery._lost("journal full", 2)
        world.kill(delivery)
    (page,) = world.home.glob("*/losses")
    data = bytearray(page.read_bytes())
    second = 0 if int.from_bytes(data[8:16], "little") == 2 else 4096
    data[second + 100] ^= 0xFF
    page.write_bytes(data)
    (event,) = taken_over(world)
    assert event.attributes[semconv.GAP_REASON] == "queue full"


def test_a_loss_on_the_page_and_in_the_journal_has_one_id_and_time(world: World) -> None:
    """Killed between the two, a process leaves its record twice: the same event, which is stored once."""
    delivery = durable(world, world.road(down=True))
    with delivery._pumping:
        delivery._lost("queue full", 3)
        gap_log = delivery._gaps
        assert gap_log is not None
        delivery._aside.extend(map(delivery._about_stream, gap_log.take(now=True)))
        delivery._write_down()
        assert delivery._offer(delivery._aside[0])
        world.kill(delivery)
    first, second = taken_over(world)
    assert (first.id, first.time) == (second.id, second.time)
    assert first.attributes[semconv.GAP_COUNT] == 3
    assert semconv.GAP_ESTIMATE not in first.attributes


def test_who_lives_on_leaves_nothing_on_the_page(world: World) -> None:
    """A window that became an event is on the page no more."""
    road = world.road()
    delivery = durable(world, road)
    delivery.start()
    delivery._lost("queue full", 3)
    flushed(delivery)
    assert gaps(road) == [("queue full", 3)]
    world.kill(delivery)
    assert taken_over(world) == []


def test_what_no_journal_took_is_counted_when_the_process_is_killed(world: World) -> None:
    """Units in memory alone, because the journal was full, are said to be lost by the next process."""
    delivery = durable(world, world.road(down=True), max_bytes=65_536)
    number = 0
    while delivery.unjournaled < 30:
        bracket(delivery, unit(number))
        number += 1
    wait_for(lambda: delivery._written[1] == 30)
    world.kill(delivery)
    road = world.road()
    other = durable(world, road)
    other.start()
    flushed(other)
    assert gaps(road) == [("process ended", 30)]
    assert len(road.taken) == number - 30 + 1


def test_what_was_in_memory_alone_and_arrived_is_not_counted(world: World) -> None:
    """Nothing is said to be lost that every exporter has confirmed."""
    stuck = world.road(down=True)
    delivery = durable(world, stuck, max_bytes=65_536)
    number = 0
    while delivery.unjournaled < 30:
        bracket(delivery, unit(number))
        number += 1
    wait_for(lambda: delivery._written[1] == 30)
    stuck.down = False
    flushed(delivery)
    wait_for(lambda: delivery._written[1] == 0)
    world.kill(delivery)
    assert taken_over(world) == []
    assert len(stuck.taken) == number


def test_a_process_without_a_journal_notes_what_it_is_losing(road: Road, tmp_path: Path) -> None:
    """Killed while its queue is full, it leaves a note; without losses it leaves nothing."""
    dead = Road(capacity=5)
    dead.down = True
    first = queued(dead, home=tmp_path / "shop", emit_to=lambda lane, event: dead.emit(event))
    first.committed(unit(1))
    wait_for(lambda: dead.lane.trouble is not None)
    assert not (tmp_path / "shop").exists()
    for number in range(2, 31):
        first.committed(unit(number))
    wait_for(lambda: dead.lane.dropped == 25 and first._gaps is not None)
    gap_log = first._gaps
    assert gap_log is not None
    wait_for(lambda: first._written[0] == gap_log.version)
    first._closed = True  # what SIGKILL leaves
    thread, notebook = first._thread, first._notebook
    assert thread is not None
    assert notebook is not None
    thread.join(5)
    notebook.abandon()
    dead.close()
    second = queued(road, home=tmp_path / "shop")
    second.start()
    wait_for(lambda: gaps(road) == [("queue full", 25)])
    assert road.taken[0].attributes[semconv.STREAM_SUBJECT] == first._stream.id
    assert road.taken[0].attributes[semconv.GAP_SEQUENCES] == [[6, 30]]
    wait_for(lambda: list((tmp_path / "shop").iterdir()) == [])
    second.close(time.monotonic() + 5)
    assert second.finish()


def damaged(world: World, hit: int) -> tuple[DurableDelivery, list[tuple[str, int]], list[str]]:
    """Nine transactions of three events; the record of one number is damaged, and the journal is taken over.

    Returns who took over, reason and count of each gap, and the fate of each event.
    """
    delivery = durable(world, world.road(down=True))
    for number in range(0, 27, 3):
        bracket(delivery, unit(number, number + 1, number + 2))
    world.kill(delivery)
    (segment,) = world.segments()
    data = bytearray(segment.read_bytes())
    (record,) = [one for one in scan(bytes(data)) if isinstance(one, Record) and one.number == hit]
    data[(record.start + record.end) // 2] ^= 0xFF
    segment.write_bytes(data)
    road = world.road()
    other = durable(world, road)
    other.start()
    flushed(other)
    fates = [event.attributes[semconv.COMMIT] for event in road.taken if event.name != semconv.GAP]
    return other, gaps(road), fates


def test_a_damaged_journal_leaves_a_gap(world: World) -> None:
    """A transaction that cannot be read, and whose mark can, is counted in events."""
    heir, said, fates = damaged(world, 8)
    assert said == [("journal damaged", 3)]
    assert fates == ["reported"] * 24
    assert (heir.lost_records, heir.lost_events) == (1, 3)


def test_damage_is_reported_once_whoever_takes_the_journal_over(world: World) -> None:
    """One that dies while it delivers a damaged journal has said what is missing; only more is said again."""
    delivery = durable(world, world.road(down=True))
    for number in range(0, 27, 3):
        bracket(delivery, unit(number, number + 1, number + 2))
    world.kill(delivery)
    (segment,) = world.segments()

    def damage(number: int) -> None:
        data = bytearray(segment.read_bytes())
        record = next(one for one in scan(bytes(data)) if isinstance(one, Record) and one.number == number)
        data[record.end - 1] ^= 0xFF
        segment.write_bytes(data)

    damage(8)
    said: list[tuple[str, int]] = []
    lost: list[int] = []
    for then in (None, 4, None):
        heir = durable(world, world.road(down=True))
        heir.start()
        wait_for(lambda heir=heir: heir._adopted.is_set())  # type: ignore[misc]
        assert heir._gaps is not None
        said += [
            (gap.attributes[semconv.GAP_REASON], gap.attributes[semconv.GAP_COUNT])
            for gap in heir._gaps.still_open()
            if gap.attributes[semconv.GAP_REASON] in {"journal damaged", "journal unreadable"}
        ]
        lost.append(heir.lost_events)
        world.kill(heir)
        if then is not None:
            damage(then)
    assert said == [("journal damaged", 3), ("journal damaged", 3)]
    assert lost == [3, 0, 3]


def test_a_damaged_mark_costs_no_event(world: World) -> None:
    """Its transaction is there, of an unknown fate; what the record was nobody can tell."""
    heir, said, fates = damaged(world, 9)
    assert said == [("journal unreadable", 1)]
    assert sorted(fates) == ["reported"] * 24 + ["unknown"] * 3
    assert (heir.lost_records, heir.lost_events) == (1, 0)


def test_what_all_exporters_had_is_not_counted_as_lost(world: World) -> None:
    """A transaction that was confirmed, or rolled back, may be damaged: nothing is lost."""
    road = world.road()
    delivery = durable(world, road)
    delivery.prepare(gone := unit(1))
    delivery.aborted(gone)
    bracket(delivery, unit(2))
    bracket(delivery, unit(3))
    flushed(delivery)
    road.down = True
    bracket(delivery, unit(4))
    world.kill(delivery)
    (segment,) = world.segments()
    data = bytearray(segment.read_bytes())
    for record in list(scan(bytes(data))):
        if isinstance(record, Record) and record.number in (0, 2):
            data[record.end - 1] ^= 0xFF
    segment.write_bytes(data)
    heir = world.road()
    other = durable(world, heir)
    other.start()
    flushed(other)
    assert gaps(heir) == []
    assert (other.lost_records, other.lost_events) == (2, 0)
    assert [event.id for event in heir.taken] == ["4"]


def test_losses_of_one_window_are_one_event() -> None:
    """A window ends when nothing was lost for a second, or after a minute of losses."""
    now = 0.0
    log = GapLog(clock=lambda: now)
    for _ in range(5):
        log.lost("queue full", 2, exporter="postgres")
        now += 0.5
    assert log.take(now=False) == []
    log.lost("queue full", 1)
    now += 1.0
    assert [event.attributes[semconv.GAP_COUNT] for event in log.take(now=False)] == [10, 1]
    for _ in range(121):
        log.lost("queue full", 1)
        now += 0.5
    (long,) = log.take(now=False)
    assert long.attributes[semconv.GAP_COUNT] == 121
    assert not log


def test_losses_in_many_threads_are_counted_exactly() -> None:
    """No loss is forgotten when requests lose at once."""
    log = GapLog()

    def lose() -> None:
        for _ in range(1000):
            log.lost("queue full", 1)

    threads = [threading.Thread(target=lose) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (event,) = log.take(now=True)
    assert event.attributes[semconv.GAP_COUNT] == 8000


def test_a_range_of_places_is_named_even_when_there_are_too_many() -> None:
    """Beyond a hundred ranges the last one covers the rest, so no lost place is left out."""
    log = GapLog()
    for first in range(1, 1001, 2):
        log.lost("rejected", 1, first=first)
    (event,) = log.take(now=True)
    ranges = event.attributes[semconv.GAP_SEQUENCES]
    assert len(ranges) == 100
    assert ranges[-1] == [199, 999]


def test_a_stream_opens_beats_and_closes(road: Road) -> None:
    """A process that audits says so, again and again, and its last record says that it ended."""
    now = 0.0
    delivery = queued(road, heartbeat=Heartbeat(60.0, ABOUT, clock=lambda: now))
    delivery.start()
    wait_for(lambda: len(road.taken) == 1)
    delivery.committed(unit(1))
    wait_for(lambda: len(road.taken) == 2)
    now = 60.0
    wait_for(lambda: len(road.taken) == 3)
    delivery.close(time.monotonic() + 30)
    wait_for(lambda: len(road.taken) == 4)
    names = [event.name for event in road.taken]
    assert names == [semconv.STREAM_OPENED, "activity.action", semconv.STREAM_BEAT, semconv.STREAM_CLOSED]
    assert places(road) == [1, 2, 3, 4]
    opened = road.taken[0].attributes
    assert opened[semconv.STREAM_SUBJECT] == opened[semconv.STREAM_ID]
    assert (opened[semconv.STREAM_HEARTBEAT], opened[semconv.STREAM_VERSION]) == (60.0, "1")


def test_who_takes_a_journal_over_closes_its_stream(world: World) -> None:
    """The record names the dead stream and how many of its events stand before it."""
    stuck = world.road(down=True)
    delivery = durable(world, stuck, heartbeat=Heartbeat(60.0, ABOUT))
    delivery.start()
    wait_for(lambda: delivery.released == 1)
    for number in range(3):
        bracket(delivery, unit(number))
    world.kill(delivery)
    road = world.road()
    other = durable(world, road, heartbeat=Heartbeat(60.0, ABOUT))
    other.start()
    flushed(other)
    closed = [event for event in road.taken if event.name == semconv.STREAM_CLOSED]
    assert [event.attributes[semconv.STREAM_SUBJECT] for event in closed] == [delivery._stream.id]
    assert closed[0].attributes[semconv.STREAM_TAKEN_OVER] == 4
    assert closed[0].attributes[semconv.STREAM_ID] == other._stream.id
    assert places(road) == list(range(1, len(road.taken) + 1))


def test_an_heir_without_beats_closes_a_stream_that_had_them(world: World) -> None:
    """A relay has no heartbeat of its own; the stream of the dead process must not look cut off for that."""
    dead = durable(world, world.road(down=True), heartbeat=Heartbeat(60.0, ABOUT))
    dead.start()
    wait_for(lambda: dead.released == 1)
    bracket(dead, unit(1))
    world.kill(dead)
    road = world.road()
    heir = durable(world, road)
    heir.start()
    flushed(heir)
    assert [event.name for event in road.taken if event.name != "activity.action"] == [
        semconv.STREAM_OPENED,
        semconv.STREAM_CLOSED,
    ]
    (closed,) = (event for event in road.taken if event.name == semconv.STREAM_CLOSED)
    assert closed.attributes[semconv.STREAM_SUBJECT] == dead._stream.id
    assert closed.attributes[semconv.STREAM_TAKEN_OVER] == 2


def test_without_a_heartbeat_a_stream_has_no_records(world: World) -> None:
    """The default adds nothing to what the application did."""
    road = world.road()
    delivery = durable(world, road)
    delivery.start()
    bracket(delivery, unit(1))
    flushed(delivery)
    delivery.close(time.monotonic() + 30)
    delivery.finish()
    assert [event.name for event in road.taken] == ["activity.action"]


def test_a_note_is_taken_over_like_a_journal(world: World) -> None:
    """A process with a journal, or a relay, delivers what one without could not say, and removes it."""
    lost = GapLog()
    lost.lost("process ended", 5)
    leave(world.home, {"service.name": "shop"}, lost.take(now=True))
    road = world.road()
    delivery = durable(world, road, writes=False)
    delivery.start()
    flushed(delivery)
    wait_for(lambda: gaps(road) == [("process ended", 5)])
    wait_for(lambda: list(world.home.iterdir()) == [])
