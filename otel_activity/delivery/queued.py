"""Delivery through memory: released units wait in a queue, a thread encodes them and feeds the exporters."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from otel_activity.delivery.feeder import SLICE, Feeder
from otel_activity.delivery.lane import log_safely
from otel_activity.events import Commit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_activity.delivery.feeder import Overflow
    from otel_activity.delivery.lane import Lane
    from otel_activity.events import Entry, Event, Unit

__all__ = ["QueuedDelivery"]


class QueuedDelivery(Feeder):
    """A `ports.Delivery` that costs the request an append.

    What it survives: a store that is slow or down, up to the bound. What it does not: the end of the process
    by force. The bound is soft by one transaction: a unit that arrives below it is taken whole.

    Args:
        lanes: the roads out; each has room for `capacity` events.
        emit: hands one event to the SDK; called from one thread only.
        capacity: most events waiting to be encoded.
        overflow: what happens when a bound is reached.
        started: called when the first unit of a process was released.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        emit: Callable[[Event], None],
        *,
        capacity: int,
        overflow: Overflow | None = None,
        started: Callable[[], object] | None = None,
    ) -> None:
        self._emit = emit
        super().__init__(lanes, capacity=capacity, overflow=overflow, started=started)

    def _reset(self) -> None:
        super()._reset()
        self._position = 0
        self._units: deque[Unit] = deque()

    # --- ports.Delivery ----------------------------------------------------------------------

    def prepare(self, unit: Unit) -> None:
        """Nothing to make safe: this delivery does not outlive the process. But there must be room.

        Raises:
            DeliveryRefused: there is none, and the user chose not to commit then.
        """
        if self.overflow.policy == "drop":
            return
        full = self._full()
        if full is not None:
            self.overflow.refuse(full)
            for _ in self.overflow.waits():
                if self._full() is None:
                    return

    def _full(self) -> str | None:
        """Why the events of another transaction could be lost."""
        if self._closed:
            return None  # after the end there is nothing to wait for, and nobody to protect
        if self._waiting >= self.capacity:
            return f"{self.capacity} events wait to be encoded"
        for lane in self.lanes:
            if lane.pending >= lane.capacity:
                return f"{lane.capacity} events wait for {lane.name} ({lane.trouble or 'too many events'})"
        return None

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
        self._ensure_thread()
        if full:
            why = "after shutdown" if self._closed else f"more than {self.capacity} wait to be encoded"
            self._say("full", logging.ERROR, f"{self.dropped} events dropped so far ({why})")

    def aborted(self, unit: Unit) -> None:
        """Nothing of an aborted transaction is kept."""

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """Queue the unit as ``activity.commit=unknown``: nobody may guess, and nobody may hide it."""
        unit.commit = Commit.UNKNOWN
        self.undecided_units += 1
        self.committed(unit)

    # --- the feeding thread ------------------------------------------------------------------

    def _feed_all(self) -> None:
        """Encode and emit everything that waits."""
        since = 0
        while self._units and not self._expired():
            unit = self._units[0]
            # What was fed is remembered at once: an interrupted thread must not feed it twice.
            while self._position < len(unit.entries):
                entry = unit.entries[self._position]
                self._position += 1
                self._feed(entry, unit)
                since += 1
                if since >= SLICE:
                    since = 0
                    time.sleep(0)
            self._units.popleft()
            self._fed += self._position
            self._position = 0

    def _feed(self, entry: Entry, unit: Unit) -> None:
        event = self._encoded(entry, unit, unit.commit or Commit.UNKNOWN)
        if event is None:
            return
        try:
            for lane in self.lanes:
                while lane.clogged and not self._closed and not self._expired():
                    lane.wait_for_room(1.0)
            self._stream.stamp(event)
            self._emit(event)
        except Exception:  # noqa: BLE001 - one odd event costs itself, not the events behind it
            self._lost_one()

    # --- the end -----------------------------------------------------------------------------

    def close(self, deadline: float) -> None:
        """As `Feeder.close`; what could not be fed in time is lost."""
        super().close(deadline)
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
