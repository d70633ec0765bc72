"""The queries people wait for use an index of the partitioned, filled table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from otel_activity.store import EventFilter
from otel_activity.store.filters import Position
from otel_activity.store.queries import Selection
from tests.store.support import apply_schema, make_event, store

if TYPE_CHECKING:
    from collections.abc import Iterator

FILL = """
INSERT INTO activity.events (time, id, severity, trace_flags, name, action, outcome, actor_type, actor_id,
    entity_type, entity_id, tenant_id, trace_id, transaction_id, service, resource_id, attributes)
SELECT now() - make_interval(mins => n * 2), gen_random_uuid(), 9, 0, 'activity.entity.updated', 'update',
    'success', 'user', (n % 500)::text, 'task', (n % 1000)::text, 't' || n % 200, md5(n::text),
    gen_random_uuid(), 'board', gen_random_uuid(),
    '{"a": "some attributes of ordinary length, so that a row has an ordinary width"}'
FROM generate_series(1, 60000) AS n
"""
MONTHS = """
SELECT activity.ensure_partition(now() - make_interval(months => n)) FROM generate_series(1, 3) AS n
"""


@pytest.fixture(scope="module")
def connection(postgres_server: Any) -> Iterator[psycopg.Connection[Any]]:
    """60,000 events over four months, each month a partition, with statistics."""
    dsn = apply_schema(postgres_server.create_database("activity_plans"))
    store(dsn, [make_event()])
    with psycopg.connect(dsn, autocommit=True) as opened:
        opened.execute(MONTHS)
        opened.execute(FILL)
        opened.execute("ANALYZE activity.events")
        assert opened.execute("SELECT count(*) FROM activity.events_default").fetchone() == (0,)
        yield opened
    postgres_server.drop_database("activity_plans")


def _plan(connection: psycopg.Connection[Any], query: Any) -> dict[str, Any]:
    statement, parameters = query
    row: Any = connection.execute(
        sql.SQL("EXPLAIN (ANALYZE, TIMING off, FORMAT json) ") + statement, parameters
    ).fetchone()
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _assert_indexed(plan: dict[str, Any], index: str, most_rows: int) -> None:
    """Filled partitions are read through the index only, and hardly more rows than are returned."""
    nodes = list(_nodes(plan))
    sequential = [
        node["Relation Name"]
        for node in nodes
        if node["Node Type"] == "Seq Scan"
        and node["Actual Rows"] + node.get("Rows Removed by Filter", 0) > 10
    ]
    assert sequential == []
    used = [node["Index Name"] for node in nodes if "Index Name" in node and node["Actual Loops"]]
    assert any(index in name for name in used), used
    assert sum(node["Actual Rows"] for node in nodes if "Index Name" in node) <= most_rows


def test_history_of_one_entity_uses_the_entity_index(connection: psycopg.Connection[Any]) -> None:
    """A history reads the index on entity and time in each month, and only its own 60 rows."""
    wanted = Selection(EventFilter(entity_type="task", entity_id="7"))
    _assert_indexed(_plan(connection, wanted.page("activity", None, None)), "entity_type_entity_id_time", 130)


def test_search_by_entity_uses_the_entity_index(connection: psycopg.Connection[Any]) -> None:
    """A page of one entity's events stops after the page."""
    wanted = Selection(EventFilter(entity_type="task", entity_id="7"))
    _assert_indexed(_plan(connection, wanted.page("activity", 10, None)), "entity_type_entity_id_time", 130)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (EventFilter(actor_id="9"), "actor_id_time"),
        (EventFilter(tenant_id="t9"), "tenant_id_time"),
        (EventFilter(trace_id="c4ca4238a0b923820dcc509a6f75849b"), "trace_id"),
    ],
)
def test_other_indexed_searches(connection: psycopg.Connection[Any], wanted: EventFilter, index: str) -> None:
    """Actor, tenant and trace each have their index."""
    _assert_indexed(_plan(connection, Selection(wanted).page("activity", 20, None)), index, 700)


def test_the_types_of_entity_are_looked_up_not_counted(connection: psycopg.Connection[Any]) -> None:
    """Each type costs a few rows of each month's index, however many events it has."""
    query = Selection(EventFilter()).entity_types("activity", 100)
    assert connection.execute(*query).fetchall() == [("task",)]
    _assert_indexed(_plan(connection, query), "entity_type_entity_id_time", 40)


def test_store_of_one_tenant_uses_the_tenant_index(connection: psycopg.Connection[Any]) -> None:
    """The restriction to a tenant is indexed as the filter is."""
    selection = Selection(EventFilter(), tenant="t9")
    _assert_indexed(_plan(connection, selection.page("activity", 20, None)), "tenant_id_time", 700)


@pytest.mark.parametrize("depth", [0, 100, 50_000])
def test_any_page_of_all_events_reads_little_more_than_itself(
    connection: psycopg.Connection[Any], depth: int
) -> None:
    """A page far down costs what the first one costs: the key is sought, nothing is skipped over."""
    row: Any = connection.execute(
        "SELECT (extract(epoch FROM time) * 1000000)::bigint, id FROM activity.events "
        "ORDER BY time DESC, id DESC OFFSET %s LIMIT 1",
        [depth],
    ).fetchone()
    after = Position(row[0], str(row[1])) if depth else None
    plan = _plan(connection, Selection(EventFilter()).page("activity", 20, after))
    _assert_indexed(plan, "pkey", 120)
