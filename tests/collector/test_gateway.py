"""An agent that sends to a gateway over TLS with a token, and what the gateway does to secrets."""

from __future__ import annotations

import re
import ssl
import subprocess
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row

from otel_activity.postgres import schema
from tests.collector.pipeline import Receiver
from tests.collector.processes import CONFIGURATIONS, Collector, eventually
from tests.support import require_tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.external, pytest.mark.e2e]

TOKEN = "an-example-of-a-token"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"
ATTRIBUTES = {
    "log.record.uid": "019b7654-7c00-7000-8000-0000000000a1",
    "activity.action": "report.read",
    "activity.entity.type": "Report",
    "activity.entity.id": "4111111111111111",
    "activity.reason": f"asked with {JWT}, twice",
    "user_agent.original": "curl https://ann:hunter2@example.org/reports",
    "http.request.header.password": "hunter2",
    "activity.tenant.id": "acme",
}


@dataclass
class Road:
    """The programs of one test."""

    store: str
    certificate: Path
    agent: Collector
    gateway: Collector


@pytest.fixture
def road(postgres_dsn: str, collector_program: Path, tmp_path: Path) -> Iterator[Road]:
    """agent.yaml -> gateway.yaml with tls.yaml -> the receiver."""
    schema.apply(postgres_dsn)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = ["req", "-x509", "-nodes", "-days", "1", "-newkey", "ec"]
    make += ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
    name = ["-subj", "/CN=gateway", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([require_tool("openssl"), *make, *name, *files], check=True, capture_output=True)
    receiver = Receiver(tmp_path, postgres_dsn)
    gateway = Collector(
        collector_program,
        ["gateway", "tls"],
        tmp_path / "gateway",
        STORE=receiver.address,
        TOKEN=TOKEN,
        TLS_CERT=str(certificate),
        TLS_KEY=str(key),
    )
    agent = Collector(
        collector_program,
        ["agent"],
        tmp_path / "agent",
        STORE=f"127.0.0.1:{gateway.grpc}",
        STORE_INSECURE="false",
        STORE_CA=str(certificate),
        STORE_TOKEN=TOKEN,
    )
    with ExitStack() as stack:
        for part in (receiver, gateway, agent):
            stack.callback(part.kill)
            part.start()
        yield Road(postgres_dsn, certificate, agent, gateway)


def request_with(attributes: dict[str, str]) -> dict[str, Any]:
    """One audit event in OTLP's JSON."""
    record = {
        "timeUnixNano": "1767225600000000000",
        "severityNumber": 9,
        "eventName": "activity.action",
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()],
    }
    return {"resourceLogs": [{"scopeLogs": [{"scope": {"name": "otel_activity"}, "logRecords": [record]}]}]}


def stored(dsn: str) -> list[dict[str, Any]]:
    """All events of the store."""
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM activity.events").fetchall()


def test_secrets_that_slipped_through_are_masked_at_the_gateway(road: Road) -> None:
    """Tokens and passwords in texts are masked and marked; ids, and numbers that are no secret, stay."""
    road.agent.send_logs(request_with(ATTRIBUTES))
    eventually(lambda: stored(road.store), "the event is stored")
    (event,) = stored(road.store)
    assert str(event["id"]) == ATTRIBUTES["log.record.uid"]
    assert (event["entity_id"], event["tenant_id"]) == ("4111111111111111", "acme")
    attributes = event["attributes"]
    assert "hunter2" not in str(event)
    assert JWT not in str(event)
    assert attributes["activity.reason"] == "asked with ****, twice"
    assert attributes["user_agent.original"] == "curl ****example.org/reports"
    assert attributes["redaction.masked.keys"].split(",") == [
        "activity.reason",
        "http.request.header.password",
        "user_agent.original",
    ]


def test_an_event_without_secrets_passes_unchanged(road: Road) -> None:
    """The gateway adds nothing to an event in which it found nothing."""
    plain = {key: value for key, value in ATTRIBUTES.items() if key.startswith(("activity.action", "log."))}
    road.agent.send_logs(request_with(plain))
    eventually(lambda: stored(road.store), "the event is stored")
    (event,) = stored(road.store)
    assert event["action"] == "report.read"
    assert event["attributes"] == {}


@pytest.mark.parametrize("token", ["", "Bearer wrong", TOKEN], ids=["none", "wrong", "no scheme"])
def test_the_gateway_refuses_who_does_not_show_the_token(road: Road, token: str) -> None:
    """Without the token in the right form nothing is taken, over HTTP as over gRPC."""
    context = ssl.create_default_context(cafile=str(road.certificate))
    post = urllib.request.Request(
        f"https://127.0.0.1:{road.gateway.http}/v1/logs",
        data=b"{}",
        headers={"Content-Type": "application/json", "Authorization": token},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(post, context=context, timeout=10)
    caught.value.close()
    assert caught.value.code == 401


def test_alerts_and_dashboards_name_what_a_collector_shows(
    road: Road, collector_program: Path, tmp_path: Path
) -> None:
    """A Collector whose token is refused drops the event, and every metric of it that we look at is there."""
    files = [CONFIGURATIONS / "prometheus" / "alerts.yaml", CONFIGURATIONS / "grafana" / "promql.yaml"]
    wanted = {name for file in files for name in re.findall(r"otelcol_\w+", file.read_text())}
    agent = Collector(
        collector_program,
        ["agent"],
        tmp_path / "refused",
        STORE=f"127.0.0.1:{road.gateway.grpc}",
        STORE_INSECURE="false",
        STORE_CA=str(road.certificate),
        STORE_TOKEN="a wrong one",
    )

    def samples() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{agent.own_metrics}/metrics", timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}

    try:
        agent.start()
        agent.send_logs(request_with(ATTRIBUTES))
        failed = "otelcol_exporter_send_failed_log_records_total"
        eventually(lambda: samples().get(failed) == 1, "the event is dropped", timeout=20)
        assert wanted - samples().keys() == set()
    finally:
        agent.kill()
    assert stored(road.store) == []
