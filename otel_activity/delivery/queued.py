"""Delivery through memory: released units wait in a queue, a thread encodes them and feeds the exporters."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from otel_activity import semconv
from otel_activity.delivery.feeder import SLICE, TICK, Feeder
from otel_activity.delivery.gaps import ENDED, QUEUE_FULL
from otel_activity.delivery.holding import encode_losses
from otel_activity.delivery.lane import log_safely
from otel_activity.delivery.notes import leave, notebook, notes
from otel_activity.events import Commit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from otel_activity.delivery.feeder import Overflow
    from otel_activity.delivery.gaps import GapLog
    from otel_activity.delivery.journal import Journal
    from otel_activity.delivery.lane import Lane
    from otel_activity.delivery.notes import Note
    from otel_activity.delivery.streams import Heartbeat
    from otel_activity.events import Entry, Event, Unit

__all__ = ["QueuedDelivery"]

_QUEUED: Final = object()
"""What `Unit.prepared` is once the unit is in the queue."""
_MOST_LATE: Final = 64
"""Events about losses that wait for a lane which is full, while others have them."""


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
        emit_to: hands one event to the SDK for one lane.
        gaps: see `Feeder`.
        heartbeat: see `Feeder`.
        home: directory for what could not be said before the process ended; the next one says it.
        about: attributes of the resource of this process, for whoever finds it.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        emit: Callable[[Event], None],
        *,
        capacity: int,
        overflow: Overflow | None = None,
        started: Callable[[], object] | None = None,
        emit_to: Callable[[Lane, Event], None] | None = None,
        gaps: GapLog | None = None,
        heartbeat: Heartbeat | None = None,
        home: Path | None = None,
        about: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._emit = emit
        self._emit_to = emit_to
        self._home = home
        self._about = about
        super().__init__(
            lanes, capacity=capacity, overflow=overflow, started=started, gaps=gaps, heartbeat=heartbeat
        )

    def _reset(self) -> None:
        super()._reset()
        self._position = 0
        self._units: deque[Unit] = deque()
        self._late: deque[tuple[Lane, Event]] = deque()
        self._notes: list[Note] = []
        self._noted: list[int] | None = None
        self._notebook: Journal | None = None
        self._told: list[tuple[Event, list[int]]] = []

    def after_fork(self) -> None:
        """As `Feeder.after_fork`; what the parent writes down is the parent's."""
        kept = () if self._notebook is None else (self._notebook,)
        for journal in (*kept, *(note.journal for note in self._notes)):
            journal.abandon()
        super().after_fork()

    def start(self) -> None:
        """Open the stream, if it has records; say what processes before could not say any more."""
        if self._home is not None and self._gaps is not None:
            self._notes = list(notes(self._home))
            for note in self._notes:
                self._aside.extend(note.events)
        if self._heartbeat is not None or self._aside:
            self._ensure_thread()

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
            if unit.prepared is _QUEUED:  # it was interrupted behind this
                full = False
            else:
                full = self.released - self._fed >= self.capacity or self._closed
                if full:
                    self.dropped += count
                else:
                    # No call in here: whoever is interrupted has done all of it or nothing.
                    self._units += (unit,)
                    self.released += count
                    unit.prepared = _QUEUED
        if self._thread is None:
            self._ensure_thread()
        if full:
            self._lost(QUEUE_FULL, count)
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
        done_by = time.monotonic() + TICK
        while self._units and not self._expired() and not self._goes_on_later(done_by):
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
            self._lost_one(event.attributes.get(semconv.SEQUENCE))

    def _lost_on_lane(self, exporter: str, reason: str, count: int) -> None:
        """A full lane loses the event that was stamped just now, in this thread; others are anybody's."""
        first = self._stream.sequence if reason == QUEUE_FULL else None
        self._lost(reason, count, exporter=exporter, first=first)

    # --- about the trail itself --------------------------------------------------------------

    def _witness(self, *, now: bool) -> None:
        late, self._late = self._late, deque()
        for lane, event in late:
            self._send(lane, event)
        super()._witness(now=now)
        if self._notes and not self._aside and not self._late:
            self._forget_notes()

    def _forget_notes(self) -> None:
        """Remove the notes once every exporter has what they say."""
        if self._noted is None:
            self._noted = [lane.entered for lane in self.lanes]
        if any(lane.settled < mark for lane, mark in zip(self.lanes, self._noted, strict=True)):
            return
        for note in self._notes:
            with suppress(OSError):
                note.journal.close(remove=True)
        self._notes, self._noted = [], None

    def _free(self) -> bool:
        if not self.lanes:
            return True
        rooms = [lane.pending < lane.capacity for lane in self.lanes]
        return all(rooms) if self._emit_to is None else any(rooms) and len(self._late) < _MOST_LATE

    def _offer(self, event: Event) -> bool:
        """Only this thread enters the lanes: where there is room now, there will be."""
        if not self._free():
            return False
        try:
            self._stream.stamp(event)
            if self._emit_to is None or not self.lanes:
                self._emit(event)
            else:
                for lane in self.lanes:
                    self._send(lane, event)
        except Exception:  # noqa: BLE001 - as above
            self._lost_one(event.attributes.get(semconv.SEQUENCE))
        else:
            self._told.append((event, [lane.entered for lane in self.lanes]))
        return True

    def _untold(self) -> list[Event]:
        late = {event.id for _, event in self._late}
        self._told = [
            (event, marks)
            for event, marks in self._told
            if event.id in late
            or any(lane.settled < mark for lane, mark in zip(self.lanes, marks, strict=True))
        ]
        return [event for event, _ in self._told]

    def _note(self, events: list[Event]) -> bool:
        """In a journal that holds nothing else, made when the first loss is to be noted."""
        if self._home is None:
            return True
        events = self._not_in_notes(events)
        if not events:
            self._close_notebook(remove=True)
            return True
        if self._notebook is None:
            if self._pumper != threading.get_ident():
                return False  # not on the request's thread
            self._notebook = notebook(self._home, self._about())
        if self._notebook.page is not None:
            self._notebook.page.write(encode_losses(events))
        return True

    def _not_in_notes(self, events: list[Event]) -> list[Event]:
        """Without those that processes before this one left, and that are there until they have arrived."""
        known = {event.id for note in self._notes for event in note.events}
        return [event for event in events if event.id not in known]

    def _close_notebook(self, *, remove: bool) -> None:
        kept, self._notebook = self._notebook, None
        if kept is not None:
            with suppress(OSError):
                kept.close(remove=remove)

    def _send(self, lane: Lane, event: Event) -> None:
        """To one lane, later if it is full."""
        if lane.pending < lane.capacity and self._emit_to is not None:
            self._emit_to(lane, event)
        else:
            self._late.append((lane, event))

    # --- the end -----------------------------------------------------------------------------

    def _worth_waiting(self) -> bool:
        return super()._worth_waiting() or (self._unsaid and all(lane.trouble is None for lane in self.lanes))

    def finish(self) -> bool:
        """Nothing is kept here but what is still to be said. Whether there was nothing."""
        unsaid = self._unsaid
        self.last_words()
        return not unsaid

    def last_words(self) -> None:
        """Leave what could not be said any more to the next process."""
        if self._gaps is not None:
            self._aside.extend(self._about_stream(event) for event in self._gaps.take(now=True))
        unsaid = self._not_in_notes(list(self._aside))
        if self._notes:  # those of before are there still, unless all of it arrived
            if not self._aside and not self._late:
                self._forget_notes()
            for note in self._notes:
                with suppress(OSError):
                    note.journal.close(remove=False)
        self._aside.clear()
        if unsaid and self._home is not None:
            leave(self._home, self._about(), unsaid)
        self._write_down()
        self._close_notebook(remove=False)

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
            self._lost(ENDED, left)
            log_safely(
                logging.ERROR, "otel_activity: %d events were not encoded before the process ended", left
            )
