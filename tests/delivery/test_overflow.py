"""When a bound is reached: commit and drop, let COMMIT wait, or refuse to commit."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from otel_activity.delivery import DurableDelivery, Overflow, QueuedDelivery
from otel_activity.errors import DeliveryRefused
from tests.delivery.test_durable import World, bracket, flush, ids, world
from tests.delivery.test_queued import Road, road, unit, wait_for

__all__ = ["road", "world"]

FAIL = Overflow("fail")
SMALL = 65_536


def fill(delivery: DurableDelivery) -> int:
    """Commit until nothing more goes into the journal; how many it took."""
    for number in range(1000):
        try:
            bracket(delivery, unit(number))
        except DeliveryRefused:
            return number
    raise AssertionError("the journal never was full")


def test_a_full_journal_refuses_the_commit_if_that_was_chosen(world: World) -> None:
    """`fail`: what is committed is journaled, the rest is not committed; later it goes on."""
    stuck = world.road(down=True)
    delivery = world.delivery(stuck, max_bytes=SMALL, overflow=FAIL)
    taken = fill(delivery)
    with pytest.raises(DeliveryRefused, match="OTEL_ACTIVITY_JOURNAL_MAX_BYTES=65536"):
        delivery.prepare(refused := unit(2000))
    delivery.aborted(refused)
    assert delivery.metrics()["journal"]["unjournaled"] == delivery.metrics()["dropped"] == 0
    stuck.down = False
    assert flush(delivery)
    assert ids(stuck) == list(range(taken))
    wait_for(lambda: delivery.metrics()["journal"]["units"] == 0)
    bracket(delivery, unit(3000))
    assert flush(delivery)
    assert ids(stuck)[-1] == 3000


def test_a_commit_waits_for_room_in_the_journal_if_that_was_chosen(world: World) -> None:
    """`block`: COMMIT goes on when the exporter has confirmed enough, and its events are journaled."""
    stuck = world.road(down=True)
    delivery = world.delivery(stuck, max_bytes=SMALL, overflow=FAIL)
    taken = fill(delivery)
    delivery.overflow = Overflow("block", timeout=20.0)
    late = unit(5000)
    waiting = threading.Thread(target=bracket, args=(delivery, late))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    stuck.down = False
    waiting.join(15)
    assert not waiting.is_alive()
    assert late.prepared.source is not None
    assert flush(delivery)
    assert ids(stuck) == [*range(taken), 5000]


def test_who_waits_for_a_full_journal_does_not_try_again_for_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is deleted there is nothing to try: many who wait must not keep the feeder away."""
    stuck = world.road(down=True)
    delivery = world.delivery(stuck, max_bytes=SMALL, overflow=FAIL)
    fill(delivery)
    delivery.overflow = Overflow("block", timeout=0.6)
    tried: list[str | None] = []
    whole = DurableDelivery._write

    def write(self: DurableDelivery, held: Any, *, bounded: bool = True) -> str | None:
        tried.append(whole(self, held, bounded=bounded))
        return tried[-1]

    monkeypatch.setattr(DurableDelivery, "_write", write)
    delivery.prepare(unit(5000))
    assert len(tried) == 2


def test_a_commit_does_not_wait_for_ever(world: World) -> None:
    """`block`: when the time is up the events go through memory, and COMMIT goes on."""
    stuck = world.road(down=True)
    delivery = world.delivery(stuck, max_bytes=SMALL, overflow=FAIL)
    taken = fill(delivery)
    delivery.overflow = Overflow("block", timeout=0.03)
    bracket(delivery, unit(5000))
    assert delivery.metrics()["journal"]["unjournaled"] == 1
    stuck.down = False
    assert flush(delivery)
    assert ids(stuck) == [*range(taken), 5000]


def test_a_full_disk_refuses_the_commit_if_that_was_chosen(world: World) -> None:
    """`fail`: an error of the disk is a refusal too, which names it; later units are journaled again."""
    road = world.road()
    delivery = world.delivery(road, overflow=FAIL)
    assert delivery._own is not None
    own = delivery._own.journal
    descriptor, own._descriptor = own._descriptor, os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(DeliveryRefused, match="No space left on device"):
        delivery.prepare(unit(1))
    if own._descriptor is not None:
        os.close(own._descriptor)
    own._descriptor = descriptor
    bracket(delivery, unit(2))
    assert flush(delivery)
    assert ids(road) == [2]


def test_a_full_queue_refuses_the_commit_if_that_was_chosen() -> None:
    """`best_effort` with `fail`: no commit while its events would be dropped, so none is."""
    road = Road(capacity=3)
    road.down = True
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000, overflow=FAIL)
    committed = 0
    for number in range(20):
        made = unit(number)
        if road.lane.pending == 3:
            with pytest.raises(DeliveryRefused, match="3 events wait for road"):
                delivery.prepare(made)
            break
        delivery.prepare(made)
        delivery.committed(made)
        committed += 1
        wait_for(lambda: delivery.metrics()["waiting"] == 0)
    assert committed == 3
    road.down = False
    assert flush(delivery)  # type: ignore[arg-type]  # it is the same method
    assert [event.id for event in road.taken] == ["0", "1", "2"]
    assert delivery.metrics()["dropped"] == 0
    road.close()


def test_a_commit_waits_for_room_in_the_queue_if_that_was_chosen() -> None:
    """`best_effort` with `block`: COMMIT goes on when the exporter works again, and nothing is dropped."""
    road = Road(capacity=1)
    road.down = True
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000, overflow=Overflow("block", 20.0))
    delivery.committed(unit(1))
    wait_for(lambda: road.lane.trouble is not None)
    late = unit(2)
    waiting = threading.Thread(target=lambda: (delivery.prepare(late), delivery.committed(late)))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    road.down = False
    waiting.join(15)
    assert flush(delivery)  # type: ignore[arg-type]  # it is the same method
    assert [event.id for event in road.taken] == ["1", "2"]
    assert delivery.metrics()["dropped"] == 0
    road.close()
