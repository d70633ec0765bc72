"""The life of a process's stream, as records of its own: it opens, beats and closes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from otel_activity import semconv
from otel_activity.delivery.gaps import evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otel_activity.events import Event

__all__ = ["Heartbeat", "repeated", "taken_over"]


class Heartbeat:
    """Makes the records of a stream. Without them nobody can tell a quiet process from a dead one.

    Args:
        interval: seconds between two beats.
        about: attributes of each record that opens a stream.
        clock: monotonic seconds.
    """

    def __init__(
        self, interval: float, about: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.interval = interval
        self._about = about
        self._clock = clock
        self._next: float | None = None

    def after_fork(self) -> None:
        """In a forked child: its stream is not open yet."""
        self._next = None

    def due(self, stream: str) -> Event | None:
        """What is to be said of the stream now, if anything."""
        now = self._clock()
        if self._next is None:
            self._next = now + self.interval
            return self._record(semconv.STREAM_OPENED, stream, self._about)
        if now < self._next:
            return None
        self._next = now + self.interval
        return self._record(semconv.STREAM_BEAT, stream)

    def closed(self, stream: str) -> Event | None:
        """The stream ends here; None when it never opened."""
        return None if self._next is None else self._record(semconv.STREAM_CLOSED, stream)

    def _record(self, name: str, stream: str, more: Mapping[str, Any] | None = None) -> Event:
        return _record(name, stream, self.interval, more)


def taken_over(stream: str, count: int, interval: float) -> Event:
    """The stream of a dead process ends: what it had not delivered are the `count` events before this."""
    return _record(semconv.STREAM_CLOSED, stream, interval, {semconv.STREAM_TAKEN_OVER: count})


def repeated(events: Sequence[Event], count: int) -> Event | None:
    """Some of a batch was in the store before, under other places: those that it came with stay empty.

    So it is after a process was killed, when another one delivers what had arrived and was not noted down.

    Args:
        events: the batch.
        count: how many of them were there.

    Returns:
        None when they are not places of one stream.
    """
    places = [event.attributes.get(semconv.SEQUENCE) for event in events]
    streams = {event.attributes.get(semconv.STREAM_ID) for event in events}
    numbers = [place for place in places if isinstance(place, int)]
    (stream, *others) = streams
    if others or not isinstance(stream, str) or len(numbers) < len(places):
        return None
    attributes = {
        semconv.STREAM_SUBJECT: stream,
        semconv.STREAM_REPEATED_COUNT: count,
        semconv.STREAM_REPEATED_FIRST: min(numbers),
        semconv.STREAM_REPEATED_LAST: max(numbers),
    }
    return evidence(semconv.STREAM_REPEATED, attributes)


def _record(name: str, stream: str, interval: float, more: Mapping[str, Any] | None = None) -> Event:
    attributes = {semconv.STREAM_SUBJECT: stream, semconv.STREAM_HEARTBEAT: interval}
    return evidence(name, {**attributes, **(more or {})})
