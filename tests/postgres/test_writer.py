"""The writer: every event stored once, bad records kept aside, nothing half-stored."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest

from otel_activity import semconv
from otel_activity.codec.rows import column_text, copy_line
from otel_activity.errors import StoreUnavailable
from otel_activity.events import ResourceInfo
from otel_activity.postgres import schema
from otel_activity.postgres.badlines import refusal
from otel_activity.postgres.months import Months
from otel_activity.postgres.statements import statement
from otel_activity.postgres.writer import EventWriter, WriteResult
from tests.postgres.support import (
    RESOURCE,
    count,
    days_ago,
    make_event,
    make_events,
    quarantine,
    session,
    stored,
)

if TYPE_CHECKING:
    from otel_activity.events import Event

YEAR_9999 = 253_402_300_799_999_999_000


def test_a_large_batch_is_stored_whole(store_dsn: str, writer: EventWriter) -> None:
    """A batch of 2,048 events is in the table, each equal to what was written."""
    events = make_events(2_048)
    assert writer.write(events, RESOURCE) == WriteResult(2_048, 0, 0)
    assert stored(store_dsn) == {event.id: event for event in events}


def test_an_empty_batch_is_nothing(store_dsn: str, writer: EventWriter) -> None:
    """Nothing to write is no error and touches no table."""
    assert writer.write([], RESOURCE) == WriteResult(0, 0, 0)
    assert count(store_dsn, "resources") == 0


def test_sending_again_stores_nothing_twice(store_dsn: str, writer: EventWriter) -> None:
    """A batch that was stored before, whole or in part, adds only what is new."""
    events = make_events(100)
    assert writer.write(events[:60], RESOURCE) == WriteResult(60, 0, 0)
    assert writer.write(events, RESOURCE) == WriteResult(40, 60, 0)
    assert writer.write(events, RESOURCE) == WriteResult(0, 100, 0)
    assert stored(store_dsn) == {event.id: event for event in events}


def test_a_duplicate_within_a_batch_is_stored_once(store_dsn: str, writer: EventWriter) -> None:
    """The same event twice in one batch is one row."""
    events = make_events(10)
    assert writer.write([*events, *events[3:6]], RESOURCE) == WriteResult(10, 3, 0)
    assert stored(store_dsn) == {event.id: event for event in events}


def _poison() -> list[tuple[str, Event]]:
    """Records that cannot be rows, each with the SQLSTATE that says why."""
    return [
        ("22P02", make_event(id="no uuid")),
        ("22003", make_event(severity=70_000)),
        ("22000", make_event(time=10**30)),
        ("22000", make_event(attributes={"text": "lone \ud800"})),
        ("22000", make_event(attributes={"object": {1, 2, object}})),
    ]


@pytest.mark.parametrize("number", range(len(_poison())))
def test_a_bad_record_is_quarantined_and_the_rest_is_stored(
    store_dsn: str, writer: EventWriter, number: int
) -> None:
    """One record that the server cannot store costs nothing but itself, and is kept with the reason."""
    state, bad = _poison()[number]
    good = make_events(50)
    assert writer.write([*good[:20], bad, *good[20:]], RESOURCE) == WriteResult(50, 0, 1)
    assert stored(store_dsn) == {event.id: event for event in good}
    (row,) = quarantine(store_dsn)
    assert row["sqlstate"] == state
    assert row["event_id"] == bad.id
    assert row["message"]
    with session(store_dsn) as connection:
        assert connection.execute("SELECT id FROM activity.resources").fetchall() == [
            {"id": row["resource_id"]}
        ]


def test_a_quarantined_record_keeps_everything(store_dsn: str, writer: EventWriter) -> None:
    """From the quarantined JSON the very event can be read again."""
    bad = make_event(severity=70_000, attributes={"note": "kept"})
    writer.write([bad], RESOURCE)
    (row,) = quarantine(store_dsn)
    assert msgspec.json.decode(row["record"], type=type(bad)) == bad
    assert row["event_time"] == bad.time


def test_bad_records_sent_again_are_quarantined_once(store_dsn: str, writer: EventWriter) -> None:
    """Many bad records among good ones and duplicates each end where they belong, however often sent."""
    good = make_events(40)
    bad = [make_event(number, id=f"bad {number}") for number in range(15)]
    batch = [*good, *bad, *good[:5]]
    random.Random(7).shuffle(batch)
    assert writer.write(batch, RESOURCE) == WriteResult(40, 5, 15)
    assert writer.write(batch, RESOURCE) == WriteResult(0, 45, 15)
    assert {row["event_id"] for row in quarantine(store_dsn)} == {event.id for event in bad}
    assert count(store_dsn, "quarantine") == 15
    assert stored(store_dsn) == {event.id: event for event in good}


class Counting(psycopg.Connection[Any]):
    """A connection that counts how often it waited for the server."""

    waits = 0

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """As psycopg's."""
        self.waits += 1
        return super().wait(*args, **kwargs)


def test_many_bad_ids_take_one_statement_each(store_dsn: str) -> None:
    """Ids of another kind are told from ids without asking the server, which names one of them at a time."""
    good = make_events(20)
    bad = [make_event(number, id=f"bad {number}") for number in range(200)]
    with Counting.connect(store_dsn, autocommit=True) as connection:
        writer = EventWriter(connection)
        before = connection.waits
        assert writer.write([*bad, *good], RESOURCE) == WriteResult(20, 0, 200)
        assert connection.waits - before < 300
    assert count(store_dsn, "quarantine") == 200
    assert stored(store_dsn) == {event.id: event for event in good}


@pytest.mark.parametrize(
    "name",
    [
        *("", "x", "no uuid", "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaa", "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaaa"),
        *("019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa", "019AAAAA-AAAA-7AAA-8AAA-AAAAAAAAAAAB"),
        *(
            "019aaaaaaaaa7aaa8aaaaaaaaaaaaaac",
            "{019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaad}",
            "\\019a",
            "019a\t",
            "\0",
        ),
        *("{019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaae", "019a-aaaa-aaaa-7aaa-8aaa-aaaa-aaaa-aaaf"),
        "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaa-aa",
    ],
)
def test_an_id_refused_without_asking_no_server_would_take(store_dsn: str, name: str) -> None:
    """Each form of an id against the server itself, under the same SQLSTATE."""
    _against_the_server(store_dsn, name, 9)


@pytest.mark.parametrize("severity", [-32_768, 32_767, 32_768, -32_769])
def test_a_severity_refused_without_asking_no_server_would_take(store_dsn: str, severity: int) -> None:
    """The ends of what the column holds, and one beyond."""
    found = _against_the_server(store_dsn, make_event().id, severity)
    assert (found is None) == (abs(severity + 0.5) < 32_768)


def _against_the_server(store_dsn: str, name: str, severity: int) -> tuple[str, str] | None:
    line = copy_line(make_event(id=name, severity=severity), "shop", "019aaaaa-aaaa-8aaa-8aaa-aaaaaaaaaaaa")
    found = refusal(line)
    with psycopg.connect(store_dsn) as connection, connection.cursor() as cursor:
        try:
            with cursor.copy(statement("copy_events", "activity")) as copy:
                copy.write(line)
        except psycopg.Error as error:
            state = error.sqlstate
        else:
            state = None
        connection.rollback()
    assert found is None or found[0] == state
    return found


def test_a_megabyte_entity_id_is_stored_and_found(store_dsn: str, writer: EventWriter) -> None:
    """No value is too long for an index: it is stored whole and found by its column's form."""
    rng = random.Random(3)
    huge = "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(1_000_000))
    event = make_event(
        attributes=dict.fromkeys((semconv.ENTITY_ID, semconv.ENTITY_TYPE, semconv.USER_ID), huge)
    )
    assert writer.write([event, make_event()], RESOURCE) == WriteResult(2, 0, 0)
    assert stored(store_dsn)[event.id] == event
    with session(store_dsn) as connection:
        query = "SELECT id::text FROM activity.events WHERE entity_type = %(x)s AND entity_id = %(x)s"
        assert connection.execute(query, {"x": column_text(huge)}).fetchall() == [{"id": event.id}]


def test_absurd_times_are_stored(store_dsn: str, writer: EventWriter) -> None:
    """Events from 1970, from the year 1 or from 9999 are in the default partition, and readable."""
    moments = (0, -1_000, -62_135_596_800 * 10**9, YEAR_9999, days_ago(-800))
    events = [make_event(time=moment) for moment in moments]
    assert writer.write([*events, make_event()], RESOURCE) == WriteResult(6, 0, 0)
    found = stored(store_dsn)
    assert all(found[event.id] == event for event in events)
    assert count(store_dsn, "events_default") == len(moments)


def test_a_missing_month_is_made(store_dsn: str, writer: EventWriter) -> None:
    """An event of a month without a partition gets one, and does not fall into the default."""
    months = len(schema.status(store_dsn).partitions)
    assert writer.write(make_events(3, time=days_ago(200)), RESOURCE).stored == 3
    assert len(schema.status(store_dsn).partitions) == months + 1
    assert count(store_dsn, "events_default") == 0


def test_the_next_month_is_made_ahead(store_dsn: str, writer: EventWriter) -> None:
    """A writer that meets the current month makes the next one's partition too."""
    with session(store_dsn) as connection:
        month = connection.execute(
            "SELECT to_char((now() + interval '1 month') AT TIME ZONE 'UTC', 'YYYY_MM') AS m"
        ).fetchall()[0]["m"]
        connection.execute(f"DROP TABLE activity.events_{month}")
        writer.write([make_event()], RESOURCE)
    assert f"events_{month}" in schema.status(store_dsn).partitions


def test_a_month_that_cannot_be_made_costs_no_event(store_dsn: str, writer: EventWriter) -> None:
    """While a reader keeps the default partition locked, rows of a new month go to the default partition."""
    event = make_event(time=days_ago(100))
    with psycopg.connect(store_dsn) as reader:
        reader.execute("LOCK TABLE activity.events_default IN ACCESS SHARE MODE")
        assert writer.write([event], RESOURCE).stored == 1
    assert count(store_dsn, "events_default") == 1
    assert stored(store_dsn) == {event.id: event}


def test_concurrent_writers_of_the_same_events_store_each_once(store_dsn: str) -> None:
    """Four writers that send the same batches at the same time, each in its own order, leave one row each."""
    batches = [make_events(50) for _ in range(6)]
    results: list[WriteResult] = []
    failures: list[BaseException] = []
    barrier = threading.Barrier(4)

    def run(seed: int) -> None:
        mine = [random.Random(seed).sample(batch, len(batch)) for batch in batches]
        barrier.wait()
        for batch in mine:
            try:
                results.append(_write_until_stored(store_dsn, batch))
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(result.stored for result in results) == 300
    assert stored(store_dsn) == {event.id: event for batch in batches for event in batch}


def _write_until_stored(dsn: str, batch: list[Event]) -> WriteResult:
    """Opposite orders can deadlock; the server then ends one writer's transaction, which sends again."""
    for _ in range(20):
        with psycopg.connect(dsn, autocommit=True) as connection:
            try:
                return EventWriter(connection).write(batch, RESOURCE)
            except StoreUnavailable:
                continue
    raise AssertionError("never stored")


def test_concurrent_writers_make_a_month_together(store_dsn: str) -> None:
    """Several writers meet the same missing months at once: all events are stored, in those months."""
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def run() -> None:
        with psycopg.connect(store_dsn, autocommit=True) as connection:
            barrier.wait()
            try:
                for days in (70, 140, 210):
                    EventWriter(connection).write(make_events(5, time=days_ago(days)), RESOURCE)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert count(store_dsn) == 60
    assert count(store_dsn, "events_default") == 0


def test_nothing_stays_in_the_session(
    store_dsn: str, writer: EventWriter, connection: psycopg.Connection[Any]
) -> None:
    """After a write nothing is left that a pooler would hand to the next borrower of the connection."""
    events = make_events(5)
    for batch in (events, events, [*make_events(2), make_event(id="bad")]):
        for _ in range(7):  # more often than the driver's threshold for prepared statements
            writer.write(batch, RESOURCE)
    left = connection.execute(
        "SELECT current_setting('statement_timeout'), (SELECT count(*) FROM pg_prepared_statements),"
        " (SELECT count(*) FROM pg_class WHERE relpersistence = 't'),"
        " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
    ).fetchone()
    assert left == ("0", 0, 0, 0)


def test_a_statement_that_takes_too_long_is_ended_and_nothing_is_stored(store_dsn: str) -> None:
    """The server itself ends an export that waits too long; the batch can be sent again."""
    events = make_events(3)
    with psycopg.connect(store_dsn, autocommit=True) as connection, psycopg.connect(store_dsn) as blocker:
        writer = EventWriter(connection, statement_timeout=0.3)
        blocker.execute("LOCK TABLE activity.events IN EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match="57014"):
            writer.write(events, RESOURCE)
        blocker.rollback()
        assert writer.write(events, RESOURCE) == WriteResult(3, 0, 0)


def test_resources_are_stored_once_and_joined(store_dsn: str, connection: psycopg.Connection[Any]) -> None:
    """Each resource is one row however many events and writers name it; each event leads to its own."""
    other = ResourceInfo({"service.name": "billing", "process": {"args": ["x", "nul \0", None]}})
    for _ in range(2):
        writer = EventWriter(connection)
        for resource in (RESOURCE, other, RESOURCE):
            writer.write([make_event()], resource)
    with session(store_dsn) as reader:
        rows = reader.execute(
            "SELECT service, count(*) AS n, min(r.attributes ->> 'service.name') AS joined"
            " FROM activity.events JOIN activity.resources AS r ON r.id = resource_id"
            " GROUP BY service ORDER BY 1"
        ).fetchall()
    assert rows == [
        {"service": "billing", "n": 2, "joined": "billing"},
        {"service": "shop", "n": 4, "joined": "shop"},
    ]
    assert count(store_dsn, "resources") == 2


def test_a_resource_of_any_bytes_is_stored(store_dsn: str, writer: EventWriter) -> None:
    """What the environment put into the resource cannot keep the events out."""
    odd = ResourceInfo({"service.name": "caf\udce9", "args": ("a", b"b", 2**70), "nul \0": float("nan")})
    event = make_event()
    assert writer.write([event], odd) == WriteResult(1, 0, 0)
    assert stored(store_dsn) == {event.id: event}
    with session(store_dsn) as connection:
        row = connection.execute("SELECT service, attributes FROM activity.events").fetchall()[0]
    assert row["service"] == "caf\\udce9"


def test_a_resource_that_the_table_refuses_does_not_keep_events_out(
    store_dsn: str, writer: EventWriter
) -> None:
    """Events are stored even if their resource is not; the reason stands in its place."""
    with session(store_dsn) as admin:
        admin.execute("ALTER TABLE activity.resources ADD CHECK (NOT attributes ? 'host.name')")
        assert writer.write(make_events(3), RESOURCE) == WriteResult(3, 0, 0)
        assert writer.write(make_events(3), RESOURCE) == WriteResult(3, 0, 0)
        (row,) = admin.execute("SELECT attributes FROM activity.resources").fetchall()
    assert row["attributes"]["service.name"] == "shop"
    assert "violates check constraint" in row["attributes"]["activity.refused"]


def test_a_resource_is_stored_even_if_its_first_batch_was_rolled_back(
    store_dsn: str, connection: psycopg.Connection[Any]
) -> None:
    """A failed write does not count as having stored the resource."""
    writer = EventWriter(connection, statement_timeout=0.3)
    with psycopg.connect(store_dsn) as blocker:
        blocker.execute("LOCK TABLE activity.events IN EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable):
            writer.write([make_event()], RESOURCE)
    writer.write([make_event()], RESOURCE)
    assert count(store_dsn, "resources") == 1


def test_a_trigger_that_refuses_one_row_costs_only_that_row(store_dsn: str, writer: EventWriter) -> None:
    """What somebody's own trigger raises counts as the record's fault, not the store's."""
    good, bad = make_events(5), make_event(attributes={semconv.TENANT_ID: "forbidden"})
    with session(store_dsn) as admin:
        admin.execute(
            "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF NEW.tenant_id = 'forbidden' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$"
        )
        admin.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON activity.events FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    assert writer.write([*good, bad], RESOURCE) == WriteResult(5, 0, 1)
    assert quarantine(store_dsn)[0]["sqlstate"] == "P0001"


def test_a_connection_with_transactions_of_its_own_is_refused(store_dsn: str) -> None:
    """A connection that is not in autocommit mode would hide when a batch is safe."""
    with (
        psycopg.connect(store_dsn) as connection,
        pytest.raises(ValueError, match="autocommit=True"),
    ):
        EventWriter(connection)


class TestMonths:
    """Which months a writer asks the server for."""

    NOW = 1_700_000_000.0  # 2023-11-14

    def _months(self) -> tuple[Months, list[float]]:
        clock = [0.0]
        return Months(now=lambda: self.NOW, monotonic=lambda: clock[0]), clock

    def _event(self, days: float) -> Event:
        return make_event(time=int((self.NOW + days * 86_400) * 10**9))

    def _missing(self, months: Months, *days: float) -> list[str]:
        return [f"{month:%Y-%m-%d}" for month in months.missing([self._event(day) for day in days])]

    def test_each_month_is_asked_for_once(self) -> None:
        """The current month comes with the next; afterwards neither is asked for again."""
        months, _ = self._months()
        assert self._missing(months, 0) == ["2023-11-01", "2023-12-01"]
        assert self._missing(months, 0, 1) == []
        assert self._missing(months, 20) == []
        assert self._missing(months, 0, -70, -31) == ["2023-09-01", "2023-10-01"]
        assert self._missing(months, -70) == []

    def test_a_failure_is_asked_for_again_later(self) -> None:
        """A month that could not be made is tried again after a minute, not with every batch."""
        months, clock = self._months()
        month = months.missing([self._event(0)])[0]
        months.failed(month)
        assert self._missing(months, 0) == []
        clock[0] = 61.0
        assert self._missing(months, 0) == ["2023-11-01"]

    def test_absurd_times_are_not_asked_for(self) -> None:
        """Times that no partition will ever have cost no round trip."""
        months, _ = self._months()
        assert self._missing(months, -30 * 365, 5 * 365, 10**7, -(10**9)) == []
