"""Processes and servers are killed under load; afterwards rows and events must tell the same.

Every test ends by comparing the rows of the application with the stored events: missing 0, extra 0,
duplicates 0. The database proves what a kill of the application left open. What a crash of the database left
open may be unknown.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_activity.embedded import EmbeddedPostgres
from otel_activity.postgres import schema
from tests.e2e.support import NOTHING, World, events, journals, relay, rows, unexplained, wait_for_line
from tests.e2e.test_auto_instrumentation import wait_until_ready
from tests.faults.disks import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

SEED = 20261124
KILLS = 200


class Load:
    """Clients that post as fast as they are answered, whatever the answer."""

    def __init__(self, url: str, clients: int = 3) -> None:
        self._url = url
        self._end = threading.Event()
        self.answered = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                with urllib.request.urlopen(self._url, data=b"", timeout=5):
                    self.answered += 1
            except OSError:
                time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that a process started, in whichever of its threads."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in listed.read_text().split()]
    return found


def settle(world: World, directory: Path) -> None:
    """Deliver everything, and compare."""
    status, output = relay(world, directory / "journal", "--timeout", "60")
    assert status == 0, output
    assert unexplained(world) == NOTHING
    assert journals(directory) == []


def test_two_hundred_kills_lose_nothing(durable: World, tmp_path: Path) -> None:
    """Killed at random instants, adopters among them, and relays killed as well: nothing is lost or twice."""
    process = durable.start("python", "nursery.py", str(SEED), str(KILLS), OTEL_BLRP_SCHEDULE_DELAY="50")
    output, _ = process.communicate(timeout=200)
    assert "program done" in output, output
    for wait in (0.6, 0.9):
        relays = [start_relay(durable, tmp_path / "journal") for _ in range(2)]
        time.sleep(wait)
        for each in relays:
            each.kill()
            each.communicate()
    settle(durable, tmp_path)
    assert len(rows(durable)) > KILLS
    assert {fate for _, _, fate in events(durable)} == {"reported", "proven"}


def start_relay(world: World, directory: Path) -> subprocess.Popen[bytes]:
    program = "from otel_activity.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "relay", "--journal", str(directory)],
        env=world.environment(OTEL_ACTIVITY_JOURNAL_DIR=""),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_killed_workers_lose_nothing(durable: World, tmp_path: Path, free_port: int) -> None:
    """gunicorn's workers are killed under load again and again; the others and their successors go on."""
    rng = random.Random(SEED)
    process = durable.start(
        *("gunicorn", "wsgi_tasks:app", "--workers", "2", "--bind", f"127.0.0.1:{free_port}"),
        OTEL_BLRP_SCHEDULE_DELAY="50",
    )
    url = f"http://127.0.0.1:{free_port}"
    wait_until_ready(url)
    killed = 0
    with Load(url):
        for _ in range(12):
            time.sleep(rng.uniform(0.2, 0.8))
            workers = children(process.pid)
            if workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed += 1
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    settle(durable, tmp_path)
    assert killed > 6
    assert len(rows(durable)) > 20


SERVERS = {
    "uvicorn": ("uvicorn", "web:app", "--port", "{port}"),
    "uvicorn, 2 workers": ("uvicorn", "web:app", "--port", "{port}", "--workers", "2"),
    "gunicorn": ("gunicorn", "wsgi_tasks:app", "--workers", "2", "--bind", "127.0.0.1:{port}"),
    "gunicorn, preloaded": (
        *("gunicorn", "wsgi_tasks:app", "--workers", "2", "--bind", "127.0.0.1:{port}"),
        *("--preload", "--max-requests", "50"),
    ),
}


@pytest.mark.parametrize("server", SERVERS)
def test_sigterm_under_load_loses_nothing(
    durable: World, tmp_path: Path, free_port: int, server: str
) -> None:
    """Requests are under way when the server is told to end: what they commit is in the store afterwards."""
    process = durable.start(*(word.format(port=free_port) for word in SERVERS[server]))
    ready = f"http://127.0.0.1:{free_port}/ready"
    wait_until_ready(ready)
    with Load(f"http://127.0.0.1:{free_port}/tasks") as load:
        deadline = time.monotonic() + 30
        while load.answered < 150 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    settle(durable, tmp_path)
    assert len(rows(durable)) >= load.answered >= 150


@pytest.fixture
def own_server(durable: World) -> Iterator[EmbeddedPostgres]:
    """A server that holds both databases of the world, and can be crashed."""
    kept = durable.application, durable.store
    with EmbeddedPostgres(fsync=False) as server:
        durable.application = server.create_database("app")
        durable.store = server.create_database("audit")
        schema.apply(durable.store)
        yield server
        durable.close()
    durable.application, durable.store = kept


def test_a_crashing_database_loses_nothing(
    durable: World, tmp_path: Path, own_server: EmbeddedPostgres
) -> None:
    """`pg_ctl stop -m immediate` under load, with the store in the same server: all is there in the end."""
    rng = random.Random(SEED)
    process = durable.start(
        "python", "stubborn.py", OTEL_BLRP_SCHEDULE_DELAY="50", OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="20"
    )
    wait_for_line(process, "program runs")
    for _ in range(6):
        time.sleep(rng.uniform(0.3, 1.0))
        own_server.restart("immediate")
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert "program done" in output
    settle(durable, tmp_path)
    assert len(rows(durable)) > 50
    # Two threads, two events a transaction. After a crash of the server a committed id proves nothing.
    assert len([fate for _, _, fate in events(durable) if fate == "unknown"]) <= 4 * 6


def test_a_full_disk_loses_nothing(durable: World, tmp_path: Path) -> None:
    """A journal on a file system of 128 kB, store down: what has no room waits in memory, and arrives."""
    directory, namespace, mount = small_disk(tmp_path, size="128k")
    with EmbeddedPostgres(fsync=False) as server:
        store, kept = server.create_database("audit"), durable.store
        schema.apply(store)
        server.kill()
        process = durable.spawn(
            *(*namespace, "sh", "-c"),
            f"{mount} && exec opentelemetry-instrument python loop.py 200 wait",
            OTEL_ACTIVITY_JOURNAL_DIR=str(directory),
            OTEL_ACTIVITY_POSTGRES_DSN=store,
            OTEL_BLRP_SCHEDULE_DELAY="20",
        )
        seen = wait_for_line(process, "program done")
        assert "No space left on device" in seen
        server.start()
        durable.store = store
        deadline = time.monotonic() + 30
        while len(events(durable)) < 480 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert unexplained(durable) == NOTHING
        assert {fate for _, _, fate in events(durable)} == {"reported"}
        durable.close()
        durable.store = kept
