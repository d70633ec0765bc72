"""Delivery through memory: released units wait in a queue, a thread encodes them and feeds the exporters."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import uuid_utils

from otel_activity import semconv
from otel_activity.delivery.lane import log_safely
from otel_activity.events import Commit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_activity.delivery.lane import Lane
    from otel_activity.events import Entry, Event, Unit

__all__ = ["QueuedDelivery", "Stream"]

_TICK: Final = 0.1
"""Seconds between two looks at the queue. Polled, because waking a thread costs the request that does it."""
_SLICE: Final = 64
"""Events encoded before the thread offers the interpreter to the others."""
_REPEAT: Final = 60.0
"""Seconds between two log lines about a full queue."""
_NUDGE: Final = 0.25
"""Seconds after which a flush that still waits asks the exporters again."""


class Stream:
    """The order of events of one process: a stream id, and a sequence without gaps given at release."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a stream of its own, in a new process."""
        self.id = str(uuid_utils.uuid7())
        self.sequence = 0

    def stamp(self, event: Event) -> None:
        """Give the event its place."""
        self.sequence += 1
        event.attributes[semconv.STREAM_ID] = self.id
        event.attributes[semconv.SEQUENCE] = self.sequence


class QueuedDelivery:
    """A `ports.Delivery` that costs the request an append.

    What it survives: a store that is slow or down, up to the bound. What it does not: the end of the process
    by force. The bound is soft by one transaction: a unit that arrives below it is taken whole.

    Args:
        lanes: the roads out; each has room for `capacity` events.
        emit: hands one event to the SDK; called from one thread only.
        capacity: most events waiting to be encoded.
        started: called when the first unit of a process was released.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        emit: Callable[[Event], None],
        *,
        capacity: int,
        started: Callable[[], object] | None = None,
    ) -> None:
        self.lanes = tuple(lanes)
        self.capacity = capacity
        self._emit = emit
        self._started = started
        self._stream = Stream()
        self._closed = False
        self._until: float | None = None
        self._reset()

    def _reset(self) -> None:
        self.released = self.dropped = self.undecided_units = 0
        self._fed = 0
        self._position = 0
        self._units: deque[Unit] = deque()
        self._said = -_REPEAT
        # Re-entrant, because a signal handler that commits may interrupt its owner.
        self._lock = threading.RLock()
        self._pumping = threading.Lock()
        self._pumper = 0
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """In a forked child: an empty queue, a stream of its own, a thread of its own when needed."""
        self._reset()
        self._stream.restart()
        for lane in self.lanes:
            lane.after_fork()

    @property
    def _waiting(self) -> int:
        """Events that are released and not fed to the exporters yet."""
        return self.released - self._fed

    # --- ports.Delivery ----------------------------------------------------------------------

    def prepare(self, unit: Unit) -> None:
        """Nothing to make safe: this delivery does not outlive the process."""

    def committed(self, unit: Unit) -> None:
        """Queue the unit."""
        count = len(unit.entries)
        with self._lock:
            full = self.released - self._fed >= self.capacity or self._closed
            if full:
                self.dropped += count
            else:
                self._units.append(unit)
                self.released += count
            start = self._thread is None and not self._closed
            if start:
                self._thread = threading.Thread(target=self._run, name="otel-activity-feeder", daemon=True)
        if start:
            self._start()
        if full:
            self._say_full()

    def _say_full(self) -> None:
        """One line a minute: every commit of an outage comes here, even that of a handler which logs to
        the audited database.
        """
        now = time.monotonic()
        if now - self._said < _REPEAT:
            return
        self._said = now
        log_safely(
            logging.ERROR,
            "otel_activity: %d events dropped so far (%s)",
            self.dropped,
            "after shutdown" if self._closed else f"more than {self.capacity} wait to be encoded",
        )

    def aborted(self, unit: Unit) -> None:
        """Nothing of an aborted transaction is kept."""

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """Queue the unit as ``activity.commit=unknown``: nobody may guess, and nobody may hide it."""
        unit.commit = Commit.UNKNOWN
        self.undecided_units += 1
        self.committed(unit)

    # --- the feeding thread ------------------------------------------------------------------

    def _start(self) -> None:
        thread = self._thread
        try:
            if thread is not None:
                thread.start()
        except RuntimeError:
            # The interpreter is shutting down: the last flush pumps in its own thread.
            self._thread = None
            return
        if self._started is not None:
            self._started()

    def _run(self) -> None:
        me = threading.current_thread()
        try:
            while not self._closed and self._thread is me:
                self._wake.wait(_TICK)
                self._wake.clear()
                self._pump()
        finally:
            if self._thread is me:
                self._thread = None  # whatever ended it: the next release starts another

    def _pump(self) -> None:
        """Encode and emit everything that waits."""
        if self._pumper == threading.get_ident():
            return  # in a signal handler that interrupted this very thread here: it cannot go on before us
        if not self._pumping.acquire(timeout=1.0):
            return
        try:
            self._pumper = threading.get_ident()
            self._feed_units()
        finally:
            self._pumper = 0
            self._pumping.release()

    def _feed_units(self) -> None:
        since = 0
        while self._units and not self._expired():
            unit = self._units[0]
            # What was fed is remembered at once: an interrupted thread must not feed it twice.
            while self._position < len(unit.entries):
                entry = unit.entries[self._position]
                self._position += 1
                self._feed(entry, unit)
                since += 1
                if since >= _SLICE:
                    since = 0
                    time.sleep(0)
            self._units.popleft()
            self._fed += self._position
            self._position = 0

    def _feed(self, entry: Entry, unit: Unit) -> None:
        try:
            event = entry.to_event(unit, unit.commit or Commit.UNKNOWN)
            for lane in self.lanes:
                while lane.clogged and not self._closed and not self._expired():
                    lane.wait_for_room(1.0)
            self._stream.stamp(event)
            self._emit(event)
        except Exception:  # noqa: BLE001 - one odd event costs itself, not the events behind it
            self.dropped += 1
            log_safely(
                logging.ERROR,
                "otel_activity: internal error while encoding an event; it is lost",
                exc_info=True,
            )

    def _expired(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    # --- the end -----------------------------------------------------------------------------

    def flush(self, timeout: float, poke: Callable[[], None]) -> bool:
        """Whether everything released until now was confirmed within `timeout` seconds.

        What is released meanwhile is not waited for.

        Args:
            timeout: seconds.
            poke: asks the exporters to send what they have, without waiting.
        """
        deadline = time.monotonic() + timeout
        released = self.released
        dropped = [lane.dropped for lane in self.lanes]
        self._wake.set()
        while self._fed < released and time.monotonic() < deadline:
            thread = self._thread
            if thread is None or not thread.is_alive():
                self._pump()
            if self._fed < released:
                time.sleep(0.002)
        poke()
        if self._fed < released:
            return False
        marks = [lane.entered for lane in self.lanes]
        left = [self._left(lane, mark, deadline, poke) for lane, mark in zip(self.lanes, marks, strict=True)]
        return all(left) and dropped == [lane.dropped for lane in self.lanes]

    @staticmethod
    def _left(lane: Lane, mark: int, deadline: float, poke: Callable[[], None]) -> bool:
        while not lane.wait_for_mark(mark, max(0.0, min(_NUDGE, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return False
            poke()
        return True

    def close(self, deadline: float) -> None:
        """Stop the thread and feed what is left; events released later are counted as dropped."""
        thread = self._thread
        self._until = deadline
        self._wake.set()
        while self._waiting and time.monotonic() < deadline and thread is not None and thread.is_alive():
            time.sleep(0.002)
        if thread is None or not thread.is_alive():
            self._pump()
        with self._lock:
            self._closed = True
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._pump()
        self.abandon()

    def abandon(self) -> None:
        """The process ends: count what was never fed as lost, and say so."""
        left = self._waiting
        if left > 0:
            self.dropped += left
            self._fed += left
            log_safely(
                logging.ERROR, "otel_activity: %d events were not encoded before the process ended", left
            )

    def metrics(self) -> dict[str, Any]:
        """Counters for `get_queue_metrics`."""
        return {
            "waiting": self._waiting,
            "released": self.released,
            "dropped": self.dropped + sum(lane.dropped for lane in self.lanes),
            "undecided": self.undecided_units,
            "exporters": {
                lane.name: {
                    "pending": lane.pending,
                    "confirmed": lane.confirmed,
                    "dropped": lane.dropped,
                    "retries": lane.retries,
                    "trouble": lane.trouble,
                }
                for lane in self.lanes
            },
        }
