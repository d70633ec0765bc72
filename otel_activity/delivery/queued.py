"""Delivery through memory: released units wait in a queue, a thread encodes them and feeds the exporters."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import uuid_utils

from otel_activity import semconv
from otel_activity.events import Commit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_activity.delivery.lane import Lane
    from otel_activity.events import Entry, Event, Unit

__all__ = ["QueuedDelivery", "Stream"]

_logger: Final = logging.getLogger("otel_activity")
_TICK: Final = 0.1
"""Seconds between two looks at the queue. Polled, because waking a thread costs the request that does it."""
_SLICE: Final = 64
"""Events encoded before the thread offers the interpreter to the others."""


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
    """

    def __init__(self, lanes: Sequence[Lane], emit: Callable[[Event], None], *, capacity: int) -> None:
        self.lanes = tuple(lanes)
        self.capacity = capacity
        self.undecided_units = 0
        self.dropped = 0
        self.released = 0
        self._emit = emit
        self._stream = Stream()
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._units: deque[Unit] = deque()
        self._waiting = 0
        # Re-entrant, because a signal handler that flushes may interrupt their owner.
        self._lock = threading.RLock()
        self._pumping = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """In a forked child: an empty queue, a stream of its own, a thread of its own when needed."""
        self._reset()
        self._stream.restart()
        self.released = self.dropped = self.undecided_units = 0
        for lane in self.lanes:
            lane.after_fork()

    # --- ports.Delivery ----------------------------------------------------------------------

    def prepare(self, unit: Unit) -> None:
        """Nothing to make safe: this delivery does not outlive the process."""

    def committed(self, unit: Unit) -> None:
        """Queue the unit."""
        count = len(unit.entries)
        with self._lock:
            if self._waiting >= self.capacity or self._closed:
                self.dropped += count
                full = True
            else:
                self._units.append(unit)
                self._waiting += count
                self.released += count
                full = False
            start = self._thread is None and not self._closed
            if start:
                self._thread = threading.Thread(target=self._run, name="otel-activity-feeder", daemon=True)
        if start:
            self._start()
        if full:
            _logger.error(
                "otel_activity: %d events dropped (%s)",
                count,
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

    def _run(self) -> None:
        me = threading.current_thread()
        while not self._closed and self._thread is me:
            self._wake.wait(_TICK)
            self._wake.clear()
            try:
                self._pump()
            except Exception:
                _logger.exception("otel_activity: internal error in the feeder")
                time.sleep(_TICK)

    def _pump(self) -> None:
        """Encode and emit everything that waits."""
        with self._pumping:
            since = 0
            while self._units:
                unit = self._units[0]
                for entry in unit.entries:
                    event = _encoded(entry, unit)
                    if event is not None:
                        self._stream.stamp(event)
                        self._feed(event)
                    since += 1
                    if since >= _SLICE:
                        since = 0
                        time.sleep(0)
                self._units.popleft()
                with self._lock:
                    self._waiting -= len(unit.entries)

    def _feed(self, event: Event) -> None:
        for lane in self.lanes:
            while lane.pending >= lane.capacity and lane.trouble is None and not self._closed:
                lane.wait_for_room(1.0)
        self._emit(event)

    # --- the end -----------------------------------------------------------------------------

    def flush(self, timeout: float, poke: Callable[[], None]) -> bool:
        """Whether everything released until now was confirmed within `timeout` seconds.

        Args:
            timeout: seconds.
            poke: asks the exporters to send what they have, without waiting.
        """
        deadline = time.monotonic() + timeout
        self._wake.set()
        while self._waiting and time.monotonic() < deadline:
            if self._thread is None:
                self._pump()
            else:
                time.sleep(0.002)
        poke()
        if self._waiting:
            return False
        done = [lane.wait_until_empty(max(0.0, deadline - time.monotonic())) for lane in self.lanes]
        return all(done)

    def close(self, deadline: float) -> None:
        """Stop the thread and feed what is left; events released later are counted as dropped."""
        thread = self._thread
        self._wake.set()
        while self._waiting and time.monotonic() < deadline and thread is not None and thread.is_alive():
            time.sleep(0.002)
        with self._lock:
            self._closed = True
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._pumping.acquire(blocking=False):
            self._pumping.release()
            self._pump()

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


def _encoded(entry: Entry, unit: Unit) -> Event | None:
    try:
        return entry.to_event(unit, unit.commit or Commit.UNKNOWN)
    except Exception:
        _logger.exception("otel_activity: internal error while encoding an event; it is lost")
        return None
