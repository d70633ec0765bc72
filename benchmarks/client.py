"""The measured process: `python -m benchmarks.client`, driven through its standard input and output.

Every client starts fresh, so the instrumentation of one variant cannot leak into another. The first line
of input is the job; every further line is a number of executions, answered by one line of measurements. The
end of input ends the client.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, BinaryIO

import msgspec
from sqlalchemy import create_engine

from benchmarks import workloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FLUSH_TIMEOUT", "Block", "Job", "main"]

FLUSH_TIMEOUT = 60.0
"""Seconds until an export that does not end counts as failed."""


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """What a client is to do.

    Attributes:
        workload: ``request`` or ``insert``.
        url: SQLAlchemy URL of the application's database.
        audited: whether to switch our instrumentation on; the environment then names the store.
        warm_up: executions before the client says that it is ready.
        seed: of the random numbers.
        core: the processor core to stay on; None leaves that to the system.
    """

    workload: str
    url: str
    audited: bool
    warm_up: int
    seed: int
    core: int | None = None


class Block(msgspec.Struct, kw_only=True, frozen=True):
    """Measurements of one block of executions.

    Attributes:
        elapsed: nanoseconds of each execution, as the code that called it saw them.
        thread: nanoseconds of CPU of the calling thread for each execution.
        cpu: CPU seconds of the whole process, all threads, until the last event was stored.
    """

    elapsed: list[int]
    thread: list[int]
    cpu: float


def main() -> None:
    """Run the job on standard input."""
    answers = _own_output()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    if job.core is not None:
        os.sched_setaffinity(0, {job.core})
    flush, shutdown = _audit() if job.audited else (_nothing, _nothing)
    engine = create_engine(job.url)
    execute = getattr(workloads, job.workload)(engine, job.seed)
    done = 0
    for count in _counts(job):
        _send(answers, _block(execute, flush, done, count))
        done += count
    shutdown()
    engine.dispose()


def _counts(job: Job) -> Iterator[int]:
    """How many executions to do, block by block: first the warm-up, then what is asked for."""
    yield job.warm_up
    for line in sys.stdin.buffer:
        yield int(line)


def _block(
    execute: Callable[[int], workloads.Cost], flush: Callable[[], None], first: int, count: int
) -> Block:
    before = time.process_time()
    costs = [execute(n) for n in range(first, first + count)]
    flush()
    cpu = time.process_time() - before
    return Block(elapsed=[cost.elapsed for cost in costs], thread=[cost.cpu for cost in costs], cpu=cpu)


def _audit() -> tuple[Callable[[], None], Callable[[], None]]:
    """Switch auditing on, as an application does that calls us; how to flush it and how to end it."""
    import otel_activity

    otel_activity.instrument()

    def flush() -> None:
        if not otel_activity.flush_queue(FLUSH_TIMEOUT):
            raise SystemExit("the events were not stored in time")

    def shutdown() -> None:
        otel_activity.shutdown(FLUSH_TIMEOUT)

    return flush, shutdown


def _nothing() -> None:
    """Flush and shutdown of a client that is not audited."""


def _own_output() -> BinaryIO:
    """The answers' channel; whatever else writes to standard output goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _send(answers: BinaryIO, block: Block) -> None:
    answers.write(msgspec.json.encode(block) + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
