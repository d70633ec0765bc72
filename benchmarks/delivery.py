"""What the journal costs, and how fast it comes back: `python -m benchmarks.delivery`.

- *journal*: what `durable` adds in the thread that commits, over handing over to memory. Transactions that
  were captured before go through `prepare` and `committed` of both, in turn; encoding is a part of it, the
  proof of the commit is not.
- *append*: events a second that one process writes into its journal, with their marks.
- *replay*: a process finds the journal of a dead one and stores it in PostgreSQL; see `benchmarks.replay`.

`strict` and `durable` against no auditing are in `python -m benchmarks`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click
import msgspec
from sqlalchemy import create_engine

from benchmarks import machine, workloads
from benchmarks.components import KeepUnits
from benchmarks.receive import typical_event
from benchmarks.replay import SHARES, Replay, replay, unreleased, write_mark
from benchmarks.report import Row, as_text, row
from benchmarks.runner import ClientFailed
from benchmarks.server import open_server, sqlalchemy_url
from benchmarks.variants import VARIANTS, Databases, WrongCount
from otel_activity.capture import SQLAlchemyCapture
from otel_activity.delivery import DurableDelivery, QueuedDelivery
from otel_activity.delivery.holding import PREPARED, encode_unit, take_over
from otel_activity.delivery.journal import Journal, orphans
from otel_activity.events import Commit
from otel_activity.masking import mask_dsn
from otel_activity.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.server import Server
    from otel_activity.events import Event, Unit

__all__ = ["main"]

MEMORY: Final = "memory"
ENCODING: Final = "encoding"
FSYNC: Final = ("interval", "always", "never")
JOURNAL_BUDGET: Final = 6.0
"""Microseconds an event, at fsync ``interval``."""
APPEND_BUDGET: Final = 100_000
"""Events a second."""
REPLAY_BUDGET: Final = 1.25
"""Time of a replay in times of a plain COPY: 0.8 of its speed."""
FLAT: Final = 1.10
"""Most memory at the end of a replay, in times of that after a tenth of it."""
UNITS: Final = (3, 100)
"""Events of a transaction, for *append*."""
REPETITIONS: Final = 5
SYNC_EVERY: Final = 1.0
"""Seconds, as in `DurableDelivery`."""
ENOUGH: Final = 100_000
"""Events from which on the times mean something."""


class Cost(NamedTuple):
    """Of one block of transactions; microseconds an event."""

    cpu: float
    """Of the thread that commits."""
    clock: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dsn", help="Server to measure on; its user may create databases. Default: an embedded one.")
@click.option("--events", type=click.IntRange(300), default=1_000_000, show_default=True, help="To replay.")
@click.option("--strict", is_flag=True, help="Exit status 3 when a budget is missed.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True, path_type=Path))
def main(dsn: str | None, events: int, strict: bool, json_file: Path | None) -> None:
    """Measure the journal: what it costs, how fast it is written, how fast it is stored.

    Exit status 1 when something else was stored than was there: then the times mean nothing.
    """
    facts = {"command": "python -m benchmarks.delivery " + " ".join(map(mask_dsn, sys.argv[1:]))}
    facts |= machine.facts()
    try:
        with open_server(dsn) as server:
            facts["server"] = "PostgreSQL " + ", ".join(
                f"{key} {value}" for key, value in server.facts().items()
            )
            for key, value in facts.items():
                click.echo(f"{key:14} {value}")
            prefix = f"activity_bench_{os.getpid()}"
            rows = _journal_rows(server, prefix, min(300, max(20, events // 1_000)))
            for size in UNITS:
                rows += _append_rows(size, min(events, 300_000))
            rows += _replay_rows(replay(server, events, prefix), events)
    except (WrongCount, ClientFailed) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
    click.echo(f"\n{as_text(rows)}\n")
    click.echo(_summary(rows, events))
    if json_file is not None:
        json_file.write_bytes(_as_json(facts, rows, events))
    if strict and any(each.met is False for each in rows):
        raise SystemExit(3)


def _summary(rows: list[Row], events: int) -> str:
    lines = [
        "us: microseconds an event; /s: events a second; x: time of the replay in times of the plain COPY,",
        "and of memory that after a tenth of the replay",
        f"counted: {events:,} events were replayed, each is stored once, none is missing",
    ]
    if events < ENOUGH:
        lines.append("too few events for times to mean anything")
    judged = [each.met for each in rows if each.met is not None]
    lines.append(f"{judged.count(True)} of {len(judged)} budgets met")
    return "\n".join(lines)


def _as_json(facts: dict[str, str], rows: list[Row], events: int) -> bytes:
    lines = [msgspec.to_builtins(each) | {"met": each.met} for each in rows]
    content = {"machine": facts, "quick": events < ENOUGH, "events": events, "rows": lines}
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"


# --- what the journal costs -----------------------------------------------------------------------


def _journal_rows(server: Server, prefix: str, transactions: int) -> list[Row]:
    variant = next(each for each in VARIANTS if each.store == "same")
    ways = (MEMORY, *FSYNC, ENCODING)
    blocks = (REPETITIONS + 1) * len(ways)  # the first repetition warms up
    databases = Databases(server, blocks * transactions, f"{prefix}_journal")
    try:
        databases.create_templates((variant,))
        databases.open(variant)
        with _captured(server.dsn(databases.application(variant)), transactions) as units:
            found = [{way: _cost(way, next(units)) for way in ways} for _ in range(REPETITIONS + 1)][1:]
    finally:
        databases.drop_all((variant,))
    rows = []
    for way in FSYNC:
        budget = JOURNAL_BUDGET if way == "interval" else None
        cpu: list[float | None] = [each[way].cpu - each[MEMORY].cpu for each in found]
        clock: list[float | None] = [each[way].clock - each[MEMORY].clock for each in found]
        rows.append(row("journal", f"fsync {way}", "CPU over memory", "us", cpu, budget))
        rows.append(row("journal", f"fsync {way}", "clock over memory", "us", clock, None))
    encoding: list[float | None] = [each[ENCODING].cpu for each in found]
    rows.append(row("journal", "", "of it making events", "us", encoding, None))
    return rows


@contextlib.contextmanager
def _captured(dsn: str, transactions: int) -> Iterator[Iterator[list[Unit]]]:
    """Blocks of transactions as the capture hands them over, fresh ones each time."""
    engine = create_engine(sqlalchemy_url(dsn))
    kept = KeepUnits()
    capture = SQLAlchemyCapture(kept, redactor=Redactor(()))
    capture.install()

    def blocks() -> Iterator[list[Unit]]:
        execute = workloads.request(engine, 1)
        number = 0
        while True:
            kept.units = []
            for _ in range(transactions):
                execute(number)
                number += 1
            for unit in kept.units:
                unit.commit = unit.prepared = None
            yield kept.units

    try:
        yield blocks()
    finally:
        capture.uninstall()
        engine.dispose()


def _cost(way: str, units: list[Unit]) -> Cost:
    """Hand a block of transactions over, and see that all of it is there."""
    events = sum(map(len, units))
    if way == ENCODING:
        return _encoding(units, events)
    with tempfile.TemporaryDirectory(prefix="activity-journal-") as directory:
        home = Path(directory)
        delivery: QueuedDelivery | DurableDelivery
        if way == MEMORY:
            delivery = QueuedDelivery((), lambda event: None, capacity=events + 1)
        else:
            delivery = DurableDelivery((), lambda *_: None, capacity=events + 1, home=home, fsync=way)
        _hand_over(delivery, units[:1])  # starts the feeding thread
        clock, cpu = time.perf_counter(), time.thread_time()
        _hand_over(delivery, units[1:])
        cpu, clock = time.thread_time() - cpu, time.perf_counter() - clock
        delivery.close(time.monotonic() + 60)
        delivery.finish()
        if delivery.released != events or delivery.dropped:
            raise WrongCount(f"{way}: {delivery.released} events were taken, not {events}")
        if way != MEMORY:
            _check_journal(home, events)
    timed = events - len(units[0])
    return Cost(cpu / timed * 1e6, clock / timed * 1e6)


def _encoding(units: list[Unit], events: int) -> Cost:
    """What `durable` does in the thread that commits, and `best_effort` in one of its own."""
    clock, cpu = time.perf_counter(), time.thread_time()
    made = [[entry.to_event(unit, Commit.REPORTED) for entry in unit.entries] for unit in units]
    cpu, clock = time.thread_time() - cpu, time.perf_counter() - clock
    if sum(map(len, made)) != events:
        raise WrongCount(f"{ENCODING}: {sum(map(len, made))} events, not {events}")
    return Cost(cpu / events * 1e6, clock / events * 1e6)


def _hand_over(delivery: QueuedDelivery | DurableDelivery, units: list[Unit]) -> None:
    for unit in units:
        delivery.prepare(unit)
        unit.commit = Commit.REPORTED
        delivery.committed(unit)


def _check_journal(home: Path, events: int) -> None:
    """Whether whoever takes the journal over finds each event, and each as committed."""
    found = lost = 0
    for journal in orphans(home, set()):
        left = take_over(journal, ["postgres"])
        found += sum(held.count for held in left.released if held.commit == Commit.REPORTED.value)
        lost += len(left.undecided) + left.losses.records + left.losses.bytes
        journal.close(remove=True)
    if (found, lost) != (events, 0):
        raise WrongCount(f"journal: {found} events are found, not {events}; {lost} are undecided or lost")


# --- how fast it is written -----------------------------------------------------------------------


def _append_rows(size: int, events: int) -> list[Row]:
    units = [
        [unreleased(typical_event(number)) for number in range(first, first + size)]
        for first in range(0, max(size, 3_000), size)
    ]
    found = [_append(units, max(1, events // size), encoding=False) for _ in range(REPETITIONS)]
    encoding = [_append(units, max(1, events // size), encoding=True) for _ in range(REPETITIONS)]
    name = f"units of {size}"
    return [
        row("append", name, "encoded units", "/s", found, APPEND_BUDGET),
        row("append", name, "with encoding", "/s", encoding, None),
    ]


def _append(units: list[list[Event]], count: int, *, encoding: bool) -> float:
    """Events a second that are written into a new journal, which is made durable each second meanwhile."""
    payloads = [encode_unit(unit) for unit in units]
    with tempfile.TemporaryDirectory(prefix="activity-journal-") as directory:
        home = Path(directory)
        journal = Journal.create(home, fsync="interval", max_bytes=1 << 50)
        ended = threading.Event()
        syncing = threading.Thread(target=_sync, args=(journal, ended))
        syncing.start()
        started = time.perf_counter()
        for number in range(count):
            at = number % len(units)
            payload = encode_unit(units[at]) if encoding else payloads[at]
            write_mark(journal, journal.append(PREPARED, payload, unit=True), len(units[at]))
        elapsed = time.perf_counter() - started
        ended.set()
        syncing.join()
        journal.close(remove=False)
        events = count * len(units[0])
        _check_journal(home, events)
    return events / elapsed


def _sync(journal: Journal, ended: threading.Event) -> None:
    while not ended.wait(SYNC_EVERY):
        journal.sync()


# --- how fast it comes back -----------------------------------------------------------------------


def _replay_rows(found: Replay, events: int) -> list[Row]:
    seconds = sum(turn.replay for turn in found.turns)
    plain = sum(turn.copy for turn in found.turns)
    slices = [
        turn.replay / turn.replayed * turn.copied / turn.copy for turn in found.turns if turn.copied
    ] or [seconds / plain]
    spread = row("replay", "", "", "x", list(slices), None)
    ratio = msgspec.structs.replace(
        spread, measure="replay / plain COPY", value=seconds / plain, budget=REPLAY_BUDGET
    )

    def single(measure: str, unit: str, value: float | None, budget: float | None = None) -> Row:
        return Row(what="replay", variant="", measure=measure, unit=unit, value=value, budget=budget)

    server = None if found.server_cpu is None else found.server_cpu / events * 1e6
    rows = [
        ratio,
        single("replay", "/s", events / seconds),
        single("plain COPY", "/s", events / plain),
        single("CPU of the process", "us", found.cpu / events * 1e6),
        single("CPU of the server", "us", server),
        single("most memory: before", "MB", found.before or None),
    ]
    rows += [single(f"most memory: {share:.0%} stored", "MB", found.peaks[share] or None) for share in SHARES]
    first, last = found.peaks[SHARES[0]], found.peaks[SHARES[-1]]
    rows.append(single("most memory: 100% / 10%", "x", last / first if first else None, FLAT))
    return rows


if __name__ == "__main__":
    main()
