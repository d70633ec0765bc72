"""One road out of the process: what is on it, what was confirmed, what was lost and why."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from otel_activity.delivery.ages import Ages
from otel_activity.delivery.backoff import Breaker
from otel_activity.delivery.gaps import ENDED, QUEUE_FULL, REJECTED
from otel_activity.errors import ExportError, without_messages
from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.delivery.backoff import Backoff

__all__ = ["Lane", "log_safely"]

_logger: Final = logging.getLogger("otel_activity")
_REPEAT: Final = 60.0
"""Seconds between two log lines of one level: an error is not kept back by an earlier warning."""
_PATIENCE: Final = 10.0
"""Seconds after which an attempt without an answer counts as trouble: others do not wait for it."""


def log_safely(level: int, line: str, *args: object, exc_info: bool = False) -> None:
    """Log one line. The application's handlers and filters may raise; here that would cost events.

    `exc_info` adds where the error being handled was raised, without its message.
    """
    try:
        if exc_info:
            line, args = f"{line}\n%s", (*args, without_messages(sys.exc_info()[1]))
        _logger.log(level, line, *args)
    except Exception as raised:  # noqa: BLE001 - there is no better place to tell
        pass_on(raised)
        return


class Lane:
    """Counts the events on their way to one exporter, bounds them, and keeps trying.

    The SDK's batch processor evicts the oldest record when its queue is full and forgets a batch whose export
    failed. So nothing enters the queue of a full lane, and the exporter's call does not return before the
    batch was taken (or the process ends).

    Attributes:
        name: of the exporter, for messages.
        capacity: most events on the way at once; the size of the processor's queue.
        ahead: events on the way that suffice to keep the exporter busy; what would have to be fetched first
            is left where it is while there are so many.
        confirmed: events that the exporter confirmed.
        dropped: events lost because the lane was full, that were rejected, or that were left at shutdown.
        rejected: those of them that the receiver will never take.
        quarantined: events that the store put aside for what they contain; they are confirmed, too.
        retries: attempts that failed.
        trouble: why the last attempt failed; None while the exporter works.
        breaker: decides when an exporter that fails is tried again.
        entered: events that were ever let in; `entered - pending` of them have left, in this order.
        settled: events that left, and all that entered before them too: none of them is needed any more.
        kept: what is left at the end is in a journal, so it is not lost.
        attempted: told of each attempt: exporter, seconds, type of the error or None.
        lost: told of each loss: exporter, reason, number of events.
    """

    def __init__(self, name: str, capacity: int, *, backoff: Backoff | None = None) -> None:
        self.name = name
        self.capacity = self.ahead = capacity
        self.confirmed = 0
        self.dropped = self.rejected = self.quarantined = 0
        self.retries = 0
        self.trouble: str | None = None
        self.breaker = Breaker(backoff)
        self._deadline: float | None = None
        self._said: dict[int, float] = {}
        self.entered = self.settled = 0
        self.kept = False
        self.attempted: Callable[[str, float, str | None], None] | None = None
        self.lost: Callable[[str, str, int], None] | None = None
        self._reset()

    def _reset(self) -> None:
        self.pending = 0
        self._ages = Ages()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._since: float | None = None
        self._gave_up = False

    def after_fork(self) -> None:
        """In a forked child: what is on the way is the parent's, and its locks may be held for ever."""
        self._reset()
        self.confirmed = self.dropped = self.retries = self.entered = self.settled = 0
        self.rejected = self.quarantined = 0
        self.trouble = None
        self.breaker.after_fork()

    # --- the feeding side --------------------------------------------------------------------

    def enter(self) -> bool:
        """Take a place for one event; False, and counted as dropped, when the lane is full."""
        with self._changed:
            if self.pending < self.capacity:
                self.entered += 1
                self._ages.came(self.entered, self.entered - 1 - self.pending)
                self.pending += 1
                return True
        self.turn_away(1)
        if self.lost is not None:
            self.lost(self.name, QUEUE_FULL, 1)
        return False

    def turn_away(self, count: int) -> None:
        """Count events that found no room, and say so."""
        with self._changed:
            self.dropped += count
        self._say(
            logging.ERROR,
            f"{self.name} does not keep up: {self.dropped} events dropped so far "
            f"({self.trouble or 'too many events'}); raise OTEL_BLRP_MAX_QUEUE_SIZE={self.capacity}",
        )

    @property
    def works(self) -> bool:
        """Whether the exporter takes events, so that waiting for it makes sense."""
        return self.holds(0)

    @property
    def clogged(self) -> bool:
        """Whether it is full and the exporter works, so that waiting for room makes sense."""
        return self.holds(self.capacity)

    def holds(self, limit: int) -> bool:
        """Whether `limit` events are on the way and the exporter works, so that there will be fewer."""
        if self.pending < limit or self.trouble is not None or self._stop.is_set():
            return False
        since = self._since
        return since is None or time.monotonic() - since < _PATIENCE

    def wait_for_room(self, timeout: float, limit: int | None = None) -> None:
        """Wait while the lane is full and the exporter works; a stuck exporter is not waited for.

        Args:
            timeout: seconds.
            limit: events from which on it counts as full; its capacity by default.
        """
        full = self.capacity if limit is None else limit
        with self._changed:
            self._changed.wait_for(lambda: not self.holds(full), timeout)

    def wait_for_mark(self, mark: int, timeout: float) -> bool:
        """Whether the first `mark` events that entered have left within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._has_left(mark), timeout)

    def _has_left(self, mark: int) -> bool:
        if self.entered - self.pending < mark:
            return False
        return self.settled >= mark or not self.kept or self._gave_up

    def wait_until_empty(self, timeout: float) -> bool:
        """Whether everything was confirmed within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.pending == 0, timeout)

    # --- the exporting side ------------------------------------------------------------------

    def deliver(self, count: int, attempt: Callable[[], None], *, in_order: bool = True) -> bool:
        """Run `attempt` until it stops raising `ExportError`, then confirm `count` events.

        Unless these are the next in order, the caller settles them, when all before them are through.

        Returns False if the process ended first. Other exceptions are treated alike: a bug in an exporter
        must not lose a batch, nor end its thread.
        """
        while not self._out_of_time():
            self._since = time.monotonic()
            self.breaker.trying()
            pause = 0.0
            try:
                attempt()
            except ExportError as error:
                self._attempted(error)
                self._failed(str(error))
                pause = error.pause
            except BaseException as error:
                if not self._survives(error):
                    raise
                self._attempted(error)
                self._failed(f"{type(error).__name__} in the exporter")
                log_safely(logging.DEBUG, "otel_activity: %s raised", self.name, exc_info=True)
            else:
                self._attempted(None)
                self.breaker.succeeded()
                self.confirm(count)
                if in_order:
                    self.settle(count)
                return True
            finally:
                self._since = None
            self._wait(self.breaker.failed(), pause)
        # A later batch may still get through: what it settles does not stand for this one.
        self._gave_up = True
        return False

    @staticmethod
    def _survives(error: BaseException) -> bool:
        """Whether to try again whatever this is: it would end the exporting thread, and with it all delivery.
        In the main thread, where a pipeline of somebody else may export, Ctrl-C is Ctrl-C.
        """
        return isinstance(error, (Exception, SystemExit)) or (
            threading.current_thread() is not threading.main_thread()
        )

    def _attempted(self, error: BaseException | None) -> None:
        if self.attempted is None or self._since is None:
            return
        try:
            kind = None if error is None else type(error).__name__
            self.attempted(self.name, time.monotonic() - self._since, kind)
        except Exception:  # noqa: BLE001 - a metric is not worth a batch
            log_safely(logging.DEBUG, "otel_activity: an attempt could not be measured", exc_info=True)

    def lose(self, count: int, reason: str) -> None:
        """Count events that can never be delivered, and say so."""
        with self._changed:
            self.pending = max(0, self.pending - count)
            self.dropped += count
            self.rejected += count
            self._changed.notify_all()
        if self.lost is not None:
            self.lost(self.name, REJECTED, count)
        log_safely(logging.ERROR, "otel_activity: %s: %d events are lost: %s", self.name, count, reason)

    def _failed(self, trouble: str) -> None:
        with self._changed:
            self.retries += 1
            self.trouble = trouble
            self._changed.notify_all()
        self._say(
            logging.WARNING, f"{self.name} takes no events: {trouble}; {self.pending} are kept and retried"
        )

    def confirm(self, count: int) -> None:
        """Count events that the exporter took."""
        with self._changed:
            self.pending = max(0, self.pending - count)
            self.confirmed += count
            recovered = self.trouble is not None
            self.trouble = None
            self._changed.notify_all()
        if recovered:
            self._said.clear()
            # As loud as the trouble: who saw that begin, without any logging set up, is to see it end.
            log_safely(logging.WARNING, "otel_activity: %s takes events again", self.name)

    def settle(self, count: int) -> None:
        """Count events that left in the order in which they entered."""
        with self._changed:
            if not self._gave_up:
                self.settled += count
            self._changed.notify_all()

    def metrics(self) -> dict[str, Any]:
        """Its part of `get_queue_metrics`; read without the lock."""
        left = self.entered - self.pending
        return {
            "pending": self.pending,
            "capacity": self.capacity,
            "oldest_age": self._ages.oldest(left) if self.pending else 0.0,
            "confirmed": self.confirmed,
            "dropped": self.dropped,
            "rejected": self.rejected,
            "quarantined": self.quarantined,
            "retries": self.retries,
            "circuit": self.breaker.state,
            "trouble": self.trouble,
        }

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _wait(self, delay: float, pause: float = 0.0) -> None:
        """Wait before the next attempt, not beyond the time for shutting down.

        Args:
            delay: seconds.
            pause: seconds that the receiver asked for; not while the process ends, for it is the last chance.
        """
        if self._deadline is None:
            self._stop.wait(pause + delay)  # not all processes at the same instant
        if self._deadline is not None:
            time.sleep(max(0.0, min(delay, self._deadline - time.monotonic())))

    def stop(self, deadline: float) -> None:
        """From now on attempts go on until `deadline` (monotonic seconds) only."""
        self._deadline = deadline
        self._stop.set()

    def abandon(self) -> int:
        """After the end: count what was left as lost, and say so, unless it is kept. Returns how many."""
        with self._changed:
            left, self.pending = self.pending, 0
            if not self.kept:
                self.dropped += left
            self._changed.notify_all()
        if left and not self.kept:
            if self.lost is not None:
                self.lost(self.name, ENDED, left)
            log_safely(
                logging.ERROR,
                "otel_activity: %d events were not delivered to %s before the process ended (%s)",
                left,
                self.name,
                self.trouble or "out of time; raise OTEL_ACTIVITY_SHUTDOWN_TIMEOUT",
            )
        return left

    def _say(self, level: int, line: str) -> None:
        now = time.monotonic()
        if now - self._said.get(level, -_REPEAT) >= _REPEAT:
            self._said[level] = now
            log_safely(level, "otel_activity: %s", line)
