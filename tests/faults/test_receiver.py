"""The other end dies or the line is cut while a durable process exports: each event is stored, once."""

from __future__ import annotations

import random
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from otel_activity.embedded import EmbeddedPostgres
from otel_activity.postgres import schema
from tests.e2e.support import World, events, rows, wait_for_line
from tests.faults.test_kills import settle
from tests.receiver.support import Receiver

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL"),
]

SEED = 20261128
KILLS = 8


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_killed_receiver_loses_nothing(
    durable: World, tmp_path: Path, free_port: int, protocol: str
) -> None:
    """`otel-activity receive` dies by SIGKILL at seeded instants under load, and comes back each time."""
    rng = random.Random(f"{SEED} {protocol}")
    here = ("--http-port", str(free_port)) if protocol == "http" else ("--grpc-port", str(free_port))
    process = durable.start(
        *("python", "stubborn.py"),
        OTEL_ACTIVITY_EXPORTERS="otlp",
        OTEL_ACTIVITY_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port}",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc" if protocol == "grpc" else "http/protobuf",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
        OTEL_BLRP_SCHEDULE_DELAY="10",
        OTEL_BLRP_MAX_EXPORT_BATCH_SIZE="64",
        OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="60",
    )
    wait_for_line(process, "program runs")
    for number in range(KILLS + 1):
        with Receiver(durable.store, *here) as receiver:
            before = len(events(durable))
            deadline = time.monotonic() + 30
            while len(events(durable)) == before and time.monotonic() < deadline:
                time.sleep(0.005)  # not before it has taken something
            if number < KILLS:
                time.sleep(rng.uniform(0.0, 0.3))
                receiver.process.send_signal(signal.SIGKILL)
                receiver.process.wait(10)
                continue
            process.send_signal(signal.SIGUSR1)
            output, _ = process.communicate(timeout=100)
            assert "program done" in output, output
    settle(durable, tmp_path)
    assert len(rows(durable)) > 10 * KILLS
    assert {fate for _, _, fate in events(durable)} == {"reported"}


class Scissors:
    """A TCP proxy that cuts connections after a number of bytes, both ways at once.

    Args:
        target: host and port behind it.
        budgets: bytes that each connection may carry, one after the other; those after them are not cut.
        direction: whose bytes count, ``sent`` or ``answered``.
    """

    def __init__(self, target: tuple[str, int], budgets: list[int], direction: str) -> None:
        self._target, self._budgets, self._direction = target, budgets, direction
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.1)
        self._end = threading.Event()
        self.cuts = 0
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def port(self) -> int:
        port: int = self._server.getsockname()[1]
        return port

    def __enter__(self) -> Scissors:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._server.close()

    def _accept(self) -> None:
        while not self._end.is_set():
            with suppress(TimeoutError):
                client, _ = self._server.accept()
                budget = self._budgets.pop(0) if self._budgets else None
                thread = threading.Thread(target=self._carry, args=(client, budget))
                self._threads.append(thread)
                thread.start()

    def _carry(self, client: socket.socket, budget: int | None) -> None:
        with client, socket.create_connection(self._target) as server, suppress(OSError):
            counted = client if self._direction == "sent" else server
            while not self._end.is_set():
                for source in select.select([client, server], [], [], 0.1)[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if budget is not None and source is counted:
                        data, budget = data[:budget], budget - len(data)
                    (server if source is client else client).sendall(data)
                    if budget is not None and budget <= 0:
                        self.cuts += 1
                        return


@pytest.mark.parametrize("direction", ["sent", "answered"])
def test_a_connection_cut_at_any_byte_loses_nothing(durable: World, tmp_path: Path, direction: str) -> None:
    """The line to the store is cut in the middle of COPY, or of the answer to it: stored once in the end."""
    rng = random.Random(f"{SEED} {direction}")
    with EmbeddedPostgres(fsync=False) as server:
        kept, durable.store = durable.store, server.create_database("audit")
        schema.apply(durable.store)
        where = urlsplit(durable.store)
        most = 60_000 if direction == "sent" else 1_200
        least = 3_000 if direction == "sent" else 700
        budgets = [rng.randint(least, most) for _ in range(20)]
        with Scissors((str(where.hostname), int(where.port or 0)), budgets, direction) as scissors:
            through = durable.store.replace(f":{where.port}/", f":{scissors.port}/")
            process = durable.start(
                *("python", "loop.py", "600"),
                OTEL_ACTIVITY_POSTGRES_DSN=through,
                OTEL_BLRP_SCHEDULE_DELAY="10",
                OTEL_BLRP_MAX_EXPORT_BATCH_SIZE="32",
                OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="60",
            )
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
            assert scissors.cuts > 10
        said = server.log_path.read_text()
        if direction == "sent":
            assert "COPY events, line" in said  # some cuts were in the middle of it
        settle(durable, tmp_path)
        assert len(rows(durable)) == 960
        assert {fate for _, _, fate in events(durable)} == {"reported"}
        durable.close()
        durable.store = kept
