"""A receiver as a process, and requests as senders make them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import httpx
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource

from otel_activity.telemetry import Pipeline
from tests.cli.support import clean_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord

    from otel_activity.events import Event

__all__ = [
    "EXPORT",
    "JSON",
    "PROTOBUF",
    "Receiver",
    "as_json",
    "columns_of",
    "field",
    "otlp_request",
    "varint",
]

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
EXPORT = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


class Receiver:
    """``otel-activity receive`` in a process of its own, on free ports of this machine.

    Args:
        dsn: its store.
        arguments: further options.
        variables: of its environment.
    """

    def __init__(self, dsn: str, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            [
                sys.executable,
                *("-c", "from otel_activity.cli import main; main()"),
                *("receive", "--http-port", "0", "--grpc-port", "0", *arguments),
            ],
            env=clean_environment(dsn, **(variables or {})),
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait(30)
            self.process.stdout.close()
            said = self.errors
            self._errors.close()
            raise AssertionError(f"the receiver ended with status {status}: {said}")
        self.addresses = dict(word.split("=", 1) for word in line.split()[1:])

    @property
    def errors(self) -> str:
        """What it wrote to standard error so far."""
        self._errors.seek(0)
        return self._errors.read()

    @property
    def url(self) -> str:
        """Of the HTTP server."""
        return f"http://{self.addresses['http']}"

    def post(self, body: bytes, kind: str = PROTOBUF, **headers: str) -> httpx.Response:
        """Send a body as it is to ``/v1/logs``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(
            f"{self.url}/v1/logs", content=body, headers={"content-type": kind, **named}, timeout=60
        )

    def call(
        self, body: bytes, metadata: Sequence[tuple[str, str]] = (), **options: Any
    ) -> ExportLogsServiceResponse:
        """Send a message as it is to the gRPC server."""
        with grpc.insecure_channel(self.addresses["grpc"]) as channel:
            export = channel.unary_unary(EXPORT, response_deserializer=ExportLogsServiceResponse.FromString)
            answer: ExportLogsServiceResponse = export(body, metadata=metadata, timeout=60, **options)
            return answer

    def metric(self, name: str) -> float:
        """The sample of that name, labels included."""
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        return 0.0

    def peak_memory(self) -> float:
        """The most memory that it had, in megabytes; 0 where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return max(
            (int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), default=0
        )

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


class _Keep(LogRecordExporter):
    """An exporter of the SDK that keeps what the SDK's OTLP exporters would send."""

    def __init__(self) -> None:
        self.request = ExportLogsServiceRequest()

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        self.request.MergeFrom(encode_logs(batch))
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is open."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing is kept back."""
        return True


def otlp_request(events: Sequence[Event], resource: Mapping[str, Any]) -> ExportLogsServiceRequest:
    """What our OTLP export sends for these events: through the pipeline and the SDK's own encoder."""
    pipeline = Pipeline(
        Resource(dict(resource)),
        schedule_delay=60_000,
        batch_size=512,
        queue_size=max(512, len(events)),
        export_timeout=30_000,
        version="1",
    )
    kept = _Keep()
    pipeline.add("kept", kept)
    for event in events:
        pipeline.emit(event)
    pipeline.shutdown(_soon())
    return kept.request


def _soon() -> float:
    import time

    return time.monotonic() + 30


def as_json(request: ExportLogsServiceRequest) -> dict[str, Any]:
    """The request in OTLP's JSON: as protobuf's, but with hexadecimal ids and enums as numbers."""
    found: dict[str, Any] = MessageToDict(request, use_integers_for_enums=True)
    for resource_logs, source in zip(found.get("resourceLogs", ()), request.resource_logs, strict=True):
        for scope_logs, scope in zip(resource_logs.get("scopeLogs", ()), source.scope_logs, strict=True):
            for record, original in zip(scope_logs.get("logRecords", ()), scope.log_records, strict=True):
                for name, value in (("traceId", original.trace_id), ("spanId", original.span_id)):
                    if value:
                        record[name] = value.hex()
    return found


def field(number: int, content: bytes) -> bytes:
    """A field that holds a message, a text or bytes, as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def columns_of(line: bytes) -> list[Any]:
    """The fields of a line of COPY, JSON as what it means: jsonb does not keep the order either."""
    *columns, changes, attributes = line.rstrip(b"\n").split(b"\t")
    documents = [json.loads(text.replace(b"\\\\", b"\\")) if text else None for text in (changes, attributes)]
    return [*columns, *documents]
