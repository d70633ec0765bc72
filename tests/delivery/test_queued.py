"""Delivery through memory: order, bounds, retries, truthfulness, fork."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_activity import semconv
from otel_activity.delivery import Backoff, Lane, QueuedDelivery
from otel_activity.errors import StoreUnavailable
from otel_activity.events import Commit, Event, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUICK = Backoff(first=0.001, most=0.002)


class Note:
    """An entry that needs no database."""

    context: Any = None
    attributes: dict[str, Any] | None = None

    def __init__(self, number: int) -> None:
        self.number = number

    def to_event(self, unit: Unit, commit: Commit) -> Event:
        return Event(
            id=str(self.number), name="activity.action", time=0, attributes={semconv.COMMIT: commit.value}
        )


class Broken(Note):
    def to_event(self, unit: Unit, commit: Commit) -> Event:
        raise RuntimeError("cannot be encoded")


class Road:
    """An exporter that takes one event at a time, in a thread of its own, unless it is blocked."""

    def __init__(self, capacity: int = 1000) -> None:
        self.lane = Lane("road", capacity, backoff=QUICK)
        self.taken: list[Event] = []
        self.down = False
        self._queue: list[Event] = []
        self._work = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        if self.lane.enter():
            self._queue.append(event)
            self._work.set()

    def _run(self) -> None:
        while not self._stop:
            self._work.wait(0.05)
            self._work.clear()
            while self._queue and not self._stop:
                event = self._queue[0]
                if self.lane.deliver(1, lambda event=event: self._take(event)):
                    self._queue.pop(0)

    def _take(self, event: Event) -> None:
        if self.down:
            raise StoreUnavailable("the road is closed")
        self.taken.append(event)

    def close(self) -> None:
        self._stop = True
        self.lane.stop(0.0)
        self._thread.join(5)


@pytest.fixture
def road() -> Iterator[Road]:
    """A road that is open."""
    made = Road()
    yield made
    made.close()


def unit(*numbers: int, kind: type[Note] = Note) -> Unit:
    """A released unit of one transaction."""
    made = Unit(f"tx-{numbers[0]}", system="postgresql", database="app")
    made.entries.extend(kind(number) for number in numbers)
    made.commit = Commit.REPORTED
    return made


def flush(delivery: QueuedDelivery, timeout: float = 10.0) -> bool:
    return delivery.flush(timeout, poke=lambda: None)


def test_events_arrive_in_order_of_release_with_a_gap_free_sequence(road: Road) -> None:
    """The sequence of a stream has no holes and follows the order in which units were released."""
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    for start in range(0, 100, 5):
        delivery.committed(unit(*range(start, start + 5)))
    assert flush(delivery)
    assert [event.id for event in road.taken] == [str(number) for number in range(100)]
    assert [event.attributes[semconv.SEQUENCE] for event in road.taken] == list(range(1, 101))
    assert len({event.attributes[semconv.STREAM_ID] for event in road.taken}) == 1


def test_a_flush_tells_the_truth_about_a_store_that_is_down(road: Road) -> None:
    """`flush` returns False while nothing is confirmed, and everything arrives once the store is back."""
    road.down = True
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    delivery.committed(unit(1, 2, 3))
    assert not flush(delivery, 0.2)
    assert "closed" in delivery.metrics()["exporters"]["road"]["trouble"]
    road.down = False
    assert flush(delivery)
    assert [event.id for event in road.taken] == ["1", "2", "3"]
    assert delivery.metrics()["exporters"]["road"]["trouble"] is None
    assert delivery.metrics()["exporters"]["road"]["retries"] > 0


def test_what_exceeds_the_bound_is_dropped_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With the store down, the newest events are dropped, each is counted, and a line says how to mend it."""
    road = Road(capacity=5)
    road.down = True
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    delivery.committed(unit(0))
    wait_for(lambda: road.lane.trouble is not None)
    delivery.committed(unit(*range(1, 12)))
    wait_for(lambda: road.lane.dropped == 7)
    assert "OTEL_BLRP_MAX_QUEUE_SIZE=5" in caplog.text
    road.down = False
    assert flush(delivery)
    assert [event.id for event in road.taken] == ["0", "1", "2", "3", "4"]
    assert delivery.metrics()["dropped"] == 7
    road.close()


def test_a_working_exporter_is_waited_for() -> None:
    """One transaction larger than the queue loses nothing while the exporter makes progress."""
    road = Road(capacity=5)
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    delivery.committed(unit(*range(500)))
    assert flush(delivery)
    assert len(road.taken) == 500
    assert delivery.metrics()["dropped"] == 0
    road.close()


def test_a_stuck_exporter_does_not_hold_up_the_other() -> None:
    """Each road has its own bound: one store that is down costs the other nothing."""
    good, bad = Road(), Road(capacity=3)
    bad.down = True

    def both(event: Event) -> None:
        good.emit(event)
        bad.emit(event)

    delivery = QueuedDelivery([good.lane, bad.lane], both, capacity=1000)
    delivery.committed(unit(0))
    wait_for(lambda: bad.lane.trouble is not None)
    delivery.committed(unit(*range(1, 50)))
    wait_for(lambda: len(good.taken) == 50)
    assert bad.lane.pending == 3
    assert bad.lane.dropped == 47
    good.close()
    bad.close()


def test_one_odd_entry_costs_only_itself(road: Road, caplog: pytest.LogCaptureFixture) -> None:
    """An entry that cannot be encoded is logged; its neighbours arrive."""
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    odd = unit(1, 2)
    odd.entries.insert(1, Broken(9))
    delivery.committed(odd)
    assert flush(delivery)
    assert [event.id for event in road.taken] == ["1", "2"]
    assert "internal error while encoding" in caplog.text


def test_an_undecided_unit_is_delivered_as_unknown(road: Road) -> None:
    """A unit whose COMMIT may or may not have happened is neither hidden nor passed off as committed."""
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    delivery.undecided(unit(1), ConnectionError("cut"))
    delivery.aborted(unit(2))
    assert flush(delivery)
    assert [(event.id, event.attributes[semconv.COMMIT]) for event in road.taken] == [("1", "unknown")]
    assert delivery.metrics()["undecided"] == 1


def test_close_feeds_what_is_left_and_counts_what_comes_later(road: Road) -> None:
    """Nothing released before the end is forgotten; what comes after it is counted as dropped."""
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    delivery.committed(unit(1, 2))
    delivery.close(time.monotonic() + 5)
    assert road.lane.wait_until_empty(5)
    assert len(road.taken) == 2
    delivery.committed(unit(3))
    assert delivery.metrics()["dropped"] == 1


def test_many_threads_release_at_once(road: Road) -> None:
    """Concurrent releases lose nothing, and keep each unit together."""
    delivery = QueuedDelivery([road.lane], road.emit, capacity=100_000)

    def work(base: int) -> None:
        for number in range(50):
            first = base * 1000 + number * 3
            delivery.committed(unit(first, first + 1, first + 2))

    threads = [threading.Thread(target=work, args=(base,)) for base in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert flush(delivery)
    ids = [int(event.id) for event in road.taken]
    assert len(ids) == len(set(ids)) == 8 * 50 * 3
    assert all(ids[at + 1] == ids[at] + 1 and ids[at + 2] == ids[at] + 2 for at in range(0, len(ids), 3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_starts_with_an_empty_queue_and_a_stream_of_its_own(road: Road) -> None:
    """The parent's waiting events are the parent's to deliver; the child's sequence starts anew."""
    road.down = True
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    delivery.committed(unit(1, 2))
    stream = delivery._stream.id
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        delivery.after_fork()
        same = delivery._stream.id == stream
        os.write(writing, f"{delivery._waiting} {road.lane.pending} {same}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "0 0 False"
    os.waitpid(child, 0)
    road.down = False
    assert flush(delivery)
    assert len(road.taken) == 2


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something becomes true; fail after 10 seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.005)
