"""Our own OTLP encoding, and the way to the receiver with the SDK's transports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from decimal import Decimal
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.http import _log_exporter as stock
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LogRecordLimits, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_activity import semconv
from otel_activity.codec import decode
from otel_activity.codec.otlp import envelope, log_request
from otel_activity.delivery import Backoff, Lane
from otel_activity.events import Event, packed
from otel_activity.telemetry import Pipeline, _LogRecord, otlp_exporter
from tests.otlp_sink import Sink, python_value, serving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SCOPE = InstrumentationScope("otel_activity", "1.2", "https://example.org/schema")
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
SCALARS = st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
NAMES = TEXTS | st.sampled_from(
    [semconv.ENTITY_TYPE, semconv.USER_ID, semconv.TRANSACTION_ID, semconv.DB_NAMESPACE, semconv.SEQUENCE]
)
EVENTS = st.builds(
    Event,
    id=st.uuids().map(str),
    name=TEXTS,
    time=st.integers(0, (1 << 64) - 1),
    observed=st.integers(0, (1 << 64) - 1),
    attributes=st.dictionaries(NAMES.filter(lambda name: name != semconv.RECORD_UID), VALUES, max_size=8),
    severity=st.integers(1, 24),
    trace_id=st.integers(0, (1 << 128) - 1),
    span_id=st.integers(0, (1 << 64) - 1),
    trace_flags=st.integers(0, 255),
)


def parsed(events: Sequence[Event], resource: Mapping[str, Any]) -> Any:
    """What our encoder makes of them, read by protobuf."""
    around = envelope(resource, "https://example.org/resource", SCOPE.name, "1.2", SCOPE.schema_url or "")
    return ExportLogsServiceRequest.FromString(log_request(around, events))


def by_the_sdk(events: Sequence[Event], resource: Mapping[str, Any]) -> Any:
    """What the SDK's encoder makes of the same log records."""
    whole = Resource(dict(resource), "https://example.org/resource")
    records = []
    for event in events:
        record = ReadWriteLogRecord.__new__(ReadWriteLogRecord)
        record.log_record = _LogRecord(event)
        record.resource, record.instrumentation_scope, record.limits = whole, SCOPE, LogRecordLimits()
        records.append(record)
    return ExportLogsServiceRequest.FromString(encode_logs(records).SerializeToString())


@settings(max_examples=300, deadline=None)
@given(
    st.lists(EVENTS, min_size=1, max_size=4), st.dictionaries(TEXTS.filter(bool), TEXTS | INT64, max_size=3)
)
def test_our_bytes_mean_what_the_sdk_encoder_says(events: list[Event], resource: dict[str, Any]) -> None:
    """Both requests, parsed, are equal: every field, every attribute, in the same order."""
    assert parsed(events, resource) == by_the_sdk(events, resource)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=6))
def test_packed_changes_are_sent_as_the_values_they_hold(changes: dict[str, Any]) -> None:
    """A receiver sees nested values, not a text of JSON, whether changes were packed or not."""
    attributes = {semconv.CHANGES: packed(changes)}
    event = Event(id="x", name=semconv.ENTITY_UPDATED, time=1, attributes=attributes)
    (record,) = parsed([event], {}).resource_logs[0].scope_logs[0].log_records
    assert python_value(record.attributes[0].value) == changes


@pytest.mark.parametrize(
    "odd", [Decimal("1.5"), 1 << 70, -(1 << 70), {1: "a"}, (1, 2), b"x", {"a": [1 << 64]}]
)
def test_a_value_that_is_not_plain_costs_only_itself(odd: Any) -> None:
    """It is encoded as the codec encodes it, and the records around it are whole."""
    events = [Event(id=str(n), name="n", time=1, attributes={"ok": n, "odd": 1}) for n in range(3)]
    events[1].attributes["odd"] = odd
    records = parsed(events, {}).resource_logs[0].scope_logs[0].log_records
    values = [{item.key: python_value(item.value) for item in record.attributes} for record in records]
    assert [value["ok"] for value in values] == [0, 1, 2]
    assert [value["odd"] for value in values][::2] == [1, 1]
    assert decode(values[1]["odd"]) == odd


def test_a_lone_surrogate_is_marked() -> None:
    """The SDK drops such an attribute and reports success."""
    event = Event(id="x", name="n", time=1, attributes={semconv.USER_NAME: "a\ud800b"})
    (record,) = parsed([event], {}).resource_logs[0].scope_logs[0].log_records
    assert decode(python_value(record.attributes[0].value)) == "a\ud800b"


def test_a_text_remembered_for_one_attribute_is_not_taken_for_another() -> None:
    """The same text under two names, and 1 and True under one, stay apart."""
    attributes = [
        {semconv.USER_ID: "7", semconv.TENANT_ID: "7"},
        {semconv.USER_ID: True, semconv.TENANT_ID: 1},
        {semconv.USER_ID: 1, semconv.TENANT_ID: "x" * 1000},
    ]
    events = [Event(id=str(n), name="n", time=1, attributes=each) for n, each in enumerate(attributes)]
    for _ in range(2):
        assert parsed(events, {}) == by_the_sdk(events, {})


# --- to the receiver ------------------------------------------------------------------------------


def pipeline(endpoint: str, protocol: str, **settings: int) -> Pipeline:
    """A pipeline to a receiver that sends when it is told to, or when a batch is full."""
    road = Pipeline(
        Resource({"service.name": "billing"}),
        **{
            "schedule_delay": 60_000,
            "batch_size": 1000,
            "queue_size": 1000,
            "export_timeout": 5000,
            **settings,
        },
        version="1",
    )
    road.add("otlp", otlp_exporter(endpoint, protocol))
    return road


def emit(road: Pipeline, number: int) -> None:
    road.emit(Event(id=f"id-{number}", name="activity.action", time=1000, attributes={"n": number}))


def deliver(endpoint: str, protocol: str, events: int) -> Pipeline:
    """A pipeline after it has sent so many events, in one batch."""
    road = pipeline(endpoint, protocol)
    for number in range(events):
        emit(road, number)
    assert road.shutdown(time.monotonic() + 20) == 0
    return road


def test_rejected_records_are_counted_and_named_and_not_sent_again(
    otlp: tuple[str, str, Sink], caplog: pytest.LogCaptureFixture
) -> None:
    """`partial_success` says that some will never be stored: they are lost, the others are confirmed."""
    endpoint, protocol, sink = otlp
    sink.partial = [(3, "no  such\ntenant")]
    (lane,) = deliver(endpoint, protocol, 10).lanes
    assert len(sink.records) == 10
    assert (lane.confirmed, lane.dropped, lane.pending) == (7, 3, 0)
    assert "3 events are lost" in caplog.text
    assert "of 10 records from id-0 to id-9: no such tenant" in caplog.text


def test_a_warning_of_the_receiver_is_logged(
    otlp: tuple[str, str, Sink], caplog: pytest.LogCaptureFixture
) -> None:
    """A message with nothing rejected is advice: everything is confirmed."""
    endpoint, protocol, sink = otlp
    sink.partial = [(0, "please send less often")]
    (lane,) = deliver(endpoint, protocol, 4).lanes
    assert (lane.confirmed, lane.dropped) == (4, 0)
    assert "please send less often" in caplog.text


def test_the_sdks_variables_apply(otlp: tuple[str, str, Sink], monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers and compression come from the environment, as for any OTLP exporter."""
    endpoint, protocol, sink = otlp
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "authorization=Bearer%20abc,x-team=audit")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "gzip")
    deliver(endpoint, protocol, 20)
    assert len(sink.records) == 20
    assert sink.headers[0]["x-team"] == "audit"
    assert sink.headers[0]["authorization"] == "Bearer abc"
    if protocol != "grpc":  # gRPC's server does not show it
        assert sink.headers[0]["content-encoding"] == "gzip"


def test_a_redirect_is_no_success() -> None:
    """The SDK's exporter does not follow a redirect and calls it success; the records would be gone."""
    with serving("http/protobuf") as (endpoint, protocol, sink):
        sink.redirects = 2
        (lane,) = deliver(endpoint, protocol, 5).lanes
    assert len({record.attributes[0].value.int_value for _, _, record in sink.records}) == 5
    assert (lane.confirmed, lane.dropped, lane.retries) == (5, 0, 2)


def stored(sink: Sink) -> set[int]:
    """Numbers of the records that arrived, however often."""
    return {record.attributes[0].value.int_value for _, _, record in sink.records}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once, and none is repeated by the SDK."""
    monkeypatch.setattr("otel_activity.telemetry.Lane", partial(Lane, backoff=Backoff(0.001, 0.002)))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "0.5")


@pytest.mark.usefixtures("impatient")
def test_a_receiver_that_is_too_busy_for_most_requests_costs_no_record(
    otlp: tuple[str, str, Sink],
) -> None:
    """Who is told to come again later is never to blame, however often, and although others are taken."""
    endpoint, protocol, sink = otlp
    asked = count(1)
    sink.busy = lambda: next(asked) % 8 != 0
    sink.retry_after = "0.01"
    (lane,) = deliver(endpoint, protocol, 12).lanes
    assert stored(sink) == set(range(12))
    assert (lane.confirmed, lane.dropped) == (12, 0)


@pytest.mark.usefixtures("impatient")
def test_a_record_that_is_refused_in_a_batch_of_its_own_is_lost_alone(
    otlp: tuple[str, str, Sink], caplog: pytest.LogCaptureFixture
) -> None:
    """One that was taken before is sent once more to compare; then those behind can pass."""
    endpoint, protocol, sink = otlp
    sink.never = frozenset({"id-1"})
    road = pipeline(endpoint, protocol, batch_size=1)
    for number in range(4):
        emit(road, number)
    assert road.shutdown(time.monotonic() + 20) == 0
    (lane,) = road.lanes
    assert stored(sink) == {0, 2, 3}
    assert (lane.confirmed, lane.dropped, lane.rejected) == (3, 1, 1)
    assert "refuses the record id-1 and takes others" in caplog.text


def test_the_size_that_a_receiver_takes_is_remembered(otlp: tuple[str, str, Sink]) -> None:
    """A limit is not met again by each batch, and meeting it costs no ten seconds of repeating the same."""
    endpoint, protocol, sink = otlp
    road = pipeline(endpoint, protocol, batch_size=64)
    (lane,) = road.lanes
    sink.most = 20
    for number in range(640):
        emit(road, number)
    assert road.shutdown(time.monotonic() + 60) == 0
    assert stored(sink) == set(range(640))
    assert (lane.confirmed, lane.dropped) == (640, 0)
    assert lane.retries < 10


@pytest.mark.usefixtures("impatient")
def test_a_receiver_that_refuses_everything_is_not_believed(otlp: tuple[str, str, Sink]) -> None:
    """When what it took before is refused as well, the receiver is at fault, and all is kept."""
    endpoint, protocol, sink = otlp
    road = pipeline(endpoint, protocol, batch_size=1)
    (lane,) = road.lanes
    emit(road, 0)
    assert lane.wait_until_empty(10)
    sink.refusals = 60
    for number in range(1, 4):
        emit(road, number)
    assert road.shutdown(time.monotonic() + 20) == 0
    assert stored(sink) == {0, 1, 2, 3}
    assert (lane.confirmed, lane.dropped, lane.retries) == (4, 0, 60)


@pytest.mark.usefixtures("impatient")
def test_a_web_page_is_no_confirmation() -> None:
    """A proxy that answers 200 and shows a log-in page has stored nothing."""
    with serving("http/protobuf") as (endpoint, protocol, sink):
        sink.web_pages = 30
        (lane,) = deliver(endpoint, protocol, 5).lanes
    assert stored(sink) == set(range(5))
    assert (lane.confirmed, lane.dropped, lane.retries) == (5, 0, 30)


@pytest.mark.parametrize(
    ("said", "paused"),
    [
        ("7", 7),
        ("-5", 0),
        ("soon", 0),
        ("1e400", 0),
        ("nan", 0),
        ("864000", 60),
        ("Thu, 01 Jan 1970 00:00:00", 0),
    ],
)
def test_a_receiver_that_asks_for_a_pause_gets_it_within_reason(
    said: str, paused: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Retry-After` is respected, up to a minute; what makes no sense is passed over."""
    pauses: list[float] = []
    whole = Lane._wait

    def wait(self: Lane, delay: float, pause: float = 0.0) -> None:
        pauses.append(pause)
        whole(self, delay)

    monkeypatch.setattr(Lane, "_wait", wait)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "0.5")
    with serving("http/protobuf") as (endpoint, protocol, sink):
        first = count()
        sink.busy = lambda: next(first) < 1 if paused else next(first) < 3
        sink.retry_after = said
        deliver(endpoint, protocol, 1)
    assert set(pauses) <= {paused}
    assert stored(sink) == {0}


def test_an_exporter_that_was_rebuilt_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the SDK's private parts have moved, events are still exported, and one line says so."""
    made = stock._http._OTLPHTTPClient.__init__

    def renamed(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.carrier = self.__dict__.pop("_transport")

    monkeypatch.setattr(stock._http._OTLPHTTPClient, "__init__", renamed)
    exporter = otlp_exporter("http://127.0.0.1:1", "http/protobuf")
    assert type(exporter) is stock.OTLPLogExporter
    assert "is not known" in caplog.text


CERTIFICATE, KEY = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_KEY"


@pytest.mark.parametrize(
    ("named", "blamed"),
    [
        ({CERTIFICATE: "pem"}, KEY),
        ({KEY: "pem"}, CERTIFICATE),
        ({CERTIFICATE: "pem", KEY: "absent"}, KEY),
        ({CERTIFICATE: "empty", KEY: "pem"}, CERTIFICATE),
    ],
    ids=["no key", "no certificate", "absent key", "empty certificate"],
)
def test_half_of_a_client_certificate_stops_the_start(
    named: Mapping[str, str], blamed: str, tmp_path: Path
) -> None:
    """gRPC would end the process without a word of Python's; a line names the variable instead."""
    (tmp_path / "pem").write_text("a certificate")
    (tmp_path / "empty").touch()
    program = "import otel_activity; otel_activity.instrument(exporters='otlp')"
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        "OTEL_ACTIVITY_OTLP_ENDPOINT": "https://127.0.0.1:1",
        "OTEL_ACTIVITY_JOURNAL_DIR": str(tmp_path / "journal"),
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "pem"),
        **{name: str(tmp_path / file) for name, file in named.items()},
    }
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert f"ConfigurationError: {blamed}=" in ended.stderr.splitlines()[-1]


def test_certificates_are_not_looked_at_without_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What stands in the environment for somebody else's connection stops nothing."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "absent"))
    monkeypatch.setenv(CERTIFICATE, str(tmp_path / "absent"))
    otlp_exporter("http://127.0.0.1:1", "grpc").shutdown()
