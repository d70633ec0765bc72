"""Start programs under ``opentelemetry-instrument``, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = Path(__file__).parent / "programs"
QUIET = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


class World:
    """An application database and a store, and programs that use them."""

    def __init__(self, application: str, store: str) -> None:
        self.application = application
        self.store = store
        self.running: list[subprocess.Popen[str]] = []

    def environment(self, **extra: str) -> dict[str, str]:
        """What a program gets: nothing of ours but the DSN. An empty value unsets a variable."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        bin_dir = str(Path(sys.executable).parent)
        environment = {
            **inherited,
            **QUIET,
            "PATH": f"{bin_dir}{os.pathsep}{inherited.get('PATH', '')}",
            "DATABASE_URL": self.application.replace("postgresql://", "postgresql+psycopg://"),
            "OTEL_ACTIVITY_POSTGRES_DSN": self.store,
            "OTEL_SERVICE_NAME": "shop",
            **extra,
        }
        return {name: value for name, value in environment.items() if value}

    def start(self, *command: str, flags: tuple[str, ...] = (), **extra: str) -> subprocess.Popen[str]:
        """Start a command under ``opentelemetry-instrument``."""
        process = subprocess.Popen(
            ["opentelemetry-instrument", *flags, *command],
            env=self.environment(**extra),
            cwd=PROGRAMS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.running.append(process)
        return process

    def run(self, *arguments: str, flags: tuple[str, ...] = (), **extra: str) -> tuple[int, str]:
        """Run plain.py to its end; its exit status and all its output."""
        process = self.start("python", "plain.py", *arguments, flags=flags, **extra)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def stored(self) -> list[tuple[str, str, str]]:
        """Name, entity id and service of each stored event, in order of stream and sequence."""
        with psycopg.connect(self.store) as connection:
            return connection.execute(
                "SELECT name, entity_id, service FROM activity.events ORDER BY stream_id, sequence"
            ).fetchall()

    def close(self) -> None:
        """End what still runs."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.running.clear()


EXPECTED = [
    *(("activity.entity.created", str(number), "shop") for number in range(1, 6)),
    ("activity.entity.updated", "5", "shop"),
    ("activity.entity.deleted", "5", "shop"),
]


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """The output of a running program, line by line."""
    assert process.stdout is not None
    while line := process.stdout.readline():  # a generator over the pipe would close it at its own end
        yield line
