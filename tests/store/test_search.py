"""Searching, counting, histories, paging, and who may see what."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_activity import semconv
from otel_activity.errors import ConfigurationError, StoreRefused, StoreUnavailable
from otel_activity.events import ResourceInfo
from otel_activity.store import ActivityStore, EventFilter
from tests.store.support import BOARD, MINUTE, make_event, now, store

if TYPE_CHECKING:
    from otel_activity.events import Event

TRANSACTION = "01a20a28-e476-7136-a081-13bb5fbcc557"
LONG = "x" * 300

ODD: dict[str, dict[str, Any]] = {
    "actions": {semconv.ACTIVITY_ACTION: "login"},
    "outcomes": {semconv.ACTIVITY_OUTCOME: "failure"},
    "actor_type": {semconv.ACTOR_TYPE: "service"},
    "actor_id": {semconv.USER_ID: LONG},
    "entity_type": {semconv.ENTITY_TYPE: "project"},
    "entity_id": {semconv.ENTITY_ID: '["a", 2]'},
    "tenant_id": {semconv.TENANT_ID: "acme"},
    "project_id": {semconv.PROJECT_ID: "p'1\\"},
    "table": {semconv.DB_COLLECTION_NAME: "projects"},
    "changed_field": {semconv.CHANGES: {"title": {"before": "a", "after": "b"}}},
    "text": {semconv.REASON: "Needle in 100% of the haystack"},
    "transaction_id": {semconv.TRANSACTION_ID: TRANSACTION},
}
WANTED: dict[str, Any] = {
    "actions": ("login", "logout"),
    "outcomes": ("failure",),
    "actor_type": "service",
    "actor_id": LONG,
    "entity_type": "project",
    "entity_id": '["a", 2]',
    "tenant_id": "acme",
    "project_id": "p'1\\",
    "table": "projects",
    "changed_field": "title",
    "text": "needle IN 100%",
    "transaction_id": TRANSACTION,
}


@pytest.mark.parametrize("field", ODD)
def test_each_field_finds_its_event_alone(store_dsn: str, field: str) -> None:
    """Each field of a filter returns the events that match it and no others."""
    odd = make_event(**{key.replace(".", "__"): value for key, value in ODD[field].items()})
    near_miss = make_event(user__id=LONG + "y", activity__changes={"body": {"after": "title"}})
    store(store_dsn, [make_event(), odd, near_miss])
    with ActivityStore(store_dsn) as reader:
        found = reader.search(EventFilter(**{field: WANTED[field]}))
        assert [event.id for event in found.events] == [odd.id]
        assert reader.count(EventFilter(**{field: WANTED[field]})) == 1
        assert reader.count() == 3


@pytest.mark.parametrize("text", ['said "Hi" to', "C:\\Temp", "two\nlines", '"', "ends \\", "☃ 100%_"])
def test_text_is_found_as_it_was_written(store_dsn: str, text: str) -> None:
    """Quotes, backslashes and line breaks are escaped in JSON; who looks for them need not know that."""
    changed = make_event(activity__changes={"note": {"after": f"He {text}"}})
    acted = make_event(activity__details={"note": f"{text} him"}, user__id=f"<{text}>")
    store(store_dsn, [make_event(), changed, acted])
    with ActivityStore(store_dsn) as reader:
        found = {event.id for event in reader.search(EventFilter(text=text.swapcase())).events}
    assert found == {changed.id, acted.id}


def test_name_trace_span_and_service(store_dsn: str) -> None:
    """Event name, trace, span and service select as the other fields do."""
    named, traced, other = make_event(name="activity.auth.login"), make_event(), make_event()
    traced.trace_id, traced.span_id = 0xABC, 0xDEF
    store(store_dsn, [named, traced])
    store(store_dsn, [other], ResourceInfo({"service.name": "billing"}))
    with ActivityStore(store_dsn) as reader:
        for wanted, event in (
            (EventFilter(names=("activity.auth.login",)), named),
            (EventFilter(trace_id=f"{0xABC:032x}"), traced),
            (EventFilter(span_id=f"{0xDEF:016x}"), traced),
            (EventFilter(service="billing"), other),
        ):
            assert [found.id for found in reader.search(wanted).events] == [event.id]


def test_since_is_inclusive_and_until_exclusive(store_dsn: str) -> None:
    """A time range takes its beginning and leaves its end, so ranges side by side share no event."""
    moment = datetime(2026, 11, 1, 12, tzinfo=UTC)
    at = int(moment.timestamp()) * 10**9
    events = [make_event(at - 1000), make_event(at), make_event(at + 1000)]
    store(store_dsn, events)
    with ActivityStore(store_dsn) as reader:
        later = reader.search(EventFilter(since=moment)).events
        earlier = reader.search(EventFilter(until=moment)).events
    assert [event.id for event in later] == [events[2].id, events[1].id]
    assert [event.id for event in earlier] == [events[0].id]


def test_events_come_back_equal_with_their_resource(store_dsn: str) -> None:
    """What is found equals what was stored, and says which service and resource produced it."""
    event = make_event(activity__changes={"n": {"before": None, "after": 2**62}}, user__name="Zoë \x1b[2J\0")
    event.trace_id, event.span_id, event.trace_flags, event.observed = 5, 6, 1, event.time + 1000
    store(store_dsn, [event])
    with ActivityStore(store_dsn) as reader:
        (found,) = reader.search().events
    for name in event.__struct_fields__:
        assert getattr(found, name) == getattr(event, name), name
    assert (found.service, found.resource) == ("board", BOARD)


def _order(event: Event) -> tuple[int, str]:
    return (event.time, event.id)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offsets=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    limit=st.integers(1, 9),
)
def test_paging_neither_skips_nor_repeats(store_dsn: str, offsets: list[int], limit: int) -> None:
    """Pages of any size, over events of which many have the same time, add up to all events in order."""
    with psycopg.connect(store_dsn) as connection:
        connection.execute("TRUNCATE activity.events")
    base = now()
    events = [make_event(base + offset * 1000) for offset in offsets]
    store(store_dsn, events)
    found: list[str] = []
    with ActivityStore(store_dsn) as reader:
        cursor = None
        while True:
            page = reader.search(limit=limit, cursor=cursor)
            assert len(page.events) == limit or page.cursor is None
            found += [event.id for event in page.events]
            cursor = page.cursor
            if cursor is None:
                break
    assert found == [event.id for event in sorted(events, key=_order, reverse=True)]


def test_events_stored_between_two_pages_do_not_disturb(store_dsn: str) -> None:
    """Newer events that arrive while somebody pages shift nothing."""
    base = now()
    events = [make_event(base + n * 1000) for n in range(6)]
    store(store_dsn, events)
    with ActivityStore(store_dsn) as reader:
        first = reader.search(limit=3)
        store(store_dsn, [make_event(base + 10**6), make_event(base + 10**6)])
        second = reader.search(limit=3, cursor=first.cursor)
    assert [e.id for e in (*first.events, *second.events)] == [e.id for e in reversed(events)]
    assert second.cursor is None


def test_history_is_of_one_entity_oldest_first(store_dsn: str) -> None:
    """A history holds one entity's events in order; a limit keeps the newest of them."""
    base = now()
    events = [make_event(base + n * 1000) for n in (3, 1, 2)]
    store(store_dsn, [*events, make_event(activity__entity__id="2"), make_event(activity__entity__type="x")])
    with ActivityStore(store_dsn) as reader:
        assert [e.id for e in reader.history("task", "1")] == [events[1].id, events[2].id, events[0].id]
        assert [e.id for e in reader.history("task", "1", limit=2)] == [events[2].id, events[0].id]
        assert reader.history("task", "3") == []


def test_tenant_of_the_store_beats_every_filter(store_dsn: str) -> None:
    """A store opened for one tenant shows that tenant's events alone, through every method."""
    ours, theirs, nobodys = (make_event(activity__tenant__id=tenant) for tenant in ("a", "b", None))
    store(store_dsn, [ours, theirs, nobodys])
    with ActivityStore(store_dsn, tenant="a") as reader:
        follower = reader.follow(last=10)
        seen = [
            reader.search().events,
            reader.history("task", "1"),
            reader.search(EventFilter(actor_id=None)).events,
            follower.poll(),
        ]
        assert [[event.id for event in events] for events in seen] == [[ours.id]] * 4
        assert reader.count() == 1
        assert reader.count(EventFilter(tenant_id="b")) == 0
        more = make_event(activity__tenant__id="a")
        store(store_dsn, [make_event(activity__tenant__id="b"), more])
        assert [event.id for event in follower.poll()] == [more.id]


def test_event_of_the_last_hour_of_time_in_any_time_zone(store_dsn: str) -> None:
    """A session's time zone cannot make an event of year 9999 unreadable, and with it the page."""
    last = int(datetime(9999, 12, 31, 23, 30, tzinfo=UTC).timestamp()) * 10**9
    store(store_dsn, [make_event(last), make_event()])
    zoned = psycopg.conninfo.make_conninfo(store_dsn, options="-c TimeZone=Asia/Tokyo")
    with ActivityStore(zoned) as reader:
        assert reader.search().events[0].time == last


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "Postgres, MDY"])
def test_dates_are_read_whatever_style_the_role_has(store_dsn: str, style: str) -> None:
    """A role or database with a style of dates of its own (ALTER ROLE ... SET datestyle) changes nothing."""
    event = make_event()
    store(store_dsn, [event])
    styled = psycopg.conninfo.make_conninfo(store_dsn, options=f"-c datestyle={style.replace(' ', '')}")
    with ActivityStore(styled) as reader:
        assert [found.time for found in reader.search().events] == [event.time // 1000 * 1000]
        assert reader.follow(last=1).poll()[0].id == event.id


# --- errors and connections -----------------------------------------------------------------------


def test_missing_schema_names_the_command_that_makes_it(postgres_dsn: str) -> None:
    """Without tables the error is a refusal that says what to run."""
    with (
        ActivityStore(postgres_dsn) as reader,
        pytest.raises(StoreRefused, match="otel-activity schema apply"),
    ):
        reader.search()


def test_unreachable_store_says_so_without_the_password(free_port: int) -> None:
    """No server gives one line that names the address and hides the password."""
    reader = ActivityStore(f"postgresql://audit:s3cret@127.0.0.1:{free_port}/app")
    with pytest.raises(StoreUnavailable, match=r"audit:\*\*\*@127\.0\.0\.1") as caught:
        reader.search()
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_database_is_a_refusal(store_dsn: str) -> None:
    """A server that answers and refuses is told apart from one that is away."""
    with pytest.raises(StoreRefused, match="does not exist"):
        ActivityStore(store_dsn.rpartition("/")[0] + "/no_such_database").search()


def test_user_without_rights_gets_the_grant_to_ask_for(store_dsn: str) -> None:
    """A user who may not read is told what is missing."""
    role = f"nobody_{os.getpid()}"
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        try:
            poor = psycopg.conninfo.make_conninfo(store_dsn, user=role, password="x")
            with ActivityStore(poor) as reader, pytest.raises(StoreRefused, match="--grants --reader ROLE"):
                reader.search()
        finally:
            connection.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("dsn", ["localhost", "postgresql://u:s3cret@h/x?y=z"])
def test_malformed_dsn_is_refused_before_connecting(dsn: str) -> None:
    """A connection string that is none is a configuration error, its password masked."""
    with pytest.raises(ConfigurationError) as caught:
        ActivityStore(dsn)
    assert "s3cret" not in str(caught.value)


def test_lost_connection_is_replaced(store_dsn: str) -> None:
    """A connection that the server ended is opened again by the next read."""
    with ActivityStore(store_dsn) as reader:
        store(store_dsn, [make_event()])
        assert reader.count() == 1
        _end_readers(store_dsn)
        assert reader.count() == 1


def _end_readers(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'otel_activity reader' AND datname = current_database()"
        ).fetchall()
        assert ended == [(True,)]


def test_reads_cannot_write(store_dsn: str) -> None:
    """Every read runs in a read-only transaction."""
    with ActivityStore(store_dsn) as reader, pytest.raises(StoreRefused, match="read-only"):
        reader._reader.run(lambda cursor: cursor.execute("CREATE TABLE x ()"))


def _backend(cursor: psycopg.Cursor[Any]) -> Any:
    return cursor.execute("SELECT pg_backend_pid() AS pid").fetchone()


def test_read_in_a_forked_child_leaves_the_parent_its_connection(store_dsn: str) -> None:
    """A forked child reads over a connection of its own and does not end the parent's session."""
    with ActivityStore(store_dsn) as reader:
        before = reader._reader.run(_backend)
        child = os.fork()
        if child == 0:
            os._exit(0 if reader._reader.run(_backend) != before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert reader._reader.run(_backend) == before


def test_history_over_a_time_range(store_dsn: str) -> None:
    """A history can be cut to a range of time."""
    base = now()
    events = [make_event(base - n * MINUTE) for n in (3, 2, 1)]
    store(store_dsn, events)
    moment = datetime.fromtimestamp(base / 10**9, UTC)
    with ActivityStore(store_dsn) as reader:
        found = reader.history(
            "task", "1", since=moment - timedelta(minutes=2, seconds=1), until=moment - timedelta(seconds=61)
        )
    assert [event.id for event in found] == [events[1].id]


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_refused(store_dsn: str, limit: int) -> None:
    """A page of no events is a mistake, not an empty answer."""
    with ActivityStore(store_dsn) as reader, pytest.raises(ConfigurationError):
        reader.search(limit=limit)
