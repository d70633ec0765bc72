"""The Grafana dashboards: as generated, complete, and their SQL against a filled store."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import yaml

from otel_activity import semconv
from otel_activity.events import ResourceInfo
from tests.monitoring.grafana import FOLDER, dashboards, queries, sql
from tests.store.support import MINUTE, apply_schema, make_event, now, store

if TYPE_CHECKING:
    from collections.abc import Iterator

ODD = "O'Brien; DROP TABLE x --"
CHOSEN = {"service": ["board", ODD], "entity_type": ["task"], "entity_id": ["1"], "actor": [ODD]}
PAST_MONTHS = """
SELECT activity.ensure_partition(now() - make_interval(months => n)) FROM generate_series(1, 3) AS n
"""
OTHERS = """
INSERT INTO activity.events (time, id, severity, trace_flags, name, action, outcome, actor_type, actor_id,
    entity_type, entity_id, service, resource_id, attributes)
SELECT now() - make_interval(secs => n * 0.1), gen_random_uuid(), 9, 0, 'activity.entity.updated', 'update',
    'success', 'user', 'u' || n % 500, 'task', 'e' || n % 1000, 'other', gen_random_uuid(), '{}'
FROM generate_series(1, 20000) AS n
"""


@pytest.fixture(scope="module")
def connection(postgres_server: Any) -> Iterator[psycopg.Connection[Any]]:
    """A store with partitions of four months, whose 20,000 events are of the last hour."""
    dsn = apply_schema(postgres_server.create_database("activity_dashboards"))
    events = []
    for number in range(60):
        given: dict[str, Any] = {
            "user__id": ODD if number % 2 else "ann",
            "activity__actor__type": "user" if number % 3 else "unknown",
            "activity__outcome": "failure" if number % 7 == 0 else "success",
            "error__type": "ValueError" if number % 7 == 0 else None,
            "activity__changes": {"state": {"before": number, "after": number + 1}} if number % 4 else None,
            "activity__capture": "full",
            "db__collection__name": "task",
            "client__address": "192.0.2.1",
            "activity__stream__id": "01890000-0000-7000-8000-000000000001",
            "activity__sequence": number + 1,
        }
        events.append(make_event(now() - number * MINUTE // 2, **given))
    store(dsn, events)
    store(dsn, [make_event()], ResourceInfo({"service.name": ODD}))
    with psycopg.connect(dsn, autocommit=True) as opened:
        opened.execute(PAST_MONTHS)
        opened.execute(OTHERS)
        opened.execute(
            "INSERT INTO activity.quarantine (digest, resource_id, sqlstate, message, record) "
            "VALUES ('x', gen_random_uuid(), '22P05', 'no such character', '{}')"
        )
        opened.execute("ANALYZE activity.events")
        yield opened
    postgres_server.drop_database("activity_dashboards")


def at_range() -> tuple[datetime, datetime]:
    """The time range that a person has chosen."""
    end = datetime.now(UTC) + timedelta(minutes=1)
    return end - timedelta(hours=1), end


def test_the_committed_dashboards_are_those_that_the_script_writes() -> None:
    """Running generate.py again changes nothing, and there is no file that it does not write."""
    spec = importlib.util.spec_from_file_location("generate_dashboards", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    committed = {file.stem: file.read_text() for file in (FOLDER / "dashboards").iterdir()}
    assert committed == {name: script.generated(name) for name in script.DASHBOARDS}


def test_every_query_and_expression_is_used() -> None:
    """No file in sql/ and no line of promql.yaml is left over, and no panel says nothing."""
    used = set(queries().values())
    assert {file.read_text().strip() for file in (FOLDER / "sql").iterdir()} == used
    source = (FOLDER / "generate.py").read_text()
    for name in yaml.safe_load((FOLDER / "promql.yaml").read_text()):
        assert f"{name}=" in source or f'"{name}"' in source, name
    for name, dashboard in dashboards():
        assert dashboard["uid"].startswith("otel-activity-")
        for panel in dashboard["panels"]:
            assert panel["type"] == "row" or panel["targets"], (name, panel["title"])
            assert panel["type"] == "row" or panel["description"], (name, panel["title"])


def test_the_compose_file_brings_dashboards_and_their_sources() -> None:
    """Every mounted file exists, and each data source that a panel names is provisioned by that uid."""
    root = FOLDER.parent
    services = yaml.safe_load((root / "compose.yaml").read_text())["services"]
    mounted = [volume for service in services.values() for volume in service.get("volumes", ())]
    ours = [volume.split(":")[0] for volume in mounted if volume.startswith(".")]
    assert "./grafana/dashboards" in ours
    assert [path for path in ours if not (root / path).exists()] == []
    sources = yaml.safe_load((root / "compose" / "grafana-datasources.yaml").read_text())["datasources"]
    named = {
        target["datasource"]["uid"]
        for _, dashboard in dashboards()
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    assert named == {source["uid"] for source in sources}
    provider = yaml.safe_load((root / "compose" / "grafana-dashboards.yaml").read_text())["providers"][0]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounted


@pytest.mark.parametrize("name", queries())
def test_every_sql_panel_shows_something(connection: psycopg.Connection[Any], name: str) -> None:
    """Each query runs as Grafana sends it and returns rows, whatever text people choose."""
    cursor = connection.execute(sql(queries()[name], CHOSEN, *at_range()))
    rows = cursor.fetchall()
    assert rows
    if "AS metric" in queries()[name]:
        assert [column.name for column in cursor.description or ()] == ["time", "metric", "value"]


@pytest.mark.parametrize("name", queries())
def test_every_sql_panel_keeps_to_the_time_range(connection: psycopg.Connection[Any], name: str) -> None:
    """Only the partitions of the chosen time are read, and nothing of an empty time is returned."""
    start, end = at_range()
    statement = sql(queries()[name], CHOSEN, start, end)
    plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {statement}"))
    for months in (1, 2, 3):
        (past,) = connection.execute(
            "SELECT to_char(now() AT TIME ZONE 'UTC' - make_interval(months => %s), 'YYYY_MM')", [months]
        ).fetchone() or ("",)
        assert f"events_{past}" not in plan
    long_ago = timedelta(days=3650)
    rows = connection.execute(sql(queries()[name], CHOSEN, start - long_ago, end - long_ago)).fetchall()
    assert [row for row in rows if any(value not in (None, 0) for value in row)] == []


@pytest.mark.parametrize(
    ("prefix", "index"), [("entity-history: Changes", "entity_type_entity_id"), ("actor: Newest", "actor_id")]
)
def test_histories_are_read_through_their_index(
    connection: psycopg.Connection[Any], prefix: str, index: str
) -> None:
    """What people wait for does not scan a partition."""
    (name,) = [name for name in queries() if name.startswith(prefix)]
    statement = sql(queries()[name], CHOSEN, *at_range())
    plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {statement}"))
    assert index in plan


def test_the_history_shows_each_field_before_and_after(connection: psycopg.Connection[Any]) -> None:
    """The panel of changes has one line for each field, and one for an action that changed nothing."""
    (name,) = [name for name in queries() if name.startswith("entity-history: Changes")]
    cursor = connection.execute(sql(queries()[name], CHOSEN, *at_range()))
    columns = [column.name for column in cursor.description or ()]
    rows = [dict(zip(columns, row, strict=True)) for row in cursor]
    changed = [row for row in rows if row["Field"] is not None]
    assert len(rows) == 61
    assert len(changed) == 45
    assert {int(row["After"]) - int(row["Before"]) for row in changed} == {1}
    assert semconv.CHANGES not in columns
