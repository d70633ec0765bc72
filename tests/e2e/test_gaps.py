"""Processes that are killed: what the store says about them afterwards."""

from __future__ import annotations

import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from otel_activity.store.gaps import Kind, find_gaps
from tests.cli.support import run
from tests.e2e.support import relay

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
        streams = connection.execute("SELECT DISTINCT stream_id::text FROM activity.events").fetchall()
    assert len(closed) == 2
    assert set(closed) >= set(streams)
    assert [one for one in found(durable) if one.explanation is None] == []
    assert run("doctor", "--gaps", "--grace", "0", dsn=durable.store).exit_code == 0
