"""Runs two clients side by side, block by block, and keeps what was measured."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final, Self

import msgspec

from benchmarks.client import Block, Job
from benchmarks.server import sqlalchemy_url
from benchmarks.variants import BASE
from benchmarks.workloads import EVENTS

if TYPE_CHECKING:
    from benchmarks.server import Server
    from benchmarks.variants import Databases, Variant

__all__ = ["ClientFailed", "Measured", "Pair", "Plan", "Round", "Runner"]

ROOT: Final = Path(__file__).parent.parent


class ClientFailed(Exception):
    """A client ended early; its messages are on standard error."""


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """One workload of a run.

    Attributes:
        name: for tables and JSON.
        workload: the function of `benchmarks.workloads`.
        round_trip: milliseconds that a proxy adds; 0 is the loopback alone.
        block: executions in one block.
        pairs: blocks of each client in one round.
        warm_up: executions before the first block.
        rounds: how often every variant is measured.
    """

    name: str
    workload: str
    round_trip: float
    block: int
    pairs: int
    warm_up: int
    rounds: int

    @property
    def executions(self) -> int:
        """How often one client executes the workload."""
        return self.warm_up + self.block * self.pairs

    @property
    def order(self) -> list[bool]:
        """For each pair, whether the client without auditing goes first: they take turns."""
        return [number % 2 == 0 for number in range(self.pairs)]


class Measured(msgspec.Struct, kw_only=True, frozen=True):
    """One block of one client.

    Attributes:
        latency: median nanoseconds of an execution.
        fast: nanoseconds of the fastest tenth of the executions (10th percentile).
        thread: the same of the CPU time that an execution takes in its own thread. What else the machine
            does only ever adds to it, so this is steadier than the median where differences are small.
        cpu: CPU seconds of the client, until its last event was stored.
        server_cpu: CPU seconds of the server; None when it cannot be known.
    """

    latency: float
    fast: float
    thread: float
    cpu: float
    server_cpu: float | None


class Pair(msgspec.Struct, kw_only=True, frozen=True):
    """Two neighbouring blocks: the same work without auditing and with a variant.

    Attributes:
        executions: of the workload, in each block.
        events: that each of them makes.
        base: the block without auditing.
        audited: the block with the variant.
    """

    executions: int
    events: int
    base: Measured
    audited: Measured

    @property
    def latency(self) -> float:
        """Ratio of the medians of the execution times."""
        return self.audited.latency / self.base.latency

    @property
    def fast(self) -> float:
        """Ratio of the 10th percentiles of the execution times."""
        return self.audited.fast / self.base.fast

    @property
    def client_cpu(self) -> float:
        """Ratio of the clients' CPU times."""
        return self.audited.cpu / self.base.cpu

    @property
    def server_cpu(self) -> float | None:
        """Ratio of the server's CPU times."""
        if self.audited.server_cpu is None or not self.base.server_cpu:
            return None
        return self.audited.server_cpu / self.base.server_cpu

    @property
    def cpu_an_event(self) -> float:
        """Microseconds of client CPU that the variant took for each event beyond what the work takes."""
        return (self.audited.cpu - self.base.cpu) / (self.executions * self.events) * 1e6

    @property
    def thread_an_event(self) -> float:
        """Microseconds of CPU an event in the thread that does the work: capturing and handing over."""
        return (self.audited.thread - self.base.thread) / self.events / 1e3


class Round(msgspec.Struct, kw_only=True, frozen=True):
    """One pair of clients from start to end."""

    plan: Plan
    variant: str
    pairs: list[Pair]

    def describe(self) -> str:
        """What came out, in one line."""
        times = [
            median(getattr(pair, side).latency for pair in self.pairs) / 1e6 for side in ("base", "audited")
        ]
        latency, cpu = (
            median(getattr(pair, name) for pair in self.pairs) for name in ("latency", "client_cpu")
        )
        known = [pair.server_cpu for pair in self.pairs if pair.server_cpu is not None]
        server = f"{median(known):.3f}" if known else "n/a"
        change = f"{times[0]:.2f} -> {times[1]:.2f} ms ({latency:.3f})"
        return f"{change}, client CPU {cpu:.3f}, database CPU {server}"


class _Client:
    """A client process, ready after its warm-up."""

    def __init__(self, job: Job, store: str | None, settings: dict[str, str]) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PG"))
        }
        self._journal = tempfile.TemporaryDirectory(prefix="activity_bench_")
        if store is not None:
            environment["OTEL_ACTIVITY_POSTGRES_DSN"] = store
            environment["OTEL_ACTIVITY_JOURNAL_DIR"] = self._journal.name
            environment |= settings
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        self._say(msgspec.json.encode(job))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it will not read any more
                    pipe.close()
        self._journal.cleanup()

    def execute(self, count: int) -> Block:
        """Let it execute a block."""
        self._say(str(count).encode())
        return self.answer()

    def answer(self) -> Block:
        """Wait for the next measurements; the first ones are the warm-up's."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ClientFailed(f"a client ended with status {self._process.wait()}")
        return msgspec.json.decode(line, type=Block)

    def end(self) -> None:
        """Let it end by itself, with all its events delivered."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait() != 0:
            raise ClientFailed(f"a client ended with status {self._process.returncode}")

    def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: the missing answer says so
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()


class Runner:
    """Executes rounds.

    Args:
        server: the measured server.
        databases: with templates.
        seed: of the random numbers; both clients of a round get the same.
        core: the processor core of the clients, None: any.
    """

    def __init__(self, server: Server, databases: Databases, *, seed: int, core: int | None) -> None:
        self._server = server
        self._databases = databases
        self._seed = seed
        self._core = core

    def round(self, plan: Plan, variant: Variant, number: int, port: int | None) -> Round:
        """Measure one variant against no auditing, and check what both did and recorded.

        Args:
            plan: what to execute.
            variant: the way of auditing.
            number: of the round; it moves the random numbers on.
            port: of the proxy on this machine, None for the direct way.

        Raises:
            ClientFailed: a client ended early.
            WrongCount: of changes or of audit records.
        """
        for each in (BASE, variant):
            self._databases.close(each)
            self._databases.open(each)
        self._server.settle()
        seed = self._seed + number
        with self._start(plan, BASE, seed, port) as base, self._start(plan, variant, seed, port) as audited:
            for client in (base, audited):
                client.answer()
            pairs = [self._pair(plan, base, audited, base_first) for base_first in plan.order]
            for client in (base, audited):
                client.end()
        for each in (BASE, variant):
            self._databases.check(each, plan.workload, plan.executions)
            self._databases.close(each)
        return Round(plan=plan, variant=variant.name, pairs=pairs)

    def _pair(self, plan: Plan, base: _Client, audited: _Client, base_first: bool) -> Pair:
        order = (base, audited) if base_first else (audited, base)
        measured = [self._block(client, plan.block) for client in order]
        if not base_first:
            measured.reverse()
        return Pair(
            executions=plan.block, events=EVENTS[plan.workload], base=measured[0], audited=measured[1]
        )

    def _start(self, plan: Plan, variant: Variant, seed: int, port: int | None) -> _Client:
        dsn = self._server.dsn(self._databases.application(variant), port=port)
        job = Job(
            workload=plan.workload,
            url=sqlalchemy_url(dsn),
            audited=variant.store is not None,
            warm_up=plan.warm_up,
            seed=seed,
            core=self._core,
        )
        store = self._server.dsn(self._databases.store(variant), port=port) if variant.store else None
        return _Client(job, store, variant.settings)

    def _block(self, client: _Client, count: int) -> Measured:
        before = self._server.cpu_seconds()
        block = client.execute(count)
        after = self._server.cpu_seconds()
        server_cpu = None if before is None or after is None else after - before
        return Measured(
            latency=median(block.elapsed),
            fast=_fast(block.elapsed),
            thread=_fast(block.thread),
            cpu=block.cpu,
            server_cpu=server_cpu,
        )


def _fast(values: list[int]) -> float:
    return float(sorted(values)[len(values) // 10])
