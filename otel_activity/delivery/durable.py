"""Delivery that outlives the process: units are in a journal from COMMIT on until all exporters have them."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import uuid_utils

from otel_activity import semconv
from otel_activity.delivery.docket import Docket
from otel_activity.delivery.feeder import SLICE, TICK, Feeder
from otel_activity.delivery.gaps import DAMAGED, ENDED, JOURNAL_FULL, QUEUE_FULL, UNREADABLE, at_risk
from otel_activity.delivery.holding import (
    ABORTED,
    PREPARED,
    RELEASED,
    REPORTED,
    Held,
    Report,
    Road,
    Source,
    decided,
    decode_unit,
    encode_abort,
    encode_losses,
    encode_release,
    encode_unit,
    survivors,
    take_over,
)
from otel_activity.delivery.journal import Journal, JournalFull, Kept, orphans
from otel_activity.delivery.lane import log_safely
from otel_activity.delivery.streams import taken_over
from otel_activity.errors import ConfigurationError
from otel_activity.events import Commit, Verdict
from otel_activity.interruptions import pass_on
from otel_activity.semconv import ROLLED_BACK

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from otel_activity.delivery.feeder import Overflow
    from otel_activity.delivery.gaps import GapLog
    from otel_activity.delivery.holding import TakenOver
    from otel_activity.delivery.lane import Lane
    from otel_activity.delivery.streams import Heartbeat
    from otel_activity.events import Event, Unit
    from otel_activity.ports import Resolver

__all__ = ["DurableDelivery"]

_REPORTED: Final = Commit.REPORTED.value
_ADOPT_EVERY: Final = 30.0
"""Seconds between two looks for journals of processes that died beside this one."""
_MOST_BUSY: Final = 16
"""Journals of dead processes that are delivered at once: each takes up to three descriptors."""
_MOST_OPEN: Final = 128
"""The same with those that wait for a database to be asked."""
_SYNC_EVERY: Final = 1.0
_OPEN_EVERY: Final = 5.0
_READ_AGAIN: Final = 60.0
"""Seconds that a unit is waited for which the disk does not give back."""
_ENCODED: Final = 1024
"""Events encoded in the feeding thread before it turns to the lanes."""
_FULL: Final = "the journal is full"
_UNANSWERED: Final = "wait until the database says what became of their transactions"
_LAST_QUESTIONS: Final = 1.0
"""Seconds that the end waits for answers about undecided units; later, the next process asks."""


class DurableDelivery(Feeder):
    """A `ports.Delivery` that survives the process.

    `prepare` writes the encoded unit, one record; its fate follows as a mark. Released units are handed to
    the lanes as far as these have room. What does not fit stays in the journal and is read back later; in
    memory remains where it stands. A unit that cannot be journaled (journal or disk full) is delivered
    through memory, up to `capacity` events, as `QueuedDelivery` does.

    Args:
        lanes: the roads out.
        emit: hands one event to the SDK for one lane, with the resource that it is from if that is another
            process; called from one thread only.
        capacity: most events of released units in memory, those in the lanes not counted.
        home: the journals of all processes of this service are below it.
        fsync: ``always``, ``interval`` or ``never``.
        max_bytes: bound of the journal.
        resolver: is asked what became of units with a proof whose end nobody saw. Without one, and without
            a proof, they are delivered as `unknown`.
        overflow: what happens when a unit cannot be journaled.
        about: attributes of the resource of this process, for whoever takes its journal over.
        gaps: see `Feeder`.
        heartbeat: see `Feeder`.
        others: more directories like `home` whose journals are taken over.
        writes: whether there is a journal of its own; without it only what others left is delivered.
        given_up: exporters that dead processes had, and that nobody is to wait for.

    Raises:
        ConfigurationError: the journal cannot be written.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        emit: Callable[[Lane, Event, Mapping[str, Any] | None], None],
        *,
        capacity: int,
        home: Path,
        fsync: str = "interval",
        max_bytes: int = 1 << 30,
        resolver: Resolver | None = None,
        overflow: Overflow | None = None,
        about: Callable[[], Mapping[str, Any]] = dict,
        others: Sequence[Path] = (),
        writes: bool = True,
        given_up: Collection[str] = (),
        gaps: GapLog | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._emit = emit
        self._about = about
        self._homes = (home, *others)
        self._writes = writes
        self._given_up = given_up
        self._home = home
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._own: Source | None = None
        self._sources: list[Source] = []
        self._docket = None if resolver is None else Docket(resolver, self._resolved)
        super().__init__(lanes, capacity=capacity, overflow=overflow, gaps=gaps, heartbeat=heartbeat)
        for lane in self.lanes:
            lane.kept = True
        if not writes:
            return
        try:
            self._open()
        except OSError as error:
            raise ConfigurationError(
                "OTEL_ACTIVITY_JOURNAL_DIR",
                str(home),
                f"the journal cannot be written ({error.strerror or error})",
                "name a directory on a local disk that this user may write, or accept with "
                "OTEL_ACTIVITY_DELIVERY=best_effort that events are lost with the process",
            ) from None

    def _reset(self) -> None:
        super()._reset()
        self.unjournaled = 0
        self.lost_bytes = 0
        self.lost_records = self.lost_events = 0
        self.adopted = 0
        self._roads = [Road(lane) for lane in self.lanes]
        self._inbox: deque[Held] = deque()
        self._ended: deque[Held] = deque()
        self._in = self._taken_in = 0
        self._loose_in = self._loose_out = 0
        self._loose_asked = 0
        self.loose_released = self.loose_dropped = self.strict_released = self.bare_turned = 0
        # Each is counted up by one side only, so that the feeder needs no lock of a request.
        self._kept = self._let_go = 0
        self._adopted = threading.Event()
        self._adopt_at = self._sync_at = self._open_at = 0.0
        self._foreign: set[Path] = set()
        self._kept_away: dict[Path, int] = {}
        self._more = False
        self._adopting: Journal | None = None
        self._by_word: list[tuple[Held, Event]] = []
        self._bare_out = 0
        self._bare_since: int | None = None
        self._bare_key = str(uuid_utils.uuid7())
        self._accounted = self._lasting = False
        self._stuck_at: tuple[Held, float] | None = None

    def start(self) -> None:
        """Begin to deliver what dead processes left behind."""
        self._ensure_thread()

    def after_fork(self) -> None:
        """In a forked child: the journals are the parent's; one of its own is opened with the first unit."""
        taken = self._adopting
        for journal in (*(source.journal for source in self._sources), *(() if taken is None else (taken,))):
            journal.abandon()
        self._own = None
        self._sources = []
        if self._docket is not None:
            self._docket.after_fork()
        super().after_fork()

    def _open(self) -> None:
        names = [lane.name for lane in self.lanes]
        about: dict[str, Any] = {"resource": self._about(), "stream": self._stream.id, "exporters": names}
        if self._heartbeat is not None:
            about["heartbeat"] = self._heartbeat.interval
        journal = Journal.create(self._home, fsync=self._fsync, max_bytes=self._max_bytes, about=about)
        self._own = Source(journal, own=True)
        self._sources.append(self._own)

    def _journal(self) -> Source | None:
        """The source of this process, opened late in a forked child or after the end; None if that fails."""
        if self._own is None and self._writes and (self._lasting or not self._closed):
            with self._lock:
                now = time.monotonic()
                if self._own is None and now >= self._open_at:
                    self._open_at = now + _OPEN_EVERY
                    try:
                        self._open()
                    except OSError as error:
                        line = f"no journal can be opened in {self._home} ({error.strerror})"
                        self._say("open", logging.ERROR, line)
        return self._own

    # --- ports.Delivery ----------------------------------------------------------------------

    def prepare(self, unit: Unit) -> None:
        """Write the unit to the journal, encoded: its events have their final ids from here on.

        Raises:
            DeliveryRefused: it cannot be written, and the user chose not to commit then.
        """
        events: list[Event] = []
        for entry in unit.entries:
            try:
                events.append(entry.to_event(unit, Commit.REPORTED))
            except Exception as raised:  # noqa: BLE001 - one odd entry costs itself, not its neighbours
                pass_on(raised)
                self._lost_one()
        count = len(events)
        lanes = len(self.lanes)
        held = unit.prepared = Held(count, events, lanes, lanes, unit.proof)
        if not events:
            return
        trouble = self._write(held)
        if trouble is not None:
            self.overflow.refuse(trouble)
            trouble = self._wait_and_write(held, trouble)
            if trouble is not None:
                self._say("write", logging.ERROR, f"{trouble}; units go through memory only")

    def _wait_and_write(self, held: Held, trouble: str) -> str | None:
        """Write the unit as soon as there is room, if that is to be waited for; else why there is none.

        While nothing was deleted from a full journal nothing is tried: hundreds that wait would each encode
        their unit many times a second, and keep the thread from its work that makes the room.
        """
        room = -1
        for _ in self.overflow.waits():
            own = self._own
            now = 0 if own is None else own.journal.room
            if trouble.startswith(_FULL) and now <= room:
                continue
            room = now
            again = self._write(held)
            if again is None:
                return None
            trouble = again
        return trouble

    def _write(self, held: Held, *, bounded: bool = True) -> str | None:
        """Write the prepared unit; else why that is not possible."""
        source = self._own or self._journal()
        if source is None:
            return f"there is no journal in {self._home}"
        try:
            payload = encode_unit(held.events or [], held.proof)
            # The journal sets the place as it writes: an interruption (Ctrl-C, a timeout) leaves
            # either no record, or one that an abort can find.
            held.source = source
            source.journal.append(PREPARED, payload, unit=True, bounded=bounded, owner=held)
            if source.journal.always:
                self._secure_unit(source, held)
        except JournalFull:
            held.source = None
            return (
                f"{_FULL}; raise OTEL_ACTIVITY_JOURNAL_MAX_BYTES={self._max_bytes}, "
                "or mend the exporter that is behind"
            )
        except Exception as error:  # noqa: BLE001 - a journal in trouble never reaches the application
            pass_on(error)
            held.source = None
            if source is not self._own:  # it was closed just now, because the process ends
                return self._write(held, bounded=bounded)
            return f"a unit could not be journaled ({_reason(error)})"
        return None

    def _secure_unit(self, source: Source, held: Held) -> None:
        """Wait until the unit is on disk.

        Raises:
            OSError: nobody knows whether it is. It goes through memory, and its record is taken back.
        """
        place = held.place
        try:
            source.journal.secure(held.number)
        except OSError:
            with suppress(OSError):
                source.journal.append(ABORTED, encode_abort(held))
            held.place = None
            self._ended.append(Held(0, None, 0, 0, source=source, place=place))
            raise

    def committed(self, unit: Unit) -> None:
        """Mark the unit and hand it on."""
        held = unit.prepared
        if held is None or unit.error is not None or unit.commit is not Commit.REPORTED:
            held = self._held(unit, unit.commit or Commit.REPORTED)
        else:
            held.commit = _REPORTED
        self._release(held)

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """Have the database asked. If it cannot be, hand the unit on as ``activity.commit=unknown``."""
        unit.commit = Commit.UNKNOWN
        held = self._held(unit, Commit.UNKNOWN)
        if self._ask(held):
            if held.source is not None:
                held.events = None  # nobody knows for how long
        else:
            self.undecided_units += 1
            self._release(held)

    def aborted(self, unit: Unit) -> None:
        """Mark the unit, if it was prepared at all, so that nobody delivers it."""
        held = unit.prepared
        if held is not None:
            self._abort(held)
            unit.prepared = None  # afterwards, so that one that is interrupted can be made up for

    def _held(self, unit: Unit, commit: Commit) -> Held:
        """The prepared unit, with its fate."""
        if unit.prepared is None:
            self.prepare(unit)  # it failed, or was skipped: late is better than never
        held: Held = unit.prepared
        held.commit, held.error = commit.value, unit.error
        return held

    def _abort(self, held: Held) -> None:
        if held.source is not None and held.place is not None:
            self._secure(held.source, self._mark(held.source, ABORTED, encode_abort(held)))
            self._ended.append(held)

    def _release(self, held: Held) -> None:
        if not held.count:
            return
        if held.events is not None and held.commit is not _REPORTED:
            held.events = decided(held.events, held)
        if held.loose:
            self.let_in(held)
            return
        # Under one lock, so that units are released in the order of their marks.
        with self._lock:
            try:
                why = self._enter(held)
            except BaseException:
                # Interrupted, and its mark is written perhaps: no other may come between that and its place.
                self._enter(held)
                raise
            if why is not None:
                self.dropped += held.count
        if held.source is not None:
            self._secure(held.source, held.mark)
        elif not self._written[1]:
            self._write_down()
        if why is not None:
            self._lost(JOURNAL_FULL, held.count)
            self._say("dropped", logging.ERROR, f"{self.dropped} events dropped so far ({why})")
        if self._thread is None:
            self._ensure_thread()

    def _enter(self, held: Held) -> str | None:
        """Let a released unit in, its events too if there is room for them; else say why it is dropped."""
        if held.entered:
            return None  # interrupted behind this
        if self._closed and held.source is None:
            return "after shutdown"
        count = held.count
        if held.events is not None:
            in_memory = self._kept - self._let_go
            if in_memory and in_memory + count > self.capacity:
                if held.source is None:
                    return f"not journaled, and more than {self.capacity} wait in memory"
                held.events = None
        if held.source is not None:
            held.mark = self._mark(held.source, RELEASED, encode_release(held))
        # No call from here on: whoever is interrupted has done all of it or nothing.
        if held.events is not None:
            self._kept += count
        if held.source is None:
            self.unjournaled += count
        held.before = self._in
        self._in += count
        self._inbox += (held,)
        self.released += count
        held.entered = True
        return None

    def _let_in(self, held: Held) -> None:
        """Its place in the order in which units are fed; called under the lock, and not to be interrupted."""
        held.before = self._in
        self._in += held.count
        self._inbox.append(held)

    def _mark(self, source: Source, kind: int, payload: bytes) -> int:
        """Write the fate of a unit. One that cannot be written is `unknown` to whoever finds the journal."""
        try:
            return source.journal.append(kind, payload).number
        except Exception as error:  # noqa: BLE001 - as above: the transaction is over, whatever the disk does
            pass_on(error)
            line = f"the fate of a unit could not be journaled ({_reason(error)})"
            self._say("mark", logging.ERROR, line)
            return source.journal.last

    def _secure(self, source: Source, mark: int) -> None:
        """Wait until a mark is on disk, if that is wanted; outside of locks: many wait for one sync."""
        try:
            source.journal.secure(mark)
        except OSError as error:
            line = f"the fate of a unit could not be synced to disk ({_reason(error)})"
            self._say("mark", logging.ERROR, line)

    # --- in memory alone, by choice: see `delivery.memory` -------------------------------------

    def crowded(self) -> str | None:
        """Why the events of another unit that is in memory alone could be lost."""
        if self._closed:
            return None  # after the end there is nothing to wait for, and nobody to protect
        if self._loose_in - self._loose_out >= self.capacity:
            return f"{self.capacity} events wait in memory"
        if self._loose_asked >= self._most_loose:
            return f"{self._loose_asked} best-effort events {_UNANSWERED}"
        for road in self._roads:
            if road.loose >= self._most_loose and not road.lane.works:
                why = road.lane.trouble or "too many events"
                return f"{road.loose} best-effort events wait for {road.name} ({why})"
        return None

    @property
    def _most_loose(self) -> int:
        """Events in memory alone that may wait for one exporter that is down, or for a database that
        cannot be asked; the others need room, too.
        """
        return self.capacity // 2

    def let_in(self, held: Held) -> None:
        """Release a unit that is in memory alone, or drop it. The bound is soft by one unit."""
        count = held.count
        with self._lock:
            full = not held.entered and (self._closed or self._loose_in - self._loose_out >= self.capacity)
            if full:
                self.dropped += count
                self.loose_dropped += count
            elif not held.entered:
                # No call in here: whoever is interrupted has done all of it or nothing.
                self._loose_in += count
                held.before = self._in
                self._in += count
                self._inbox += (held,)
                self.released += count
                self.loose_released += count
                held.entered = True
        if full:
            self._lost(QUEUE_FULL, held.count)
            why = "after shutdown" if self._closed else f"more than {self.capacity} wait in memory"
            self._say("full", logging.ERROR, f"{self.dropped} events dropped so far ({why})")
        if self._thread is None:
            self._ensure_thread()

    def ask_or_release(self, held: Held) -> None:
        """Have the database asked about an encoded unit; if it cannot be, release it as it is.

        As long as nobody answers, no more than half of the capacity waits; what comes then is dropped. Nobody
        knows for how long that is, and to guess instead would report what may not have happened.
        """
        asks = self._docket is not None and held.proof is not None and held.count > 0
        with self._lock:
            most = self._most_loose
            full = asks and not held.asked and self._loose_asked >= most
            if full:
                self.dropped += held.count
                self.loose_dropped += held.count
            elif asks and not held.asked:
                self._loose_asked += held.count
                held.asked = True
        if full:
            self._lost(QUEUE_FULL, held.count)
            why = f"{self._loose_asked} {_UNANSWERED}"
            self._say("unanswered", logging.ERROR, f"{self.dropped} events dropped so far ({why})")
            if self._thread is None:
                self._ensure_thread()
        elif not self._ask(held):
            if asks:
                self._answered(held)
            self.undecided_units += 1
            self._release(held)

    def _answered(self, held: Held) -> None:
        """A unit no longer waits for the database."""
        with self._lock:
            if held.asked:
                self._loose_asked -= held.count
                held.asked = False

    def encode(self, unit: Unit) -> list[Event]:
        """The events of a unit, as committed; entries that cannot be encoded are lost."""
        encoded = (self._encoded(entry, unit, Commit.REPORTED) for entry in unit.entries)
        events = [event for event in encoded if event is not None]
        if len(events) < len(unit.entries):
            with self._lock:
                self.loose_dropped += len(unit.entries) - len(events)
        return events

    def _encode_late(self, held: Held, unit: Unit) -> None:
        held.events, held.late = self.encode(unit), None
        self._loose_out += held.count - len(held.events)
        held.count = len(held.events)

    def _line_up(self, road: Road, held: Held) -> None:
        """To the end of a road, unless that is full of what no journal keeps and leads nowhere now."""
        most = self._most_loose - held.count
        full = road.loose > most if held.loose else held.bare and road.bare > most and self._in_the_way(road)
        if full and not road.lane.works:
            road.turned_away(held)
            self._turned_away(road, held)
        else:
            road.add(held)

    def _turned_away(self, road: Road, held: Held) -> None:
        road.lane.turn_away(held.count)
        reason = JOURNAL_FULL if held.bare else QUEUE_FULL
        self._lost(reason, held.count, exporter=road.name, first=held.sequence)
        self._spill(held)
        if held.bare:
            self.bare_turned += held.count
            if held.unconfirmed == 0:
                self._served(held)

    def _shed(self, road: Road) -> None:
        """If its exporter no longer works, and more waits for it in memory than may."""
        most = self._most_loose
        if road.loose > most and not road.lane.works:
            for held in road.shed(most):
                self._turned_away(road, held)
        if road.bare > most and self._in_the_way(road):
            for held in road.shed(most, bare=True):
                self._turned_away(road, held)

    def _in_the_way(self, road: Road) -> bool:
        """Whether what no journal took, and waits for an exporter that is down, keeps the room of one that
        works. Were all of them down, there would be nobody to make room for.
        """
        return not road.lane.works and any(other.lane.works for other in self._roads)

    # --- about the trail itself --------------------------------------------------------------

    def _offer(self, event: Event) -> bool:
        """Through the journal like any unit, and beyond its bound; without one while the lanes work."""
        held = self._about_trail(event)
        if self._write(held, bounded=False) is not None and self._writes and self._until is None:
            stuck = any(lane.trouble is not None or lane.pending >= lane.capacity for lane in self.lanes)
            if stuck:
                return False
        if held.source is None:
            self._by_word.append((held, event))
        with self._lock:
            self._admit(held)
        return True

    @property
    def _at_risk(self) -> int:
        """Events that no journal took, and that some exporter has not confirmed."""
        return 0 if self._accounted else self.unjournaled - self._bare_out - len(self._by_word)

    def _untold(self) -> list[Event]:
        self._by_word = [(held, event) for held, event in self._by_word if held.unconfirmed]
        return [event for _, event in self._by_word]

    def _note(self, events: list[Event]) -> bool:
        """Beside the journal. Without one there is nobody who would find it."""
        risk = self._at_risk
        if risk:
            self._bare_since = self._bare_since or time.time_ns()
            events = [self._about_stream(at_risk(self._bare_key, risk, self._bare_since)), *events]
        source = self._own or (self._journal() if events else None)
        if source is None or source.journal.page is None:
            return not events or not self._writes
        source.journal.page.write(encode_losses(events))
        return True

    def _about_trail(self, event: Event) -> Held:
        lanes = len(self.lanes)
        return Held(1, [event], lanes, lanes, commit=_REPORTED, about_trail=True)

    def _admit(self, held: Held) -> None:
        """Let it in whatever is full; called under the lock."""
        self._kept += held.count
        if held.source is None:
            self.unjournaled += held.count
        else:
            held.mark = self._mark(held.source, RELEASED, encode_release(held))
        self._let_in(held)
        self.released += held.count

    # --- whose end nobody saw ----------------------------------------------------------------

    def _ask(self, held: Held) -> bool:
        """Whether there is somebody to ask about the unit; then it waits for the answer."""
        if self._docket is None or held.proof is None or not held.count:
            return False
        return self._docket.ask(held)

    def _not_asked(self, held: Held) -> None:
        """A unit of a dead process waits for nobody's answer any more."""
        if held.source is not None and not held.source.own:
            with self._lock:
                held.source.asked -= 1

    def _resolved(self, held: Held, verdict: Verdict) -> None:
        """The database said what became of a unit, or that it never will."""
        self._answered(held)
        self._not_asked(held)
        if verdict is Verdict.COMMITTED:
            held.commit, held.error = Commit.PROVEN.value, None
        elif verdict is Verdict.ABORTED:
            events = self._events_in_the_end(held)
            if events is None:
                return  # the next process asks again
            left = survivors(events)
            if not left:
                self._abort(held)
                return
            held.commit, held.error, held.count = ROLLED_BACK, None, len(left)
        else:
            self.undecided_units += 1
        self._release(held)

    def _events_in_the_end(self, held: Held) -> list[Event] | None:
        """As `_events`, in a thread that may wait until they can be read; None if that is after the end."""
        while not self._closed:
            try:
                return self._events(held)
            except OSError as error:
                if not self._hopes_to_read(held, error):
                    return []
                time.sleep(TICK)
        return None

    def _hopes_to_read(self, held: Held, error: OSError) -> bool:
        """Whether to wait for a unit that is on disk and cannot be read: a bad disk stays bad, and would hold
        up all that is behind.
        """
        line = f"a unit cannot be read from the journal ({_reason(error)}); it waits there"
        self._say("read", logging.ERROR, line)
        now = time.monotonic()
        if self._stuck_at is None or self._stuck_at[0] is not held:
            self._stuck_at = held, now
        return error.errno != errno.EIO or now - self._stuck_at[1] < _READ_AGAIN

    # --- the feeding thread ------------------------------------------------------------------

    @property
    def _entered(self) -> int:
        return self._in

    def _worth_waiting(self) -> bool:
        """Whether a lane that works is still being fed; what a stuck one has not taken is in the journal."""
        return (
            not self._adopted.is_set()
            or bool(self._inbox)
            or any(road.todo and road.lane.trouble is None for road in self._roads)
        )

    def _feed_all(self) -> None:
        """Take over, take in, hand on, note what was confirmed."""
        self._adopt_if_due()
        done_by = time.monotonic() + TICK
        while not self._expired():
            self._take_in()
            self._write_down()  # what has lost its place, before others get places behind it
            touched = [held for road in self._roads for held in self._feed(road)]
            for held in touched:
                self._spill(held)
            self._count_fed()
            self._settle()
            if (not touched and not self._inbox) or self._goes_on_later(done_by):
                break
        self._save_cursors()
        self._sync_if_due()

    def _pump(self) -> None:
        super()._pump()
        for road in self._roads:
            limit = road.limit
            if road.todo and road.lane.holds(limit) and not self._closed:
                # It works and is full: the next look comes as soon as there is room.
                road.lane.wait_for_room(TICK, limit)
                self._wake.set()

    def _take_in(self) -> None:
        """Give what was released its place in the stream, and each lane its reference."""
        encoded = 0
        while self._inbox and encoded < _ENCODED:
            held = self._inbox.popleft()
            end = held.before + held.count
            if held.late is not None:
                self._encode_late(held, held.late)
                encoded += held.count
            held.sequence = self._stream.reserve(held.count)
            for road in self._roads:
                if road.name not in held.skip:
                    self._line_up(road, held)
            for offset, event in enumerate(held.events or ()):
                self._stream.place(event, held.sequence + offset)
            self._taken_in = end
        while self._ended:
            self._finish(self._ended.popleft())

    def _feed(self, road: Road) -> list[Held]:
        """Hand a lane what it has room for; the units that were handed over whole."""
        taken: list[Held] = []
        lane = road.lane
        since = 0
        while road.todo and not self._expired():
            held = road.todo[0]
            if road.events is None:
                if lane.pending >= road.limit:
                    break
                road.events = self._decided_events(held)
                if road.events is None:
                    break
                road.at = road.gone = 0
            while road.at < len(road.events) and lane.pending < lane.capacity:
                event = road.events[road.at]
                # Counted first: an interrupted thread must not feed it twice.
                road.at += 1
                self._emit_one(road, event, held)
                since += 1
                if since >= SLICE:
                    since = 0
                    time.sleep(0)
            if road.at < len(road.events):
                break
            road.took(held)
            taken.append(held)
        if max(road.loose, road.bare) > self._most_loose:
            self._shed(road)
        return taken

    def _emit_one(self, road: Road, event: Event, held: Held) -> None:
        try:
            self._emit(road.lane, event, held.origin if held.source is None else held.source.origin)
        except Exception:  # noqa: BLE001 - one odd event costs itself, not the events behind it
            road.gone += 1
            if held.loose:
                with self._lock:
                    self.loose_dropped += 1
            self._lost_one(event.attributes.get(semconv.SEQUENCE))

    def _decided_events(self, held: Held) -> list[Event] | None:
        """The events of a released unit as they go out; None when they cannot be read just now."""
        if held.events is not None:
            return held.events
        try:
            events = decided(self._events(held), held)
        except OSError as error:
            if self._hopes_to_read(held, error):
                return None
            events = []
        self._stuck_at = None
        if len(events) != held.count:
            self._unreadable(held)
            return []
        for offset, event in enumerate(events):
            self._stream.place(event, held.sequence + offset)
        return events

    def _events(self, held: Held) -> list[Event]:
        """The events of a unit, read back from the journal if they are not in memory; none if they are lost.

        Raises:
            OSError: they are there, and cannot be read just now: no more descriptors, no permission.
        """
        if held.events is not None:
            return held.events
        source, place = held.source, held.place
        if source is not None and place is not None:
            with suppress(ValueError):
                payload = source.journal.read(place)
                if payload is not None:
                    return list(decode_unit(payload)[0])
        return []

    def _unreadable(self, held: Held) -> None:
        self.lost_records += 1
        self.lost_events += held.count
        self.dropped += held.count
        self._lost(DAMAGED, held.count, first=held.sequence or None)
        line = "otel_activity: a unit of %d events can no longer be read from the journal %s; it is lost"
        path = held.source.journal.path if held.source is not None else ""
        log_safely(logging.ERROR, line, held.count, path)

    def _spill(self, held: Held) -> None:
        """Let go of the events once a lane has them; a lane that is full will read them from the journal."""
        if held.events is not None and (held.untaken == 0 or held.source is not None):
            held.events = None
            if held.loose:
                self._loose_out += held.count
            else:
                self._let_go += held.count

    def _count_fed(self) -> None:
        """Everything before the first unit that some lane has not taken was fed."""
        self._fed = min((road.todo[0].before for road in self._roads if road.todo), default=self._taken_in)

    # --- confirmation ------------------------------------------------------------------------

    def _settle(self) -> None:
        """Note what the exporters confirmed, and finish units that all of them have."""
        for road in self._roads:
            for held in road.settled():
                if held.source is not None:
                    held.source.confirm(road.name, held.mark)
                held.unconfirmed -= 1
                if held.unconfirmed == 0:
                    self._served(held)

    def _served(self, held: Held) -> None:
        """All exporters of this process have it."""
        if held.source is None and not held.loose and not held.outboxed:
            self._bare_out += held.count
        if held.elsewhere and held.source is not None:
            held.source.keep()
        else:
            self._finish(held)

    def _finish(self, held: Held) -> None:
        place, held.place = held.place, None  # once, however often an abort was interrupted
        if held.source is not None and place is not None:
            held.source.finish(place)

    def _save_cursors(self) -> None:
        for source in tuple(self._sources):
            try:
                if source.gone:
                    self._see_off(source)
                elif source.done and not source.own:
                    self._sources.remove(source)
                    source.journal.close(remove=True)
                    self._foreign.discard(source.journal.path)
                elif source.served:
                    source.save()
                    self._sources.remove(source)
                    self._kept_away[source.journal.path] = source.kept
                    source.journal.leave_for(source.absent, source.kept)
                else:
                    source.save()
            except OSError as error:
                line = f"{source.journal.path} cannot be written ({_reason(error)})"
                self._say("cursor", logging.ERROR, line)

    def _see_off(self, source: Source) -> None:
        """A journal that is not where it was: nothing is written there, and nothing of it is deleted."""
        if source.done:
            self._sources.remove(source)
            source.journal.abandon()

    def _move_on(self, source: Source) -> None:
        """The journal of this process is gone; the next unit goes into another one."""
        source.gone = True
        self._own, self._open_at = None, 0.0
        log_safely(
            logging.ERROR,
            "otel_activity: somebody removed the journal %s; what waits there is delivered as far as it can "
            "be read, and another journal is begun",
            source.journal.path,
        )

    def _sync_if_due(self) -> None:
        now = time.monotonic()
        own = self._own
        if own is not None and now >= self._sync_at and not own.journal.in_place:
            self._move_on(own)
            own = None
        if own is not None and now >= self._sync_at:
            self._sync_at = now + _SYNC_EVERY
            try:
                own.journal.sync()
                if own.journal.page is not None and self._fsync != "never":
                    own.journal.page.sync()
            except OSError as error:
                line = f"the journal cannot be synced to disk ({_reason(error)})"
                self._say("sync", logging.ERROR, line)

    # --- dead processes ----------------------------------------------------------------------

    def _adopt_if_due(self) -> None:
        now = time.monotonic()
        if self._closed or now < self._adopt_at or (self._more and not self._may_adopt):
            return
        self._adopt_at = now + _ADOPT_EVERY
        try:
            # This process's own locks are not tried: another descriptor of the file would be refused anyway.
            self._foreign.update(source.journal.path for source in self._sources)
            for path in [path for path in self._kept_away if not path.exists()]:
                self._foreign.discard(path)
                del self._kept_away[path]
            self._more = any(self._adopt_all(home) for home in self._homes)
        except OSError as error:
            line = f"journals of dead processes cannot be read ({_reason(error)})"
            self._say("adopt", logging.ERROR, line)
        finally:
            self._adopted.set()
        if self._more:
            self._adopt_at = now

    @property
    def _may_adopt(self) -> bool:
        """Whether there is room for another journal: a host that has left thousands must not use up the
        descriptors of the process that finds them.
        """
        others = [source for source in tuple(self._sources) if not source.own]
        return len(others) < _MOST_OPEN and sum(source.busy for source in others) < _MOST_BUSY

    def _adopt_all(self, home: Path) -> bool:
        """Take over the journals of one service; whether some are left for later."""
        count, more = 0, False
        mine = {*(road.name for road in self._roads), *self._given_up}
        for journal in orphans(home, self._foreign, mine, self._leave):
            more = not self._may_adopt
            if more:
                journal.abandon()
                break
            self._adopting = journal
            self._foreign.add(journal.path)
            count += self._adopt(journal)
            self._adopting = None
        if count:
            line = "otel_activity: %d events that dead processes left in %s are taken over, for delivery here"
            log_safely(logging.WARNING, line, count, home)
        return more

    def _leave(self, kept: Kept) -> None:
        """Remember a journal that is there for others."""
        self._foreign.add(kept.path)
        self._kept_away[kept.path] = kept.units
        self._say_kept(kept.path, kept.absent)

    def _adopt(self, journal: Journal) -> int:
        """Take over one journal; how many events it holds."""
        try:
            found = take_over(journal, [road.name for road in self._roads], self._given_up)
        except (OSError, ValueError) as error:
            line = f"the journal {journal.path} is left alone ({_reason(error)})"
            self._say(f"adopt {journal.path}", logging.ERROR, line)
            journal.abandon()
            if isinstance(error, OSError):
                self._foreign.discard(journal.path)  # a full disk, perhaps: to be tried again
            return 0
        self._report(found)
        self._sources.append(found.source)
        self.undecided_units += sum(held.commit == Commit.UNKNOWN.value for held in found.released)
        last = self._last_word(journal, sum(held.count for held in found.released))
        with self._lock:
            for held in found.released:
                self._let_in(held)
                self.adopted += held.count
            if last is not None:
                self._admit(last)
        for held in found.undecided:
            self._adopt_undecided(held)
        return sum(held.count for held in (*found.released, *found.undecided))

    def _last_word(self, journal: Journal, count: int) -> Held | None:
        """The record that closes the stream of a dead process; None when neither has such records.

        One that had beats is closed also by an heir that has none, a relay above all: else its end would look
        lost for ever.
        """
        about = journal.about()
        stream, beats = about.get("stream"), about.get("heartbeat")
        if self._heartbeat is not None:
            beats = self._heartbeat.interval
        if not isinstance(stream, str) or not isinstance(beats, (int, float)):
            return None
        held = self._about_trail(taken_over(stream, count, float(beats)))
        self._write(held, bounded=False)
        return held

    def _adopt_undecided(self, held: Held) -> None:
        """A dead process left a unit between prepare and mark."""
        source = held.source
        if source is not None:
            with self._lock:
                source.asked += 1
        if self._ask(held):
            return
        self._not_asked(held)
        self.undecided_units += 1
        with self._lock:
            if source is not None:
                held.mark = self._mark(source, RELEASED, encode_release(held))
            self._let_in(held)
            self.adopted += held.count

    def _report(self, found: TakenOver) -> None:
        path, losses = found.source.journal.path, found.losses
        if found.absent:
            self._say_kept(path, found.absent)
        report = Report.of(losses).beyond(found.told)
        self.lost_bytes += report.skipped
        self.lost_records += report.records
        self.lost_events += report.events
        if not any(report):
            return
        self._lost(DAMAGED, report.events)
        self._lost(UNREADABLE, report.guessed)
        log_safely(
            logging.ERROR,
            "otel_activity: the journal %s is damaged: %d bytes are unreadable; %s%d records are lost, "
            "and %d events for certain",
            path,
            report.skipped,
            "at least " if losses.tail else "",
            report.records,
            report.events,
        )
        self._write_down()
        with suppress(OSError):  # then the next one to take it over reports it once more
            found.source.journal.append_soon(REPORTED, Report.of(losses).encoded())

    @staticmethod
    def _say_kept(path: Path, absent: Sequence[str]) -> None:
        log_safely(
            logging.WARNING,
            "otel_activity: the journal %s is kept: %s, which this process does not have, has not "
            "confirmed all of it; run otel-activity relay --journal with that exporter, or with "
            "--without %s to give it up",
            *(path, ", ".join(absent), absent[0]),
        )

    # --- the end -----------------------------------------------------------------------------

    def _flush(self, deadline: float, poke: Callable[[], None]) -> bool:
        """As `Feeder._flush`; what dead processes left, and what is still undecided, counts as well."""
        while not self._adopted.is_set() and not self._closed and time.monotonic() < deadline:
            self._hurry()
            self._adopted.wait(0.002)
        asked = True
        if self._docket is not None and not self._docket.wait(0.0):
            poke()
            asked = self._docket.wait(deadline)
        more = self._more  # before each look at what was let in: the last of them may come behind that
        done = super()._flush(deadline, poke)
        while done and more and time.monotonic() < deadline:
            self._hurry()
            time.sleep(0.002)
            more = self._more
            done = super()._flush(deadline, poke)
        looked = self._adopted.is_set() or self._closed
        return done and asked and looked and not more

    def _hurry(self) -> None:
        """Have the feeding thread look now; where there is none, look here."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._pump()
        else:
            self._wake.set()

    def _confirmed(self) -> None:
        """Write the cursors: the process may be ended by a signal right after its flush."""
        if self._pumper != threading.get_ident() and self._pumping.acquire(timeout=TICK):
            try:
                self._pumper = threading.get_ident()
                self._settle()
                self._save_cursors()
            finally:
                self._pumper = 0
                self._pumping.release()

    def close(self, deadline: float) -> None:
        """As `Feeder.close`; a question that is open stays in the journal for the next process."""
        if self._docket is not None:
            self._docket.wait(min(deadline, time.monotonic() + _LAST_QUESTIONS))
            for held in self._docket.close(deadline):
                self._answered(held)
                if held.source is None:  # nobody will ever ask about it again
                    self.undecided_units += 1
                    self._release(held)
        super().close(deadline)

    def abandon(self) -> None:
        """The process ends at once: say what stays."""
        units = sum(source.open for source in tuple(self._sources))
        if units:
            line = "otel_activity: %d transactions wait in %s; the next process of this service delivers them"
            log_safely(logging.WARNING, line, units, self._home)

    def finish(self) -> bool:
        """Note the last confirmations; keep what is left for the next start, remove what is not needed."""
        if not self._pumping.acquire(timeout=1.0):
            return False  # the feeder hangs in a disk that does not answer; the next start finds the journal
        try:
            left = self._last_account()
            self._save_cursors()
            self._write_down()
            sources, self._own = tuple(self._sources), None  # who commits from now on opens another one
            for source in sources:
                self._give_up(source)
            undecided = sum(source.open - source.kept for source in sources) - sum(
                held.source is not None for held in left
            )
            self._sources = [source for source in self._sources if source not in sources]
        finally:
            self._pumping.release()
        self._say_left(left)
        return not left and not undecided

    def _give_up(self, source: Source) -> None:
        if source.gone:
            source.journal.abandon()
            return
        try:
            # Under the lock: whoever prepares a unit right now does so before, and it stays, or after.
            with source.journal.at_rest():
                source.journal.close(remove=source.done and not (source.own and self._owes))
        except OSError as error:
            line = f"{source.journal.path} cannot be closed ({_reason(error)})"
            self._say("close", logging.ERROR, line)

    def outlast(self) -> None:
        """As `Feeder.outlast`: what is committed after the end is in a journal, for the next process."""
        self._lasting = True

    @property
    def _owes(self) -> bool:
        """Whether a loss is only on the page."""
        return self._unsaid or bool(self._untold())

    def last_words(self) -> None:
        """The process ends at once: leave in the journal that it took along what was in no journal."""
        if self._pumper != threading.get_ident() and self._pumping.acquire(timeout=TICK):
            try:
                self._last_account()
                self._write_down()
            finally:
                self._pumping.release()

    def _last_account(self) -> list[Held]:
        """Units that some exporter does not have; those that end with the process are accounted for."""
        while self._inbox or self._ended:
            self._take_in()
        self._settle()
        left = self._unsettled()
        lost = sum(held.count for held in left if held.source is None and not held.outboxed)
        if lost:
            self._accounted = True
            self._lost(ENDED, lost)
            self._witness(now=True)
            self._take_in()
            left = self._unsettled()
        return left

    def _unsettled(self) -> list[Held]:
        return list({id(held): held for road in self._roads for held in road.unsettled()}.values())

    def _say_left(self, left: list[Held]) -> None:
        kept = sum(held.count for held in left if held.source is not None)
        lost = sum(held.count for held in left if held.source is None and not held.outboxed)
        if kept:
            line = "otel_activity: %d events wait in %s; the next process of this service delivers them"
            log_safely(logging.WARNING, line, kept, self._home)
        if lost:
            self.dropped += lost
            self.loose_dropped += sum(held.count for held in left if held.loose)
            line = "otel_activity: %d events were not delivered before the process ended, and not journaled"
            log_safely(logging.ERROR, line, lost)

    def _deliveries(self) -> dict[str, dict[str, int]]:
        loose, strict, bare = self.loose_released, self.strict_released, self.bare_turned
        return {
            "best_effort": {"released": loose, "dropped": self.loose_dropped + self._on_the_way - bare},
            "durable": {
                "released": self.released - loose - strict,
                "dropped": self.dropped - self.loose_dropped + bare,
            },
            "strict": {"released": strict, "dropped": 0},
        }

    def metrics(self) -> dict[str, Any]:
        """Counters for `get_queue_metrics`."""
        sources = tuple(self._sources)
        left = sum(tuple(self._kept_away.values()))
        return {
            **super().metrics(),
            "journal": {
                "bytes": sum(source.journal.size for source in sources),
                "segments": sum(source.journal.segments for source in sources),
                "units": sum(source.open for source in sources) + left,
                "kept": sum(source.kept for source in sources) + left,
                "asked": 0 if self._docket is None else self._docket.units,
                "adopted": self.adopted,
                "unjournaled": self.unjournaled,
                "lost_bytes": self.lost_bytes,
                "lost_records": self.lost_records,
                "lost_events": self.lost_events,
            },
        }


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
