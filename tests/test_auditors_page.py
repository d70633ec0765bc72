"""The SQL of docs/auditors.md does what the page says."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from otel_activity import semconv
from otel_activity.postgres import schema
from tests.cli.support import json_lines, run
from tests.store.support import apply_schema, make_event, store

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[1] / "docs" / "auditors.md").read_text("utf-8")
QUERIES = re.findall(r"^```sql\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"`(otel-activity (?:search|history|export|doctor|schema)[^`]*)`", PAGE)


def query(words: str) -> bytes:
    """The one block of the page that has these words."""
    found: list[str] = [text for text in QUERIES if words in text]
    assert len(found) == 1
    return found[0].encode()


@pytest.fixture
def opened(postgres_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """The owner's connection to a store in which Bob has raised, read and deleted."""
    person: dict[str, Any] = {
        "activity__entity__type": "Employee",
        "user__id": "bob",
        "client__address": "10.0.0.7",
    }
    raised = {"salary": {"before": {"$decimal": "1.00"}, "after": {"$decimal": "2.00"}}}
    gone = {"name": {"before": "Linus"}}
    events = [
        make_event(activity__changes=raised, activity__commit="unknown", **person),
        make_event(activity__changes={"name": {"before": "a", "after": "b"}}, **person),
        make_event(name=semconv.ENTITY_DELETED, activity__changes=gone, **person),
    ]
    store(apply_schema(postgres_dsn), events)
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        yield connection


def test_every_block_of_the_page_runs(opened: psycopg.Connection[Any]) -> None:
    """As the page has it, in its order."""
    assert len(QUERIES) >= 8
    for text in QUERIES:
        opened.execute(text.encode())


def test_the_queries_find_what_they_are_about(opened: psycopg.Connection[Any]) -> None:
    """The one change of the salary, the one deletion, the one commit that is not certain."""
    (salary,) = opened.execute(query("who changed this salary")).fetchall()
    assert salary[2] == "bob"
    assert salary[4:6] == ({"$decimal": "1.00"}, {"$decimal": "2.00"})
    assert "10.0.0.7" in salary
    assert [row[-1] for row in opened.execute(query("what was deleted")).fetchall()] == [
        {"name": {"before": "Linus"}}
    ]
    assert len(opened.execute(query("may not have been committed")).fetchall()) == 1


def test_what_bob_did_on_a_day_is_that_day(opened: psycopg.Connection[Any], postgres_dsn: str) -> None:
    """From its first moment on, the next day's first moment excluded; nobody else's."""
    assert opened.execute(query("what Bob did on a day")).fetchall() == []
    at = 1_795_478_400 * 10**9  # 2026-11-24
    day = 24 * 3600 * 10**9
    events = [make_event(at + offset, user__id="bob") for offset in (-1_000, 0, day - 1_000, day)]
    store(postgres_dsn, [*events, make_event(at, user__id="ada")])
    assert len(opened.execute(query("what Bob did on a day")).fetchall()) == 2


def test_a_secret_is_found_wherever_it_is(opened: psycopg.Connection[Any]) -> None:
    """In events, resources and refused records; where there is none the answer is three zeros."""
    text = query("in the store")
    assert opened.execute(text).fetchone() == (0, 0, 0)
    opened.execute(
        """INSERT INTO activity.quarantine (digest, resource_id, sqlstate, message, record)
        VALUES ('', gen_random_uuid(), '22000', 'x', %s)""",
        [b'{"a": "the-password"}'],
    )
    opened.execute(
        """UPDATE activity.events SET attributes = '{"x": ["the-password"]}' WHERE changes ? 'salary'"""
    )
    opened.execute('UPDATE activity.resources SET attributes = \'{"x": "the-password"}\'')
    assert opened.execute(text).fetchone() == (1, 1, 1)


def months_ago(opened: psycopg.Connection[Any], months: int) -> datetime:
    """A moment so long ago, in a month that has its partition."""
    ((moment,),) = opened.execute("SELECT now() - make_interval(months => %s)", [months]).fetchall()
    opened.execute("SELECT activity.ensure_partition(%s)", [moment])
    assert isinstance(moment, datetime)
    return moment.astimezone(UTC)


def test_retention_drops_whole_months_that_are_old_enough(opened: psycopg.Connection[Any]) -> None:
    """One that ended seven years ago goes; what is younger stays, and what is in no month."""
    old = months_ago(opened, 7 * 12 + 2)
    months_ago(opened, 7 * 12 - 1)
    months_ago(opened, 3)
    listing = query("pg_total_relation_size")
    before = {row[0] for row in opened.execute(listing).fetchall()}
    opened.execute(query("DROP TABLE"))
    after = {row[0] for row in opened.execute(listing).fetchall()}
    assert before - after == {f"events_{old:%Y_%m}"}
    assert "events_default" in after
    assert opened.execute("SELECT count(*) FROM activity.events").fetchone() == (3,)


def test_an_event_of_a_month_that_was_dropped_is_stored(
    opened: psycopg.Connection[Any], postgres_dsn: str
) -> None:
    """It gets its month again, by the writer."""
    old = months_ago(opened, 7 * 12 + 2)
    opened.execute(query("DROP TABLE"))
    store(postgres_dsn, [make_event(int(old.timestamp()) * 10**9)])
    (placed,) = opened.execute(
        "SELECT tableoid::regclass::text FROM activity.events ORDER BY time LIMIT 1"
    ).fetchall()
    assert placed == (f"activity.events_{old:%Y_%m}",)


def test_erased_values_are_gone_and_the_events_stay(
    opened: psycopg.Connection[Any], postgres_dsn: str
) -> None:
    """The history of that one entity shows that something was changed, and not what; nothing is missing."""
    about = {"activity.entity.type": "Employee", "activity.entity.id": "2"}
    event = make_event(
        user__name="Bobby", activity__changes={"name": {"before": "Secret", "after": "Hidden"}}
    )
    event.attributes |= about
    store(postgres_dsn, [event])
    opened.execute(query("about an employee"))
    opened.execute(query("about somebody as the actor"))
    shown = run("history", "Employee", "2", dsn=postgres_dsn).stdout
    assert "name  [redacted] -> [redacted]" in shown
    assert "Bobby" in shown  # done by somebody else than bob
    everything = run("export", dsn=postgres_dsn).stdout
    assert "Secret" not in everything
    assert "10.0.0.7" not in everything
    assert len(json_lines(everything)) == 4
    assert "Linus" in everything  # of other entities


def test_who_may_read_is_listed(opened: psycopg.Connection[Any]) -> None:
    """A reader and a writer by the printed grants have what these say and no more."""
    names = [f"{role}_{opened.info.dbname}"[:60] for role in ("reader", "writer")]
    grants = schema.grants("activity", reader=[names[0]], writer=[names[1]])
    try:
        for name in names:
            opened.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
        opened.execute(grants.encode())
        listed = {row[0]: row[1:] for row in opened.execute(query("has_schema_privilege")).fetchall()}
    finally:
        for name in names:
            role = sql.Identifier(name)
            opened.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))
    assert listed[names[0]] == (True, False, False, False)
    assert listed[names[1]] == (False, True, False, False)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_the_commands_of_the_page_are_there(
    opened: psycopg.Connection[Any], postgres_dsn: str, command: str
) -> None:
    """With the options that the page gives them."""
    result = run(*command.split()[1:], dsn=postgres_dsn)
    assert result.exit_code == 0, result.stderr
