"""Which monthly partitions a writer has already asked the server for."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_activity.codec.lines import Row
    from otel_activity.events import Event

__all__ = ["Months"]

RETRY_AFTER: Final = 60.0
"""Seconds until a month that could not be made is asked for again."""
PAST: Final = timedelta(days=20 * 366)
FUTURE: Final = timedelta(days=366)
"""A little more than the server's own limits: only times that are certainly absurd are not asked for."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Months:
    """Remembers for one connection; asks once for each month, and again only after a failure.

    Args:
        now: the current time, seconds since the epoch.
        monotonic: a clock in seconds for `RETRY_AFTER`.
    """

    def __init__(
        self, *, now: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._monotonic = monotonic
        self._asked: dict[datetime, float] = {}
        """Months that were asked for, each with the monotonic time from which to ask again."""
        self._window = (0, 0)
        """Start and end of the current month in nanoseconds, once it was asked for: the fast way out."""

    def missing(self, events: Sequence[Event] | Sequence[Row]) -> list[datetime]:
        """The first instants of the months to ask for now, oldest first; they then count as asked."""
        times = [event.time for event in events]
        start, end = self._window
        if start <= min(times) and max(times) < end:
            return []
        now = _EPOCH + timedelta(seconds=self._now())
        wanted = {
            month
            for day in {time // 86_400_000_000_000 for time in times}
            if (month := _month_of_day(day, now - PAST, now + FUTURE)) is not None
        }
        this_month = _start_of_month(now)
        if this_month in wanted:  # the next one is made ahead, while nobody is waiting for it
            wanted.add(_next_month(this_month))
        clock = self._monotonic()
        missing = sorted(month for month in wanted if self._asked.get(month, clock) <= clock)
        self._asked.update(dict.fromkeys(missing, float("inf")))
        self._remember_window(this_month)
        return missing

    def failed(self, month: datetime) -> None:
        """The month could not be made: ask again later."""
        self._asked[month] = self._monotonic() + RETRY_AFTER
        self._window = (0, 0)

    def _remember_window(self, month: datetime) -> None:
        if self._asked.get(month) == float("inf"):
            self._window = (_nanoseconds(month), _nanoseconds(_next_month(month)))


def _month_of_day(day: int, earliest: datetime, latest: datetime) -> datetime | None:
    """The month of a day (counted from the epoch), or None if it is absurd."""
    try:
        moment = _EPOCH + timedelta(days=day)
    except OverflowError:
        return None
    return _start_of_month(moment) if earliest <= moment <= latest else None


def _start_of_month(moment: datetime) -> datetime:
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _next_month(month: datetime) -> datetime:
    return _start_of_month(month + timedelta(days=31))


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
