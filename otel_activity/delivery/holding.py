"""What durable delivery holds: units between journal and exporters, and how they are written down."""

from __future__ import annotations

import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from otel_activity import semconv
from otel_activity.delivery.journal import ON_PAGE, Journal, Losses, Place
from otel_activity.delivery.page import ROOM
from otel_activity.events import Commit, Event, PackedEvent, Proof, Severity
from otel_activity.semconv import ROLLED_BACK

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from otel_activity.delivery.lane import Lane
    from otel_activity.delivery.records import Record
    from otel_activity.events import Unit

__all__ = [
    "ABORTED",
    "CONFIRMED",
    "PREPARED",
    "RELEASED",
    "REPORTED",
    "Held",
    "Road",
    "Source",
    "TakenOver",
    "decided",
    "decode_unit",
    "encode_abort",
    "encode_losses",
    "encode_release",
    "encode_unit",
    "survivors",
    "take_over",
]

# Kinds of records. A reader passes over kinds that it does not know.
PREPARED: Final = 1
"""A unit, encoded, before COMMIT: number of events, then the events."""
RELEASED: Final = 2
"""A unit goes out: the number of its prepared record, ``activity.commit`` and why that is not known."""
ABORTED: Final = 3
"""A unit that did not happen: the number of its prepared record."""
CONFIRMED: Final = 4
"""For each exporter the number of the last release that it confirmed; those before it are confirmed too."""
REPORTED: Final = 5
"""What damage was reported by whoever took the journal over: the next one reports what is more."""

NO_MARK: Final = "process ended during commit"
"""``error.type`` of a unit whose process died between prepare and mark."""
DAMAGED: Final = "journal damaged"
"""``error.type`` of a unit whose mark may have been there."""

_ENTITY: Final = "activity.entity."

_COUNT: Final = struct.Struct("<I")
_NUMBER: Final = struct.Struct("<Q")


class _Prepared(msgspec.Struct, array_like=True):
    """A prepared unit. Trace ids stand apart, because JSON readers take no integer of 128 bits."""

    events: list[Event]
    traces: list[str] | None = None
    proof: Proof | None = None


class _ReadBack(msgspec.Struct, array_like=True):
    """As `_Prepared`."""

    events: list[PackedEvent]
    traces: list[str] | None = None
    proof: Proof | None = None


class _Released(msgspec.Struct, array_like=True):
    """A release: the fate, why it is not known, and how many events go out.

    An older version wrote the number only where it was not that of the unit.
    """

    commit: str
    error: str | None = None
    count: int | None = None


_REPORTED: Final = Commit.REPORTED.value
# JSON, because an event's changes are JSON text already and go in as they are.
_encode = msgspec.json.Encoder().encode
_decode_unit = msgspec.json.Decoder(_ReadBack).decode
_decode_release = msgspec.json.Decoder(_Released).decode
_decode_cursors = msgspec.json.Decoder(dict[str, int]).decode


_RELEASED_REPORTED: Final = _encode(_Released(_REPORTED))
"""What a release was until its count was written with it."""
_MOST_USUAL: Final = 256
_USUAL: Final = {count: _encode(_Released(_REPORTED, None, count)) for count in range(1, _MOST_USUAL + 1)}
_USUAL_COUNTS: Final = {text: count for count, text in _USUAL.items()}


def encode_unit(events: list[Event], proof: Proof | None = None) -> bytes:
    """The payload of a prepared record. The events say that they were committed: most are.

    Raises:
        OverflowError, TypeError, ValueError: an event holds what `Event` promises it does not.
    """
    count = _COUNT.pack(len(events))
    traces = [event.trace_id for event in events]
    if not any(traces):
        return count + _encode((events, None, proof))
    for event in events:
        event.trace_id = 0
    try:
        return count + _encode((events, [f"{trace:x}" for trace in traces], proof))
    finally:
        for event, trace in zip(events, traces, strict=True):
            event.trace_id = trace


def decode_unit(payload: bytes) -> tuple[list[PackedEvent], Proof | None]:
    """The events of a prepared record, and its proof.

    Raises:
        ValueError: the payload is none.
    """
    unit = _decode_unit(memoryview(payload)[_COUNT.size :])
    for event, trace in zip(unit.events, unit.traces or (), strict=False):
        event.trace_id = int(trace, 16)
    return unit.events, unit.proof


def encode_losses(events: Sequence[Event]) -> bytes:
    """What a page says: these events, without the last of them if there is no room for all."""
    for count in range(len(events), 0, -1):
        payload = encode_unit(list(events[:count]))
        if len(payload) <= ROOM:
            return payload
    return b""


def encode_release(held: Held) -> bytes:
    """The payload of a release."""
    if held.commit == _REPORTED and held.error is None:
        usual = _USUAL.get(held.count)
        if usual is not None:
            return _NUMBER.pack(held.number) + usual
    return _NUMBER.pack(held.number) + _encode(_Released(held.commit, held.error, held.count))


def encode_abort(held: Held) -> bytes:
    """The payload of an abort."""
    return _NUMBER.pack(held.number)


def decided(events: list[Event], held: Held) -> list[Event]:
    """The events as they go out, once the fate of their unit is known."""
    if held.commit == _REPORTED and held.error is None:
        return events  # that is what they were encoded as
    if held.commit == ROLLED_BACK:
        return [_failed(event) for event in survivors(events)]
    for event in events:
        attributes = event.attributes
        if semconv.COMMIT in attributes:  # else it is an action that belongs to no transaction
            attributes[semconv.COMMIT] = held.commit
            if held.error is not None:
                attributes.setdefault(semconv.ERROR_TYPE, held.error)
    return events


def survivors(events: list[Event]) -> list[Event]:
    """What is reported although its transaction was rolled back; see `events.Entry.survives`."""
    return [event for event in events if not event.name.startswith(_ENTITY)]


def _failed(event: Event) -> Event:
    """As `Entry.rolled_back` would have made it, had the process lived."""
    attributes = event.attributes
    for name in (semconv.TRANSACTION_ID, semconv.COMMIT, semconv.DB_SYSTEM_NAME, semconv.DB_NAMESPACE):
        attributes.pop(name, None)
    attributes[semconv.ACTIVITY_OUTCOME] = "failure"
    attributes.setdefault(semconv.ERROR_TYPE, ROLLED_BACK)
    event.severity = Severity.WARN
    return event


class Held(msgspec.Struct, eq=False, gc=False):
    """One unit from prepare until every exporter has confirmed it.

    Attributes:
        count: number of events.
        events: encoded; None once they are only in the journal.
        source: the journal that holds it; None when it is in memory alone.
        place: of its prepared record.
        mark: number of its release in the journal.
        commit: ``activity.commit``.
        error: ``error.type``.
        sequence: place in the stream of its first event.
        skip: exporters that have it already.
        before: events that were let in before it.
        proof: by what the database can be asked about it.
        untaken: lanes it was not handed to yet.
        unconfirmed: exporters that have not confirmed it.
        origin: resource of the process that it is from, if that is another one and no journal says so.
        outboxed: it is in an outbox until it is confirmed.
        elsewhere: an exporter that this process does not have needs it still.
        loose: it is in memory alone because that is its delivery class.
        late: the unit whose entries are to be encoded when it is fed.
        entered: it was let in; whoever was interrupted since and begins again does not let it in twice.
        asked: it is in memory alone, and counts among those that wait for the database.
        about_trail: it tells of losses or of the stream.
    """

    count: int
    events: list[Event] | None
    unconfirmed: int
    untaken: int
    proof: Proof | None = None
    source: Source | None = None
    place: Place | None = None
    mark: int = -1
    commit: str = Commit.UNKNOWN.value
    error: str | None = None
    sequence: int = 0
    skip: tuple[str, ...] = ()
    before: int = 0
    origin: dict[str, Any] | None = None
    outboxed: bool = False
    elsewhere: bool = False
    loose: bool = False
    late: Unit | None = None
    entered: bool = False
    asked: bool = False
    about_trail: bool = False

    @property
    def number(self) -> int:
        """Of its prepared record; -1 when it is not in a journal."""
        return -1 if self.place is None else self.place.number

    @property
    def bare(self) -> bool:
        """Whether it is in memory alone, and not by choice: no journal took it. What tells of such a loss is
        not to be lost by it.
        """
        return self.source is None and not (self.loose or self.outboxed or self.about_trail)

    def proof_in(self, journal: Journal) -> Proof | None:
        """By what the database can be asked about it, as the journal says.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        payload = None if self.place is None else journal.read(self.place)
        return None if payload is None else decode_unit(payload)[1]


class Source:
    """A journal that units come from: this process's own, or one that was taken over.

    Attributes:
        journal: itself.
        own: whether this process writes it.
        origin: resource of the process that wrote it, if that is another one and known.
        kept: units that only exporters need which this process does not have.
        asked: units whose fate the database is being asked about; of a journal that was taken over.
        absent: those exporters.
        gone: it is not where it was any more.
    """

    def __init__(self, journal: Journal, *, own: bool) -> None:
        self.journal = journal
        self.own = own
        self.gone = False
        resource = None if own else journal.about().get("resource")
        self.origin: dict[str, Any] | None = resource if isinstance(resource, dict) else None
        self.kept = 0
        self.asked = 0
        self.absent: Sequence[str] = ()
        self._cursors: dict[str, int] = {}
        self._changed = False
        self._finished = 0

    @property
    def open(self) -> int:
        """Units that are not finished."""
        return self.journal.begun - self._finished

    @property
    def served(self) -> bool:
        """Whether this process has done what it can for a journal that it took over, and others need it."""
        return not self.own and 0 < self.kept == self.open

    @property
    def busy(self) -> bool:
        """Whether exporters of this process need something that is known to have happened."""
        return self.open > self.kept + self.asked

    @property
    def done(self) -> bool:
        """Whether nothing in the journal is needed any more."""
        return self.open == 0

    def finish(self, place: Place) -> None:
        """A unit was aborted, or confirmed by all exporters."""
        self._finished += 1
        self.journal.finish(place.segment)

    def keep(self) -> None:
        """All exporters of this process have a unit, and another one has not."""
        self.kept += 1

    def resume(self, cursors: dict[str, int]) -> None:
        """What exporters had confirmed that this process does not have, so that it is written down again."""
        self._cursors.update(cursors)

    def confirm(self, exporter: str, mark: int) -> None:
        """An exporter has confirmed all releases up to `mark`."""
        self._cursors[exporter] = mark
        self._changed = True

    def save(self) -> None:
        """Write down what was confirmed, and delete segments that are not needed.

        Raises:
            OSError: the journal cannot be written; what was confirmed may be sent again.
        """
        stale = self.journal.stale()
        # What was written down before may stand in a segment that goes now.
        if self._changed or (stale and self._cursors):
            try:
                if not self._write_down():
                    return
            except OSError:
                if not stale:
                    raise
                # On a full disk their room comes first. All that is in them was confirmed; who dies right now
                # leaves others to be sent again.
                self.journal.prune(stale)
                stale = []
                self._write_down()
        self.journal.prune(stale)

    def _write_down(self) -> bool:
        written = self.journal.append_soon(CONFIRMED, _encode(self._cursors))
        self._changed = self._changed and not written
        return written


class Road:
    """The way of units through one lane.

    Attributes:
        lane: that is fed.
        todo: units that the lane has not taken whole, in the order of release.
        events: of the first of them, while it is being handed over.
        at: how many of these were handed over.
        gone: how many of those the lane never got, because they could not be emitted.
        loose: events of the units to do that are in memory alone by choice.
        bare: the same of those that no journal took.
    """

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.name = lane.name
        self.todo: deque[Held] = deque()
        self.events: list[Event] | None = None
        self.at = 0
        self.gone = 0
        self.loose = self.bare = 0
        self._taken: deque[tuple[int, Held]] = deque()
        self._fed = 0

    @property
    def limit(self) -> int:
        """Events on the way from which on the next unit waits; one in the journal is not read too early."""
        next_up = self.todo[0] if self.todo and self.events is None else None
        return self.lane.ahead if next_up is not None and next_up.events is None else self.lane.capacity

    def add(self, held: Held) -> None:
        """A unit is to be taken by the lane."""
        self.todo.append(held)
        if held.loose:
            self.loose += held.count
        elif held.bare:
            self.bare += held.count

    def took(self, held: Held) -> None:
        """The lane has taken the first unit whole."""
        self.todo.popleft()
        if held.loose:
            self.loose -= held.count
        elif held.bare:
            self.bare -= held.count
        self._fed += self.at - self.gone
        self._taken.append((self._fed, held))
        self.events = None
        held.untaken -= 1

    def shed(self, most: int, *, bare: bool = False) -> list[Held]:
        """Take away what would keep more than so many events in memory for a lane that does not work.

        A unit in a journal can wait there. One that is being handed over stays.

        Args:
            most: events that may stay.
            bare: what no journal took, rather than what is in memory alone by choice.
        """
        kept = 0
        todo: deque[Held] = deque()
        gone: list[Held] = []
        fed = None if self.events is None else self.todo[0]
        for held in self.todo:
            counts = held.bare if bare else held.loose
            if counts and held is not fed and kept + held.count > most:
                gone.append(held)
                continue
            kept += held.count if counts else 0
            todo.append(held)
        for held in gone:
            self.turned_away(held)
        self.todo = todo
        if bare:
            self.bare = kept
        else:
            self.loose = kept
        return gone

    @staticmethod
    def turned_away(held: Held) -> None:
        """The lane will never have the unit."""
        held.untaken -= 1
        held.unconfirmed -= 1

    def settled(self) -> Iterator[Held]:
        """Units that the exporter confirmed, each once. Exporters confirm in the order they were fed."""
        settled = self.lane.settled
        while self._taken and self._taken[0][0] <= settled:
            yield self._taken.popleft()[1]

    def unsettled(self) -> Iterator[Held]:
        """Units that the exporter has not confirmed."""
        yield from (held for _, held in self._taken)
        yield from self.todo


class Report(NamedTuple):
    """What is reported of a damaged journal; see `Losses`."""

    skipped: int = 0
    """Bytes."""
    records: int = 0
    events: int = 0
    guessed: int = 0

    @classmethod
    def of(cls, losses: Losses) -> Report:
        """All that is missing."""
        return cls(losses.bytes, losses.records, losses.events, losses.guessed)

    def beyond(self, told: Report) -> Report:
        """What of this was not reported before."""
        return Report(*(max(0, now - before) for now, before in zip(self, told, strict=True)))

    def encoded(self) -> bytes:
        """As a journal holds it."""
        return _encode(self)


_decode_report: Final = msgspec.json.Decoder(Report).decode


class TakenOver(NamedTuple):
    """What the journal of a dead process holds."""

    source: Source
    released: list[Held]
    """Committed, or unknown, and not with all exporters."""
    undecided: list[Held]
    """Without a mark; each has a proof if its process could read one."""
    losses: Losses
    absent: list[str]
    """Exporters that need something of it and are not there: it stays until they have confirmed that."""
    told: Report
    """What of the losses was reported by somebody who had the journal before."""


def take_over(journal: Journal, exporters: Sequence[str], given_up: Collection[str] = ()) -> TakenOver:
    """Read the journal of a dead process: what it released and not all exporters have, what it left open.

    Args:
        journal: of the dead process.
        exporters: of this one.
        given_up: exporters that the dead one had, and that nobody is to wait for.

    Raises:
        OSError: the journal cannot be read or written.
        ValueError: a newer version wrote it.
    """
    losses = Losses()
    source = Source(journal, own=False)
    waiting: dict[int, Held] = {}
    released: list[Held] = []
    cursors: dict[str, int] = {}
    widowed: list[Record] = []
    told = Report()
    for record, segment in journal.recover(losses):
        if record.kind == PREPARED:
            waiting[record.number] = _prepared(record, segment, source, len(exporters))
        elif record.kind in (RELEASED, ABORTED):
            (number,) = _NUMBER.unpack_from(record.payload)
            held = waiting.pop(number, None)
            if held is not None and record.kind == RELEASED:
                released.append(_released(held, record))
            elif held is None and losses.lacks(number):
                widowed.append(record)
        elif record.kind == CONFIRMED:
            cursors.update(_decode_cursors(record.payload))
        elif record.kind == REPORTED:
            told = _decode_report(record.payload)
    named = _named_exporters(journal)
    theirs = {*named, *cursors}.difference(given_up)
    absent = sorted(theirs.difference(exporters))
    _account(losses, widowed, cursors, theirs or exporters)
    source.resume({name: cursors[name] for name in absent if name in cursors})
    for held in released:
        held.elsewhere = any(cursors.get(name, -1) < held.mark for name in absent)
    undecided = list(waiting.values())
    for held in undecided:
        held.elsewhere = bool(absent)
        _leave_open(held, journal, damaged=bool(losses))
    # What all of its exporters had was done with: one that came later has no claim to it. (An older version
    # does not name them: there an exporter may be one of its own that has confirmed nothing yet.)
    done = min((cursors.get(name, -1) for name in theirs), default=-1) if named else -1
    left = [held for held in released if not _has_all(held, exporters, cursors, done)]
    kept = [held for held in released if held.elsewhere and not held.unconfirmed]
    _take(source, (*left, *undecided, *kept), kept=len(kept))
    last_words = _last_words(journal, source, len(exporters))
    if last_words is not None:
        last_words.elsewhere = bool(absent)
        released.append(last_words)
        left.append(last_words)
    if not any(held.elsewhere for held in (*released, *undecided)):
        absent = []
    source.absent = absent
    return TakenOver(source, left, undecided, losses, absent, told)


def _leave_open(held: Held, journal: Journal, *, damaged: bool) -> None:
    """A unit without a mark: by what it can be asked about, and what is said if it cannot be."""
    with suppress(ValueError):
        held.proof = held.proof_in(journal)
    held.error = DAMAGED if damaged else NO_MARK


def _last_words(journal: Journal, source: Source, lanes: int) -> Held | None:
    """What the process was losing when it died, as a unit: moved from its page into its journal.

    Who dies in between leaves it in both places: the same ids, so it is stored once. Where the disk has no
    room it stays on the page, and is read from there.
    """
    payload = journal.losses()
    if not payload:
        return None
    held = Held(_COUNT.unpack_from(payload)[0], None, lanes, lanes, None, source, commit=_REPORTED)
    try:
        held.place = journal.append(PREPARED, payload, unit=True, bounded=False)
        held.mark = journal.append(RELEASED, encode_release(held)).number
        journal.forget_losses()
    except OSError:
        if held.place is None:
            held.place = ON_PAGE
            journal.take(ON_PAGE.segment)
        held.mark = journal.last
    return held


def _take(source: Source, needed: Sequence[Held], *, kept: int) -> None:
    """Keep the segments of units that somebody needs; the last `kept` of them nobody here does."""
    source.kept += kept
    for held in needed:
        if held.place is not None:
            source.journal.take(held.place.segment)


def _named_exporters(journal: Journal) -> set[str]:
    """The exporters of the process that wrote it; none if an older version did."""
    named = journal.about().get("exporters")
    return {name for name in named or () if isinstance(name, str)}


def _prepared(record: Record, segment: int, source: Source, lanes: int) -> Held:
    (count,) = _COUNT.unpack_from(record.payload)
    place = Place(record.number, segment, record.start, record.end - record.start)
    return Held(count, None, lanes, lanes, None, source, place)


def _is_usual(release: bytes) -> bool:
    """Whether a release is of a whole unit that was committed."""
    return release in _USUAL_COUNTS or release == _RELEASED_REPORTED


def _count_in(record: Record) -> int | None:
    """How many events a release lets out; None when it does not say so."""
    usual = _USUAL_COUNTS.get(record.payload[_NUMBER.size :])
    return usual or _decode_release(memoryview(record.payload)[_NUMBER.size :]).count


def _account(
    losses: Losses, marks: Sequence[Record], cursors: dict[str, int], exporters: Collection[str]
) -> None:
    """Tell from the marks of units that are missing which events are lost."""
    for mark in marks:
        count = 0
        if mark.kind == RELEASED and any(cursors.get(name, -1) < mark.number for name in exporters):
            found = _count_in(mark)
            if found is None:
                continue
            count = found
        losses.events += count
        losses.named += 1


def _released(held: Held, record: Record) -> Held:
    held.mark = record.number
    if _is_usual(record.payload[_NUMBER.size :]):  # most are, and a text for each takes room
        held.commit = _REPORTED
        return held
    release = _decode_release(memoryview(record.payload)[_NUMBER.size :])
    held.commit, held.error = release.commit, release.error
    if release.count is not None:
        held.count = release.count
    return held


def _has_all(held: Held, exporters: Sequence[str], cursors: dict[str, int], done: int) -> bool:
    held.skip = tuple(name for name in exporters if max(cursors.get(name, -1), done) >= held.mark)
    held.untaken = held.unconfirmed = len(exporters) - len(held.skip)
    return held.untaken == 0
