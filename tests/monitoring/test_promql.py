"""Every PromQL expression, against a Prometheus that has scraped a pipeline of real processes."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from math import isnan
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from otel_activity.embedded import free_port
from tests.collector.pipeline import Pipeline, Receiver
from tests.collector.processes import CONFIGURATIONS, Collector, Prometheus, answers, eventually
from tests.monitoring.grafana import expressions, promql
from tests.support import require_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server

pytestmark = [pytest.mark.external, pytest.mark.e2e, pytest.mark.timeout(300)]

CHOSEN = {"job": ".+", "database": ".+", "before": "8s", "__range": "30s", "__rate_interval": "8s"}
"""Prometheus scrapes every second here, so a short time holds enough."""
INSERTED = 'postgresql_operations_total{operation="ins",postgresql_table_name=~".+[.]projects"}'
LOOK_BACK = 22
"""Seconds: more than what the expressions look back, twice ``before``."""
PATIENCE = 90
"""Seconds after which the board is not used any longer, whatever there is to see."""


class World(Pipeline):
    """The project board with its traces and metrics, a Collector, a receiver and Prometheus."""

    def __init__(self, application: str, directory: Path, program: Path, prometheus: str) -> None:
        super().__init__(application, directory)
        statistics = ("--table-stats-dsn", application, "--table-stats-interval", "0.5")
        self.receiver = Receiver(directory, self.store, *statistics)
        self.collector = Collector(program, ["agent"], directory / "agent", STORE=self.receiver.address)
        ports = {9464: self.collector.metrics, 8888: self.collector.own_metrics, 5318: self.receiver.http}
        self.prometheus = Prometheus(prometheus, directory, ports)
        self.at = 0.0

    def start(self) -> None:
        """Start everything and use the board for as long as the expressions look back."""
        for part in (self.receiver, self.collector, self.prometheus):
            self.adopt(part)
            part.start()
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        endpoint = self.endpoint = f"http://127.0.0.1:{self.collector.http}"
        board = self.application_of(
            "project-board",
            ["uvicorn", "project_board.app:app", "--port", str(port), "--log-level", "warning"],
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_METRICS_EXPORTER="otlp",
            OTEL_METRIC_EXPORT_INTERVAL="1000",
            OTEL_BSP_SCHEDULE_DELAY="500",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_SEMCONV_STABILITY_OPT_IN="http,database",
            OTEL_ACTIVITY_DATABASE_METRICS="true",
        )
        board.start()
        eventually(lambda: answers(f"{url}/health"), "the project board answers")
        # An increase leaves out what a series began with: it has to begin before the first row.
        eventually(lambda: self.prometheus.query(INSERTED), "Prometheus knows the empty table")
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client, statements(endpoint) as ask:
            self._use(client, ask)

    def numbers(self, name: str) -> list[float]:
        """What a panel's expression yielded when the board had been used for long enough."""
        found = self.prometheus.query(promql(expressions()[name], CHOSEN), self.at)
        return [number for series in found if not isnan(number := float(series["value"][1]))]

    def _seen(self) -> bool:
        """Whether there is something to see everywhere: one commit in 64 is timed, and machines differ."""
        self.at = time.time()
        return all(self.numbers(name) for name in expressions())

    def _use(self, client: httpx.Client, ask: Callable[[str], None]) -> None:
        """A person registers, logs in, and starts projects; statements get spans as from a driver."""
        person = {"email": "ann@example.org", "name": "Ann", "password": "correct horse"}
        owner = client.post("/users", json=person).raise_for_status().json()["id"]
        client.auth = (person["email"], person["password"])
        started = time.monotonic()
        while (used := time.monotonic() - started) < LOOK_BACK or (used < PATIENCE and not self._seen()):
            for number in range(8):
                body = {"owner_id": owner, "name": f"Move {number}", "budget": "1000"}
                client.post("/projects", json=body).raise_for_status()
            ask(self.application)
            time.sleep(0.1)


@contextmanager
def statements(endpoint: str) -> Iterator[Callable[[str], None]]:
    """Runs a statement in a span of its own, as the instrumentation of a driver makes one."""
    resource = Resource.create({"service.name": "project-board"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    tracer = provider.get_tracer("statements")

    def ask(dsn: str) -> None:
        with psycopg.connect(dsn) as connection, tracer.start_as_current_span("SELECT", kind=SpanKind.CLIENT):
            connection.execute("SELECT count(*) FROM pg_class")

    yield ask
    provider.shutdown()


@pytest.fixture(scope="module")
def world(
    postgres_server: Server, collector_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A pipeline that was used until there was something to see."""
    application = postgres_server.create_database("monitoring")
    program = require_tool("prometheus")
    with closing(
        World(application, tmp_path_factory.mktemp("monitoring"), collector_program, program)
    ) as made:
        made.start()
        yield made
    postgres_server.drop_database("monitoring")


@pytest.fixture(scope="module")
def prometheus(world: World) -> Prometheus:
    """One that has scraped all of it."""
    return world.prometheus


@pytest.mark.parametrize("name", expressions())
def test_every_expression_returns_data(world: World, name: str) -> None:
    """Each panel's expression runs as Grafana sends it and yields numbers."""
    assert world.numbers(name), expressions()[name]


def test_a_healthy_pipeline_raises_no_alarm(prometheus: Prometheus) -> None:
    """None of the alert rules' expressions has a result while all is well."""
    rules = yaml.safe_load((CONFIGURATIONS / "prometheus" / "alerts.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert prometheus.query(rule["expr"]) == [], rule["alert"]


def test_slow_requests_and_statements_lead_to_traces_with_events(
    prometheus: Prometheus, world: World
) -> None:
    """Exemplars of requests and of their statements are ids of traces that the store has events of."""
    with psycopg.connect(world.store) as connection:
        found = connection.execute("SELECT DISTINCT trace_id FROM activity.events")
        stored = {str(trace).replace("-", "") for (trace,) in found}
    for metric in ("http_server_request_duration", "db_client_operation_duration"):
        exemplars = prometheus.exemplars(f"{metric}_seconds_bucket")
        traces = {exemplar["labels"]["trace_id"] for exemplar in exemplars}
        assert traces & stored, metric


def test_blind_spots_are_what_was_written_past_the_trail(prometheus: Prometheus, world: World) -> None:
    """What PostgreSQL counted of a table and what was captured of it meet under one name."""
    with psycopg.connect(world.application) as connection:
        rows = connection.execute("SELECT count(*) FROM project_board_demo.projects").fetchone()
    assert rows is not None
    assert rows[0] > 100
    # A backend tells the statistics what it wrote when its next transaction ends, or after 10 s of idleness.
    eventually(lambda: prometheus.value(INSERTED) == rows[0], "PostgreSQL has counted every row")
    table = '{table="projects"}'
    captured, written = (f"activity:rows_{name}:increase1h{table}" for name in ("captured", "written"))
    eventually(lambda: prometheus.value(captured) == rows[0], "every row is in what was captured")
    # `increase` extrapolates by up to a scrape at either end.
    eventually(
        lambda: prometheus.value(written) == pytest.approx(rows[0], rel=0.1),
        "every row is in what was written",
    )
    assert prometheus.value(f"activity:blind_spot:ratio1h{table}") < 0.1
