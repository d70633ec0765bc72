"""Good requests: what is sent is stored, once, before it is acknowledged."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import ScopeLogs

from tests.postgres.support import count, make_events, stored
from tests.receiver.support import JSON, PROTOBUF, Receiver, as_json, field, otlp_request

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

RESOURCE = {"service.name": "shop", "service.version": "1.2.3"}


def _body(request: ExportLogsServiceRequest, kind: str) -> bytes:
    return json.dumps(as_json(request)).encode() if kind == JSON else request.SerializeToString()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_http_request_is_in_the_table_when_it_is_acknowledged(
    receiver: Receiver, store_dsn: str, kind: str, encoding: str
) -> None:
    """A request over HTTP is answered in its own content type, and its events can be read then."""
    events = make_events(7)
    body = _body(otlp_request(events, RESOURCE), kind)
    body = gzip.compress(body) if encoding == "gzip" else body
    answer = receiver.post(body, kind, content_encoding=encoding)
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    assert answer.content == (b"{}" if kind == JSON else b"")
    assert stored(store_dsn).keys() == {event.id for event in events}


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_grpc_request_is_in_the_table_when_it_is_acknowledged(
    receiver: Receiver, store_dsn: str, compression: grpc.Compression
) -> None:
    """A request over gRPC is answered after its COMMIT, compressed or not."""
    events = make_events(7)
    answer = receiver.call(otlp_request(events, RESOURCE).SerializeToString(), compression=compression)
    assert not answer.HasField("partial_success")
    assert stored(store_dsn).keys() == {event.id for event in events}


def test_same_request_again_changes_nothing(receiver: Receiver, store_dsn: str) -> None:
    """A sender that was not told in time sends again, over whichever protocol: one row for each event."""
    body = otlp_request(make_events(5), RESOURCE).SerializeToString()
    assert receiver.post(body).status_code == 200
    assert receiver.post(body).status_code == 200
    receiver.call(body)
    assert count(store_dsn) == 5
    assert receiver.metric('activity_receiver_records_total{result="duplicate"}') == 10


def test_scope_may_come_behind_its_records(receiver: Receiver, store_dsn: str) -> None:
    """Fields of a message have no order, and the Collector writes the scope last: its events are ours."""
    request = otlp_request(make_events(2_500), RESOURCE)
    scopes = [scope for resource in request.resource_logs for scope in resource.scope_logs]
    records = ScopeLogs(log_records=[record for scope in scopes for record in scope.log_records])
    behind = ScopeLogs(scope=scopes[0].scope)
    body = field(2, records.SerializeToString() + behind.SerializeToString())
    assert receiver.post(field(1, body)).content == b""
    assert count(store_dsn) == 2_500


@pytest.mark.parametrize(("kind", "body"), [(PROTOBUF, b""), (JSON, b"{}"), (JSON, b'{"resourceLogs":[]}')])
def test_empty_request_succeeds(receiver: Receiver, kind: str, body: bytes) -> None:
    """A request without records is no error, over HTTP and gRPC."""
    assert receiver.post(body, kind).status_code == 200
    assert not receiver.call(b"").HasField("partial_success")


def test_health_and_metrics(receiver: Receiver) -> None:
    """The health page says that the store is reachable, and the metrics show it."""
    assert httpx.get(f"{receiver.url}/healthz").json() == {"status": "ok"}
    assert receiver.metric("activity_receiver_store_up") == 1


def test_sigterm_ends_with_status_0(receiver: Receiver) -> None:
    """SIGTERM stops the receiver in order."""
    assert receiver.stop() == 0
