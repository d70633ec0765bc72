"""What is missing in a store is found, and what the store itself explains is told apart."""

from __future__ import annotations

import random
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from otel_activity import semconv
from otel_activity.delivery.gaps import evidence
from otel_activity.delivery.streams import repeated
from otel_activity.postgres.writer import EventWriter
from otel_activity.store.gaps import LOOKBACK, Kind, examine, find_gaps
from otel_activity.store.queries import statement
from tests.cli.support import json_lines, run
from tests.store.support import BOARD, MINUTE, apply_schema, make_event, now, store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from otel_activity.events import Event
    from otel_activity.store.gaps import Finding

HOUR = 60 * MINUTE


@pytest.fixture
def store_dsn(postgres_dsn: str) -> str:
    """A fresh database with the store's tables, empty."""
    return apply_schema(postgres_dsn)


def stream_begun(at: int) -> str:
    """The id of a stream that began at a time."""
    return str(uuid.UUID(int=at // 10**6 << 80 | 7 << 76 | 2 << 62 | random.getrandbits(62)))


class Stream:
    """A process that stores an event a minute, from two hours ago on."""

    def __init__(self, began: int | None = None) -> None:
        self.began = now() - 2 * HOUR if began is None else began
        self.id = stream_begun(self.began)

    def at(self, place: int) -> int:
        """When it released a place."""
        return self.began + place * MINUTE

    def placed(self, event: Event, place: int) -> Event:
        """An event in its place."""
        event.time = event.observed = self.at(place)
        event.attributes |= {semconv.STREAM_ID: self.id, semconv.SEQUENCE: place}
        return event

    def events(self, places: Iterable[int]) -> list[Event]:
        """What the application did."""
        return [self.placed(make_event(), place) for place in places]

    def record(self, name: str, place: int, **attributes: Any) -> Event:
        """A record about the trail itself."""
        given = {f"activity.{key.replace('__', '.')}": value for key, value in attributes.items()}
        about = {semconv.STREAM_SUBJECT: self.id}
        if name != semconv.GAP:
            about[semconv.STREAM_HEARTBEAT] = 60.0  # type: ignore[assignment]  # values are of any type
        return self.placed(evidence(name, {**about, **given}), place)


def gap(stream: Stream, place: int, reason: str, count: int, *ranges: list[int], **more: Any) -> Event:
    """A gap record."""
    moment = datetime.fromtimestamp(stream.at(place) / 1e9, UTC).isoformat()
    attributes: dict[str, Any] = {"gap__reason": reason, "gap__count": count}
    attributes |= {"gap__first": moment, "gap__last": moment, **more}
    if ranges:
        attributes["gap__sequences"] = list(ranges)
    return stream.record(semconv.GAP, place, **attributes)


def found(dsn: str, *, days: float = 1) -> list[Finding]:
    """What is missing."""
    return find_gaps(dsn, "activity", since=datetime.now(UTC) - timedelta(days=days))


def holes(dsn: str) -> list[tuple[int | None, int | None, str | None]]:
    """First and last place of each hole, and what explains it."""
    return [(one.first, one.last, one.explanation) for one in found(dsn) if one.kind is Kind.HOLE]


def test_a_whole_stream_in_any_order_is_no_finding(store_dsn: str) -> None:
    """Out-of-order arrival, and times that do not follow the places, leave no hole."""
    events = Stream().events(range(1, 61))
    events[30].time -= 26 * HOUR  # of a transaction that was open for long
    random.Random(1).shuffle(events)
    for start in range(0, 60, 20):
        store(store_dsn, events[start : start + 20])
    assert found(store_dsn) == []


def test_a_row_that_was_deleted_is_an_unexplained_hole(store_dsn: str) -> None:
    """Whoever removes evidence leaves a place that nobody accounts for; the command says so and fails."""
    stream = Stream()
    store(store_dsn, stream.events(range(1, 31)))
    assert run("doctor", "--gaps", dsn=store_dsn).exit_code == 0
    with psycopg.connect(store_dsn) as connection:
        connection.execute("DELETE FROM activity.events WHERE sequence IN (7, 8, 20)")
    assert holes(store_dsn) == [(7, 8, None), (20, 20, None)]
    result = run("doctor", "--gaps", "--since", "1d", "--json", dsn=store_dsn)
    assert result.exit_code == 1
    first, _ = json_lines(result.stdout)
    assert (first["kind"], first["service"], first["stream"]) == ("hole", "board", stream.id)
    assert (first["first"], first["last"], first["count"], first["explained"]) == (7, 8, 2, False)
    text = run("doctor", "--gaps", dsn=store_dsn).output
    assert "2 events missing at 7 to 8" in text
    assert "27 events of 1 stream; 2 gaps found, 2 of them unexplained" in text
    assert "1 of the streams without beats" in text


def sent_again(stream: Stream, first: int, last: int, count: int) -> Event:
    """What the exporter stores with a batch of which the store had some before."""
    batch = stream.events([first, last])
    record = repeated(batch, count)
    assert record is not None
    record.time = record.observed = stream.at(last)
    return record


def test_what_was_stored_before_under_other_places_is_no_gap(store_dsn: str) -> None:
    """The record of a batch explains as many places of it as it counts, and no more."""
    stream = Stream()
    store(store_dsn, stream.events([*range(1, 4), 8, *range(12, 30)]))
    store(store_dsn, [sent_again(stream, 4, 7, 4), sent_again(stream, 8, 20, 3)])
    assert [explanation is not None for _, _, explanation in holes(store_dsn)] == [True, True]
    with psycopg.connect(store_dsn) as connection:
        connection.execute("DELETE FROM activity.events WHERE sequence = 15")
    assert holes(store_dsn)[-1] == (15, 15, None)


def test_a_hole_over_two_batches_that_were_sent_again_is_explained(store_dsn: str) -> None:
    """A hole that begins in one batch and ends in the next needs both records."""
    stream = Stream()
    store(store_dsn, stream.events([1, *range(8, 30)]))
    store(store_dsn, [sent_again(stream, 2, 5, 4)])
    assert holes(store_dsn) == [(2, 7, None)]
    store(store_dsn, [sent_again(stream, 6, 20, 2)])
    assert [explanation is not None for _, _, explanation in holes(store_dsn)] == [True]


def test_an_empty_store_is_not_called_complete(store_dsn: str) -> None:
    """Where nothing was stored nothing can be judged, and the command does not say that all is there."""
    result = run("doctor", "--gaps", dsn=store_dsn)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no events, so nothing to judge" in result.stderr


def test_streams_with_beats_are_told_from_those_without(store_dsn: str) -> None:
    """What was looked at is counted; the remark about beats is made only where they are missing."""
    beating = Stream()
    store(store_dsn, [beating.record(semconv.STREAM_OPENED, 1), beating.record(semconv.STREAM_CLOSED, 2)])
    since = datetime.now(UTC) - timedelta(days=1)
    examined = examine(store_dsn, "activity", since=since)
    assert (examined.events, examined.streams, examined.silent) == (2, 1, 0)
    assert "beats" not in run("doctor", "--gaps", dsn=store_dsn).output
    store(store_dsn, Stream().events([1]))
    assert examine(store_dsn, "activity", since=since).silent == 1


def test_the_head_of_a_stream_is_a_hole_unless_retention_cut_it(store_dsn: str) -> None:
    """A stream that began after the oldest event must begin at one; of an older one nobody can tell."""
    store(store_dsn, Stream(now() - 4 * HOUR).events([1]))
    store(store_dsn, Stream().events(range(5, 9)))
    assert holes(store_dsn) == [(1, 4, None)]
    store(store_dsn, Stream(now() - 90 * 24 * HOUR).events([129_600 - 60, 129_600 - 59]))
    assert holes(store_dsn) == [(1, 4, None)]


def test_nothing_is_said_about_what_retention_took_away(store_dsn: str) -> None:
    """The oldest stream of a store has lost its head with the partition that was dropped."""
    store(store_dsn, Stream().events(range(40, 60)))
    with psycopg.connect(store_dsn) as connection:
        assert connection.execute("SELECT count(*) FROM activity.events").fetchone() == (20,)
    assert found(store_dsn) == []
    store(store_dsn, [make_event(0)])  # of a broken clock: no retention ever takes it
    assert found(store_dsn) == []


def test_what_is_young_may_be_on_its_way(store_dsn: str) -> None:
    """A hole before an event of just now is not judged yet."""
    stream = Stream()
    store(store_dsn, [*stream.events([1, 2]), *stream.events([120])])
    assert holes(store_dsn) == []
    result = run("doctor", "--gaps", "--grace", "0", "--json", dsn=store_dsn)
    assert [line["first"] for line in json_lines(result.stdout)] == [3]


def moment_of(stream: Stream, place: float) -> datetime:
    """When a stream released a place, or between two."""
    return datetime.fromtimestamp((stream.began + place * MINUTE) / 1e9, UTC)


def test_between_two_times_only_what_may_have_happened_there_is_missing(store_dsn: str) -> None:
    """A hole across the end of the range counts; one behind it, and events behind it, do not."""
    stream = Stream()
    store(store_dsn, stream.events([1, 2, 3, 5, 6, *range(9, 13), 20, 21]))
    since = moment_of(stream, 0)

    def missing(until: float) -> list[tuple[int | None, int | None]]:
        findings = find_gaps(store_dsn, "activity", since=since, until=moment_of(stream, until))
        return [(one.first, one.last) for one in findings]

    assert missing(2.5) == []
    assert missing(3.5) == [(4, 4)]
    assert missing(7) == [(4, 4), (7, 8)]
    assert missing(12) == [(4, 4), (7, 8)]
    assert missing(12.5) == [(4, 4), (7, 8), (13, 19)]
    examined = examine(store_dsn, "activity", since=since, until=moment_of(stream, 5.5))
    assert (examined.events, examined.streams) == (4, 1)
    examined = examine(store_dsn, "activity", since=since, until=moment_of(stream, 0.5))
    assert (examined.events, examined.streams, examined.findings) == (0, 0, [])


def test_the_head_of_a_stream_that_began_after_the_range_is_none_of_it(store_dsn: str) -> None:
    """What a later stream lacks at its beginning happened later."""
    early, late = Stream(now() - 4 * HOUR), Stream()
    store(store_dsn, [*early.events([1, 2]), *late.events([3, 4])])
    since = moment_of(early, 0)
    assert len(find_gaps(store_dsn, "activity", since=since)) == 1
    assert find_gaps(store_dsn, "activity", since=since, until=moment_of(late, -1)) == []
    assert len(find_gaps(store_dsn, "activity", since=since, until=moment_of(late, 1))) == 1


def test_what_explains_a_hole_of_the_range_may_be_stored_after_it(store_dsn: str) -> None:
    """A stream that was closed later has no lost tail; a gap record that came later counts."""
    stream = Stream()
    opened, beat = stream.record(semconv.STREAM_OPENED, 1), stream.record(semconv.STREAM_BEAT, 4)
    store(store_dsn, [opened, beat, gap(stream, 30, "queue full", 2, [2, 3])])
    since, until = moment_of(stream, 0), moment_of(stream, 10)
    explained, open_one, *tail = find_gaps(store_dsn, "activity", since=since, until=until)
    assert (explained.kind, explained.explanation) == (Kind.HOLE, "gap record: queue full")
    assert (open_one.first, open_one.last, open_one.explanation) == (5, 29, None)
    assert tail == []  # it was silent from 30 on, which is after the range
    store(store_dsn, [*stream.events(range(5, 30)), stream.record(semconv.STREAM_CLOSED, 31)])
    assert find_gaps(store_dsn, "activity", since=since, until=until) == [explained]


def test_an_end_before_the_beginning_is_refused_in_one_line(store_dsn: str) -> None:
    """So is a range without --gaps: nothing would be looked for in it."""
    result = run("doctor", "--gaps", "--since", "2026-05-02", "--until", "2026-05-01", dsn=store_dsn)
    assert result.exit_code == 2
    assert "2026-05-01T00:00:00+00:00" in result.stderr
    assert result.stderr.count("\n") == 1
    result = run("doctor", "--until", "2026-05-01", dsn=store_dsn)
    assert (result.exit_code, "add --gaps" in result.stderr) == (2, True)


def test_the_last_line_names_both_ends_of_the_range(store_dsn: str) -> None:
    """What is shown to somebody says which time it is about."""
    stream = Stream()
    store(store_dsn, stream.events([1, 2]))
    options = ("--since", moment_of(stream, 0).isoformat(), "--until", moment_of(stream, 10).isoformat())
    result = run("doctor", "--gaps", *options, dsn=store_dsn)
    assert result.exit_code == 0
    assert re.search(r"^since \S+ \S+ until \S+ \S+: 2 events of 1 stream; 0 gaps", result.stderr, re.M)


def test_a_gap_record_explains_the_places_that_it_names(store_dsn: str) -> None:
    """A hole is explained in parts; what no record names stays open."""
    stream = Stream()
    record = gap(stream, 30, "queue full", 5, [10, 12], [20, 21], gap__exporter="postgres")
    store(store_dsn, [*stream.events(set(range(1, 30)) - {10, 11, 12, 13, 20, 21}), record])
    text = "gap record: queue full"
    assert holes(store_dsn) == [(10, 12, text), (13, 13, None), (20, 21, text)]
    (loss,) = [one for one in found(store_dsn) if one.kind is Kind.LOSS]
    assert (loss.count, loss.explanation) == (5, "gap record: queue full, for postgres")


def test_a_record_without_places_explains_as_many_as_it_counts(store_dsn: str) -> None:
    """Of what a receiver rejected nobody knows the places; more than their number is not explained by it."""
    stream = Stream()
    store(store_dsn, [*stream.events(set(range(1, 30)) - {5, 6, 9}), gap(stream, 30, "rejected", 2)])
    text = "gap record: rejected (2 events, places not known)"
    assert holes(store_dsn) == [(5, 6, text), (9, 9, None)]


def test_a_loss_before_release_explains_no_hole(store_dsn: str) -> None:
    """What never had a place cannot be what is missing at one."""
    stream = Stream()
    store(store_dsn, [*stream.events({1, 2, 4}), gap(stream, 5, "not encoded", 1)])
    assert holes(store_dsn) == [(3, 3, None)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (semconv.GAP, {}),
        (semconv.GAP, {semconv.GAP_REASON: "full", semconv.GAP_COUNT: "many"}),
        (semconv.STREAM_REPEATED, {semconv.STREAM_REPEATED_FIRST: 1}),
        (semconv.STREAM_CLOSED, {semconv.STREAM_TAKEN_OVER: "x"}),
        ("activity.stream.heartbeat", {semconv.STREAM_HEARTBEAT: "abc"}),
        ("activity.stream.heartbeat", {semconv.STREAM_HEARTBEAT: 10**400}),
    ],
)
def test_a_record_that_says_nothing_hides_nothing(store_dsn: str, name: str, said: dict[str, Any]) -> None:
    """Whoever may send events may send odd ones: the others are judged, and an odd gap record is a loss."""
    stream = Stream()
    odd = stream.placed(make_event(name=name), 4)
    odd.attributes |= said
    store(store_dsn, [*stream.events([1, 3]), odd])
    kinds = [(one.kind, one.first, one.explanation) for one in found(store_dsn)]
    lost = [(Kind.LOSS, None, None)] if name == semconv.GAP else []
    assert sorted(kinds, key=str) == sorted([(Kind.HOLE, 2, None), *lost], key=str)
    result = run("doctor", "--gaps", dsn=store_dsn)
    assert result.exit_code == 1
    assert ("does not say how many" in result.output) == bool(lost)


def test_a_record_of_another_stream_explains_nothing_here(store_dsn: str) -> None:
    """A gap record counts for the stream that it is about."""
    stream, other = Stream(), Stream()
    store(store_dsn, [*stream.events({1, 2, 4}), gap(other, 1, "queue full", 1, [3, 3])])
    assert holes(store_dsn) == [(3, 3, None)]


def test_refused_records_explain_their_places(store_dsn: str) -> None:
    """What the server refused is in the table quarantine, with its place."""
    stream = Stream()
    events = stream.events(range(1, 6))
    events[3].id = "no uuid"
    with psycopg.connect(store_dsn, autocommit=True, prepare_threshold=None) as connection:
        assert EventWriter(connection).write(events, BOARD).quarantined == 1
    assert holes(store_dsn) == [(4, 4, "refused by the server, in the table quarantine")]


def test_what_was_taken_over_and_stored_before_is_explained(store_dsn: str) -> None:
    """Who takes a journal over gives places to events that the store has already from the dead process."""
    dead, heir = Stream(), Stream()
    store(store_dsn, [dead.record(semconv.STREAM_OPENED, 1), *dead.events(range(2, 6))])
    closing = heir.record(semconv.STREAM_CLOSED, 6, stream__taken_over=4)
    closing.attributes[semconv.STREAM_SUBJECT] = dead.id
    beats = [heir.record(semconv.STREAM_BEAT, place) for place in range(7, 121)]
    store(store_dsn, [heir.record(semconv.STREAM_OPENED, 1), *heir.events([4, 5]), closing, *beats])
    assert [one.kind for one in found(store_dsn)] == [Kind.HOLE]
    assert holes(store_dsn) == [(2, 3, f"taken over from stream {dead.id}, which had stored them")]


def test_a_stream_that_stopped_beating_has_a_lost_tail(store_dsn: str) -> None:
    """Three intervals of silence without a closing record; a stream that closed or beats on has none."""
    silent, closed, beating, plain = Stream(), Stream(), Stream(), Stream()
    store(store_dsn, [silent.record(semconv.STREAM_OPENED, 1), *silent.events([2, 3])])
    store(store_dsn, [closed.record(semconv.STREAM_OPENED, 1), closed.record(semconv.STREAM_CLOSED, 2)])
    store(store_dsn, [beating.record(semconv.STREAM_BEAT, place) for place in range(1, 120)])
    store(store_dsn, plain.events(range(1, 4)))  # without records nobody can tell
    (tail,) = found(store_dsn)
    assert (tail.kind, str(tail.stream), tail.explanation) == (Kind.TAIL, silent.id, None)
    assert run("doctor", "--gaps", dsn=store_dsn).exit_code == 1


def test_a_process_that_said_what_it_lost_has_an_explained_tail(store_dsn: str) -> None:
    """The next process delivered what the dead one could not say."""
    dead, heir = Stream(), Stream(now() - HOUR)
    store(store_dsn, [dead.record(semconv.STREAM_OPENED, 1)])
    note = gap(heir, 2, "process ended", 9)
    note.attributes[semconv.STREAM_SUBJECT] = dead.id
    store(store_dsn, [*heir.events([1]), note])
    assert [(one.kind, one.explanation) for one in found(store_dsn) if one.kind is not Kind.LOSS] == [
        (Kind.TAIL, "gap record: process ended")
    ]


def test_time_between_streams_of_a_service_is_unaudited(store_dsn: str) -> None:
    """After a stream that never closed, until the next one opened, nobody audited the service."""
    dead, heir = Stream(), Stream(now() - HOUR)
    store(store_dsn, [dead.record(semconv.STREAM_OPENED, 1), *dead.events([2])])
    heirs = [heir.record(semconv.STREAM_BEAT, place) for place in range(2, 60)]
    store(store_dsn, [heir.record(semconv.STREAM_OPENED, 1), *heirs])
    kinds = {one.kind: one for one in found(store_dsn)}
    assert set(kinds) == {Kind.TAIL, Kind.UNAUDITED}
    span = kinds[Kind.UNAUDITED]
    assert span.begin == datetime.fromtimestamp(dead.at(2) / 1e9, UTC)
    assert span.end == datetime.fromtimestamp(heir.at(1) / 1e9, UTC)
    assert span.explanation is None


def test_another_process_that_runs_meanwhile_is_auditing(store_dsn: str) -> None:
    """One worker of many that dies is a lost tail, not a time without auditing."""
    dead, other, heir = Stream(), Stream(), Stream(now() - HOUR)
    for stream, places in ((other, range(2, 119)), (heir, range(2, 60)), (dead, range(2, 4))):
        beats = [stream.record(semconv.STREAM_BEAT, place) for place in places]
        store(store_dsn, [stream.record(semconv.STREAM_OPENED, 1), *beats])
    assert [one.kind for one in found(store_dsn)] == [Kind.TAIL]


MONTHS = (
    "SELECT activity.ensure_partition(now() - make_interval(months => n)) FROM generate_series(1, 3) AS n"
)
FILL = """
INSERT INTO activity.events (time, id, severity, trace_flags, name, stream_id, sequence, service,
    resource_id, attributes)
SELECT now() - make_interval(mins => n * 2), gen_random_uuid(), 9, 0, 'activity.entity.updated', %(stream)s,
    n, 'board', gen_random_uuid(), '{}'
FROM generate_series(1, 60000) AS n
"""


@pytest.fixture
def months(store_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """60,000 events over four months, each month a partition, with statistics."""
    with psycopg.connect(store_dsn, autocommit=True) as opened:
        opened.execute(MONTHS)
        opened.execute(FILL, {"stream": uuid.UUID(stream_begun(now()))})
        opened.execute("ANALYZE activity.events")
        yield opened


@pytest.mark.parametrize("name", ["gap_streams", "gap_holes", "gap_records"])
def test_only_the_months_that_are_asked_for_are_read(months: psycopg.Connection[Any], name: str) -> None:
    """No partition beyond the range is looked into, however many there are."""
    since, until = datetime.now(UTC) - LOOKBACK, datetime.now(UTC) + timedelta(days=1)
    parameters = {"since": since, "until": until, "end": until, "streams": [uuid.uuid4()]}
    rows = months.execute(sql.SQL("EXPLAIN ") + statement(name, "activity"), parameters).fetchall()
    read = set(re.findall(r"events_\d{4}_\d\d", "\n".join(row[0] for row in rows)))
    assert f"events_{datetime.now(UTC):%Y_%m}" in read
    assert read <= {f"events_{moment:%Y_%m}" for moment in (since, datetime.now(UTC), until)}
