"""A journal of many events into PostgreSQL, against a plain COPY of the same rows.

A first process writes the journal, as one that died leaves it, and the same rows as lines of COPY. A second
one starts as any service does (`otel_activity.instrument`), finds the journal and delivers it. It is stopped
and continued in turns: while it stands still, as many of the rows go into the same table of another database
of the server by a plain COPY, in batches of the same size. So whatever else the machine does meets both.

Both processes are this module, with a job on standard input.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from benchmarks.receive import typical_event
from benchmarks.runner import ClientFailed
from benchmarks.variants import WrongCount
from otel_activity import semconv
from otel_activity.codec.rows import COLUMNS, copy_line, resource_id
from otel_activity.delivery import service_directory
from otel_activity.delivery.holding import PREPARED, RELEASED, Held, encode_release, encode_unit
from otel_activity.delivery.journal import Journal
from otel_activity.events import Commit, ResourceInfo, packed
from otel_activity.postgres import schema
from otel_activity.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.server import Server
    from otel_activity.delivery.journal import Place
    from otel_activity.events import Event

__all__ = ["Replay", "Turn", "check_stored", "main", "replay", "unreleased", "write_mark"]

ROOT: Final = Path(__file__).parent.parent
SERVICE: Final = "shop"
BATCH: Final = Settings().max_export_batch_size
UNIT: Final = 3
"""Events of a transaction."""
TURN: Final = 1.0
"""Seconds that the replay runs before it is COPY's turn."""
PATIENCE: Final = 300.0
"""Seconds without any progress after which something must be wrong."""
SHARES: Final = (0.1, 0.5, 1.0)
"""When the memory is looked at."""
_COUNTER: Final = struct.Struct("<Q")


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """What a process is to do.

    Attributes:
        task: ``write`` the journal, or ``deliver`` it.
        events: how many there are.
        directory: of the journals, the lines and the counter.
        dsn: of the store.
    """

    task: str
    events: int
    directory: str
    dsn: str = ""


class Turn(NamedTuple):
    """The replay went on for a while, and then the plain COPY for as many events, but for part of a batch."""

    replayed: int
    """Events."""
    replay: float
    """Seconds."""
    copied: int
    copy: float


class Replay(NamedTuple):
    """What was measured."""

    turns: list[Turn]
    cpu: float
    """CPU seconds of the process that delivers, from before it looks for journals to the end."""
    server_cpu: float | None
    """CPU seconds of the server meanwhile, without those of the plain COPY; None when they are unknown."""
    before: float
    """MB of memory that the process had at most before it looked for journals."""
    peaks: dict[float, float]
    """MB of memory that it had at most when so much was stored."""


# --- the processes --------------------------------------------------------------------------------


def main() -> None:
    """Run the job on standard input."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    _write(job) if job.task == "write" else _deliver(job)


def _write(job: Job) -> None:
    """Leave a journal as a process does that was killed while its store was down, and the same rows."""
    directory = Path(job.directory)
    resource = ResourceInfo({"service.name": SERVICE})
    home = directory / "journals" / service_directory(resource.attributes)
    about = {"resource": resource.attributes}
    journal = Journal.create(home, fsync="never", max_bytes=1 << 50, about=about)
    key = resource_id(resource)
    with (directory / "lines").open("wb") as lines:
        for first in range(0, job.events, UNIT):
            events = [typical_event(number) for number in range(first, min(first + UNIT, job.events))]
            lines.write(b"".join([copy_line(event, SERVICE, key) for event in events]))
            payload = encode_unit([unreleased(event) for event in events])
            write_mark(journal, journal.append(PREPARED, payload, unit=True), len(events))
    journal.close(remove=False)


def unreleased(event: Event) -> Event:
    """As a journal has it: what changed is JSON text, and a place in the stream comes later."""
    attributes = event.attributes
    attributes[semconv.CHANGES] = packed(attributes[semconv.CHANGES])
    del attributes[semconv.STREAM_ID], attributes[semconv.SEQUENCE]
    return event


def write_mark(journal: Journal, place: Place, count: int) -> None:
    """What says that a transaction of so many events, written at `place`, was committed."""
    held = Held(count, None, 1, 1, place=place, commit=Commit.REPORTED.value)
    journal.append(RELEASED, encode_release(held))


def _deliver(job: Job) -> None:
    """Start as a service does, and count until everything is stored."""
    import otel_activity

    logging.disable()  # it says that it found what a dead process left
    directory = Path(job.directory)
    with (directory / "counter").open("r+b") as file, mmap.mmap(file.fileno(), 0) as counter:
        print("ready", flush=True)
        sys.stdin.readline()
        before = time.process_time()
        otel_activity.instrument(postgres_dsn=job.dsn, journal_dir=str(directory / "journals"))
        confirmed, done = 0, True
        while confirmed < job.events:
            time.sleep(0.005)
            if job.events - confirmed < BATCH:  # the processor would wait for more
                done = otel_activity.flush_queue(60) and done
            confirmed = otel_activity.get_queue_metrics()["exporters"]["postgres"]["confirmed"]
            _COUNTER.pack_into(counter, 0, confirmed)
        done = otel_activity.flush_queue(60) and done
        spent = time.process_time() - before
        otel_activity.shutdown()
    print(msgspec.json.encode({"cpu": spent, "done": done}).decode(), flush=True)


# --- the measurement ------------------------------------------------------------------------------


def replay(server: Server, events: int, prefix: str, turn: float = TURN) -> Replay:
    """Measure it.

    Args:
        server: where two databases are made for it, and dropped.
        events: how many are in the journal.
        prefix: of their names.
        turn: seconds that the replay runs at once.

    Raises:
        ClientFailed: a process failed.
        WrongCount: something else is stored than was in the journal.
    """
    names = [f"{prefix}_replay", f"{prefix}_copy"]
    try:
        for name in names:
            schema.apply(server.create(name))
        with tempfile.TemporaryDirectory(prefix="activity-replay-") as directory:
            _run(Job(task="write", events=events, directory=directory))
            return _measure(server, events, Path(directory), server.dsn(names[0]), server.dsn(names[1]), turn)
    finally:
        server.drop(names)


def _run(job: Job) -> None:
    command = [sys.executable, "-m", "benchmarks.replay"]
    if subprocess.run(command, input=_line(job), cwd=ROOT, check=False).returncode != 0:
        raise ClientFailed("the process that writes the journal failed")


def _line(job: Job) -> bytes:
    return msgspec.json.encode(job) + b"\n"


def _measure(server: Server, events: int, directory: Path, store: str, copied: str, turn: float) -> Replay:
    (directory / "counter").write_bytes(bytes(_COUNTER.size))
    job = Job(task="deliver", events=events, directory=str(directory), dsn=store)
    with _started(job) as process, _Lines(directory / "lines", copied) as plain:
        assert process.stdin is not None
        assert process.stdout is not None
        before = _peak(process.pid)
        server.settle()
        cpu = server.cpu_seconds()
        process.stdin.write(b"go\n")
        process.stdin.flush()
        turns, peaks = _take_turns(process, directory, events, plain, turn)
        server_cpu = None if cpu is None else (server.cpu_seconds() or 0.0) - cpu - plain.cpu(server)
        answer = process.stdout.readline()
        if not answer:
            raise ClientFailed("the process that delivers the journal failed")
        found = msgspec.json.decode(answer)
    check_stored(store, events, left=list((directory / "journals").rglob("*.seg")))
    _check_copied(copied, sum(each.copied for each in turns))
    if not found["done"]:
        raise WrongCount("replay: flush_queue() says that something is left")
    return Replay(turns, found["cpu"], server_cpu, before, peaks)


@contextmanager
def _started(job: Job) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.replay"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**_plain_environment(), "OTEL_SERVICE_NAME": SERVICE, "OTEL_ACTIVITY_COMMIT_PROOF": "off"},
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_line(job))
        process.stdin.flush()
        if process.stdout.readline() != b"ready\n":
            raise ClientFailed("the process that delivers the journal did not start")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _plain_environment() -> dict[str, str]:
    """Settings of the machine's own telemetry are none of this run's business."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}


def _take_turns(
    process: subprocess.Popen[bytes], directory: Path, events: int, plain: _Lines, turn: float
) -> tuple[list[Turn], dict[float, float]]:
    turns: list[Turn] = []
    peaks: dict[float, float] = {}
    stored, running, idle = 0, 0.0, 0.0
    while stored < events:
        started = time.perf_counter()
        now = stored
        # The clock stops when the last event is confirmed: what follows is the end of the process.
        while now < events and time.perf_counter() - started < turn:
            time.sleep(0.002)
            now = _COUNTER.unpack((directory / "counter").read_bytes())[0]
            for share in SHARES:
                if now >= events * share and share not in peaks:
                    peaks[share] = _peak(process.pid)
            if process.poll() is not None and now < events:
                raise ClientFailed(f"the process that delivers the journal ended after {now} events")
        elapsed = time.perf_counter() - started
        running += elapsed  # the search for the journal is a part of the first events' time
        idle = 0.0 if now > stored else idle + elapsed
        if idle > PATIENCE:
            raise ClientFailed(f"no progress for {PATIENCE:.0f} s after {now} events")
        if now == stored:
            continue
        if now < events:
            os.kill(process.pid, signal.SIGSTOP)
        else:
            process.wait(60)
        copied, seconds = plain.copy(now, last=now >= events)
        if now < events:
            os.kill(process.pid, signal.SIGCONT)
        turns.append(Turn(now - stored, running, copied, seconds))
        stored, running = now, 0.0
    return turns, peaks


class _Lines:
    """The rows as lines of COPY, in batches, on a connection of their own."""

    def __init__(self, path: Path, dsn: str) -> None:
        self._file = path.open("rb")
        self._connection = psycopg.connect(dsn, autocommit=True)
        columns = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        self._copy = sql.SQL("COPY activity.events ({}) FROM STDIN WITH (NULL '')").format(columns)
        self._done = 0
        self._spent = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._file.close()

    def copy(self, until: int, *, last: bool) -> tuple[int, float]:
        """Copy whole batches up to event `until`, the rest too if it is the last; how many, and seconds."""
        before, seconds = self._done, 0.0
        while (left := until - self._done) >= BATCH or (last and left > 0):
            lines = [self._file.readline() for _ in range(min(BATCH, left))]
            data = b"".join(lines)
            started = time.perf_counter()
            with self._connection.transaction(), self._connection.cursor().copy(self._copy) as copy:
                copy.write(data)
            seconds += time.perf_counter() - started
            self._done += len(lines)
        return self._done - before, seconds

    def cpu(self, server: Server) -> float:
        """CPU seconds of the server for it."""
        return server.session_cpu_seconds(self._connection.info.backend_pid)


def _peak(process: int) -> float:
    """MB of memory that a process had at most; 0 where the system does not say."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0.0)


def check_stored(dsn: str, events: int, *, left: list[Path]) -> None:
    """Make sure that each event is stored once, and that the stream has no hole.

    Args:
        dsn: of the store.
        events: how many there are.
        left: segments of the journals: one is the living process's own.

    Raises:
        WrongCount: it is not so.
    """
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT count(*), count(DISTINCT id), count(DISTINCT entity_id), min(entity_id::bigint),"
            " max(entity_id::bigint), count(DISTINCT sequence), min(sequence), max(sequence),"
            " count(DISTINCT stream_id), (SELECT count(*) FROM activity.quarantine) FROM activity.events"
        ).fetchone()
    expected = (events, events, events, 0, events - 1, events, 1, events, 1, 0)
    if row != expected:
        raise WrongCount(f"replay: stored {row}, not {expected}")
    if len(left) > 1:
        raise WrongCount(f"replay: {len(left)} segments are left in the journals")


def _check_copied(dsn: str, events: int) -> None:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM activity.events").fetchone()
    if row != (events,):
        raise WrongCount(f"plain COPY: stored {row}, not {events}")


if __name__ == "__main__":
    main()
