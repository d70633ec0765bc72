"""Two applications, the Collector, the receiver, PostgreSQL and Prometheus, as real processes."""

from __future__ import annotations

import json
import subprocess
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.collector.pipeline import Board, Pipeline, Receiver
from tests.collector.processes import Collector, Prometheus, eventually, otel_activity
from tests.support import require_tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Server

pytestmark = [pytest.mark.external, pytest.mark.e2e, pytest.mark.timeout(300)]

ARTICLES = 8_000
"""In 32 transactions, of which three are rolled back: 29 times 250 inserts, 25 updates, 25 deletes."""
TASKS = 1_900
"""Tasks in each of the board's transactions."""


class World(Pipeline):
    """The pipeline of one machine: agent.yaml."""

    def __init__(self, application: str, directory: Path, program: Path, prometheus: str) -> None:
        super().__init__(application, directory)
        self.receiver = Receiver(directory, self.store)
        self.collector = Collector(program, ["agent"], directory / "agent", STORE=self.receiver.address)
        ports = {
            9464: self.collector.metrics,
            8888: self.collector.own_metrics,
            5318: self.receiver.http,
        }
        self.prometheus = Prometheus(prometheus, directory, ports)
        self.endpoint = self.collector.endpoint

    def start(self) -> None:
        """Start everything, let the applications create their tables, and put triggers on them."""
        for part in (self.receiver, self.collector, self.prometheus):
            self.adopt(part)
            part.start()
        self.board = Board(self)
        self.price_list("setup", articles=0)()
        self.truth.watch()
        self.board.begin()


@pytest.fixture(scope="module")
def world(
    postgres_server: Server, collector_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """One pipeline for all tests of this module: each reconciles everything until then."""
    prometheus = require_tool("prometheus")
    application = postgres_server.create_database("collector_end_to_end")
    with closing(
        World(application, tmp_path_factory.mktemp("pipeline"), collector_program, prometheus)
    ) as made:
        made.start()
        yield made
    postgres_server.drop_database("collector_end_to_end")


def text_attribute(key: str, value: str) -> dict[str, Any]:
    """An attribute as OTLP's JSON has it."""
    return {"key": key, "value": {"stringValue": value}}


AUDIT_RECORD = {
    "timeUnixNano": "1767225600000000000",
    "severityNumber": 9,
    "eventName": "activity.action",
    "attributes": [
        text_attribute("log.record.uid", "019b7654-7c00-7000-8000-000000000001"),
        text_attribute("activity.action", "report.read"),
    ],
}


def assert_complete(world: World, at_least: int) -> None:
    """Every committed row has its event and every event its row, once."""
    world.wait_for_all()
    result = world.reconciled()
    assert result.clean, result.examples
    stored, ids = world.count()
    assert stored == ids == result.rows, world.strangers()
    assert stored >= at_least


def test_nothing_is_missing_and_nothing_is_twice(world: World) -> None:
    """20,000 events of two applications arrive once each, and Prometheus counts as many."""
    finish = world.price_list("calm", articles=ARTICLES)
    for _ in range(6):
        world.board.tasks(TASKS)
    finish()
    assert_complete(world, 20_000)
    stored, _ = world.count()
    prometheus = world.prometheus
    eventually(
        lambda: prometheus.value("sum(activity_events_total)") == stored, "Prometheus has counted all events"
    )
    assert (
        prometheus.value('sum(activity_events_total{job="price-list",activity_action="delete"})') == 29 * 25
    )
    assert prometheus.value("sum(otelcol_exporter_send_failed_log_records_total)") == 0
    assert prometheus.value('min(up{job=~"applications|collector|receiver"})') == 1


def test_kills_lose_nothing_and_repeat_nothing(world: World) -> None:
    """Receiver, PostgreSQL and Collector are killed in turn under load and come back: the same holds."""
    before, _ = world.count()
    finish = world.price_list("faults", articles=ARTICLES, pause=0.2)
    for victim in (world.receiver, world.database, world.collector):
        sender = threading.Thread(target=world.board.tasks, args=(TASKS,))
        sender.start()
        victim.kill()
        sender.join()
        world.board.tasks(TASKS)
        victim.start()
    finish()
    assert_complete(world, before + 20_000)


def spans(world: World) -> dict[tuple[str, str], str]:
    """All spans that the Collector has written to its file: trace and span id to name."""
    file = world.collector.directory / "data" / "traces.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {
        (span["traceId"], span["spanId"]): span["name"]
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    }


def search(world: World, *arguments: str) -> list[dict[str, Any]]:
    """What ``otel-activity search --json`` prints."""
    command = otel_activity("search", "--json", "--limit", "10000", "--dsn", world.store, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_trace_leads_to_its_events_and_back(world: World) -> None:
    """Each event names a span that exists, and asking for a span yields its transaction's events."""
    tracing = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": world.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    world.price_list("traced", articles=2_750, **tracing)()
    world.wait_for_all()
    eventually(lambda: len(spans(world)) == 11, "the Collector has written eleven spans")
    traced = world.instances[-1]  # the others have spans as well, but send them nowhere
    found = search(world, "--service", "price-list", "--since", "10m")
    events = [event for event in found if event["resource"]["service.instance.id"] == traced]
    by_span: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in events:
        by_span.setdefault((event["trace_id"], event["span_id"]), []).append(event)
    known = spans(world)
    assert set(known.values()) == {"bring up to date"}
    assert set(by_span) < set(known)
    assert len(by_span) == 10  # the eleventh transaction was rolled back
    for (trace, span), expected in by_span.items():
        found = search(world, "--trace", trace, "--span", span)
        assert [event["id"] for event in found] == [event["id"] for event in expected]
        assert len({event["attributes"]["activity.transaction.id"] for event in found}) == 1
        assert len(found) == 250 + 25 + 25


def test_a_slow_span_leads_to_its_trace(world: World) -> None:
    """The durations that Prometheus has of spans carry the ids of traces that exist."""
    query = 'traces_span_metrics_duration_seconds_bucket{service_name="price-list"}'

    def traces() -> set[str]:
        return {exemplar["labels"]["trace_id"] for exemplar in world.prometheus.exemplars(query)}

    eventually(traces, "Prometheus has exemplars")
    assert traces() <= {trace for trace, _ in spans(world)}
    calls = 'sum(traces_span_metrics_calls_total{service_name="price-list"})'
    eventually(lambda: world.prometheus.value(calls) == 11, "Prometheus has counted eleven spans")


def test_application_logs_are_kept_apart(world: World) -> None:
    """An application's log goes to its own file, an audit event to the store, from one request."""
    before, _ = world.count()
    request = {
        "resourceLogs": [
            {
                "resource": {"attributes": [text_attribute("service.name", "both")]},
                "scopeLogs": [
                    {"scope": {"name": "app"}, "logRecords": [{"body": {"stringValue": "just a log line"}}]},
                    {"scope": {"name": "otel_activity"}, "logRecords": [AUDIT_RECORD]},
                ],
            }
        ]
    }
    world.collector.send_logs(request)
    eventually(lambda: world.count()[0] == before + 1, "the audit event is stored")
    file = world.collector.directory / "data" / "logs.jsonl"
    eventually(lambda: file.exists() and "just a log line" in file.read_text(), "the log line is written")
    assert "activity.action" not in file.read_text()
