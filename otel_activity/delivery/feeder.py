"""The feeding thread, and what every delivery class does with it: start, flush, close, count."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import uuid_utils

from otel_activity import semconv
from otel_activity.delivery.gaps import NOT_ENCODED
from otel_activity.delivery.lane import log_safely
from otel_activity.errors import DeliveryRefused
from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from otel_activity.delivery.gaps import GapLog
    from otel_activity.delivery.lane import Lane
    from otel_activity.delivery.streams import Heartbeat
    from otel_activity.events import Commit, Entry, Event, Unit

__all__ = ["REPEAT", "SLICE", "TICK", "Feeder", "Overflow", "Stream"]

TICK: Final = 0.1
"""Seconds between two looks at the queue. Polled, because waking a thread costs the request that does it."""
SLICE: Final = 64
"""Events handled before the thread offers the interpreter to the others."""
REPEAT: Final = 60.0
"""Seconds between two log lines about the same trouble."""
_LOOK: Final = 0.01
"""Seconds until the first look for room, while a COMMIT waits for it."""
_LOOK_LATER: Final = 0.05
"""Seconds between two later ones: hundreds may wait."""
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
        """Give the event the next place."""
        self.place(event, self.reserve(1))

    def reserve(self, count: int) -> int:
        """Keep places for so many events; the first of them."""
        first = self.sequence + 1
        self.sequence += count
        return first

    def place(self, event: Event, sequence: int) -> None:
        """Give the event a place that was reserved."""
        event.place(self.id, sequence)


@dataclass(frozen=True)
class Overflow:
    """What happens to a transaction when a bound is reached.

    Attributes:
        policy: ``drop``: it is committed, and its events are lost if nothing takes them. ``block``: its
            COMMIT waits for room first. ``fail``: it is not committed.
        timeout: seconds that ``block`` waits.
    """

    policy: str = "drop"
    timeout: float = 5.0

    def refuse(self, why: str) -> None:
        """Raise if nothing may be lost.

        Raises:
            DeliveryRefused: the policy is ``fail``.
        """
        if self.policy == "fail":
            raise DeliveryRefused(f"not committed, because {why} (OTEL_ACTIVITY_OVERFLOW=fail)")

    def waits(self) -> Iterator[None]:
        """One round for each look whether there is room, until the time is up; none unless it blocks."""
        if self.policy != "block":
            return
        deadline = time.monotonic() + self.timeout
        pause = _LOOK
        while time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 1.5, _LOOK_LATER)
            yield


class Feeder:
    """A thread that takes released units to the lanes; a delivery class says how.

    Args:
        lanes: the roads out.
        capacity: most events that wait in memory for the thread.
        overflow: what happens when a bound is reached.
        started: called when the first unit of a process was released.
        gaps: collects losses, which become events; without it they are only counted and logged.
        heartbeat: makes the records of the stream; without it there are none.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        capacity: int,
        overflow: Overflow | None = None,
        started: Callable[[], object] | None = None,
        gaps: GapLog | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.lanes = tuple(lanes)
        self.capacity = capacity
        self.overflow = overflow or Overflow()
        self._started = started
        self._stream = Stream()
        self._closed = False
        self._until: float | None = None
        self._gaps = gaps
        self._heartbeat = heartbeat
        if gaps is not None:
            gaps.opened = self._write_down
        for lane in self.lanes:
            lane.lost = self._lost_on_lane
        self._reset()

    def _reset(self) -> None:
        """Empty, as in a new process."""
        self.released = self.dropped = self.undecided_units = 0
        self._losses_told = 0
        self._fed = 0
        self._said: dict[str, float] = {}
        self._aside: deque[Event] = deque()
        self._written: tuple[int, int, tuple[str, ...]] = (0, 0, ())
        self._writing = False
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
        if self._gaps is not None:
            self._gaps.after_fork()
        if self._heartbeat is not None:
            self._heartbeat.after_fork()
        for lane in self.lanes:
            lane.after_fork()

    # --- what a delivery class says ----------------------------------------------------------

    @property
    def _entered(self) -> int:
        """Events that were ever let in, in the order in which they are fed."""
        return self.released

    @property
    def _waiting(self) -> int:
        """Events that were let in and not fed to the exporters yet."""
        return self._entered - self._fed

    def _feed_all(self) -> None:
        """Feed the exporters, in the feeding thread or in one that stands in for it; never in two."""
        raise NotImplementedError

    def _worth_waiting(self) -> bool:
        """Whether waiting at the end may still bring events to the exporters."""
        return self._waiting > 0

    def _confirmed(self) -> None:
        """A flush found everything confirmed."""

    def start(self) -> None:
        """The process begins to be audited."""

    def outlast(self) -> None:
        """The process ends, and other threads may commit until it is gone: keep that, if anything can."""

    def last_words(self) -> None:
        """The exporters are given up: write down what cannot be said any more."""

    def finish(self) -> bool:
        """The exporters are shut down: nothing will be confirmed any more. Whether nothing was left."""
        return True

    # --- the feeding thread ------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        """Start the thread if there is none."""
        if self._thread is not None or self._closed:
            return
        thread = threading.Thread(target=self._run, name="otel-activity-feeder", daemon=True)
        try:
            with self._lock:
                start = self._thread is None and not self._closed
                if start:
                    self._thread = thread
            if start:
                thread.start()
        except RuntimeError:
            # The interpreter is shutting down: the last flush pumps in its own thread.
            self._thread = None
            return
        except BaseException:
            if self._thread is thread:
                self._thread = None  # interrupted; if the thread runs nevertheless, it ends by itself
            raise
        if start and self._started is not None:
            self._started()

    def _run(self) -> None:
        me = threading.current_thread()
        try:
            while not self._closed and self._thread is me:
                self._wake.wait(TICK)
                self._wake.clear()
                self._pump()
        finally:
            if self._thread is me:
                self._thread = None  # whatever ended it: the next release starts another

    def _pump(self) -> None:
        """Feed what waits, unless somebody is at it."""
        if self._pumper == threading.get_ident():
            return  # in a signal handler that interrupted this very thread here: it cannot go on before us
        if not self._pumping.acquire(timeout=1.0):
            return
        try:
            self._pumper = threading.get_ident()
            self._witness(now=self._until is not None)
            self._feed_all()
        finally:
            self._pumper = 0
            self._pumping.release()

    # --- about the trail itself --------------------------------------------------------------

    def _offer(self, event: Event) -> bool:
        """Take an event that is not a user's and must not be lost; False when there is no room for it now."""
        raise NotImplementedError

    def _free(self) -> bool:
        """Whether an event that is offered would be taken."""
        return True

    def _witness(self, *, now: bool) -> None:
        """Hand on what there is to say about losses and the stream; what finds no room is kept aside."""
        if self._heartbeat is not None and not self._aside and not self._closed:
            beat = self._heartbeat.due(self._stream.id)
            if beat is not None:
                self._aside.append(beat)
        if self._gaps and self._free():
            self._aside.extend(self._about_stream(event) for event in self._gaps.take(now=now))
        self._write_down()
        while self._aside and self._offer(self._aside[0]):
            self._aside.popleft()
        self._write_down()

    def _write_down(self) -> None:
        """Losses that no event tells of yet, in case this process is killed now; from any thread."""
        gaps = self._gaps
        if gaps is None:
            return
        with gaps.lock:
            if self._writing:
                return  # in a signal handler that interrupted this very thread here; the feeder comes again
            self._writing = True
            try:
                untold = [
                    event for event in (*tuple(self._aside), *self._untold()) if event.name == semconv.GAP
                ]
                written = gaps.version, self._at_risk, tuple(event.id for event in untold)
                if written != self._written:
                    untold += (self._about_stream(event) for event in gaps.still_open())
                    if self._note(untold):
                        self._written = written
            except Exception as error:  # noqa: BLE001 - what is lost is lost; nobody may be hurt by it as well
                pass_on(error)
                line = f"what was lost cannot be written down ({type(error).__name__})"
                self._say("note", logging.ERROR, line)
            finally:
                self._writing = False

    @property
    def _at_risk(self) -> int:
        """Events that should not be in memory alone, and are."""
        return 0

    def _untold(self) -> list[Event]:
        """Events that were taken and are kept nowhere, and that some exporter has not confirmed."""
        return []

    def _note(self, events: list[Event]) -> bool:
        """Write down what is to be said of losses if this process is killed; False when that is to come.

        Raises:
            OSError: it cannot be written.
        """
        return True

    def _about_stream(self, event: Event) -> Event:
        """A process that takes over a journal delivers this in its own stream: it must say which is meant."""
        event.attributes.setdefault(semconv.STREAM_SUBJECT, self._stream.id)
        return event

    @property
    def _unsaid(self) -> bool:
        """Whether a loss was not handed on yet."""
        return bool(self._gaps) or bool(self._aside)

    def _witness_now(self) -> None:
        """As the feeding thread would when a window is over, at once."""
        if self._pumper == threading.get_ident() or not self._pumping.acquire(timeout=1.0):
            return
        try:
            self._pumper = threading.get_ident()
            self._witness(now=True)
            self._feed_all()
        finally:
            self._pumper = 0
            self._pumping.release()

    def leave(self) -> None:
        """Close the stream, after everything that was released: the process ends."""
        event = None if self._heartbeat is None else self._heartbeat.closed(self._stream.id)
        self._heartbeat = None
        if event is not None:
            self._aside.append(event)
            self._witness_now()

    def _lost(
        self, reason: str, count: int, *, exporter: str | None = None, first: int | None = None
    ) -> None:
        if self._gaps is not None:
            self._gaps.lost(reason, count, exporter=exporter, first=first)

    def _lost_on_lane(self, exporter: str, reason: str, count: int) -> None:
        """A lane lost events."""
        self._lost(reason, count, exporter=exporter)

    def _encoded(self, entry: Entry, unit: Unit, commit: Commit) -> Event | None:
        """The entry as an event; None, counted and logged, when that fails: its neighbours go on."""
        try:
            return entry.to_event(unit, commit)
        except Exception as raised:  # noqa: BLE001 - see above
            pass_on(raised)
            self._lost_one()
            return None

    def _lost_one(self, sequence: int | None = None) -> None:
        self.dropped += 1
        self._lost(NOT_ENCODED, 1, first=sequence)
        line = f"internal error while encoding an event; it is lost ({self.dropped} dropped so far)"
        self._say("encode", logging.ERROR, line, exc_info=True)

    def _goes_on_later(self, done_by: float) -> bool:
        """Whether to leave off feeding after a while, and come back at once.

        Threads that commit all the time leave something to feed all the time, and what else is due (beats,
        the sync of the journal, the notes of what was confirmed) must not wait until they stop.
        """
        if self._until is not None or time.monotonic() < done_by:
            return False
        self._wake.set()
        return True

    def _expired(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    # --- the end -----------------------------------------------------------------------------

    def flush(self, timeout: float, poke: Callable[[], None]) -> bool:
        """Whether everything released since the last flush was confirmed within `timeout` seconds.

        What is released meanwhile is not waited for. What was lost since the last flush makes this one false,
        also if it was lost before the call: whoever asks is told of each loss once.

        Args:
            timeout: seconds.
            poke: asks the exporters to send what they have, without waiting.
        """
        told = self._losses_told  # two threads that ask at the same time are both told
        done = self.drain(timeout, poke)
        self._losses_told = self._lost_so_far
        return done and told == self._losses_told

    def drain(self, timeout: float, poke: Callable[[], None]) -> bool:
        """As `flush`, for a caller who passes on to nobody what was lost: the next flush tells of it still.

        Whether everything released until now has left, taken or lost.

        Args:
            timeout: seconds.
            poke: asks the exporters to send what they have, without waiting.
        """
        return self._flush(time.monotonic() + timeout, poke)

    def losses_untold(self) -> bool:
        """Whether events were lost since the last flush; now that is told."""
        told, self._losses_told = self._losses_told, self._lost_so_far
        return told != self._losses_told

    def _flush(self, deadline: float, poke: Callable[[], None]) -> bool:
        """Whether everything released until now has left the lanes, taken or lost."""
        owed = self._unsaid  # perhaps the feeding thread says it meanwhile
        entered = self._entered
        self._wake.set()
        self._wait_fed(entered, deadline)
        poke()
        if self._fed < entered:
            return False
        left = self._all_left(deadline, poke)
        if (owed or self._unsaid) and all(left):  # the way is free: what was lost is said now
            self._witness_now()
            self._wait_fed(self._entered, deadline)
            poke()
            left = self._all_left(deadline, poke)
        self._confirmed()
        return all(left)

    @property
    def _lost_so_far(self) -> int:
        """Events that some exporter will never have."""
        return self.dropped + sum(lane.dropped for lane in self.lanes)

    def _all_left(self, deadline: float, poke: Callable[[], None]) -> list[bool]:
        marks = [lane.entered for lane in self.lanes]
        return [self._left(lane, mark, deadline, poke) for lane, mark in zip(self.lanes, marks, strict=True)]

    def _wait_fed(self, entered: int, deadline: float) -> None:
        while self._fed < entered and time.monotonic() < deadline:
            thread = self._thread
            if thread is None or not thread.is_alive():
                self._pump()
            if self._fed < entered:
                time.sleep(0.002)

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
        while (
            self._worth_waiting() and time.monotonic() < deadline and thread is not None and thread.is_alive()
        ):
            time.sleep(0.002)
        if thread is None or not thread.is_alive():
            self._pump()
        with self._lock:
            self._closed = True
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._pump()
        self.leave()

    def abandon(self) -> None:
        """The process ends at once: count what was not fed, and is kept nowhere, as lost; say what stays."""
        raise NotImplementedError

    def metrics(self) -> dict[str, Any]:
        """Counters for `get_queue_metrics`."""
        return {
            "waiting": self._waiting,
            "released": self.released,
            "dropped": self.dropped + sum(lane.dropped for lane in self.lanes),
            "deliveries": self._deliveries(),
            "undecided": self.undecided_units,
            "exporters": {lane.name: lane.metrics() for lane in self.lanes},
        }

    def _deliveries(self) -> dict[str, dict[str, int]]:
        """Events released and dropped by delivery class. What a receiver rejected is of any."""
        return {"best_effort": {"released": self.released, "dropped": self.dropped + self._on_the_way}}

    @property
    def _on_the_way(self) -> int:
        """Events that lanes lost, and no receiver rejected."""
        return sum(lane.dropped - lane.rejected for lane in self.lanes)

    def _say(self, about: str, level: int, line: str, *, exc_info: bool = False) -> None:
        """One line a minute about one thing: every commit of an outage comes here, even that of a log
        handler which writes to the audited database.
        """
        now = time.monotonic()
        if now - self._said.get(about, -REPEAT) >= REPEAT:
            self._said[about] = now
            log_safely(level, "otel_activity: %s", line, exc_info=exc_info)
