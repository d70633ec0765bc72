"""The circuit breaker of an exporter: when it opens, how it probes, and that it closes for good."""

from __future__ import annotations

import random
import threading
from itertools import islice
from typing import TYPE_CHECKING

from otel_activity.delivery import Backoff, Breaker, Lane
from otel_activity.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable


class Pauses(Backoff):
    """Remembers every pause, and makes none."""

    def __init__(self) -> None:
        super().__init__(first=1.0, most=8.0, jitter=0.0)
        object.__setattr__(self, "made", [])

    def delays(self):  # type: ignore[no-untyped-def]  # as its parent
        for delay in super().delays():
            self.made.append(delay)  # type: ignore[attr-defined]
            yield 0.0


class Store:
    """Fails as long as it is told to; remembers the state of the circuit at each attempt."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.pauses = Pauses()
        self.lane = Lane("store", 1000, backoff=self.pauses)
        self.states: list[str] = []

    def attempt(self) -> None:
        self.states.append(self.lane.breaker.state)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("down")

    def deliver(self, batches: int) -> None:
        for _ in range(batches):
            assert self.lane.enter()
            assert self.lane.deliver(1, self.attempt)


def test_pauses_grow_and_have_jitter() -> None:
    """Each pause is up to twice the last one, never longer than the longest, and at least half of it."""
    delays = Backoff(first=0.1, most=5.0).delays()
    for longest in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0):
        assert longest / 2 <= next(delays) <= longest


def test_a_hiccup_opens_nothing() -> None:
    """Two failures in a row are retried with the circuit closed."""
    store = Store(failures=2)
    store.deliver(1)
    assert store.states == ["closed"] * 3
    assert store.lane.breaker.opened == 0


def test_after_three_failures_only_probes_are_made() -> None:
    """The circuit opens once; then each attempt is a probe after a longer pause, and success closes it."""
    store = Store(failures=6)
    store.deliver(1)
    assert store.states == ["closed"] * 3 + ["half-open"] * 4
    assert store.pauses.made == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert (store.lane.breaker.state, store.lane.breaker.opened) == ("closed", 1)


def test_what_waited_goes_out_without_a_pause() -> None:
    """After the probe succeeded 500 batches follow in as many attempts, and no pause is made."""
    store = Store(failures=5)
    store.deliver(500)
    assert len(store.states) == 505
    assert len(store.pauses.made) == 5
    assert store.lane.metrics()["confirmed"] == 500


def test_a_new_outage_begins_with_the_shortest_pause() -> None:
    """What was concluded from the last outage ends with it."""
    store = Store(failures=4)
    store.deliver(1)
    store.failures = 1
    store.deliver(1)
    assert store.pauses.made == [1.0, 2.0, 4.0, 8.0, 1.0]


def test_the_next_batch_inherits_the_outage() -> None:
    """Failures are counted for the exporter, not for the batch: one that follows is a probe, too."""
    store = Store(failures=5)
    for number in range(5):
        store.lane.breaker.trying()
        store.lane.breaker.failed()
        assert store.lane.breaker.failures == number + 1
    store.deliver(1)
    assert store.states[-1] == "half-open"


def test_the_state_can_be_watched() -> None:
    """While an exporter is down `get_queue_metrics` says `open` or `half-open`, afterwards `closed`."""
    up = threading.Event()
    lane = Lane("store", 10, backoff=Backoff(first=0.001, most=0.002))

    def attempt() -> None:
        if not up.is_set():
            raise StoreUnavailable("down")

    def watch(states: set[str]) -> None:
        while not states & {lane.metrics()["circuit"]}:
            threading.Event().wait(0.001)

    assert lane.enter()
    thread = threading.Thread(target=_deliver, args=(lane, attempt))
    thread.start()
    watch({"open", "half-open"})
    up.set()
    thread.join(10)
    assert lane.metrics()["circuit"] == "closed"


def _deliver(lane: Lane, attempt: Callable[[], None]) -> None:
    lane.deliver(1, attempt)


def test_a_child_has_a_breaker_of_its_own() -> None:
    """The parent's outage is not the child's."""
    breaker = Breaker()
    for _ in range(4):
        breaker.failed()
    breaker.after_fork()
    assert (breaker.state, breaker.failures) == ("closed", 0)


def test_the_jitter_takes_nothing_from_the_random_numbers_of_the_application() -> None:
    """A program that has seeded `random` gets the same numbers while an exporter is tried again."""
    random.seed(7)
    expected = random.random()
    random.seed(7)
    waits = list(islice(Backoff(first=1.0, most=1.0, jitter=0.5).delays(), 50))
    assert random.random() == expected
    assert len(set(waits)) > 1
    assert all(0.5 <= wait <= 1.0 for wait in waits)
