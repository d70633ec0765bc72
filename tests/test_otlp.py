"""Our own OTLP encoding, and the way to the receiver with the SDK's transports."""

from __future__ import annotations

import time
from decimal import Decimal
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
from otel_activity.events import Event, packed
from otel_activity.telemetry import Pipeline, _LogRecord, otlp_exporter
from tests.otlp_sink import Sink, python_value, serving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


def deliver(endpoint: str, protocol: str, count: int) -> Pipeline:
    """A pipeline after it has sent so many events, in one batch."""
    road = Pipeline(
        Resource({"service.name": "billing"}),
        schedule_delay=60_000,
        batch_size=1000,
        queue_size=1000,
        export_timeout=5000,
        version="1",
    )
    road.add("otlp", otlp_exporter(endpoint, protocol))
    for number in range(count):
        road.emit(Event(id=f"id-{number}", name="activity.action", time=1000, attributes={"n": number}))
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
