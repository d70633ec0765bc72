"""Celery's prefork workers are killed under load, and told to end: rows and events tell the same."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support import World, events, rows
from tests.faults.test_kills import children, settle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

SEED = 20261128
TASKS = 3000
KILLS = 25
PATIENCE = 60
"""Seconds until the main process ends by itself; it takes a few."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What tells the program where its tasks are: in Redis, where that is installed."""
    program = shutil.which("redis-server")
    if program is None:
        box = tmp_path / "box"
        box.mkdir()
        yield {"BROKER": "filesystem://", "BOX": str(box)}
        return
    socket = tmp_path / "redis.sock"
    server = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.02)
        yield {"BROKER": f"redis+socket://{socket}"}
    finally:
        server.terminate()
        server.wait()


def test_killed_prefork_workers_and_sigterm(durable: World, tmp_path: Path, broker: dict[str, str]) -> None:
    """Workers die by SIGKILL, others after 20 tasks, the last ones by the SIGTERM of the main process."""
    rng = random.Random(SEED)
    extra = {**broker, "OTEL_BLRP_SCHEDULE_DELAY": "50", "PYTHONPATH": "."}
    enqueued = durable.start("python", "fields.py", str(TASKS), **extra)
    assert "program done" in enqueued.communicate(timeout=60)[0]
    process = durable.start(
        *("celery", "--app", "fields", "worker", "--loglevel", "CRITICAL", "--pool", "prefork"),
        *("--concurrency", "3", "--max-tasks-per-child", "20"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        **extra,
    )
    deadline = time.monotonic() + 60
    while not rows(durable):
        assert time.monotonic() < deadline, "no task was done"
        time.sleep(0.1)
    killed = 0
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.1, 0.4))
        with suppress(IndexError, ProcessLookupError):  # it may have ended by itself meanwhile
            os.kill(rng.choice(children(process.pid)), signal.SIGKILL)
            killed += 1
    process.send_signal(signal.SIGTERM)
    end(process, warm=broker["BROKER"] != "filesystem://")
    settle(durable, tmp_path)
    assert killed > KILLS // 2
    assert len(rows(durable)) > 20
    assert {fate for _, _, fate in events(durable)} <= {"reported", "proven"}


def end(process: subprocess.Popen[str], *, warm: bool) -> None:
    """Wait for the main process.

    With a broker that is polled, workers read their tasks from one pipe under one lock. One that is killed
    holding it takes it along: the others get no tasks any more, and the pool waits for it for ever at its end
    (`billiard.pool.Pool._help_stuff_finish`), audited or not. Then all are killed.
    """
    try:
        process.communicate(timeout=PATIENCE if warm else 10)
    except subprocess.TimeoutExpired:
        if warm:
            raise
        for pid in (*children(process.pid), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
