"""Start programs under ``opentelemetry-instrument``, as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
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
            # On a crowded machine a worker may not answer its supervisor in 5 s, which then kills it.
            "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": "60",
            **extra,
        }
        return {name: value for name, value in environment.items() if value}

    def start(self, *command: str, flags: tuple[str, ...] = (), **extra: str) -> subprocess.Popen[str]:
        """Start a command under ``opentelemetry-instrument``."""
        return self.spawn("opentelemetry-instrument", *flags, *command, **extra)

    def spawn(self, *command: str, **extra: str) -> subprocess.Popen[str]:
        """Start any command among the programs, with the settings of this world; it is ended with it."""
        process = subprocess.Popen(
            command,
            env=self.environment(**extra),
            cwd=PROGRAMS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def run(self, *arguments: str, flags: tuple[str, ...] = (), **extra: str) -> tuple[int, str]:
        """Run plain.py to its end; its exit status and all its output."""
        process = self.start("python", "plain.py", *arguments, flags=flags, **extra)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def run_without(self, closed: str, **extra: str) -> tuple[int, str]:
        """Run plain.py without these of its file descriptors; its exit status and what it could print."""
        closing = (
            f"import os, sys; [os.close(number) for number in ({closed},)]; os.execvp(*eval(sys.argv[1]))"
        )
        command = ["opentelemetry-instrument", "python", "plain.py"]
        process = self.spawn(sys.executable, "-c", closing, repr((command[0], command)), **extra)
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
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers, too: they hold its output open
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


# --- with a journal --------------------------------------------------------------------------------


def journals(directory: Path) -> list[Path]:
    """The journals that are left."""
    return list((directory / "journal").glob("*/*"))


def rows(world: World) -> set[int]:
    """The truth: ids of the rows that were committed."""
    with psycopg.connect(world.application) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM task").fetchall()}


def events(world: World) -> list[tuple[str, int, str]]:
    """Name, row and fate of each stored event that is about the program, and not about its stream."""
    with psycopg.connect(world.store) as connection:
        return connection.execute(
            "SELECT name, entity_id::int, attributes ->> 'activity.commit' FROM activity.events "
            "WHERE name NOT LIKE 'activity.stream.%'"
        ).fetchall()


def unexplained(world: World) -> dict[str, list[object]]:
    """What table and store disagree about. An event of an unknown fate may be there without its row."""
    truth, stored = rows(world), events(world)
    created = [entity for name, entity, _ in stored if name == "activity.entity.created"]
    changed = [entity for name, entity, _ in stored if name == "activity.entity.updated"]
    with psycopg.connect(world.application) as connection:
        renamed = connection.execute("SELECT id FROM task WHERE name = 'renamed'").fetchall()
    return {
        "missing": sorted(truth - set(created)),
        "updates missing": sorted({row[0] for row in renamed} - set(changed)),
        "duplicate": sorted(
            (kind, entity)
            for kind, found in (("created", created), ("updated", changed))
            for entity in set(found)
            if found.count(entity) > 1
        ),
        "reported without a row": sorted(
            (name, entity) for name, entity, fate in stored if fate != "unknown" and entity not in truth
        ),
    }


NOTHING: dict[str, list[object]] = {
    "missing": [],
    "updates missing": [],
    "duplicate": [],
    "reported without a row": [],
}


def wait_for_line(process: subprocess.Popen[str], wanted: str) -> str:
    """Read the output of a program up to a line; all of it until then."""
    seen = []
    for line in lines(process):
        seen.append(line)
        if wanted in line:
            return "".join(seen)
    raise AssertionError(f"the program ended before it said {wanted!r}: {seen}")


def relay(world: World, directory: Path, *options: str) -> tuple[int, str]:
    """Run ``otel-activity relay`` on the journals; its exit status and what it prints."""
    program = "from otel_activity.cli import main; main()"
    environment = world.environment(OTEL_SERVICE_NAME="", OTEL_ACTIVITY_JOURNAL_DIR="")
    done = subprocess.run(
        [sys.executable, "-c", program, "relay", "--journal", str(directory), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout
