"""The only module that touches OpenTelemetry's logs API and SDK, which are not stable yet.

An `Event` becomes a log record here and goes through the SDK's own `LoggerProvider` and
`BatchLogRecordProcessor`. Two things are ours. A record is built lazily: our exporter reads the event itself,
and the attributes are only put together for exporters that ask. And it is not cleaned a second time: values
are plain already, and the SDK's limits would cut evidence.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import _logs as logs_api
from opentelemetry.context import Context
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
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import TraceFlags

from otel_activity import semconv
from otel_activity.delivery import Lane
from otel_activity.errors import ExportError
from otel_activity.events import Event, ResourceInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.resources import Resource

    from otel_activity.ports import EventExporter

__all__ = [
    "EventLogExporter",
    "GlobalPipeline",
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


class _LogRecord(logs_api.LogRecord):
    """A log record that still is the event; attributes are put together when an exporter asks."""

    def __init__(self, event: Event) -> None:
        # The parent's constructor would look up the current span: the event knows its own.
        self.event = event
        self.timestamp = event.time
        self.observed_timestamp = event.observed
        self.context = _NO_CONTEXT
        self.trace_id = event.trace_id
        self.span_id = event.span_id
        self.trace_flags = _FLAGS[event.trace_flags]
        self.severity_number = _SEVERITY[event.severity]
        self.severity_text = self.severity_number.name
        self.body = None
        self.event_name = event.name
        self.exception = None

    @property
    def attributes(self) -> Any:
        return {**self.event.attributes, semconv.RECORD_UID: self.event.id}

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


class _KeepTrying(LogRecordExporter):
    """Returns from `export` only when the batch was taken: the batch processor forgets what fails."""

    def __init__(self, inner: LogRecordExporter, lane: Lane) -> None:
        self._inner = inner
        self._lane = lane

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        def attempt() -> None:
            if self._inner.export(batch) is not LogRecordExportResult.SUCCESS:
                raise ExportError(f"{self._lane.name}: the exporter reported failure, see its own log lines")

        done = self._lane.deliver(len(batch), attempt)
        return LogRecordExportResult.SUCCESS if done else LogRecordExportResult.FAILURE

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]  # the SDK does not annotate it

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class EventLogExporter(LogRecordExporter):
    """Makes an `EventExporter` an exporter of the SDK. Records that are not ours are passed over.

    Args:
        exporter: what makes one attempt.
        lane: counts and retries. Without one (in a pipeline of somebody else) it has a lane of its own.
    """

    def __init__(self, exporter: EventExporter, lane: Lane | None = None) -> None:
        self._exporter = exporter
        self._lane = lane or Lane(exporter.name, capacity=1 << 30)
        self._resources: dict[int, tuple[Resource, ResourceInfo]] = {}

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Deliver the batch, trying until it is taken or the process ends."""
        for resource, events in _by_resource(batch):
            info = self._info(resource)

            def attempt(events: list[Event] = events, info: ResourceInfo = info) -> None:
                self._exporter.export(events, info)

            if not self._lane.deliver(len(events), attempt):
                return LogRecordExportResult.FAILURE
        return LogRecordExportResult.SUCCESS

    def _info(self, resource: Resource) -> ResourceInfo:
        known = self._resources.get(id(resource))
        if known is None or known[0] is not resource:
            known = self._resources[id(resource)] = (resource, resource_info(resource))
        return known[1]

    def shutdown(self) -> None:
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
        self._provider = LoggerProvider(
            resource=resource, shutdown_on_exit=False, log_record_limits=self._limits
        )
        self._logger: Any = self._provider.get_logger(semconv.SCOPE_NAME, version, semconv.SCHEMA_URL)
        self._scope = InstrumentationScope(semconv.SCOPE_NAME, version, semconv.SCHEMA_URL)
        self._processors: list[_BoundedProcessor] = []
        self._exporters: list[Any] = []
        self._poking: threading.Thread | None = None
        self.lanes: list[Lane] = []

    def add(self, name: str, exporter: EventExporter | LogRecordExporter) -> None:
        """Add a road out: an exporter of the SDK, or one of ours."""
        lane = Lane(name, self._batch["max_queue_size"])
        adapted: LogRecordExporter
        if isinstance(exporter, LogRecordExporter):
            adapted = _KeepTrying(exporter, lane)
        else:
            adapted = EventLogExporter(exporter, lane)
        processor = _BoundedProcessor(lane, BatchLogRecordProcessor(adapted, **self._batch))
        self._provider.add_log_record_processor(processor)
        self._processors.append(processor)
        self._exporters.append(exporter)
        self.lanes.append(lane)

    def emit(self, event: Event) -> None:
        """Emit one event as a log record."""
        # The logger's resource, not ours: the SDK renews it in a forked child.
        self._logger.emit(_Emitted(event, self._logger.resource, self._scope, self._limits))

    @property
    def enabled(self) -> bool:
        """False when the SDK made the logger a no-op (``OTEL_SDK_DISABLED``) or nothing listens."""
        return bool(self._logger.enabled())

    def poke(self) -> None:
        """Ask all processors to export now. Their `force_flush` ignores its timeout: it gets a thread."""
        if self._poking is not None and self._poking.is_alive():
            return
        thread = threading.Thread(target=self._force_flush, name="otel-activity-flush", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down; `shutdown` exports everything
            return
        self._poking = thread

    def _force_flush(self) -> None:
        for processor in self._processors:
            processor.force_flush()

    def shutdown(self, deadline: float) -> int:
        """Export what is left until `deadline` (monotonic seconds). Returns how many events were left."""
        for lane in self.lanes:
            lane.stop(deadline)
        # Roads that work first: a stuck one may use up the time.
        for lane, processor in sorted(
            zip(self.lanes, self._processors, strict=True), key=lambda pair: pair[0].trouble is not None
        ):
            processor.shutdown()
            lane.wait_until_empty(0)
        return sum(lane.abandon() for lane in self.lanes)

    def after_fork(self) -> None:
        """In a forked child: exporters drop the parent's connections (lanes are reset by delivery)."""
        self._poking = None
        for exporter in self._exporters:
            reset = getattr(exporter, "after_fork", None)
            if reset is not None:
                reset()


class GlobalPipeline:
    """Emission through the application's own provider: its processors, limits and losses apply.

    There is nothing to confirm, so there are no lanes; `flush` asks the provider.
    """

    def __init__(self, version: str) -> None:
        self._logger = logs_api.get_logger(semconv.SCOPE_NAME, version, schema_url=semconv.SCHEMA_URL)
        self.lanes: list[Lane] = []
        self.enabled = True

    def emit(self, event: Event) -> None:
        """Emit one event as a log record of the stable shape."""
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

    def poke(self) -> None:
        """Flush the application's provider, if it can be."""
        flush = getattr(logs_api.get_logger_provider(), "force_flush", None)
        if flush is not None:
            flush()

    def shutdown(self, deadline: float) -> int:
        """The provider is the application's to shut down; it is only flushed."""
        self.poke()
        return 0

    def after_fork(self) -> None:
        """Nothing of ours is inherited."""


def console_exporter() -> LogRecordExporter:
    """One line of JSON for each event, on standard output."""
    return ConsoleLogRecordExporter(formatter=lambda record: record.to_json(indent=None) + "\n")


def otlp_exporter(endpoint: str | None, protocol: str) -> LogRecordExporter:
    """The stock OTLP exporter; everything but the endpoint comes from the SDK's own variables.

    Args:
        endpoint: of our own, or None for the SDK's.
        protocol: ``grpc`` or ``http/protobuf``.
    """
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as Grpc

        return Grpc(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as Http

    return Http(endpoint=None if endpoint is None else f"{endpoint.rstrip('/')}/v1/logs")
