"""The only module that touches OpenTelemetry's logs API and SDK, which are not stable yet.

An `Event` becomes a log record here and goes through the SDK's own `LoggerProvider` and
`BatchLogRecordProcessor`. Two things are ours. A record is built lazily: our exporter reads the event itself,
and the attributes are only put together for exporters that ask. And it is not cleaned a second time: values
are plain already, and the SDK's limits would cut evidence.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import _logs as logs_api
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk._logs import (
    LoggerProvider,
    LogRecordLimits,
    LogRecordProcessor,
    ReadableLogRecord,
    ReadWriteLogRecord,
)
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    ConsoleLogRecordExporter,
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import TraceFlags

from otel_activity import semconv
from otel_activity.codec.otlp import Envelope, envelope, log_request
from otel_activity.codec.rows import plain_resource
from otel_activity.delivery import Lane
from otel_activity.delivery.lane import log_safely
from otel_activity.errors import ExportError
from otel_activity.events import Event, ResourceInfo
from otel_activity.otlp import Answer, Transport, transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_activity.ports import EventExporter

__all__ = [
    "EventLogExporter",
    "GlobalPipeline",
    "OtlpLogExporter",
    "Pipeline",
    "console_exporter",
    "otlp_exporter",
    "resource_info",
]

_SEVERITY: Final = {number.value: number for number in logs_api.SeverityNumber}
_FLAGS: Final = {number: TraceFlags(number) for number in range(256)}
_NO_CONTEXT: Final = Context()


def _no_limits() -> LogRecordLimits:
    """Limits of the environment are for the application's logs; they truncate evidence silently."""
    unset = LogRecordLimits.UNSET
    return LogRecordLimits(
        max_attributes=1 << 20,
        max_attribute_length=unset,
        max_log_record_attributes=1 << 20,
        max_log_record_attribute_length=unset,
    )


_BATCHES_AHEAD: Final = 3
"""One that is being exported, the next, and one that comes in meanwhile."""
_MOST_ORIGINS: Final = 64
"""Dead processes whose resource is kept at once."""


class _LogRecord(logs_api.LogRecord):
    """A log record that still is the event; attributes are put together when an exporter asks."""

    body = None
    exception = None

    def __init__(self, event: Event) -> None:
        # The parent's constructor would look up the current span: the event knows its own.
        self.event = event

    # What no exporter of ours asks for costs nothing until somebody else does.
    timestamp = property(lambda self: self.event.time)
    observed_timestamp = property(lambda self: self.event.observed)
    trace_id = property(lambda self: self.event.trace_id)
    span_id = property(lambda self: self.event.span_id)
    trace_flags = property(lambda self: _FLAGS[self.event.trace_flags])
    severity_number = property(lambda self: _SEVERITY[self.event.severity])
    severity_text = property(lambda self: self.severity_number.name)
    event_name = property(lambda self: self.event.name)

    @property
    def context(self) -> Any:
        return _NO_CONTEXT

    @context.setter
    def context(self, value: Any) -> None:
        """The batch processor drops the context of what it queues; there is none to drop."""

    @property
    def attributes(self) -> Any:
        return {**self.event.plain_attributes(), semconv.RECORD_UID: self.event.id}

    @attributes.setter
    def attributes(self, value: Any) -> None:
        """The SDK may set what it cleaned; there is nothing to clean."""

    def __copy__(self) -> _LogRecord:
        # The batch processor copies each record to drop its context; this one keeps none.
        return self


class _Emitted(ReadWriteLogRecord):
    """What `Logger.emit` passes on as it stands, without cleaning the attributes again."""

    def __init__(self, event: Event, resource: Resource, scope: Any, limits: LogRecordLimits) -> None:
        self.log_record = _LogRecord(event)
        self.resource = resource
        self.instrumentation_scope = scope
        self.limits = limits


def event_of(record: ReadableLogRecord) -> Event | None:
    """The event that a log record carries; None when the record is not ours."""
    log_record = record.log_record
    if isinstance(log_record, _LogRecord):
        return log_record.event
    scope = record.instrumentation_scope
    name = log_record.event_name or ""
    if scope is None or scope.name != semconv.SCOPE_NAME or not name.startswith("activity."):
        return None
    attributes: dict[str, Any] = _plain(log_record.attributes or {})
    uid = attributes.pop(semconv.RECORD_UID, None)
    if not isinstance(uid, str):
        return None
    time = log_record.timestamp or log_record.observed_timestamp or 0
    severity = log_record.severity_number
    return Event(
        id=uid,
        name=name,
        time=time // 1000 * 1000,
        attributes=attributes,
        observed=log_record.observed_timestamp or time,
        severity=severity.value if severity is not None else 9,
        trace_id=log_record.trace_id or 0,
        span_id=log_record.span_id or 0,
        trace_flags=int(log_record.trace_flags or 0),
    )


def resource_info(resource: Resource) -> ResourceInfo:
    """The resource as plain values."""
    return ResourceInfo(_plain(resource.attributes))


def _plain(value: Any) -> Any:
    """The SDK keeps sequences as tuples and mappings as its own; events hold lists and dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


_SUSPECT: Final = 3
"""Failures of one record alone after which another one is tried: perhaps that fails as well."""
_PROOFS: Final = 5
"""How often in a row that other one must have been taken at once. A receiver that fails three times in four,
whatever it gets, looks like this to one record in a hundred thousand."""
_LATER: Final = 8
"""Failures in a row that say nothing about a request, after which less is sent all the same."""
_LONGEST_PAUSE: Final = 60.0
"""Seconds that a receiver may keep us away for. It may ask for days, by mistake."""


class _KeepTrying(LogRecordExporter):
    """Returns from `export` only when the batch was taken: the batch processor forgets what fails.

    A receiver may refuse a batch for its size, for ever, so after a failure half as many records are sent. A
    record that fails alone, again and again, while others are taken in between, is lost: it would keep back
    everything behind it. What fails because the receiver is busy says nothing about a record.

    Args:
        inner: the exporter.
        lane: counts and retries.
        renew: builds another one in a forked child, which must not use the parent's connection.
    """

    def __init__(
        self, inner: LogRecordExporter, lane: Lane, renew: Callable[[], LogRecordExporter] | None = None
    ) -> None:
        self._inner = inner
        self._renew = renew
        self._pid = os.getpid()
        self._lane = lane
        self._known: ReadableLogRecord | None = None
        """A record that was taken, to be sent once more where no other is there to compare with."""
        self._most = _PortionSize()

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        todo = _Portions(batch, self._most)
        while todo.records:
            if not self._lane.deliver(0, lambda: self._attempt(todo), in_order=False):
                return LogRecordExportResult.FAILURE
        self._lane.settle(len(batch))  # only now: a record that is suspected lets others pass
        return LogRecordExportResult.SUCCESS

    def _attempt(self, todo: _Portions) -> None:
        if os.getpid() != self._pid:
            if self._renew is not None:  # may fail as any attempt may: a certificate is being replaced
                self._inner = self._renew()
            self._pid = os.getpid()
        portion = todo.next(self._known)
        if self._inner.export(portion) is LogRecordExportResult.SUCCESS:
            self._taken(todo, portion)
            return
        answer = self._inner.answer if isinstance(self._inner, OtlpLogExporter) else Answer(taken=False)
        todo.failed(portion, blames=not answer.passing)
        why = answer.trouble or "the exporter reported failure, see its own log lines"
        raise ExportError(f"{self._lane.name}: {why}", pause=min(answer.pause, _LONGEST_PAUSE))

    def _taken(self, todo: _Portions, portion: list[ReadableLogRecord]) -> None:
        known, self._known = self._known, portion[0]
        if portion[0] is not known:
            rejected, message = _rejected(self._inner, len(portion))
            self._lane.confirm(len(portion) - rejected)
            if rejected:
                self._lane.lose(rejected, f"the receiver rejects them, of {_range(portion)}: {message}")
        guilty = todo.taken(portion)
        if guilty is not None:
            self._lane.lose(1, f"the receiver refuses the record {_uid(guilty)} and takes others")

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]  # the SDK does not annotate it

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _PortionSize:
    """How many records go into one request: half as many after one that failed, whatever batch that was of.

    It grows again fast up to half of what was too much, and slowly beyond.
    """

    def __init__(self) -> None:
        self.now = self._safe = sys.maxsize

    def failed(self, sent: int) -> None:
        """A request of so many records failed."""
        self.now = self._safe = max(1, sent // 2)

    def taken(self) -> None:
        """A request was taken."""
        if self.now < self._safe:
            self.now = min(self._safe, self.now * 2)
        else:
            self.now = min(sys.maxsize, self.now + max(1, self.now // 16))


class _Portions:
    """What is left of a batch, and how much of it to send at once."""

    def __init__(self, batch: Sequence[ReadableLogRecord], size: _PortionSize) -> None:
        self.records = list(batch)
        self._size = size
        self._failures = self._later = 0
        self._suspects: dict[int, int] = {}
        """Records that failed alone, by ``id()``; how often in a row another one was taken right after."""
        self._accused: ReadableLogRecord | None = None
        """The one that failed just now, while another one is tried."""

    def next(self, known: ReadableLogRecord | None) -> list[ReadableLogRecord]:
        """What to send.

        Args:
            known: a record that was taken before.
        """
        if self._accused is not None:
            others = (record for record in self.records if id(record) not in self._suspects)
            other = next(others, known)
            if other is not None:
                return [other]
            self._accused = None  # there is nothing to compare it with
        return self.records[: self._size.now]

    def taken(self, portion: list[ReadableLogRecord]) -> ReadableLogRecord | None:
        """These were taken. A record that is to blame for its failures, and gone."""
        sent = {id(record) for record in portion}
        self.records = [record for record in self.records if id(record) not in sent]
        self._failures = 0
        self._size.taken()
        accused, self._accused = self._accused, None
        if accused is None:
            return None
        self._suspects[id(accused)] += 1
        if self._suspects[id(accused)] < _PROOFS:
            return None
        self.records = [record for record in self.records if record is not accused]
        return accused

    def failed(self, portion: list[ReadableLogRecord], *, blames: bool) -> None:
        """These failed.

        Args:
            portion: them.
            blames: whether that may lie in them.
        """
        accused, self._accused = self._accused, None
        if accused is not None:  # others fail as well
            self._suspects[id(accused)] = 0
            return
        if len(portion) > 1:
            self._later = 0 if blames else self._later + 1
            if self._later % _LATER == 0:  # some say "later" to what is too large for ever
                self._size.failed(len(portion))
            return
        self._failures = self._failures + 1 if blames else 0
        if self._failures < _SUSPECT:
            return
        self._failures = 0
        self._accused = self.records[0]
        self._suspects.setdefault(id(self._accused), 0)
        self.records.append(self.records.pop(0))


def _range(records: Sequence[ReadableLogRecord]) -> str:
    """OTLP does not say which records of a request were rejected."""
    first, last = _uid(records[0]), _uid(records[-1])
    return f"the record {first}" if len(records) == 1 else f"{len(records)} records from {first} to {last}"


def _uid(record: ReadableLogRecord) -> str:
    event = event_of(record)
    return event.id if event is not None else "of unknown id"


class OtlpLogExporter(LogRecordExporter):
    """Encodes events once, straight to the wire, and sends them with the SDK's transport.

    Attributes:
        answer: what the receiver said of the last batch.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._envelopes: dict[tuple[int, int], tuple[Resource, Any, Envelope]] = {}
        self.answer = Answer(taken=True)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        scope = batch[0].instrumentation_scope
        body = b"".join(
            [log_request(self._envelope(resource, scope), events) for resource, events in _by_resource(batch)]
        )
        said = self.answer.message
        self.answer = self._transport.send(body, len(batch))
        if self.answer.message not in {"", said} and not self.answer.rejected:
            log_safely(logging.WARNING, "otel_activity: the OTLP receiver warns: %s", self.answer.message)
        return LogRecordExportResult.SUCCESS if self.answer.taken else LogRecordExportResult.FAILURE

    def _envelope(self, resource: Resource, scope: Any) -> Envelope:
        known = self._envelopes.get((id(resource), id(scope)))
        if known is None:  # the objects are kept, so that their ids are not given to others
            made = envelope(
                resource_info(resource).attributes,
                resource.schema_url or "",
                scope.name,
                scope.version or "",
                scope.schema_url or "",
            )
            known = self._envelopes[id(resource), id(scope)] = (resource, scope, made)
        return known[2]

    def shutdown(self) -> None:
        self._transport.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def _rejected(exporter: LogRecordExporter, sent: int) -> tuple[int, str]:
    """How many of the records of the last batch the receiver took note of and will never store, and why."""
    if not isinstance(exporter, OtlpLogExporter):
        return 0, ""
    answer = exporter.answer
    return max(0, min(sent, answer.rejected)), answer.message or "it gives no reason"


class EventLogExporter(LogRecordExporter):
    """Makes an `EventExporter` an exporter of the SDK. Records that are not ours are passed over.

    Args:
        exporter: what makes one attempt.
        lane: counts and retries. Without one (in a pipeline of somebody else) it has a lane of its own.
    """

    def __init__(self, exporter: EventExporter, lane: Lane | None = None) -> None:
        self._exporter = exporter
        self._own_lane = lane is None
        self._lane = lane or Lane(exporter.name, capacity=1 << 30)
        self._pid = os.getpid()
        self._resources: dict[int, tuple[Resource, ResourceInfo]] = {}

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Deliver the batch, trying until it is taken or the process ends."""
        if self._own_lane and os.getpid() != self._pid:
            self._pid = os.getpid()
            self._lane.after_fork()  # its lock may be held by a thread of the parent
        taken = 0
        for resource, events in _by_resource(batch):
            info = self._info(resource)

            def attempt(events: list[Event] = events, info: ResourceInfo = info) -> None:
                self._exporter.export(events, info)
                # One that puts nothing aside need not have it.
                self._lane.quarantined = getattr(self._exporter, "quarantined", 0)

            if not self._lane.deliver(len(events), attempt, in_order=False):
                return LogRecordExportResult.FAILURE
            taken += len(events)
        self._lane.settle(taken)  # only now: events of several resources were taken out of their order
        return LogRecordExportResult.SUCCESS

    def _info(self, resource: Resource) -> ResourceInfo:
        known = self._resources.get(id(resource))
        if known is None or known[0] is not resource:
            known = self._resources[id(resource)] = (resource, resource_info(resource))
        return known[1]

    def shutdown(self) -> None:
        if self._own_lane:
            self._lane.stop(time.monotonic())
        self._exporter.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def after_fork(self) -> None:
        self._exporter.after_fork()


def _by_resource(batch: Sequence[ReadableLogRecord]) -> list[tuple[Resource, list[Event]]]:
    groups: dict[int, tuple[Resource, list[Event]]] = {}
    for record in batch:
        event = event_of(record)
        if event is not None:
            groups.setdefault(id(record.resource), (record.resource, []))[1].append(event)
    return list(groups.values())


class _BoundedProcessor(LogRecordProcessor):
    """Lets a record into the batch processor's queue only when there is room: its queue evicts the oldest."""

    def __init__(self, lane: Lane, inner: BatchLogRecordProcessor) -> None:
        self._lane = lane
        self._inner = inner

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        if self._lane.enter():
            self._inner.on_emit(log_record)

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]  # the SDK does not annotate it

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _Road:
    """A processor, and the thread that calls what keeps to no time limit: `force_flush` and `shutdown`.

    The thread exists from the start: none can be made any more while the interpreter shuts down.
    """

    def __init__(self, lane: Lane, processor: _BoundedProcessor) -> None:
        self.lane = lane
        self.processor = processor
        self.start()

    def start(self) -> None:
        """Start the thread; again in a forked child."""
        self._orders: SimpleQueue[bool] = SimpleQueue()
        self._asked = False
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="otel-activity-flush", daemon=True).start()

    def poke(self) -> None:
        """Ask for an export of everything; what is asked twice before it begins is done once."""
        if not self._asked:
            self._asked = True
            self._orders.put(True)

    def end(self) -> None:
        """Ask for the shutdown of the processor and its exporter."""
        self._orders.put(False)

    def wait(self, deadline: float) -> None:
        """Wait until `deadline` for the end; a road with nothing left only closes its connection."""
        while not self._ended.wait(max(0.0, min(0.02, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return

    def _run(self) -> None:
        while self._orders.get():
            self._asked = False
            self.processor.force_flush()
        self.processor.shutdown()
        self._ended.set()


class Pipeline:
    """A `LoggerProvider` of our own, with the SDK's batch processor for each exporter.

    Args:
        resource: the same as the application's traces and metrics have.
        schedule_delay: milliseconds between batches.
        batch_size: most events in a batch.
        queue_size: most events on the way to one exporter.
        export_timeout: milliseconds one attempt may take.
        version: of the instrumentation scope.
    """

    def __init__(
        self,
        resource: Resource,
        *,
        schedule_delay: int,
        batch_size: int,
        queue_size: int,
        export_timeout: int,
        version: str,
    ) -> None:
        self._batch: dict[str, Any] = {
            "schedule_delay_millis": schedule_delay,
            "max_export_batch_size": batch_size,
            "max_queue_size": queue_size,
            "export_timeout_millis": export_timeout,
        }
        self._limits = _no_limits()
        self._provider = _measured(
            LoggerProvider, resource=resource, shutdown_on_exit=False, log_record_limits=self._limits
        )
        self._logger: Any = self._provider.get_logger(semconv.SCOPE_NAME, version, semconv.SCHEMA_URL)
        self._scope = InstrumentationScope(semconv.SCOPE_NAME, version, semconv.SCHEMA_URL)
        self._roads: list[_Road] = []
        self._origins: dict[int, tuple[Mapping[str, Any], Resource]] = {}
        self._exporters: list[EventExporter] = []
        self.lanes: list[Lane] = []

    def add(
        self,
        name: str,
        exporter: EventExporter | LogRecordExporter,
        renew: Callable[[], LogRecordExporter] | None = None,
    ) -> None:
        """Add a road out: an exporter of ours, or one of the SDK and what builds it anew after a fork."""
        lane = Lane(name, self._batch["max_queue_size"])
        lane.ahead = min(lane.capacity, _BATCHES_AHEAD * self._batch["max_export_batch_size"])
        adapted: LogRecordExporter
        if isinstance(exporter, LogRecordExporter):
            adapted = _KeepTrying(exporter, lane, renew)
        else:
            adapted = EventLogExporter(exporter, lane)
            self._exporters.append(exporter)
        processor = _BoundedProcessor(lane, _measured(BatchLogRecordProcessor, adapted, **self._batch))
        self._provider.add_log_record_processor(processor)
        self._roads.append(_Road(lane, processor))
        self.lanes.append(lane)

    def emit(self, event: Event) -> None:
        """Emit one event as a log record.

        To the provider's processors directly: `Logger.emit` reads and sets the attributes of each record,
        to add an exception's, and would put together what no exporter may ask for.
        """
        emitted = self._emitted(event)
        for road in self._roads:
            road.processor.on_emit(emitted)

    def emit_to(self, lane: Lane, event: Event, origin: Mapping[str, Any] | None) -> None:
        """Emit one event on one road only: the others have it, or get it later.

        Args:
            lane: of the road.
            event: a finished event.
            origin: attributes of the resource that made it; None for this process's own.
        """
        emitted = self._emitted(event)
        if origin is not None:
            emitted.resource = self._origin(origin)
        self._roads[self.lanes.index(lane)].processor.on_emit(emitted)

    def _emitted(self, event: Event) -> _Emitted:
        # The logger's resource, not ours: the SDK renews it in a forked child.
        return _Emitted(event, self._logger.resource, self._scope, self._limits)

    def _origin(self, attributes: Mapping[str, Any]) -> Resource:
        """One and the same object for one origin: exporters group by it."""
        known = self._origins.get(id(attributes))
        if known is None or known[0] is not attributes:
            made = Resource(dict(attributes))
            while len(self._origins) >= _MOST_ORIGINS:
                self._origins.pop(next(iter(self._origins)))
            known = self._origins[id(attributes)] = (attributes, made)
        return known[1]

    def own_resource(self) -> dict[str, Any]:
        """The attributes of what produces the records, as plain values."""
        return plain_resource(resource_info(self._logger.resource)).attributes

    @property
    def enabled(self) -> bool:
        """False when the SDK made the logger a no-op (``OTEL_SDK_DISABLED``) or nothing listens."""
        return bool(self._logger.enabled())

    def poke(self) -> None:
        """Ask all processors to export now, without waiting for it."""
        for road in self._roads:
            road.poke()

    def settle(self, deadline: float) -> bool:
        """Nothing to add: the lanes know what was confirmed."""
        return True

    def shutdown(self, deadline: float) -> int:
        """Export what is left until `deadline` (monotonic seconds). Returns how many events were left."""
        for lane in self.lanes:
            lane.stop(deadline)
        for road in self._roads:
            road.end()
        for road in self._roads:
            road.wait(deadline)
        return sum(lane.abandon() for lane in self.lanes)

    def after_fork(self) -> None:
        """In a forked child: exporters drop the parent's connections (lanes are reset by delivery)."""
        for road in self._roads:
            road.start()
        for exporter in self._exporters:
            exporter.after_fork()


def _measured(make: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """A part of the SDK. It counts itself in the application's metrics, unless their settings are broken."""
    try:
        return make(*args, **settings)
    except Exception:  # noqa: BLE001 - a typo in OTEL_PYTHON_METER_PROVIDER is no reason not to audit
        return make(*args, **settings, meter_provider=NoOpMeterProvider())


class GlobalPipeline:
    """Emission through the application's own provider: its processors, limits and losses apply.

    There is nothing to confirm, so there are no lanes; `flush` asks the provider.
    """

    def __init__(self, version: str) -> None:
        self._logger = logs_api.get_logger(semconv.SCOPE_NAME, version, schema_url=semconv.SCHEMA_URL)
        self.lanes: list[Lane] = []
        self.enabled = True
        self._flushing: threading.Thread | None = None
        self._flushed = False
        self._looked = False

    def emit(self, event: Event) -> None:
        """Emit one event as a log record of the stable shape."""
        if not self._looked:
            self._looked = True
            self._look()
        source = _LogRecord(event)
        record = logs_api.LogRecord(
            timestamp=source.timestamp,
            observed_timestamp=source.observed_timestamp,
            severity_text=source.severity_text,
            severity_number=source.severity_number,
            attributes=source.attributes,
            event_name=source.event_name,
        )
        record.trace_id, record.span_id = source.trace_id, source.span_id
        record.trace_flags = source.trace_flags
        self._logger.emit(record)

    def _look(self) -> None:
        """Say if there is no provider at the first event: the API then drops it, and those after it."""
        if not hasattr(logs_api.get_logger_provider(), "force_flush"):
            log_safely(
                logging.ERROR,
                "otel_activity: EVENTS GO NOWHERE, because the program has no LoggerProvider; set one before "
                "its first event, or use OTEL_ACTIVITY_LOGGER_PROVIDER=own",
            )

    def poke(self) -> None:
        """Flush the application's provider, if it can be."""
        self._flushed = False
        if self._flushing is None or not self._flushing.is_alive():
            flushing = threading.Thread(target=self._flush, name="otel-activity-flush", daemon=True)
            try:
                flushing.start()
            except RuntimeError:  # the interpreter is shutting down, and the provider flushes itself
                return
            self._flushing = flushing

    def _flush(self) -> None:
        flush = getattr(logs_api.get_logger_provider(), "force_flush", None)
        if flush is not None:
            self._flushed = bool(flush())

    def settle(self, deadline: float) -> bool:
        """Whether the provider says, until `deadline` (monotonic seconds), that it flushed."""
        if self._flushing is not None:
            self._flushing.join(max(0.0, deadline - time.monotonic()))
        return self._flushed

    def shutdown(self, deadline: float) -> int:
        """The provider is the application's to shut down; it is only flushed."""
        self.poke()
        self.settle(deadline)
        return 0

    def after_fork(self) -> None:
        """Nothing of ours is inherited."""
        self._flushing = None


def console_exporter() -> LogRecordExporter:
    """One line of JSON for each event, on standard output."""
    return ConsoleLogRecordExporter(formatter=lambda record: record.to_json(indent=None) + "\n")


def otlp_exporter(endpoint: str | None, protocol: str) -> LogRecordExporter:
    """An OTLP exporter; everything but the endpoint comes from the SDK's own variables.

    Args:
        endpoint: of our own, or None for the SDK's.
        protocol: ``grpc`` or ``http/protobuf``.
    """
    if protocol != "grpc" and endpoint is not None and not endpoint.rstrip("/").endswith("/v1/logs"):
        endpoint = f"{endpoint.rstrip('/')}/v1/logs"
    connection = transport(endpoint, protocol)
    return _stock_exporter(endpoint, protocol) if connection is None else OtlpLogExporter(connection)


def _stock_exporter(endpoint: str | None, protocol: str) -> LogRecordExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as Grpc

        return Grpc(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as Http

    return Http(endpoint=endpoint)
