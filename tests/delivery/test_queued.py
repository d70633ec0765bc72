"""Delivery through memory: order, bounds, retries, truthfulness, fork."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_activity import semconv
from otel_activity.delivery import Backoff, Lane, QueuedDelivery
from otel_activity.errors import StoreUnavailable
from otel_activity.events import Commit, Event, Unit
from tests.interruptions import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUICK = Backoff(first=0.001, most=0.002)
MOST_FED = 100_000


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


def flush(delivery: QueuedDelivery, timeout: float = 60.0) -> bool:
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


def test_a_thread_whose_start_was_interrupted_is_started_by_the_next_unit() -> None:
    """Ctrl-C while the first transaction of a process starts the thread does not leave it without one."""
    number, where = 0, "somewhere"
    while where:
        number += 1
        road = Road()
        delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
        where = interrupted(
            number,
            ["delivery/feeder.py"],
            KeyboardInterrupt,
            lambda delivery=delivery: delivery.committed(unit(1)),  # type: ignore[misc]
        )
        delivery.committed(unit(2))
        wait_for(lambda road=road: len(road.taken) == 2)  # type: ignore[misc]
        delivery.close(time.monotonic() + 5)
        road.close()
    assert number > 3


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
    assert not flush(delivery)  # they are lost already; whoever asks now is told nevertheless
    assert [event.id for event in road.taken] == ["0", "1", "2", "3", "4"]
    assert delivery.metrics()["dropped"] == 7
    assert flush(delivery)  # once
    road.close()


def test_whoever_asks_is_told_of_what_was_lost_also_after_a_drain() -> None:
    """Waiting for the exporters on nobody's behalf, as a server's end does, keeps no loss from who asks."""
    road = Road()
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    delivery.committed(unit(1, kind=Broken))
    delivery.committed(unit(2))
    assert delivery.drain(60.0, poke=lambda: None)
    assert not flush(delivery)
    assert flush(delivery)
    delivery.committed(unit(3, kind=Broken))
    assert delivery.drain(60.0, poke=lambda: None)
    assert delivery.losses_untold()
    assert not delivery.losses_untold()
    assert flush(delivery)
    assert [event.id for event in road.taken] == ["2"]
    road.close()


def test_threads_that_never_stop_committing_do_not_put_off_what_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However much there is to feed, beats and gaps are looked at in between."""
    fed: list[int] = []
    looks: list[int] = []

    def emit_and_commit(event: Event) -> None:
        fed.append(int(event.id))
        if len(looks) < 2 and fed[-1] < MOST_FED:
            delivery.committed(unit(fed[-1] + 1))

    delivery = QueuedDelivery([], emit_and_commit, capacity=1000)
    monkeypatch.setattr(delivery, "_witness", lambda *, now: looks.append(len(fed)))
    delivery.committed(unit(0))
    wait_for(lambda: len(looks) > 1)
    assert flush(delivery)
    assert len(fed) < MOST_FED


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
    assert not flush(delivery)
    assert [event.id for event in road.taken] == ["1", "2"]
    assert flush(delivery)
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


def test_a_flush_does_not_wait_for_what_comes_after_it(road: Road) -> None:
    """Under steady load a flush is done when the events from before it are, though others are on the way."""
    delivery = QueuedDelivery([road.lane], road.emit, capacity=100_000)
    end = threading.Event()

    def work() -> None:
        number = 0
        while not end.is_set():
            number += 1
            delivery.committed(unit(number))
            if number % 20 == 0:
                time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert all(flush(delivery, 3.0) for _ in range(3))
    finally:
        end.set()
        thread.join()
    assert flush(delivery)


def test_a_flush_is_false_when_its_events_are_dropped() -> None:
    """Nobody is told that everything was confirmed while the bound cost events of this very flush."""
    road = Road(capacity=1)
    road.down = True
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    delivery.committed(unit(0))
    wait_for(lambda: road.lane.trouble is not None)
    delivery.committed(unit(1, 2))
    threading.Timer(0.5, setattr, (road, "down", False)).start()
    assert not flush(delivery)
    assert road.lane.dropped == 2
    road.close()


def test_a_failing_emit_costs_one_event_and_repeats_none() -> None:
    """An event that cannot be emitted is counted; those around it are emitted once, in order."""
    emitted: list[str] = []

    def emit(event: Event) -> None:
        if event.id == "2":
            raise KeyError("no such severity")
        emitted.append(event.id)

    delivery = QueuedDelivery([], emit, capacity=1000)
    delivery.committed(unit(1, 2, 3))
    delivery.committed(unit(4))
    assert not flush(delivery)
    assert emitted == ["1", "3", "4"]
    assert delivery.metrics()["dropped"] == 1


def test_a_flush_inside_the_feeding_thread_repeats_nothing() -> None:
    """A signal handler may flush in the middle of feeding: no event is fed twice, none is lost."""
    emitted: list[str] = []

    def emit(event: Event) -> None:
        emitted.append(event.id)
        if event.id == "2":
            delivery._pump()
            assert not flush(delivery, 0.01)

    delivery = QueuedDelivery([], emit, capacity=1000)
    delivery.committed(unit(1, 2, 3))
    delivery.committed(unit(4))
    assert flush(delivery)
    assert emitted == ["1", "2", "3", "4"]


class Raising(logging.Handler):
    """A handler of the application that has a bug."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError("bug in a handler")


@pytest.fixture
def handler() -> Iterator[Callable[[logging.Handler], None]]:
    """Adds a handler to our logger, for one test."""
    added: list[logging.Handler] = []

    def add(made: logging.Handler) -> None:
        logging.getLogger("otel_activity").addHandler(made)
        added.append(made)

    yield add
    for made in added:
        logging.getLogger("otel_activity").removeHandler(made)


def test_a_log_handler_that_raises_costs_no_event(
    road: Road, handler: Callable[[logging.Handler], None]
) -> None:
    """The application's own logging may be broken; retries go on and every event arrives."""
    handler(Raising())
    road.down = True
    delivery = QueuedDelivery([road.lane], road.emit, capacity=1000)
    delivery.committed(unit(1, 2))
    wait_for(lambda: road.lane.retries > 2)
    road.down = False
    assert flush(delivery)
    assert [event.id for event in road.taken] == ["1", "2"]


def test_a_log_handler_that_commits_does_not_recurse(handler: Callable[[logging.Handler], None]) -> None:
    """A handler that writes to the audited database is told of a full queue once, not for each drop."""
    lines: list[str] = []

    class Committing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            delivery.committed(unit(99))

    handler(Committing())
    delivery = QueuedDelivery([], lambda event: None, capacity=0)
    for number in range(50):
        delivery.committed(unit(number))
    assert len(lines) == 1
    assert delivery.metrics()["dropped"] == 51


def test_an_exporter_that_exits_its_thread_is_retried() -> None:
    """SystemExit out of an exporter would end the SDK's thread for good; it counts as a failure."""
    lane = Lane("odd", 10, backoff=QUICK)
    attempts: list[int] = []

    def attempt() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise SystemExit(1)

    assert lane.enter()
    assert lane.deliver(1, attempt)
    assert (lane.confirmed, lane.retries) == (1, 2)


def test_no_attempt_begins_after_the_time_is_up() -> None:
    """What is left when the time for shutting down is over is not tried: an attempt may take long."""
    lane = Lane("late", 10, backoff=QUICK)
    lane.stop(time.monotonic())
    attempts: list[int] = []
    assert not lane.deliver(1, lambda: attempts.append(1))
    assert attempts == []


def test_an_exporter_that_never_answers_does_not_hold_up_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full lane whose attempt hangs is not waited for: the events reach the other exporter."""
    monkeypatch.setattr("otel_activity.delivery.lane._PATIENCE", 0.1)
    good, hung = Road(), Road(capacity=1)
    answer = threading.Event()
    monkeypatch.setattr(hung, "_take", lambda event: answer.wait(30))

    def both(event: Event) -> None:
        good.emit(event)
        hung.emit(event)

    delivery = QueuedDelivery([good.lane, hung.lane], both, capacity=1000)
    delivery.committed(unit(*range(20)))
    wait_for(lambda: len(good.taken) == 20)
    assert hung.lane.trouble is None
    assert not answer.is_set()
    answer.set()
    good.close()
    hung.close()


def test_what_was_never_encoded_is_counted_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """With no time left, events that still wait are counted as lost, and a line says how many."""
    delivery = QueuedDelivery([], lambda event: time.sleep(0.2), capacity=1000)
    delivery.committed(unit(1, 2, 3))
    delivery.committed(unit(4, 5))
    delivery.close(time.monotonic())
    assert delivery.metrics()["dropped"] == 5
    assert "5 events were not encoded" in caplog.text


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
    """Wait until something becomes true; fail after 30 seconds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.005)
