"""Ends of a process while other threads are still committing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.e2e.support import NOTHING, PROGRAMS, World, journals, relay, rows, unexplained

if TYPE_CHECKING:
    from pathlib import Path


def test_threads_that_commit_until_the_very_end_lose_nothing(durable: World, tmp_path: Path) -> None:
    """Daemon threads go on while the process ends: what they commit then is found by the next one."""
    for _ in range(2):
        process = durable.start("python", "daemons.py", "1")
        process.communicate(timeout=60)
    relay(durable, tmp_path / "journal")
    assert unexplained(durable) == NOTHING


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_workers_that_are_forked_without_hooks_are_processes_of_their_own(
    durable: World, tmp_path: Path
) -> None:
    """Each has its own journal and stream, and delivers by itself; one that did nothing ends nobody's."""
    process = durable.spawn(sys.executable, str(PROGRAMS / "unhooked.py"), OTEL_ACTIVITY_HEARTBEAT="60")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert len(rows(durable)) == 140
    assert unexplained(durable) == NOTHING
    assert not journals(tmp_path)
    with psycopg.connect(durable.store) as connection:
        streams = connection.execute(
            "SELECT count(*), count(DISTINCT stream_id) FROM activity.events "
            "WHERE name = 'activity.stream.closed'"
        ).fetchone()
    assert streams == (3, 3)
    assert "journal" not in said


def test_a_loss_of_before_does_not_cost_the_last_events_of_the_applications_provider(world: World) -> None:
    """SIGTERM waits for the provider whatever was lost earlier; who asks later hears of the loss still."""
    environment = world.environment(OTEL_ACTIVITY_LOGGER_PROVIDER="global", OTEL_ACTIVITY_POSTGRES_DSN="")
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "last_batch.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGTERM
    assert done.stdout.splitlines() == ["events were lost", "exported: the last one"]
