"""Processes that are killed: what the store says about them afterwards."""

from __future__ import annotations

import signal
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from otel_activity.delivery.holding import CONFIRMED
from otel_activity.delivery.records import HEADER_SIZE, Record, scan
from otel_activity.store.gaps import Kind, find_gaps
from tests.cli.support import run
from tests.e2e.support import relay
from tests.e2e.test_auto_instrumentation import wait_until_ready

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from otel_activity.store.gaps import Finding
    from tests.e2e.support import World

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL"),
]

BEATS = {"OTEL_ACTIVITY_HEARTBEAT": "0.2", "OTEL_BLRP_SCHEDULE_DELAY": "50"}
PATIENCE = 60.0


def found(world: World) -> list[Finding]:
    """What is missing in the store, everything judged at once."""
    since = datetime.now(UTC) - timedelta(hours=1)
    return find_gaps(world.store, "activity", since=since, grace=timedelta(0))


def names(world: World) -> set[str]:
    """The kinds of events that are stored."""
    with psycopg.connect(world.store) as connection:
        return {row[0] for row in connection.execute("SELECT DISTINCT name FROM activity.events").fetchall()}


def kill_in_full_flight(world: World, process: subprocess.Popen[str]) -> None:
    """SIGKILL, when events of the program and beats of its stream have been stored."""
    deadline = time.monotonic() + PATIENCE
    while not {"activity.entity.created", "activity.stream.beat"} <= names(world):
        assert time.monotonic() < deadline, "the program never stored a beat"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=PATIENCE)


def test_a_killed_process_without_a_journal_has_a_lost_tail(world: World) -> None:
    """What was queued is gone, and nobody can count it: the stream that never closed says so."""
    process = world.start("python", "loop.py", OTEL_ACTIVITY_DELIVERY="best_effort", **BEATS)
    kill_in_full_flight(world, process)
    deadline = time.monotonic() + PATIENCE
    while not (tails := [one for one in found(world) if one.kind is Kind.TAIL]):
        assert time.monotonic() < deadline, "the end of the stream was never noticed"
        time.sleep(0.1)
    assert [(one.service, one.explanation) for one in tails] == [("shop", None)]
    result = run("doctor", "--gaps", "--grace", "0", dsn=world.store)
    assert result.exit_code == 1
    assert "not closed, silent since" in result.output


def test_a_killed_process_whose_journal_is_relayed_has_no_gap(durable: World, tmp_path: Path) -> None:
    """A host that never comes back leaves nothing unexplained once its journals were relayed."""
    process = durable.start("python", "loop.py", **BEATS)
    kill_in_full_flight(durable, process)
    assert relay(durable, tmp_path / "journal")[0] == 0
    time.sleep(3 * float(BEATS["OTEL_ACTIVITY_HEARTBEAT"]))
    assert [one for one in found(durable) if one.explanation is None] == []


def test_what_is_delivered_twice_after_a_kill_is_no_gap(durable: World, tmp_path: Path) -> None:
    """The store had events that the journal did not know to be delivered: explained also without beats."""
    process = durable.start("python", "loop.py", OTEL_BLRP_SCHEDULE_DELAY="20")
    deadline = time.monotonic() + PATIENCE
    while "activity.entity.created" not in names(durable):
        assert time.monotonic() < deadline, "the program never stored an event"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=PATIENCE)
    for segment in (tmp_path / "journal").rglob("*.seg"):
        forget_confirmations(segment)
    second = durable.start("python", "loop.py", "3")
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, output
    holes = [one for one in found(durable) if one.kind is Kind.HOLE]
    assert holes
    assert [one for one in holes if one.explanation is None] == []


def forget_confirmations(segment: Path) -> None:
    """A journal as it is when the process dies between the store's answer and its note of it."""
    data = segment.read_bytes()
    kept = [data[:HEADER_SIZE]]
    for record in scan(data):
        if not isinstance(record, Record) or record.kind == CONFIRMED:
            break
        kept.append(data[record.start : record.end])
    segment.write_bytes(b"".join(kept))


def test_a_killed_process_whose_journal_is_taken_over_has_no_gap(durable: World) -> None:
    """The next process delivers what was left and closes the dead one's stream: nothing is unexplained."""
    process = durable.start("python", "loop.py", **BEATS)
    kill_in_full_flight(durable, process)
    second = durable.start("python", "loop.py", "3", **BEATS)
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, output
    with psycopg.connect(durable.store) as connection:
        closed = connection.execute(
            "SELECT DISTINCT attributes ->> 'activity.stream.subject.id' FROM activity.events "
            "WHERE name = 'activity.stream.closed'"
        ).fetchall()
        streams = connection.execute(
            "SELECT DISTINCT stream_id::text FROM activity.events WHERE stream_id IS NOT NULL"
        ).fetchall()
    assert len(closed) == 2
    assert set(closed) >= set(streams)
    assert [one for one in found(durable) if one.explanation is None] == []
    assert run("doctor", "--gaps", "--grace", "0", dsn=durable.store).exit_code == 0


SERVERS = {
    "uvicorn": ("uvicorn", "web:app", "--port", "{port}"),
    "uvicorn, 2 workers": ("uvicorn", "web:app", "--port", "{port}", "--workers", "2"),
    "gunicorn": ("gunicorn", "wsgi_tasks:app", "--workers", "2", "--bind", "127.0.0.1:{port}"),
    "gunicorn, preloaded": (
        *("gunicorn", "wsgi_tasks:app", "--workers", "2", "--bind", "127.0.0.1:{port}"),
        "--preload",
    ),
}


@pytest.mark.parametrize("delivery", ["durable", "best_effort"])
@pytest.mark.parametrize("server", SERVERS)
def test_sigterm_closes_the_stream_of_every_process(
    durable: World, free_port: int, server: str, delivery: str
) -> None:
    """Each stream that was opened ends with a record that closes it, behind everything that it released."""
    process = durable.start(
        *(word.format(port=free_port) for word in SERVERS[server]),
        OTEL_ACTIVITY_HEARTBEAT="60",
        OTEL_ACTIVITY_DELIVERY=delivery,
    )
    url = f"http://127.0.0.1:{free_port}"
    wait_until_ready(f"{url}/ready")
    for _ in range(10):
        urllib.request.urlopen(urllib.request.Request(f"{url}/tasks", method="POST")).close()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    with psycopg.connect(durable.store) as connection:
        streams = connection.execute(
            "SELECT array_agg(name ORDER BY sequence), max(sequence) - min(sequence) + 1 = count(*) "
            "FROM activity.events GROUP BY stream_id"
        ).fetchall()
    names = [stream for stream, _ in streams]
    assert sum(stream.count("activity.entity.created") for stream in names) == 10, output
    opened, closed = "activity.stream.opened", "activity.stream.closed"
    ends = {(one.count(opened), one.count(closed), one[-1], whole) for one, whole in streams}
    assert ends == {(1, 1, closed, True)}, output
    assert [one for one in found(durable) if one.explanation is None] == []
