"""Events as OpenTelemetry log records, through the SDK's own provider, processor and exporters."""

from __future__ import annotations

import json
import os
import threading
import time
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from opentelemetry import _logs as logs_api
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    InMemoryLogRecordExporter,
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.resources import Resource

from otel_activity import semconv
from otel_activity.codec import decode, encode
from otel_activity.delivery import Backoff, Lane
from otel_activity.events import Event
from otel_activity.exporters import PostgresLogExporter
from otel_activity.postgres import schema
from otel_activity.telemetry import (
    EventLogExporter,
    GlobalPipeline,
    Pipeline,
    console_exporter,
    event_of,
    otlp_exporter,
)
from tests.otlp_sink import Sink, python_value

if TYPE_CHECKING:
    from collections.abc import Sequence

RESOURCE = Resource({"service.name": "billing"})
VALUE = {"amount": {"before": encode(1), "after": {"deep": [1, None, {"x": "é"}], "big": encode(1 << 80)}}}


def event(number: int = 1) -> Event:
    """An event with nested values."""
    return Event(
        id=f"01890000-0000-7000-8000-{number:012d}",
        name=semconv.ENTITY_UPDATED,
        time=1_700_000_000_123_456_000,
        observed=1_700_000_000_200_000_001,
        attributes={semconv.ENTITY_TYPE: "Invoice", semconv.ENTITY_ID: str(number), semconv.CHANGES: VALUE},
        trace_id=0x1234,
        span_id=0x56,
        trace_flags=1,
    )


def pipeline(**overrides: Any) -> Pipeline:
    """A pipeline with small delays."""
    settings = {
        "schedule_delay": 10,
        "batch_size": 16,
        "queue_size": 1000,
        "export_timeout": 5000,
        "version": "1",
    }
    return Pipeline(RESOURCE, **{**settings, **overrides})


def test_an_event_is_a_log_record_for_otlp(otlp: tuple[str, str, Sink]) -> None:
    """Name, times, trace, scope, resource and nested changes arrive as they were."""
    endpoint, protocol, sink = otlp
    road = pipeline()
    road.add("otlp", otlp_exporter(endpoint, protocol))
    road.emit(event())
    assert road.shutdown(time.monotonic() + 10) == 0
    ((resource, scope, record),) = sink.records
    attributes = {item.key: python_value(item.value) for item in record.attributes}
    assert record.event_name == semconv.ENTITY_UPDATED
    assert record.time_unix_nano == event().time
    assert record.observed_time_unix_nano == event().observed
    assert int.from_bytes(record.trace_id) == 0x1234
    assert int.from_bytes(record.span_id) == 0x56
    assert scope.name == semconv.SCOPE_NAME
    assert {item.key: item.value.string_value for item in resource.attributes}["service.name"] == "billing"
    assert attributes[semconv.RECORD_UID] == event().id
    assert attributes[semconv.CHANGES] == VALUE
    assert decode(attributes[semconv.CHANGES]["amount"]["after"]["big"]) == 1 << 80


def test_a_refused_otlp_batch_is_sent_again(otlp: tuple[str, str, Sink]) -> None:
    """The SDK's processor forgets a batch that failed; ours is delivered once, and all of it."""
    endpoint, protocol, sink = otlp
    sink.refusals = 2
    road = pipeline()
    road.add("otlp", otlp_exporter(endpoint, protocol))
    for number in range(40):
        road.emit(event(number))
    assert road.shutdown(time.monotonic() + 20) == 0
    sent = [record.attributes for _, _, record in sink.records]
    assert len(sent) == 40
    assert road.lanes[0].confirmed == 40
    assert road.lanes[0].retries == 2


def test_limits_of_the_environment_do_not_cut_evidence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attribute limits that are set for the application's logs leave audit records whole."""
    monkeypatch.setenv("OTEL_ATTRIBUTE_COUNT_LIMIT", "1")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    monkeypatch.setenv("OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", "1")
    kept: list[Event] = []
    road = pipeline()
    road.add("keep", Keep(kept))
    road.add("console", console_exporter())
    road.emit(event())
    assert road.shutdown(time.monotonic() + 10) == 0
    assert kept == [event()]


class Keep:
    """An `EventExporter` that keeps events; it may fail a number of times first."""

    name = "keep"

    def __init__(self, kept: list[Event], failures: int = 0) -> None:
        self.kept = kept
        self.failures = failures

    def export(self, events: Sequence[Event], resource: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a bug in the exporter")
        assert resource.service_name == "billing"
        self.kept.extend(events)

    def close(self) -> None:
        pass

    def after_fork(self) -> None:
        pass


def test_a_bug_in_an_exporter_loses_no_batch() -> None:
    """An exception of any kind is treated as one failed attempt."""
    kept: list[Event] = []
    road = pipeline()
    road.add("keep", Keep(kept, failures=2))
    for number in range(30):
        road.emit(event(number))
    assert road.shutdown(time.monotonic() + 10) == 0
    assert [item.attributes[semconv.ENTITY_ID] for item in kept] == [str(number) for number in range(30)]


def test_the_sdk_queue_never_evicts() -> None:
    """With a stuck exporter the lane counts what does not fit; the oldest records stay."""
    kept: list[Event] = []
    exporter = Keep(kept, failures=1 << 30)
    road = pipeline(queue_size=20, batch_size=5)
    road.add("keep", exporter)
    for number in range(50):
        road.emit(event(number))
    assert road.lanes[0].dropped == 30
    exporter.failures = 0
    assert road.shutdown(time.monotonic() + 10) == 0
    assert [item.attributes[semconv.ENTITY_ID] for item in kept] == [str(number) for number in range(20)]


def test_what_is_left_at_the_deadline_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """A store that stays down does not hold the process beyond its time, and the loss has a number."""
    road = pipeline()
    road.add("keep", Keep([], failures=1 << 30))
    for number in range(7):
        road.emit(event(number))
    assert road.shutdown(time.monotonic() + 0.3) == 7
    assert "7 events were not delivered" in caplog.text


def test_the_console_prints_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Console output is for people and for programs."""
    import sys

    exporter = console_exporter()
    exporter.out = sys.stdout  # type: ignore[attr-defined]  # pytest replaced it after the SDK was imported
    road = pipeline()
    road.add("console", exporter)
    road.emit(event(1))
    road.emit(event(2))
    assert road.shutdown(time.monotonic() + 10) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["attributes"][semconv.ENTITY_ID] for line in lines] == ["1", "2"]


def test_the_applications_own_provider_can_carry_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """With logger_provider=global the record goes through the application's processors, unchanged."""
    memory = InMemoryLogRecordExporter()
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(memory, schedule_delay_millis=10))
    monkeypatch.setattr(logs_api, "get_logger_provider", lambda: provider)
    monkeypatch.setattr(
        logs_api, "get_logger", lambda name, version=None, **kw: provider.get_logger(name, version, **kw)
    )
    road = GlobalPipeline("1")
    road.emit(event())
    road.poke()
    assert road.settle(time.monotonic() + 10)
    (record,) = memory.get_finished_logs()
    assert event_of(record) == event()
    provider.shutdown()


def test_the_postgres_exporter_in_a_foreign_pipeline_stores_only_our_records(postgres_dsn: str) -> None:
    """`OTEL_LOGS_EXPORTER=activity_postgres` gets the application's logs, too, and passes them over."""
    schema.apply(postgres_dsn)
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(
        BatchLogRecordProcessor(PostgresLogExporter(dsn=postgres_dsn), schedule_delay_millis=10)
    )
    provider.get_logger("somebody.else").emit(
        body="not an audit record", event_name="activity.entity.created"
    )
    provider.get_logger(semconv.SCOPE_NAME).emit(
        timestamp=event().time,
        event_name=semconv.ENTITY_UPDATED,
        attributes={**event().attributes, semconv.RECORD_UID: event().id},
    )
    provider.shutdown()
    with psycopg.connect(postgres_dsn) as connection:
        rows = connection.execute("SELECT id::text, service, entity_type FROM activity.events").fetchall()
    assert rows == [(event().id, "billing", "Invoice")]


def test_a_foreign_exporter_that_fails_is_retried_too() -> None:
    """Any exporter of the SDK can be a road out; FAILURE means again."""

    class Flaky(LogRecordExporter):
        results = [LogRecordExportResult.FAILURE, LogRecordExportResult.SUCCESS]
        calls = 0

        def export(self, batch: Any) -> LogRecordExportResult:
            Flaky.calls += 1
            return self.results.pop(0)

        def shutdown(self) -> None:
            pass

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    road = pipeline()
    road.add("flaky", Flaky())
    road.emit(event())
    assert road.shutdown(time.monotonic() + 10) == 0
    assert Flaky.calls == 2


class Waiting(Keep):
    """An exporter whose answer comes when the test says so."""

    def __init__(self, kept: list[Event]) -> None:
        super().__init__(kept)
        self.answer = threading.Event()

    def export(self, events: Sequence[Event], resource: Any) -> None:
        self.answer.wait()
        super().export(events, resource)


def test_an_exporter_that_never_answers_does_not_hold_up_the_end() -> None:
    """The time for shutting down is kept even while an attempt hangs; what it had is counted as left."""
    hung, good = Waiting([]), Keep([])
    road = pipeline()
    road.add("hung", hung)
    road.add("good", good)
    rescue = threading.Timer(15, hung.answer.set)
    rescue.start()
    for number in range(3):
        road.emit(event(number))
    left = road.shutdown(time.monotonic() + 0.5)
    assert not hung.answer.is_set()
    assert left == 3
    assert len(good.kept) == 3
    rescue.cancel()
    hung.answer.set()


def test_a_stuck_road_does_not_keep_the_other_from_being_flushed() -> None:
    """A flush reaches every exporter, though the first one is busy and batches are a long time apart."""
    hung, good = Waiting([]), Keep([])
    road = pipeline(schedule_delay=600_000)
    road.add("hung", hung)
    road.add("good", good)
    for number in range(2):
        road.emit(event(number))
        road.poke()
        assert road.lanes[1].wait_until_empty(10)
    assert [item.id for item in good.kept] == [event(0).id, event(1).id]
    hung.answer.set()
    assert road.shutdown(time.monotonic() + 10) == 0
    assert len(hung.kept) == 2


class Limited(LogRecordExporter):
    """A receiver that refuses requests that are too large, and some records always."""

    def __init__(self, most: int, never: frozenset[str] = frozenset()) -> None:
        self.most = most
        self.never = never
        self.taken: list[str] = []

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        ids = [str(record.log_record.attributes[semconv.ENTITY_ID]) for record in batch]
        if len(ids) > self.most or self.never & set(ids):
            return LogRecordExportResult.FAILURE
        self.taken += ids
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr("otel_activity.telemetry.Lane", partial(Lane, backoff=Backoff(0.001, 0.002)))


@pytest.mark.usefixtures("impatient")
def test_a_batch_that_is_too_large_for_the_receiver_goes_in_portions() -> None:
    """A limit on the size of a request does not block the road for ever; order is kept."""
    receiver = Limited(most=3)
    road = pipeline(schedule_delay=600_000)
    road.add("limited", receiver)
    for number in range(16):
        road.emit(event(number))
    assert road.shutdown(time.monotonic() + 30) == 0
    assert receiver.taken == [str(number) for number in range(16)]
    assert (road.lanes[0].confirmed, road.lanes[0].dropped) == (16, 0)


@pytest.mark.usefixtures("impatient")
def test_a_record_that_is_never_taken_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A record that fails alone, while others are taken in between, is counted as lost and named."""
    receiver = Limited(most=100, never=frozenset({"5"}))
    road = pipeline(schedule_delay=600_000)
    road.add("limited", receiver)
    for number in range(16):
        road.emit(event(number))
    assert road.shutdown(time.monotonic() + 30) == 0
    assert {int(taken) for taken in receiver.taken} == {number for number in range(16) if number != 5}
    assert (road.lanes[0].confirmed, road.lanes[0].dropped) == (15, 1)
    assert event(5).id in caplog.text


@pytest.mark.usefixtures("impatient")
def test_whatever_an_exporter_raises_does_not_end_the_exporting_thread() -> None:
    """The SDK's thread dies of anything that is no `Exception`, and with it delivery for good."""

    class Panic(BaseException):
        pass

    class Panicking(Limited):
        left = 3

        def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
            if self.left:
                self.left -= 1
                raise Panic
            return super().export(batch)

    receiver = Panicking(most=100)
    road = pipeline(schedule_delay=1)
    road.add("panicking", receiver)
    road.emit(event(1))
    assert road.lanes[0].wait_until_empty(10)
    road.emit(event(2))
    assert road.lanes[0].wait_until_empty(10)
    assert receiver.taken == ["1", "2"]
    assert road.lanes[0].retries == 3
    road.shutdown(time.monotonic() + 10)


@pytest.mark.usefixtures("impatient")
def test_an_outage_blames_no_record() -> None:
    """While everything is refused nothing is given up, however often it fails."""
    receiver = Limited(most=0)
    road = pipeline(schedule_delay=600_000)
    road.add("limited", receiver)
    for number in range(4):
        road.emit(event(number))
    road.poke()
    deadline = time.monotonic() + 20
    while road.lanes[0].retries < 60:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    receiver.most = 100
    assert road.shutdown(time.monotonic() + 10) == 0
    assert sorted(receiver.taken) == ["0", "1", "2", "3"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("failures", [0, 2])
def test_a_forked_child_builds_its_exporter_anew(failures: int) -> None:
    """A child does not write into the connection that its parent has open to an OTLP receiver; when it cannot
    build its own at once, it tries again with the same batch."""

    class Parents(Limited):
        pass

    reading, writing = os.pipe()

    class Childs(Limited):
        def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
            os.write(writing, b"its own")
            return LogRecordExportResult.SUCCESS

    attempts = count()

    def renew() -> Childs:
        if next(attempts) < failures:
            raise OSError("a file is being replaced")
        return Childs(most=10)

    parents = Parents(most=10)
    road = pipeline()
    road.add("otlp", parents, renew)
    child = os.fork()
    if child == 0:
        road.lanes[0].after_fork()
        road.after_fork()
        road.emit(event(1))
        road.shutdown(time.monotonic() + 10)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "its own"
    os.waitpid(child, 0)
    road.emit(event(2))
    assert road.shutdown(time.monotonic() + 10) == 0
    assert parents.taken == ["2"]


def test_the_end_of_a_foreign_pipeline_ends_the_retries() -> None:
    """In a pipeline of somebody else the exporter stops trying when it is shut down."""
    exporter = EventLogExporter(Keep([], failures=1 << 30))
    memory = InMemoryLogRecordExporter()
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(memory, schedule_delay_millis=10))
    provider.get_logger(semconv.SCOPE_NAME).emit(
        timestamp=event().time,
        event_name=semconv.ENTITY_UPDATED,
        attributes={**event().attributes, semconv.RECORD_UID: event().id},
    )
    provider.shutdown()
    thread = threading.Thread(target=exporter.export, args=(memory.get_finished_logs(),), daemon=True)
    thread.start()
    exporter.shutdown()
    thread.join(20)
    assert not thread.is_alive()
