"""What was lost, as evidence: one ``activity.gap`` event for each window of losses."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import uuid_utils

from otel_activity import semconv
from otel_activity.events import Event, Severity

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DAMAGED",
    "ENDED",
    "JOURNAL_FULL",
    "NOT_ENCODED",
    "QUEUE_FULL",
    "REJECTED",
    "UNREADABLE",
    "GapLog",
    "at_risk",
    "evidence",
]

QUEUE_FULL: Final = "queue full"
JOURNAL_FULL: Final = "journal full"
NOT_ENCODED: Final = "not encoded"
REJECTED: Final = "rejected"
DAMAGED: Final = "journal damaged"
UNREADABLE: Final = "journal unreadable"
"""Records of a damaged journal of which nobody knows what they were: transactions, marks, confirmations."""
ENDED: Final = "process ended"

_QUIET: Final = 1.0
"""Seconds without a loss that end a window."""
_LONGEST: Final = 60.0
"""Seconds after which a window ends although losses go on: an auditor should not wait for an outage's end."""
_MOST_RANGES: Final = 100
"""Ranges of places that one event names; beyond them it names the first and the last place only."""
_FEW_RANGES: Final = 20
"""The same while the window is open: what is written down then has little room."""


def evidence(name: str, attributes: dict[str, Any], severity: int = Severity.INFO) -> Event:
    """An event about the audit trail itself."""
    now = time.time_ns() // 1000 * 1000
    return Event(
        id=str(uuid_utils.uuid7()),
        name=name,
        time=now,
        observed=now,
        severity=severity,
        attributes={
            semconv.ACTIVITY_SCHEMA_VERSION: semconv.SCHEMA_VERSION,
            semconv.ACTOR_TYPE: "system",
            **attributes,
        },
    )


class _Window:
    """Losses of one reason on one road, from the first to the last."""

    def __init__(self, now: float) -> None:
        self.id = str(uuid_utils.uuid7())
        self.count = 0
        self.began = self.quiet_since = now
        self.first = time.time_ns()
        self.last = self.first
        self.ranges: list[list[int]] = []

    def add(self, count: int, first: int | None, now: float) -> None:
        self.count += count
        self.quiet_since = now
        self.last = time.time_ns()
        if first is None:
            return
        end = first + count - 1
        if self.ranges and self.ranges[-1][1] + 1 == first:
            self.ranges[-1][1] = end
        elif len(self.ranges) < _MOST_RANGES:
            self.ranges.append([first, end])
        else:
            self.ranges[-1][1] = max(end, self.ranges[-1][1])

    def over(self, now: float) -> bool:
        return now - self.quiet_since >= _QUIET or now - self.began >= _LONGEST

    def so_far(self, reason: str, exporter: str | None) -> Event:
        """What whoever finds it after this process says, under the id that it would have had anyway."""
        event = self.event(reason, exporter)
        event.attributes[semconv.GAP_ESTIMATE] = True
        if self.ranges:
            few = self.ranges[:_FEW_RANGES]
            event.attributes[semconv.GAP_SEQUENCES] = [*few[:-1], [few[-1][0], self.ranges[-1][1]]]
        return event

    def event(self, reason: str, exporter: str | None) -> Event:
        attributes: dict[str, Any] = {
            semconv.GAP_REASON: reason,
            semconv.GAP_COUNT: self.count,
            semconv.GAP_FIRST: _moment(self.first),
            semconv.GAP_LAST: _moment(self.last),
        }
        if exporter is not None:
            attributes[semconv.GAP_EXPORTER] = exporter
        if self.ranges:
            attributes[semconv.GAP_SEQUENCES] = self.ranges
        event = evidence(semconv.GAP, attributes, Severity.ERROR)
        event.id = self.id
        return event


def at_risk(key: str, count: int, since: int) -> Event:
    """What is lost if the process is killed now: events that are in memory alone.

    Args:
        key: id of the event.
        count: how many there are.
        since: nanoseconds since the epoch, when the first of them came.
    """
    attributes = {
        semconv.GAP_REASON: ENDED,
        semconv.GAP_COUNT: count,
        semconv.GAP_FIRST: _moment(since),
        semconv.GAP_LAST: _moment(time.time_ns()),
        semconv.GAP_ESTIMATE: True,
    }
    event = evidence(semconv.GAP, attributes, Severity.ERROR)
    event.id = key
    return event


def _moment(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="microseconds")


class GapLog:
    """Collects losses from any thread; the feeding thread turns them into events when the way is free.

    Args:
        clock: monotonic seconds.

    Attributes:
        lock: held while losses are counted.
        version: another one whenever it says something else.
        opened: called, under the lock, with the first loss of a window.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.opened: Callable[[], None] | None = None
        self._reset()

    def _reset(self) -> None:
        # Re-entrant, because a signal handler that commits may interrupt its owner.
        self.lock = threading.RLock()
        self.version = 0
        self._windows: dict[tuple[str, str | None], _Window] = {}

    def after_fork(self) -> None:
        """In a forked child: the losses are the parent's to report."""
        self._reset()

    def __bool__(self) -> bool:
        """Whether any loss was not reported yet."""
        return bool(self._windows)

    def lost(self, reason: str, count: int, *, exporter: str | None = None, first: int | None = None) -> None:
        """Count a loss.

        Args:
            reason: why, low-cardinality.
            count: events; with `UNREADABLE`, records.
            exporter: the one that did not get them; None when nobody did.
            first: place in the stream of the first of them, if they had one.
        """
        if count <= 0:
            return
        now = self._clock()
        with self.lock:
            window = self._windows.get((reason, exporter))
            begins = window is None
            if window is None:
                window = self._windows[reason, exporter] = _Window(now)
            window.add(count, first, now)
            self.version += 1
            if begins and self.opened is not None:
                self.opened()

    def take(self, *, now: bool) -> list[Event]:
        """The windows that are over, each as one event; with `now` all of them."""
        moment = self._clock()
        with self.lock:
            over = [key for key, window in self._windows.items() if now or window.over(moment)]
            self.version += bool(over)
            return [self._windows.pop(key).event(*key) for key in over]

    def still_open(self) -> list[Event]:
        """The windows as they are now, each as the event for whoever finds it after this process."""
        with self.lock:
            return [window.so_far(*key) for key, window in self._windows.items()]
