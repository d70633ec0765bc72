"""Events a second through the receiver into PostgreSQL: `python -m benchmarks.receive`.

A receiver in a process of its own gets requests that are encoded beforehand, over a few connections, and
stores them; the clock runs from the first byte to the last acknowledgement. In the same run the same rows go
into the same table by a plain COPY, which is as fast as PostgreSQL takes them. Both are repeated in turn, and
the best of each counts: on a machine that does other work the others measure that work.

Printed as well: CPU time of the receiver for each event, which other work disturbs less than the clock, and
the most memory that it had.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

import click
import psycopg
import uuid_utils
from psycopg import sql

from otel_activity import semconv
from otel_activity.codec.otlp import envelope, log_request
from otel_activity.codec.rows import COLUMNS, copy_line, resource_id
from otel_activity.events import Event, ResourceInfo
from otel_activity.postgres import schema
from otel_activity.version import is_compiled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["main"]

RESOURCE: Final = ResourceInfo({"service.name": "shop", "service.version": "1.2.3", "host.name": "web-1"})
ENOUGH: Final = 30_000
"""Events a second that the receiver shall take."""
RATIO: Final = 0.6
"""Share of the speed of a plain COPY that it shall reach."""
SENDERS: Final = 10
"""As many as the queue of one OpenTelemetry Collector has consumers, unless it is told otherwise."""


class Run(NamedTuple):
    """One pass of all events."""

    rate: float
    """Events a second."""
    cpu: float
    """Microseconds of the receiver's CPU an event; 0 for the plain COPY."""


def typical_event(number: int) -> Event:
    """An update of three fields in a web request, three events to a transaction."""
    now = time.time_ns() // 1000 * 1000
    transaction = number // 3
    return Event(
        id=str(uuid_utils.uuid7()),
        name=semconv.ENTITY_UPDATED,
        time=now,
        observed=now,
        trace_id=(transaction + 1) << 64 | 0x5BD1E995,
        span_id=transaction + 1,
        trace_flags=1,
        attributes={
            semconv.ACTIVITY_ACTION: "update",
            semconv.ACTIVITY_OUTCOME: "success",
            semconv.ENTITY_TYPE: "Task",
            semconv.ENTITY_ID: str(number),
            semconv.CHANGES: {
                "title": {"before": f"Task {number}", "after": f"Task {number}, renamed"},
                "state": {"before": "open", "after": "done"},
                "updated_at": {
                    "before": {"$datetime": "2026-05-01T09:30:00+00:00"},
                    "after": {
                        "$datetime": f"2026-05-02T10:{number % 60:02}:00.{number % 1_000_000:06}+00:00"
                    },
                },
            },
            semconv.CAPTURE: "full",
            semconv.DB_SYSTEM_NAME: "postgresql",
            semconv.DB_NAMESPACE: "shop",
            semconv.DB_COLLECTION_NAME: "tasks",
            semconv.DB_OPERATION_NAME: "UPDATE",
            semconv.TRANSACTION_ID: f"019a0000-0000-7000-8000-{transaction:012x}",
            semconv.COMMIT: "reported",
            semconv.ACTOR_TYPE: "user",
            semconv.USER_ID: f"user-{transaction % 50}",
            semconv.USER_NAME: "Ann Example",
            semconv.REQUEST_METHOD: "POST",
            semconv.ROUTE: "/tasks/{task_id}",
            semconv.CLIENT_ADDRESS: "10.0.0.7",
            semconv.REQUEST_ID: f"019a0000-0000-7000-9000-{transaction:012x}",
            semconv.TENANT_ID: f"tenant-{transaction % 5}",
            semconv.STREAM_ID: "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa",
            semconv.SEQUENCE: number,
            semconv.ACTIVITY_SCHEMA_VERSION: semconv.SCHEMA_VERSION,
        },
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dsn", help="A database for this alone: its tables are emptied. Default: an embedded one.")
@click.option("--events", default=30_000, show_default=True, help="Events of each pass.")
@click.option("--batch", default=512, show_default=True, help="Events of a request.")
@click.option("--senders", default=SENDERS, show_default=True, help="Requests at the same time.")
@click.option("--rounds", default=5, show_default=True, help="Passes of each kind.")
@click.option("--strict", is_flag=True, help="Exit status 3 when a budget is missed.")
def main(dsn: str | None, events: int, batch: int, senders: int, rounds: int, strict: bool) -> None:
    """Measure the receiver against a plain COPY of the same rows."""
    with contextlib.ExitStack() as stack:
        if dsn is None:
            from otel_activity.embedded import EmbeddedPostgres

            settings = {"max_wal_size": "4GB", "checkpoint_timeout": "1h", "autovacuum": "off"}
            dsn = stack.enter_context(EmbeddedPostgres(fsync=False, settings=settings)).dsn()
        schema.apply(dsn)
        made = [typical_event(number) for number in range(events)]
        batches = [made[first : first + batch] for first in range(0, len(made), batch)]
        around = envelope(RESOURCE.attributes, "", semconv.SCOPE_NAME, "1", semconv.SCHEMA_URL)
        bodies = [log_request(around, part) for part in batches]
        key = resource_id(RESOURCE)
        lines = [b"".join([copy_line(event, "shop", key) for event in part]) for part in batches]
        process, address = stack.enter_context(_receiver(dsn))
        connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        received, copied = [], []
        for _ in range(rounds):
            copied.append(_timed(connection, events, lambda: _copy(connection, lines)))
            received.append(
                _timed(connection, events, lambda: _send(address, bodies, senders), process=process.pid)
            )
        size = sum(map(len, bodies)) / events
        peak = _peak_memory(process.pid)
    best, raw = max(received), max(copied)
    ratio = best.rate / raw.rate
    click.echo(
        f"{events} events of {size:.0f} bytes, {batch} to a request, {senders} senders, best of {rounds}, "
        f"{'compiled' if is_compiled() else 'interpreted'}"
    )
    click.echo(f"plain COPY   {raw.rate:9,.0f} events/s")
    click.echo(
        f"receive      {best.rate:9,.0f} events/s   {_verdict(best.rate >= ENOUGH)} (at least {ENOUGH:,})"
    )
    click.echo(f"of plain COPY    {ratio:5.2f}            {_verdict(ratio >= RATIO)} (>= {RATIO})")
    click.echo(f"CPU          {min(each.cpu for each in received):9.1f} us an event in the receiver")
    click.echo(f"memory       {peak:9,.0f} MB at most")
    if not is_compiled():
        click.echo("Compiled it takes about twice as many: docs/receiver.md, Speed.")
    if strict and (best.rate < ENOUGH or ratio < RATIO):
        raise SystemExit(3)


def _verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


@contextlib.contextmanager
def _receiver(dsn: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [
            sys.executable,
            *("-c", "from otel_activity.cli import main; main()"),
            *("receive", "--http-port", "0", "--no-grpc", "--dsn", dsn),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split("http=")[1].split()[0]
    finally:
        process.terminate()
        process.wait()


def _timed(
    connection: psycopg.Connection[tuple[object, ...]], events: int, work: object, process: int | None = None
) -> Run:
    connection.execute("TRUNCATE activity.events")
    cpu = _cpu(process)
    started = time.perf_counter()
    assert callable(work)
    work()
    elapsed = time.perf_counter() - started
    (stored,) = connection.execute("SELECT count(*) FROM activity.events").fetchall()[0]
    if stored != events:
        raise click.ClickException(f"{stored} rows instead of {events}: the times mean nothing")
    return Run(events / elapsed, (_cpu(process) - cpu) / events * 1e6)


def _copy(connection: psycopg.Connection[tuple[object, ...]], batches: Sequence[bytes]) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    query = sql.SQL("COPY activity.events ({}) FROM STDIN WITH (NULL '')").format(columns)
    for lines in batches:
        with connection.transaction(), connection.cursor().copy(query) as copy:
            copy.write(lines)


def _send(address: str, bodies: Sequence[bytes], senders: int) -> None:
    """All requests, each sent again until it is taken, over so many connections."""
    left: SimpleQueue[bytes] = SimpleQueue()
    for body in bodies:
        left.put(body)

    def work() -> None:
        connection = http.client.HTTPConnection(address)
        while True:
            try:
                body = left.get_nowait()
            except Empty:
                return
            status = 503
            while status == 503:
                connection.request("POST", "/v1/logs", body, {"content-type": "application/x-protobuf"})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            if status != 200:
                raise AssertionError(status)

    threads = [threading.Thread(target=work) for _ in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _cpu(process: int | None) -> float:
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_memory(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
