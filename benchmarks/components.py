"""Microseconds an event behind the commit, part by part: `python -m benchmarks.components`, a job on stdin.

A process of its own executes the workloads with the capture installed, on a delivery that keeps the units,
and then drives the parts as they are, one after the other, with what was captured:

- *enqueueing*: `QueuedDelivery.prepare` and `committed`; CPU of the calling thread.
- *encoding*: `to_event`, what the feeding thread does.
- *through the SDK*: `Pipeline.emit`, the batch processor, and an exporter that takes everything; CPU of all
  threads.
- *export*: `PostgresEventExporter.export` of whole batches, to the confirmed COMMIT; CPU of the process.
  *Rows* is the part of it that writes events as lines (`copy_line`). By the clock, it is compared with a
  plain COPY of the very same lines.
- *export: OTLP*: the exporter for OTLP up to the bytes to send; CPU of the process. It is compared with the
  SDK's exporter encoding the same records.

What capturing costs is in the workloads' rows: the difference of the CPU time of the thread that executes
them. Switching the hooks on and off inside a process would measure how the interpreter warms up again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import psycopg
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from psycopg import sql
from sqlalchemy import create_engine

from benchmarks import workloads
from benchmarks.report import Row, component_row
from benchmarks.runner import ClientFailed
from benchmarks.server import sqlalchemy_url
from benchmarks.variants import VARIANTS, Databases
from otel_activity.capture import SQLAlchemyCapture
from otel_activity.codec.rows import COLUMNS, copy_line, resource_id
from otel_activity.delivery import QueuedDelivery
from otel_activity.events import Commit, ResourceInfo
from otel_activity.otlp import Answer
from otel_activity.postgres.exporter import PostgresEventExporter
from otel_activity.redaction import Redactor
from otel_activity.settings import Settings
from otel_activity.telemetry import OtlpLogExporter, Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord

    from benchmarks.server import Server
    from otel_activity.events import Event, Unit
    from otel_activity.ports import EventExporter

__all__ = ["Job", "KeepUnits", "main", "measure"]

ROOT: Final = Path(__file__).parent.parent
BATCH: Final = Settings().max_export_batch_size
RESOURCE: Final = ResourceInfo({"service.name": "benchmarks"})
AGAINST_COPY: Final = "export / plain COPY"
AGAINST_STOCK: Final = "export: OTLP / stock encoder"


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """What to measure.

    Attributes:
        dsn: of a database with the application's tables and the store.
        seed: of the random numbers.
        core: the processor core to stay on; None leaves that to the system.
        executions: of each workload in one repetition.
        repetitions: how often everything is measured.
    """

    dsn: str
    seed: int
    core: int | None
    executions: dict[str, int]
    repetitions: int


def measure(server: Server, *, seed: int, quick: bool, core: int | None) -> list[Row]:
    """Run the parts in a process of their own; a row for each part of each workload."""
    # Both make about as many events as a batch holds.
    executions = {"request": 10, "insert": 1} if quick else {"request": BATCH // 3, "insert": 1}
    repetitions = 2 if quick else 7
    variant = next(each for each in VARIANTS if each.store == "same")
    requests = (repetitions + 1) * executions["request"]  # the first repetition warms up
    databases = Databases(server, requests, f"activity_bench_{os.getpid()}_parts")
    try:
        databases.create_templates((variant,))
        databases.open(variant)
        job = Job(
            dsn=server.dsn(databases.application(variant)),
            seed=seed,
            core=core,
            executions=executions,
            repetitions=repetitions,
        )
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.components"],
            input=msgspec.json.encode(job),
            stdout=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
        if result.returncode != 0:
            raise ClientFailed(f"the measurement of the parts ended with status {result.returncode}")
    finally:
        databases.drop_all((variant,))
    found = msgspec.json.decode(result.stdout, type=dict[str, dict[str, list[float]]])
    return [
        component_row(workload, part, values)
        for workload, parts in found.items()
        for part, values in parts.items()
    ]


def main() -> None:
    """Run the job on standard input; the answer maps workload and part to microseconds an event."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    if job.core is not None:
        os.sched_setaffinity(0, {job.core})
    found = {workload: _parts(job, workload) for workload in job.executions}
    sys.stdout.buffer.write(msgspec.json.encode(found))


class KeepUnits:
    """A delivery that keeps the units: what is behind it is measured on its own."""

    def __init__(self) -> None:
        self.units: list[Unit] = []

    def prepare(self, unit: Unit) -> None:
        """Nothing to make safe."""

    def committed(self, unit: Unit) -> None:
        """Keep it."""
        self.units.append(unit)

    def aborted(self, unit: Unit) -> None:
        """Nothing to keep."""

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """Cannot happen here."""
        raise AssertionError(error)


class _TakeAll:
    """An exporter that costs nothing, to measure the way to it."""

    name = "nowhere"

    def export(self, events: Sequence[Event], resource: ResourceInfo) -> None:
        """Take the batch."""

    def close(self) -> None:
        """Nothing is open."""

    def after_fork(self) -> None:
        """Nothing is inherited."""


class _KeepRecords(LogRecordExporter):
    """An exporter that keeps the records."""

    def __init__(self) -> None:
        self.records: list[ReadableLogRecord] = []

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Keep the batch."""
        self.records += batch
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is open."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing is held back."""
        return True


class _Nowhere:
    """A connection that takes what it is given."""

    def send(self, body: bytes, count: int) -> Answer:
        """Take it."""
        return Answer(taken=True)

    def shutdown(self) -> None:
        """Nothing is open."""


def _parts(job: Job, workload: str) -> dict[str, list[float]]:
    engine = create_engine(sqlalchemy_url(job.dsn))
    execute = getattr(workloads, workload)(engine, job.seed)
    kept = KeepUnits()
    capture = SQLAlchemyCapture(kept, redactor=Redactor(()))
    exporter = PostgresEventExporter(job.dsn)
    capture.install()
    count = job.executions[workload]
    rounds = []
    for number in range(job.repetitions + 1):
        kept.units = []
        for n in range(number * count, (number + 1) * count):
            execute(n)
        rounds.append(_round(job, kept.units, exporter))
    capture.uninstall()
    exporter.close()
    engine.dispose()
    return {part: [each[part] for each in rounds[1:]] for part in rounds[0]}


def _round(job: Job, units: list[Unit], exporter: PostgresEventExporter) -> dict[str, float]:
    """Every part once, for the same units; microseconds an event."""
    total = sum(len(unit) for unit in units)
    events: list[Event] = []
    seconds = {
        "enqueueing": _enqueueing(units, total),
        "encoding": _cpu(lambda: events.extend(event for unit in units for event in unit.events())),
        "through the SDK": _through_the_sdk(events),
        "export": _cpu(lambda: _export(exporter, events)),
        "export: rows": _cpu(lambda: _lines(events)),
        "export: OTLP": _otlp(events, OtlpLogExporter(_Nowhere()).export),
    }
    found = {part: value / total * 1e6 for part, value in seconds.items()}
    stock = _otlp(events, lambda batch: encode_logs(batch).SerializeToString())
    return found | {
        AGAINST_COPY: _against_copy(job, exporter, events),
        AGAINST_STOCK: seconds["export: OTLP"] / stock,
    }


def _otlp(events: list[Event], encode: Callable[[list[ReadableLogRecord]], object]) -> float:
    """Records are what the pipeline makes of the events, in batches."""
    kept = _KeepRecords()
    _send(events, kept, len(events))
    batches = [kept.records[first : first + BATCH] for first in range(0, len(events), BATCH)]
    return _cpu(lambda: [encode(batch) for batch in batches])


def _lines(events: Sequence[Event]) -> bytes:
    key = resource_id(RESOURCE)
    return b"".join([copy_line(event, RESOURCE.service_name, key) for event in events])


def _cpu(work: Callable[[], Any]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _enqueueing(units: list[Unit], total: int) -> float:
    """CPU of the thread that commits. The feeding thread is held up until all units are queued."""
    gate = threading.Event()
    delivery = QueuedDelivery((), lambda _: _hold(gate), capacity=total + 1)
    before = time.thread_time()
    for unit in units:
        delivery.prepare(unit)
        unit.commit = Commit.REPORTED
        delivery.committed(unit)
    elapsed = time.thread_time() - before
    gate.set()
    delivery.close(time.monotonic() + 60)
    return elapsed


def _hold(gate: threading.Event) -> None:
    gate.wait()


def _through_the_sdk(events: list[Event]) -> float:
    return _send(events, _TakeAll(), Settings().max_queue_size)


def _send(events: list[Event], exporter: EventExporter | LogRecordExporter, queue_size: int) -> float:
    """CPU of everything from the emission of the events to the exporter."""
    pipeline = Pipeline(
        Resource(RESOURCE.attributes),
        schedule_delay=Settings().schedule_delay,
        batch_size=min(BATCH, queue_size),
        queue_size=queue_size,
        export_timeout=Settings().export_timeout,
        version="0",
    )
    pipeline.add("nowhere", exporter)

    def work() -> None:
        for event in events:
            pipeline.emit(event)
        pipeline.poke()
        pipeline.lanes[0].wait_until_empty(60)

    elapsed = _cpu(work)
    pipeline.shutdown(time.monotonic() + 60)
    return elapsed


def _against_copy(job: Job, exporter: PostgresEventExporter, events: list[Event]) -> float:
    """How long an export takes by the clock, in times of a plain COPY of the same rows to the same table."""
    columns = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    copy_in = sql.SQL("COPY activity.events ({}) FROM STDIN WITH (NULL '')").format(columns)
    batches = [_lines(events[first : first + BATCH]) for first in range(0, len(events), BATCH)]
    with psycopg.connect(job.dsn, autocommit=True) as connection:

        def plain() -> None:
            for rows in batches:
                with connection.transaction(), connection.cursor().copy(copy_in) as copy:
                    copy.write(rows)

        elapsed = []
        for work in (plain, lambda: _export(exporter, events)):
            connection.execute("TRUNCATE activity.events")
            started = time.perf_counter()
            work()
            elapsed.append(time.perf_counter() - started)
    return elapsed[1] / elapsed[0]


def _export(exporter: PostgresEventExporter, events: list[Event]) -> None:
    for first in range(0, len(events), BATCH):
        exporter.export(events[first : first + BATCH], RESOURCE)


if __name__ == "__main__":
    main()
