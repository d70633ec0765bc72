"""What is missing in the store: holes in streams, tails that never came, times without auditing."""

from __future__ import annotations

import enum
import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from otel_activity import semconv
from otel_activity.errors import ConfigurationError, StoreRefused
from otel_activity.store.connection import Reader, Row, StoreAddress
from otel_activity.store.queries import statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from uuid import UUID

__all__ = ["Examined", "Finding", "Kind", "examine", "find_gaps"]

LOOKBACK: Final = timedelta(days=7)
"""What was released in the range may have happened earlier: a long transaction, a journal taken over."""
SAID: Final = timedelta(hours=1)
"""A record about a loss may be that much older than the events around the hole."""
AHEAD: Final = timedelta(days=1)
"""How far a clock may be ahead."""
BEATS: Final = 3
"""Intervals without a beat after which a stream that was not closed has ended."""
PLACED_LATE: Final = frozenset({"rejected", "process ended"})
"""Reasons of losses that had places, although the record cannot name them."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Kind(enum.StrEnum):
    """What was found."""

    HOLE = "hole"
    """Places of a stream are missing in the store."""
    TAIL = "tail"
    """A stream stopped without a record that closes it: what came last may be missing."""
    UNAUDITED = "unaudited"
    """After such an end no process of the service was audited for a time."""
    LOSS = "loss"
    """A gap record: the process itself says what it lost."""


@dataclass(frozen=True)
class Finding:
    """One thing that is missing.

    Attributes:
        kind: what.
        service: ``service.name``.
        stream: id of the stream.
        begin: when it began, as far as that is known.
        end: when it ended; None when it has not.
        first: first place that is missing.
        last: last place that is missing.
        count: events that are missing; None when nobody can tell.
        explanation: what explains it; None when nothing does.
    """

    kind: Kind
    service: str
    stream: UUID
    begin: datetime
    end: datetime | None = None
    first: int | None = None
    last: int | None = None
    count: int | None = None
    explanation: str | None = None


@dataclass(frozen=True)
class Examined:
    """What was looked at, and what is missing of it.

    Attributes:
        findings: the oldest first.
        events: events of the range that have a place in a stream.
        streams: streams that these belong to.
        silent: those of the streams that have no beats. Where the end of one is lost, nothing shows it.
    """

    findings: list[Finding]
    events: int
    streams: int
    silent: int


@dataclass
class _Repeated:
    """A batch of which some events were in the store before: places, and how many of them are not used up."""

    first: int
    last: int
    left: int


class _Loss(NamedTuple):
    """A gap record that can be read: when what it tells of began and ended, and how many events it counts."""

    row: Row
    begin: datetime
    end: datetime
    events: int


class _Explanations:
    """What the store itself says about missing places."""

    def __init__(self, records: Sequence[Row]) -> None:
        self.losses: list[_Loss] = []
        self.unreadable: list[Row] = []
        """Gap records that do not say what a gap record says."""
        self.taken_over: dict[str, int] = {}
        self._ranges: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        self._unplaced: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._repeated: dict[str, list[_Repeated]] = defaultdict(list)
        self.ended: set[str] = set()
        for row in records:
            try:
                self._note(row)
            except (KeyError, TypeError, ValueError):  # anybody may have sent it
                if row["name"] == semconv.GAP:
                    self.unreadable.append(row)

    def _note(self, row: Row) -> None:
        said = row["attributes"]
        if row["name"] == semconv.GAP:
            self._loss(row, said, subject_of(row))
        elif row["name"] == semconv.STREAM_CLOSED:
            subject, count = said[semconv.STREAM_SUBJECT], _number(said, semconv.STREAM_TAKEN_OVER)
            end = row["sequence"] - 1
            text = f"taken over from stream {subject}, which had stored them"
            self.taken_over[str(subject)] = count
            self.add(str(row["stream"]), end - count + 1, end, text)
        else:
            keys = (
                semconv.STREAM_REPEATED_FIRST,
                semconv.STREAM_REPEATED_LAST,
                semconv.STREAM_REPEATED_COUNT,
            )
            self._repeated[subject_of(row)].append(_Repeated(*(_number(said, key) for key in keys)))

    def _loss(self, row: Row, said: dict[str, Any], stream: str) -> None:
        begin, end = _instant(said, semconv.GAP_FIRST), _instant(said, semconv.GAP_LAST)
        reason, count = said[semconv.GAP_REASON], _number(said, semconv.GAP_COUNT)
        ranges = [(int(first), int(last)) for first, last in said.get(semconv.GAP_SEQUENCES) or ()]
        text = f"gap record: {reason}{_unfinished(said)}"
        self.losses.append(_Loss(row, begin, end, count))
        for first, last in ranges:
            self.add(stream, first, last, text)
        if not ranges and reason in PLACED_LATE:
            self._unplaced[stream].append((count, f"{text} ({count} events, places not known)"))
        if reason == "process ended":
            self.ended.add(stream)

    def add(self, stream: str, first: int, last: int, text: str) -> None:
        """Places of a stream are explained."""
        self._ranges[stream].append((first, last, text))

    def split(self, stream: str, first: int, last: int) -> Iterator[tuple[int, int, str | None]]:
        """A hole in parts, each with what explains it, in order."""
        at = first
        for begin, end, text in sorted(self._ranges[stream]):
            begin, end = max(begin, at), min(end, last)
            if begin > end:
                continue
            if begin > at:
                yield at, begin - 1, None
            yield begin, end, text
            at = end + 1
        if at <= last:
            yield at, last, None

    def repeats(self, stream: str, first: int, last: int) -> str | None:
        """Whether a whole hole is places of events that were stored before; each counts once."""
        at = first
        used: list[tuple[_Repeated, int]] = []
        for batch in sorted(self._repeated[stream], key=lambda batch: batch.first):
            end = min(last, batch.last)
            if batch.first <= at <= end and batch.left >= end - at + 1:
                used.append((batch, end - at + 1))
                at = end + 1
        if at <= last:
            return None
        for batch, count in used:
            batch.left -= count
        return "sent again after they had been stored under other places"

    def unplaced(self, stream: str, count: int) -> str | None:
        """What explains `count` missing events of a stream whose places nobody knows; used up by that."""
        for index, (lost, text) in enumerate(self._unplaced[stream]):
            if lost >= count:
                self._unplaced[stream][index] = (lost - count, text)
                return text
        return None


def subject_of(row: Row) -> str:
    """The stream that a record is about."""
    return str(row["attributes"].get(semconv.STREAM_SUBJECT) or row["stream"])


def _number(said: dict[str, Any], key: str) -> int:
    value = said[key]
    if not isinstance(value, int):
        raise TypeError(key)
    return value


def _instant(said: dict[str, Any], key: str) -> datetime:
    moment = datetime.fromisoformat(said[key])
    if moment.tzinfo is None:
        raise ValueError(key)
    return moment


def _unfinished(said: dict[str, Any]) -> str:
    """What to add about a count that nobody could finish."""
    return ", as counted until the process was killed" if said.get(semconv.GAP_ESTIMATE) else ""


def find_gaps(
    dsn: str,
    schema: str,
    *,
    since: datetime,
    until: datetime | None = None,
    grace: timedelta = timedelta(minutes=1),
) -> list[Finding]:
    """The findings of `examine`."""
    return examine(dsn, schema, since=since, until=until, grace=grace).findings


def examine(
    dsn: str,
    schema: str,
    *,
    since: datetime,
    until: datetime | None = None,
    grace: timedelta = timedelta(minutes=1),
) -> Examined:
    """Look for what is missing since a time, or between two.

    Args:
        dsn: the store.
        schema: schema of its tables.
        since: earliest time, with a time zone.
        until: what may have happened before this time is judged, by all that was stored since, also later:
            that may close a stream, or explain a hole. None: now.
        grace: what is younger may be on its way still, and is not judged.

    Raises:
        ConfigurationError: the connection string or the schema's name is wrong in itself, or the times are.
        StoreUnavailable, StoreRefused: the store cannot be reached, or refuses.
    """
    if until is not None and until <= since:
        raise ConfigurationError(
            "until", until.isoformat(), "not after since", f"use a time after {since.isoformat()}"
        )
    reader = Reader(StoreAddress(dsn, schema))
    try:
        search = _Search(reader, schema, since, until, grace)
        return search.examined()
    finally:
        reader.close()


class _Search:
    def __init__(
        self, reader: Reader, schema: str, since: datetime, until: datetime | None, grace: timedelta
    ) -> None:
        self._reader = reader
        self._schema = schema
        self._since = since
        (facts,) = self._ask("gap_oldest")
        self._oldest: datetime = facts["oldest"] or facts["clock"]
        self._now: datetime = facts["clock"]
        self._grace = grace
        self._back = since - LOOKBACK
        self._until = self._now + AHEAD
        self._end = self._until if until is None else until

    def _ask(self, name: str, **parameters: Any) -> list[Row]:
        query = statement(name, self._schema)
        return self._reader.run(lambda cursor: cursor.execute(query, parameters or None).fetchall())

    def examined(self) -> Examined:
        streams = self._ask("gap_streams", since=self._since, until=self._until, end=self._end)
        findings = sorted(self._findings(streams), key=lambda found: found.begin)
        within = [row for row in streams if row["within"]]
        events = sum(row["within"] for row in within)
        return Examined(findings, events, len(within), sum(not row["heartbeat"] for row in within))

    def _findings(self, streams: Sequence[Row]) -> Iterator[Finding]:
        since = self._since
        services = {str(row["stream"]): row["service"] for row in streams}
        explained = _Explanations(self._ask("gap_records", since=since - SAID, until=self._until))
        yield from self._losses(explained)
        yield from self._holes(streams, services, explained)
        tails = [tail for tail in self._tails(streams, explained) if tail.begin < self._end]
        yield from tails
        yield from self._unaudited(tails, streams)

    def _losses(self, explained: _Explanations) -> Iterator[Finding]:
        for row, begin, end, count in explained.losses:
            if end < self._since or begin >= self._end:
                continue
            said = row["attributes"]
            lane = f", for {said[semconv.GAP_EXPORTER]}" if semconv.GAP_EXPORTER in said else ""
            text = f"gap record: {said[semconv.GAP_REASON]}{lane}{_unfinished(said)}"
            yield Finding(Kind.LOSS, row["service"], row["stream"], begin, end, count=count, explanation=text)
        for row in explained.unreadable:
            if row["time"] >= self._end:
                continue
            yield Finding(Kind.LOSS, row["service"], row["stream"], row["time"], row["time"])

    # --- holes ------------------------------------------------------------------------------------

    def _holes(
        self, streams: Sequence[Row], services: dict[str, str], explained: _Explanations
    ) -> Iterator[Finding]:
        suspects = [row["stream"] for row in streams if self._suspect(row)]
        if not suspects:
            return
        holes = self._ask("gap_holes", since=self._back, until=self._until, streams=suspects)
        holes = [hole for hole in holes if self._judged(hole)]
        if holes:
            self._explain_by_quarantine(explained)
        for hole in holes:
            stream = str(hole["stream"])
            for first, last, text in explained.split(stream, hole["first"], hole["last"]):
                count = last - first + 1
                yield Finding(
                    Kind.HOLE,
                    services[stream],
                    hole["stream"],
                    hole["seen"],
                    first=first,
                    last=last,
                    count=count,
                    explanation=text
                    or explained.repeats(stream, first, last)
                    or explained.unplaced(stream, count),
                )

    def _suspect(self, row: Row) -> bool:
        missing = row["last"] - row["first"] + 1 - row["events"]
        return missing > 0 or (row["first"] > 1 and self._whole(row["stream"]))

    def _whole(self, stream: UUID) -> bool:
        """Whether the beginning of a stream should be there: not cut off by retention or the range."""
        began = _began(stream)
        return began is not None and began >= max(self._back, self._oldest)

    def _judged(self, hole: Row) -> bool:
        if not self._since <= hole["seen"] <= self._now - self._grace:
            return False
        if hole["before"] is not None:
            return bool(hole["before"] < self._end)
        began = _began(hole["stream"])
        return began is not None and began < self._end and self._whole(hole["stream"])

    def _explain_by_quarantine(self, explained: _Explanations) -> None:
        since = (self._back - _EPOCH) // timedelta(microseconds=1) * 1000
        try:
            refused = self._ask("gap_quarantine", since=since)
        except StoreRefused:  # who reads events need not be allowed to read these
            return
        for row in refused:
            try:
                said = json.loads(bytes(row["record"]))["attributes"]
                stream, place = str(said[semconv.STREAM_ID]), int(said[semconv.SEQUENCE])
            except (ValueError, KeyError, TypeError):
                continue
            explained.add(stream, place, place, "refused by the server, in the table quarantine")

    # --- ends -------------------------------------------------------------------------------------

    def _tails(self, streams: Iterable[Row], explained: _Explanations) -> Iterator[Finding]:
        for row in streams:
            stream = str(row["stream"])
            if row["closed"] or stream in explained.taken_over or not self._silent(row):
                continue
            text = "gap record: process ended" if stream in explained.ended else None
            yield Finding(Kind.TAIL, row["service"], row["stream"], row["seen"], explanation=text)

    def _silent(self, row: Row) -> bool:
        if not row["heartbeat"]:
            return False
        silence = timedelta(seconds=BEATS * row["heartbeat"]) + self._grace
        return bool(row["seen"] + silence < self._now)

    def _unaudited(self, tails: Sequence[Finding], streams: Sequence[Row]) -> Iterator[Finding]:
        """From the end of a stream that never closed to the next stream, if no other ran meanwhile."""
        for tail in tails:
            others = [
                row
                for row in streams
                if row["service"] == tail.service and row["stream"] != tail.stream and row["heartbeat"]
            ]
            if any(_start(row) <= tail.begin < row["seen"] for row in others):
                continue
            later = [_start(row) for row in others if _start(row) > tail.begin]
            if later:  # else the service may have been switched off: that is what the tail says already
                yield Finding(Kind.UNAUDITED, tail.service, tail.stream, tail.begin, min(later))


def _start(row: Row) -> datetime:
    return row["opened"] or row["began"]  # type: ignore[no-any-return]  # a column of type timestamptz


def _began(stream: UUID) -> datetime | None:
    """When a stream began: its id is a UUIDv7. None for another kind of id."""
    if stream.version != 7:
        return None
    return _EPOCH + timedelta(milliseconds=stream.int >> 80)
