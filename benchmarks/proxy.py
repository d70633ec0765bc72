"""A TCP proxy that adds a round trip: `python -m benchmarks.proxy HOST PORT MILLISECONDS`.

It prints the port it listens on and ends with its standard input. The whole delay is put on the way to the
server, which a request and its answer cannot tell from half of it on either way. Data is delayed, not slowed
down: what arrives later does not wait for what came before. A process of its own, because sleeping threads
inside the client would be measured with it.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Final, Self

import psycopg

__all__ = ["DelayProxy", "round_trip", "serve"]

ROOT: Final = Path(__file__).parent.parent
CHUNK: Final = 1 << 18
PROBES: Final = 200


class DelayProxy:
    """The proxy as a child process; use with ``with``.

    Args:
        host: the server's host name, or the directory of its Unix socket.
        port: the server's port.
        milliseconds: what the proxy adds to each round trip.
    """

    def __init__(self, host: str, port: int, milliseconds: float) -> None:
        self._command = [sys.executable, "-m", "benchmarks.proxy", host, str(port), str(milliseconds)]
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def round_trip(dsn: str) -> float:
    """Milliseconds that the smallest statement takes."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        times = []
        for _ in range(PROBES):
            started = time.perf_counter()
            connection.execute("SELECT", prepare=True)
            times.append(time.perf_counter() - started)
    return median(times) * 1e3


def serve(host: str, port: int, milliseconds: float) -> None:
    """Listen on 127.0.0.1, print the port, serve until the end of standard input."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listener, host, port, milliseconds / 1e3), daemon=True).start()
    sys.stdin.read()


def _accept(listener: socket.socket, host: str, port: int, delay: float) -> None:
    while True:
        client, _ = listener.accept()
        server = _connect(host, port)
        for end in (client, server):
            with contextlib.suppress(OSError):  # a Unix socket has no such option, nor a need for it
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        for target, arguments in (
            (_receive, (client, waiting, delay)),
            (_send, (server, waiting)),
            (_pass_on, (server, client)),
        ):
            threading.Thread(target=target, args=arguments, daemon=True).start()


def _connect(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{host}/.s.PGSQL.{port}")
    return server


def _receive(client: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]], delay: float) -> None:
    """Take what the client sends and note when it is due; empty data is the end."""
    data = b"-"
    while data:
        data = _read(client)
        waiting.put((time.perf_counter() + delay, data))


def _send(server: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    """Give the server what is due."""
    with contextlib.suppress(OSError):
        while True:
            due, data = waiting.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            if not data:
                break
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)


def _pass_on(server: socket.socket, client: socket.socket) -> None:
    """Give the client at once what the server answers."""
    with contextlib.suppress(OSError):
        while data := _read(server):
            client.sendall(data)
        client.shutdown(socket.SHUT_WR)


def _read(end: socket.socket) -> bytes:
    try:
        return end.recv(CHUNK)
    except OSError:
        return b""


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
